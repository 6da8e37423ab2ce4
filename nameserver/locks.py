"""Advisory locks across mounts: flock(2) and fcntl(2), which never see each other.

An owner is (mount, the kernel's lock owner there). fcntl locks are byte ranges: a new one of
the same owner replaces, splits and merges what it had; flock locks are of the whole file. Locks
fall at close, with `drop_locks`, and when their mount is silent for longer than a session lives;
whenever some fall, `space.locks_gen` moves on and the feed tells those who wait.

A waiter is not parked here: it is told WOULD_BLOCK, its wait is noted (`lock_wait`), and it asks
again when locks fell, and at least every 10 s; a note older than `WAIT_TTL_S` counts no more.
Of waiters that wait for each other in a circle, the one that closes it is told DEADLOCK.

While one mount grants the space's locks itself (`nameserver.locklease`) its rows here are what
it held when it began; whoever else asks waits until it has said what its programs hold now.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.locks import Span, checked, closes_circle, laid
from everfold.model import Ino, Lock, LockKind, LockType, MountId, Seq, SpaceId
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.locklease import LockLeases, silent_of
from nameserver.policy import Policy

WAIT_TTL_S: Final = 15.0

_ON: Final = (
    "SELECT id, type, mount, owner, start, stop, pid FROM file_lock"
    " WHERE space_id = ? AND ino = ? AND kind = ? ORDER BY start, id"
)
_ADD: Final = (
    "INSERT INTO file_lock (space_id, ino, kind, type, mount, owner, start, stop, pid)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DELETE: Final = "DELETE FROM file_lock WHERE id = ?"
_FELL: Final = "UPDATE space SET locks_gen = locks_gen + 1 WHERE id = ?"


class _Owner(NamedTuple):
    mount: str
    owner: str  # the kernel's 64-bit number, in hex


class _Held(NamedTuple):
    """A row of `file_lock`."""

    id: int
    type: str
    mount: str
    owner: str
    start: int
    stop: int
    pid: int

    @property
    def who(self) -> _Owner:
        return _Owner(self.mount, self.owner)

    @property
    def span(self) -> Span:
        return Span(LockType(self.type), self.start, self.stop)


class Locks:
    """The lock table of all spaces. Threads may share it."""

    def __init__(self, db: Database, clock: Clock, bell: Bell, policy: Policy) -> None:
        self._db = db
        self._clock = clock
        self._bell = bell
        self._ttl_ns = int(policy.session_ttl_s * 1e9)
        self.leases = LockLeases(db, clock, policy, bell)

    def set_lock(self, ask: wire.SetLock) -> wire.Granted:
        """See `wire.SetLock`; WOULD_BLOCK, DEADLOCK, INVALID, BUSY."""
        return self.leases.when_told(ask.space, ask.mount, lambda: self._set_lock(ask))

    def _set_lock(self, ask: wire.SetLock) -> wire.Granted:
        lock = checked(ask.lock)
        who = _owner(ask.mount, lock.owner)
        now = self._clock.time_ns()
        refused: Kind | None = None
        fell = False
        with self._db.write() as cx:
            seq = _lock_space(cx, ask.space)
            if lock.type is not LockType.UNLOCK:
                if (gone := self.leases.check(cx, ask.space, ask.mount, now)) is not None:
                    self._drop_mount(cx, ask.space, gone)
                    fell = True
                self.leases.note(cx, ask.space, ask.mount, now)
            held = _held(cx, ask.space, lock.ino, lock.kind)
            against = [] if lock.type is LockType.UNLOCK else _conflicts(held, who, lock)
            if against:
                fell |= self._drop_silent(cx, ask.space, {row.mount for row in against}, now)
                held = _held(cx, ask.space, lock.ino, lock.kind) if fell else held
                against = _conflicts(held, who, lock)
            _forget_wait(cx, ask.space, who)
            if against:
                refused = Kind.WOULD_BLOCK
                if ask.is_waiting and lock.kind is LockKind.POSIX:
                    refused = self._wait(cx, ask.space, who, {row.who for row in against}, now)
            else:
                fell |= _grant(cx, ask.space, lock, who, [row for row in held if row.who == who])
            self._tell(cx, ask.space, fell)
        if fell:
            self._bell.ring(ask.space)
        if refused is Kind.DEADLOCK:
            raise EverfoldError(Kind.DEADLOCK, "the lock's holder waits for the caller")
        if refused is not None:
            raise EverfoldError(Kind.WOULD_BLOCK, "the lock is held by another")
        return wire.Granted(seq)

    def test_lock(self, ask: wire.TestLock) -> wire.Blocking:
        """See `wire.TestLock`; INVALID, WOULD_BLOCK, BUSY."""
        return self.leases.when_told(ask.space, ask.mount, lambda: self._test_lock(ask))

    def _test_lock(self, ask: wire.TestLock) -> wire.Blocking:
        lock = checked(ask.lock)
        who = _owner(ask.mount, lock.owner)
        now = self._clock.time_ns()
        with self._db.read() as cx:
            self.leases.check(cx, ask.space, ask.mount, now)
            against = _conflicts(_held(cx, ask.space, lock.ino, lock.kind), who, lock)
            silent = self._silent(cx, ask.space, {row.mount for row in against}, now)
        for row in against:
            if row.mount not in silent:
                found = Lock(lock.ino, lock.kind, LockType(row.type), int(row.owner, 16),
                             row.start, row.stop, row.pid)  # fmt: skip
                return wire.Blocking(found, MountId(row.mount))
        return wire.Blocking(None)

    def drop_locks(self, ask: wire.DropLocks) -> wire.Done:
        """See `wire.DropLocks`. With an owner and no inode: the owner's on every inode."""
        where, values = "space_id = ? AND mount = ?", [ask.space, ask.mount]
        waits, waiting = where, list(values)
        if ask.owner is not None:
            who = _owner(ask.mount, ask.owner)
            where, values = f"{where} AND owner = ?", [*values, who.owner]
            waits, waiting = where, list(values)
        if ask.ino:
            where, values = f"{where} AND ino = ?", [*values, ask.ino]
        with self._db.read() as cx:
            if not (
                cx.one(f"SELECT 1 FROM file_lock WHERE {where} LIMIT 1", *values)
                or cx.one(f"SELECT 1 FROM lock_wait WHERE {waits} LIMIT 1", *waiting)
                or self.leases.has(cx, ask.space, ask.mount)
            ):
                return wire.Done()  # the usual close of a file: nothing to write
        with self._db.write() as cx:
            _lock_space(cx, ask.space)
            cx.run(f"DELETE FROM lock_wait WHERE {waits}", *waiting)
            fell = cx.run(f"DELETE FROM file_lock WHERE {where}", *values) > 0
            if ask.owner is None and not ask.ino:
                fell |= self.leases.drop(cx, ask.space, ask.mount)
            self._tell(cx, ask.space, fell)
        if fell:
            self._bell.ring(ask.space)
        return wire.Done()

    def take_back(self, ask: wire.GiveLocks) -> wire.LocksKept:
        """See `wire.GiveLocks`; INVALID, WOULD_BLOCK, BUSY."""
        return self.leases.when_told(ask.space, ask.mount, lambda: self._take_back(ask))

    def _take_back(self, ask: wire.GiveLocks) -> wire.LocksKept:
        now = self._clock.time_ns()
        lost = []
        with self._db.write() as cx:
            _lock_space(cx, ask.space)
            if (gone := self.leases.check(cx, ask.space, ask.mount, now)) is not None:
                self._drop_mount(cx, ask.space, gone)
            cx.run("DELETE FROM file_lock WHERE space_id = ? AND mount = ?", ask.space, ask.mount)
            for lock in map(checked, ask.locks):
                who = _owner(ask.mount, lock.owner)
                held = _held(cx, ask.space, lock.ino, lock.kind)
                against = _conflicts(held, who, lock)
                if against and self._drop_silent(cx, ask.space, {r.mount for r in against}, now):
                    held = _held(cx, ask.space, lock.ino, lock.kind)
                    against = _conflicts(held, who, lock)
                if against:
                    lost.append(lock)
                else:
                    _grant(cx, ask.space, lock, who, [row for row in held if row.who == who])
            self.leases.drop(cx, ask.space, ask.mount)
            self._tell(cx, ask.space, True)
        self._bell.ring(ask.space)
        return wire.LocksKept(lost)

    def _tell(self, cx: Cx, space: SpaceId, fell: bool) -> None:
        if fell:
            cx.run(_FELL, space)
            self._bell.announce(cx, space)

    # ------------------------------------------------------------ sessions

    def _silent(self, cx: Cx, space: SpaceId, mounts: set[str], now_ns: int) -> set[str]:
        """Return those of `mounts` whose session is over."""
        return silent_of(cx, space, mounts, now_ns - self._ttl_ns)

    def _drop_silent(self, cx: Cx, space: SpaceId, mounts: set[str], now_ns: int) -> bool:
        silent = self._silent(cx, space, mounts, now_ns)
        for mount in silent:
            self._drop_mount(cx, space, mount)
        return bool(silent)

    def _drop_mount(self, cx: Cx, space: SpaceId, mount: str) -> None:
        for table in ("file_lock", "lock_wait"):
            cx.run(f"DELETE FROM {table} WHERE space_id = ? AND mount = ?", space, mount)
        self.leases.drop(cx, space, mount)

    # ------------------------------------------------------------ who waits for whom

    def _wait(self, cx: Cx, space: SpaceId, who: _Owner, holders: set[_Owner], now_ns: int) -> Kind:
        """Note that `who` waits for `holders`, unless that closes a circle."""
        fresh = now_ns - int(WAIT_TTL_S * 1e9)

        def waits_for(waiter: _Owner) -> list[_Owner]:
            rows = cx.all(
                "SELECT holder_mount, holder_owner FROM lock_wait"
                " WHERE space_id = ? AND mount = ? AND owner = ? AND at_ns > ?",
                space, *waiter, fresh,
            )  # fmt: skip
            return [_Owner(*row) for row in rows]

        if closes_circle(who, holders, waits_for):
            return Kind.DEADLOCK
        cx.many(
            "INSERT INTO lock_wait (space_id, mount, owner, holder_mount, holder_owner, at_ns)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [(space, *who, *holder, now_ns) for holder in sorted(holders)],
        )
        return Kind.WOULD_BLOCK


def _owner(mount: MountId, owner: int) -> _Owner:
    if not 0 <= owner < 1 << 64:
        raise EverfoldError(Kind.INVALID, f"not a lock owner: {owner}")
    return _Owner(mount, f"{owner:x}")


def _lock_space(cx: Cx, space: SpaceId) -> Seq:
    row = cx.lock_space(space)
    if row is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such space", str(space))
    return Seq(row[0])


def _held(cx: Cx, space: SpaceId, ino: Ino, kind: LockKind) -> list[_Held]:
    return [_Held(*row) for row in cx.all(_ON, space, ino, kind.value)]


def _conflicts(held: list[_Held], who: _Owner, lock: Lock) -> list[_Held]:
    return [row for row in held if row.who != who and row.span.is_against(lock)]


def _forget_wait(cx: Cx, space: SpaceId, who: _Owner) -> None:
    cx.run("DELETE FROM lock_wait WHERE space_id = ? AND mount = ? AND owner = ?", space, *who)


def _grant(cx: Cx, space: SpaceId, lock: Lock, who: _Owner, own: list[_Held]) -> bool:
    """Lay a lock over the owner's others; tell whether anything that it held fell."""
    shall = laid([row.span for row in own], lock)
    there = {row.span for row in own}
    cx.many(_DELETE, [(row.id,) for row in own if row.span not in shall])
    cx.many(
        _ADD,
        [
            (space, lock.ino, lock.kind.value, span.type.value, *who, span.start, span.stop,
             lock.pid)
            for span in shall
            if span not in there
        ],
    )  # fmt: skip
    return any(row.span.falls_by(lock) for row in own)
