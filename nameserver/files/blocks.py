"""Blocks to the datanodes and back, for bytes that come and go through the nameserver.

A block put is on enough nodes, acknowledged by each, or an error; a block read was checked
against its name, or is an error: never zeros. Every call ends by its deadline; a node that went
wrong is asked last for a while.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, Node, NodeId, SpaceId
from everfold.nodeclient import NodeClient
from everfold.services import Clock, Pending, Transport
from nameserver.blocks import Ledger
from nameserver.policy import Policy

Connect = Callable[[str], Transport]
"""Return the transport to the datanode at this URL."""

PATIENCE_S: Final = 15.0  # with nodes that are away, for one block
_SICK_S: Final = 5.0
_PAUSE_S: Final = (0.05, 0.5)


class Blocks:
    """The datanodes as a store of blocks. Thread-safe."""

    def __init__(self, ledger: Ledger, clock: Clock, policy: Policy, connect: Connect) -> None:
        self._ledger = ledger
        self._clock = clock
        self._policy = policy
        self._connect = connect
        self._lock = threading.Lock()  # guards the two below
        self._transports: dict[str, Transport] = {}
        self._sick: dict[NodeId, float] = {}  # until when
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let go of whoever waits for nodes, and of the connections."""
        self._stopped.set()
        with self._lock:
            transports = list(self._transports.values())
            self._transports.clear()
        for transport in transports:
            transport.close()

    # ------------------------------------------------------------ writing

    def put(self, space: SpaceId, block: BlockId, data: bytes) -> wire.Stored:
        """Return when the cluster has this block safely; tell which nodes took it now.

        NO_SPACE, UNAVAILABLE when that cannot be had within `PATIENCE_S`.
        """
        acked: list[NodeId] = []
        ends, pause = self._clock.monotonic() + PATIENCE_S, _PAUSE_S[0]
        while True:
            failure = EverfoldError(Kind.UNAVAILABLE, "too few datanodes took a block")
            try:
                if self._put_once(space, block, data, acked):
                    return wire.Stored(block, len(data), sorted(acked))
            except EverfoldError as err:
                if not err.kind.may_retry and not (err.kind is Kind.NO_SPACE and self._avoided()):
                    raise
                failure = err
            if self._clock.monotonic() + pause > ends or self._stopped.wait(
                random.uniform(pause / 2, pause)
            ):
                raise failure
            pause = min(2 * pause, _PAUSE_S[1])

    def _put_once(self, space: SpaceId, block: BlockId, data: bytes, acked: list[NodeId]) -> bool:
        """Plan and put; tell whether the block is safe. `acked` grows by who took it."""
        avoid = self._avoided() + acked
        plan = self._ledger.plan(wire.Plan(space, [(block, len(data))], avoid))
        targets = plan.targets[0]
        if targets is None:
            return True
        urls = {node.id: node.url for node in plan.nodes}
        under_way: list[tuple[NodeId, Pending[bool]]] = []
        for node in targets:
            client = self._client(urls[node], plan.block_token)
            under_way.append((node, client.begin_put(block, data)))
        is_whole = True  # fewer targets than copies wanted: others are known to be good
        for node, call in under_way:
            try:
                call.result()
            except EverfoldError as err:
                self._went_wrong(node, err)
                is_whole = False
            else:
                acked.append(node)
        return is_whole or len(set(acked)) >= self._policy.min_replicas

    # ------------------------------------------------------------ reading

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """Return a block, checked; MISSING when no node has it, UNAVAILABLE when none answers."""
        is_away = False
        tried: set[NodeId] = set()
        for _ in range(2):  # it may have moved meanwhile
            located = self._ledger.locate(wire.Locate(space, [block]))
            known = {node.id: node for node in located.nodes}
            for node in self._best_first(located.where.get(block, [])):
                if node in tried:
                    continue
                tried.add(node)
                try:
                    return self._get_from(space, block, known[node], located.block_token)
                except EverfoldError as err:
                    is_away = is_away or err.kind not in (Kind.NOT_FOUND, Kind.CORRUPT)
        if is_away:
            raise EverfoldError(Kind.UNAVAILABLE, "no datanode gives the bytes", block.hex())
        raise EverfoldError(Kind.MISSING, "no datanode has the bytes", block.hex())

    def _get_from(self, space: SpaceId, block: BlockId, node: Node, token: str) -> bytes:
        try:
            return self._client(node.url, token).get(block)
        except EverfoldError as err:
            if err.kind in (Kind.NOT_FOUND, Kind.CORRUPT):
                reason = "missing" if err.kind is Kind.NOT_FOUND else "corrupt"
                self._ledger.report_bad(wire.ReportBad(space, block, node.id, reason))
            else:
                self._went_wrong(node.id, err)
            raise

    def _best_first(self, nodes: list[NodeId]) -> list[NodeId]:
        avoided = set(self._avoided())
        return sorted(nodes, key=lambda node: node in avoided)

    # ------------------------------------------------------------ nodes

    def _client(self, url: str, token: str) -> NodeClient:
        with self._lock:
            transport = self._transports.get(url)
            if transport is None:
                transport = self._transports[url] = self._connect(url)
        return NodeClient(transport, token)

    def _went_wrong(self, node: NodeId, err: EverfoldError) -> None:
        with self._lock:
            self._sick[node] = self._clock.monotonic() + _SICK_S

    def _avoided(self) -> list[NodeId]:
        now = self._clock.monotonic()
        with self._lock:
            self._sick = {node: until for node, until in self._sick.items() if until > now}
            return list(self._sick)
