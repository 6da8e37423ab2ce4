"""The write lease: who may answer changes before they are committed, and that nobody can tell."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT
from mount.client import Client
from mount.policy import Policy
from tests.harness.world import ME, World, eventually, find, load, names, save


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def with_lease(world: World, name: str) -> Client:
    """Open a mount and write until it holds the lease."""
    client = world.mount(name)
    save(client, f"first-of-{name}", b"")
    assert eventually(lambda: bool(client.core.lease.held) or _touch(client))
    return client


def _touch(client: Client) -> bool:
    """Change something, as a program that goes on writing would."""
    client.vfs.mkdir(ROOT, b"again", 0o777, ME)
    client.vfs.rmdir(ROOT, b"again")
    return False


def cut(world: World, client_name: str, seconds: float) -> None:
    world.lines[client_name].cut_until = time.monotonic() + seconds


@pytest.mark.expects_warnings
def test_a_mount_that_writes_alone_answers_without_waiting_for_the_cluster(world: World) -> None:
    client = with_lease(world, "a")
    client.vfs.syncfs()
    cut(world, "a", 3600)
    for i in range(50):
        client.vfs.mkdir(ROOT, b"d%d" % i, 0o777, ME)
        save(client, f"d{i}/f", b"text")
    client.vfs.rename(ROOT, b"d7", ROOT, b"moved", 0)

    assert load(client, "moved/f") == b"text"
    assert len(names(client, "")) == 51
    world.lines["a"].cut_until = 0.0
    client.vfs.syncfs()
    assert load(world.mount("b"), "moved/f") == b"text"


def refusals(client: Client, label: str) -> list[Kind | None]:
    """Try what must be refused, and one thing that must not; return what each came to."""
    vfs = client.vfs
    vfs.mkdir(ROOT, label.encode(), 0o777, ME)
    base = find(client, label).ino
    save(client, f"{label}/file", b"x")
    vfs.mkdir(base, b"full", 0o777, ME)
    save(client, f"{label}/full/inner", b"x")
    vfs.mkdir(base, b"empty", 0o777, ME)
    ino = find(client, f"{label}/file").ino
    exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    attempts: list[Callable[[], object]] = [
        lambda: vfs.mkdir(base, b"file", 0o777, ME),
        lambda: vfs.create(base, b"file", 0o600, exclusive, ME),
        lambda: vfs.link(ino, base, b"empty"),
        lambda: vfs.symlink(base, b"full", b"target", ME),
        lambda: vfs.unlink(base, b"nothing"),
        lambda: vfs.unlink(base, b"full"),
        lambda: vfs.rmdir(base, b"full"),
        lambda: vfs.rmdir(base, b"file"),
        lambda: vfs.rename(base, b"file", base, b"empty", 0),
        lambda: vfs.rename(base, b"empty", base, b"file", 0),
        lambda: vfs.rename(base, b"empty", base, b"full", 0),
        lambda: vfs.rename(base, b"nothing", base, b"other", 0),
        lambda: vfs.rename(base, b"file", base, b"empty", wire.RENAME_NOREPLACE),
        lambda: vfs.rename(base, b"file", base, b"nothing", wire.RENAME_EXCHANGE),
        lambda: vfs.mkdir(base, b"x" * 256, 0o777, ME),
        lambda: vfs.rename(base, b"empty", base, b"moved", 0),
    ]
    kinds: list[Kind | None] = []
    for attempt in attempts:
        try:
            attempt()
            kinds.append(None)
        except EverfoldError as err:
            kinds.append(err.kind)
    return kinds


def test_errors_are_the_same_with_the_lease_and_without(world: World) -> None:
    fast = with_lease(world, "a")
    slow = world.mount("b", Policy(leases=False, change_deadline_s=20.0))

    early, late = refusals(fast, "fast"), refusals(slow, "slow")

    assert early == late
    assert early.count(None) == 1


def test_a_second_writer_gets_its_turn_and_both_see_everything(world: World) -> None:
    a = with_lease(world, "a")
    for i in range(200):
        save(a, f"a{i}", b"from a")
    b = world.mount("b")
    save(b, "b0", b"from b")

    assert a.core.lease.recalls == 1
    assert not a.core.lease.held
    expected = set(names(b, ""))
    assert {f"a{i}" for i in range(200)} < expected
    assert eventually(lambda: set(names(a, "")) == expected)
    save(a, "a-later", b"still writing")
    assert eventually(lambda: "a-later" in names(b, ""))


def test_a_name_raced_for_while_the_lease_changes_hands_is_won_once(world: World) -> None:
    a, b = with_lease(world, "a"), world.mount("b")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    won: list[tuple[int, str]] = []

    def race(client: Client, label: str) -> None:
        for i in range(60):
            try:
                _, opened = client.vfs.create(ROOT, b"lock%d" % i, 0o600, flags, ME)
            except EverfoldError as err:
                assert err.kind is Kind.EXISTS
            else:
                won.append((i, label))
                client.vfs.release(opened.fh, 0, False)

    threads = [threading.Thread(target=race, args=each) for each in ((a, "a"), (b, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(i for i, _ in won) == list(range(60))


def test_a_lease_comes_back_when_a_mount_is_alone_again(world: World) -> None:
    a = with_lease(world, "a")
    b = world.mount("b")
    save(b, "f", b"one save of b")
    assert not a.core.lease.held

    assert eventually(lambda: bool(a.core.lease.held) or _touch(a))
    assert a.core.lease.takes == 2


def test_a_holder_that_ends_leaves_the_lease_to_others(world: World) -> None:
    a = with_lease(world, "a")
    assert a.close()
    world.forget(a)
    b = world.mount("b")

    assert world.lease_holder() == ""
    save(b, "f", b"text")
    assert load(b, "f") == b"text"


def test_a_mount_that_comes_back_after_a_crash_does_not_hold_up_others(world: World) -> None:
    a = with_lease(world, "a")
    a.abandon()
    world.forget(a)
    again, b = world.mount("a"), world.mount("b")

    assert world.lease_holder() == ""
    save(b, "f", b"text")
    assert eventually(lambda: load(again, "f") == b"text")


@pytest.mark.expects_warnings
def test_what_a_silent_holder_answered_and_what_others_saved_are_both_kept(tmp_path: Path) -> None:
    with World(tmp_path, write_lease_s=1.5) as world:
        a = with_lease(world, "a")
        save(a, "f", b"before")
        a.vfs.syncfs()
        assert eventually(lambda: bool(a.core.lease.held) or _touch(a))
        a.vfs.syncfs()
        cut(world, "a", 3600)
        save(a, "f", b"from a, never sent")
        a.abandon()
        world.forget(a)

        b = world.mount("b")
        save(b, "f", b"from b")
        b.vfs.syncfs()
        assert load(b, "f") == b"from b"

        again = world.mount("a")
        folder = find(again, ".versions/f").ino
        fh = again.vfs.opendir(folder)
        listed = [item.name for item in again.vfs.readdir(fh, 2, 100, False)]
        again.vfs.releasedir(fh)
        contents = [load(again, ".versions/f/" + os.fsdecode(name)) for name in listed]

        assert load(again, "f") == b"from b"
        assert set(contents) == {b"before", b"from a, never sent", b"from b"}
        assert any(b"conflict" in name for name in listed)


def test_a_holder_stops_answering_early_when_it_cannot_be_sure(tmp_path: Path) -> None:
    with World(tmp_path, write_lease_s=1.2) as world:
        a = with_lease(world, "a")
        a.vfs.feed.close()  # no news: neither renewals nor recalls

        assert eventually(lambda: not a.core.lease.held, 3.0)
        a.vfs.mkdir(ROOT, b"later", 0o777, ME)
        assert "later" in names(world.mount("b"), "")


@pytest.mark.expects_warnings
def test_a_change_whose_answer_was_lost_does_not_hide_what_another_mount_did_since(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Policy(change_deadline_s=20.0, poll_s=0.1, leases=False)
    one, other = world.mount("a", quiet), world.mount("b", quiet)
    commit, lost = world.lines["a"].commit, list[wire.Committed]()

    def answer_once_too_late(ask: wire.Commit) -> wire.Committed:
        answer = commit(ask)
        if not lost and ask.ops:
            lost.append(answer)
            other.vfs.unlink(ROOT, b"f")
            other.vfs.mkdir(ROOT, b"d", 0o755, ME)
            raise EverfoldError(Kind.UNAVAILABLE, "the answer was lost")
        return answer

    monkeypatch.setattr(world.lines["a"], "commit", answer_once_too_late)
    one.vfs.mknod(ROOT, b"f", 0o644, 0, ME)

    assert lost
    assert eventually(lambda: one.vfs.find(ROOT, b"f") is None, 5.0)
