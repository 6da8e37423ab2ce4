"""Mounts: how one introduces itself, and when its silence counts as its end.

The row of a mount outlives every session: it knows the last operation that was applied, so a
journal that is shipped after weeks is applied once. Only locks and open versions fall with silence.
"""

from __future__ import annotations

from collections.abc import Callable

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import SIZE_MAX, MountId, Seq, SpaceId
from everfold.services import Clock
from nameserver import quota
from nameserver.blocks import Ledger
from nameserver.db import Cx, Database
from nameserver.devices import Device, Devices
from nameserver.gate import Identity
from nameserver.nodes import NodeBook
from nameserver.policy import Policy
from nameserver.spaces import NO_MOUNT, READ, Spaces

_ID_MAX = 128
LetGo = Callable[[SpaceId, MountId], None]
"""Let go of something that a process held whose mount ended, or begins anew."""


class Sessions:
    """Knows the mounts. Thread-safe."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        policy: Policy,
        spaces: Spaces,
        nodes: NodeBook,
        ledger: Ledger,
        devices: Devices,
        admit: Callable[[Identity, Device], str],
        let_go: LetGo,
        tidy: LetGo,
    ) -> None:
        """`admit` gives a mount a token of its own. `let_go` drops everything that a mount holds;
        `tidy` what a process that died while it served the mount cannot use any more: its locks,
        and the versions it had open."""
        self._db = db
        self._clock = clock
        self._policy = policy
        self._spaces = spaces
        self._nodes = nodes
        self._ledger = ledger
        self._devices = devices
        self._admit = admit
        self._let_go = let_go
        self._tidy = tidy

    def hello(self, ask: wire.Hello, who: Identity) -> wire.Session:
        """Let a mount in (again). FORBIDDEN when its id is that of another user's mount."""
        if not ask.mount or len(ask.mount) > _ID_MAX or not ask.mount.isprintable():
            raise EverfoldError(Kind.INVALID, "not a mount's id", ask.mount[:80])
        if ask.mount == NO_MOUNT:
            raise EverfoldError(Kind.FORBIDDEN, "no mount may have this id", ask.mount)
        now = self._clock.time_ns()
        with self._db.write() as cx:
            space, name, seq = self._spaces.named(cx, who.user, ask.space)
            is_read_only = ask.read_only or self._spaces.held(cx, space, who.user) == READ
            device = who.device_name or ask.label or who.name
            own = self._devices.for_mount(
                cx, who.user, ask.mount, ask.label, who.device, who.issued_s
            )
            row = cx.one(
                "INSERT INTO mount (space_id, id, author, device, device_id, label, last_op,"
                " results, seen_ns, is_read_only) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?)"
                " ON CONFLICT (space_id, id) DO UPDATE SET device = excluded.device,"
                " device_id = excluded.device_id, label = excluded.label,"
                " seen_ns = excluded.seen_ns, is_read_only = excluded.is_read_only"
                " WHERE mount.author = excluded.author RETURNING last_op",
                space,
                ask.mount,
                who.name,
                device[:64],
                own.id,
                ask.label[:255],
                b"",
                now,
                int(is_read_only),
            )
            if row is None:
                raise EverfoldError(Kind.FORBIDDEN, "this mount is another user's", ask.mount)
            left = quota.left_in(cx, space)
            teams = _teams_gen(cx, space)
        self._tidy(space, ask.mount)
        token, expires = self._ledger.token(space, "r" if is_read_only else "rw")
        return wire.Session(
            space=space,
            space_name=name,
            user=who.name,
            device=device[:64],
            seq=Seq(seq),
            last_op=row[0],
            min_replicas=self._policy.min_replicas,
            nodes=self._nodes.nodes(),
            block_token=token,
            block_token_expires=expires,
            session_ttl_s=self._policy.session_ttl_s,
            quota_left=left,
            size_max=self._policy.max_file_size or SIZE_MAX,
            read_only=is_read_only,
            teams=teams,
            token=self._admit(who, own),
        )

    def seen(self, space: SpaceId, mount: MountId, position: int = 0) -> None:
        """Note that a mount is alive, and the commit up to which it followed the feed.

        STALE when it never introduced itself. Written at most four times in the life of a
        session, since it costs a transaction.
        """
        now = self._clock.time_ns()
        with self._db.read() as cx:
            row = cx.one("SELECT seen_ns FROM mount WHERE space_id = ? AND id = ?", space, mount)
        if row is None:
            raise EverfoldError(Kind.STALE, "this mount has no session", mount[:80])
        if now - row[0] > int(self._policy.session_ttl_s * 0.25e9):
            with self._db.write() as cx:
                cx.run(
                    "UPDATE mount SET seen_ns = ?, position = CASE WHEN position > ? THEN"
                    " position ELSE ? END WHERE space_id = ? AND id = ?",
                    now,
                    position,
                    position,
                    space,
                    mount,
                )

    def check_writable(self, space: SpaceId, mount: MountId) -> None:
        """Raise READ_ONLY for a mount that said it only reads."""
        with self._db.read() as cx:
            row = cx.one(
                "SELECT is_read_only FROM mount WHERE space_id = ? AND id = ?", space, mount
            )
        if row is not None and row[0]:
            raise EverfoldError(Kind.READ_ONLY, "this mount is read-only", mount)

    def expire(self) -> list[MountId]:
        """End the sessions that have been silent for too long; return whose."""
        before = self._clock.time_ns() - int(self._policy.session_ttl_s * 1e9)
        with self._db.read() as cx:
            rows = cx.all(
                "SELECT space_id, id FROM mount WHERE seen_ns > 0 AND seen_ns < ?", before
            )
        for space, mount in rows:
            self.end(space, mount)
        return [MountId(row[1]) for row in rows]

    def end(self, space: SpaceId, mount: MountId) -> None:
        """End a session: what it held is let go. It may begin again at any time."""
        self._let_go(space, mount)
        now = self._clock.time_ns()
        with self._db.write() as cx:
            cx.run("UPDATE mount SET seen_ns = 0 WHERE space_id = ? AND id = ?", space, mount)
            cx.run(
                "UPDATE device SET seen_ns = ? WHERE is_revoked = 0 AND id ="
                " (SELECT device_id FROM mount WHERE space_id = ? AND id = ?)",
                now,
                space,
                mount,
            )


def _teams_gen(cx: Cx, space: SpaceId) -> int:
    row = cx.one("SELECT teams_gen FROM space WHERE id = ?", space)
    return int(row[0]) if row else 0
