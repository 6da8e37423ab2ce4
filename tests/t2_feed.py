"""The feed: news at once, nothing twice, nothing lost, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from everfold import wire
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.model import MountId, Node, NodeId, NodeState, Seq, SpaceId
from nameserver.db import Database
from nameserver.feed import EVENTS_MAX, Bell, Feeds
from nameserver.tree import Tree
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage

PATIENT_S = 20.0
NODES = [Node(NodeId("dn1"), "http://one", NodeState.UP)]


class Desk:
    """A stage with a feed on the real clock, and polls on threads."""

    def __init__(self, db: Database) -> None:
        self.stage = Stage(db)
        self.feeds = Feeds(db, SystemClock(), self.stage.bell, lambda: NODES)

    def ask(self, after: int = 0, wait_s: float = 0.0, **more: Any) -> wire.FeedPoll:
        return wire.FeedPoll(self.stage.space, MountId("m9"), Seq(after), wait_s, **more)

    def poll(self, after: int = 0, wait_s: float = 0.0, **more: int) -> wire.Feed:
        return self.feeds.poll(self.ask(after, wait_s, **more))

    def parked(
        self, act: Callable[[], object], feeds: Feeds | None = None, **ask: int
    ) -> tuple[wire.Feed, float]:
        """Park a poll, then act; return its answer and the seconds it came after the act."""
        answers: list[tuple[wire.Feed, float]] = []

        def wait() -> None:
            try:
                feed = (feeds or self.feeds).poll(self.ask(wait_s=PATIENT_S, **ask))
                answers.append((feed, time.monotonic()))
            finally:
                self.stage.db.close()

        bell = self.stage.bell if feeds is None else feeds._bell
        waiter = threading.Thread(target=wait)
        waiter.start()
        _wait_until(lambda: _is_parked(bell, self.stage.space))
        began = time.monotonic()
        act()
        waiter.join(PATIENT_S + 5)
        assert answers, "the poll never came back"
        return answers[0][0], answers[0][1] - began


def _is_parked(bell: Bell, space: SpaceId) -> bool:
    room = bell._rooms.get(space)
    return room is not None and any(each._waiters for each in room.waiters.values())  # type: ignore[attr-defined]


def _wait_until(is_so: Callable[[], bool], deadline_s: float = 10.0) -> None:
    ends = time.monotonic() + deadline_s
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < ends, "it never came to be"
        pause.wait(0.005)


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:  # noqa: F811
    made = Desk(database)
    yield made
    made.stage.bell.stop()


def test_events_come_in_order_from_where_the_caller_is(desk: Desk) -> None:
    w = desk.stage.writer()
    inos = [w.make(name) for name in "abc"]
    feed = desk.poll(after=1)

    assert [e.seq for e in feed.events] == [2, 3]
    assert [e.changes[0].ino for e in feed.events] == inos[1:]
    assert (feed.seq, feed.is_reset) == (3, False)
    assert (feed.events[0].user, feed.events[0].mount) == ("ann", "m1")


def test_a_poll_without_news_returns_when_its_time_is_up(desk: Desk) -> None:
    began = time.monotonic()
    feed = desk.poll(wait_s=0.2)

    assert 0.15 < time.monotonic() - began < 5
    assert feed == wire.Feed(Seq(0), [], 0, 0)
    assert desk.poll(wait_s=-5.0).events == []


def test_a_parked_poll_is_woken_by_a_commit_at_once(desk: Desk) -> None:
    w = desk.stage.writer()
    feed, delay = desk.parked(lambda: w.make("f"))

    assert [e.seq for e in feed.events] == [1]
    assert delay < 0.9  # well before the next look without a bell


def test_a_commit_in_another_process_wakes_a_parked_poll(desk: Desk) -> None:
    stage = desk.stage
    elsewhere = Bell()  # what another process has, over the same database
    tree = Tree(stage.db, stage.clock, stage.ledger, elsewhere)
    w = stage.writer()
    ask = w.ask(w.making("f"))
    if stage.db.is_postgres:
        _wait_until(lambda: _listens(stage.db, desk.poll))
    feed, delay = desk.parked(lambda: tree.commit(ask, w.author))

    assert [e.seq for e in feed.events] == [1]
    assert delay < (0.9 if stage.db.is_postgres else 5.0)


def _listens(db: Database, poll: Callable[[], object]) -> bool:
    poll()
    with db.read() as cx:
        row = cx.one(
            "SELECT COUNT(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query = 'LISTEN everfold' AND state = 'idle'"
        )
    return row == (1,)


def test_news_of_one_space_do_not_answer_a_poll_of_another(desk: Desk) -> None:
    other = desk.stage.new_space("other")
    desk.stage.writer().make("f")
    feed = desk.feeds.poll(wire.FeedPoll(other, MountId("m9"), Seq(0), 0.1))

    assert feed.events == []


def test_too_much_news_come_in_pieces_without_a_gap(desk: Desk) -> None:
    stage = desk.stage
    with stage.db.write() as cx:
        cx.many(
            "INSERT INTO commit_log (space_id, seq, at_ns, author, device, mount, changes)"
            " VALUES (?, ?, ?, 'ann', 'laptop', 'm1', ?)",
            [(stage.space, n, n, wire.encode([])) for n in range(1, EVENTS_MAX + 11)],
        )
        cx.run("UPDATE space SET seq = ? WHERE id = ?", EVENTS_MAX + 10, stage.space)
    first = desk.poll()
    rest = desk.poll(after=first.seq)

    assert (len(first.events), first.seq) == (EVENTS_MAX, EVENTS_MAX)
    assert [e.seq for e in rest.events] == list(range(EVENTS_MAX + 1, EVENTS_MAX + 11))


@pytest.mark.parametrize("after", [-1, 4, 99])
def test_who_claims_a_place_that_never_was_is_reset(desk: Desk, after: int) -> None:
    w = desk.stage.writer()
    for name in "abc":
        w.make(name)
    feed = desk.poll(after=after, wait_s=PATIENT_S)

    assert (feed.is_reset, feed.seq, feed.events) == (True, 3, [])


def test_who_is_behind_the_kept_log_is_reset(desk: Desk) -> None:
    w = desk.stage.writer()
    for name in "abc":
        w.make(name)
    with desk.stage.db.write() as cx:
        cx.run("DELETE FROM commit_log WHERE seq <= 2")

    assert desk.poll(after=1).is_reset
    assert [e.seq for e in desk.poll(after=2).events] == [3]


def test_a_changed_lock_counter_is_news(desk: Desk) -> None:
    def fall() -> None:
        with desk.stage.db.write() as cx:
            cx.run("UPDATE space SET locks_gen = 5 WHERE id = ?", desk.stage.space)
        desk.stage.bell.ring(desk.stage.space)

    feed, _ = desk.parked(fall)
    assert (feed.locks, feed.events) == (5, [])
    assert desk.poll(wait_s=0.05, locks=5).locks == 5


def test_the_bell_wakes_everybody_but_the_mount_that_rang_it(desk: Desk) -> None:
    bell, space = Bell(), desk.stage.space
    mine, theirs = MountId("mine"), MountId("theirs")
    tickets = {mount: bell.ticket(space, mount) for mount in (mine, theirs, MountId(""))}

    with ThreadPoolExecutor(3) as pool:
        waits = {
            mount: pool.submit(bell.wait, space, ticket, PATIENT_S, mount)
            for mount, ticket in tickets.items()
        }
        bell.ring(space, by=mine)
        for mount in (theirs, MountId("")):
            waits[mount].result(PATIENT_S)
        unmoved = bell.ticket(space, mine) == tickets[mine]
        bell.ring(space)
        waits[mine].result(PATIENT_S)

    assert unmoved
    assert bell.ticket(space, mine) != tickets[mine]


def test_a_changed_node_comes_with_the_list_of_nodes(desk: Desk) -> None:
    def change() -> None:
        with desk.stage.db.write() as cx:
            cx.run("INSERT INTO meta (key, value) VALUES ('nodes_gen', '3')")
        desk.stage.bell.ring_all()

    feed, _ = desk.parked(change)
    assert (feed.nodes, feed.node_list) == (3, NODES)
    assert desk.poll(nodes=3).node_list == []


def test_a_space_that_is_not_there_is_not_found(desk: Desk) -> None:
    with pytest.raises(EverfoldError) as refused:
        desk.feeds.poll(wire.FeedPoll(SpaceId(99), MountId("m9"), Seq(0), 1.0))
    assert refused.value.kind is Kind.NOT_FOUND


def test_stopping_lets_every_parked_poll_go(desk: Desk) -> None:
    feed, delay = desk.parked(desk.stage.bell.stop)

    assert feed.events == []
    assert delay < 3
    began = time.monotonic()
    desk.poll(wait_s=PATIENT_S)
    assert time.monotonic() - began < 3
