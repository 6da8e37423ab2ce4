"""Blocks of one space, as the filesystem asks for them: by name, from wherever they are.

`BlockIO` puts the parts together: the cache on this machine, the fetcher and the storer that
talk to the datanodes, and what is known of those. A block read is right or an error; a block
stored is on enough nodes or an error. Every call ends by its deadline, also when a node hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.fileslice import FileSlice
from everfold.model import BlockId, Node, NodeId, SpaceId
from everfold.services import NameService
from mount import patience
from mount.blockcache import BlockCache, part_of
from mount.express import Block
from mount.fetching import Fetcher, FetchTiming
from mount.nodes import BlockClient, Nodes
from mount.storing import Storer, StoreTiming


class BlockIO:
    """See the module's docstring. Thread-safe."""

    def __init__(
        self,
        space: SpaceId,
        names: NameService,
        cache: BlockCache,
        clients: Callable[[Node], BlockClient],
        min_replicas: int,
        *,
        threads: int = 32,
        fetch_timing: FetchTiming = FetchTiming(),  # noqa: B008  # frozen
        store_timing: StoreTiming = StoreTiming(),  # noqa: B008
    ) -> None:
        """`clients` makes a client for a node; its `token` is set here, again and again."""
        self.cache = cache
        self._space = space
        self._nodes = Nodes(space, names, clients)
        self._fetcher = Fetcher(space, names, cache, self._nodes, fetch_timing, threads)
        self._storer = Storer(space, names, self._nodes, min_replicas, store_timing, threads)

    # ------------------------------------------------------------------ reading

    def read(self, block: BlockId, offset: int, length: int) -> bytes | memoryview:
        """Return exactly ``[offset, offset + length)`` of a block.

        From memory or this machine's disk, else the whole block is fetched, checked and kept
        in the cache. On an impatient thread `MustWait` is raised instead of fetching. MISSING
        when no node has the block, UNAVAILABLE when those that may have it cannot be reached,
        CORRUPT when the block is shorter than that.
        """
        part = self.cache.read(self._space, block, offset, length)
        if part is None:
            patience.require()
            part = part_of(self._fetcher.fetch(block), offset, length)
        if len(part) != length:
            raise EverfoldError(
                Kind.CORRUPT, f"the block ends before {offset} + {length}", block.hex()
            )
        return part

    def prefetch(
        self, blocks: Iterable[BlockId | tuple[BlockId, int]], is_passing: bool = False
    ) -> None:
        """Start fetching blocks that are not here; returns at once, fails silently.

        A block may come with its size (or a good guess): small ones are then fetched many to
        a request. What is only passing through is not kept on this machine's disk.
        """
        sized = (item if isinstance(item, tuple) else (item, 0) for item in blocks)
        self._fetcher.prefetch(sized, is_passing)

    # ------------------------------------------------------------------ writing

    def store(self, blocks: Sequence[Block], deadline_s: float | None = None) -> list[wire.Stored]:
        """Put blocks on the nodes that the nameserver names; one answer a block, in order.

        On return each block is durable on at least `min_replicas` nodes (those of `Stored`),
        or the cluster had it before (`nodes` is empty), and it is in the cache. UNAVAILABLE,
        or NO_SPACE when all nodes are full, after `deadline_s` (default 30) without progress;
        errors that waiting cannot mend (QUOTA, FORBIDDEN, …) at once. Some may be kept then.
        """

        def keep() -> None:
            for block, data in blocks:
                if isinstance(data, FileSlice):
                    self.cache.adopt(self._space, block, data)
                else:
                    self.cache.put(self._space, block, data)

        patience.require()
        stored = self._storer.store(blocks, deadline_s, keep)
        self._nodes.learn_places({each.block: each.nodes for each in stored if each.nodes})
        return stored

    # ------------------------------------------------------------------ learning

    def learn(self, where: dict[BlockId, list[NodeId]], nodes: Sequence[Node]) -> None:
        """Take in what an answer of the nameserver tells of blocks and nodes."""
        self._nodes.learn(nodes)
        self._nodes.learn_places(where)

    def nodes(self) -> list[Node]:
        """Return the nodes as the nameserver last told of them."""
        return self._nodes.known()

    def statistics(self) -> list[dict[str, object]]:
        """Return what is thought of each node: its latency, and whether it is left alone."""
        return self._nodes.statistics()

    def learn_token(self, token: str, expires: float) -> None:
        """Use a session's block token; later ones come with plans and locations by themselves."""
        self._nodes.learn_token(token, expires)

    def forget(self) -> None:
        """Empty the cache, and forget which nodes have which block."""
        self.cache.clear()
        self._nodes.forget_places()

    def close(self) -> None:
        """End: what waits fails with UNAVAILABLE, the cache is written out. Idempotent."""
        self._fetcher.close()
        self._storer.close()
        self._nodes.forget()
        self.cache.close()
