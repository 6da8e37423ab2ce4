"""This machine's disk is full for a while: whoever asks is told, and nothing is lost by it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT
from mount.client import Client
from mount.filesystem import Changes
from mount.policy import Policy
from tests.harness.world import ME, World, eventually, find, load

pytestmark = pytest.mark.expects_warnings
SOON = Policy(change_deadline_s=20.0, poll_s=0.1, dirty_age_s=0.01)
NEVER = Policy(change_deadline_s=20.0, poll_s=0.1, dirty_age_s=1e6)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


class FullDisk:
    """Takes nothing more for a mount's journal until it is `freed`."""

    def __init__(self, client: Client, patch: pytest.MonkeyPatch) -> None:
        self.was_met = threading.Event()
        self._is_full = True
        self._append = client.core.journal.append
        patch.setattr(client.core.journal, "append", self._take)

    def _take(self, records: Sequence[bytes]) -> int:
        if self._is_full:
            self.was_met.set()
            raise EverfoldError(Kind.NO_SPACE, "the disk is full")
        return self._append(records)

    def free(self) -> None:
        self._is_full = False


def writing(client: Client, name: bytes) -> int:
    """Make a file; return its handle."""
    _, opened = client.vfs.create(ROOT, name, 0o644, os.O_RDWR, ME)
    client.vfs.fsync(opened.fh, False)
    return opened.fh


def write_to_full(client: Client, patch: pytest.MonkeyPatch) -> tuple[int, FullDisk]:
    """Write "text" to a new file "f" while the disk is full; return its handle, and the disk."""
    fh = writing(client, b"f")
    disk = FullDisk(client, patch)
    client.vfs.write(fh, 0, b"text", False)
    return fh, disk


@pytest.mark.parametrize("how", ["fsync", "close", "sync of all"])
def test_what_could_not_be_kept_is_kept_by_the_next_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    client = world.mount("a", NEVER)
    fh, disk = write_to_full(client, monkeypatch)
    with pytest.raises(EverfoldError) as refused:
        client.vfs.fsync(fh, False)
    assert refused.value.kind is Kind.NO_SPACE
    disk.free()
    if how == "fsync":
        client.vfs.fsync(fh, False)
    elif how == "close":
        client.vfs.flush(fh, 0)
        client.vfs.release(fh, 0, False)
    else:
        client.vfs.syncfs()

    assert eventually(lambda: load(world.mount("b"), "f") == b"text")


def test_a_file_that_stays_open_is_sent_on_once_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = world.mount("a", SOON), world.mount("b")
    _, disk = write_to_full(client, monkeypatch)
    assert disk.was_met.wait(10)
    disk.free()

    assert eventually(lambda: load(other, "f") == b"text")


def test_a_file_whose_close_failed_is_sent_on_once_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = world.mount("a", SOON), world.mount("b")
    fh, disk = write_to_full(client, monkeypatch)
    with pytest.raises(EverfoldError):
        client.vfs.flush(fh, 0)
    with pytest.raises(EverfoldError):
        client.vfs.release(fh, 0, False)
    disk.free()

    assert eventually(lambda: load(other, "f") == b"text")


def test_attributes_that_could_not_be_kept_are_not_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.mount("a")
    writing(client, b"f")
    ino = find(client, "f").ino
    FullDisk(client, monkeypatch)
    with pytest.raises(EverfoldError):
        client.vfs.setattr(ino, Changes(mode=0o600), None, ME)

    assert client.vfs.getattr(ino).attr.mode & 0o777 == 0o644
