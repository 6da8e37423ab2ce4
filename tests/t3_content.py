"""The bytes of one file against a byte array: writes, holes, sizes, records on their way."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from everfold.blockid import name_of
from everfold.extents import Piece, PieceMap, from_extents
from everfold.model import Attr, BlockId, Extent, Ino
from mount.content import Content, youngest_hole
from mount.records import StagedWrite

OFFSETS = st.integers(0, 40)
LENGTHS = st.integers(1, 25)
SIZES = st.integers(0, 60)


def attr(size: int, version: int = 1) -> Attr:
    return Attr(Ino(2), 0o100644, 1, 0, 0, size, 0, 0, 0, 0, version=version)


class Cluster:
    """What was committed of the file: what `wire.Write` does, and no more."""

    def __init__(self) -> None:
        self.blocks: dict[BlockId, bytes] = {}
        self.extents: PieceMap[BlockId] = PieceMap()
        self.size = 0

    def keep(self, data: bytes) -> BlockId:
        block = name_of(data)
        self.blocks[block] = data
        return block

    def write(self, record: StagedWrite, extents: list[Extent]) -> None:
        if record.cut is not None:
            self.extents.cut(record.cut)
        for hole in record.holes:
            self.extents.erase(*hole)
        for e in extents:
            self.extents.lay(e.offset, e.length, e.block, e.block_offset)
        self.size = record.size
        self.extents.cut(record.size)

    def read(self, pieces: PieceMap[BlockId], size: int) -> bytearray:
        text = bytearray(size)
        for p in pieces.slices(0, size):
            text[p.offset : p.end] = self.blocks[p.source][p.at : p.at + p.length]
        return text


class ContentMachine(RuleBasedStateMachine):
    """Whoever reads sees every change made here; the cluster gets them in order."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.staged: dict[int, bytes] = {}  # one segment for each write
        self.live: Counter[int] = Counter()
        self.content = Content(attr(0), self._release)
        self.content.load_nothing()
        self.text = bytearray()
        self.on_the_way: list[tuple[StagedWrite, int]] = []
        self.was_refused = False  # until all is settled, what is shown is a mixture
        self.now = 0

    def _release(self, segment: int, nbytes: int) -> None:
        self.live[segment] -= nbytes
        assert self.live[segment] >= 0, "released more than once"

    def _tick(self) -> int:
        self.now += 1
        return self.now

    # ------------------------------------------------------------ changes

    def _lay(self, offset: int, data: bytes) -> None:
        self.text.extend(bytes(max(0, offset + len(data) - len(self.text))))
        self.text[offset : offset + len(data)] = data

    @rule(offset=OFFSETS, length=LENGTHS, at=st.integers(0, 5))
    def write(self, offset: int, length: int, at: int) -> None:
        segment = len(self.staged)
        data = bytes((7 * segment + i) % 255 + 1 for i in range(at + length))
        self.staged[segment] = data
        self.live[segment] = length
        self.content.write(offset, length, segment, at, self._tick())
        self._lay(offset, data[at:])

    @rule(offset=OFFSETS, length=LENGTHS, seed=st.integers(0, 3), at=st.integers(0, 5))
    def reference(self, offset: int, length: int, seed: int, at: int) -> None:
        data = bytes(100 + seed + i for i in range(40))
        block = self.cluster.keep(data)
        self.content.reference(offset, length, block, at, self._tick())
        self._lay(offset, data[at : at + length])

    @rule(offset=OFFSETS, length=LENGTHS)
    def punch(self, offset: int, length: int) -> None:
        self.content.punch(offset, length, self._tick())
        end = min(offset + length, len(self.text))
        self.text[offset:end] = bytes(max(0, end - offset))

    @rule(size=SIZES)
    def resize(self, size: int) -> None:
        self.content.resize(size, self._tick())
        del self.text[size:]
        self.text.extend(bytes(size - len(self.text)))

    # ------------------------------------------------------------ the way to the cluster

    @rule(is_sealed=st.booleans())
    def take(self, is_sealed: bool) -> None:
        was_changed = self.content.is_changed
        record = self.content.record(is_sealed)
        self.content.recorded()
        assert (record is not None) == was_changed
        assert not self.content.is_changed
        if record is not None:
            assert record.is_sealed == is_sealed
            self.content.pending += 1
            self.on_the_way.append((record, youngest_hole()))

    @precondition(lambda self: self.on_the_way)
    @rule()
    def commit(self) -> None:
        record, holes = self.on_the_way.pop(0)
        extents = list(record.extents)
        for offset, length, segment, at in record.staged:
            block = self.cluster.keep(self.staged[segment][at : at + length])
            extents.append(Extent(offset, length, block, 0))
        self.cluster.write(record, extents)
        self.content.pending -= 1
        self.content.committed(record, extents, holes)
        self._settled()

    @precondition(lambda self: self.on_the_way)
    @rule()
    def refuse(self) -> None:
        record, holes = self.on_the_way.pop(0)
        self.content.pending -= 1
        self.content.refused(record, holes)
        assert self.content.is_stale
        self.was_refused = True
        self._settled()

    def _settled(self) -> None:
        """What the owner does when the last record of a file is through."""
        if self.content.is_stale and not self.content.is_active:
            self.content.is_stale = False
            self.content.extents = None
            self.content.follow(attr(self.cluster.size))
            self.was_refused = False
            self.text = self.cluster.read(self.cluster.extents, self.cluster.size)

    @rule()
    def forget_extents(self) -> None:
        """Others' changes make the owner forget them; they are fetched again."""
        self.content.extents = None

    # ------------------------------------------------------------ what always holds

    def _shown(self) -> bytearray:
        if self.content.extents is None:
            self.content.extents = PieceMap(self.cluster.extents)
        text = self.cluster.read(self.content.extents, self.content.size)
        for p in self.content.overlay.slices(0, self.content.size):
            text[p.offset : p.end] = self._bytes(p)
        return text

    def _bytes(self, piece: Piece[int | BlockId]) -> bytes:
        if not isinstance(piece.source, int):
            return self.cluster.blocks[piece.source][piece.at : piece.at + piece.length]
        if piece.source < 0:
            return bytes(piece.length)
        assert self.live[piece.source] > 0, "shown, but released"
        return self.staged[piece.source][piece.at : piece.at + piece.length]

    @invariant()
    def readers_see_every_change(self) -> None:
        shown = self._shown()
        if not self.was_refused:
            assert shown == self.text

    @invariant()
    def each_staged_byte_is_dirty_or_in_one_record(self) -> None:
        held: Counter[int] = Counter()
        for piece in self.content.dirty:
            if isinstance(piece.source, int) and piece.source >= 0:
                held[piece.source] += piece.length
        for record, _ in self.on_the_way:
            for _, length, segment, _ in record.staged:
                held[segment] += length
        assert +self.live == held

    @invariant()
    def nothing_local_is_left_when_all_is_committed(self) -> None:
        if not self.content.is_active and not self.was_refused:
            assert not list(self.content.overlay.slices(0, max(self.content.size, 1)))
            shown = self.cluster.read(self.cluster.extents, self.cluster.size)
            assert shown == self.text

    def teardown(self) -> None:
        while self.on_the_way:
            self.commit()
        self.content.discard()
        assert not +self.live, "staged bytes are never released"


ContentMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestContentAgainstAByteArray = ContentMachine.TestCase


def test_a_hole_laid_later_is_not_taken_for_the_one_that_is_committed() -> None:
    content = Content(attr(100), lambda segment, nbytes: None)
    content.extents = from_extents([Extent(0, 100, name_of(b"x" * 100))])
    content.punch(0, 10, 1)
    record, holes = content.record(True), youngest_hole()
    content.recorded()
    content.write(0, 10, 1, 0, 2)
    content.punch(0, 10, 3)
    assert record is not None
    content.committed(record, [], holes)

    assert [(p.offset, p.length) for p in content.overlay] == [(0, 10)]
