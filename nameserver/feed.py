"""The feed: who waits for news of a space is woken by the commit that makes them.

`Bell` wakes waiters in this process at once; on PostgreSQL a commit also notifies the other
nameserver processes (delivered when it is durable), where one thread listens; on SQLite only
those with an ear hear of them (`hearing`). Waiters look at the database every second all the same:
a lost bell costs a second, never news.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

import msgspec
import psycopg

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import MountId, Node, Seq, SpaceId
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.hearing import Ear, Neighbours

_log = logging.getLogger(__name__)

WAIT_MAX_S: Final = 25.0
EVENTS_MAX: Final = 1000  # commits in one answer
_LOOK_S: Final = 1.0
_RELISTEN_S: Final = 1.0
_CHANNEL: Final = "everfold"
_EVERYONE: Final = "*"
_ANY: Final = MountId("")


class _Room:
    """Those who wait for news of one space; who is no mount, or any, waits as ""."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards all below
        self.rung = 0  # how often there were news
        self.own: Counter[MountId] = Counter()  # of these, by the mount itself
        self.waiters: dict[MountId, threading.Condition] = {}

    def heard(self, mount: MountId) -> int:
        """Return how often the bell rang for this mount. Lock held."""
        return self.rung - self.own[mount]

    def ring(self, by: MountId) -> None:
        """Wake all but the mount that is told; "": all."""
        with self.lock:
            self.rung += 1
            if by:
                self.own[by] += 1
            for mount, condition in self.waiters.items():
                if not by or mount != by:
                    condition.notify_all()


class Bell:
    """Wakes those who wait for a space. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below; taken before a condition
        self._rooms: dict[SpaceId, _Room] = {}
        self._ears: tuple[Ear, ...] = ()  # replaced as a whole: rung without the lock
        self._db: Database | None = None
        self._listener: threading.Thread | None = None
        self._neighbours: Neighbours | None = None
        self._stopped = threading.Event()

    def connect(self, db: Database) -> None:
        """Also hear and be heard by the other processes on this database."""
        with self._lock:
            self._db = db

    def announce(self, cx: Cx, space: SpaceId) -> None:
        """Within a transaction: wake the other processes when it commits."""
        if cx.is_postgres:
            cx.one(f"SELECT pg_notify('{_CHANNEL}', ?)", str(space))

    def ring(self, space: SpaceId, by: MountId = _ANY) -> None:
        """Wake this process's waiters of a space; its transaction is over.

        `by` is the mount that knows already. Waking the poll of a mount that writes alone only
        to find its own commit cost 100 us and a dozen changes of threads for each of them.
        """
        with self._lock:
            room = self._rooms.get(space)
        if room is not None:
            room.ring(by)
        for ear in self._ears:
            ear.tell(space)

    def ring_all(self) -> None:
        """Wake every waiter, of every process."""
        self._ring_here()
        if self._db is not None and self._db.is_postgres:
            with self._db.write() as cx:
                cx.one(f"SELECT pg_notify('{_CHANNEL}', ?)", _EVERYONE)

    def ticket(self, space: SpaceId, mount: MountId = _ANY) -> int:
        """Return what `wait` compares with: take it before looking, so that no bell is lost."""
        room = self._room(space)
        with room.lock:
            return room.heard(mount)

    def wait(self, space: SpaceId, ticket: int, timeout_s: float, mount: MountId = _ANY) -> None:
        """Return when the bell rang for `mount` since `ticket` was taken, or after `timeout_s`."""
        room = self._room(space)
        with room.lock:
            condition = room.waiters.setdefault(mount, threading.Condition(room.lock))
            condition.wait_for(lambda: room.heard(mount) != ticket or self.is_stopped, timeout_s)

    @contextlib.contextmanager
    def ear(self, spaces: Collection[SpaceId] = ()) -> Iterator[Ear]:
        """Open an ear that hears of commits of all processes within 50 ms, until the block ends."""
        ear = Ear(spaces)
        with self._lock:
            self._ears = (*self._ears, ear)
            self._listen_beyond()
            if self._db is not None and not self._db.is_postgres and self._neighbours is None:
                self._neighbours = Neighbours(str(self._db.peewee.database), self._tell_ears)
        try:
            yield ear
        finally:
            idle: Neighbours | None = None
            with self._lock:
                self._ears = tuple(other for other in self._ears if other is not ear)
                if not self._ears:
                    idle, self._neighbours = self._neighbours, None
            if idle is not None:
                idle.stop()

    @property
    def is_stopped(self) -> bool:
        """Tell whether nobody shall wait any more."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let every waiter go, now and from now on."""
        self._stopped.set()
        self._ring_here()
        if self._listener is not None:
            self._listener.join(5.0)

    def _room(self, space: SpaceId) -> _Room:
        with self._lock:
            room = self._rooms.get(space)
            if room is None:
                room = self._rooms[space] = _Room()
            self._listen_beyond()
        return room

    def _listen_beyond(self) -> None:
        """Begin to hear of other processes' commits, if that is not done. Lock held."""
        if self._db is not None and self._db.is_postgres and self._listener is None:
            self._listener = threading.Thread(
                target=self._listen, args=(self._db.url,), name="bell", daemon=True
            )
            self._listener.start()

    def _ring_here(self) -> None:
        with self._lock:
            rooms = list(self._rooms.values())
        for room in rooms:
            room.ring(_ANY)
        self._tell_ears()

    def _tell_ears(self) -> None:
        for ear in self._ears:
            ear.tell(None)

    def _listen(self, url: str) -> None:
        while not self.is_stopped:
            try:
                with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
                    connection.execute(f"LISTEN {_CHANNEL}")
                    self._ring_here()  # what came while nobody listened
                    while not self.is_stopped:
                        for note in connection.notifies(timeout=0.5):
                            self._heard(note.payload)
            except psycopg.Error as err:
                _log.warning("not listening for other nameservers' commits: %s", err)
                self._stopped.wait(_RELISTEN_S)

    def _heard(self, payload: str) -> None:
        if payload == _EVERYONE:
            self._ring_here()
        elif payload.isdigit():
            self.ring(SpaceId(int(payload)))


class LockBook(Protocol):
    """What the feed must know of who grants locks; `nameserver.locklease.LockLeases` is one."""

    def is_recalled(self, cx: Cx, ask: wire.FeedPoll) -> bool:
        """Tell whether the asker must say which locks are held, and grant none any more."""
        ...


class LeaseBook(Protocol):
    """What the feed must know of write leases; `nameserver.leases.Leases` is one."""

    def renew(self, ask: wire.FeedPoll) -> None:
        """A holder is heard of."""
        ...

    def standing(self, cx: Cx, ask: wire.FeedPoll) -> tuple[float, bool]:
        """Return (how long the asker's lease is good, whether it is recalled)."""
        ...


class Feeds:
    """Answers long polls."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        bell: Bell,
        node_list: Callable[[], list[Node]],
        leases: LeaseBook | None = None,
        locks: LockBook | None = None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._bell = bell
        self._node_list = node_list
        self._leases = leases
        self._locks = locks
        bell.connect(db)

    def poll(self, ask: wire.FeedPoll) -> wire.Feed:
        """Return news after `ask.after`, or after at most `wait_s` (25 s) that there are none.

        The asker's own commits are passed over: they are no news to it, and waking it for
        each would double the calls of a mount that writes alone.
        """
        if ask.epoch and self._leases is not None:
            self._leases.renew(ask)
        patience = min(ask.wait_s, WAIT_MAX_S) if ask.wait_s > 0 else 0.0
        ends = self._clock.monotonic() + patience
        while True:
            ticket = self._bell.ticket(ask.space, ask.mount)
            feed = self._look(ask)
            if feed.events and all(event.mount == ask.mount for event in feed.events):
                ask = msgspec.structs.replace(ask, after=feed.seq)
                continue
            left = ends - self._clock.monotonic()
            if _is_news(feed, ask) or left <= 0 or self._bell.is_stopped:
                return feed
            self._bell.wait(ask.space, ticket, min(left, _LOOK_S), ask.mount)

    def _look(self, ask: wire.FeedPoll) -> wire.Feed:
        with self._db.read() as cx:
            row = cx.one("SELECT seq, locks_gen, teams_gen FROM space WHERE id = ?", ask.space)
            if row is None:
                raise EverfoldError(Kind.NOT_FOUND, "no such space", str(ask.space))
            seq, locks, teams = row
            nodes = _nodes_gen(cx)
            left, recalled = self._leases.standing(cx, ask) if self._leases else (0.0, False)
            locks_back = self._locks is not None and self._locks.is_recalled(cx, ask)
            events = _events(cx, ask) if 0 <= ask.after < seq else []
        is_reset = ask.after != seq and (not events or events[0].seq != ask.after + 1)
        if is_reset:
            events = []
        at = events[-1].seq if events else Seq(seq)
        told = self._node_list() if nodes != ask.nodes else []
        return wire.Feed(
            at, events, locks, nodes, is_reset, told, left, recalled, locks_back, teams
        )


def _is_news(feed: wire.Feed, ask: wire.FeedPoll) -> bool:
    return bool(
        feed.events
        or feed.is_reset
        or feed.is_recalled
        or feed.are_locks_recalled
        or feed.locks != ask.locks
        or feed.nodes != ask.nodes
        or feed.teams != ask.teams
    )


def _nodes_gen(cx: Cx) -> int:
    row = cx.one("SELECT value FROM meta WHERE key = 'nodes_gen'")
    return int(row[0]) if row else 0


def _events(cx: Cx, ask: wire.FeedPoll) -> list[wire.CommitEvent]:
    rows = cx.all(
        "SELECT seq, at_ns, author, device, mount, changes FROM commit_log"
        " WHERE space_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        ask.space,
        ask.after,
        EVENTS_MAX,
    )
    return [
        wire.CommitEvent(
            Seq(seq), at_ns, author, device, MountId(mount),
            wire.decode(changes, list[wire.Change]),
        )
        for seq, at_ns, author, device, mount, changes in rows
    ]  # fmt: skip
