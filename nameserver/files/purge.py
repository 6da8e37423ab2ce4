"""Forgetting a name for good: its versions, their bytes, and that it ever was.

Whatever bore the name and has no name any more is deleted from every table, so that nothing names
its blocks; the garbage collector drops those after its grace. What still lives under another
name stays, with the history that it has there. A later file of that name begins at version 1.

`space.history_bytes` falls by what the deleted rows had added to it: for every commit, the bytes
of the extents that it closed, less those that it opened again as remnants of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from everfold.extents import Piece, PieceMap
from everfold.model import Ino, SpaceId
from nameserver.db import Cx, Row

_BEARERS: Final = (
    "SELECT DISTINCT e.ino FROM entry e WHERE e.space_id = ? AND e.parent = ? AND e.name = ?"
)
_LIVES: Final = (
    "SELECT 1 FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ? AND died IS NULL"
)
_HIDDEN: Final = (
    "SELECT content_ino FROM version WHERE space_id = ? AND ino = ? AND content_ino <> ino"
)
_EXTENTS: Final = (
    "SELECT off, length, block, block_offset, born, died FROM extent WHERE space_id = ? AND ino = ?"
)


def forget(cx: Cx, space: SpaceId, parent: Ino, name: bytes) -> int:
    """Forget a name that leads nowhere now; return how many bytes of history that was."""
    freed = 0
    for (ino,) in cx.all(_BEARERS, space, parent, name):
        if cx.one(_LIVES, space, ino) is not None:
            continue
        inodes = [ino, *(row[0] for row in cx.all(_HIDDEN, space, ino))]
        for each in inodes:
            freed += history_of(cx.all(_EXTENTS, space, each))
            for table in ("extent", "xattr", "version", "inode", "entry"):
                cx.run(f"DELETE FROM {table} WHERE space_id = ? AND ino = ?", space, each)
    cx.run("DELETE FROM entry WHERE space_id = ? AND parent = ? AND name = ?", space, parent, name)
    cx.run(
        "UPDATE space SET history_bytes = CASE WHEN history_bytes > ? THEN history_bytes - ?"
        " ELSE 0 END WHERE id = ?",
        freed, freed, space,
    )  # fmt: skip
    return freed


def history_of(rows: Iterable[Row]) -> int:
    """Return the bytes that only history names of an inode that is gone, from its extents."""
    closed: dict[int, list[Piece[bytes]]] = defaultdict(list)
    opened: dict[int, list[Piece[bytes]]] = defaultdict(list)
    for offset, length, block, at, born, died in rows:
        piece = Piece(offset, length, bytes(block), at)
        closed[died].append(piece)
        opened[born].append(piece)
    return sum(_lost(pieces, opened.get(seq, [])) for seq, pieces in closed.items())


def _lost(closed: list[Piece[bytes]], opened: list[Piece[bytes]]) -> int:
    before = PieceMap(closed)
    kept = 0
    for piece in opened:
        for old in before.slices(piece.offset, piece.length):
            if old.source == piece.source and old.at - piece.at == old.offset - piece.offset:
                kept += old.length
    return max(0, sum(piece.length for piece in closed) - kept)
