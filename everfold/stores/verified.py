"""A store that trusts nobody: bytes are compared with their name on the way in and out.

For stores that cannot be believed (a peer, a bucket, a cache file). Invariant: what leaves
`get` matches its name, and what does not is told to `on_bad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, SpaceId
from everfold.services import BlockStore


class VerifiedStore:
    """Verifies what another store does."""

    def __init__(
        self, inner: BlockStore, on_bad: Callable[[SpaceId, BlockId], None] | None = None
    ) -> None:
        self._inner = inner
        self._on_bad = on_bad or (lambda space, block: None)

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """See `services.BlockStore.put`."""
        blockid.check(block, data)
        self._inner.put(space, block, data)

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """See `services.BlockStore.put_many`."""
        for block, data in blocks:
            blockid.check(block, data)
        self._inner.put_many(space, blocks)

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """See `services.BlockStore.get`."""
        data = self._inner.get(space, block)
        if blockid.name_of(data) != block:
            self._on_bad(space, block)
            raise EverfoldError(Kind.CORRUPT, "the bytes do not match their name", block.hex())
        return data

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """See `services.BlockStore.get_many`."""
        sound = {}
        for block, data in self._inner.get_many(space, blocks).items():
            if blockid.name_of(data) == block:
                sound[block] = data
            else:
                self._on_bad(space, block)
        return sound

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """See `services.BlockStore.size_of`."""
        return self._inner.size_of(space, block)

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """See `services.BlockStore.delete`."""
        return self._inner.delete(space, block)

    def blocks(self) -> Iterator[wire.Held]:
        """See `services.BlockStore.blocks`."""
        return self._inner.blocks()
