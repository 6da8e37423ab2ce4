"""Spaces: who owns which tree. What one may not know of is NOT_FOUND."""

from __future__ import annotations

import threading

from everfold.errors import EverfoldError, Kind
from everfold.model import SpaceId, UserId
from nameserver.db import Cx, Database


class Spaces:
    """Answers whose a space is. Thread-safe; a space never changes its owner."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()  # guards _owners
        self._owners: dict[SpaceId, UserId] = {}

    def check(self, space: SpaceId, user: UserId) -> None:
        """Raise NOT_FOUND unless this user may use this space."""
        with self._lock:
            owner = self._owners.get(space)
        if owner is None:
            with self._db.read() as cx:
                row = cx.one("SELECT owner_id FROM space WHERE id = ?", space)
            if row is not None:
                owner = UserId(row[0])
                with self._lock:
                    self._owners[space] = owner
        if owner != user:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such space", str(space))

    def named(self, cx: Cx, user: UserId, name: str) -> tuple[SpaceId, str, int]:
        """Return (id, name, seq) of a user's space; "" is the home. NOT_FOUND."""
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
