"""The quota, where writes are answered before their commit: refused by the call, never later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT
from mount.client import Client
from mount.filesystem import Changes
from mount.policy import Policy
from tests.harness.world import ME, World, eventually, find, load, save

LIMIT = 100_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        limit_to(made, LIMIT)
        yield made


def limit_to(world: World, quota: int) -> None:
    with world.db.write() as cx:
        cx.run("UPDATE account SET quota = ?", quota)


def holding(world: World) -> Client:
    """Open a mount that holds the write lease."""
    client = world.mount("a", Policy(change_deadline_s=20.0, poll_s=0.1))
    save(client, "first", b"")
    assert eventually(lambda: bool(client.core.lease.held) or _touch(client))
    return client


def _touch(client: Client) -> bool:
    client.vfs.mkdir(ROOT, b"again", 0o777, ME)
    client.vfs.rmdir(ROOT, b"again")
    return False


def alone(world: World) -> Client:
    """Open a mount that never holds the lease."""
    return world.mount("a", Policy(leases=False, change_deadline_s=20.0, poll_s=0.1))


OPENED = pytest.mark.parametrize("opened", [holding, alone])


@OPENED
def test_the_write_that_goes_beyond_the_quota_is_refused_and_nothing_before_it(
    world: World, opened: Callable[[World], Client]
) -> None:
    client = opened(world)
    for i in range(9):
        save(client, f"f{i}", bytes(10_000))

    with pytest.raises(EverfoldError) as caught:
        save(client, "one too many", bytes(10_001))

    assert caught.value.kind is Kind.QUOTA
    save(client, "the rest", bytes(10_000))
    client.vfs.syncfs()
    other = world.mount("b")
    assert [len(load(other, f"f{i}")) for i in range(9)] == [10_000] * 9
    assert len(load(other, "the rest")) == 10_000


@OPENED
def test_bytes_that_a_deletion_sets_free_can_be_written_at_once(
    world: World, opened: Callable[[World], Client]
) -> None:
    client = opened(world)
    save(client, "big", bytes(90_000))
    client.vfs.unlink(ROOT, b"big")

    save(client, "next", bytes(90_000))

    client.vfs.syncfs()
    assert len(load(world.mount("b"), "next")) == 90_000


@OPENED
def test_overwriting_and_shrinking_take_no_room(
    world: World, opened: Callable[[World], Client]
) -> None:
    client = opened(world)
    for i in range(30):
        save(client, "same", bytes([i]) * 60_000)

    client.vfs.syncfs()
    assert load(world.mount("b"), "same") == bytes([29]) * 60_000


def test_growing_by_truncate_and_fallocate_is_refused_too(world: World) -> None:
    client = holding(world)
    save(client, "file", b"x")
    ino = find(client, "file").ino
    opened = client.vfs.open(ino, os.O_RDWR)

    for grow in (
        lambda: client.vfs.setattr(ino, Changes(size=LIMIT + 1), opened.fh, ME),
        lambda: client.vfs.fallocate(opened.fh, 0, 0, LIMIT + 1),
    ):
        with pytest.raises(EverfoldError) as caught:
            grow()
        assert caught.value.kind is Kind.QUOTA
    assert client.vfs.getattr(ino).attr.size == 1
    client.vfs.release(opened.fh, 0, False)


def test_a_quota_that_is_set_while_the_lease_is_held_counts_from_the_next_commit(
    world: World,
) -> None:
    limit_to(world, 0)
    client = holding(world)
    save(client, "free", bytes(50_000))
    limit_to(world, 60_000)
    save(client, "noticed", b"")
    client.vfs.syncfs()

    with pytest.raises(EverfoldError) as caught:
        save(client, "late", bytes(20_000))

    assert caught.value.kind is Kind.QUOTA


def test_a_file_larger_than_the_server_takes_is_refused_by_the_write(world: World) -> None:
    client = holding(world)
    client.core.size_max = 1000

    with pytest.raises(EverfoldError) as caught:
        save(client, "long", bytes(1001))

    assert caught.value.kind is Kind.TOO_LARGE


def test_what_a_cut_set_free_is_counted_once(world: World) -> None:
    client = holding(world)
    save(client, "file", bytes(90_000))
    client.vfs.syncfs()
    save(client, "file", b"")
    save(client, "second", bytes(60_000))  # only possible with what the cut sets free
    client.vfs.syncfs()

    with pytest.raises(EverfoldError) as caught:
        save(client, "third", bytes(50_000))

    assert caught.value.kind is Kind.QUOTA
    save(client, "third", bytes(40_000))
    client.vfs.syncfs()
