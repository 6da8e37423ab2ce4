"""Listings: every name that stays exactly once, whoever reads from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from everfold.model import ROOT, Ino
from mount.client import Client
from mount.filesystem import DirItem
from tests.harness.world import World, save

NAMES = [f"name-{number:03}".encode() for number in range(40)]


@pytest.fixture
def client(tmp_path: Path) -> Client:  # type: ignore[misc]
    with World(tmp_path) as world:
        client = world.mount("a")
        for name in NAMES:
            save(client, name.decode(), b"x")
        yield client


def listed(client: Client, fh: int, cookie: int = 0, limit: int = 1000) -> list[DirItem]:
    items = client.vfs.readdir(fh, cookie, limit, True)
    return [item for item in items if item.name not in (b".", b"..")]


def test_a_name_keeps_its_cookie_in_every_snapshot(client: Client) -> None:
    before = {item.name: item.cookie for item in listed(client, client.vfs.opendir(ROOT))}
    for name in NAMES[::2]:
        client.vfs.unlink(ROOT, name)
    save(client, "another", b"y")
    after = {item.name: item.cookie for item in listed(client, client.vfs.opendir(ROOT))}

    assert len(set(before.values())) == len(NAMES)
    assert all(after[name] == before[name] for name in NAMES[1::2])
    assert b"another" in after


def test_a_reader_goes_on_with_a_listing_that_another_began(client: Client) -> None:
    first = listed(client, client.vfs.opendir(ROOT), limit=15)
    for item in first[::2]:
        client.vfs.unlink(ROOT, item.name)
    rest = listed(client, client.vfs.opendir(ROOT), cookie=first[-1].cookie)

    assert [item.name for item in (*first, *rest)].count(NAMES[0]) == 1
    assert {item.name for item in (*first, *rest)} == set(NAMES)
    assert len(first) + len(rest) == len(NAMES)


def test_names_of_one_inode_are_told_apart(client: Client) -> None:
    ino = Ino(client.vfs.lookup(ROOT, NAMES[0]).attr.ino)
    for number in range(200):
        client.vfs.link(ino, ROOT, f"link-{number}".encode())
    fh, cookie, found = client.vfs.opendir(ROOT), 0, list[bytes]()
    while part := client.vfs.readdir(fh, cookie, 7, False):
        found += [item.name for item in part]
        cookie = part[-1].cookie

    assert len(found) == len(set(found)) == len(NAMES) + 200 + 2


def test_what_was_forgotten_meanwhile_is_listed_without_attributes(client: Client) -> None:
    fh = client.vfs.opendir(ROOT)
    first = listed(client, fh, limit=10)
    client.vfs.unlink(ROOT, NAMES[-1])
    rest = listed(client, fh, cookie=first[-1].cookie)

    assert {item.name for item in rest if item.node is None} == {NAMES[-1]}
