"""Garbage: blocks that no extent of any moment names, no upload, and nobody asked for lately.

There are no reference counters that could drift: the extents are asked. A client that is
about to use a block has planned it, which renews its grace; a commit touches its row, so on
PostgreSQL the two meet at that row's lock and the later one sees what the earlier did.
"""

from __future__ import annotations

from everfold.model import BlockId, NodeId, SpaceId
from everfold.services import Clock
from nameserver import tasks
from nameserver.db import Cx, Database
from nameserver.policy import Policy

_ROUND = 500
_UNNAMED = (
    "NOT EXISTS (SELECT 1 FROM extent e WHERE e.space_id = block.space_id"
    " AND e.block = block.block)"
    " AND NOT EXISTS (SELECT 1 FROM upload_block u WHERE u.space_id = block.space_id"
    " AND u.block = block.block)"
)


def collect(db: Database, clock: Clock, policy: Policy) -> int:
    """Forget one round of garbage and tell its nodes to drop it; return how many blocks.

    Blocks of spaces that this database does not know are left alone: perhaps it is the
    database that lost something.
    """
    now = clock.time_ns()
    before = now - int(policy.gc_grace_s * 1e9)
    with db.read() as cx:
        found = cx.all(
            f"SELECT space_id, block FROM block WHERE kept_ns < ? AND {_UNNAMED}"
            " AND space_id IN (SELECT id FROM space) ORDER BY space_id, block LIMIT ?",
            before,
            _ROUND,
        )
    if not found:
        return 0
    drops: list[tasks.Task] = []
    with db.write() as cx:
        tasks.hold(cx)
        gone = sum(_collect(cx, SpaceId(s), BlockId(b), before, drops) for s, b in found)
        tasks.queue(cx, drops, now)
    return gone


def _collect(cx: Cx, space: SpaceId, block: BlockId, before: int, drops: list[tasks.Task]) -> int:
    gone = cx.run(
        f"DELETE FROM block WHERE space_id = ? AND block = ? AND kept_ns < ? AND {_UNNAMED}",
        space,
        block,
        before,
    )
    if gone:
        nodes = cx.all("SELECT node FROM replica WHERE space_id = ? AND block = ?", space, block)
        cx.run("DELETE FROM replica WHERE space_id = ? AND block = ?", space, block)
        drops += [tasks.Task(NodeId(node), tasks.DROP, space, block) for (node,) in nodes]
    return gone
