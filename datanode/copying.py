"""Pulling blocks from other datanodes: how the cluster heals without the nameserver's hands.

Invariant: what is pulled is verified before it is kept, and a copy that is here already is
verified too, so that "copied" always means "sound here now".
"""

from __future__ import annotations

import threading
import time

from datanode.node import Node
from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport
from everfold.nodeclient import NodeClient
from everfold.services import Transport

_TIMEOUT_S = 5.0
_CONNECTIONS = 4
RATE = 256 * 1024 * 1024  # bytes a second that all copies may take together


class Peers:
    """Pooled connections to other datanodes, by URL."""

    def __init__(self, ca_file: str = "") -> None:
        self._ca_file = ca_file
        self._lock = threading.Lock()  # guards _known
        self._known: dict[str, Transport] = {}

    def transport(self, url: str) -> Transport:
        """Return the way to a peer."""
        with self._lock:
            if url not in self._known:
                self._known[url] = HttpTransport(
                    url, connections=_CONNECTIONS, ca_file=self._ca_file
                )
            return self._known[url]

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for transport in self._known.values():
                transport.close()


class Pace:
    """Lets bytes pass at a rate."""

    def __init__(self, rate: float) -> None:
        self.rate = rate  # may be changed at any time
        self._lock = threading.Lock()  # guards _free_at
        self._free_at = 0.0

    def delay(self, size: int) -> float:
        """Book `size` bytes; return the seconds to wait before moving them."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + size / self.rate
            return start - now


class Copier:
    """Pulls blocks into one node. Threads may share it."""

    def __init__(self, node: Node, peers: Peers | None = None, rate: float = RATE) -> None:
        self._node = node
        self._peers = peers or Peers()
        self._pace = Pace(rate)
        self._stop = threading.Event()

    def pull(self, ask: wire.Copy) -> None:
        """Return when the block is here, durable and verified.

        Asks the sources in their order; raises what the last one failed with, UNAVAILABLE
        when the copy was stopped, NO_SPACE when there is no room.
        """
        if self._node.verify(ask.space, ask.block):
            self._node.ledger.answer(wire.Held(ask.space, ask.block, ask.size))
            return
        if self._stop.wait(self._pace.delay(ask.size)):
            raise EverfoldError(Kind.UNAVAILABLE, "the node is stopping", ask.block.hex())
        failure = EverfoldError(Kind.INVALID, "no source was given", ask.block.hex())
        for source in ask.sources:
            try:
                client = NodeClient(self._peers.transport(source), ask.token, _TIMEOUT_S)
                data = client.get(ask.block)
            except EverfoldError as err:
                failure = err
                continue
            self._node.put(ask.space, ask.block, data)
            self._node.count("copies")
            return
        raise failure

    def close(self) -> None:
        """Let waiting copies fail, and close the connections."""
        self._stop.set()
        self._peers.close()
