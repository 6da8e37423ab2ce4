"""The form of a pack: records one after the other, each of which explains itself.

A record is a head (magic, kind, size, space, block, CRC-32 of the head) and the block's
bytes, which the block's name verifies. A tombstone is a head alone and forgets what came
before it. Read in order of pack number and offset, the last word on a block holds; the
index is only a summary of that and can always be made again.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from everfold.blockid import name_of
from everfold.model import BlockId, SpaceId

_BODY = struct.Struct("<4sB3xIQ32s")
_CRC = struct.Struct("<I")
HEAD_SIZE = _BODY.size + _CRC.size
_MAGIC = b"EFP1"
BLOCK = 1
TOMBSTONE = 2


class Record(NamedTuple):
    """A record found in a pack. `at` is where its head starts."""

    kind: int
    space: SpaceId
    block: BlockId
    at: int
    size: int  # of the block's bytes; 0 for a tombstone

    @property
    def end(self) -> int:
        """Return where the next record starts."""
        return self.at + HEAD_SIZE + self.size


def head(kind: int, space: SpaceId, block: BlockId, size: int) -> bytes:
    """Return the head of a record."""
    body = _BODY.pack(_MAGIC, kind, size, space, block)
    return body + _CRC.pack(zlib.crc32(body))


def read_head(raw: bytes, at: int) -> Record | None:
    """Return the record that this head announces, or None when it is not a head."""
    if len(raw) < HEAD_SIZE or raw[:4] != _MAGIC:
        return None
    if zlib.crc32(raw[: _BODY.size]) != _CRC.unpack_from(raw, _BODY.size)[0]:
        return None
    _, kind, size, space, block = _BODY.unpack_from(raw)
    if kind not in (BLOCK, TOMBSTONE):
        return None
    return Record(kind, SpaceId(space), BlockId(block), at, size)


def scan(fd: int, size: int, is_verified: bool) -> Iterator[Record]:
    """Yield the records of a pack in order, stepping over stretches that are none.

    `is_verified`: read the bytes too and pass over blocks that do not match their name, as
    after a power cut in the last pack. What ends beyond `size` is torn and not yielded.
    """
    at = 0
    while at + HEAD_SIZE <= size:
        record = read_head(os.pread(fd, HEAD_SIZE, at), at)
        if record is None or record.end > size:
            found = _next_head(fd, at + 1, size)
            if found is None:
                return
            at = found
            continue
        if record.kind == TOMBSTONE or not is_verified or _is_sound(fd, record):
            yield record
        at = record.end


def _is_sound(fd: int, record: Record) -> bool:
    return name_of(os.pread(fd, record.size, record.at + HEAD_SIZE)) == record.block


def _next_head(fd: int, at: int, size: int) -> int | None:
    rest = os.pread(fd, size - at, at)
    found = rest.find(_MAGIC)
    while found >= 0:
        record = read_head(rest[found : found + HEAD_SIZE], at + found)
        if record is not None and record.end <= size:
            return at + found
        found = rest.find(_MAGIC, found + 1)
    return None
