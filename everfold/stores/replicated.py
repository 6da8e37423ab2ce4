"""Several stores as one: each block is written to some of them and read from any.

Invariant: a put that returned is kept by at least `min_acks` stores. Reads take the first
sound copy; a store that is down, slow to fail or lying is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, SpaceId
from everfold.services import BlockStore

_CALLERS_FAULT = (Kind.CORRUPT, Kind.INVALID)


class ReplicatedStore:
    """Writes to `copies` of `stores` in their order, to others when some of those fail.

    The inner stores have deadlines of their own. `close` it in the end.
    """

    def __init__(self, stores: Sequence[BlockStore], copies: int, min_acks: int) -> None:
        if not 1 <= min_acks <= copies <= len(stores):
            raise EverfoldError(
                Kind.INVALID, f"{min_acks} acks of {copies} copies on {len(stores)} stores"
            )
        self._stores = list(stores)
        self._copies = copies
        self._min_acks = min_acks
        self._pool = ThreadPoolExecutor(len(stores) * 2, thread_name_prefix="replica")

    def close(self) -> None:
        """End the threads; the inner stores are their owner's."""
        self._pool.shutdown(wait=True)

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """See `services.BlockStore.put`; UNAVAILABLE (or NO_SPACE) with too few acks."""
        self._spread(lambda store: store.put(space, block, data))

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """See `services.BlockStore.put_many`."""
        self._spread(lambda store: store.put_many(space, blocks))

    def _spread(self, put: Callable[[BlockStore], None]) -> None:
        acks, failures = 0, []
        waiting = list(self._stores)
        while waiting and acks < self._copies:
            some, waiting = waiting[: self._copies - acks], waiting[self._copies - acks :]
            for future in [self._pool.submit(put, store) for store in some]:
                err = future.exception()
                if err is None:
                    acks += 1
                elif isinstance(err, EverfoldError) and err.kind not in _CALLERS_FAULT:
                    failures.append(err)
                else:
                    raise err
        if acks < self._min_acks:
            kinds = {err.kind for err in failures}
            kind = Kind.NO_SPACE if kinds == {Kind.NO_SPACE} else Kind.UNAVAILABLE
            raise EverfoldError(kind, f"{acks} of {self._min_acks} copies: {failures[-1]}")

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """See `services.BlockStore.get`. NOT_FOUND only when every store says so."""
        worst: EverfoldError | None = None
        for store in self._stores:
            try:
                return store.get(space, block)
            except EverfoldError as err:
                if worst is None or worst.kind is Kind.NOT_FOUND:
                    worst = err
        raise worst or EverfoldError(Kind.NOT_FOUND, "no stores", block.hex())

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """See `services.BlockStore.get_many`."""
        found: dict[BlockId, bytes] = {}
        failure: EverfoldError | None = None
        for store in self._stores:
            missing = [block for block in blocks if block not in found]
            if not missing:
                break
            try:
                found.update(store.get_many(space, missing))
            except EverfoldError as err:
                failure = err
        if failure is not None and not found and blocks:
            raise failure
        return found

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """See `services.BlockStore.size_of`. None only when every store says so."""
        failure: EverfoldError | None = None
        for store in self._stores:
            try:
                size = store.size_of(space, block)
            except EverfoldError as err:
                failure = err
                continue
            if size is not None:
                return size
        if failure is not None:
            raise failure
        return None

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """See `services.BlockStore.delete`; raises when a store could not be asked."""
        was_there = False
        failure: EverfoldError | None = None
        for store in self._stores:
            try:
                was_there = store.delete(space, block) or was_there
            except EverfoldError as err:
                failure = err
        if failure is not None:
            raise failure
        return was_there

    def blocks(self) -> Iterator[wire.Held]:
        """See `services.BlockStore.blocks`; each block once."""
        seen: set[tuple[SpaceId, BlockId]] = set()
        for store in self._stores:
            for held in store.blocks():
                if (held.space, held.block) not in seen:
                    seen.add((held.space, held.block))
                    yield held
