"""The history of a name: which contents it showed, under which numbers.

Rows of `entry` at a name are its lives, oldest first. A life shows the versions of its inode
from k = 1 (the earlier life of a file that was moved there comes along) to the k at its end;
number = vbase + k. An inode that comes back to a name shows its old versions again: they are
listed once, under their first number. Of neighbours with equal bytes the first is listed. So
each distinct content stands there once, numbers rise, and none is ever used twice. Not listed
is the emptiness of a file that had bytes when it was moved there: programs make their drafts
so, and nobody saved it.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from itertools import zip_longest
from typing import Final

import msgspec
from blake3 import blake3

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.extents import from_extents
from everfold.model import HistoryName, Ino, Seq, SpaceId, Version
from nameserver.db import Cx, Row
from nameserver.tree import extents
from nameserver.tree.rows import INODE_COLUMNS

_LIVES: Final = (
    "SELECT e.born, e.died, e.ino, e.vbase, v.k, v.content_ino, v.seq, v.at_ns, v.size, v.mtime_ns,"
    " v.mode, v.author, v.device, v.is_sealed, v.is_conflict"
    " FROM entry e CROSS JOIN version v"  # CROSS: SQLite keeps this order
    " WHERE e.space_id = ? AND e.parent = ? AND e.name = ?"
    " AND v.space_id = e.space_id + 0 AND v.ino = e.ino"
    " AND (e.died IS NULL OR v.k <= e.vlast - e.vbase) ORDER BY e.born, v.k"
)
_CURRENT: Final = (
    "SELECT i.ino, i.version FROM entry e INDEXED BY entry_now JOIN inode i INDEXED BY inode_now"
    " ON i.space_id = e.space_id + 0 AND i.ino = e.ino AND i.died IS NULL"
    " WHERE e.space_id = ? AND e.parent = ? AND e.name = ? AND e.died IS NULL"
)
_NAMES: Final = (
    "SELECT e.name, e.died, e.vlast, e.vbase, c.at_ns,"
    " (SELECT i.mode FROM inode i WHERE i.space_id = e.space_id AND i.ino = e.ino"
    "  ORDER BY i.born DESC LIMIT 1),"
    " COALESCE((SELECT MAX(v.k) FROM version v WHERE v.space_id = e.space_id"
    "  AND v.ino = e.ino), 0)"
    " FROM entry e LEFT JOIN commit_log c ON c.space_id = e.space_id + 0 AND c.seq = e.died"
    " WHERE e.space_id = ? AND e.parent = ? ORDER BY e.name, e.born"
)
_LAST_INODE: Final = (
    f"SELECT {INODE_COLUMNS} FROM inode WHERE space_id = ? AND ino = ? ORDER BY born DESC LIMIT 1"
)


class Digests:
    """Digests of contents, computed once: what (inode, seq) holds never changes."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()  # guards _known

    def of(self, cx: Cx, space: SpaceId, version: Version) -> bytes:
        """Return the digest of a version's size and extents."""
        key = (space, version.ino, version.seq)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        digest = _digest(cx, space, version)
        with self._lock:
            self._known[key] = digest
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        return digest


def _digest(cx: Cx, space: SpaceId, version: Version) -> bytes:
    state = blake3(struct.pack("<Q", version.size))
    for piece in from_extents(extents.at(cx, space, version.ino, version.seq)):
        state.update(struct.pack("<QQQ", piece.offset, piece.length, piece.at))
        state.update(piece.source)
    return state.digest()


def every(cx: Cx, space: SpaceId, parent: Ino, name: bytes) -> list[Version]:
    """Return all numbered versions of a name, without a look at their bytes."""
    return [version for version, _ in _numbered(cx, space, parent, name)]


def _numbered(cx: Cx, space: SpaceId, parent: Ino, name: bytes) -> list[tuple[Version, bool]]:
    """Return the versions of a name, each with whether it was ever visible there."""
    live = cx.one(_CURRENT, space, parent, name)
    rows = cx.all(_LIVES, space, parent, name)
    listed: list[tuple[Version, bool]] = []
    seen: set[tuple[int, int]] = set()
    for row, after in zip_longest(rows, rows[1:]):
        born, _, ino, _, k = row[:5]
        if (ino, k) in seen:
            continue
        seen.add((ino, k))
        is_replaced = after is not None and after[0] == born and after[6] <= born
        listed.append((_version(row, is_current=live == (ino, k)), not is_replaced))
    return listed


def _version(row: Row, is_current: bool) -> Version:
    (_, _, _, vbase, k, content_ino, seq, at_ns, size, mtime_ns, mode, author, device,
     is_sealed, is_conflict) = row  # fmt: skip
    return Version(
        vbase + k, Ino(content_ino), Seq(seq), at_ns, size, mtime_ns, mode, author, device,
        sealed=bool(is_sealed), conflict=bool(is_conflict), current=is_current,
    )  # fmt: skip


def versions(cx: Cx, space: SpaceId, parent: Ino, name: bytes, digests: Digests) -> list[Version]:
    """Return the distinct contents that a name showed, numbers rising."""
    listed: list[Version] = []
    for version, was_visible in _numbered(cx, space, parent, name):
        if not version.size and not was_visible:
            continue
        digest = digests.of(cx, space, version)
        if listed and listed[-1].digest == digest:
            if version.current:
                listed[-1] = msgspec.structs.replace(listed[-1], current=True)
            continue
        listed.append(msgspec.structs.replace(version, digest=digest))
    return listed


def find(cx: Cx, space: SpaceId, parent: Ino, name: bytes, number: int) -> Version:
    """Return the version of a name that has this number; NOT_FOUND."""
    for version in every(cx, space, parent, name):
        if version.number == number:
            return version
    raise EverfoldError(Kind.NOT_FOUND, f"the name has no version {number}", repr(name))


def names(cx: Cx, ask: wire.GetHistoryNames) -> list[HistoryName]:
    """Return the names of a directory that have versions, and the directories deleted there."""
    newest: dict[bytes, Row] = {}
    for row in cx.all(_NAMES, ask.space, ask.parent):
        newest[row[0]] = row
    listed = []
    for name, died, vlast, vbase, died_ns, mode, top in newest.values():
        used = vbase + top if died is None else vlast
        if used or (died is not None and mode & 0o170000 == 0o040000):
            listed.append(HistoryName(name, mode, died is None, died_ns or 0))
    return listed


def last_inode(cx: Cx, space: int, ino: int) -> Row:
    """Return the columns of an inode's row as it is, or was when it ended; NOT_FOUND."""
    row = cx.one(_LAST_INODE, space, ino)
    if row is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such inode", str(ino))
    return row
