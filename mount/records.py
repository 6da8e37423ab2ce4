"""What the journal holds: operations on their way to the cluster.

Most are wire operations as they stand. Bytes are different: a `StagedWrite` says where in
the staging segments they lie; the shipper turns it into a `wire.Write` that names blocks.
The number of a record in the journal is the operation's number in the commit, which makes
replays harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from everfold import wire
from everfold.model import Extent, Ino


class StagedWrite(wire.Op, frozen=True, tag="staged"):
    """A `wire.Write` whose bytes are still in staging segments.

    `staged` holds (offset in the file, length, segment, offset in the segment); `extents`
    are bytes by reference (copy_file_range), already in the cluster.
    """

    ino: Ino
    base: int
    size: int
    mtime_ns: int
    time_ns: int
    staged: list[tuple[int, int, int, int]]
    extents: list[Extent] = []
    holes: list[tuple[int, int]] = []
    cut: int | None = None
    is_sealed: bool = False
    mode: int | None = None

    @property
    def staged_bytes(self) -> int:
        """Return how many bytes wait in staging segments."""
        return sum(length for _, length, _, _ in self.staged)


Local = StagedWrite | wire.AnyOp

_decoder: msgspec.msgpack.Decoder[Local] = msgspec.msgpack.Decoder(Local)


def encode(record: Local) -> bytes:
    """Return the journal's form of a record."""
    return wire.encode(record)


def decode(raw: bytes) -> Local:
    """Read a record back from the journal."""
    return _decoder.decode(raw)


def sealed(record: Local) -> Local:
    """Return a `StagedWrite` as it is when it completes its version."""
    return msgspec.structs.replace(record, is_sealed=True)


_OF_ONE_FILE: Final = frozenset({StagedWrite, wire.SetAttr, wire.Seal, wire.Write})
Names = Sequence[tuple[Ino, bytes]]


def ino_of(record: Local) -> Ino:
    """Return the inode whose attributes or bytes the record changes, 0 for names only."""
    if type(record) in _OF_ONE_FILE:
        return record.ino
    return Ino(0)


def touched_by(record: Local) -> tuple[Names, Sequence[Ino]]:
    """Return the names and the inodes that a record changes, as far as it says."""
    if type(record) in _OF_ONE_FILE:
        return (), (record.ino,)
    if isinstance(record, (wire.Make, wire.Unlink, wire.Link)):
        return ((record.parent, record.name),), (record.parent, record.ino)
    if isinstance(record, wire.Rename):
        names = (record.parent, record.name), (record.new_parent, record.new_name)
        inos = record.parent, record.new_parent, record.ino
        return names, (*inos, record.replaced) if record.replaced else inos
    if isinstance(record, wire.Restore):
        return ((record.parent, record.name),), (record.parent,)
    return (), (record.ino,)
