"""Whoever reads many small files finds the next ones here already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.blockid import name_of
from everfold.model import ROOT, SMALL_BLOCK
from mount.client import Client
from mount.neighbours import AHEAD_MAX
from tests.harness.world import ME, World, eventually, find, load, save

CONTENTS = {f"f{number:03}": os.urandom(500 + number) for number in range(60)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        writer = world.mount("writer")
        for name, content in CONTENTS.items():
            save(writer, name, content)
        writer.vfs.syncfs()
        yield world


def here(client: Client) -> set[str]:
    """Return the files whose bytes are on the reader's machine."""
    cache, space = client._cache, client.core.space
    return {name for name, content in CONTENTS.items() if cache.has(space, name_of(content))}


def test_who_reads_some_in_order_has_the_next_ones(world: World) -> None:
    client = world.mount("reader")
    client.vfs.readdir(client.vfs.opendir(ROOT), 0, 1000, True)
    names = list(CONTENTS)
    for name in names[:8]:
        assert load(client, name) == CONTENTS[name]
    assert eventually(lambda: here(client) >= set(names[:16]))

    for node in world.nodes.values():
        node.is_down = True
    for name in names[8:16]:
        assert load(client, name) == CONTENTS[name]


def test_the_files_of_each_directory_are_fetched_when_it_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = world.mount("other")
    for directory in "abc":
        writer.vfs.mkdir(ROOT, directory.encode(), 0o755, ME)
        for name, content in CONTENTS.items():
            save(writer, f"{directory}/{name}", content)
    writer.vfs.syncfs()
    client = world.mount("reader")
    alone = []
    names, load_alone = client.core.names, client.core.names.extents
    monkeypatch.setattr(names, "extents", lambda ask: alone.append(ask.ino) or load_alone(ask))
    for directory in "abc":
        for name, content in CONTENTS.items():
            assert load(client, f"{directory}/{name}") == content

    assert len(alone) <= 12  # of 180: the first two of each directory, and who was too fast


def test_who_reads_one_here_and_there_gets_no_others(world: World) -> None:
    client = world.mount("reader")
    client.vfs.readdir(client.vfs.opendir(ROOT), 0, 1000, True)
    picked = ["f050", "f001", "f030", "f010"]
    for name in picked:
        assert load(client, name) == CONTENTS[name]
    client.vfs._files._reading._neighbours._fetchers.shutdown()

    assert here(client) == set(picked)


def test_large_and_changed_neighbours_are_left_alone(world: World) -> None:
    client = world.mount("reader")
    client.vfs.readdir(client.vfs.opendir(ROOT), 0, 1000, True)
    changed = find(client, "f006").ino
    fh = client.vfs.open(changed, os.O_WRONLY).fh
    client.vfs.write(fh, 0, b"mine", False)
    for name in list(CONTENTS)[:6]:
        load(client, name)
    client.vfs._files._reading._neighbours._fetchers.shutdown()

    assert load(client, "f006") == b"mine" + CONTENTS["f006"][4:]
    assert AHEAD_MAX * SMALL_BLOCK <= 8 << 20  # what may be fetched in vain
