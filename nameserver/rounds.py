"""One round of repair against the database: what is endangered, what is decided, queued.

Every round starts from what is; nothing is remembered between rounds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from everfold.model import BlockId, NodeId, NodeState, SpaceId
from everfold.services import Clock
from nameserver import repair, tasks
from nameserver.db import Cx, Database, select_in
from nameserver.nodes import HEARD, LIVE, Member, NodeBook
from nameserver.policy import Policy
from nameserver.repair import BlockView, Decision, NodeView

_ROUND = 4000  # blocks looked at in one round
_THIN = 500  # blocks thinned out in one transaction

_HELD = "SELECT block, node, is_bad FROM replica WHERE space_id = ? AND block IN ({})"
_COMING = "SELECT block, node FROM task WHERE kind = 'copy' AND space_id = ? AND block IN ({})"

Found = tuple[SpaceId, BlockId, int, int]  # space, block, size, wanted
Members = Mapping[NodeId, Member]


class Rounds:
    """Repair rounds. Used by one thread."""

    def __init__(self, db: Database, clock: Clock, policy: Policy, nodes: NodeBook) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._nodes = nodes
        self._rng = random.Random(random.getrandbits(64))  # tests seed the global one

    def repair(self) -> int:
        """Queue the copies that are missing; return how many blocks are endangered."""
        now = self._clock.time_ns()
        with self._db.read() as cx:
            members = self._nodes.read(cx)
            views = self._views(cx, members)
            found = self._endangered(cx, views, now) + self._doubted(cx, members)
            blocks = self._blocks(cx, found)
        if not found:
            return 0
        decision = repair.plan(blocks, views, self._rng)
        if decision.copies or decision.verifies or decision.forget:
            with self._db.write() as cx:
                tasks.hold(cx)
                _forget(cx, decision)
                tasks.queue(cx, [*decision.copies, *decision.verifies], now)
        return len(found)

    def thin(self) -> int:
        """Drop copies that are too many; return how many.

        Looks and decides in the transaction that takes the copies out of the map, so nobody
        counts on one that is about to go.
        """
        now = self._clock.time_ns()
        with self._db.read() as cx:
            if self._is_listing(cx) or not self._surplus(cx, self._nodes.read(cx)):
                return 0
        with self._db.write() as cx:
            tasks.hold(cx)
            members = self._nodes.read(cx)
            views = self._views(cx, members)
            blocks = self._blocks(cx, self._surplus(cx, members))
            decision = repair.plan(blocks, views, self._rng, may_drop=True)
            _forget(cx, decision)
            tasks.queue(cx, decision.drops, now)
        return len(decision.drops)

    # ------------------------------------------------------------ what is

    def _views(self, cx: Cx, members: Members) -> dict[NodeId, NodeView]:
        return {m.id: self._view(cx, m) for m in members.values()}

    def _view(self, cx: Cx, member: Member) -> NodeView:
        state = member.state
        grace_s = self._policy.down_s + self._policy.repair_grace_s
        is_blinking = state is NodeState.DOWN and member.silent_s < grace_s
        row = cx.one(
            "SELECT count(*), coalesce(sum(size), 0) FROM task WHERE node = ? AND kind = 'copy'",
            member.id,
        )
        queued_blocks, queued_bytes = row or (0, 0)
        return NodeView(
            id=member.id,
            zone=member.zone,
            free=member.free,
            counts=state in (NodeState.UP, NodeState.SUSPECT) or is_blinking,
            reads=state in LIVE,
            writes=state is NodeState.UP,
            is_up=state is NodeState.UP,
            room_blocks=self._policy.repair_blocks - int(queued_blocks),
            room_bytes=self._policy.repair_bytes - int(queued_bytes),
        )

    def _endangered(self, cx: Cx, views: dict[NodeId, NodeView], now_ns: int) -> list[Found]:
        """Return the blocks with too few copies that count and one to read, the fewest first.

        Those that nobody can give are left out: they must not stand in the way of others.
        """
        counting = _or_none(view.id for view in views.values() if view.counts)
        reading = _or_none(view.id for view in views.values() if view.reads)
        counts = f"sum(CASE WHEN r.node IN ({_marks(counting)}) THEN 1 ELSE 0 END)"
        reads = f"sum(CASE WHEN r.node IN ({_marks(reading)}) THEN 1 ELSE 0 END)"
        wanted = "coalesce(nullif(s.replicas, 0), ?)"
        rows = cx.all(
            f"SELECT b.space_id, b.block, b.size, {wanted} FROM replica r"
            " JOIN block b ON b.space_id = r.space_id AND b.block = r.block"
            " LEFT JOIN space s ON s.id = b.space_id WHERE r.is_bad = 0 AND b.kept_ns < ?"
            " GROUP BY b.space_id, b.block, b.size, s.replicas"
            f" HAVING {counts} < {wanted} AND {reads} > 0 ORDER BY {reads} LIMIT ?",
            self._policy.replicas,
            now_ns - int(self._policy.settle_s * 1e9),
            *counting,
            self._policy.replicas,
            *reading,
            *reading,
            _ROUND,
        )
        return [(SpaceId(r[0]), BlockId(r[1]), r[2], r[3]) for r in rows]

    def _doubted(self, cx: Cx, members: Members) -> list[Found]:
        """Return blocks with a bad copy, unless only an absent node can tell more about it."""
        suspect_s = self._policy.suspect_s
        heard = _or_none(m.id for m in members.values() if m.silent_s < suspect_s)
        return self._found(
            cx,
            "SELECT DISTINCT r.space_id, r.block FROM replica r"
            f" WHERE r.is_bad > 0 AND (r.is_bad = 2 OR r.node IN ({_marks(heard)})) LIMIT ?",
            *heard,
            _THIN,
        )

    def _surplus(self, cx: Cx, members: Members) -> list[Found]:
        """Return blocks with more copies than wanted, or with copies on nodes being emptied."""
        heard = _or_none(m.id for m in members.values() if m.state in HEARD)
        return self._found(
            cx,
            "SELECT r.space_id, r.block FROM replica r LEFT JOIN space s ON s.id = r.space_id"
            f" WHERE r.is_bad = 0 AND r.node IN ({_marks(heard)})"
            " GROUP BY r.space_id, r.block, s.replicas"
            " HAVING count(*) > coalesce(nullif(s.replicas, 0), ?) LIMIT ?",
            *heard,
            self._policy.replicas,
            _THIN,
        )

    def _found(self, cx: Cx, sql: str, *values: object) -> list[Found]:
        rows = cx.all(
            "SELECT b.space_id, b.block, b.size, coalesce(nullif(s.replicas, 0), ?)"
            f" FROM ({sql}) x JOIN block b ON b.space_id = x.space_id AND b.block = x.block"
            " LEFT JOIN space s ON s.id = b.space_id",
            self._policy.replicas,
            *values,
        )
        return [(SpaceId(r[0]), BlockId(r[1]), r[2], r[3]) for r in rows]

    def _blocks(self, cx: Cx, found: Sequence[Found]) -> list[BlockView]:
        by_space: dict[SpaceId, dict[BlockId, tuple[int, int]]] = {}
        for space, block, size, wanted in found:
            by_space.setdefault(space, {})[block] = (size, wanted)
        views = []
        for space, blocks in by_space.items():
            held: dict[BlockId, dict[NodeId, int]] = {block: {} for block in blocks}
            coming: dict[BlockId, set[NodeId]] = {block: set() for block in blocks}
            for block, node, is_bad in select_in(cx, _HELD, (space,), blocks):
                held[block][node] = is_bad
            for block, node in select_in(cx, _COMING, (space,), blocks):
                coming[block].add(node)
            views += [
                BlockView(space, block, size, wanted, held[block], frozenset(coming[block]))
                for block, (size, wanted) in blocks.items()
            ]
        return views

    def _is_listing(self, cx: Cx) -> bool:
        """Tell whether a node is still telling what it has: until then nothing is too much."""
        return cx.one("SELECT 1 FROM task WHERE kind = 'list' LIMIT 1") is not None


def _or_none(nodes: Iterable[NodeId]) -> list[NodeId]:
    """Return nodes for an IN list, which must not be empty: in place of none, no node's name."""
    return list(nodes) or [NodeId("")]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _forget(cx: Cx, decision: Decision) -> None:
    """Take out of the map what is about to be dropped, and bad copies unless they have healed."""
    sql = "DELETE FROM replica WHERE space_id = ? AND block = ? AND node = ?"
    cx.many(sql, sorted((t.space, t.block, t.node) for t in decision.drops))
    cx.many(sql + " AND is_bad = 2", sorted(decision.forget))
