"""Spaces: who may do what in which tree. The one place where that is decided.

Mounts, the HTTP API and the page all ask `check`. What one may not know of is NOT_FOUND. A home
space is its owner's alone, and stays it. Who may use a team folder changes: what is known of that
is believed for `BELIEVED_S`, in every process, and forgotten at once in the one that changed it; so
whoever is removed is shut out everywhere within a second.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import Ino, MountId, SpaceId, UserId
from everfold.services import Clock
from nameserver.db import Cx, Database

READ: Final = "read"
WRITE: Final = "write"
OWNER: Final = "owner"
_RANK: Final = {READ: 1, WRITE: 2, OWNER: 3}  # each may what those before it may
TEAM: Final = "team:"  # a mount names a team folder's space by this and its number
BELIEVED_S: Final = 0.5
_FOREVER: Final = float("inf")
_MOUNTS_KNOWN: Final = 10_000
NO_MOUNT: Final = "http"  # the name under which changes without a mount are numbered


class _Known(NamedTuple):
    may: dict[UserId, str]
    until: float  # monotonic


class Junction(NamedTuple):
    """Where a team folder stands in the home space of somebody who may use it.

    `name` None: the owner deleted the team folder, or the junction is gone.
    """

    space: SpaceId
    permission: str
    ino: Ino
    parent: Ino
    name: bytes | None


class Spaces:
    """Answers who may use a space, and for what. Thread-safe."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._known: dict[SpaceId, _Known] = {}  # whole values come and go: needs no lock
        self._mounts: dict[tuple[SpaceId, MountId], str] = {}  # whose a mount is never changes

    # ------------------------------------------------------------ permission

    def check(self, space: SpaceId, user: UserId, need: str = READ) -> str:
        """Return what this user may do in a space, if it is at least `need`.

        NOT_FOUND for whoever may not know of it, READ_ONLY for a member who may only read,
        FORBIDDEN for one who is not the owner.
        """
        known = self._known.get(space)
        if known is None or known.until < self._clock.monotonic():
            known = self._ask(space)
        return _judge(known.may.get(user) if known is not None else None, need, space)

    def _ask(self, space: SpaceId) -> _Known | None:
        now = self._clock.monotonic()
        with self._db.read() as cx:
            row = cx.one(
                "SELECT s.owner_id, t.deleted_ns FROM space s"
                " LEFT JOIN team t ON t.space_id = s.id WHERE s.id = ?",
                space,
            )
            if row is None:
                return None
            members = cx.all("SELECT user_id, permission FROM member WHERE space_id = ?", space)
        may = {UserId(user): permission for user, permission in members}
        may = {} if row[1] else may | {UserId(row[0]): OWNER}  # a deleted one is nobody's
        is_team = row[1] is not None
        known = self._known[space] = _Known(may, now + BELIEVED_S if is_team else _FOREVER)
        return known

    def held(self, cx: Cx, space: SpaceId, user: UserId) -> str:
        """Return what a user, who may use a space, may do there, as a transaction sees it."""
        return self._member(cx, space, user) or OWNER

    def _member(self, cx: Cx, space: SpaceId, user: UserId) -> str | None:
        row = cx.one(
            "SELECT permission FROM member WHERE space_id = ? AND user_id = ?", space, user
        )
        return str(row[0]) if row else None

    def require(self, cx: Cx, space: SpaceId, user: UserId, need: str) -> None:
        """Raise what `check` does, by what a transaction sees: there is no later moment."""
        row = cx.one(
            "SELECT s.owner_id, t.deleted_ns FROM space s LEFT JOIN team t ON t.space_id = s.id"
            " WHERE s.id = ?",
            space,
        )
        if row is None or row[1]:
            _judge(None, need, space)
        elif row[0] != user:
            _judge(self._member(cx, space, user), need, space)

    def forget(self, space: SpaceId) -> None:
        """Believe nothing of a space's members any more."""
        self._known.pop(space, None)

    def check_mount(self, space: SpaceId, mount: MountId, author: str) -> None:
        """Raise FORBIDDEN when a mount that is known here is somebody else's.

        Who shares a space with others learns their mounts' ids from the feed.
        """
        whose = self._mounts.get((space, mount))
        if whose is None:
            if mount == NO_MOUNT:
                raise EverfoldError(Kind.FORBIDDEN, "no mount may have this id", mount)
            with self._db.read() as cx:
                row = cx.one("SELECT author FROM mount WHERE space_id = ? AND id = ?", space, mount)
            if row is None:
                return
            if len(self._mounts) >= _MOUNTS_KNOWN:
                self._mounts.clear()
            whose = self._mounts[space, mount] = str(row[0])
        if whose != author:
            raise EverfoldError(Kind.FORBIDDEN, "this mount is another user's", mount[:80])

    # ------------------------------------------------------------ which there are

    def named(self, cx: Cx, user: UserId, name: str) -> tuple[SpaceId, str, int]:
        """Return (id, name, seq) of a space that a user may use; "" is the home. NOT_FOUND."""
        if name.startswith(TEAM):
            return self._team(cx, user, name)
        row = cx.one(
            "SELECT s.id, s.name, s.seq FROM space s JOIN account a ON a.id = s.owner_id"
            " WHERE s.owner_id = ? AND s.name = CASE WHEN ? = '' THEN a.name ELSE ? END",
            user,
            name,
            name,
        )
        if row is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such space", name[:80])
        return SpaceId(row[0]), row[1], row[2]

    def _team(self, cx: Cx, user: UserId, name: str) -> tuple[SpaceId, str, int]:
        number = name.removeprefix(TEAM)
        row = None
        if number.isascii() and number.isdigit() and len(number) < 10:
            row = cx.one(
                "SELECT s.id, s.seq FROM space s JOIN member m ON m.space_id = s.id"
                " JOIN team t ON t.space_id = s.id AND t.deleted_ns = 0"
                " WHERE s.id = ? AND m.user_id = ?",
                int(number),
                user,
            )
        if row is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such space", name[:80])
        return SpaceId(row[0]), f"{TEAM}{row[0]}", row[1]

    def junctions(self, cx: Cx, user: UserId) -> list[Junction]:
        """Return the team folders that a user may use, with where they stand in the home."""
        rows = cx.all(
            "SELECT m.space_id, m.permission, m.ino, e.parent, e.name FROM member m"
            " LEFT JOIN entry e INDEXED BY entry_ino ON e.space_id = m.home_id AND e.ino = m.ino"
            " AND e.died IS NULL WHERE m.user_id = ? ORDER BY m.space_id",
            user,
        )
        return [Junction(*row) for row in rows]


def _judge(held: str | None, need: str, space: SpaceId) -> str:
    if held is None:
        raise EverfoldError(Kind.NOT_FOUND, "there is no such space", str(space))
    if _RANK[held] < _RANK[need]:
        if need == OWNER:
            raise EverfoldError(Kind.FORBIDDEN, "only the owner of the team folder may do this")
        raise EverfoldError(Kind.READ_ONLY, "you may only read in this team folder")
    return held
