"""Whose turn it is to write to an SQLite database, among threads and processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from nameserver import turn
from nameserver.turn import Turn
from tests.harness.cluster import ROOT
from tests.harness.machine import wait_until

HOLDER = """
import sys
from nameserver.turn import Turn
Turn(sys.argv[1]).acquire()
print("mine", flush=True)
sys.stdin.read()
"""


def is_locked(path: Path, byte: int) -> bool:
    """Tell whether somebody holds the lock on a byte."""
    handle = os.open(f"{path}-turn", os.O_RDWR)
    wanted = turn._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def test_who_waits_is_next_however_quick_the_one_before_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "db"
    one, other = Turn(str(path)), Turn(str(path))  # each as in a process of its own
    order = ["one"]
    one.acquire()

    def wait() -> None:
        with other:
            order.append("other")

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: is_locked(path, turn._NEXT), 10, "the other waits")
    one.release()
    with one:
        order.append("one again")
    thread.join(10)
    one.close()
    other.close()

    assert order == ["one", "other", "one again"]


def test_whoever_waits_too_long_is_told_and_nothing_stays_locked(tmp_path: Path) -> None:
    path = tmp_path / "db"
    one, other = Turn(str(path)), Turn(str(path), wait_s=0.01)
    with one, pytest.raises(EverfoldError) as caught:
        other.acquire()

    assert caught.value.kind is Kind.UNAVAILABLE
    with other:
        assert is_locked(path, turn._TURN)
    assert not is_locked(path, turn._NEXT)
    one.close()
    other.close()


def test_a_process_that_serves_waits_less_than_one_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "_SERVING_WAIT_S", 0.01)
    one, other = Turn(str(tmp_path / "db")), Turn(str(tmp_path / "db"))
    other.hasten()

    with one, pytest.raises(EverfoldError):
        other.acquire()
    one.close()
    other.close()


def test_the_turn_of_a_process_that_is_killed_goes_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "db"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        assert is_locked(path, turn._TURN)
        process.kill()
    mine = Turn(str(path), wait_s=5.0)

    with mine:
        assert is_locked(path, turn._TURN)
    mine.close()


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    shared, inside, most = Turn(str(tmp_path / "db")), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with shared:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()

    assert most == 1
