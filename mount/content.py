"""The bytes of one file as this mount sees them: committed extents under local changes.

Two maps over the committed extents. The **overlay** is everything that is not committed
yet, whoever reads sees it first. The **dirty** map is the part of it that no journal record
holds yet; `take` turns it into one. A hole laid locally has a source of its own (a negative
number, counting down), so that a later hole at the same place is not taken for it.

Each staged byte belongs to the dirty map or to exactly one record. No I/O here, no locks:
the owner (`mount.core`) calls under its lock.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable

from everfold.errors import EverfoldError
from everfold.extents import Piece, PieceMap
from everfold.model import NOW, SIZE_MAX, Attr, BlockId, Extent, Seq
from mount.records import StagedWrite
from mount.shipper import Item

Source = int | BlockId  # staging segment (>= 0), local hole (< 0), or a block by reference

_holes = itertools.count(-1, -1)


class Content:
    """State of a file that is open, dirty or on its way; see the module's docstring."""

    __slots__ = (
        "attr",
        "base",
        "committed_size",
        "cut",
        "dirty",
        "dirty_bytes",
        "dirty_since",
        "dirty_weighed",
        "error",
        "extents",
        "handles",
        "has_open_version",
        "ino",
        "is_changed",
        "is_new",
        "is_orphan",
        "is_stale",
        "kill_mode",
        "last_number",
        "last_write",
        "last_write_number",
        "mtime_ns",
        "overlay",
        "pending",
        "pushing",
        "read_seq",
        "release_staged",
        "seals",
        "size",
        "time_ns",
        "unflushed",
        "write_sent",
        "writers",
    )

    def __init__(self, attr: Attr, release: Callable[[int, int], None]) -> None:
        self.ino = attr.ino
        self.follow(attr)
        self.extents: PieceMap[BlockId] | None = None  # committed; None: not fetched
        self.overlay: PieceMap[Source] = PieceMap()
        self.dirty: PieceMap[Source] = PieceMap()
        self.cut: int | None = None
        self.is_changed = False  # something is dirty (perhaps only the size)
        self.dirty_bytes = 0  # written since the last record, overwritten ones too
        self.dirty_weighed = 0  # of them those that were there when it was last asked: send?
        self.dirty_since = 0.0  # monotonic
        self.last_write = 0.0  # monotonic
        self.kill_mode: int | None = None  # a write took setuid or setgid away: these bits stay
        self.pending = 0  # records of this inode that are not committed
        self.seals = 0  # of them those that only complete a version
        self.last_number = 0  # the newest of them
        self.last_write_number = 0  # the newest that carries bytes
        self.write_sent: Item | None = None  # that one, until it is through
        self.pushing = 0  # windows of the file that are on their way to the kernel
        self.handles = 0
        self.writers = 0
        self.unflushed = 0  # of them those whose descriptors are surely not all closed
        self.has_open_version = False  # a record without seal went out
        self.is_new = False  # made here and not closed yet: an empty file is a version too
        self.is_orphan = False  # no name leads here: changes stay local
        self.attr: Attr | None = None  # of an orphan, whom the nameserver has forgotten
        self.is_stale = False  # others changed it while local changes were under way
        self.read_seq: Seq = NOW  # as of when committed extents are read
        self.error: EverfoldError | None = None  # of an earlier write, for the next fsync or close
        self.release_staged = release  # (segment, bytes)

    def mode_of(self, attr: Attr) -> int:
        """Return the mode of the file, given its attributes without the local writes."""
        return attr.mode if self.kill_mode is None else stat.S_IFMT(attr.mode) | self.kill_mode

    def set_attr(self, now_ns: int, mode: int | None, mtime_ns: int | None) -> None:
        """Attributes were set; a write that is still to be sent takes the times along."""
        self.time_ns = now_ns
        if mtime_ns is not None:
            self.mtime_ns = mtime_ns
        if mode is not None:
            self.kill_mode = None

    def load_nothing(self) -> None:
        """Nothing of the file is in the cluster, which need not be asked."""
        if self.extents is None:
            self.extents = PieceMap()

    @property
    def is_active(self) -> bool:
        """Tell whether local changes are not committed yet: local attributes count then."""
        return self.is_changed or self.pending > self.seals or self.is_orphan

    @property
    def is_idle(self) -> bool:
        """Tell whether nobody has the file open and nothing of it is on its way."""
        return not (self.handles or self.pending or self.is_active)

    def follow(self, attr: Attr) -> None:
        """Take over committed attributes; only while nothing local is under way."""
        self.base = attr.version  # k that local changes build on
        self.size = self.committed_size = attr.size
        self.mtime_ns = attr.mtime_ns
        self.time_ns = attr.ctime_ns

    def write(self, offset: int, length: int, segment: int, at: int, now_ns: int) -> None:
        """Lay staged bytes over the file."""
        self.overlay.lay(offset, length, segment, at)
        displaced = self.dirty.lay(offset, length, segment, at)
        if displaced:
            self._drop(displaced)
        if offset + length > self.size:
            self.size = offset + length
        self.dirty_bytes += length
        self.mtime_ns = self.time_ns = now_ns
        self.is_changed = True

    def reference(self, offset: int, length: int, block: BlockId, at: int, now_ns: int) -> None:
        """Lay bytes that the cluster has already over the file."""
        self.overlay.lay(offset, length, block, at)
        self._drop(self.dirty.lay(offset, length, block, at))
        self.size = max(self.size, offset + length)
        self._touch(now_ns)

    def punch(self, offset: int, length: int, now_ns: int) -> None:
        """Make a hole; the size stays."""
        hole = next(_holes)
        self.overlay.lay(offset, length, hole)
        self._drop(self.dirty.lay(offset, length, hole))
        self._touch(now_ns)

    def resize(self, size: int, now_ns: int) -> None:
        """Set the size; what lies beyond it is gone for good."""
        if size < self.size:
            self.overlay.lay(size, SIZE_MAX - size, next(_holes))
            self._drop(self.dirty.cut(size))
            self.cut = size if self.cut is None else min(self.cut, size)
        self.size = size
        self._touch(now_ns)

    def dirty_runs(self) -> int:
        """Return how many stretches of the file without a gap are dirty."""
        runs, reach = 0, -1
        for offset, length, _, _ in self.dirty:
            runs += offset != reach
            reach = offset + length
        return runs

    def record(self, is_sealed: bool) -> StagedWrite | None:
        """Return what is dirty as a record, None when nothing is; `recorded` once it is kept."""
        if not self.is_changed:
            return None
        staged, holes, extents = [], [], []
        for offset, length, source, at in self.dirty:
            if not isinstance(source, int):
                extents.append(Extent(offset, length, source, at))
            elif source >= 0:
                staged.append((offset, length, source, at))
            else:
                holes.append((offset, length))
        return StagedWrite(
            self.ino,
            self.base,
            self.size,
            self.mtime_ns,
            self.time_ns,
            staged,
            extents,
            holes,
            self.cut,
            is_sealed,
            self.kill_mode,
        )

    def recorded(self) -> None:
        """The journal has the record of all that was dirty."""
        self.dirty = PieceMap()
        self.cut = None
        self.kill_mode = None
        self.is_changed = False
        self.dirty_bytes = self.dirty_weighed = 0

    def committed(self, record: StagedWrite, extents: list[Extent], holes_upto: int) -> None:
        """The record is in the cluster as `extents`: what it covered is no longer local.

        `holes_upto` is the youngest local hole that the record could hold.
        """
        if self.extents is not None:
            if record.cut is not None:
                self.extents.cut(record.cut)
            for offset, length in record.holes:
                self.extents.erase(offset, length)
            for extent in extents:
                self.extents.lay(extent.offset, extent.length, extent.block, extent.block_offset)
        self._no_longer_local(record, holes_upto)

    def refused(self, record: StagedWrite, holes_upto: int) -> None:
        """The cluster refused the record: what it held is dropped, the file is read anew."""
        self._no_longer_local(record, holes_upto)
        self.is_stale = True

    def unsent(self, record: StagedWrite) -> None:
        """The cluster refused the record, but the file is this machine's alone: it stays dirty.

        What was overwritten since is passed over: that is dirty already.
        """
        for offset, length, segment, at in record.staged:
            kept = self._dirty_again(offset, length, segment, at)
            if kept < length:
                self.release_staged(segment, length - kept)
        for extent in record.extents:
            self._dirty_again(extent.offset, extent.length, extent.block, extent.block_offset)
        for offset, length in record.holes:
            for piece in self.overlay.slices(offset, length):
                if isinstance(piece.source, int) and piece.source < 0:
                    self.dirty.lay(*piece)
        if record.cut is not None:
            self.cut = record.cut if self.cut is None else min(self.cut, record.cut)
        if self.kill_mode is None:
            self.kill_mode = record.mode
        self.has_open_version = False
        self.is_changed = True

    def _dirty_again(self, offset: int, length: int, source: Source, at: int) -> int:
        """Mark what of a range is still `source` from `at` on; return how many bytes those are."""
        same = self.overlay.same(offset, length, source, at)
        for piece in same:
            self.dirty.lay(*piece)
        kept = sum([piece.length for piece in same])
        self.dirty_bytes += kept
        return kept

    def _no_longer_local(self, record: StagedWrite, holes_upto: int) -> None:
        staged = record.staged
        if not (len(staged) == 1 and self.overlay.drop_only(*staged[0])):
            self.overlay.erase_each_same(staged)
        used: dict[int, int] = {}
        for _, length, segment, _ in staged:
            used[segment] = used.get(segment, 0) + length
        for segment, nbytes in used.items():
            self.release_staged(segment, nbytes)
        for extent in record.extents:
            self.overlay.erase_same(extent.offset, extent.length, extent.block, extent.block_offset)
        if record.cut is not None or record.holes:
            for piece in list(self.overlay):
                if isinstance(piece.source, int) and holes_upto <= piece.source < 0:
                    self.overlay.erase(piece.offset, piece.length)

    def discard(self) -> None:
        """Drop everything local; the file was closed and no name leads to it."""
        self._drop(list(self.dirty))
        self.dirty = PieceMap()
        self.overlay = PieceMap()
        self.is_changed = False
        self.cut = None

    def _touch(self, now_ns: int) -> None:
        self.mtime_ns = self.time_ns = now_ns
        self.is_changed = True

    def _drop(self, pieces: list[Piece[Source]]) -> None:
        for piece in pieces:
            if isinstance(piece.source, int) and piece.source >= 0:
                self.release_staged(piece.source, piece.length)


def youngest_hole() -> int:
    """Return a bound below which no local hole made so far lies (holes count downwards)."""
    return next(_holes)
