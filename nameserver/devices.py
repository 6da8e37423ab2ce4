"""The machines and programs that a user lets in, each revocable on its own."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId, UserId
from everfold.services import Clock
from nameserver.audit import note
from nameserver.db import Cx, Database, Row

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_COLUMNS = "id, user_id, name, kind, created_ns, seen_ns, is_revoked"


class Device(NamedTuple):
    """A row of `device`."""

    id: DeviceId
    user: UserId
    name: str
    kind: str
    created_ns: int
    seen_ns: int
    is_revoked: bool

    def to_json(self) -> dict[str, object]:
        """Return what the JSON routes tell."""
        return {
            "id": self.id,
            "device_id": self.id,
            "name": self.name,
            "type": self.kind,
            "created_at": self.created_ns / 1e9,
            "last_seen": self.seen_ns / 1e9,
            "revoked": self.is_revoked,
        }


class Devices:
    """All devices. Thread-safe; keeps nothing in memory."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def register(self, user: UserId, device: str, name: str, kind: str) -> Device:
        """Let a device in. EXISTS when the id is another user's, or was revoked."""
        found = self._take(user, device, name, kind, is_lenient=False)
        if found is None:
            raise EverfoldError(Kind.EXISTS, "this device id cannot be used", device[:80])
        return found

    def at_login(self, user: UserId, device: str, name: str, kind: str) -> Device:
        """Return the device that logs in (audited); one whose id cannot be used gets a fresh one.

        A revoked id never comes back: tokens that were stolen with it would live again.
        """
        found = self._take(user, device, name, kind, is_lenient=True)
        found = found or self.register(user, "", name, kind)
        with self._db.write() as cx:
            row = cx.one("SELECT name FROM account WHERE id = ?", user)
            note(cx, self._clock.time_ns(), row[0] if row else "", "login", found.id, found.name)
        return found

    def _take(
        self, user: UserId, device: str, name: str, kind: str, is_lenient: bool
    ) -> Device | None:
        if device and not _ID.fullmatch(device):
            if is_lenient:
                return None
            raise EverfoldError(Kind.INVALID, "not a device id", device[:80])
        name = " ".join(name.split())[:64] or "device"
        now = self._clock.time_ns()
        with self._db.write() as cx:
            row = cx.one(
                "INSERT INTO device (id, user_id, name, kind, created_ns, seen_ns, is_revoked)"
                " VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (id) DO UPDATE SET"
                " name = excluded.name, seen_ns = excluded.seen_ns"
                " WHERE device.user_id = excluded.user_id AND device.is_revoked = 0"
                f" RETURNING {_COLUMNS}",
                device or secrets.token_hex(8),
                user,
                name,
                kind[:32],
                now,
                now,
            )
        return _device(row) if row else None

    def of(self, user: UserId) -> list[Device]:
        """Return a user's devices that are let in, the newest first."""
        with self._db.read() as cx:
            rows = cx.all(
                f"SELECT {_COLUMNS} FROM device WHERE user_id = ? AND is_revoked = 0"
                " ORDER BY created_ns DESC, id",
                user,
            )
        return [_device(row) for row in rows]

    def seen(self, device: DeviceId) -> None:
        """Note that a device has been heard of."""
        with self._db.write() as cx:
            cx.run("UPDATE device SET seen_ns = ? WHERE id = ?", self._clock.time_ns(), device)

    def find(self, cx: Cx, device: str) -> Device | None:
        """Return a device by id."""
        row = cx.one(f"SELECT {_COLUMNS} FROM device WHERE id = ?", device)
        return _device(row) if row else None

    def revoke(self, user: UserId, device: str, author: str) -> None:
        """Shut a device out, for good. NOT_FOUND when the user has no such device."""
        with self._db.write() as cx:
            touched = cx.run(
                "UPDATE device SET is_revoked = 1 WHERE id = ? AND user_id = ? AND is_revoked = 0",
                device,
                user,
            )
            if not touched:
                raise EverfoldError(Kind.NOT_FOUND, "there is no such device", device[:80])
            note(cx, self._clock.time_ns(), author, "device.revoke", device)


def _device(row: Row) -> Device:
    id_, user, name, kind, created_ns, seen_ns, is_revoked = row
    return Device(id_, user, name, kind, created_ns, seen_ns, bool(is_revoked))
