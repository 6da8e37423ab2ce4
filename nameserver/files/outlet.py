"""Bytes on their way out: a range of a file as it was at one commit, in order, streamed.

The content is that of one moment, whatever is saved meanwhile. A few blocks are fetched ahead, of
all downloads together as many as a budget allows; no more is in memory. When a block cannot be had
the stream ends with an error, never with zeros.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.extents import Piece, from_extents
from everfold.model import BLOCK_MAX, BlockId, Ino, Seq, SpaceId
from nameserver.files.blocks import Blocks
from nameserver.files.budget import Budget
from nameserver.tree import Tree

AHEAD: Final = 3  # blocks that are fetched while one is sent
_WINDOW: Final = 64 * 1024 * 1024  # of the file, whose extents are looked up at once
_ZEROS: Final = bytes(256 * 1024)

# a piece and its block, or the length of a hole; and what it takes of the budget
_Fetch = tuple[Piece[BlockId] | int, Future[bytes] | None, int]


class Outlet:
    """A part of one content. Iterate once; `close` when the reader is gone."""

    def __init__(
        self,
        tree: Tree,
        blocks: Blocks,
        pool: Executor,
        budget: Budget,
        content: tuple[SpaceId, Ino, Seq],
        start: int,
        stop: int,
    ) -> None:
        self._tree, self._blocks, self._pool, self._budget = tree, blocks, pool, budget
        self._space, self._ino, self._seq = content
        self._start, self._stop = start, stop
        self._ready: deque[_Fetch] = deque()
        self._last: tuple[BlockId, Future[bytes]] | None = None
        self._wanted = self._pieces()

    def begin(self) -> None:
        """Have the first bytes, so that a failure can still be told in order."""
        self._fill()
        if self._ready and (first := self._ready[0][1]) is not None:
            first.result()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self._fill()
            if not self._ready:
                return
            piece, block, taken = self._ready.popleft()
            try:
                if isinstance(piece, int):
                    yield from _zeros(piece)
                elif block is not None:
                    data = block.result()
                    yield data if len(data) == piece.length and not piece.at else _cut(data, piece)
            finally:
                self._budget.give(taken)

    def close(self) -> None:
        """Fetch nothing more."""
        self._wanted = iter(())
        for _, block, taken in self._ready:
            self._budget.give(taken)
            if block is not None:
                block.cancel()
        self._ready.clear()

    def _fill(self) -> None:
        """Fetch ahead, as far as the budget goes; the next piece is fetched in any case."""
        while len(self._ready) < AHEAD:
            taken = BLOCK_MAX if self._ready else 0
            if taken and not self._budget.take(taken, 0.0):
                return
            piece = next(self._wanted, None)
            if piece is None:
                self._budget.give(taken)
                return
            block = None if isinstance(piece, int) else self._fetch(piece)
            self._ready.append((piece, block, taken))

    def _fetch(self, piece: Piece[BlockId]) -> Future[bytes]:
        if self._last is None or self._last[0] != piece.source:
            future = self._pool.submit(self._blocks.get, self._space, piece.source)
            self._last = (piece.source, future)
        return self._last[1]

    def _pieces(self) -> Iterator[Piece[BlockId] | int]:
        """Yield what the range consists of: pieces of blocks, and the lengths of holes."""
        at = self._start
        while at < self._stop:
            end = min(self._stop, at + _WINDOW)
            ask = wire.GetExtents(self._space, self._ino, at, end - at, self._seq)
            for piece in from_extents(self._tree.extents(ask).extents).slices(at, end - at):
                if piece.offset > at:
                    yield piece.offset - at
                yield piece
                at = piece.end
            if at < end:
                yield end - at
                at = end


def _cut(data: bytes, piece: Piece[BlockId]) -> bytes:
    if piece.at + piece.length > len(data):
        raise EverfoldError(Kind.CORRUPT, "a block is shorter than the file says")
    return data[piece.at : piece.at + piece.length]


def _zeros(length: int) -> Iterator[bytes]:
    for at in range(0, length, len(_ZEROS)):
        yield _ZEROS[: length - at]
