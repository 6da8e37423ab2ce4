"""The ledger of blocks: which node has which block, and where the next ones go.

A replica counts when its node acknowledged the bytes and nothing since said otherwise. Who may
say so: a client in its commit, the node itself in its beats. Who may say the contrary: any
reader (which makes the node look), the node itself. Rows of nodes that are away stay: a node
that comes back is counted, not refilled.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from everfold import wire
from everfold.blockid import BLOCK_ID_SIZE
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId, NodeId, NodeState, SpaceId
from everfold.services import Clock
from everfold.tokens import Signer
from nameserver import tasks
from nameserver.db import Cx, Database, select_in
from nameserver.nodes import LIVE, Member, NodeBook
from nameserver.placement import Candidate, choose
from nameserver.policy import Policy

PLAN_MAX = 20_000  # blocks in one question
SPARES_MAX = 16
_NONE: frozenset[NodeId] = frozenset()
_ANY_BAD = "SELECT 1 FROM replica INDEXED BY replica_bad WHERE space_id = ? AND is_bad > 0 LIMIT 1"
_READ_ORDER = {
    NodeState.UP: 0,
    NodeState.DRAINING: 1,
    NodeState.SUSPECT: 2,
    NodeState.DOWN: 3,  # perhaps only the nameserver was away
}


class _Copy(NamedTuple):
    node: NodeId
    is_bad: int


class Ledger:
    """The replica map. Implements what the tree needs of it (`BlockLedger`)."""

    def __init__(
        self, db: Database, clock: Clock, policy: Policy, nodes: NodeBook, tokens: BlockTokens
    ) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._nodes = nodes
        self._tokens = tokens
        self._rng = random.Random(random.getrandbits(64))  # tests seed the global one

    # ------------------------------------------------------------ for the tree

    def record(
        self,
        cx: Cx,
        space: SpaceId,
        stored: Sequence[wire.Stored],
        now_ns: int,
        min_replicas: int,
    ) -> set[BlockId]:
        """Note what a client put, and keep it from the garbage collector for a while.

        A copy on a node that is told to drop the block does not count: who put it without
        asking (`Placements.spares`) cannot have known. Returns what is safe by these copies
        alone; nothing while the space has any bad copy, which might be one of them.
        """
        members = self._nodes.members(cx)
        dropping = _drops(cx, space, {item.block for item in stored})
        for item in stored:
            _check_block(item.block, item.size)
        stored = sorted(stored, key=lambda s: s.block)  # one order: no deadlock with a beat
        taking = {
            m.id for m in members.values() if m.state not in (NodeState.FAILED, NodeState.REMOVED)
        }
        copies = [
            (item.block, {n for n in item.nodes if n in taking} - dropping.get(item.block, _NONE))
            for item in stored
        ]
        cx.many(
            "INSERT INTO block (space_id, block, size, kept_ns) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (space_id, block) DO UPDATE SET kept_ns = excluded.kept_ns",
            [(space, s.block, s.size, now_ns) for s in stored],
        )
        cx.many(
            "INSERT INTO replica (space_id, block, node, is_bad) VALUES (?, ?, ?, 0)"
            " ON CONFLICT (space_id, block, node) DO UPDATE"
            " SET is_bad = CASE WHEN replica.is_bad = 2 THEN 0 ELSE replica.is_bad END",
            [(space, block, node) for block, nodes in copies for node in sorted(nodes)],
        )
        if cx.one(_ANY_BAD, space) is not None:
            return set()
        return {block for block, nodes in copies if _is_safe(nodes, members, min_replicas)}

    def short(
        self, cx: Cx, space: SpaceId, blocks: Iterable[BlockId], min_replicas: int
    ) -> set[BlockId]:
        """Return those of `blocks` that are on too few nodes to be named by a commit."""
        wanted = set(blocks)
        members = self._nodes.members(cx)
        held = self._copies(cx, space, wanted)
        short: set[BlockId] = set()
        for block in wanted:
            nodes = [c.node for c in held.get(block, ()) if not c.is_bad]
            if not _is_safe(nodes, members, min_replicas):
                short.add(block)
        return short

    def where(
        self, cx: Cx, space: SpaceId, blocks: Iterable[BlockId]
    ) -> dict[BlockId, list[NodeId]]:
        """Return the nodes to read each block from, best first; blocks without any are left out.

        Among equals each block has its own order, which spreads the reads and stays the same.
        """
        members = self._nodes.members(cx)
        answer: dict[BlockId, list[NodeId]] = {}
        for block, copies in self._copies(cx, space, blocks).items():
            ranked = [
                (c.is_bad, _READ_ORDER[members[c.node].state], _turn(block, c.node), c.node)
                for c in copies
                if c.is_bad < 2 and members[c.node].state in _READ_ORDER
            ]
            if ranked:
                answer[block] = [node for *_, node in sorted(ranked)]
        return answer

    def _copies(
        self, cx: Cx, space: SpaceId, blocks: Iterable[BlockId]
    ) -> dict[BlockId, list[_Copy]]:
        members = self._nodes.members(cx)
        found: dict[BlockId, list[_Copy]] = {}
        for block, node, is_bad in select_in(
            cx,
            "SELECT block, node, is_bad FROM replica WHERE space_id = ? AND block IN ({})",
            (space,),
            set(blocks),
        ):
            if node in members:
                found.setdefault(block, []).append(_Copy(node, is_bad))
        return found

    # ------------------------------------------------------------ for clients

    def plan(self, ask: wire.Plan) -> wire.Placements:
        """See `wire.Plan`. UNAVAILABLE or NO_SPACE when too few nodes can be written to."""
        if len(ask.blocks) > PLAN_MAX:
            raise EverfoldError(Kind.INVALID, f"at most {PLAN_MAX} blocks in one question")
        for block, size in ask.blocks:
            _check_block(block, size)
        names = {block for block, _ in ask.blocks}
        with self._db.read() as cx:
            planner = _PlacementRound(
                self._policy, self._nodes.members(cx), set(ask.avoid), self._rng
            )
            planner.replicas = self._replicas(cx, ask.space)
            planner.copies = self._copies(cx, ask.space, names)
            dropping = _drops(cx, ask.space, names)
            fading = self._fading(cx, ask.space, names)
            may_spare = ask.spares > 0 and not _any_drops(cx)
        if fading or dropping:
            planner.dropping = self._keep(ask.space, fading, dropping)
        targets = [planner.targets(block, size) for block, size in ask.blocks]
        spares = planner.spares(min(ask.spares, SPARES_MAX)) if may_spare else []
        token, expires = self._tokens.give(ask.space)
        named = {node for nodes in [*targets, *spares] if nodes for node in nodes}
        return wire.Placements(
            targets, self._nodes.named(named), token, expires, spares, self._policy.spares_s
        )

    def _replicas(self, cx: Cx, space: SpaceId) -> int:
        row = cx.one("SELECT replicas FROM space WHERE id = ?", space)
        return int(row[0]) if row and row[0] else self._policy.replicas

    def _fading(self, cx: Cx, space: SpaceId, blocks: set[BlockId]) -> list[BlockId]:
        """Return the known blocks whose grace must be renewed; most plans need no write."""
        before = self._clock.time_ns() - int(self._policy.gc_grace_s * 0.25e9)
        sql = "SELECT block FROM block WHERE space_id = ? AND kept_ns < ? AND block IN ({})"
        return [row[0] for row in select_in(cx, sql, (space, before), blocks)]

    def _keep(
        self, space: SpaceId, fading: list[BlockId], dropping: dict[BlockId, set[NodeId]]
    ) -> dict[BlockId, set[NodeId]]:
        """Renew the grace of blocks, call back drops that no node has got yet; return the rest."""
        now = self._clock.time_ns()
        with self._db.write() as cx:
            if dropping:
                tasks.hold(cx)
            cx.many(
                "UPDATE block SET kept_ns = ? WHERE space_id = ? AND block = ?",
                [(now, space, block) for block in sorted(fading)],
            )
            tasks.call_back(cx, space, dropping)
            return _drops(cx, space, set(dropping))

    def locate(self, ask: wire.Locate, verbs: str = "rw") -> wire.Located:
        """See `wire.Locate`. `verbs`: what the token is good for."""
        if len(ask.blocks) > PLAN_MAX:
            raise EverfoldError(Kind.INVALID, f"at most {PLAN_MAX} blocks in one question")
        with self._db.read() as cx:
            where = self.where(cx, ask.space, ask.blocks)
        token, expires = self._tokens.give(ask.space, verbs)
        named = {node for nodes in where.values() for node in nodes}
        return wire.Located(where, self._nodes.named(named), token, expires)

    def report_bad(self, ask: wire.ReportBad) -> wire.Done:
        """Stop counting a copy that a reader complains of, and make its node look."""
        if ask.reason not in ("corrupt", "missing"):
            raise EverfoldError(Kind.INVALID, "the reason is corrupt or missing", ask.reason[:80])
        now = self._clock.time_ns()
        with self._db.write() as cx:
            tasks.hold(cx, [ask.node])
            touched = cx.run(
                "UPDATE replica SET is_bad = CASE WHEN is_bad = 2 THEN 2 ELSE 1 END"
                " WHERE space_id = ? AND block = ? AND node = ?",
                ask.space,
                ask.block,
                ask.node,
            )
            if touched:
                tasks.queue(cx, [tasks.Task(ask.node, tasks.VERIFY, ask.space, ask.block)], now)
        return wire.Done()

    def token(self, space: SpaceId, verbs: str = "rw") -> tuple[str, float]:
        """Return a token for the space's blocks at the datanodes, and when it expires."""
        return self._tokens.give(space, verbs)


class _PlacementRound:
    """The placement of one question's blocks; pure but for its random draws."""

    def __init__(
        self,
        policy: Policy,
        members: dict[NodeId, Member],
        avoid: set[NodeId],
        rng: random.Random,
    ) -> None:
        self._policy = policy
        self._members = members
        self._avoid = avoid
        self._rng = rng
        self._shared: list[NodeId] | None = None  # where the current pack of small blocks goes
        self._shared_left = 0
        self.replicas = policy.replicas
        self.copies: dict[BlockId, list[_Copy]] = {}
        self.dropping: dict[BlockId, set[NodeId]] = {}

    def targets(self, block: BlockId, size: int) -> list[NodeId] | None:
        """Return where this block is still to be written, None when it is safe already."""
        copies = self.copies.get(block, [])
        good = [c.node for c in copies if not c.is_bad and self._members[c.node].state in LIVE]
        if len(good) >= self._policy.min_replicas:
            return None
        if size < SMALL_BLOCK and not copies and block not in self.dropping:
            return self._with_the_small_ones(size)
        suspects = {c.node for c in copies if c.is_bad == 1}
        barred = suspects | set(good) | self.dropping.get(block, set())
        return self._draw(size, good, barred)

    def spares(self, count: int) -> list[list[NodeId]]:
        """Return places for small blocks that are not known yet; none when it is tight."""
        try:
            return [self._draw(BLOCK_MAX, [], set()) for _ in range(count)]
        except EverfoldError as err:
            if err.kind not in (Kind.NO_SPACE, Kind.UNAVAILABLE):
                raise
            return []

    def _with_the_small_ones(self, size: int) -> list[NodeId]:
        """Small blocks of one question go to the same nodes: few requests, packed together."""
        if self._shared is None or self._shared_left < size:
            self._shared = self._draw(size, [], set())
            self._shared_left = BLOCK_MAX
        self._shared_left -= size
        return self._shared

    def _draw(self, size: int, good: list[NodeId], barred: set[NodeId]) -> list[NodeId]:
        least = self._policy.min_replicas - len(good)
        zones = {self._members[node].zone for node in good}
        for without in (barred | self._avoid, barred):
            writable = [
                Candidate(m.id, m.zone, m.free)
                for m in self._members.values()
                if m.state is NodeState.UP and m.id not in without
            ]
            chosen = choose(writable, self.replicas - len(good), size, self._rng, zones)
            if len(chosen) >= least:
                return chosen
        if len(writable) >= least:
            raise EverfoldError(Kind.NO_SPACE, "the datanodes are full")
        raise EverfoldError(
            Kind.UNAVAILABLE,
            f"{len(writable)} datanodes can be written to, {least} are needed",
        )


class BlockTokens:
    """Tokens for the datanodes, each handed out for the first half of its life."""

    def __init__(self, signer: Signer, clock: Clock, ttl_s: float) -> None:
        self._signer = signer
        self._clock = clock
        self._ttl_s = ttl_s
        self._made: dict[tuple[SpaceId, str], tuple[str, float]] = {}

    def give(self, space: SpaceId, verbs: str = "rw") -> tuple[str, float]:
        """Return (token, when it expires in seconds since the epoch)."""
        now = self._clock.time_ns() / 1e9
        made = self._made.get((space, verbs))
        if made is None or made[1] - now < self._ttl_s / 2:
            token = self._signer.mint("blocks", self._ttl_s, space=space, verbs=verbs)
            made = self._made[space, verbs] = (token, float(int(now) + int(self._ttl_s)))
        return made


def _is_safe(nodes: Collection[NodeId], members: dict[NodeId, Member], min_replicas: int) -> bool:
    """Tell whether a commit may name a block that is on these nodes.

    A copy on a node that has just gone down still counts (its bytes are on its disk) as long
    as another node can be read; repair replaces it.
    """
    live = down = 0
    for node in nodes:
        state = members[node].state
        if state in LIVE:
            live += 1
        elif state is NodeState.DOWN:
            down += 1
    return live > 0 and live + down >= min_replicas


def _any_drops(cx: Cx) -> bool:
    return cx.one("SELECT 1 FROM task WHERE kind = 'drop' LIMIT 1") is not None


def _drops(cx: Cx, space: SpaceId, blocks: set[BlockId]) -> dict[BlockId, set[NodeId]]:
    """Return the nodes that are about to drop one of these blocks: a put there may be lost."""
    if not _any_drops(cx):
        return {}
    found: dict[BlockId, set[NodeId]] = {}
    sql = "SELECT block, node FROM task WHERE space_id = ? AND kind = 'drop' AND block IN ({})"
    for block, node in select_in(cx, sql, (space,), blocks):
        found.setdefault(block, set()).add(node)
    return found


def _check_block(block: BlockId, size: int) -> None:
    if len(block) != BLOCK_ID_SIZE or not 1 <= size <= BLOCK_MAX:
        raise EverfoldError(
            Kind.INVALID, f"not a block of 1 to {BLOCK_MAX} bytes", block[:32].hex()
        )


def _turn(block: BlockId, node: NodeId) -> int:
    """Return a number that orders the nodes differently, and always the same, for each block."""
    return zlib.crc32(node.encode(), int.from_bytes(block[:4], "big"))
