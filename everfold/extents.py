"""Byte ranges and where their bytes are: the algebra of extents, as values.

A `PieceMap` is a sorted list of disjoint pieces ``(offset, length) -> (source, offset in
source)``. The nameserver and the mount use it with blocks as sources, the mount also with
staging segments. Laying a piece over others cuts what it covers; nothing here does I/O.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from everfold.model import BlockId, Extent

S = TypeVar("S")


class Piece(NamedTuple, Generic[S]):
    """`length` bytes at `offset` are those of `source` from `at` on."""

    offset: int
    length: int
    source: S
    at: int = 0

    @property
    def end(self) -> int:
        """Return the first offset after the piece."""
        return self.offset + self.length

    def clip(self, start: int, end: int) -> Piece[S]:
        """Return the part within ``[start, end)``, which must not be empty."""
        first = max(self.offset, start)
        return Piece(first, min(self.end, end) - first, self.source, self.at + first - self.offset)


class PieceMap(Generic[S]):
    """Disjoint pieces in order of offset; neighbours that continue each other are merged."""

    __slots__ = ("_covered", "_pieces", "_starts")

    def __init__(self, pieces: Iterable[Piece[S]] = ()) -> None:
        self._pieces: list[Piece[S]] = []
        self._starts: list[int] = []
        self._covered = 0
        for piece in pieces:
            self.lay(*piece)

    def __iter__(self) -> Iterator[Piece[S]]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """Return the index range of the pieces that touch ``[start, end)``."""
        starts = self._starts
        first = bisect_right(starts, start)
        if first:
            offset, length, _, _ = self._pieces[first - 1]
            if offset + length > start:
                first -= 1
        return first, bisect_left(starts, end, first)

    def erase(self, offset: int, length: int) -> list[Piece[S]]:
        """Remove a range; return what was there, clipped to it."""
        if length <= 0:
            return []
        end = offset + length
        first, last = self._span(offset, end)
        hit = self._pieces[first:last]
        if not hit:
            return []
        keep = []
        if hit[0].offset < offset:
            keep.append(hit[0].clip(hit[0].offset, offset))
        if hit[-1].end > end:
            keep.append(hit[-1].clip(end, hit[-1].end))
        self._replace(first, last, keep)
        return [piece.clip(offset, end) for piece in hit]

    def cut(self, size: int) -> list[Piece[S]]:
        """Remove everything from `size` on; return it."""
        return self.erase(size, max(0, self.end - size))

    def lay(self, offset: int, length: int, source: S, at: int = 0) -> list[Piece[S]]:
        """Put a piece over whatever is there; return what it displaced, clipped to it."""
        if length <= 0:
            return []
        if not self._pieces or self._pieces[-1].end <= offset:
            self._append(offset, length, source, at)
            return []
        displaced: list[Piece[S]] = []
        first, last = self._span(offset, offset + length)
        if first != last:
            displaced = self.erase(offset, length)
            first = last = bisect_right(self._starts, offset)
        piece = Piece(offset, length, source, at)
        if first and _continues(self._pieces[first - 1], piece):
            first -= 1
            before = self._pieces[first]
            piece = Piece(before.offset, before.length + length, source, before.at)
        if last < len(self._pieces) and _continues(piece, self._pieces[last]):
            piece = piece._replace(length=piece.length + self._pieces[last].length)
            last += 1
        self._replace(first, last, [piece])
        return displaced

    def _append(self, offset: int, length: int, source: S, at: int) -> None:
        """Put a piece after all others, as a file that is written from its start does."""
        pieces = self._pieces
        self._covered += length
        if pieces:
            last_offset, last_length, last_source, last_at = pieces[-1]
            is_next = last_offset + last_length == offset and last_at + last_length == at
            if is_next and last_source == source:
                pieces[-1] = Piece(last_offset, last_length + length, source, last_at)
                return
        pieces.append(Piece(offset, length, source, at))
        self._starts.append(offset)

    def erase_same(self, offset: int, length: int, source: S, at: int) -> list[Piece[S]]:
        """Remove from a range only what is still `source` from `at` on; return it."""
        same = [
            piece
            for piece in self.slices(offset, length)
            if piece.source == source and piece.at - at == piece.offset - offset
        ]
        for piece in same:
            self.erase(piece.offset, piece.length)
        return same

    def drop_only(self, offset: int, length: int, source: S, at: int) -> bool:
        """Remove the one piece that there is if it is this one; tell whether.

        Most files are small and written once: `erase_same` takes ten times as long.
        """
        if len(self._pieces) != 1 or self._pieces[0] != (offset, length, source, at):
            return False
        self.clear()
        return True

    def slices(self, offset: int, length: int) -> list[Piece[S]]:
        """Return the pieces within a range, clipped to it, in order; gaps are left out."""
        first, last = self._span(offset, offset + length)
        if first == last:
            return []
        end = offset + length
        hit = self._pieces[first:last]
        if hit[0].offset < offset:
            hit[0] = hit[0].clip(offset, hit[0].end)
        if hit[-1].end > end:
            hit[-1] = hit[-1].clip(hit[-1].offset, end)
        return hit

    def gaps(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the (offset, length) within a range that no piece covers."""
        found, at = [], offset
        for piece in self.slices(offset, length):
            if piece.offset > at:
                found.append((at, piece.offset - at))
            at = piece.end
        if at < offset + length:
            found.append((at, offset + length - at))
        return found

    @property
    def end(self) -> int:
        """Return the first offset after the last piece."""
        return self._pieces[-1].end if self._pieces else 0

    @property
    def covered(self) -> int:
        """Return how many bytes the pieces cover."""
        return self._covered

    def clear(self) -> None:
        """Remove every piece."""
        self._pieces.clear()
        self._starts.clear()
        self._covered = 0

    def _replace(self, first: int, last: int, pieces: list[Piece[S]]) -> None:
        for piece in self._pieces[first:last]:
            self._covered -= piece.length
        for piece in pieces:
            self._covered += piece.length
        self._pieces[first:last] = pieces
        self._starts[first:last] = [piece.offset for piece in pieces]


def _continues(piece: Piece[S], after: Piece[S]) -> bool:
    return (
        piece.end == after.offset
        and piece.source == after.source
        and piece.at + piece.length == after.at
    )


def from_extents(extents: Iterable[Extent]) -> PieceMap[BlockId]:
    """Return the map of a file's extents."""
    return PieceMap(Piece(e.offset, e.length, e.block, e.block_offset) for e in extents)


def to_extents(pieces: Iterable[Piece[BlockId]]) -> list[Extent]:
    """Return pieces as extents."""
    return [Extent(p.offset, p.length, p.source, p.at) for p in pieces]
