"""What the tree must know of blocks, and may not know more: are they safe, where are they."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from everfold import wire
from everfold.model import BlockId, NodeId, SpaceId
from nameserver.db import Cx


class BlockLedger(Protocol):
    """The replica map, asked within the transaction that needs the answer."""

    def record(
        self,
        cx: Cx,
        space: SpaceId,
        stored: Sequence[wire.Stored],
        now_ns: int,
        min_replicas: int,
    ) -> set[BlockId]:
        """Note that nodes acknowledged blocks to a client. INVALID for impossible blocks.

        Returns blocks that are on `min_replicas` nodes by this word alone, for certain; of
        the others `short` knows more.
        """
        ...

    def short(
        self, cx: Cx, space: SpaceId, blocks: Iterable[BlockId], min_replicas: int
    ) -> set[BlockId]:
        """Return those of `blocks` that are not on `min_replicas` nodes."""
        ...

    def where(
        self, cx: Cx, space: SpaceId, blocks: Iterable[BlockId]
    ) -> Mapping[BlockId, list[NodeId]]:
        """Return the nodes to read each block from, best first."""
        ...
