"""The state of the cluster in figures, as tools and the web page show it."""

from __future__ import annotations

import time
from typing import Any

from everfold.model import NodeId, NodeState
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.departures import Departures
from nameserver.nodes import LIVE, Member, NodeBook
from nameserver.policy import Policy

_LONG_S = 0.25
Json = dict[str, Any]


class Status:
    """Counts. Every question is answered from the database, as it is now."""

    def __init__(
        self, db: Database, clock: Clock, policy: Policy, nodes: NodeBook, departures: Departures
    ) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._nodes = nodes
        self._departures = departures
        self._counted: dict[NodeId, tuple[int, float]] = {}  # until when it is good enough

    def figures(self) -> Json:
        """Return what `everfold status` tells.

        `under_replicated`: blocks with fewer good copies than wanted on nodes that can be
        read; `missing`: those of them that a file (now or in history) needs and no node can
        give; `corrupt`: copies known or said to be bad, not healed yet.
        """
        with self._db.read() as cx:
            members = list(self._nodes.read(cx).values())
            live = [m.id for m in members if m.state in LIVE] or [NodeId("")]
            under, missing = self._deficit(cx, live)
            marks = ",".join("?" * len(live))
            answer: Json = {
                "blocks": _count(cx, "SELECT count(*) FROM block"),
                "replicas": self._policy.replicas,
                "min_replicas": self._policy.min_replicas,
                "under_replicated": under,
                "missing": missing,
                "corrupt": _count(
                    cx,
                    f"SELECT count(*) FROM replica WHERE is_bad > 0 AND node IN ({marks})",
                    *live,
                ),
                "repairing": _count(cx, "SELECT count(*) FROM task WHERE kind = 'copy'"),
            }
            shown = [m for m in members if m.state is not NodeState.REMOVED]
            answer["nodes"] = self._rows(cx, members)
        answer["nodes_up"] = sum(m.state is NodeState.UP for m in shown)
        answer["space_used"] = sum(m.used for m in shown)
        answer["space_free"] = sum(m.free for m in shown if m.state in LIVE)
        answer["space_capacity"] = sum(m.capacity for m in shown)
        return answer

    def _deficit(self, cx: Cx, live: list[NodeId]) -> tuple[int, int]:
        marks = ",".join("?" * len(live))
        row = cx.one(
            "SELECT count(*), coalesce(sum(CASE WHEN x.copies = 0 THEN 1 ELSE 0 END), 0) FROM ("
            " SELECT b.space_id, b.block, count(r.node) AS copies FROM block b"
            " LEFT JOIN space s ON s.id = b.space_id"
            " LEFT JOIN replica r ON r.space_id = b.space_id AND r.block = b.block"
            f" AND r.is_bad = 0 AND r.node IN ({marks})"
            " GROUP BY b.space_id, b.block, s.replicas"
            " HAVING count(r.node) < coalesce(nullif(s.replicas, 0), ?)) x"
            # what no node has and no file needs is nothing, not a loss
            " WHERE x.copies > 0 OR EXISTS (SELECT 1 FROM extent e"
            " WHERE e.space_id = x.space_id AND e.block = x.block)",
            *live,
            self._policy.replicas,
        )
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def system(self) -> Json:
        """Return what the admin's overview tells besides."""
        with self._db.read() as cx:
            return {
                "users": _count(cx, "SELECT count(*) FROM account"),
                "spaces": _count(cx, "SELECT count(*) FROM space"),
                "inodes": _count(cx, "SELECT coalesce(sum(inodes), 0) FROM space"),
                "live_bytes": _count(cx, "SELECT coalesce(sum(live_bytes), 0) FROM space"),
                "history_bytes": _count(cx, "SELECT coalesce(sum(history_bytes), 0) FROM space"),
                "commits": _count(cx, "SELECT coalesce(sum(seq), 0) FROM space"),
                "mounts": _count(
                    cx,
                    "SELECT count(*) FROM mount WHERE seen_ns > ?",
                    self._clock.time_ns() - int(self._policy.session_ttl_s * 1e9),
                ),
            }

    def nodes(self) -> list[Json]:
        """Return all nodes but the removed ones.

        `to_copy`: of a node in use, the copies that it is about to get; of one that leaves or
        is away, its blocks that lack copies elsewhere (of one that drains, 0 is the end).
        """
        with self._db.read() as cx:
            return self._rows(cx, list(self._nodes.read(cx).values()))

    def node(self, node: NodeId) -> Json:
        """Return one node; NOT_FOUND."""
        self._nodes.get(node)
        return next(row for row in self.nodes() if row["id"] == node)

    def _rows(self, cx: Cx, members: list[Member]) -> list[Json]:
        return [
            {**_node(m), "to_copy": self._to_copy(cx, m, members)}
            for m in members
            if m.state is not NodeState.REMOVED
        ]

    def _to_copy(self, cx: Cx, member: Member, members: list[Member]) -> int:
        if member.state in (NodeState.UP, NodeState.SUSPECT):
            sql = "SELECT count(*) FROM task WHERE node = ? AND kind = 'copy'"
            return _count(cx, sql, member.id)
        return self._left(cx, member.id, members)

    def _left(self, cx: Cx, node: NodeId, members: list[Member]) -> int:
        """Return what is left to copy of a node; where to count it takes long, as of just now."""
        counted, good_until = self._counted.get(node, (0, 0.0))
        began = time.monotonic()
        if began < good_until:
            return counted
        counted = self._departures.needed(cx, node, members).to_copy
        ended = time.monotonic()
        if ended - began > _LONG_S:
            self._counted[node] = counted, ended + 10 * (ended - began)
        return counted


def _node(member: Member) -> Json:
    return {
        "id": member.id,
        "url": member.url,
        "state": member.state.value,
        "used": member.used,
        "capacity": member.capacity,
        "blocks": member.blocks,
        "zone": member.zone,
        "free": member.free,
        "silent_s": round(member.silent_s, 1),
    }


def _count(cx: Cx, sql: str, *values: object) -> int:
    row = cx.one(sql, *values)
    return int(row[0]) if row else 0
