"""Reading: which files of the past lie whole on this machine's disk, and reads run again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.model import BLOCK_MAX, SMALL_BLOCK
from mount import patience, reading
from mount.client import Client
from tests.harness.world import World, find, save


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with World(tmp_path) as world:
        yield world.mount("a")


def first_version(client: Client, content: bytes) -> str:
    """Save a content, then another, and return the local file of the first."""
    save(client, "f", content)
    save(client, "f", b"later")
    client.vfs.syncfs()
    opened = client.vfs.open(find(client, ".versions/f@v1").ino, os.O_RDONLY)
    assert client.vfs.read(opened.fh, 0, 10) == content[:10]
    return opened.backing


@pytest.mark.parametrize("size", [SMALL_BLOCK, BLOCK_MAX])
def test_a_version_of_one_block_has_a_local_file_of_its_bytes(client: Client, size: int) -> None:
    content = os.urandom(size)

    assert Path(first_version(client, content)).read_bytes() == content


@pytest.mark.parametrize("size", [1, SMALL_BLOCK - 1, BLOCK_MAX + 1])
def test_smaller_and_larger_ones_have_none(client: Client, size: int) -> None:
    assert first_version(client, os.urandom(size)) == ""


def test_a_present_file_has_none(client: Client) -> None:
    save(client, "f", os.urandom(BLOCK_MAX))
    client.vfs.syncfs()

    assert client.vfs.open(find(client, "f").ino, os.O_RDONLY).backing == ""


def test_a_read_that_is_run_again_does_not_disturb_the_read_ahead(tmp_path: Path) -> None:
    content = os.urandom(5 * BLOCK_MAX)
    with World(tmp_path) as world:
        writer = world.mount("writer")
        save(writer, "f", content)
        writer.vfs.syncfs()
        client = world.mount("reader")
        ino = find(client, "f").ino
        fh = client.vfs.open(ino, os.O_RDONLY).fh
        handle = client.vfs._files.handle(fh)
        windows = set()
        for at in range(0, len(content), 1 << 20):
            patience.never_wait()
            try:
                data = client.vfs.read(fh, at, 1 << 20)
            except patience.MustWait:
                patience.may_wait()
                data = client.vfs.read(fh, at, 1 << 20)
            finally:
                patience.may_wait()
            assert data == content[at : at + (1 << 20)]
            windows.add(handle.window)

        assert 0 not in windows
        assert max(windows) > BLOCK_MAX
        assert not handle.waiting
        assert handle.misses == 0


def test_a_stream_that_would_take_much_of_the_cache_only_passes_through(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(client, "f", os.urandom(6 * BLOCK_MAX))
    client.vfs.syncfs()
    monkeypatch.setattr(reading, "READ_AHEAD_MAX", 2 * BLOCK_MAX)
    asked: list[bool] = []
    blocks = client.core.blocks
    monkeypatch.setattr(blocks, "prefetch", lambda wanted, is_passing: asked.append(is_passing))

    def read_through(fhs: list[int]) -> list[bool]:
        asked.clear()
        for at in range(0, 6 * BLOCK_MAX, 1 << 20):
            for fh in fhs:
                client.vfs.read(fh, at, 1 << 20)
        return list(asked)

    ino = find(client, "f").ino
    assert not any(read_through([client.vfs.open(ino, os.O_RDONLY).fh]))  # it is small enough
    monkeypatch.setattr(reading, "_PASSING_SHARE", 256)
    alone = read_through([client.vfs.open(ino, os.O_RDONLY).fh])
    assert (alone[0], alone[-1]) == (False, True)  # once it is a stream
    together = read_through([client.vfs.open(ino, os.O_RDONLY).fh for _ in range(2)])
    assert not any(together)  # the last one was there a moment ago
