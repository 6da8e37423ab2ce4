"""What spaces use, counted anew from their rows, against what commits have added up.

`live_bytes` is the sum of the sizes of files that have a name; `history_bytes`, for every commit,
the bytes of the extents that it closed, less those that it opened again in the same place as
remnants of them. Of a deleted team folder all is history. A commit and `files.purge` keep both up
by differences; they must never part.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from everfold.model import SpaceId
from nameserver.db import Cx

_STORED: Final = "SELECT id, live_bytes, history_bytes, inodes FROM space"
_LIVE: Final = (
    "SELECT space_id, CAST(SUM(CASE WHEN (mode & 61440) = 32768 THEN size ELSE 0 END) AS BIGINT),"
    " count(*) FROM inode WHERE died IS NULL{} GROUP BY space_id"
)
_CLOSED: Final = (
    "SELECT space_id, CAST(SUM(length) AS BIGINT) FROM extent WHERE died IS NOT NULL{}"
    " GROUP BY space_id"
)
_KEPT: Final = (
    "SELECT c.space_id, CAST(SUM("
    "CASE WHEN c.off + c.length < o.off + o.length THEN c.off + c.length ELSE o.off + o.length END"
    " - CASE WHEN c.off > o.off THEN c.off ELSE o.off END) AS BIGINT)"
    " FROM extent c JOIN extent o INDEXED BY extent_block"
    " ON o.space_id = c.space_id AND o.block = c.block AND o.ino = c.ino AND o.born = c.died"
    " AND o.off - o.block_offset = c.off - c.block_offset"
    " AND o.off < c.off + c.length AND c.off < o.off + o.length"
    " WHERE c.died IS NOT NULL{} GROUP BY c.space_id"
)
_DELETED: Final = "SELECT space_id, 1 FROM team WHERE deleted_ns > 0{}"


class Usage(NamedTuple):
    """The three figures of a space."""

    live_bytes: int
    history_bytes: int
    inodes: int


def stored(cx: Cx) -> dict[SpaceId, Usage]:
    """Return what the spaces' rows say."""
    return {row[0]: Usage(*row[1:]) for row in cx.all(_STORED)}


def counted(cx: Cx, space: SpaceId | None = None) -> dict[SpaceId, Usage]:
    """Return what is true, of all spaces or one."""
    live = _rows(cx, _LIVE, space, "space_id")
    closed = _rows(cx, _CLOSED, space, "space_id")
    kept = _rows(cx, _KEPT, space, "c.space_id")
    deleted = _rows(cx, _DELETED, space, "space_id")
    nothing = (0, 0)
    true = {
        each: Usage(
            live.get(each, nothing)[0],
            closed.get(each, nothing)[0] - kept.get(each, nothing)[0],
            live.get(each, nothing)[1],
        )
        for each in stored(cx)
    }
    for each in deleted:
        past, present = true[each].history_bytes, true[each].live_bytes
        true[each] = true[each]._replace(live_bytes=0, history_bytes=past + present)
    return true


def drifted(cx: Cx) -> dict[SpaceId, tuple[Usage, Usage]]:
    """Return (stored, true) of the spaces where these differ."""
    true = counted(cx)
    return {s: (known, true[s]) for s, known in stored(cx).items() if known != true[s]}


def repair(cx: Cx, space: SpaceId) -> None:
    """Write down the truth about a space; nobody commits to it meanwhile."""
    cx.lock_space(space)
    true = counted(cx, space)[space]
    cx.run(
        "UPDATE space SET live_bytes = ?, history_bytes = ?, inodes = ? WHERE id = ?", *true, space
    )


def _rows(cx: Cx, sql: str, space: SpaceId | None, column: str) -> dict[SpaceId, Any]:
    one = "" if space is None else f" AND {column} = ?"
    values = () if space is None else (space,)
    return {row[0]: (*row[1:], 0) for row in cx.all(sql.format(one), *values)}
