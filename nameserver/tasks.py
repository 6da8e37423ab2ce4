"""The commands that wait for the nodes' beats.

The nameserver never calls a node: what a node shall do is a row here until its next beat
takes it, and until its report (or time) clears it. A lost row is harmless, since the planner
decides again from what is; a row never says that something *was* done.

Rows are taken in one order, so that no two transactions wait for each other: the nodes' own
(`hold`, by name), then those of blocks, then of copies, each in order of their keys. Whoever
changes a node's commands holds the node's row, and so never waits for the commands themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from everfold import wire
from everfold.model import BlockId, NodeId, SpaceId
from nameserver.db import Cx

COPY, DROP, VERIFY, LIST = "copy", "drop", "verify", "list"


class Task(NamedTuple):
    """What one node shall do with one block (of LIST: with one prefix byte)."""

    node: NodeId
    kind: str
    space: SpaceId
    block: BlockId
    size: int = 0


def hold(cx: Cx, nodes: Iterable[NodeId] | None = None) -> None:
    """Keep others from changing the commands of these nodes (None: of all) until the end.

    To be called before blocks and copies are changed in the same transaction. On SQLite nobody
    else writes anyway.
    """
    if not cx.is_postgres:
        return
    if nodes is None:
        cx.all("SELECT 1 FROM node ORDER BY id FOR UPDATE")
        return
    for node in sorted(set(nodes)):
        cx.one("SELECT 1 FROM node WHERE id = ? FOR UPDATE", node)


def queue(cx: Cx, tasks: Iterable[Task], now_ns: int) -> None:
    """Add commands; one that waits already stays as it is."""
    tasks = list(tasks)
    hold(cx, {task.node for task in tasks})
    cx.many(
        "INSERT INTO task (node, kind, space_id, block, size, queued_ns, sent_ns)"
        " VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
        [(*task, now_ns) for task in tasks],
    )


def list_prefixes(cx: Cx, node: NodeId, prefixes: Iterable[int], now_ns: int) -> None:
    """Ask a node for all that it holds under these prefixes."""
    asks = [Task(node, LIST, SpaceId(0), BlockId(bytes([prefix]))) for prefix in prefixes]
    queue(cx, asks, now_ns)


def take(
    cx: Cx, node: NodeId, limit: int, lists: int, now_ns: int, drop_rest_s: float
) -> list[Task]:
    """Return the commands that the node gets with this beat, and mark them as sent.

    A drop rests for `drop_rest_s` first: a client that may put blocks without asking
    (`wire.Placements.spares`) has committed by then what it put before the drop was queued.
    """
    rows = cx.all(
        "SELECT kind, space_id, block, size FROM task WHERE node = ? AND sent_ns = 0"
        " AND kind <> 'list' AND (kind <> 'drop' OR queued_ns <= ?) ORDER BY queued_ns LIMIT ?",
        node,
        now_ns - int(drop_rest_s * 1e9),
        limit,
    ) + cx.all(
        "SELECT kind, space_id, block, size FROM task WHERE node = ? AND sent_ns = 0"
        " AND kind = 'list' LIMIT ?",
        node,
        lists,
    )
    taken = [Task(node, row[0], row[1], row[2], row[3]) for row in rows]
    cx.many(
        "UPDATE task SET sent_ns = ?"
        " WHERE node = ? AND kind = ? AND space_id = ? AND block = ? AND sent_ns = 0",
        [(now_ns, node, t.kind, t.space, t.block) for t in taken],
    )
    return taken


def any_for(cx: Cx, node: NodeId) -> bool:
    """Tell whether anything waits for, or is with, a node."""
    return cx.one("SELECT 1 FROM task WHERE node = ? LIMIT 1", node) is not None


def any_ready(cx: Cx, node: NodeId, now_ns: int, drop_rest_s: float) -> bool:
    """Tell whether `take` would return any."""
    row = cx.one(
        "SELECT 1 FROM task WHERE node = ? AND sent_ns = 0"
        " AND (kind <> 'drop' OR queued_ns <= ?) LIMIT 1",
        node,
        now_ns - int(drop_rest_s * 1e9),
    )
    return row is not None


def clear(cx: Cx, node: NodeId, kinds: Sequence[str], blocks: Iterable[wire.Held]) -> None:
    """Forget commands that the node has got and whose outcome it has told."""
    cx.many(
        "DELETE FROM task WHERE node = ? AND kind = ? AND space_id = ? AND block = ?"
        " AND sent_ns > 0",
        [(node, kind, held.space, held.block) for held in blocks for kind in kinds],
    )


def clear_list(cx: Cx, node: NodeId, prefix: int) -> None:
    """Forget the question that a list answered."""
    cx.run(
        "DELETE FROM task WHERE node = ? AND kind = 'list' AND space_id = 0 AND block = ?",
        node,
        bytes([prefix]),
    )


def call_back(cx: Cx, space: SpaceId, blocks: Iterable[BlockId]) -> None:
    """Forget drops of these blocks that no node has got yet. After `hold` of all nodes."""
    cx.many(
        "DELETE FROM task WHERE kind = 'drop' AND sent_ns = 0 AND space_id = ? AND block = ?",
        [(space, block) for block in blocks],
    )


def expire(cx: Cx, now_ns: int, ttl_s: float, drop_ttl_s: float) -> int:
    """Forget what was sent long ago and never answered; return how many that were."""
    hold(cx)
    return cx.run(
        "DELETE FROM task WHERE sent_ns > 0"
        " AND sent_ns < CASE WHEN kind = 'drop' THEN ? ELSE ? END",
        now_ns - int(drop_ttl_s * 1e9),
        now_ns - int(ttl_s * 1e9),
    )


def discard(cx: Cx, node: NodeId) -> None:
    """Forget everything a node was to do: it is gone, others will do it."""
    hold(cx, [node])
    cx.run("DELETE FROM task WHERE node = ?", node)
