"""How a datanode leaves: drained first, so that its copies are elsewhere, then removed.

Invariant: without `force`, no block has fewer copies after a removal than it is to have. What
a removed node has on its disk stays there; `Service.repair_node` takes it back and counts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import NodeId, NodeState
from everfold.services import Clock
from nameserver import tasks
from nameserver.audit import note
from nameserver.db import Cx, Database
from nameserver.nodes import LIVE, Member, NodeBook
from nameserver.policy import Policy

_COUNTS: Final = (NodeState.UP, NodeState.SUSPECT)
_NEXT_SPACE: Final = "SELECT space_id FROM replica WHERE space_id > ? ORDER BY space_id LIMIT 1"
_FORGET: Final = "DELETE FROM replica WHERE space_id = ? AND block >= ? AND block <= ? AND node = ?"


class Needed(NamedTuple):
    """Blocks that lack copies without a node: `to_copy` of the wanted number, `sole` all."""

    to_copy: int
    sole: int


class Departures:
    """Drains and removes nodes. Thread-safe."""

    def __init__(self, db: Database, clock: Clock, policy: Policy, nodes: NodeBook) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._nodes = nodes

    def drain(self, node: NodeId, author: str) -> None:
        """Put nothing more on a node, and copy what it has to the others; it is read until then."""
        had_failed = self._nodes.get(node).state is NodeState.FAILED
        self._nodes.say(node, "draining")
        now = self._clock.time_ns()
        with self._db.write() as cx:
            if had_failed:  # nobody has listened to its beats: what it has is counted anew
                tasks.list_prefixes(cx, node, range(256), now)
            note(cx, now, author, "node.drain", node)

    def remove(self, node: NodeId, author: str, force: bool = False) -> Needed:
        """Take a node out of the cluster; return what is needed of it, nothing unless forced.

        BUSY while it is written to (drain it first), or while a block needs its copy.
        """
        member = self._nodes.get(node)
        if member.state in _COUNTS and not force:
            raise EverfoldError(Kind.BUSY, "the node is in use; drain it first", node)
        now = self._clock.time_ns()
        with self._db.write() as cx:
            needed = self.needed(cx, node, self._nodes.read(cx).values())
            if needed.to_copy and not force:
                why = f"{needed.to_copy} blocks lack copies without it"
                lost = f", {needed.sole} of them have no other" if needed.sole else ""
                raise EverfoldError(Kind.BUSY, why + lost, node)
            cx.run("UPDATE node SET wanted = 'removed' WHERE id = ?", node)
            tasks.discard(cx, node)
            self._nodes.tell(cx)
            told = f"forced, {needed.to_copy} blocks lacked copies" if needed.to_copy else ""
            note(cx, now, author, "node.remove", node, told)
        self._nodes.changed()
        self._forget(node)
        return needed

    def needed(self, cx: Cx, node: NodeId, members: Iterable[Member]) -> Needed:
        """Return what would be lacking if this node's copies were not there."""
        others = [m for m in members if m.id != node]
        counting = [m.id for m in others if m.state in _COUNTS] or [NodeId("")]
        reading = [m.id for m in others if m.state in LIVE] or [NodeId("")]
        row = cx.one(
            "SELECT coalesce(sum(CASE WHEN x.good < x.wanted THEN 1 ELSE 0 END), 0),"
            " coalesce(sum(CASE WHEN x.readable = 0 THEN 1 ELSE 0 END), 0) FROM ("
            " SELECT coalesce(nullif(s.replicas, 0), ?) AS wanted,"
            f" sum(CASE WHEN o.node IN ({_marks(counting)}) THEN 1 ELSE 0 END) AS good,"
            f" sum(CASE WHEN o.node IN ({_marks(reading)}) THEN 1 ELSE 0 END) AS readable"
            " FROM replica r LEFT JOIN replica o"
            " ON o.space_id = r.space_id AND o.block = r.block AND o.is_bad = 0"
            " LEFT JOIN space s ON s.id = r.space_id WHERE r.node = ? AND r.is_bad < 2"
            " GROUP BY r.space_id, r.block, s.replicas) x",
            self._policy.replicas,
            *counting,
            *reading,
            node,
        )
        return Needed(int(row[0]), int(row[1])) if row else Needed(0, 0)

    def _forget(self, node: NodeId) -> None:
        """Take the node's copies out of the map, a little at a time; nobody counts on them."""
        with self._db.read() as cx:
            row = cx.one(_NEXT_SPACE, -1)
        while row is not None:
            for prefix in range(256):
                least = bytes([prefix])
                with self._db.read() as cx:
                    span = (row[0], least, least + b"\xff" * 32, node)
                    is_there = cx.one(_FORGET.replace("DELETE", "SELECT 1", 1), *span)
                if is_there:
                    with self._db.write() as cx:
                        cx.run(_FORGET, *span)
            with self._db.read() as cx:
                row = cx.one(_NEXT_SPACE, row[0])


def _marks(values: list[NodeId]) -> str:
    return ",".join("?" * len(values))
