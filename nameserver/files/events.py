"""What happened in a space, as events for people's programs: read from the commit log.

An event's id is ``SEQ-PART``: the commit, and the event's number within it. Ids rise; whoever
asks for what came after one gets every later event once, in order, from any nameserver process,
however long it was away. A commit's changes of one file are one event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId, Ino, Seq, SpaceId
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.files.browse import View
from nameserver.files.items import iso
from nameserver.files.paths import FileId, shown, text_of, type_of

Json = dict[str, Any]
LIMIT_MAX: Final = 1000
WAIT_MAX_S: Final = 25.0
_COMMITS: Final = 200  # read at once
_LOOK_S: Final = 1.0
_ID: Final = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,9}))?")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_IS_DIR: Final = 0o040000
_CHANGES: Final = msgspec.msgpack.Decoder(list[wire.Change])

_LOG: Final = (
    "SELECT seq, at_ns, author, device, mount, changes FROM commit_log"
    " WHERE space_id = ? AND seq >= ? ORDER BY seq LIMIT ?"
)
_UP_TO: Final = "SELECT MAX(seq) FROM commit_log WHERE space_id = ? AND at_ns <= ?"
_LEFT: Final = (
    "SELECT ino FROM entry WHERE space_id = ? AND parent = ? AND name = ? AND died = ? LIMIT 1"
)
_CAME: Final = (
    "SELECT parent, name FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ?"
    " AND born = ? LIMIT 1"
)
_WENT: Final = (
    "SELECT parent, name FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ?"
    " AND died = ? LIMIT 1"
)
_STOOD: Final = (
    "SELECT parent, name FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ?"
    " AND born <= ? ORDER BY born DESC LIMIT 1"
)
_INODE: Final = (
    "SELECT mode, size, version FROM inode WHERE space_id = ? AND ino = ? AND born <= ?"
    " ORDER BY born DESC LIMIT 1"
)
_FOLLOWED: Final = "SELECT seq, part FROM sync_position WHERE device_id = ? AND space_id = ?"
_FOLLOW: Final = (
    "INSERT INTO sync_position (device_id, space_id, seq, part, at_ns) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (device_id, space_id) DO UPDATE SET seq = excluded.seq, part = excluded.part,"
    " at_ns = excluded.at_ns WHERE sync_position.seq < excluded.seq"
    " OR (sync_position.seq = excluded.seq AND sync_position.part < excluded.part)"
)


class Place(NamedTuple):
    """A place in the order of events: after number `part` of commit `seq`."""

    seq: int
    part: int

    def __str__(self) -> str:
        return f"{self.seq}-{self.part}"


START: Final = Place(0, 0)


def parse_id(text: str) -> Place | None:
    """Read an event's id, or a commit number (all of that commit); None when it is neither."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    return Place(int(found[1]), int(found[2]) if found[2] else 1 << 31)


class Events:
    """The events of all spaces. Thread-safe; keeps nothing in memory."""

    def __init__(self, db: Database, clock: Clock, bell: Bell) -> None:
        self._db, self._clock, self._bell = db, clock, bell

    # ------------------------------------------------------------ places

    def place(self, space: SpaceId, since: str) -> Place:
        """Return the place that an id, a commit number or an ISO time names; INVALID."""
        place = parse_id(since)
        if place is not None:
            return place
        try:
            at = datetime.fromisoformat(since.replace("Z", "+00:00"))
            at = at if at.tzinfo else at.replace(tzinfo=timezone.utc)
            # what is told is cut to microseconds: the whole of that one is meant
            at_ns = (at - _EPOCH) // timedelta(microseconds=1) * 1000 + 999
        except (ValueError, OverflowError) as err:
            raise EverfoldError(
                Kind.INVALID, "'since' is an event's id, a commit number or an ISO time"
            ) from err
        with self._db.read() as cx:
            row = cx.one(_UP_TO, space, max(0, min(at_ns, (1 << 63) - 1)))
        return Place(row[0], 1 << 31) if row and row[0] else START

    def followed(self, space: SpaceId, device: DeviceId) -> Place:
        """Return up to where a device has said that it followed."""
        with self._db.read() as cx:
            row = cx.one(_FOLLOWED, device, space)
        return Place(*row) if row else START

    def follow(self, space: SpaceId, device: DeviceId, event: str) -> Place:
        """Note that a device has dealt with all events up to this one. It never goes back.

        NOT_FOUND for what is no event's id, or one that is not yet.
        """
        place = parse_id(event)
        with self._db.write() as cx:
            row = cx.one("SELECT seq FROM space WHERE id = ?", space)
            if place is None or "-" not in event or row is None or not 1 <= place.seq <= row[0]:
                raise EverfoldError(Kind.NOT_FOUND, "there is no such event", event[:40])
            cx.run(_FOLLOW, device, space, place.seq, place.part, self._clock.time_ns())
            found = cx.one(_FOLLOWED, device, space)
        return Place(*found) if found else place

    def pending(self, space: SpaceId, place: Place) -> int:
        """Return how many commits there are after a place."""
        with self._db.read() as cx:
            row = cx.one(
                "SELECT count(*) FROM commit_log WHERE space_id = ? AND seq > ?", space, place.seq
            )
        return int(row[0]) if row else 0

    # ------------------------------------------------------------ events

    def after(
        self, space: SpaceId, place: Place, limit: int, wait_s: float = 0.0
    ) -> tuple[list[Json], Place]:
        """Return up to `limit` events after a place, and where to go on.

        When there is none, waits for one for up to `wait_s`.
        """
        ends = self._clock.monotonic() + min(wait_s, WAIT_MAX_S)
        while True:
            ticket = self._bell.ticket(space)
            found, place = self._read(space, place, limit)
            left = ends - self._clock.monotonic()
            if found or left <= 0 or self._bell.is_stopped:
                return found, place
            self._bell.wait(space, ticket, min(left, _LOOK_S))

    def _read(self, space: SpaceId, place: Place, limit: int) -> tuple[list[Json], Place]:
        told: list[Json] = []
        with self._db.read() as cx:
            while True:
                rows = cx.all(_LOG, space, place.seq, _COMMITS)
                for seq, at_ns, author, device, mount, changes in rows:
                    said = _Commit(cx, space, seq).events(_CHANGES.decode(changes))
                    for part, event in enumerate(said, 1):
                        if (seq, part) <= place:
                            continue
                        if len(told) >= limit:
                            return told, place
                        place = Place(seq, part)
                        told.append(
                            {
                                "id": str(place),
                                "seq": seq,
                                "timestamp": iso(at_ns),
                                "user": author,
                                "device": device,
                                "mount": mount,
                                **event,
                            }
                        )
                    place = max(place, Place(seq, 0))
                if len(rows) < _COMMITS:
                    return told, place
                place = Place(rows[-1][0] + 1, 0) if place.seq < rows[-1][0] + 1 else place


class _Commit:
    """One commit's changes, and what they mean."""

    def __init__(self, cx: Cx, space: SpaceId, seq: int) -> None:
        self._cx, self._space, self._seq = cx, space, seq
        self._view = View(cx, space, Seq(seq))

    def events(self, changes: list[wire.Change]) -> Iterator[Json]:
        """Yield one event for each thing that changed, in order of its first change."""
        told: dict[int, str] = {}
        for change in changes:
            kind, ino = self._meaning(change)
            if kind and (ino not in told or _WEIGHT[kind] > _WEIGHT[told[ino]]):
                told[ino] = kind
        for ino, kind in told.items():
            yield self._event(kind, Ino(ino))

    def _meaning(self, change: wire.Change) -> tuple[str, int]:
        if change.what == "data":
            return "file_uploaded", change.ino
        if change.what == "attr":
            return "file_changed", change.ino
        if change.what != "entry":
            return "", 0
        if change.ino:
            went = self._cx.one(_WENT, self._space, change.ino, self._seq)
            # put in another's place: that is how editors save
            saved = went and self._left(change)
            return ("file_moved" if went and not saved else "file_uploaded"), change.ino
        left = self._left(change)
        if left is None or self._cx.one(_CAME, self._space, left, self._seq):
            return "", 0  # it moved, which is told where it went
        return "file_deleted", left

    def _left(self, change: wire.Change) -> int | None:
        """Return the inode that a name led to until this commit."""
        row = self._cx.one(_LEFT, self._space, change.parent, change.name, self._seq)
        return row[0] if row else None

    def _event(self, kind: str, ino: Ino) -> Json:
        stood = self._cx.one(_STOOD, self._space, ino, self._seq)
        inode = self._cx.one(_INODE, self._space, ino, self._seq) or (0, 0, 0)
        is_dir = inode[0] & 0o170000 == _IS_DIR
        told: Json = {
            "event_type": _FOLDERS.get(kind, kind) if is_dir else kind,
            "file_id": str(FileId(self._space, ino)),
            "type": "directory" if is_dir else "file",
            "name": None,
            "path": None,
            "size": 0 if is_dir else inode[1],
        }
        if stood is not None:
            told["name"] = text_of(stood[1])
            told["path"] = self._path(stood[0], stood[1])
            told["mime_type"] = None if is_dir else type_of(stood[1])
        if kind == "file_moved":
            went = self._cx.one(_WENT, self._space, ino, self._seq)
            told["old_path"] = self._path(went[0], went[1]) if went else None
        return told

    def _path(self, parent: int, name: bytes) -> str:
        return shown((*self._view.path_of(parent), name))


_WEIGHT: Final = {"file_changed": 0, "file_uploaded": 1, "file_moved": 2, "file_deleted": 3}
_FOLDERS: Final = {
    "file_uploaded": "folder_created", "file_moved": "folder_moved",
    "file_deleted": "folder_deleted", "file_changed": "folder_changed",
}  # fmt: skip
