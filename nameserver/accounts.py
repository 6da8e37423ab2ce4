"""Who may come in: users and their logins.

A login that fails tells nothing: an unknown name, a wrong password and a disabled account
sound the same and take as long. Every user has a home space of the same name from the first
moment. Changing a password ends all tokens of the user (`token_gen`). There is always an admin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import UserId
from everfold.services import Clock
from nameserver import passwords
from nameserver.audit import note
from nameserver.db import Cx, Database, Row
from nameserver.guessing import LOGIN_FAILED, Guessing
from nameserver.policy import Policy

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")
ADMIN, USER = "admin", "user"

MakeSpace = Callable[[Cx, int, str, int], object]
"""(transaction, owner, name, now_ns): make a space with an empty root."""


class User(NamedTuple):
    """A row of `account`, without its secrets."""

    id: UserId
    name: str
    email: str | None
    role: str
    quota: int
    created_ns: int
    is_disabled: bool
    token_gen: int
    used: int = 0  # bytes of the files in all spaces of the user
    history: int = 0  # bytes that only history needs; the quota does not count them

    def to_json(self) -> dict[str, object]:
        """Return what the JSON routes tell."""
        return {
            "id": self.id,
            "username": self.name,
            "email": self.email,
            "role": self.role,
            "quota": self.quota,
            "used_bytes": self.used,
            "history_bytes": self.history,
            "created_at": self.created_ns / 1e9,
            "disabled": self.is_disabled,
        }


_COLUMNS = "id, name, email, role, quota, created_ns, is_disabled, token_gen"
_SUM = "(SELECT CAST(COALESCE(SUM({}), 0) AS BIGINT) FROM space s WHERE s.owner_id = account.id)"
_USAGE = f"{_SUM.format('s.live_bytes')}, {_SUM.format('s.history_bytes')}"
_ADMINS = "SELECT name FROM account WHERE role = 'admin' AND is_disabled = 0"


def _user(row: Row) -> User:
    id_, name, email, role, quota, created_ns, is_disabled, token_gen = row[:8]
    return User(id_, name, email, role, quota, created_ns, bool(is_disabled), token_gen)


class Accounts:
    """The users. Thread-safe; keeps nothing in memory."""

    def __init__(self, db: Database, clock: Clock, policy: Policy, make_space: MakeSpace) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._make_space = make_space
        self._guessing = Guessing(db, clock, policy)
        self._nobody = passwords.hashed("nobody has this password", policy.bcrypt_rounds)

    def create(
        self,
        name: str,
        password: str,
        email: str | None = None,
        role: str = USER,
        *,
        quota: int | None = None,
        author: str = "",
        also: Callable[[Cx, User], None] = lambda cx, user: None,
    ) -> User:
        """Make a user with an empty home space. EXISTS when name or e-mail are taken.

        `also` is done in the same transaction; what it raises undoes all.
        """
        email = _plain(email)
        _check_name(name)
        _check_email(email)
        passwords.check_choice(password)
        if role not in (ADMIN, USER):
            raise EverfoldError(Kind.INVALID, "a role is user or admin", role[:80])
        secret = passwords.hashed(password, self._policy.bcrypt_rounds)
        now = self._clock.time_ns()
        with self._db.write() as cx:
            # one statement: two processes that make the same user see each other here
            made = cx.one(
                "INSERT INTO account (name, email, password_hash, role, quota, created_ns,"
                " is_disabled, token_gen) VALUES (?, ?, ?, ?, ?, ?, 0, 0)"
                f" ON CONFLICT DO NOTHING RETURNING {_COLUMNS}",
                name,
                email,
                secret,
                role,
                self._policy.default_quota if quota is None else quota,
                now,
            )
            if made is None:
                raise EverfoldError(Kind.EXISTS, "the name or e-mail is taken", name)
            user = _user(made)
            self._make_space(cx, user.id, name, now)
            also(cx, user)
            note(cx, now, author or name, "user.create", name, role)
        return user

    def login(self, name: str, password: str, address: str = "") -> User:
        """Return the user with this name (or e-mail) and password.

        UNAUTHENTICATED for anything that is wrong; RATE_LIMITED after too many of these.
        """
        self._guessing.check(name, address)
        column = "lower(email)" if "@" in name else "name"
        with self._db.read() as cx:
            row = cx.one(
                f"SELECT {_COLUMNS}, password_hash FROM account WHERE {column} = ?",
                (name.lower() if "@" in name else name)[:255],
            )
        is_right = passwords.matches(
            password[: passwords.PASSWORD_MAX], row[8] if row else self._nobody
        )
        if row is None or row[6] or not is_right or len(password) > passwords.PASSWORD_MAX:
            with self._db.write() as cx:
                note(cx, self._clock.time_ns(), name, LOGIN_FAILED, name, address)
            raise EverfoldError(Kind.UNAUTHENTICATED, "wrong name or password")
        return _user(row)

    # ------------------------------------------------------------ looking

    def get(self, name: str) -> User:
        """Return a user by name; NOT_FOUND."""
        with self._db.read() as cx:
            row = cx.one(f"SELECT {_COLUMNS}, {_USAGE} FROM account WHERE name = ?", name)
        if row is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such user", name[:80])
        return _user(row)._replace(used=row[8], history=row[9])

    def all(self) -> list[User]:
        """Return all users in order of name."""
        with self._db.read() as cx:
            rows = cx.all(f"SELECT {_COLUMNS}, {_USAGE} FROM account ORDER BY name")
        return [_user(row)._replace(used=row[8], history=row[9]) for row in rows]

    # ------------------------------------------------------------ changing

    def set_password(self, name: str, password: str, author: str) -> None:
        """Give a user another password; all tokens of the user end."""
        passwords.check_choice(password)
        secret = passwords.hashed(password, self._policy.bcrypt_rounds)
        with self._db.write() as cx:
            touched = cx.run(
                "UPDATE account SET password_hash = ?, token_gen = token_gen + 1 WHERE name = ?",
                secret,
                name,
            )
            if not touched:
                raise EverfoldError(Kind.NOT_FOUND, "there is no such user", name[:80])
            note(cx, self._clock.time_ns(), author, "user.passwd", name)

    def set_email(self, user: User, email: str | None) -> User:
        """Change a user's e-mail address ("" or None: none). EXISTS when another has it."""
        email = _plain(email)
        _check_email(email)
        with self._db.write() as cx:
            other = cx.one("SELECT 1 FROM account WHERE email = ? AND id <> ?", email, user.id)
            if other:
                raise EverfoldError(Kind.EXISTS, "the e-mail is taken", str(email))
            cx.run("UPDATE account SET email = ? WHERE id = ?", email, user.id)
        return user._replace(email=email)

    def end_tokens(self, user: User) -> None:
        """End all tokens of a user, everywhere."""
        with self._db.write() as cx:
            cx.run("UPDATE account SET token_gen = token_gen + 1 WHERE id = ?", user.id)
            note(cx, self._clock.time_ns(), user.name, "user.revoke", user.name)

    def disable(self, name: str, is_disabled: bool, author: str) -> None:
        """Keep a user out (all tokens end), or let one in again. The last admin stays."""
        self.change(name, author, is_disabled=is_disabled)

    def change(
        self,
        name: str,
        author: str,
        *,
        quota: int | None = None,
        role: str | None = None,
        is_disabled: bool | None = None,
    ) -> None:
        """Change what of a user an admin decides; None leaves it. The last admin stays one.

        Who is disabled loses all tokens, for good. NOT_FOUND, INVALID, NOT_PERMITTED.
        """
        if role not in (None, ADMIN, USER):
            raise EverfoldError(Kind.INVALID, "a role is user or admin", str(role)[:80])
        with self._db.write() as cx:
            lock = " FOR UPDATE" if cx.is_postgres else ""
            admins = {row[0] for row in cx.all(_ADMINS + lock)}
            row = cx.one("SELECT is_disabled FROM account WHERE name = ?", name)
            if row is None:
                raise EverfoldError(Kind.NOT_FOUND, "there is no such user", name[:80])
            if (role == USER or is_disabled) and admins == {name}:
                raise EverfoldError(Kind.NOT_PERMITTED, "this is the last admin", name)
            cx.run(
                "UPDATE account SET quota = coalesce(?, quota), role = coalesce(?, role),"
                " is_disabled = coalesce(?, is_disabled), token_gen = token_gen + ?"
                " WHERE name = ?",
                quota,
                role,
                None if is_disabled is None else int(is_disabled),
                int(is_disabled is not None and bool(row[0]) != is_disabled),
                name,
            )
            now = self._clock.time_ns()
            if is_disabled is not None and bool(row[0]) != is_disabled:
                note(cx, now, author, "user.disable" if is_disabled else "user.enable", name)
            if quota is not None:
                note(cx, now, author, "user.quota", name, str(quota))
            if role is not None:
                note(cx, now, author, "user.role", name, role)

    def has_any(self) -> bool:
        """Tell whether there is a user at all: without one this is a first start."""
        with self._db.read() as cx:
            return cx.one("SELECT 1 FROM account LIMIT 1") is not None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise EverfoldError(
            Kind.INVALID, "a user name is 1 to 64 letters, digits, dots, dashes", name[:80]
        )


def _plain(email: str | None) -> str | None:
    """Return an address as it is kept and looked for: in small letters, None for none."""
    return email.lower() if email else None


def _check_email(email: str | None) -> None:
    if email is not None and not _EMAIL.fullmatch(email):
        raise EverfoldError(Kind.INVALID, "not an e-mail address", email[:80])
