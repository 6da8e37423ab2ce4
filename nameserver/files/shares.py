"""Share links: whoever has one reaches one file or folder of somebody's, and nothing else.

A token is a random key and a signature over it, so none can be guessed, and the database alone
gives none away. Forged, unknown and revoked ones sound the same (NOT_FOUND); one that has run out
is STALE. A link follows its file as ids do (`browse`), and dies with its maker's account, and with
the maker's right to write there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId, Ino, SpaceId, UserId
from nameserver import passwords
from nameserver.audit import note
from nameserver.db import Cx, Row
from nameserver.files.items import iso
from nameserver.files.paths import FileId
from nameserver.gate import Identity
from nameserver.spaces import WRITE

if TYPE_CHECKING:
    from nameserver.files.service import FileService, Visitor
    from nameserver.service import Service

Json = dict[str, Any]
PERMISSIONS: Final = ("read", "write", "admin")  # each may what those before it may
DAYS_MAX: Final = 36_500
LABEL: Final = "share link"  # the device of what comes through one
_KEY: Final = 16  # characters
_MAC: Final = 24
_FAILED: Final = "share.failed"
_REMEMBERED: Final = 1024
_COLUMNS: Final = (
    "key, space_id, ino, user_id, permission, password_hash, created_ns, expires_ns, revoked_ns,"
    " downloads"
)


class Share(NamedTuple):
    """A row of `share`."""

    key: str
    space: SpaceId
    ino: Ino
    user: UserId
    permission: str
    password_hash: str
    created_ns: int
    expires_ns: int
    revoked_ns: int
    downloads: int

    @property
    def file(self) -> FileId:
        """Return what is shared."""
        return FileId(self.space, self.ino)

    def may(self, what: str) -> bool:
        """Tell whether the link is good for what this permission allows."""
        return PERMISSIONS.index(self.permission) >= PERMISSIONS.index(what)


class Shares:
    """Makes, lists, revokes and opens links. Thread-safe."""

    def __init__(self, service: Service, files: FileService) -> None:
        self._db, self._clock, self._policy = service.db, service.clock, service.policy
        self._files = files
        self._secret = service.secret_key.encode()
        self._opened: dict[bytes, None] = {}  # passwords found right; bcrypt costs 50-250 ms

    # ------------------------------------------------------------ for the owner

    def make(
        self, me: Visitor, file: str, permission: str, expires_s: float | None, password: str
    ) -> Json:
        """Share a file or folder; INVALID for other permissions, or a short password."""
        if permission not in PERMISSIONS:
            raise EverfoldError(Kind.INVALID, "permission is read, write or admin", permission[:80])
        secret = ""
        if password:
            passwords.check_choice(password)
            secret = passwords.hashed(password, self._policy.bcrypt_rounds)
        item = self._files.info(me, file)
        self._files.into(me, item.space, WRITE)  # who may only read gives nothing away
        now = self._clock.time_ns()
        share = Share(
            secrets.token_urlsafe(_KEY * 3 // 4), item.space, item.ino, me.who.user, permission,
            secret, now, now + int(expires_s * 1e9) if expires_s is not None else 0, 0, 0,
        )  # fmt: skip
        with self._db.write() as cx:
            marks = ", ".join("?" * len(share))
            cx.run(f"INSERT INTO share ({_COLUMNS}) VALUES ({marks})", *share)
            note(cx, now, me.who.name, "share.make", str(item.id), permission)
        return self._told(share)

    def of(self, me: Visitor, file: str = "") -> list[Json]:
        """Return one's links that are good, of one file or all, the newest first."""
        sql = (
            f"SELECT {_COLUMNS} FROM share WHERE user_id = ? AND revoked_ns = 0"
            " AND (expires_ns = 0 OR expires_ns > ?)"
        )
        values: list[object] = [me.who.user, self._clock.time_ns()]
        if file:
            item = self._files.info(me, file)
            sql += " AND space_id = ? AND ino = ?"
            values += [item.space, item.ino]
        with self._db.read() as cx:
            rows = cx.all(sql + " ORDER BY created_ns DESC, key", *values)
        return [self._told(_share(row)) for row in rows]

    def revoke(self, me: Visitor, key: str) -> None:
        """Make a link useless, at once and for good. NOT_FOUND when one has no such link."""
        with self._db.write() as cx:
            self._revoke(cx, key, me.who.user, me.who.name)

    def _revoke(self, cx: Cx, key: str, user: UserId, author: str) -> None:
        now = self._clock.time_ns()
        touched = cx.run(
            "UPDATE share SET revoked_ns = ? WHERE key = ? AND user_id = ? AND revoked_ns = 0",
            now, key, user,
        )  # fmt: skip
        if not touched:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such link", key[:80])
        note(cx, now, author, "share.revoke", key)

    def _told(self, share: Share) -> Json:
        token = self._token(share.key)
        return {
            "id": share.key,
            "share_token": token,
            "share_url": f"/api/files/shared/{token}",
            "file_id": str(share.file),
            "permission": share.permission,
            "created_at": iso(share.created_ns),
            "expires_at": iso(share.expires_ns) if share.expires_ns else None,
            "has_password": bool(share.password_hash),
            "downloads": share.downloads,
        }

    # ------------------------------------------------------------ for whoever has the link

    def open(
        self, token: str, password: str = "", address: str = "", what: str = "read"
    ) -> tuple[Share, Visitor]:
        """Return a link and its maker, in whose name it acts.

        NOT_FOUND, STALE; UNAUTHENTICATED without its password, RATE_LIMITED after many wrong
        ones; FORBIDDEN when it does not allow `what`.
        """
        key = token[:_KEY]
        if not hmac.compare_digest(token.encode(), self._token(key).encode()):
            raise _unknown()
        with self._db.read() as cx:
            row = cx.one(f"SELECT {_COLUMNS} FROM share WHERE key = ?", key)
            owner = row and cx.one(
                "SELECT name, role FROM account WHERE id = ? AND is_disabled = 0", row[3]
            )
        if row is None or not owner or row[8]:
            raise _unknown()
        share = _share(row)
        if share.expires_ns and share.expires_ns <= self._clock.time_ns():
            raise EverfoldError(Kind.STALE, "the link has expired")
        if share.password_hash:
            self._check_password(share, password, address)
        if not share.may(what):
            raise EverfoldError(Kind.FORBIDDEN, f"the link does not allow to {what}")
        who = Identity(share.user, owner[0], owner[1], DeviceId(""), LABEL)
        try:
            return share, self._files.into(self._files.visitor(who), share.space, WRITE)
        except EverfoldError as err:
            if err.kind not in (Kind.NOT_FOUND, Kind.READ_ONLY):
                raise
            raise _unknown() from err

    def ticket(self, share: Share) -> str:
        """Return what stands for a link's password from now on, until the password changes."""
        mac = self._mac(b"ticket\0" + share.key.encode() + share.password_hash.encode())
        return base64.urlsafe_b64encode(mac).decode()

    def count(self, share: Share) -> None:
        """Count a download."""
        with self._db.write() as cx:
            cx.run("UPDATE share SET downloads = downloads + 1 WHERE key = ?", share.key)

    def end(self, share: Share, me: Visitor) -> None:
        """Revoke a link by itself."""
        with self._db.write() as cx:
            self._revoke(cx, share.key, share.user, me.author.device)

    def _check_password(self, share: Share, password: str, address: str) -> None:
        given = password.encode("utf-8", "surrogatepass")
        if hmac.compare_digest(given, self.ticket(share).encode()):
            return
        mark = self._mac(share.password_hash.encode() + b"\0" + given)
        if mark in self._opened:
            return
        since = self._clock.time_ns() - int(self._policy.login_window_s * 1e9)
        with self._db.read() as cx:
            failed = cx.one(
                "SELECT count(*) FROM audit WHERE at_ns > ? AND action = ? AND author = ?",
                since, _FAILED, share.key,
            )  # fmt: skip
        if failed and failed[0] >= self._policy.login_failures:
            raise EverfoldError(Kind.RATE_LIMITED, "too many wrong passwords; try again later")
        if not password:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the link needs its password")
        if len(password) > passwords.PASSWORD_MAX or not passwords.matches(
            password, share.password_hash
        ):
            with self._db.write() as cx:
                note(cx, self._clock.time_ns(), share.key, _FAILED, str(share.file), address)
            raise EverfoldError(Kind.UNAUTHENTICATED, "wrong password")
        if len(self._opened) >= _REMEMBERED:
            self._opened.clear()
        self._opened[mark] = None

    # ------------------------------------------------------------ tokens

    def _token(self, key: str) -> str:
        mac = base64.urlsafe_b64encode(self._mac(b"share\0" + key.encode("utf-8", "replace")))
        return key + mac.decode()[:_MAC]

    def _mac(self, data: bytes) -> bytes:
        return hmac.new(self._secret, data, hashlib.sha256).digest()


def _share(row: Row) -> Share:
    return Share(*row)


def _unknown() -> EverfoldError:
    return EverfoldError(Kind.NOT_FOUND, "there is no such link")
