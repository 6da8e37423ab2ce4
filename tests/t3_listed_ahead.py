"""Whoever walks through a tree finds the next directories listed already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Ino
from mount.client import Client
from mount.walking import WALKS_MAX
from tests.harness.world import ME, World, eventually, find, save

OUTER, INNER = 6, 5
TREE = [f"d{i}" for i in range(OUTER)] + [f"d{i}/e{k}" for i in range(OUTER) for k in range(INNER)]


class Asked:
    """What a mount asked the nameserver about names."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self.ahead: list[Ino] = []
        for verb in ("lookup", "listdir", "list_many"):
            self._watch(client.core.names, verb, monkeypatch)

    def _watch(self, names: object, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(names, verb)

        def asked(ask: object) -> object:
            self.counts[verb] += 1
            if isinstance(ask, wire.ListMany):
                self.ahead += ask.inos
            return real(ask)

        monkeypatch.setattr(names, verb, asked)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        writer = world.mount("writer")
        for path in sorted(TREE):  # as `cp -a` and tar make them: each with what is inside it
            where, _, name = path.rpartition("/")
            parent = find(writer, where).ino if where else ROOT
            writer.vfs.mkdir(parent, name.encode(), 0o755, ME)
            save(writer, f"{path}/file", path.encode())
            save(writer, f"{path}/more", path.encode())
        writer.vfs.syncfs()
        yield world


def walk(client: Client, ino: Ino = ROOT) -> list[bytes]:
    """List a tree as `find` does: each directory, then those inside it."""
    found: list[bytes] = []
    fh = client.vfs.opendir(ino)
    items = client.vfs.readdir(fh, 0, 1000, True)
    client.vfs.releasedir(fh)
    for item in items:
        if item.name not in (b".", b".."):
            found.append(item.name)
            if item.mode & 0o40000:
                found += walk(client, item.ino)
    return found


def at_rest(client: Client) -> bool:
    return not client.core.walking._coming


def test_who_lists_a_tree_asks_for_few_of_its_directories(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.mount("reader")
    asked = Asked(client, monkeypatch)

    found = walk(client)

    assert asked.counts["listdir"] <= 4  # of 37: the root, the first inside it, who was too fast
    assert len(asked.ahead) == len(set(asked.ahead))  # none twice
    assert Counter(found) == Counter(walk(world.mount("other")))
    assert len(found) == 3 * len(TREE)


def test_who_looks_for_names_finds_them_listed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.mount("reader")
    asked = Asked(client, monkeypatch)

    for path in sorted(TREE):
        for name in ("file", "more", "none"):
            try:
                found = find(client, f"{path}/{name}")
                assert client.core.attr(found.ino).size == len(path)
            except EverfoldError as err:
                assert (err.kind, name) == (Kind.NOT_FOUND, "none")

    assert asked.counts["lookup"] + asked.counts["listdir"] <= 8  # of 145 names


def test_several_walk_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.mount("reader")
    asked = Asked(client, monkeypatch)
    walkers = [
        [f"d{i}/e{k}/file" for i in parts for k in range(INNER)] for parts in ((0, 1, 2), (3, 4, 5))
    ]

    for paths in zip(*walkers, strict=True):
        for path in paths:
            assert find(client, path).is_file

    assert asked.counts["lookup"] + asked.counts["listdir"] <= 16  # of 37 directories
    walking = client.core.walking
    assert eventually(lambda: at_rest(client))
    for walk_ in walking._walks:
        assert walk_.ahead == sum(whose is walk_ for whose in walking.ahead.values())


def test_the_oldest_walk_is_let_go(world: World) -> None:
    client = world.mount("reader")
    walking = client.core.walking
    with client.core.lock:
        for ino in range(1_000, 1_000 + 3 * WALKS_MAX):
            walking.listed(None, Ino(ino), Ino(ino), [])
            walking.ahead[Ino(ino)] = walking._walks[0]
            walking._walks[0].ahead += 1

    assert len(walking._walks) == WALKS_MAX
    assert set(walking.ahead) == {Ino(1_000 + 2 * WALKS_MAX + k) for k in range(WALKS_MAX)}


def test_who_goes_here_and_there_has_nothing_listed_ahead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = world.mount("other")
    for i in range(40):
        writer.vfs.mkdir(ROOT, b"g%02d" % i, 0o755, ME)
        save(writer, f"g{i:02}/file", b"x")
    writer.vfs.syncfs()
    client = world.mount("reader")
    asked = Asked(client, monkeypatch)

    for i in (35, 10, 22, 3, 39):
        assert find(client, f"g{i:02}/file").is_file

    assert not asked.ahead


def test_who_stops_has_a_bounded_number_listed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.mount("reader")
    asked = Asked(client, monkeypatch)

    client.vfs.readdir(client.vfs.opendir(ROOT), 0, 1000, True)
    client.vfs.readdir(client.vfs.opendir(find(client, "d0").ino), 0, 1000, True)
    assert eventually(lambda: at_rest(client))

    assert 1 <= len(asked.ahead) <= 4
    assert set(client.core.walking.ahead) == set(asked.ahead)


def test_what_others_make_meanwhile_is_in_what_was_listed_ahead(world: World) -> None:
    client = world.mount("reader")
    client.vfs.readdir(client.vfs.opendir(ROOT), 0, 1000, True)
    client.vfs.readdir(client.vfs.opendir(find(client, "d0").ino), 0, 1000, True)
    assert eventually(lambda: at_rest(client) and bool(client.core.walking.ahead))

    writer = world.mount("other")
    save(writer, "d0/e0/late", b"x")
    writer.vfs.syncfs()

    assert eventually(lambda: b"late" in walk(client, find(client, "d0/e0").ino))


def test_when_it_cannot_be_asked_ahead_each_asks_for_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.mount("reader")

    def refused(ask: wire.ListMany) -> wire.Listings:
        raise EverfoldError(Kind.NOT_FOUND, "there is no such call", "list-many")

    monkeypatch.setattr(client.core.names, "list_many", refused)

    assert len(walk(client)) == 3 * len(TREE)
    assert eventually(lambda: at_rest(client))
