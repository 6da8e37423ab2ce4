"""A mount follows the feed: past its own commits at once, and past whatever goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT
from mount import housekeeping
from mount.client import Client
from mount.policy import Policy
from tests.harness.world import ME, World, eventually, save

ALONE = Policy(change_deadline_s=20.0, poll_s=0.1, leases=False)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def sees(client: Client, name: bytes) -> bool:
    return client.vfs.find(ROOT, name) is not None


def test_its_own_commits_are_passed_as_soon_as_what_came_before_them_is_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = world.mount("a", ALONE), world.mount("b", ALONE)
    one.vfs.feed.close()
    before = one.core.feed_seq
    other.vfs.mkdir(ROOT, b"theirs", 0o755, ME)
    one.vfs.mkdir(ROOT, b"mine", 0o755, ME)
    feed = one.core.names.feed

    def answer_of_before_it(ask: wire.FeedPoll) -> wire.Feed:
        told = feed(ask)
        return replace(told, events=told.events[:1], seq=told.events[0].seq)

    monkeypatch.setattr(one.core.names, "feed", answer_of_before_it)
    assert one.core.feed_seq == before
    one.vfs.feed.poll_once(0.0)

    assert one.core.feed_seq == before + 2
    assert sees(one, b"theirs")


@pytest.mark.expects_warnings
@pytest.mark.parametrize("where", ["_apply", "poll_once"])
def test_a_defect_in_following_hides_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    one, other = world.mount("a"), world.mount("b")
    assert not sees(one, b"d")
    follow, failures = getattr(one.vfs.feed, where), list[object]()

    def fail_once(what: object) -> None:
        if not failures:
            failures.append(what)
            raise RuntimeError("a defect")
        follow(what)

    monkeypatch.setattr(one.vfs.feed, where, fail_once)
    other.vfs.mkdir(ROOT, b"d", 0o755, ME)

    assert eventually(lambda: sees(one, b"d"))
    other.vfs.mkdir(ROOT, b"e", 0o755, ME)
    assert eventually(lambda: sees(one, b"e"))
    assert failures


@pytest.mark.expects_warnings
def test_a_lease_that_cannot_begin_is_given_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, granted = world.mount("a"), list[int]()

    def is_behind(core: object, seq: int, timeout_s: float) -> None:
        granted.append(seq)
        raise EverfoldError(Kind.UNAVAILABLE, "the feed does not catch up")

    monkeypatch.setattr(housekeeping, "wait_for_feed", is_behind)
    save(one, "f", b"text")

    assert eventually(lambda: bool(granted))
    assert eventually(lambda: not world.lease_holder(), 3.0)  # it would run out after 5 s


@pytest.mark.expects_warnings
def test_a_defect_in_looking_after_the_lease_leaves_it_looked_after(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, failures = world.mount("a"), list[str]()
    should_ask = one.core.lease.should_ask

    def fail_once() -> bool:
        if not failures:
            failures.append("a defect")
            raise RuntimeError(failures[0])
        return should_ask()

    monkeypatch.setattr(one.core.lease, "should_ask", fail_once)
    assert eventually(lambda: bool(failures))
    save(one, "f", b"text")

    assert eventually(lambda: bool(one.core.lease.held))
