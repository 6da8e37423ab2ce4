"""Putting blocks on datanodes: not done before `min_replicas` nodes have acknowledged each.

A few small blocks go straight to a place that is known beforehand (`mount.express`). For all
others a round asks the nameserver where the blocks shall go (`plan`), and gives every target
node a lane: a queue of requests (many small blocks, or one large) that a few threads work
through. A lane whose node fails is dead at once, with what it still had; the next round plans
the rest again, without the nodes that failed as far as others are left, and with more patience
when none had acknowledged anything: where all disks are slow, nothing else ends. A round does not
wait for stragglers once every block has its acknowledgements and a short grace is over: the
repairer makes the missing copies.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import SMALL_BLOCK, BlockId, NodeId, SpaceId
from everfold.services import NameService
from mount import express
from mount.express import Block, Bytes
from mount.nodes import BlockClient, Nodes

BATCH_BYTES: Final = 4 * 1024 * 1024
BATCH_BLOCKS: Final = 512
PLAN_BLOCKS: Final = 4096  # of one question to the nameserver
SPARES: Final = 8  # places for small blocks to know beforehand: as many nodes take turns
_SLOWEST: Final = 16 * 1024 * 1024  # bytes a second below which a node counts as hung
_LANE_THREADS: Final = 3  # requests under way to one node, of one store
_PAUSE_S: Final = (0.05, 1.0)  # between rounds that brought nothing
_SLOW: Final = 3.0  # a node that has been slow lately may take so many times as long
_ATTEMPT_MAX_S: Final = 16.0  # where all are slow
_NAMES: Final = NodeId("nameserver")  # among those that failed
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreTiming:
    """Seconds."""

    attempt_s: float = 1.0  # of one request, besides what its bytes need; more where all are slow
    grace_s: float = 0.5  # for stragglers; more when all were slow
    deadline_s: float = 30.0  # without any acknowledgement


@dataclass
class _Lane:
    node: NodeId
    requests: deque[list[Block]]
    threads: int = 0  # at work in it
    acked: int = 0
    silent_until: float = math.inf  # then it counts as hung; set when a request goes out
    is_dead: bool = False


class Storer:
    """Stores blocks of one space. Thread-safe."""

    def __init__(
        self,
        space: SpaceId,
        names: NameService,
        nodes: Nodes,
        min_replicas: int,
        timing: StoreTiming,
        threads: int,
    ) -> None:
        self._space, self._names, self._nodes = space, names, nodes
        self._min_replicas = min_replicas
        self._timing = timing
        self._calls = ThreadPoolExecutor(threads, "block-put")
        self._closing = threading.Event()

    def close(self) -> None:
        """Give up what is queued; calls under way end by their own deadlines."""
        self._closing.set()
        self._calls.shutdown(wait=False, cancel_futures=True)

    def store(
        self,
        blocks: Sequence[Block],
        deadline_s: float | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[wire.Stored]:
        """Return when every block is on enough nodes; see `BlockIO.store`.

        `meanwhile` is run once, while the first round's requests are under way.
        """
        if express.is_small(blocks):
            stored = express.put(
                self._nodes,
                blocks,
                lambda node: _patience(self._nodes, node, self._timing.attempt_s),
                meanwhile,
            )
            if stored is not None:
                return stored
        want = dict(blocks)
        result: dict[BlockId, wire.Stored] = {}
        acks: dict[BlockId, list[NodeId]] = {}
        patience_s = self._timing.deadline_s if deadline_s is None else deadline_s
        ends, pause = time.monotonic() + patience_s, _PAUSE_S[0]
        attempt_s = self._timing.attempt_s
        while True:
            before = len(result) + sum(map(len, acks.values()))
            failures: dict[NodeId, Kind] = {}
            try:
                self._store_once(want, acks, failures, result, attempt_s, meanwhile)
                meanwhile = _nothing
            except EverfoldError as err:
                if not err.kind.may_retry and not self._may_find_space(err):
                    raise
                failures[_NAMES] = err.kind
            if not want:
                return [result[block] for block, _ in blocks]
            if len(result) + sum(map(len, acks.values())) > before:
                ends, pause = time.monotonic() + patience_s, _PAUSE_S[0]
                continue
            if time.monotonic() + pause >= ends or self._closing.wait(
                random.uniform(pause / 2, pause)
            ):
                raise self._given_up(want, failures)
            pause = min(2 * pause, _PAUSE_S[1])
            if any(kind is Kind.TIMEOUT for node, kind in failures.items() if node != _NAMES):
                attempt_s = min(2 * attempt_s, _ATTEMPT_MAX_S)

    def _store_once(
        self,
        want: dict[BlockId, Bytes],
        acks: dict[BlockId, list[NodeId]],
        failures: dict[NodeId, Kind],
        result: dict[BlockId, wire.Stored],
        attempt_s: float,
        meanwhile: Callable[[], None],
    ) -> None:
        """Plan and put once; what is safe then moves from `want` to `result`."""
        targets = self._plan(want)
        for block, nodes in targets.items():
            if nodes is None:  # the cluster has it already
                result[block] = wire.Stored(block, len(want.pop(block)), [])
        lanes = self._lanes(want, targets, acks)
        timing = replace(self._timing, attempt_s=attempt_s)
        _Round(self._nodes, timing, self._min_replicas, acks, failures).run(
            lanes, want, self._calls, meanwhile
        )
        for block in self._safe(want, targets, acks):
            result[block] = wire.Stored(block, len(want.pop(block)), sorted(acks[block]))

    def _safe(
        self,
        want: dict[BlockId, Bytes],
        targets: dict[BlockId, list[NodeId] | None],
        acks: dict[BlockId, list[NodeId]],
    ) -> list[BlockId]:
        """Return the blocks that are on enough nodes.

        A block that had some copies before, but too few, got fewer targets: then the copies
        that the nameserver knows of count too.
        """
        partly = [
            block
            for block in want
            if 0 < len(acks.get(block, ())) < self._min_replicas
            and set(targets[block] or ()) <= set(acks[block])
        ]
        if partly:
            self._nodes.locate(partly)
        known = {block: set(self._nodes.holders(block)) for block in partly}
        return [
            block
            for block in want
            if len(known.get(block, set()) | set(acks.get(block, ()))) >= self._min_replicas
        ]

    def _may_find_space(self, err: EverfoldError) -> bool:
        """Tell whether the cluster may only seem full, because a sick node is avoided."""
        return err.kind is Kind.NO_SPACE and self._nodes.has_sick()

    def _plan(self, want: dict[BlockId, Bytes]) -> dict[BlockId, list[NodeId] | None]:
        ask = [(block, len(data)) for block, data in want.items()]
        targets: list[list[NodeId] | None] = []
        for first in range(0, len(ask), PLAN_BLOCKS):
            some = ask[first : first + PLAN_BLOCKS]
            asked_at = time.monotonic()
            avoid = self._nodes.to_avoid()
            answer = self._names.plan(wire.Plan(self._space, some, avoid, SPARES))
            self._nodes.learn_spares(answer.spares, asked_at, answer.spares_s)
            self._nodes.learn_token(answer.block_token, answer.block_token_expires)
            self._nodes.learn(answer.nodes)
            targets += answer.targets
        return dict(zip(want, targets, strict=True))

    def _lanes(
        self,
        want: dict[BlockId, Bytes],
        targets: dict[BlockId, list[NodeId] | None],
        acks: dict[BlockId, list[NodeId]],
    ) -> list[_Lane]:
        """Return the requests per node, leaving out what a node has acknowledged before."""
        shares: dict[NodeId, list[Block]] = {}
        for block, data in want.items():
            for node in targets[block] or ():
                if node not in acks.get(block, ()):
                    shares.setdefault(node, []).append((block, data))
        return [_Lane(node, deque(_requests(share))) for node, share in shares.items()]

    def _given_up(self, want: dict[BlockId, Bytes], failures: dict[NodeId, Kind]) -> EverfoldError:
        is_full = bool(failures) and set(failures.values()) == {Kind.NO_SPACE}
        told = ", ".join(f"{node}: {kind.value}" for node, kind in failures.items())
        return EverfoldError(
            Kind.NO_SPACE if is_full else Kind.UNAVAILABLE,
            f"{len(want)} blocks are on fewer than {self._min_replicas} nodes ({told or 'none'})",
        )


@dataclass
class _Round:
    """One plan carried out; what came of it is written to `acks` and `failures`."""

    nodes: Nodes
    timing: StoreTiming
    min_replicas: int
    acks: dict[BlockId, list[NodeId]]
    failures: dict[NodeId, Kind]
    is_over: bool = False  # late answers count no more
    changed: threading.Condition = field(default_factory=threading.Condition)  # guards lanes too

    def run(
        self,
        lanes: list[_Lane],
        want: dict[BlockId, Bytes],
        calls: ThreadPoolExecutor,
        meanwhile: Callable[[], None],
    ) -> None:
        """Work through the lanes until nothing more is to be waited for."""
        began = time.monotonic()
        for lane in lanes:
            for _ in range(min(_LANE_THREADS, len(lane.requests))):
                lane.threads += 1
                try:
                    calls.submit(self._work, lane)
                except RuntimeError as err:
                    raise EverfoldError(Kind.UNAVAILABLE, "the mount is ending") from err
        meanwhile()
        grace_ends = math.inf
        with self.changed:
            while busy := [lane for lane in lanes if lane.threads and not lane.is_dead]:
                now = time.monotonic()
                if grace_ends == math.inf and self._is_enough(want):
                    grace_ends = now + self.timing.grace_s + (now - began) / 2
                if now >= grace_ends:
                    break
                for lane in busy:
                    if now >= lane.silent_until:
                        self._fail(lane, Kind.TIMEOUT)
                next_event = min(grace_ends, *(lane.silent_until for lane in busy))
                self.changed.wait(None if next_event == math.inf else max(0.0, next_event - now))
            self.is_over = True
            for lane in lanes:
                lane.requests.clear()
                if lane.threads and not lane.acked:
                    self.nodes.avoid(lane.node)

    def _is_enough(self, want: dict[BlockId, Bytes]) -> bool:
        return all(len(self.acks.get(block, ())) >= self.min_replicas for block in want)

    def _work(self, lane: _Lane) -> None:
        """Send a lane's requests, one after the other, until it is empty or dead."""
        try:
            while True:
                patience_s = _patience(self.nodes, lane.node, self.timing.attempt_s)
                with self.changed:
                    if lane.is_dead or not lane.requests:
                        return
                    request = lane.requests.popleft()
                    lane.silent_until = _hangs_at(request, patience_s)
                kinds = self._send(lane.node, request, patience_s)
                with self.changed:
                    self._note(lane, request, kinds)
                    self.changed.notify_all()
        finally:
            with self.changed:
                lane.threads -= 1
                self.changed.notify_all()

    def _send(self, node: NodeId, request: list[Block], patience_s: float) -> Sequence[Kind | None]:
        """Return for each block None (kept) or why not."""

        def ask(client: BlockClient) -> Sequence[Kind | None]:
            if len(request) > 1:
                small = [(block, bytes(data)) for block, data in request]
                return client.put_many(small, patience_s)
            client.put(*request[0], patience_s)
            return [None]

        try:
            return self.nodes.call(node, sum(len(data) for _, data in request), ask)
        except EverfoldError as err:
            _log.info("node %s did not keep %d blocks: %s", node, len(request), err)
            return [err.kind] * len(request)

    def _note(self, lane: _Lane, request: list[Block], kinds: Sequence[Kind | None]) -> None:
        """Count acknowledgements and failures. Condition held."""
        if self.is_over:
            return
        for (block, _), kind in zip(request, kinds, strict=True):
            if kind is None:
                self.acks.setdefault(block, []).append(lane.node)
                lane.acked += 1
            else:
                self._fail(lane, kind)

    def _fail(self, lane: _Lane, kind: Kind) -> None:
        """Send a node nothing more in this round, and plan without it for a while."""
        self.failures[lane.node] = kind
        lane.is_dead = True
        if kind is Kind.NO_SPACE:
            self.nodes.is_full(lane.node)
        else:
            self.nodes.avoid(lane.node)


def _patience(nodes: Nodes, node: NodeId, attempt_s: float) -> float:
    """Return how long a node may take for a request of few bytes, in seconds."""
    return max(attempt_s, min(_SLOW * nodes.latency(node), _ATTEMPT_MAX_S))


def _hangs_at(request: list[Block], patience_s: float) -> float:
    """Return until when a node that got this may say nothing before it counts as hung."""
    size = sum(len(data) for _, data in request)
    return time.monotonic() + patience_s + size * _LANE_THREADS / _SLOWEST


def _requests(share: list[Block]) -> list[list[Block]]:
    """Cut a node's share into requests: large blocks alone, small ones together."""
    requests: list[list[Block]] = []
    batch: list[Block] = []
    size = 0
    for block, data in share:
        if len(data) >= SMALL_BLOCK:
            requests.append([(block, data)])
            continue
        if batch and (size + len(data) > BATCH_BYTES or len(batch) == BATCH_BLOCKS):
            requests.append(batch)
            batch, size = [], 0
        batch.append((block, data))
        size += len(data)
    return [*requests, batch] if batch else requests


def _nothing() -> None:
    """Nothing more to do meanwhile."""
