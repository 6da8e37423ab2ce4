"""Who grants a space's locks: the nameserver, or one mount to its own programs.

A mount that holds the write lease may ask for this too (`wire.TakeLocks`). From then on it
answers its programs from memory, so nobody else is granted a lock here before it was recalled
through the feed, has sent on every byte that was written so far, and has said which locks are
held (`wire.GiveLocks`). A holder that falls silent is believed to hold any lock until its
session is over, as one that holds rows in `file_lock` is: a lock survives a nameserver that is
away for a while. It is only asked for when no other mount wanted a lock just now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import Ino, MountId, SpaceId
from everfold.services import Clock
from nameserver import leases
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.policy import Policy

T = TypeVar("T")

_WAIT_S: Final = 4.0  # how long a request waits for another's answer; its caller gives it 5
_LOOK_S: Final = 0.5
_ROW: Final = "SELECT mount, recalled_ns FROM lock_lease WHERE space_id = ?"


class Elsewhere(EverfoldError):
    """Another mount grants the locks; recall that, wait, and try again."""

    def __init__(self) -> None:
        super().__init__(Kind.BUSY, "another machine has just been locking; try again")


class LockLeases:
    """Grants and recalls. Threads may share it; nothing is kept in memory."""

    def __init__(self, db: Database, clock: Clock, policy: Policy, bell: Bell) -> None:
        self._db, self._clock, self._bell = db, clock, bell
        self._ttl_ns = int(policy.session_ttl_s * 1e9)
        self._calm_ns = int(policy.write_calm_s * 1e9)

    def take(self, ask: wire.TakeLocks) -> wire.LockLease:
        """See `wire.TakeLocks`."""
        now = self._clock.time_ns()
        with self._db.write() as cx:
            cx.lock_space(ask.space)
            if not leases.is_held(cx, ask.space, ask.mount, ask.epoch, now):
                return wire.LockLease(False)
            row = cx.one(_ROW, ask.space)
            is_anothers = row is not None and row[0] != ask.mount
            if is_anothers or self._is_asked(cx, ask.space, ask.mount, now - self._calm_ns):
                return wire.LockLease(False)
            cx.run(
                "INSERT INTO lock_lease (space_id, mount, recalled_ns) VALUES (?, ?, 0)"
                " ON CONFLICT (space_id) DO UPDATE SET mount = excluded.mount, recalled_ns = 0",
                ask.space,
                ask.mount,
            )
            # Who waits there is told by the mount from now on; it asks again here if it must.
            waits = "DELETE FROM lock_wait WHERE space_id = ? AND mount = ?"
            cx.run(waits, ask.space, ask.mount)
            others = cx.all(
                "SELECT DISTINCT ino FROM file_lock WHERE space_id = ? AND mount <> ?",
                ask.space,
                ask.mount,
            )
        return wire.LockLease(True, [Ino(ino) for (ino,) in others])

    def _is_asked(self, cx: Cx, space: SpaceId, mount: MountId, since_ns: int) -> bool:
        """Tell whether another mount wanted a lock lately."""
        asked = "SELECT 1 FROM lock_ask WHERE space_id = ? AND mount <> ? AND at_ns > ?"
        return cx.one(asked, space, mount, since_ns) is not None

    def note(self, cx: Cx, space: SpaceId, mount: MountId, now_ns: int) -> None:
        """Note that a mount asks for a lock; written now and then only."""
        last = cx.one("SELECT at_ns FROM lock_ask WHERE space_id = ? AND mount = ?", space, mount)
        if last is None or last[0] < now_ns - self._calm_ns // 4:
            cx.run(
                "INSERT INTO lock_ask (space_id, mount, at_ns) VALUES (?, ?, ?)"
                " ON CONFLICT (space_id, mount) DO UPDATE SET at_ns = excluded.at_ns",
                space,
                mount,
                now_ns,
            )

    def check(self, cx: Cx, space: SpaceId, mount: MountId, now_ns: int) -> str | None:
        """Within a request for a lock: raise unless it can be decided here.

        Return the mount that grants locks no more because its session is over, or None.
        Raises `Elsewhere`, and WOULD_BLOCK when the holder is silent but not yet given up.
        """
        row = cx.one(_ROW, space)
        if row is None or row[0] == mount:
            return None
        holder: str = row[0]
        if silent_of(cx, space, [holder], now_ns - self._ttl_ns):
            return holder
        if not leases.is_held(cx, space, MountId(holder), None, now_ns):
            raise EverfoldError(Kind.WOULD_BLOCK, "a machine that is silent may hold the lock")
        raise Elsewhere

    def when_told(self, space: SpaceId, mount: MountId, decide: Callable[[], T]) -> T:
        """Decide about a lock; while another mount grants them, recall that and wait.

        BUSY when it took too long.
        """
        ends = self._clock.monotonic() + _WAIT_S
        while True:
            ticket = self._bell.ticket(space)
            try:
                return decide()
            except Elsewhere:
                left = ends - self._clock.monotonic()
                if left <= 0:
                    raise
            self._recall(space, mount)
            self._bell.wait(space, ticket, min(left, _LOOK_S))

    def _recall(self, space: SpaceId, mount: MountId) -> None:
        now = self._clock.time_ns()
        with self._db.write() as cx:
            cx.lock_space(space)
            self.note(cx, space, mount, now)
            said = cx.run(
                "UPDATE lock_lease SET recalled_ns = ?"
                " WHERE space_id = ? AND mount <> ? AND recalled_ns = 0",
                now,
                space,
                mount,
            )
            if not said:
                return
            self._bell.announce(cx, space)
        self._bell.ring(space)

    def is_recalled(self, cx: Cx, ask: wire.FeedPoll) -> bool:
        """Tell whether the asker must say which locks are held, and grant none any more."""
        row = cx.one(_ROW, ask.space)
        if row is None or row[0] != ask.mount:
            return ask.grants_locks
        return bool(row[1])

    def has(self, cx: Cx, space: SpaceId, mount: MountId) -> bool:
        """Tell whether a mount grants the locks of a space."""
        row = cx.one(_ROW, space)
        return row is not None and row[0] == mount

    def drop(self, cx: Cx, space: SpaceId, mount: str) -> bool:
        """Let a mount grant locks no more; tell whether it did."""
        return cx.run("DELETE FROM lock_lease WHERE space_id = ? AND mount = ?", space, mount) > 0


def silent_of(cx: Cx, space: SpaceId, mounts: Iterable[str], since_ns: int) -> set[str]:
    """Return those of `mounts` that were not heard of since then."""
    silent = set()
    for mount in mounts:
        row = cx.one("SELECT seen_ns FROM mount WHERE space_id = ? AND id = ?", space, mount)
        if row is None or row[0] < since_ns:
            silent.add(mount)
    return silent
