"""The write lease of a space: its holder alone may answer changes before they are committed.

The lease is five columns of the space's row, so a commit sees it in its own transaction, and
any nameserver process may grant, renew, recall. A commit of another mount is refused there
(`HELD`), recalls the lease through the feed, and waits until the holder has sent on what it
answered and given the lease back, or has been silent until it ran out. Each grant has an
epoch; what was answered under an old one is taken as late when another has held it since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import MountId, Seq, SpaceId
from everfold.services import Clock
from nameserver import quota
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.policy import Policy

_ROW: Final = (
    "SELECT lease_mount, lease_epoch, lease_until_ns, lease_recalled, lease_recalled_ns, seq"
    " FROM space WHERE id = ?"
)
_RECENT: Final = (
    "SELECT 1 FROM (SELECT mount, at_ns FROM commit_log WHERE space_id = ?"
    " ORDER BY seq DESC LIMIT 16) AS recent WHERE mount <> ? AND at_ns > ? LIMIT 1"
)
_LOOK_S: Final = 0.5


class Held(EverfoldError):
    """Another mount holds the write lease; recall it, wait, and try again."""

    def __init__(self) -> None:
        super().__init__(Kind.BUSY, "another machine has just been writing; try again")


class Row(NamedTuple):
    """The lease's columns."""

    mount: str
    epoch: int
    until_ns: int
    recalled: int
    recalled_ns: int
    seq: int

    def is_anothers(self, mount: MountId, now_ns: int) -> bool:
        """Tell whether a mount other than this one holds the lease."""
        return bool(self.mount) and self.mount != mount and self.until_ns > now_ns


def check(cx: Cx, ask: wire.Commit, now_ns: int) -> bool:
    """Within a commit: raise `Held`, or tell whether its operations come late."""
    row = _row(cx, ask.space)
    if row.is_anothers(ask.mount, now_ns):
        raise Held
    return bool(ask.epoch) and ask.epoch != row.epoch


def is_held(cx: Cx, space: SpaceId, mount: MountId, epoch: int | None, now_ns: int) -> bool:
    """Tell whether a mount holds the lease (under that epoch), with it recalled or not.

    With an epoch, also that nobody wants it back.
    """
    row = _row(cx, space)
    if row.mount != mount or row.until_ns <= now_ns:
        return False
    return epoch is None or (row.epoch == epoch and row.recalled != epoch)


def _row(cx: Cx, space: SpaceId) -> Row:
    found = cx.one(_ROW, space)
    if found is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such space", str(space))
    return Row(*found)


class Leases:
    """Grants, renews and recalls. Threads may share it; nothing is kept in memory."""

    def __init__(self, db: Database, clock: Clock, policy: Policy, bell: Bell) -> None:
        self._db, self._clock, self._policy, self._bell = db, clock, policy, bell

    def take(self, ask: wire.TakeLease) -> wire.Lease:
        """Grant the lease, or take it back (see `wire.TakeLease`)."""
        if ask.epoch:
            return self._give_back(ask)
        now = self._clock.time_ns()
        calm = now - int(self._policy.write_calm_s * 1e9)
        with self._db.write() as cx:
            cx.lock_space(ask.space)
            row = _row(cx, ask.space)
            is_busy = row.is_anothers(ask.mount, now) or row.recalled_ns > calm
            if is_busy or cx.one(_RECENT, ask.space, ask.mount, calm):
                self.drop(cx, ask.space, ask.mount)  # who asks has none: what it had was lost
                return wire.Lease(0, 0.0, Seq(row.seq))
            cx.run(
                "UPDATE space SET lease_mount = ?, lease_epoch = ?, lease_until_ns = ?"
                " WHERE id = ?",
                ask.mount,
                row.epoch + 1,
                now + int(self._policy.write_lease_s * 1e9),
                ask.space,
            )
            left = quota.left_in(cx, ask.space)
        return wire.Lease(row.epoch + 1, self._policy.write_lease_s, Seq(row.seq), left)

    def _give_back(self, ask: wire.TakeLease) -> wire.Lease:
        with self._db.write() as cx:
            self.drop(cx, ask.space, ask.mount, ask.epoch)
            row = _row(cx, ask.space)
            self._bell.announce(cx, ask.space)
        self._bell.ring(ask.space)
        return wire.Lease(0, 0.0, Seq(row.seq))

    def drop(self, cx: Cx, space: SpaceId, mount: MountId, epoch: int | None = None) -> None:
        """Let nobody hold the lease if this mount does (under that epoch)."""
        cx.run(
            "UPDATE space SET lease_mount = '', lease_until_ns = 0"
            " WHERE id = ? AND lease_mount = ? AND lease_epoch = COALESCE(?, lease_epoch)",
            space,
            mount,
            epoch,
        )

    def renew(self, ask: wire.FeedPoll) -> None:
        """A holder is heard of: its lease goes on, also while it sends on what it answered."""
        now, ttl = self._clock.time_ns(), int(self._policy.write_lease_s * 1e9)
        with self._db.read() as cx:
            row = _row(cx, ask.space)
        if self._is_good(row, ask) and row.until_ns < now + ttl * 3 // 4:
            # One that a power cut loses is made up for by `survive`; PostgreSQL may fall alone.
            with self._db.write(is_durable=self._db.is_postgres) as cx:
                cx.run(
                    "UPDATE space SET lease_until_ns = ? WHERE id = ? AND lease_mount = ?"
                    " AND lease_epoch = ?",
                    now + ttl,
                    ask.space,
                    ask.mount,
                    ask.epoch,
                )

    def survive(self) -> None:
        """After a start: who held a lease before may have been told that it goes on.

        Renewals need not be durable (a holder's come every second, among the syncs that people
        wait for). None that was lost is good for longer than from now.
        """
        until = self._clock.time_ns() + int(self._policy.write_lease_s * 1e9)
        with self._db.write() as cx:
            cx.run(
                "UPDATE space SET lease_until_ns = ?"
                " WHERE lease_mount <> '' AND lease_until_ns < ?",
                until,
                until,
            )

    def _is_good(self, row: Row, ask: wire.FeedPoll) -> bool:
        return row.mount == ask.mount and row.epoch == ask.epoch

    def standing(self, cx: Cx, ask: wire.FeedPoll) -> tuple[float, bool]:
        """Return (how long the holder's lease is good, whether it is recalled)."""
        row = _row(cx, ask.space)
        if row.mount != ask.mount or (ask.epoch and row.epoch != ask.epoch):
            return 0.0, bool(ask.epoch)
        left = (row.until_ns - self._clock.time_ns()) / 1e9
        return max(0.0, left), row.recalled == row.epoch

    def when_free(self, ask: wire.Commit, commit: Callable[[], wire.Committed]) -> wire.Committed:
        """Run a commit; while another holds the lease, recall it and wait. BUSY at the end."""
        ends = self._clock.monotonic() + self._policy.write_wait_s
        while True:
            ticket = self._bell.ticket(ask.space)
            try:
                return commit()
            except Held:
                left = ends - self._clock.monotonic()
                if left <= 0:
                    raise
            self._recall(ask)
            self._bell.wait(ask.space, ticket, min(left, _LOOK_S))

    def _recall(self, ask: wire.Commit) -> None:
        now = self._clock.time_ns()
        with self._db.write() as cx:
            row = _row(cx, ask.space)
            if not row.is_anothers(ask.mount, now):
                return
            cx.run(
                "UPDATE space SET lease_recalled = lease_epoch, lease_recalled_ns = ? WHERE id = ?",
                now,
                ask.space,
            )
            if row.recalled == row.epoch:
                return
            self._bell.announce(cx, ask.space)
        self._bell.ring(ask.space)
