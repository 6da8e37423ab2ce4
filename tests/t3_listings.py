"""Listings: every name that stays exactly once, whoever reads from where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everfold.model import ROOT, Ino
from mount.client import Client
from mount.filesystem import Changes, DirItem
from mount.kernel import abi, encode
from mount.kernel.abi import Opcode
from mount.kernel.requests import Requests
from tests.harness.world import ME, World, eventually, save

NAMES = [f"name-{number:03}".encode() for number in range(40)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
def client(world: World) -> Client:
    client = world.mount("a")
    for name in NAMES:
        save(client, name.decode(), b"x")
    return client


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


class Kernel:
    """A `KernelCache` that notes which names it is told to forget."""

    def __init__(self) -> None:
        self.names: list[tuple[Ino, bytes]] = []

    def forget_entry(self, parent: Ino, name: bytes) -> None:
        self.names.append((parent, name))

    def __getattr__(self, _: str) -> Callable[..., bool]:
        return lambda *_: False


@pytest.mark.parametrize("change", ["none", "here", "elsewhere", "elsewhere, after forgetting"])
def test_the_rest_of_a_listing_that_is_outdated_is_not_kept_by_the_kernel(
    world: World, client: Client, change: str
) -> None:
    kernel, fh = Kernel(), client.vfs.opendir(ROOT)
    client.core.notifier.attach(kernel)
    first = listed(client, fh, limit=10)
    if change == "here":
        client.vfs.mkdir(ROOT, b"new", 0o755, ME)
    elif change != "none":
        client.vfs.syncfs()
        if change.endswith("forgetting"):
            client.core.tree.forget_directory(ROOT)
        other = world.mount("b")
        other.vfs.mkdir(ROOT, b"new", 0o755, ME)
        assert eventually(lambda: client.vfs.find(ROOT, b"new") is not None)
    listed(client, fh, cookie=first[-1].cookie)
    assert client.core.notifier.wait_told(5.0)

    assert ((ROOT, b".") in kernel.names) is (change != "none")


# ---------------------------------------------------------------- the kernel's requests

ROOM = 2048  # about a dozen names


def asked(requests: Requests, fh: int, cookie: int) -> bytes:
    """Return the payload of one page of the root."""
    request = bytes(abi.BODY_AT) + abi.READ_IN.pack(fh, cookie, ROOM, 0, 0, 0, 0)
    handler = requests.table[Opcode.READDIRPLUS]
    assert handler is not None
    payload = handler(ROOT, memoryview(request), len(request))
    assert isinstance(payload, bytes)
    return payload


def last_cookie(payload: bytes) -> int:
    """Return the cookie of the last name on a page, 0 of an empty one."""
    cookie = at = 0
    fixed = abi.DIRENTPLUS.size
    while at < len(payload):
        cookie, length = abi.DIRENTPLUS.unpack_from(payload, at)[-3:-1]
        at += (fixed + length + 7) & ~7
    return cookie


def pages(client: Client, prepares: bool) -> list[bytes]:
    """Return all pages of the root as the kernel is answered them."""
    requests, fh, found = Requests(client.vfs), client.vfs.opendir(ROOT), list[bytes]()
    while not found or found[-1]:
        found.append(asked(requests, fh, last_cookie(found[-1]) if found else 0))
        if prepares:
            requests.prepare()
    return found


def test_pages_that_are_prepared_are_those_that_would_be_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    really = encode.listing_plus

    def counting(items: list[DirItem], room: int) -> tuple[bytes, int]:
        encoded.append(len(items))
        return really(items, room)

    as_asked = pages(client, prepares=False)
    monkeypatch.setattr(encode, "listing_plus", counting)
    prepared = pages(client, prepares=True)

    assert prepared == as_asked
    assert len(prepared) > 3
    assert len(encoded) <= len(prepared), "none is encoded twice"


@pytest.mark.parametrize("change", ["mode", "content", "removal"])
def test_what_changes_after_a_page_was_prepared_is_on_it(client: Client, change: str) -> None:
    name = NAMES[15]  # on the second page
    requests, fh = Requests(client.vfs), client.vfs.opendir(ROOT)
    cookie = last_cookie(asked(requests, fh, 0))
    requests.prepare()
    before = requests._prepared
    ino = Ino(client.vfs.lookup(ROOT, name).attr.ino)
    if change == "mode":
        client.vfs.setattr(ino, Changes(mode=0o600), None, ME)
    elif change == "content":
        save(client, name.decode(), b"longer than it was")
    else:
        client.vfs.unlink(ROOT, name)
    answered = asked(requests, fh, cookie)

    assert before is not None
    assert name in before.payload
    assert answered != before.payload
    assert answered == asked(Requests(client.vfs), fh, cookie)


def test_a_directory_that_is_closed_before_its_page_is_prepared(client: Client) -> None:
    requests, fh = Requests(client.vfs), client.vfs.opendir(ROOT)
    asked(requests, fh, 0)
    client.vfs.releasedir(fh)

    requests.prepare()

    assert requests._prepared is None
