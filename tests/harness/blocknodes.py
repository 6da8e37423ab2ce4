"""Datanodes and their nameserver in memory, each of which can be down, slow, lying or full.

The simplest correct thing with the interfaces that the mount's block I/O asks for. A slow node
waits on an Event (`gate`), never on a clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.fileslice import FileSlice
from everfold.model import BlockId, Node, NodeId, NodeState, SpaceId
from everfold.stores.memory import MemoryStore

SPACE = SpaceId(1)


class PendingPut:
    """A put that is made when its answer is asked for."""

    def __init__(self, put: Callable[[], list[Kind | None]]) -> None:
        self.result = put


class MemoryNode:
    """A datanode; also the client of itself."""

    def __init__(self, name: str, capacity: int | None = None) -> None:
        self.id = NodeId(name)
        self.store = MemoryStore(capacity)
        self.state = NodeState.UP
        self.token = ""
        self.good_tokens = {"t1"}
        self.is_down = False
        self.is_lying = False
        self.gate: threading.Event | None = None  # when set, calls wait for it
        self.needs_s = 0.0  # for any call: with less patience it ends in TIMEOUT (at once)
        self.patience: list[float] = []  # that was had with each call
        self.calls: list[str] = []  # verbs, in order of arrival
        self.received = 0  # blocks that came in put_many
        self.arrived = threading.Semaphore(0)  # released by every call that comes in

    @property
    def node(self) -> Node:
        """Return the node as the nameserver describes it."""
        return Node(self.id, f"http://{self.id}", self.state)

    def put(self, block: BlockId, data: bytes | memoryview | FileSlice, timeout_s: float) -> bool:
        self._answer("put", timeout_s)
        self.store.put(SPACE, block, bytes(data))
        return True

    def put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float
    ) -> list[Kind | None]:
        self._answer("put_many", timeout_s)
        self.received += len(blocks)
        kinds: list[Kind | None] = []
        for block, data in blocks:
            try:
                self.store.put(SPACE, block, data)
                kinds.append(None)
            except EverfoldError as err:
                kinds.append(err.kind)
        return kinds

    def begin_put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float
    ) -> PendingPut:
        return PendingPut(lambda: self.put_many(blocks, timeout_s))

    def get(self, block: BlockId, timeout_s: float) -> bytes:
        self._answer("get", timeout_s)
        data = self.store.get(SPACE, block)
        return bytes(len(data)) if self.is_lying else data

    def get_many(self, blocks: Sequence[BlockId], timeout_s: float) -> dict[BlockId, bytes]:
        self._answer("get_many", timeout_s)
        found = self.store.get_many(SPACE, blocks)
        return {b: bytes(len(data)) if self.is_lying else data for b, data in found.items()}

    def has(self, block: BlockId) -> bool:
        """Tell whether the block is kept here."""
        return self.store.size_of(SPACE, block) is not None

    def close(self) -> None:
        """Nothing is kept open."""

    def _answer(self, verb: str, timeout_s: float) -> None:
        self.calls.append(verb)
        self.patience.append(timeout_s)
        self.arrived.release()
        if self.is_down:
            raise EverfoldError(Kind.UNAVAILABLE, "connection refused", self.id)
        is_late = self.gate is not None and not self.gate.wait(timeout_s)
        if is_late or timeout_s < self.needs_s:
            raise EverfoldError(Kind.TIMEOUT, "no answer", self.id)
        if self.token not in self.good_tokens:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token has expired", self.id)


class MemoryNames:
    """The part of a nameserver that knows of nodes and blocks."""

    def __init__(self, nodes: list[MemoryNode], replicas: int) -> None:
        self.nodes = nodes
        self.replicas = replicas
        self.token = "t1"
        self.token_expires = 4e9
        self.is_down = False
        self.spares_s = 0.0  # none are told
        self.fails: list[Kind] = []  # what the next plans answer, first to last
        self.calls: list[str] = []
        self.avoided: list[list[NodeId]] = []
        self.reports: list[tuple[NodeId, BlockId, str]] = []
        self.reported = threading.Semaphore(0)

    def client(self, node: Node) -> MemoryNode:
        """Return the client of a node."""
        return next(each for each in self.nodes if each.id == node.id)

    def where(self, block: BlockId) -> list[NodeId]:
        """Return who has a block and is not known to lie."""
        bad = {node for node, reported, _ in self.reports if reported == block}
        return [n.id for n in self.nodes if n.has(block) and n.id not in bad]

    def plan(self, ask: wire.Plan) -> wire.Placements:
        self._answer("plan")
        if self.fails:
            raise EverfoldError(self.fails.pop(0), "as told")
        self.avoided.append(list(ask.avoid))
        targets = [self._targets(block, set(ask.avoid)) for block, _ in ask.blocks]
        nodes = [node.node for node in self.nodes]
        spares = [self._targets(BlockId(b""), set(ask.avoid)) for _ in range(ask.spares)]
        return wire.Placements(
            targets,
            nodes,
            self.token,
            self.token_expires,
            [place for place in spares if place] if self.spares_s else [],
            self.spares_s,
        )

    def _targets(self, block: BlockId, avoid: set[NodeId]) -> list[NodeId] | None:
        has = self.where(block)
        if len(has) >= self.replicas:
            return None
        free = [n.id for n in self.nodes if n.id not in has and n.state is NodeState.UP]
        preferred = [n for n in free if n not in avoid] + [n for n in free if n in avoid]
        return preferred[: self.replicas - len(has)]

    def locate(self, ask: wire.Locate) -> wire.Located:
        self._answer("locate")
        where = {block: self.where(block) for block in ask.blocks if self.where(block)}
        nodes = [node.node for node in self.nodes]
        return wire.Located(where, nodes, self.token, self.token_expires)

    def report_bad(self, ask: wire.ReportBad) -> wire.Done:
        self._answer("report_bad")
        self.reports.append((ask.node, ask.block, ask.reason))
        self.reported.release()
        return wire.Done()

    def _answer(self, verb: str) -> None:
        self.calls.append(verb)
        if self.is_down:
            raise EverfoldError(Kind.UNAVAILABLE, "the nameserver is away")
