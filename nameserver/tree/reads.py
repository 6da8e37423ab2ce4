"""The questions about the tree, each of one moment: now, or as of any commit.

The present has statements of its own (over the partial indexes of live rows); the past has the
same ones with two bounds more. Everything here runs in one read transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import (
    NOW,
    ROOT,
    SIZE_MAX,
    Attr,
    BlockId,
    Entry,
    Extent,
    Ino,
    NodeId,
    Seq,
    SpaceId,
)
from nameserver.db import Cx, Row
from nameserver.tree import extents
from nameserver.tree.ledger import BlockLedger

LIST_MAX: Final = 50_000  # entries in one listing
LIST_MANY_MAX: Final = 256  # directories in one question
_LIST_MANY_NAMES: Final = 10_000  # in its answer; the last listing may go beyond
ATTRS_MAX: Final = 50_000  # inodes in one question
MANY_MAX: Final = 1_000  # files in one question about extents
_MANY_AT_ONCE: Final = 64
_MANY_ROWS: Final = 1_024  # of so many files: who has more extents asks for them alone

_ATTR: Final = (
    "i.ino, i.mode, i.nlink, i.uid, i.gid, i.size, i.atime_ns, i.mtime_ns, i.ctime_ns,"
    " i.btime_ns, i.rdev, i.allocated, i.version, i.content, i.target, i.has_xattrs"
)
_BOUNDS: Final = "{0}.born <= ? AND ({0}.died IS NULL OR {0}.died > ?)"
_I_THEN: Final = _BOUNDS.format("i")
_E_THEN: Final = _BOUNDS.format("e")

_SEQ: Final = "SELECT seq FROM space WHERE id = ?"
_ATTR_NOW: Final = (
    f"SELECT {_ATTR} FROM inode i INDEXED BY inode_now"
    " WHERE i.space_id = ? AND i.ino = ? AND i.died IS NULL"
)
_ATTR_THEN: Final = f"SELECT {_ATTR} FROM inode i WHERE i.space_id = ? AND i.ino = ? AND {_I_THEN}"
_NAME_NOW: Final = (
    f"SELECT {_ATTR} FROM entry e INDEXED BY entry_now JOIN inode i INDEXED BY inode_now"
    " ON i.space_id = e.space_id + 0 AND i.ino = e.ino AND i.died IS NULL"
    " WHERE e.space_id = ? AND e.parent = ? AND e.name = ? AND e.died IS NULL"
)
_NAME_THEN: Final = (
    f"SELECT {_ATTR} FROM entry e JOIN inode i ON i.space_id = e.space_id + 0 AND i.ino = e.ino"
    f" AND {_I_THEN} WHERE e.space_id = ? AND e.parent = ? AND e.name = ? AND {_E_THEN}"
)
_LIST_NOW: Final = (
    f"SELECT e.name, {_ATTR} FROM entry e INDEXED BY entry_now JOIN inode i INDEXED BY inode_now"
    " ON i.space_id = e.space_id + 0 AND i.ino = e.ino AND i.died IS NULL"
    " WHERE e.space_id = ? AND e.parent = ? AND e.name > ? AND e.died IS NULL"
    " ORDER BY e.name LIMIT ?"
)
_LIST_THEN: Final = (
    f"SELECT e.name, {_ATTR} FROM entry e JOIN inode i ON i.space_id = e.space_id + 0"
    f" AND i.ino = e.ino AND {_I_THEN}"
    f" WHERE e.space_id = ? AND e.parent = ? AND e.name > ? AND {_E_THEN}"
    " ORDER BY e.name LIMIT ?"
)
_MANY: Final = (
    "SELECT ino, off, length, block, block_offset FROM extent INDEXED BY extent_now"
    f" WHERE space_id = ? AND ino IN ({', '.join('?' * _MANY_AT_ONCE)}) AND died IS NULL"
    " ORDER BY ino, off LIMIT ?"
)
_AUTHOR: Final = "SELECT author FROM version WHERE space_id = ? AND ino = ? AND k = ?"
_PARENT_NOW: Final = (
    "SELECT parent FROM entry INDEXED BY entry_ino"
    " WHERE space_id = ? AND ino = ? AND died IS NULL LIMIT 1"
)
_PARENT_THEN: Final = (
    "SELECT e.parent FROM entry e INDEXED BY entry_ino"
    f" WHERE e.space_id = ? AND e.ino = ? AND {_E_THEN} LIMIT 1"
)
_XATTRS_NOW: Final = (
    "SELECT name, value FROM xattr INDEXED BY xattr_now"
    " WHERE space_id = ? AND ino = ? AND died IS NULL ORDER BY name"
)
_XATTRS_THEN: Final = (
    "SELECT x.name, x.value FROM xattr x WHERE x.space_id = ? AND x.ino = ?"
    f" AND {_BOUNDS.format('x')} ORDER BY x.name"
)


class Moment:
    """The tree of a space at one moment, within a transaction. `seq` is its commit number."""

    def __init__(self, cx: Cx, space: SpaceId, asked: Seq) -> None:
        row = cx.one(_SEQ, space)
        if row is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such space", str(space))
        if not 0 <= asked <= row[0]:
            raise EverfoldError(Kind.INVALID, f"there is no commit {asked} yet", str(space))
        self._cx = cx
        self._space = space
        self._is_now = asked == NOW
        self.seq = Seq(row[0]) if self._is_now else asked

    def find_attr(self, ino: Ino) -> Attr | None:
        """Return the attributes of an inode, None when it is not there."""
        if self._is_now:
            row = self._cx.one(_ATTR_NOW, self._space, ino)
        else:
            row = self._cx.one(_ATTR_THEN, self._space, ino, self.seq, self.seq)
        return attr_of(row) if row else None

    def attr(self, ino: Ino) -> Attr:
        """Return the attributes of an inode; NOT_FOUND."""
        found = self.find_attr(ino)
        if found is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such inode", str(ino))
        return found

    def directory(self, ino: Ino) -> Attr:
        """Return the attributes of a directory; NOT_FOUND, NOT_DIR."""
        found = self.attr(ino)
        if not found.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "not a directory", str(ino))
        return found

    def entry(self, parent: Ino, name: bytes) -> Entry | None:
        """Return what a name leads to, None when it is free; NOT_FOUND, NOT_DIR for `parent`."""
        if self._is_now:
            row = self._cx.one(_NAME_NOW, self._space, parent, name)
        else:
            at = self.seq
            row = self._cx.one(_NAME_THEN, at, at, self._space, parent, name, at, at)
        if row is None:
            self.directory(parent)
            return None
        return Entry(name, attr_of(row))

    def entries(self, parent: Ino, after: bytes, limit: int) -> list[Entry]:
        """Return up to `limit` entries in name order."""
        if self._is_now:
            rows = self._cx.all(_LIST_NOW, self._space, parent, after, limit)
        else:
            at = self.seq
            rows = self._cx.all(_LIST_THEN, at, at, self._space, parent, after, at, at, limit)
        return [Entry(row[0], attr_of(row, 1)) for row in rows]

    def parent(self, directory: Ino) -> Ino:
        """Return the directory that a directory is in; the root is in itself."""
        if self._is_now:
            row = self._cx.one(_PARENT_NOW, self._space, directory)
        else:
            row = self._cx.one(_PARENT_THEN, self._space, directory, self.seq, self.seq)
        return Ino(row[0]) if row else ROOT

    def xattrs(self, ino: Ino) -> dict[bytes, bytes]:
        """Return the extended attributes of an inode; NOT_FOUND."""
        self.attr(ino)
        if self._is_now:
            rows = self._cx.all(_XATTRS_NOW, self._space, ino)
        else:
            rows = self._cx.all(_XATTRS_THEN, self._space, ino, self.seq, self.seq)
        return dict(rows)

    def extents(self, ask: wire.GetExtents, blocks: BlockLedger) -> wire.FileExtents:
        """Return the extents of a file in a range, and where their blocks are."""
        if ask.offset < 0 or ask.length < 0:
            raise EverfoldError(Kind.INVALID, "not a range of bytes")
        attr = self.attr(ask.ino)
        if attr.is_dir:
            raise EverfoldError(Kind.IS_DIR, "a directory has no bytes", str(ask.ino))
        end = min(ask.offset + ask.length, SIZE_MAX)
        if self._is_now:
            found = extents.now(self._cx, self._space, ask.ino, ask.offset, end)
        else:
            found = extents.at(self._cx, self._space, ask.ino, self.seq, ask.offset, end)
        named = {extent.block for extent in found}
        where = self.where(blocks, named)
        row = self._cx.one(_AUTHOR, self._space, ask.ino, attr.version)
        author = "" if row is None else row[0]
        return wire.FileExtents(self.seq, attr.size, attr.version, found, where, author)

    def extents_of(self, inos: Sequence[Ino]) -> dict[Ino, list[Extent]]:
        """Return the extents of files that have few, as they are now."""
        files: dict[Ino, list[Extent]] = {}
        for first in range(0, len(inos), _MANY_AT_ONCE):
            part = list(inos[first : first + _MANY_AT_ONCE])
            part += [part[-1]] * (_MANY_AT_ONCE - len(part))  # one statement for all lengths
            rows = self._cx.all(_MANY, self._space, *part, _MANY_ROWS + 1)
            if len(rows) > _MANY_ROWS:
                last = rows[-1][0]  # whose extents may not all be there
                rows = [row for row in rows if row[0] != last]
            for ino, *extent in rows:
                files.setdefault(ino, []).append(Extent(*extent))
        return files

    def where(self, blocks: BlockLedger, named: set[BlockId]) -> dict[BlockId, list[NodeId]]:
        """Return the nodes that have these blocks."""
        return dict(blocks.where(self._cx, self._space, named)) if named else {}

    def walk(self, names: Sequence[bytes]) -> tuple[Ino, Entry | None]:
        """Follow names from the root; return the last one's directory, and what is there."""
        if not names:
            return ROOT, Entry(b"", self.attr(ROOT))
        parent = ROOT
        for name in names[:-1]:
            found = self.entry(parent, name)
            if found is None:
                raise EverfoldError(Kind.NOT_FOUND, "no such directory", repr(name))
            if not found.attr.is_dir:
                raise EverfoldError(Kind.NOT_DIR, "not a directory", repr(name))
            parent = found.attr.ino
        return parent, self.entry(parent, names[-1])


def listing(moment: Moment, ask: wire.ListDir) -> wire.Listing:
    """See `wire.ListDir`."""
    if ask.limit < 1:
        raise EverfoldError(Kind.INVALID, "a listing has at least one entry")
    limit = min(ask.limit, LIST_MAX)
    attr = moment.directory(ask.ino)
    entries = moment.entries(ask.ino, ask.after, limit + 1)
    return wire.Listing(
        moment.seq, attr, moment.parent(ask.ino), entries[:limit], len(entries) > limit
    )


def listings(moment: Moment, ask: wire.ListMany) -> wire.Listings:
    """See `wire.ListMany`."""
    if ask.limit < 1 or len(ask.inos) > LIST_MANY_MAX:
        raise EverfoldError(Kind.INVALID, f"up to {LIST_MANY_MAX} listings have an entry or more")
    found: list[wire.Listing] = []
    limit, room = min(ask.limit, _LIST_MANY_NAMES), _LIST_MANY_NAMES
    for ino in ask.inos:
        attr = moment.find_attr(ino)
        if attr is None or not attr.is_dir or room <= 0:
            continue
        entries = moment.entries(ino, b"", limit + 1)
        if len(entries) <= limit:
            room -= len(entries)
            found.append(wire.Listing(moment.seq, attr, moment.parent(ino), entries, more=False))
    return wire.Listings(moment.seq, found)


def attrs(moment: Moment, ask: wire.GetAttrs) -> wire.Attrs:
    """See `wire.GetAttrs`."""
    if len(ask.inos) > ATTRS_MAX:
        raise EverfoldError(Kind.INVALID, f"at most {ATTRS_MAX} inodes in one question")
    found = (moment.find_attr(ino) for ino in ask.inos)
    return wire.Attrs(moment.seq, [attr for attr in found if attr is not None])


def many_extents(moment: Moment, ask: wire.GetManyExtents, blocks: BlockLedger) -> wire.ManyExtents:
    """See `wire.GetManyExtents`."""
    if len(ask.inos) > MANY_MAX:
        raise EverfoldError(Kind.INVALID, f"at most {MANY_MAX} files in one question")
    files = moment.extents_of(ask.inos)
    named = {extent.block for found in files.values() for extent in found}
    return wire.ManyExtents(moment.seq, files, moment.where(blocks, named))


def attr_of(row: Row, start: int = 0) -> Attr:
    """Return the columns of `_ATTR`, the last ones of a row, as what travels."""
    return Attr(*(*row[start:-1], row[-1] == 1))
