"""The datanodes as this mount has found them: addresses, health, and who has which block.

One place decides which node is asked first and which is left alone for a while; one place
holds the token that the nodes want. Nothing here is authoritative: all of it is learnt from
the nameserver's answers and from how calls went, and may be forgotten at any time.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.fileslice import FileSlice
from everfold.model import BlockId, Node, NodeId, NodeState, SpaceId
from everfold.services import NameService, Pending

AVOID_S: Final = 5.0  # a node that failed is left alone for so long
FULL_S: Final = 30.0  # a node that is full gets nothing for so long
_TOKEN_MARGIN_S: Final = 30.0
_RENEW_EVERY_S: Final = 10.0
_PLACES_MAX: Final = 200_000  # blocks whose nodes are remembered
_UNKNOWN_S: Final = 0.002  # what a node that was never asked is taken for; who is quicker
# than this is no better, so that quick nodes share the load
_FORGET_S: Final = 60.0
_LAST_RESORT: Final = {NodeState.SUSPECT: 10.0, NodeState.DOWN: 30.0}
_DEAD: Final = frozenset({NodeState.FAILED, NodeState.REMOVED})
_SICK: Final = frozenset({Kind.TIMEOUT, Kind.UNAVAILABLE, Kind.INTERNAL})
T = TypeVar("T")


class BlockClient(Protocol):
    """What is asked of one datanode; `everfold.nodeclient.NodeClient` is one."""

    token: str

    def put(
        self, block: BlockId, data: bytes | memoryview | FileSlice, timeout_s: float
    ) -> object: ...
    def put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float
    ) -> Sequence[Kind | None]: ...
    def get(self, block: BlockId, timeout_s: float) -> bytes: ...
    def get_many(self, blocks: Sequence[BlockId], timeout_s: float) -> dict[BlockId, bytes]: ...
    def begin_put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float
    ) -> Pending[list[Kind | None]]: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Peer:
    node: Node
    client: BlockClient
    latency_s: float = _UNKNOWN_S  # moving average of a call that moves few bytes
    timed_at: float = 0.0
    avoid_until: float = 0.0
    full_until: float = 0.0


class Nodes:
    """What is known of the datanodes. Thread-safe; calls are made without the lock."""

    def __init__(
        self, space: SpaceId, names: NameService, clients: Callable[[Node], BlockClient]
    ) -> None:
        self._space, self._names, self._clients = space, names, clients
        self._lock = threading.Lock()  # guards all below
        self._peers: dict[NodeId, _Peer] = {}
        self._places: OrderedDict[BlockId, list[NodeId]] = OrderedDict()
        self._token = ""
        self._token_expires = 0.0
        self._renew_after = 0.0
        self._spares: list[list[NodeId]] = []  # places for small blocks, known beforehand
        self._spares_end = 0.0  # monotonic
        self._renewing = threading.Lock()  # one thread renews; taken before _lock

    # ------------------------------------------------------------------ learning

    def learn(self, nodes: Iterable[Node]) -> None:
        """Take in what the nameserver says of nodes; a new address makes a new client."""
        outdated = []
        with self._lock:
            for node in nodes:
                peer = self._peers.get(node.id)
                if peer is not None and peer.node.url == node.url:
                    peer.node = node
                    continue
                if peer is not None:
                    outdated.append(peer.client)
                client = self._clients(node)
                client.token = self._token
                self._peers[node.id] = _Peer(node, client)
        for client in outdated:
            client.close()

    def known(self) -> list[Node]:
        """Return the nodes as the nameserver last told of them."""
        with self._lock:
            return [peer.node for peer in self._peers.values()]

    def learn_places(self, where: dict[BlockId, list[NodeId]]) -> None:
        """Remember on which nodes blocks are."""
        with self._lock:
            for block, nodes in where.items():
                self._places[block] = list(nodes)
                self._places.move_to_end(block)
            while len(self._places) > _PLACES_MAX:
                self._places.popitem(last=False)

    def learn_token(self, token: str, expires: float) -> None:
        """Use this token from now on; `expires` in seconds since the epoch."""
        with self._lock:
            self._token, self._token_expires = token, expires
            for peer in self._peers.values():
                peer.client.token = token

    def learn_spares(self, spares: list[list[NodeId]], asked_at: float, good_s: float) -> None:
        """Remember places for small blocks; good for `good_s` after they were asked for."""
        with self._lock:
            self._spares, self._spares_end = list(spares), asked_at + good_s

    def forget(self) -> None:
        """Forget nodes and places; what comes next is asked of the nameserver."""
        with self._lock:
            clients = [peer.client for peer in self._peers.values()]
            self._peers.clear()
            self._places.clear()
            self._spares.clear()
        for client in clients:
            client.close()

    def forget_places(self) -> None:
        """Forget on which nodes blocks are."""
        with self._lock:
            self._places.clear()

    def forget_place(self, block: BlockId, node: NodeId) -> None:
        """A node turned out not to have a block."""
        with self._lock:
            places = self._places.get(block)
            if places is not None and node in places:
                self._places[block] = [each for each in places if each != node]

    # ------------------------------------------------------------------ choosing

    def holders(self, block: BlockId) -> list[NodeId]:
        """Return the nodes that are known to have a block and can be asked, best first."""
        now = time.monotonic()
        with self._lock:
            known = [self._peers[n] for n in self._places.get(block, ()) if n in self._peers]
            alive = [peer for peer in known if peer.node.state not in _DEAD]
            return [peer.node.id for peer in sorted(alive, key=lambda peer: _cost(peer, now))]

    def spare(self) -> list[NodeId] | None:
        """Return a place for small blocks that was told beforehand and looks well, or None."""
        now = time.monotonic()
        with self._lock:
            if now >= self._spares_end or not self._spares or not self._token:
                return None
            place = self._spares.pop()
            self._spares.insert(0, place)  # the next one has its turn
            for id_ in place:
                peer = self._peers.get(id_)
                if peer is None or max(peer.avoid_until, peer.full_until) > now:
                    self._spares.clear()
                    return None
            return place

    def client(self, id_: NodeId) -> BlockClient:
        """Return the client of a node, for a call that is judged by `took` and `went_wrong`."""
        with self._lock:
            peer = self._peers.get(id_)
        if peer is None:
            raise EverfoldError(Kind.UNAVAILABLE, "the node is not known", id_)
        return peer.client

    def to_avoid(self) -> list[NodeId]:
        """Return the nodes that nothing should be written to now."""
        now = time.monotonic()
        with self._lock:
            return [
                id_
                for id_, peer in self._peers.items()
                if max(peer.avoid_until, peer.full_until) > now
            ]

    def statistics(self) -> list[dict[str, object]]:
        """Return what is thought of each node."""
        now = time.monotonic()
        with self._lock:
            return [
                {
                    "id": id_,
                    "state": peer.node.state.value,
                    "latency_ms": round(_latency(peer, now) * 1000, 2),
                    "avoided_s": round(max(0.0, peer.avoid_until - now), 1),
                    "full_s": round(max(0.0, peer.full_until - now), 1),
                }
                for id_, peer in self._peers.items()
            ]

    def has_sick(self) -> bool:
        """Tell whether a node is left alone because a call failed."""
        now = time.monotonic()
        with self._lock:
            return any(peer.avoid_until > now for peer in self._peers.values())

    def locate(self, blocks: Sequence[BlockId]) -> None:
        """Ask the nameserver where blocks are; those that nobody has get an empty place."""
        answer = self._names.locate(wire.Locate(self._space, list(blocks)))
        self.learn_token(answer.block_token, answer.block_token_expires)
        self.learn(answer.nodes)
        self.learn_places({block: answer.where.get(block, []) for block in blocks})

    # ------------------------------------------------------------------ calling

    def call(self, id_: NodeId, moved: int, ask: Callable[[BlockClient], T]) -> T:
        """Ask a node; learn from how it went. `moved`: bytes, to judge the time by.

        A token that has run out is renewed, and the call made once more.
        """
        with self._lock:
            peer = self._peers.get(id_)
            token = self._token
        if peer is None:
            raise EverfoldError(Kind.UNAVAILABLE, "the node is not known", id_)
        if self._is_running_out():
            token = self._renew(token)
        began = time.monotonic()
        try:
            try:
                answer = ask(peer.client)
            except EverfoldError as err:
                if err.kind is not Kind.UNAUTHENTICATED:
                    raise
                self._renew(token)
                answer = ask(peer.client)
        except EverfoldError as err:
            self.went_wrong(id_, err.kind)
            raise
        peer.avoid_until = 0.0
        self.took(id_, (time.monotonic() - began) / (1 + moved / (1 << 20)))
        return answer

    def latency(self, id_: NodeId) -> float:
        """Return how long a call of this node takes that moves few bytes, in seconds."""
        with self._lock:
            peer = self._peers.get(id_)
            return _UNKNOWN_S if peer is None else _latency(peer, time.monotonic())

    def took(self, id_: NodeId, seconds: float) -> None:
        """Note how long a node needed, or that it needs at least so long."""
        with self._lock:
            peer = self._peers.get(id_)
            if peer is not None:
                now = time.monotonic()
                present = _latency(peer, now)
                peer.latency_s, peer.timed_at = present + 0.25 * (seconds - present), now

    def avoid(self, id_: NodeId) -> None:
        """Leave a node alone for a while."""
        with self._lock:
            peer = self._peers.get(id_)
            if peer is not None:
                peer.avoid_until = time.monotonic() + AVOID_S

    def is_full(self, id_: NodeId) -> None:
        """Give a node nothing to keep for a while."""
        with self._lock:
            peer = self._peers.get(id_)
            if peer is not None:
                peer.full_until = time.monotonic() + FULL_S

    def went_wrong(self, id_: NodeId, kind: Kind) -> None:
        """Note how a call failed: who is sick or full is left alone for a while."""
        if kind in _SICK:
            self.avoid(id_)
        elif kind is Kind.NO_SPACE:
            self.is_full(id_)
        with self._lock:
            self._spares.clear()

    def _is_running_out(self) -> bool:
        """Tell, at most every few seconds, that the token is near its end.

        Seldom, because this machine's clock may be wrong, and the nameserver may be away: a
        token that has really run out is noticed by the node's answer.
        """
        now = time.monotonic()
        with self._lock:
            if self._token_expires > time.time() + _TOKEN_MARGIN_S or now < self._renew_after:
                return False
            self._renew_after = now + _RENEW_EVERY_S
            return True

    def _renew(self, used: str) -> str:
        """Get a new token unless another thread has since `used`; return the present one."""
        with self._renewing:
            with self._lock:
                if self._token != used:
                    return self._token
            self.locate([])
            return self._token


def _latency(peer: _Peer, now: float) -> float:
    """Return the average, which is forgotten with time: who was slow gets another chance."""
    fresh = math.exp(-(now - peer.timed_at) / _FORGET_S)
    return _UNKNOWN_S + (peer.latency_s - _UNKNOWN_S) * fresh


def _cost(peer: _Peer, now: float) -> float:
    cost = max(_latency(peer, now), _UNKNOWN_S) * random.uniform(0.8, 1.25)
    cost += _LAST_RESORT.get(peer.node.state, 0.0)
    return cost + (20.0 if peer.avoid_until > now else 0.0)
