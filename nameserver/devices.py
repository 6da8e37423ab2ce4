"""The machines and programs that a user lets in, each revocable on its own."""

from __future__ import annotations

import re
import secrets
from typing import Any, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId, MountId, UserId
from everfold.services import Clock
from nameserver.audit import note
from nameserver.db import Cx, Database, Row

MOUNT = "mount"  # the kind of device that a mount is
_MOUNT_NAME_MAX = 255
Json = dict[str, Any]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_COLUMNS = "id, user_id, name, kind, created_ns, seen_ns, is_revoked, parent"
_OF_MOUNT = (
    "SELECT d.id, d.user_id, d.name, d.kind, d.created_ns, d.seen_ns, d.is_revoked, d.parent"
    " FROM mount m JOIN device d ON d.id = m.device_id"
    " WHERE d.user_id = ? AND m.id = ? AND d.kind = 'mount'"
    " ORDER BY d.is_revoked, d.created_ns DESC LIMIT 1"
)
_PLACES = (
    "SELECT p.device_id, p.space_id, p.seq, s.seq FROM sync_position p"
    " JOIN device d ON d.id = p.device_id JOIN space s ON s.id = p.space_id"
    " WHERE d.user_id = ? AND s.owner_id = d.user_id"
)
_MOUNTS = (
    "SELECT m.device_id, m.id, m.space_id, m.position, s.seq, m.seen_ns FROM mount m"
    " JOIN device d ON d.id = m.device_id JOIN space s ON s.id = m.space_id"
    " WHERE d.user_id = ? AND d.kind = 'mount' ORDER BY m.space_id"
)


class Device(NamedTuple):
    """A row of `device`."""

    id: DeviceId
    user: UserId
    name: str
    kind: str
    created_ns: int
    seen_ns: int
    is_revoked: bool
    parent: str = ""  # of a mount: the device whose login it was mounted with

    def to_json(self) -> Json:
        """Return what the JSON routes tell."""
        return {
            "id": self.id,
            "device_id": self.id,
            "name": self.name,
            "type": self.kind,
            "created_at": self.created_ns / 1e9,
            "last_seen": self.seen_ns / 1e9,
            "revoked": self.is_revoked,
            "parent_id": self.parent or None,
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
        self._note(found, "device.register")
        return found

    def _note(self, device: Device, action: str) -> None:
        with self._db.write() as cx:
            row = cx.one("SELECT name FROM account WHERE id = ?", device.user)
            author = row[0] if row else ""
            note(cx, self._clock.time_ns(), author, action, device.id, device.name)

    def at_login(self, user: UserId, device: str, name: str, kind: str) -> Device:
        """Return the device that logs in (audited); one whose id cannot be used gets a fresh one.

        A revoked id never comes back: tokens that were stolen with it would live again.
        """
        found = self._take(user, device, name, kind, is_lenient=True)
        found = found or self.register(user, "", name, kind)
        self._note(found, "login")
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

    def for_mount(
        self, cx: Cx, user: UserId, mount: MountId, label: str, who: str, issued_s: int
    ) -> Device:
        """Return the device that a mount is, made when it is new, in its session's transaction.

        `who` is the device whose token it shows, issued at `issued_s`: its own, or that of the
        login it was mounted with. A mount that was revoked comes back with a later login only,
        as another device: its tokens stay dead. UNAUTHENTICATED otherwise.
        """
        name = " ".join(label.split())[:_MOUNT_NAME_MAX] or "mount"
        now = self._clock.time_ns()
        row = cx.one(_OF_MOUNT, user, mount)
        known = _device(row) if row else None
        if known is not None and not known.is_revoked:
            parent = known.parent if who == known.id else who
            cx.run(
                "UPDATE device SET name = ?, parent = ?, seen_ns = ? WHERE id = ?",
                name,
                parent,
                now,
                known.id,
            )
            return known._replace(name=name, parent=parent, seen_ns=now)
        if known is not None and issued_s * 1_000_000_000 <= known.seen_ns:
            raise EverfoldError(
                Kind.UNAUTHENTICATED, "this mount has been revoked; log in again", mount
            )
        made = Device(DeviceId(secrets.token_hex(8)), user, name, MOUNT, now, now, False, who)
        cx.run(f"INSERT INTO device ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, 0, ?)",
               made.id, user, name, MOUNT, now, now, who)  # fmt: skip
        return made

    def with_places(self, user: UserId) -> list[Json]:
        """Return what the routes tell of a user's devices, and how far each has followed.

        `mount_id`, and `active`: it is in touch; of a mount only. `position` is a commit of
        `space_id` (as an event's id, for programs), `behind` how many came after it.
        """
        told = {device.id: device.to_json() for device in self.of(user)}
        with self._db.read() as cx:
            places = cx.all(_PLACES, user)
            mounts = cx.all(_MOUNTS, user)
        for device, space, position, seq in places:
            if device in told:
                told[device].update(position=position, behind=seq - position, space_id=space)
        for device, mount, space, position, seq, seen_ns in mounts:
            if device in told:
                row = told[device]
                row.update(mount_id=mount, position=position, behind=max(0, seq - position))
                row.update(space_id=space, active=seen_ns > 0)
                row["last_seen"] = max(row["last_seen"], seen_ns / 1e9)
        return list(told.values())

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

    def get(self, user: UserId, device: str) -> Device:
        """Return one of a user's devices that are let in; NOT_FOUND."""
        with self._db.read() as cx:
            found = self.find(cx, device)
        if found is None or found.user != user or found.is_revoked:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such device", device[:80])
        return found

    def revoke(self, user: UserId, device: str, author: str) -> None:
        """Shut a device out, for good, and what was mounted with its login.

        NOT_FOUND when the user has no such device.
        """
        now = self._clock.time_ns()
        with self._db.write() as cx:
            rows = cx.all(
                "UPDATE device SET is_revoked = 1, seen_ns = ? WHERE (id = ? OR parent = ?)"
                " AND user_id = ? AND is_revoked = 0 RETURNING id, name",
                now,
                device,
                device,
                user,
            )
            names: dict[str, str] = dict(rows)
            if device not in names:
                raise EverfoldError(Kind.NOT_FOUND, "there is no such device", device[:80])
            note(cx, now, author, "device.revoke", device, names[device])


def _device(row: Row) -> Device:
    id_, user, name, kind, created_ns, seen_ns, is_revoked, parent = row
    return Device(id_, user, name, kind, created_ns, seen_ns, bool(is_revoked), parent)
