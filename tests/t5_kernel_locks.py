"""flock and fcntl locks of real processes through a real mount, over both adapters."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.memfs import MemoryFilesystem
from tests.harness.mounts import DRIVERS, Mounted, mounted, until
from tests.harness.programs import programs

pytestmark = pytest.mark.fuse

TRY_FLOCK = "fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
TRY_FCNTL = "fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
WAITS = ("fcntl.flock(f, fcntl.LOCK_EX)", "fcntl.lockf(f, fcntl.LOCK_EX)")
A_MOMENT_S = 0.3  # long enough to see that something does not happen


@pytest.fixture(scope="module", params=DRIVERS)
def served(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    with mounted(MemoryFilesystem, request.param) as mount:
        yield mount


@pytest.fixture
def file(served: Mounted) -> Path:
    path = served.path / secrets.token_hex(4)
    path.write_bytes(b"0123456789")
    return path


def test_flock_and_fcntl_locks_exclude_each_their_own_kind_only(file: Path) -> None:
    with programs(file, 2) as (one, two):
        assert one.do(TRY_FLOCK) == "done"
        assert two.do(TRY_FLOCK) == "EAGAIN"
        assert two.do(TRY_FCNTL) == "done"
        assert one.do(TRY_FCNTL) == "EAGAIN"
        assert one.do("fcntl.flock(f, fcntl.LOCK_UN)") == "done"
        assert two.do(TRY_FLOCK) == "done"


def test_shared_locks_share(file: Path) -> None:
    with programs(file, 3) as (one, two, three):
        assert one.do("fcntl.flock(f, fcntl.LOCK_SH)") == "done"
        assert two.do("fcntl.flock(f, fcntl.LOCK_SH)") == "done"
        assert three.do(TRY_FLOCK) == "EAGAIN"
        assert one.do("fcntl.lockf(f, fcntl.LOCK_SH)") == "done"
        assert two.do("fcntl.lockf(f, fcntl.LOCK_SH)") == "done"
        assert three.do(TRY_FCNTL) == "EAGAIN"


def test_fcntl_locks_are_on_ranges(file: Path) -> None:
    with programs(file, 2) as (one, two):
        assert one.do("fcntl.lockf(f, fcntl.LOCK_EX, 5, 0)") == "done"
        assert two.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)") == "done"
        assert two.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 4)") == "EAGAIN"
        assert one.do("fcntl.lockf(f, fcntl.LOCK_UN, 1, 4)") == "done"
        assert two.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 4)") == "done"
        assert two.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3)") == "EAGAIN"


def test_f_getlk_tells_who_is_in_the_way(file: Path) -> None:
    ask = (
        "import struct; q = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0); "
        "a = struct.unpack('hhqqi4x', fcntl.fcntl(f, fcntl.F_GETLK, q)); "
    )
    with programs(file, 2) as (one, two):
        free = ask + "assert a[0] == fcntl.F_UNLCK, a"
        assert two.do(free) == "done"
        assert one.do("fcntl.lockf(f, fcntl.LOCK_EX, 4, 3)") == "done"
        assert two.do(ask + "assert a[0] == fcntl.F_WRLCK and a[2:4] == (3, 4), a") == "done"


@pytest.mark.parametrize("wait", WAITS)
def test_a_waiting_lock_is_granted_when_the_other_lets_go(file: Path, wait: str) -> None:
    with programs(file, 2) as (one, two):
        assert one.do(wait) == "done"
        two.start(wait)
        assert two.answer(A_MOMENT_S) == ""
        assert one.do(wait.replace("LOCK_EX", "LOCK_UN")) == "done"
        assert two.answer() == "done"


@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_ends_the_wait_for_a_lock(file: Path, wait: str) -> None:
    with programs(file, 2) as (one, two):
        assert one.do(wait) == "done"
        two.start(wait)
        assert two.answer(A_MOMENT_S) == ""
        two.interrupt()
        assert two.answer() == "EINTR"
        assert two.do("os.fstat(f.fileno())") == "done"


@pytest.mark.parametrize("wait", WAITS)
def test_a_program_that_waits_for_a_lock_can_be_killed(file: Path, wait: str) -> None:
    with programs(file, 3) as (one, two, three):
        assert one.do(wait) == "done"
        two.start(wait)
        assert two.answer(A_MOMENT_S) == ""
        assert two.kill() == -9
        assert one.do(wait.replace("LOCK_EX", "LOCK_UN")) == "done"
        assert three.do(wait) == "done"


@pytest.mark.parametrize("wait", WAITS)
def test_locks_fall_when_their_holder_dies(file: Path, wait: str) -> None:
    with programs(file, 2) as (one, two):
        assert one.do(wait) == "done"
        two.start(wait)
        assert two.answer(A_MOMENT_S) == ""
        one.kill()
        assert two.answer() == "done"


def test_fcntl_locks_fall_at_the_first_close(file: Path) -> None:
    reopen = f"g = open({str(file)!r}, 'r+b', buffering=0); g.close()"
    with programs(file, 2) as (one, two):
        assert one.do(TRY_FCNTL) == "done"
        assert one.do(reopen) == "done"
        assert two.do(TRY_FCNTL) == "done"


def test_a_read_lock_of_a_read_only_descriptor_falls_at_its_close(file: Path) -> None:
    with programs(file, 2) as (one, two):
        assert one.do(f"g = open({str(file)!r}, 'rb', buffering=0)") == "done"
        assert one.do("fcntl.lockf(g, fcntl.LOCK_SH)") == "done"
        assert two.do(TRY_FCNTL) == "EAGAIN"
        assert one.do("g.close()") == "done"

        assert until(lambda: two.do(TRY_FCNTL) == "done")


def test_waiting_for_each_other_is_a_deadlock(file: Path) -> None:
    with programs(file, 2) as (one, two):
        assert one.do("fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)") == "done"
        assert two.do("fcntl.lockf(f, fcntl.LOCK_EX, 1, 1)") == "done"
        one.start("fcntl.lockf(f, fcntl.LOCK_EX, 1, 1)")
        assert one.answer(A_MOMENT_S) == ""
        assert two.do("fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)") == "EDEADLK"
        two.kill()
        assert one.answer() == "done"
