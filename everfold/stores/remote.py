"""A datanode over HTTP as a block store.

A token opens one space, so this store asks `token_for` once for each space that it meets.
`blocks` lists the spaces that were met, because nobody may list the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from everfold import wire
from everfold.errors import EverfoldError
from everfold.model import BlockId, SpaceId
from everfold.nodeclient import FRAMES_MAX, TIMEOUT_S, NodeClient
from everfold.services import Transport

_PREFIXES = 256


class RemoteStore:
    """One datanode. Threads may share it."""

    def __init__(
        self,
        transport: Transport,
        token_for: Callable[[SpaceId], str],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._transport = transport
        self._token_for = token_for
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # guards _clients
        self._clients: dict[SpaceId, NodeClient] = {}

    def _client(self, space: SpaceId) -> NodeClient:
        with self._lock:
            if space not in self._clients:
                token = self._token_for(space)
                self._clients[space] = NodeClient(self._transport, token, self._timeout_s)
            return self._clients[space]

    def close(self) -> None:
        """Close the pooled connections."""
        self._transport.close()

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """See `services.BlockStore.put`."""
        self._client(space).put(block, data)

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """See `services.BlockStore.put_many`; one request for each FRAMES_MAX bytes."""
        for batch in _batches(blocks):
            kinds = self._client(space).put_many(batch)
            for (block, _), kind in zip(batch, kinds, strict=True):
                if kind is not None:
                    raise EverfoldError(kind, "the node did not keep it", block.hex())

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """See `services.BlockStore.get`."""
        return self._client(space).get(block)

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """See `services.BlockStore.get_many`."""
        return self._client(space).get_many(blocks)

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """See `services.BlockStore.size_of`."""
        return self._client(space).size_of(block)

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """See `services.BlockStore.delete`."""
        return self._client(space).delete(block)

    def blocks(self) -> Iterator[wire.Held]:
        """See `services.BlockStore.blocks`, of the spaces that this object has met."""
        for space in list(self._clients):
            for prefix in range(_PREFIXES):
                yield from self._client(space).under(prefix)


def _batches(
    blocks: Sequence[tuple[BlockId, bytes | memoryview]],
) -> Iterator[list[tuple[BlockId, bytes | memoryview]]]:
    batch: list[tuple[BlockId, bytes | memoryview]] = []
    size = 0
    for block, data in blocks:
        cost = wire.FRAME.size + len(data)
        if batch and size + cost > FRAMES_MAX:
            yield batch
            batch, size = [], 0
        batch.append((block, data))
        size += cost
    if batch:
        yield batch
