"""What happened, as events for people's programs: read from the commit log of each space.

Ids and positions: `positions`. Whoever asks for what came after a position gets every later event
once, each space's in order, from any nameserver process, however long it was away. A commit's
changes of one file are one event.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId, Ino, Seq, SpaceId, UserId
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.files import positions
from nameserver.files.browse import View
from nameserver.files.items import iso
from nameserver.files.paths import FileId, shown, text_of, type_of
from nameserver.files.positions import START, Place, Position, Sight, Sights, after_all
from nameserver.spaces import Spaces

Json = dict[str, Any]
LIMIT_MAX: Final = 1000
WAIT_MAX_S: Final = 25.0
_COMMITS: Final = 200  # read at once
_HEADS: Final = 256
_LOOK_S: Final = 1.0
# A commit takes its time before it is seen. Where a place follows from another space's time, what
# was seen at most so much later is told, perhaps once more.
_MARGIN_NS: Final = 10 * 10**9
_LARGE: Final = 200  # changes of a commit whose meaning is kept for its next page
_KEPT: Final = 4  # such commits: of 50,000 changes, 5 MiB each
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_IS_DIR: Final = 0o040000
_IS_FILE: Final = 0o100000
_CHANGES: Final = msgspec.msgpack.Decoder(list[wire.Change])

_LOG: Final = (
    "SELECT seq, at_ns, author, device, mount, changes FROM commit_log"
    " WHERE space_id = ? AND seq >= ? ORDER BY seq LIMIT ?"
)
_UP_TO: Final = "SELECT MAX(seq) FROM commit_log WHERE space_id = ? AND at_ns <= ?"
_AT: Final = "SELECT at_ns FROM commit_log WHERE space_id = ? AND seq = ?"
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
    "SELECT mode, size, version, born FROM inode WHERE space_id = ? AND ino = ? AND born <= ?"
    " ORDER BY born DESC LIMIT 1"
)
_FOLLOWED: Final = "SELECT space_id, seq, part FROM sync_position WHERE device_id = ?"
_FOLLOW: Final = (
    "INSERT INTO sync_position (device_id, space_id, seq, part, at_ns) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (device_id, space_id) DO UPDATE SET seq = excluded.seq, part = excluded.part,"
    " at_ns = excluded.at_ns WHERE sync_position.seq < excluded.seq"
    " OR (sync_position.seq = excluded.seq AND sync_position.part < excluded.part)"
)


class Event(NamedTuple):
    """Something that happened in a space, as its owner sees it; made for others by `seen`."""

    at_ns: int
    place: Place
    form: Json

    def seen(self, sight: Sight) -> Json:
        """Return the event as whoever sees the space there is told it."""
        told = {"id": sight.id_of(self.place), **self.form}
        if sight.above:
            for field in ("path", "old_path"):
                if told.get(field) is not None:
                    told[field] = sight.above + told[field]
        return told


class Events:
    """The events of all spaces. Thread-safe."""

    def __init__(self, db: Database, clock: Clock, bell: Bell, spaces: Spaces) -> None:
        self._db, self._clock, self._bell, self._spaces = db, clock, bell, spaces
        self._meanings = _Meanings()

    def sights(self, user: UserId) -> Sights:
        """Return the spaces whose events somebody may see: the home and the team folders.

        Whoever follows for longer asks again: people are let in and removed.
        """
        with self._db.read() as cx:
            home, _, _ = self._spaces.named(cx, user, "")
            view = View(cx, home)
            found = [Sight(home)]
            for team in self._spaces.junctions(cx, user):
                if team.name is not None:
                    found.append(Sight(team.space, shown((*view.path_of(team.parent), team.name))))
        return tuple(found)

    def heads(self, spaces: Collection[SpaceId]) -> dict[SpaceId, tuple[int, int]]:
        """Return (last commit, generation of its junctions) of each of these spaces."""
        wanted = list(spaces)
        found: dict[SpaceId, tuple[int, int]] = {}
        with self._db.read() as cx:
            for start in range(0, len(wanted), _HEADS):
                some = wanted[start : start + _HEADS]
                count = 1 << (len(some) - 1).bit_length()  # few lengths: few statements to prepare
                some += some[-1:] * (count - len(some))
                marks = ", ".join("?" * count)
                rows = cx.all(f"SELECT id, seq, teams_gen FROM space WHERE id IN ({marks})", *some)
                found |= {SpaceId(space): (seq, teams) for space, seq, teams in rows}
        return found

    # ------------------------------------------------------------ positions

    def place(self, sights: Sights, since: str) -> Position:
        """Return the position that an id, a commit number, a position or an ISO time names.

        INVALID. A space that is not named is followed from the earliest of the commits that
        are: it may be a team folder that came later.
        """
        named = positions.read(since, sights[0].space)
        with self._db.read() as cx:
            if named is not None:
                return _completed(cx, sights, named)
            at_ns = _read_time(since)
            return {sight.space: _place_at(cx, sight.space, at_ns) for sight in sights}

    def now(self, sights: Sights) -> Position:
        """Return the position after all that has happened."""
        with self._db.read() as cx:
            seqs = {sight.space: _seq(cx, sight.space) for sight in sights}
        return {space: after_all(seq) for space, seq in seqs.items()}

    def since_time(self, space: SpaceId, at_ns: int) -> Place:
        """Return a place before everything that was seen after a time."""
        with self._db.read() as cx:
            return _place_at(cx, space, at_ns - _MARGIN_NS)

    def has_followed(self, device: DeviceId) -> bool:
        """Tell whether a device ever said how far it is."""
        with self._db.read() as cx:
            return cx.one(_FOLLOWED, device) is not None

    def followed(self, sights: Sights, device: DeviceId) -> Position:
        """Return up to where a device has said that it followed: from the start if never."""
        with self._db.read() as cx:
            rows = cx.all(_FOLLOWED, device)
            known = {SpaceId(space): Place(seq, part) for space, seq, part in rows}
            return _completed(cx, sights, known)

    def follow(self, sights: Sights, device: DeviceId, event: str) -> Position:
        """Note that a device has dealt with all events up to this one. It never goes back.

        `event` may be a position. NOT_FOUND for what is no event's id, or one that is not yet.
        """
        named = positions.read(event, sights[0].space) or {}
        visible = {sight.space for sight in sights}
        with self._db.write() as cx:
            is_known = named.keys() <= visible and all(
                place.seq <= _seq(cx, space) for space, place in named.items()
            )
            if not is_known or not any(place.seq for place in named.values()):
                raise EverfoldError(Kind.NOT_FOUND, "there is no such event", event[:40])
            now = self._clock.time_ns()
            for space, place in named.items():
                cx.run(_FOLLOW, device, space, place.seq, place.part, now)
        return self.followed(sights, device)

    def pending(self, position: Mapping[SpaceId, Place]) -> int:
        """Return how many commits there are after a position."""
        with self._db.read() as cx:
            rows = [
                cx.one(
                    "SELECT count(*) FROM commit_log WHERE space_id = ? AND seq > ?",
                    space,
                    place.seq,
                )
                for space, place in position.items()
            ]
        return sum(int(row[0]) for row in rows if row)

    # ------------------------------------------------------------ events

    def after(
        self,
        sights: Sights,
        position: Position,
        limit: int,
        wait_s: float,
        see: Callable[[], Sights],
    ) -> tuple[list[Json], Position]:
        """Return up to `limit` events after a position, and where to go on.

        When there is none, waits for one for up to `wait_s`. `see` is asked every second, and
        before anything is told after a wait: it tells what may be seen by now, or raises.
        """
        if wait_s <= 0:
            return self.page(sights, position, limit)
        ends = self._clock.monotonic() + min(wait_s, WAIT_MAX_S)
        with self._bell.ear([sight.space for sight in sights]) as ear:
            while True:
                found, position = self.page(sights, position, limit)
                left = ends - self._clock.monotonic()
                if found or left <= 0 or self._bell.is_stopped:
                    return found, position
                ear.wait(min(left, _LOOK_S))
                now = {sight.space: sight for sight in see()}
                sights = tuple([now[each.space] for each in sights if each.space in now])

    def page(
        self, sights: Sights, position: Mapping[SpaceId, Place], limit: int
    ) -> tuple[list[Json], Position]:
        """Return up to `limit` events after a position, earlier ones first, and where to go on."""
        found: list[list[tuple[int, int, Event, Sight]]] = []
        moved = dict(position)
        with self._db.read() as cx:
            for number, sight in enumerate(sights):
                events, end = self._read(cx, sight.space, position.get(sight.space, START), limit)
                found.append([(each.at_ns, number, each, sight) for each in events])
                moved[sight.space] = end
        merged = list(heapq.merge(*found, key=lambda each: each[:2]))
        for _, _, event, sight in reversed(merged[limit:]):  # the earliest of each stays last
            before = event.place
            moved[sight.space] = Place(before.seq, before.part - 1)
        return [event.seen(sight) for _, _, event, sight in merged[:limit]], moved

    def read(self, space: SpaceId, place: Place, limit: int) -> tuple[list[Event], Place]:
        """Return up to `limit` events of one space after a place, and where to go on."""
        with self._db.read() as cx:
            return self._read(cx, space, place, limit)

    def news(self, space: SpaceId, place: Place, limit: int) -> tuple[list[Event], Place, int]:
        """As `read`, with the generation of the space's junctions."""
        with self._db.read() as cx:
            row = cx.one("SELECT teams_gen FROM space WHERE id = ?", space)
            return (*self._read(cx, space, place, limit), row[0] if row else 0)

    def _read(self, cx: Cx, space: SpaceId, place: Place, limit: int) -> tuple[list[Event], Place]:
        told: list[Event] = []
        while True:
            rows = cx.all(_LOG, space, place.seq, min(_COMMITS, limit + 1))
            for seq, at_ns, author, device, mount, changes in rows:
                skip = place.part if seq == place.seq else 0
                said = _Commit(cx, space, seq, self._meanings).events(changes, skip)
                for part, event in enumerate(said, skip + 1):
                    if len(told) >= limit:
                        return told, place
                    place = Place(seq, part)
                    head = {"seq": seq, "timestamp": iso(at_ns), "user": author,
                            "device": device, "mount": mount}  # fmt: skip
                    told.append(Event(at_ns, place, {**head, **event}))
                place = max(place, Place(seq, 0))
            if len(rows) < min(_COMMITS, limit + 1):
                return told, place
            place = after_all(rows[-1][0])


def _seq(cx: Cx, space: SpaceId) -> int:
    row = cx.one("SELECT seq FROM space WHERE id = ?", space)
    return int(row[0]) if row else 0


def _read_time(since: str) -> int:
    """Return the end of the microsecond that an ISO time names; INVALID."""
    text = since.replace("Z", "+00:00")
    day, _, rest = text.partition("T")
    try:
        at = datetime.fromisoformat(f"{day}T{rest.replace(' ', '+')}" if rest else text)
        at = at if at.tzinfo else at.replace(tzinfo=timezone.utc)
        # what is told is cut to microseconds: the whole of that one is meant
        at_ns = (at - _EPOCH) // timedelta(microseconds=1) * 1000 + 999
    except (ValueError, OverflowError) as err:
        raise EverfoldError(
            Kind.INVALID, "'since' is an event's id, a commit number, a position or an ISO time"
        ) from err
    return max(0, min(at_ns, (1 << 63) - 1))


def _place_at(cx: Cx, space: SpaceId, at_ns: int) -> Place:
    row = cx.one(_UP_TO, space, at_ns)
    return after_all(row[0]) if row and row[0] else START


def _completed(cx: Cx, sights: Sights, named: Position) -> Position:
    """Return a position with a place in every space that is seen, and in no others."""
    known = {sight.space: named[sight.space] for sight in sights if sight.space in named}
    if len(known) == len(sights):
        return known
    rows = [cx.one(_AT, space, place.seq) for space, place in known.items()]
    if not rows or None in rows:  # before the first commit of one of them
        return {**{sight.space: START for sight in sights}, **known}
    at_ns = min(row[0] for row in rows if row) - _MARGIN_NS
    missing = [sight.space for sight in sights if sight.space not in known]
    return {**known, **{space: _place_at(cx, space, at_ns) for space in missing}}


class _Meanings:
    """What the changes of the last few large commits mean. Thread-safe.

    They are told a page at a time, and each page would go through all of them again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _kept
        self._kept: OrderedDict[tuple[SpaceId, int], list[tuple[int, str]]] = OrderedDict()

    def get(self, space: SpaceId, seq: int) -> list[tuple[int, str]] | None:
        with self._lock:
            return self._kept.get((space, seq))

    def keep(self, space: SpaceId, seq: int, meaning: list[tuple[int, str]]) -> None:
        if len(meaning) < _LARGE:
            return
        with self._lock:
            self._kept[space, seq] = meaning
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


class _Commit:
    """One commit's changes, and what they mean."""

    def __init__(self, cx: Cx, space: SpaceId, seq: int, meanings: _Meanings) -> None:
        self._cx, self._space, self._seq = cx, space, seq
        self._meanings = meanings
        self._view = View(cx, space, Seq(seq))
        self._inodes: dict[int, tuple[int, int, int, int]] = {}  # of this commit

    def events(self, changes: bytes, skip: int) -> Iterator[Json]:
        """Yield one event for each thing that changed, in order of its first change.

        The first `skip` are passed over.
        """
        meaning = self._meanings.get(self._space, self._seq)
        if meaning is None:
            meaning = self._all(_CHANGES.decode(changes))
            self._meanings.keep(self._space, self._seq, meaning)
        for ino, kind in meaning[skip:]:
            yield self._event(kind, Ino(ino))

    def _all(self, changes: list[wire.Change]) -> list[tuple[int, str]]:
        told: dict[int, str] = {}
        for change in changes:
            kind, ino = self._meaning(change)
            if kind and (ino not in told or _WEIGHT[kind] > _WEIGHT[told[ino]]):
                told[ino] = kind
        return list(told.items())

    def _meaning(self, change: wire.Change) -> tuple[str, int]:
        if change.what == "data":
            return "file_uploaded", change.ino
        if change.what == "attr":
            is_new = self._is_empty_since_now(change.ino)
            return ("file_uploaded" if is_new else "file_changed"), change.ino
        if change.what != "entry":
            return "", 0
        if change.ino:
            went = self._cx.one(_WENT, self._space, change.ino, self._seq)
            # put in another's place: that is how editors save
            saved = went and self._left(change)
            if went and not saved:
                return "file_moved", change.ino
            is_begun = not saved and self._is_begun(change.ino)
            return ("file_created" if is_begun else "file_uploaded"), change.ino
        left = self._left(change)
        if left is None or self._cx.one(_CAME, self._space, left, self._seq):
            return "", 0  # it moved, which is told where it went
        return "file_deleted", left

    def _inode(self, ino: int, seq: int) -> tuple[int, int, int, int]:
        """Return (mode, size, version, born) of an inode as it was at a commit."""
        mode, size, version, born = self._cx.one(_INODE, self._space, ino, seq) or (0, 0, 0, 0)
        return mode, size, version, born

    def _now(self, ino: int) -> tuple[int, int, int, int]:
        """Return the same of this commit; asked once."""
        found = self._inodes.get(ino)
        if found is None:
            if len(self._inodes) > _LARGE:
                self._inodes.clear()
            found = self._inodes[ino] = self._inode(ino, self._seq)
        return found

    def _is_begun(self, ino: int) -> bool:
        """Tell whether this is a file that was opened and has had no content yet, not even none."""
        mode, _, version, _ = self._now(ino)
        return mode & 0o170000 == _IS_FILE and not version

    def _is_empty_since_now(self, ino: int) -> bool:
        """Tell whether a file was saved here for the first time, with nothing in it."""
        _, size, version, born = self._now(ino)
        if size or not version or born != self._seq:
            return False
        before = self._inode(ino, self._seq - 1)
        return before[3] > 0 and before[2] == 0

    def _left(self, change: wire.Change) -> int | None:
        """Return the inode that a name led to until this commit."""
        row = self._cx.one(_LEFT, self._space, change.parent, change.name, self._seq)
        return row[0] if row else None

    def _event(self, kind: str, ino: Ino) -> Json:
        stood = self._cx.one(_STOOD, self._space, ino, self._seq)
        mode, size, _, _ = self._now(ino)
        is_dir = mode & 0o170000 == _IS_DIR
        told: Json = {
            "event_type": _FOLDERS.get(kind, kind) if is_dir else kind,
            "file_id": str(FileId(self._space, ino)),
            "type": "directory" if is_dir else "file",
            "name": None,
            "path": None,
            "size": 0 if is_dir else size,
        }
        if stood is not None:
            told["name"] = text_of(stood[1])
            told["path"] = self._path(stood[0], stood[1])
            told["mime_type"] = None if is_dir else type_of(stood[1])
        if kind == "file_moved":
            went = self._cx.one(_WENT, self._space, ino, self._seq)
            told["old_path"] = self._path(went[0], went[1]) if went else None
        return told

    def _path(self, parent: int, name: bytes) -> str | None:
        """Return where a name was; None when history has forgotten the folders above it."""
        try:
            return shown((*self._view.path_of(parent), name))
        except EverfoldError as err:
            if err.kind is not Kind.STALE:
                raise
            return None


_WEIGHT: Final = {
    "file_created": 0, "file_changed": 1, "file_uploaded": 2, "file_moved": 3, "file_deleted": 4,
}  # fmt: skip
_FOLDERS: Final = {
    "file_uploaded": "folder_created", "file_moved": "folder_moved",
    "file_deleted": "folder_deleted", "file_changed": "folder_changed",
}  # fmt: skip
