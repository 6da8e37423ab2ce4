"""Requests that must wait: they wait beside each other and hold nobody else up."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Ino
from mount import patience
from mount.filesystem import Caller, Node
from tests.harness.memfs import MemoryFilesystem
from tests.harness.mounts import DRIVERS, Mounted, mounted, until

pytestmark = pytest.mark.fuse

CLIENTS = 32
TOGETHER_S = 10.0  # how long a lookup waits to see the others


class Remote(MemoryFilesystem):
    """A filesystem whose `slow…` names need the network, which answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()  # guards the four below
        self._is_open = False
        self._in_flight = 0
        self._most = 0
        self._attempts: dict[bytes, int] = {}

    def lookup(self, parent: Ino, name: bytes) -> Node:
        found = None
        if name.startswith(b"late"):  # what was found out is on its way for long
            patience.require()
            found = super().lookup(parent, name)
        if name.startswith((b"slow", b"late")):
            with self._changed:
                self._attempts[name] = self._attempts.get(name, 0) + 1
            patience.require()
            with self._changed:
                self._in_flight += 1
                self._most = max(self._most, self._in_flight)
                self._changed.wait_for(lambda: self._is_open, TOGETHER_S)
                self._in_flight -= 1
        return found or super().lookup(parent, name)

    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Node:
        patience.require()
        return super().mkdir(parent, name, mode, caller)

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        if name == b"user.defect":
            raise ZeroDivisionError("a defect of the filesystem")
        if name == b"user.away":
            raise EverfoldError(Kind.UNAVAILABLE, "no node has it")
        return super().getxattr(ino, name)

    def in_flight(self) -> int:
        with self._changed:
            return self._in_flight

    def answer(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def counts(self) -> tuple[int, dict[bytes, int]]:
        with self._changed:
            return self._most, dict(self._attempts)


@pytest.fixture
def served() -> Iterator[Mounted]:
    with mounted(Remote) as mount:
        yield mount


def exists(mount: Mounted, name: str) -> bool:
    return (mount.path / name).exists()


def test_slow_lookups_in_one_directory_run_beside_each_other(served: Mounted) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = [clients.submit(exists, served, f"slow{n}") for n in range(CLIENTS)]
        until(lambda: served.filesystem.in_flight() == CLIENTS)
        served.filesystem.answer()
        assert [answer.result(10) for answer in answers] == [False] * CLIENTS

    most, attempts = served.filesystem.counts()
    assert most == CLIENTS
    assert set(attempts.values()) == {2}  # refused once to the impatient thread, then run


def test_what_changes_while_the_kernel_is_told_of_an_inode_is_not_believed(served: Mounted) -> None:
    """It does not know the inode yet when it is told to forget it."""
    made = served.filesystem.create(ROOT, b"late", 0o644, os.O_RDWR, Caller(0, 0, 0))
    node, fh = made[0], made[1].fh
    with ThreadPoolExecutor(1) as clients:
        seen = clients.submit(os.stat, served.path / "late")
        until(lambda: served.filesystem.in_flight() == 1)
        served.filesystem.write(fh, 0, b"content", False)
        served.cache.forget_data(node.attr.ino, 0, 0)
        assert served.cache.tell_again()
        served.filesystem.answer()
        assert seen.result(10).st_size == 0
    until(lambda: not served.cache.tell_again())

    assert (served.path / "late").stat().st_size == 7
    assert (served.path / "late").read_bytes() == b"content"


def test_who_waits_for_the_network_delays_nobody_else(served: Mounted) -> None:
    # Beside the slow directory, not in it: the kernel lets a rename wait for its lookups.
    folder = served.path / "folder"
    folder.mkdir()
    (folder / "quick").write_bytes(b"here")
    waiting = CLIENTS * 3  # more than there are workers
    with ThreadPoolExecutor(waiting) as clients:
        answers = [clients.submit(exists, served, f"slow{n}") for n in range(waiting)]
        until(lambda: served.filesystem.in_flight() >= CLIENTS * 2)

        assert (folder / "quick").read_bytes() == b"here"
        assert not exists(served, "absent")
        os.rename(folder / "quick", folder / "renamed")
        served.filesystem.answer()
        assert [answer.result(10) for answer in answers] == [False] * waiting


def test_what_ran_on_a_worker_is_answered_like_anything_else(served: Mounted) -> None:
    os.mkdir(served.path / "made")
    with pytest.raises(FileExistsError):
        os.mkdir(served.path / "made")

    assert os.listdir(served.path) == ["made"]
    assert served.mount.statistics()["MKDIR"].count == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_defect_is_eio_and_the_mount_goes_on(driver: str) -> None:
    with mounted(Remote, driver) as mount:
        (mount.path / "f").write_bytes(b"content")
        for name in ("user.defect", "user.away"):
            with pytest.raises(OSError) as caught:
                os.getxattr(mount.path / "f", name)
            assert caught.value.errno == errno.EIO

        assert (mount.path / "f").read_bytes() == b"content"


def test_what_the_driver_does_not_know_is_refused_cleanly(served: Mounted) -> None:
    (served.path / "f").write_bytes(b"")
    fs_ioc_getflags = 0x80086601
    with open(served.path / "f", "rb") as file, pytest.raises(OSError) as caught:
        fcntl.ioctl(file.fileno(), fs_ioc_getflags, bytes(8))

    assert caught.value.errno == errno.ENOTTY
