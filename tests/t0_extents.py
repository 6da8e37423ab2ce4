"""The algebra of extents against the simplest correct thing: one source per byte."""

from __future__ import annotations

import itertools
import random
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from everfold import extents
from everfold.extents import Piece, PieceMap

SPAN = 60
Cell = tuple[str, int] | None

ops = st.lists(
    st.tuples(
        st.sampled_from(["lay", "erase", "cut", "erase_same"]),
        st.integers(0, SPAN - 1),
        st.integers(1, 20),
        st.sampled_from("abc"),
        st.integers(0, 30),
    ),
    max_size=30,
)


def cells_of(pieces: PieceMap[str]) -> list[Cell]:
    cells: list[Cell] = [None] * (SPAN + 30)
    for piece in pieces:
        for i in range(piece.length):
            assert cells[piece.offset + i] is None, "pieces overlap"
            cells[piece.offset + i] = (piece.source, piece.at + i)
    return cells


@given(ops)
def test_a_piece_map_in_many_small_chunks_equals_an_array_of_bytes(
    steps: list[tuple[str, int, int, str, int]],
) -> None:
    with patch.object(extents, "_CHUNK_MAX", 4):
        check_against_bytes(steps)


@given(ops)
def test_a_piece_map_equals_an_array_of_bytes(steps: list[tuple[str, int, int, str, int]]) -> None:
    check_against_bytes(steps)


def check_against_bytes(steps: list[tuple[str, int, int, str, int]]) -> None:
    pieces: PieceMap[str] = PieceMap()
    model: list[Cell] = [None] * (SPAN + 30)
    for verb, offset, length, source, at in steps:
        if verb == "lay":
            pieces.lay(offset, length, source, at)
            model[offset : offset + length] = [(source, at + i) for i in range(length)]
        elif verb == "erase":
            gone = pieces.erase(offset, length)
            assert sum(p.length for p in gone) == sum(
                c is not None for c in model[offset : offset + length]
            )
            model[offset : offset + length] = [None] * length
        elif verb == "cut":
            pieces.cut(offset)
            model[offset:] = [None] * (len(model) - offset)
        else:
            pieces.erase_same(offset, length, source, at)
            for i in range(length):
                if model[offset + i] == (source, at + i):
                    model[offset + i] = None

        assert cells_of(pieces) == model


@given(ops, st.integers(0, SPAN), st.integers(1, 25))
def test_slices_and_gaps_tile_a_range(
    steps: list[tuple[str, int, int, str, int]], start: int, length: int
) -> None:
    pieces: PieceMap[str] = PieceMap()
    for _, offset, size, source, at in steps:
        pieces.lay(offset, size, source, at)

    covered = [(p.offset, p.length) for p in pieces.slices(start, length)]
    tiles = sorted(covered + pieces.gaps(start, length))

    assert tiles[0][0] == start
    assert sum(size for _, size in tiles) == length
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(tiles))


def test_writes_that_continue_each_other_become_one_piece() -> None:
    pieces: PieceMap[str] = PieceMap()
    for i in range(100):
        pieces.lay(i * 10, 10, "segment", i * 10)

    assert list(pieces) == [Piece(0, 1000, "segment", 0)]


def test_a_piece_that_is_all_there_is_can_be_dropped_and_nothing_else_is() -> None:
    pieces: PieceMap[int] = PieceMap([Piece(0, 10, 1, 5)])
    assert not pieces.drop_only(0, 10, 1, 6)
    assert not pieces.drop_only(0, 9, 1, 5)
    assert pieces.covered == 10

    assert pieces.drop_only(0, 10, 1, 5)
    assert not list(pieces)
    pieces.lay(0, 3, 1)
    pieces.lay(8, 3, 1)
    assert not pieces.drop_only(0, 3, 1, 0)
    assert pieces.covered == 6


@given(ops, st.lists(st.integers(0, SPAN), min_size=2, max_size=8, unique=True), st.booleans())
def test_many_pieces_are_removed_at_once_as_one_by_one(
    steps: list[tuple[str, int, int, str, int]], ends: list[int], is_exact: bool
) -> None:
    one: PieceMap[str] = PieceMap()
    for _, offset, length, source, at in steps:
        one.lay(offset, length, source, at)
    many = PieceMap(one)
    gone = [(a, b - a, "a", a % 7) for a, b in itertools.pairwise(sorted(ends))]
    gone += [tuple(piece) for piece in one][::2] if is_exact else []
    with patch.object(extents, "_CHUNK_MAX", 4):
        many.erase_each_same(gone)
    for piece in gone:
        one.erase_same(*piece)

    assert list(many) == list(one)
    assert (len(many), many.covered, many.end) == (len(one), one.covered, one.end)


def test_many_pieces_are_found_cut_and_removed_as_few_are() -> None:
    rnd = random.Random(7)
    places = rnd.sample(range(20_000), 10_000)
    pieces: PieceMap[str] = PieceMap()
    for place in places:
        pieces.lay(place * 8, 8, "s", place * 100)

    assert [p.offset for p in pieces] == sorted(place * 8 for place in places)
    assert len(pieces) == len(places)
    assert len(pieces.slices(4, 160_000)) == len(places)
    assert sum(length for _, length in pieces.gaps(0, 160_000)) == 80_000
    for place in places[:5_000]:
        assert pieces.erase_same(place * 8, 8, "s", place * 100) == [
            Piece(place * 8, 8, "s", place * 100)
        ]
    assert sum(p.length for p in pieces.cut(80_000)) + pieces.covered == 40_000
    assert pieces.end <= 80_000
    pieces.lay(0, 160_000, "t")
    assert list(pieces) == [Piece(0, 160_000, "t", 0)]


def test_sorted_pieces_make_a_map_as_they_are() -> None:
    rows = [Piece(i * 4, 4, "s", i * 4) for i in range(5_000)]

    pieces = PieceMap.of_sorted(rows)

    assert list(pieces) == rows
    assert pieces.covered == pieces.end == 20_000
    assert pieces.slices(4_090, 8) == [
        Piece(4_090, 2, "s", 4_090),
        *rows[1_023:1_024],
        Piece(4_096, 2, "s", 4_096),
    ]
    assert not list(PieceMap.of_sorted([]))
