"""Looking at a space: by path, by id, page by page, by a part of the name, and at what is gone.

A `View` is one moment within one transaction. The answer to a first page tells the commit number
that it was true for; the next pages ask for that moment again, so a listing neither repeats nor
leaves out anything while files come and go: the past is still in the schema.

An id follows its file as history does. When its inode is gone, the name where it last stood tells
what took its place (editors save by putting another file there); also a name that it left
less than a minute before its end (editors move the old file aside and delete it after that).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import NOW, ROOT, Ino, Seq, SpaceId
from nameserver.db import Cx, Row
from nameserver.files.items import COLUMNS, Item
from nameserver.files.paths import FileId, no_such_file, shown, text_of
from nameserver.tree.reads import Moment

PAGE_MAX: Final = 1000
FOUND_MAX: Final = 100_000  # names that one search keeps, to sort them
_SCAN: Final = 10_000
_MOVED_ASIDE_NS: Final = 60_000_000_000

_NOW: Final = (
    " FROM entry e INDEXED BY {index} JOIN inode i INDEXED BY inode_now"
    " ON i.space_id = e.space_id + 0 AND i.ino = e.ino AND i.died IS NULL"
    " WHERE e.space_id = ? AND {key} AND e.died IS NULL"
)
_THEN: Final = (
    " FROM entry e JOIN inode i ON i.space_id = e.space_id + 0 AND i.ino = e.ino"
    " AND i.born <= ? AND (i.died IS NULL OR i.died > ?)"
    " WHERE e.space_id = ? AND {key} AND e.born <= ? AND (e.died IS NULL OR e.died > ?)"
)
_ROOT: Final = (
    "SELECT ino, mode, uid, gid, mtime_ns, btime_ns FROM inode INDEXED BY inode_now"
    " WHERE space_id = ? AND ino = 1 AND died IS NULL"
)
_ABOVE: Final = (  # of a directory that is gone: where it last was
    "SELECT parent, name FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ?"
    " AND born <= ? ORDER BY born DESC LIMIT 1"
)
_ENDED: Final = (
    "SELECT e.parent, e.name, c.at_ns FROM entry e INDEXED BY entry_ino"
    " JOIN commit_log c ON c.space_id = e.space_id + 0 AND c.seq = e.died"
    " WHERE e.space_id = ? AND e.ino = ? AND e.died IS NOT NULL ORDER BY e.died DESC LIMIT 8"
)
_LOST: Final = (
    "SELECT e.parent, e.name, e.ino, e.vbase, i.mode, i.uid, i.gid, i.size,"
    " i.mtime_ns, i.btime_ns, i.version, i.content, c.at_ns"
    " FROM entry e {index} JOIN inode i ON i.space_id = e.space_id + 0 AND i.ino = e.ino"
    " AND i.born = (SELECT MAX(born) FROM inode WHERE space_id = e.space_id AND ino = e.ino)"
    " JOIN commit_log c ON c.space_id = e.space_id + 0 AND c.seq = e.died"
    " WHERE e.space_id = ? AND {key} AND e.died IS NOT NULL AND i.died IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM entry n WHERE n.space_id = e.space_id"
    "  AND n.parent = e.parent AND n.name = e.name AND n.born > e.born)"
    " AND NOT EXISTS (SELECT 1 FROM entry m INDEXED BY entry_ino WHERE m.space_id = e.space_id"
    "  AND m.ino = e.ino AND (m.born > e.born OR m.died IS NULL))"
    # a name that never showed anything, such as an editor's probe, is not missed by anybody
    " AND (i.version > 0 OR (i.mode & 61440) <> 32768)"
    # what became a team folder is there, with its trash, and not missed here
    " AND NOT EXISTS (SELECT 1 FROM team t WHERE t.origin_id = e.space_id"
    "  AND e.died >= t.origin_seq AND e.died <= t.origin_end)"
    " AND NOT EXISTS (SELECT 1 FROM team t JOIN inode p ON p.space_id = t.origin_id + 0"
    "  AND p.ino = e.parent AND p.died >= t.origin_seq AND p.died <= t.origin_end"
    "  WHERE t.origin_id = e.space_id)"
    " AND NOT EXISTS (SELECT 1 FROM member m WHERE m.home_id = e.space_id AND m.ino = e.parent)"
)
_ORDERS: Final = {"name": "e.name", "size": "i.size", "modified": "i.mtime_ns"}

Matches = Callable[[bytes], bool]


class Page(NamedTuple):
    """A part of a listing. `total` counts all of it; `is_cut`: more was found than is kept."""

    seq: Seq
    items: list[Item]
    total: int
    is_cut: bool = False


class View:
    """A space at one moment (0: now) within a transaction. `seq` is its commit number."""

    def __init__(self, cx: Cx, space: SpaceId, asked: Seq = NOW) -> None:
        self._cx = cx
        self._moment = Moment(cx, space, asked)
        self._is_now = asked == NOW
        self._paths: dict[int, tuple[bytes, ...]] = {ROOT: ()}
        self.space = space
        self.seq = self._moment.seq

    # ------------------------------------------------------------ one file

    def root(self) -> Item:
        """Return the top directory."""
        row = self._cx.one(_ROOT, self.space)
        if row is None:
            raise no_such_file("/")
        ino, mode, uid, gid, mtime_ns, btime_ns = row
        return Item(
            self.space, (), ROOT, b"", ino, 0, mode, uid, gid, 0, mtime_ns, btime_ns, 0, Seq(0)
        )

    def find(self, names: list[bytes]) -> Item | None:
        """Return what is at a path, None when its last name is free; NOT_FOUND, NOT_DIR."""
        return self._walk(self.root(), names)

    def below(self, folder: Item, names: list[bytes]) -> Item:
        """Return what is at a path below a folder; NOT_FOUND, NOT_DIR."""
        found = self._walk(folder, names)
        if found is None:
            raise no_such_file(shown(names))
        return found

    def _walk(self, here: Item, names: list[bytes]) -> Item | None:
        for depth, name in enumerate(names, 1):
            if not here.is_dir:
                raise EverfoldError(Kind.NOT_DIR, "not a directory", shown(names[: depth - 1]))
            self._paths.setdefault(here.ino, here.names)
            found = self.child(here.ino, name)
            if found is None:
                if depth == len(names):
                    return None
                raise EverfoldError(Kind.NOT_FOUND, "there is no such folder", shown(names[:depth]))
            here = found
        return here

    def has(self, names: list[bytes]) -> bool:
        """Tell whether there is anything at a path; NOT_DIR."""
        try:
            return self.find(names) is not None
        except EverfoldError as err:
            if err.kind is Kind.NOT_FOUND:
                return False
            raise

    def at(self, names: list[bytes]) -> Item:
        """Return what is at a path; NOT_FOUND, NOT_DIR."""
        found = self.find(names)
        if found is None:
            raise no_such_file(shown(names))
        return found

    def child(self, parent: Ino, name: bytes) -> Item | None:
        """Return what a name in a directory leads to."""
        found = self._rows("e.parent = ? AND e.name = ?", (parent, name), " LIMIT 1")
        return self._item(found[0]) if found else None

    def by_id(self, file: FileId) -> Item:
        """Return a file by its id, or what took its place (see the module); NOT_FOUND."""
        if file.ino == ROOT:
            return self.root()
        rows = self._rows(
            "e.ino = ?", (file.ino,), " ORDER BY e.born, e.parent, e.name LIMIT 1", "entry_ino"
        )
        if rows:
            return self._item(rows[0])
        for parent, name in self._last_names(file.ino):
            found = self.child(parent, name) or self._at_its_path(parent, name)
            if found is not None and found.is_file:
                return found
        raise no_such_file(str(file))

    def _last_names(self, ino: Ino) -> Iterator[tuple[Ino, bytes]]:
        rows = self._cx.all(_ENDED, self.space, ino)
        for parent, name, at_ns in rows:
            if at_ns >= rows[0][2] - _MOVED_ASIDE_NS:
                yield parent, name

    def _at_its_path(self, parent: Ino, name: bytes) -> Item | None:
        """Return what is at a path whose directory was deleted, and may have come back."""
        try:
            return self.find([*self.path_of(parent), name])
        except EverfoldError as err:
            if err.kind in (Kind.NOT_FOUND, Kind.NOT_DIR, Kind.STALE):
                return None
            raise

    # ------------------------------------------------------------ many

    def page(
        self, folder: Item, offset: int, limit: int, order: str = "name", is_falling: bool = False
    ) -> Page:
        """Return a part of a directory's listing."""
        if not folder.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "not a directory", shown(folder.names))
        self._paths.setdefault(folder.ino, folder.names)
        turn = " DESC" if is_falling else ""
        tail = f" ORDER BY {_ORDERS[order]}{turn}, e.name{turn} LIMIT ? OFFSET ?"
        rows = self._rows("e.parent = ?", (folder.ino,), tail, more=(limit, offset))
        return Page(self.seq, [self._item(row) for row in rows], self._count(folder.ino))

    def search(
        self, folder: Item, matches: Matches, offset: int, limit: int, *, files_only: bool = False
    ) -> Page:
        """Return a part of what is below a directory and has a fitting name, in order of path."""
        base = folder.names
        found: list[tuple[tuple[bytes, ...], Row]] = []
        for row in self._rows_of_all():
            if not matches(row[1]) or (files_only and not stat.S_ISREG(row[4])):
                continue
            path = (*self.path_of(row[0]), row[1])
            if path[: len(base)] == base and len(path) > len(base):
                found.append((path, row))
                if len(found) >= FOUND_MAX:
                    break
        found.sort(key=lambda each: each[0])
        items = [self._item(row) for _, row in found[offset : offset + limit]]
        return Page(self.seq, items, len(found), len(found) >= FOUND_MAX)

    def everything(self) -> Iterator[Item]:
        """Yield every name of the space, in no order that means anything."""
        for row in self._rows_of_all():
            yield self._item(row)

    def _rows_of_all(self) -> Iterator[Row]:
        after: tuple[int, bytes] = (0, b"")
        while True:
            rows = self._rows(
                "(e.parent, e.name) > (?, ?)", after, " ORDER BY e.parent, e.name LIMIT ?",
                more=(_SCAN,),
            )  # fmt: skip
            yield from rows
            if len(rows) < _SCAN:
                return
            after = (rows[-1][0], rows[-1][1])

    # ------------------------------------------------------------ what is gone

    def trash(self, folder: Item | None, offset: int, limit: int) -> Page:
        """Return what was deleted in a directory, or (None) anywhere; the latest first."""
        key, values = ("e.parent = ?", (folder.ino,)) if folder else ("1 = 1", ())
        sql = _LOST.format(index="", key=key)
        rows = self._cx.all(
            sql + " ORDER BY e.died DESC, e.parent, e.name LIMIT ? OFFSET ?",
            self.space, *values, limit, offset,
        )  # fmt: skip
        total = self._cx.one(f"SELECT count(*) FROM ({sql}) x", self.space, *values)
        return Page(self.seq, [self._lost(row) for row in rows], total[0] if total else 0)

    def lost_id(self, file: FileId) -> Item:
        """Return a deleted file or directory by its id; NOT_FOUND."""
        sql = _LOST.format(index="INDEXED BY entry_ino", key="e.ino = ?")
        row = self._cx.one(sql + " ORDER BY e.died DESC, e.name LIMIT 1", self.space, file.ino)
        if row is None:
            raise no_such_file(str(file))
        return self._lost(row)

    def by_id_or_lost(self, file: FileId) -> Item:
        """Return a file by its id, or a deleted one; NOT_FOUND."""
        try:
            return self.by_id(file)
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            return self.lost_id(file)

    def lost_at(self, names: list[bytes]) -> Item:
        """Return what was deleted last at a path whose directory lives; NOT_FOUND, NOT_DIR."""
        folder = self.at(names[:-1])
        sql = _LOST.format(index="", key="e.parent = ? AND e.name = ?")
        row = self._cx.one(sql, self.space, folder.ino, names[-1])
        if row is None:
            raise no_such_file(shown(names))
        return self._lost(row)

    def lost_in(self, folder: Ino, since_ns: int) -> list[Item]:
        """Return what was deleted in a directory since a moment."""
        sql = _LOST.format(index="", key="e.parent = ?")
        rows = self._cx.all(sql + " AND c.at_ns >= ?", self.space, folder, since_ns)
        return [self._lost(row) for row in rows]

    # ------------------------------------------------------------ rows

    def path_of(self, folder: int) -> tuple[bytes, ...]:
        """Return the names from the top to a directory; of one that is gone, as it last was."""
        climbed: list[tuple[int, bytes]] = []
        here = folder
        while here not in self._paths:
            row = self._cx.one(_ABOVE, self.space, here, self.seq)
            if row is None:
                raise EverfoldError(Kind.STALE, "the folder is not within the space", str(folder))
            climbed.append((here, row[1]))
            here = row[0]
        path = self._paths[here]
        for ino, name in reversed(climbed):
            path = self._paths[ino] = (*path, name)
        return path

    def _rows(
        self, key: str, values: tuple[object, ...], tail: str, index: str = "entry_now",
        more: tuple[object, ...] = (),
    ) -> list[Row]:  # fmt: skip
        if self._is_now:
            sql = f"SELECT {COLUMNS}" + _NOW.format(index=index, key=key) + tail
            return self._cx.all(sql, self.space, *values, *more)
        sql = f"SELECT {COLUMNS}" + _THEN.format(key=key) + tail
        at = (self.seq, self.seq)
        return self._cx.all(sql, *at, self.space, *values, *at, *more)

    def _count(self, folder: Ino) -> int:
        sql = "SELECT count(*) FROM entry e {} WHERE e.space_id = ? AND e.parent = ? AND {}"
        if self._is_now:
            sql = sql.format("INDEXED BY entry_now", "e.died IS NULL")
            row = self._cx.one(sql, self.space, folder)
        else:
            sql = sql.format("", "e.born <= ? AND (e.died IS NULL OR e.died > ?)")
            row = self._cx.one(sql, self.space, folder, self.seq, self.seq)
        return int(row[0]) if row else 0

    def _item(self, row: Row) -> Item:
        return Item(self.space, self.path_of(row[0]), *row)

    def _lost(self, row: Row) -> Item:
        return Item(self.space, self.path_of(row[0]), *row)


def containing(words: str) -> Matches:
    """Return what tells whether a name has all these words in it, whatever their case."""
    wanted = words.casefold().split()

    def matches(name: bytes) -> bool:
        text = text_of(name).casefold()
        return all(word in text for word in wanted)

    return matches
