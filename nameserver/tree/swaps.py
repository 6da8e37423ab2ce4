"""What a change of a file's bytes takes from the present: the arithmetic of history's bytes.

A commit may change one file several times. What it adds to history is what it closed of what stood
there before, less what it leaves open of that in the same place; so it is known at its end only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from everfold.extents import Piece, PieceMap
from everfold.model import BlockId


class Swap(NamedTuple):
    """What takes a patch from the extents that are there to those that shall be."""

    closed: list[tuple[Piece[BlockId], int]]  # and in which commit they were born
    opened: list[Piece[BlockId]]


def lost(swaps: Collection[Swap], seq: int) -> int:
    """Return the bytes that only history names once commit `seq` has made these of one file."""
    past: list[Piece[BlockId]] = []
    left: dict[int, Piece[BlockId]] = {}
    for swap in swaps:
        for piece, born in swap.closed:
            if born != seq:
                past.append(piece)
            else:
                left.pop(piece.offset, None)
        for piece in swap.opened:
            left[piece.offset] = piece
    if not past:
        return 0
    if len(swaps) > 1:
        past.sort(key=lambda piece: piece.offset)
    return sum([piece.length for piece in past]) - _remnants(past, left.values())


def _remnants(closed: list[Piece[BlockId]], opened: Iterable[Piece[BlockId]]) -> int:
    """Return how many bytes of `opened` were there before, at the same place."""
    old, same = PieceMap.of_sorted(closed), 0
    blocks = {piece.source for piece in closed}
    for piece in opened:
        if piece.source in blocks:  # mostly not: the blocks of a write are new
            for part in old.slices(piece.offset, piece.length):
                if part.source == piece.source and part.at - piece.at == part.offset - piece.offset:
                    same += part.length
    return same
