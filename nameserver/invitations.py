"""Invitations: an admin lets one person register, once, for a while.

The secret is told to the admin when it is made and stored only as its hash. That it is used
once is decided by one UPDATE in the transaction that makes the user.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.services import Clock
from nameserver.accounts import ADMIN, USER, User
from nameserver.audit import note
from nameserver.db import Cx, Database
from nameserver.files.items import iso

_COLUMNS: Final = "id, author, email, role, quota, created_ns, expires_ns, used_ns, used_by"
_YEAR_S: Final = 366 * 86_400
_GOOD: Final = "id = ? AND used_ns = 0 AND expires_ns > ?"


class Invitation(NamedTuple):
    """A row of `invitation`; who holds the secret may become a user with this role and quota."""

    id: str
    author: str
    email: str
    role: str
    quota: int
    created_ns: int
    expires_ns: int
    used_ns: int
    used_by: str

    def to_json(self) -> dict[str, object]:
        """Return what the JSON routes tell."""
        return {
            "id": self.id,
            "invited_by": self.author,
            "email": self.email or None,
            "role": self.role,
            "quota": self.quota,
            "created_at": iso(self.created_ns),
            "expires_at": iso(self.expires_ns),
            "used_at": iso(self.used_ns) if self.used_ns else None,
            "used_by": self.used_by or None,
        }


class Invitations:
    """All invitations. Thread-safe; keeps nothing in memory."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def make(
        self, author: str, *, email: str, role: str, quota: int, ttl_s: float
    ) -> tuple[Invitation, str]:
        """Return a new invitation and its secret, which nobody can be told again."""
        if role not in (ADMIN, USER):
            raise EverfoldError(Kind.INVALID, "a role is user or admin", role[:80])
        if not 0 < ttl_s <= _YEAR_S:
            raise EverfoldError(Kind.INVALID, "an invitation lasts a year at most")
        token = secrets.token_urlsafe(18)
        now = self._clock.time_ns()
        expires = now + int(ttl_s * 1e9)
        made = Invitation(_id(token), author, email.lower()[:255], role, quota, now, expires, 0, "")
        with self._db.write() as cx:
            cx.run(f"INSERT INTO invitation ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *made)
            note(cx, now, author, "invitation.make", made.id, email)
        return made, token

    def all(self) -> list[Invitation]:
        """Return all invitations, the newest first."""
        with self._db.read() as cx:
            rows = cx.all(f"SELECT {_COLUMNS} FROM invitation ORDER BY created_ns DESC, id")
        return [Invitation(*row) for row in rows]

    def withdraw(self, invitation: str, author: str) -> None:
        """Forget an invitation, used or not. NOT_FOUND."""
        with self._db.write() as cx:
            if not cx.run("DELETE FROM invitation WHERE id = ?", invitation):
                raise EverfoldError(Kind.NOT_FOUND, "no such invitation", invitation[:80])
            note(cx, self._clock.time_ns(), author, "invitation.withdraw", invitation)

    def good(self, token: str, email: str) -> Invitation:
        """Return the invitation of this secret; FORBIDDEN when it lets nobody in (any more)."""
        with self._db.read() as cx:
            row = cx.one(
                f"SELECT {_COLUMNS} FROM invitation WHERE {_GOOD}",
                _id(token),
                self._clock.time_ns(),
            )
        if row is None or (row[2] and row[2] != email.lower()):
            raise _refused()
        return Invitation(*row)

    def use(self, cx: Cx, invitation: Invitation, user: User) -> None:
        """Use it up, in the transaction that makes the user; FORBIDDEN when another has."""
        now = self._clock.time_ns()
        if not cx.run(
            f"UPDATE invitation SET used_ns = ?, used_by = ? WHERE {_GOOD}",
            now,
            user.name,
            invitation.id,
            now,
        ):
            raise _refused()


def _id(token: str) -> str:
    """Return what is stored of a secret: 144 random bits need no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _refused() -> EverfoldError:
    return EverfoldError(Kind.FORBIDDEN, "the invitation is not good, or was used")
