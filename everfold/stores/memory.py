"""Blocks in memory: the simplest correct `BlockStore`, which the others are compared with."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, SpaceId


class MemoryStore:
    """Keeps blocks as long as the object lives; `capacity` in bytes, None: no limit."""

    def __init__(self, capacity: int | None = None) -> None:
        self._kept: dict[tuple[SpaceId, BlockId], bytes] = {}
        self._used = 0
        self._capacity = capacity
        self._lock = threading.Lock()  # guards all of the above

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """See `services.BlockStore.put`."""
        blockid.check(block, data)
        with self._lock:
            if (space, block) in self._kept:
                return
            if self._capacity is not None and self._used + len(data) > self._capacity:
                raise EverfoldError(Kind.NO_SPACE, "the store is full", block.hex())
            self._kept[space, block] = bytes(data)
            self._used += len(data)

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """See `services.BlockStore.put_many`."""
        for block, data in blocks:
            self.put(space, block, data)

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """See `services.BlockStore.get`."""
        data = self._kept.get((space, block))
        if data is None:
            raise EverfoldError(Kind.NOT_FOUND, "not kept here", block.hex())
        return data

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """See `services.BlockStore.get_many`."""
        with self._lock:
            return {b: self._kept[space, b] for b in blocks if (space, b) in self._kept}

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """See `services.BlockStore.size_of`."""
        data = self._kept.get((space, block))
        return None if data is None else len(data)

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """See `services.BlockStore.delete`."""
        with self._lock:
            data = self._kept.pop((space, block), None)
            self._used -= len(data or b"")
        return data is not None

    def blocks(self) -> Iterator[wire.Held]:
        """See `services.BlockStore.blocks`."""
        with self._lock:
            held = [wire.Held(s, b, len(data)) for (s, b), data in self._kept.items()]
        yield from held
