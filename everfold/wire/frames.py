"""Many blocks in one body, and the digests that compare what two sides hold."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, SpaceId

FRAME: Final = struct.Struct("<32sI")  # block name, length; the bytes follow


def pack_frames(blocks: Iterable[tuple[BlockId, bytes | memoryview]]) -> list[bytes | memoryview]:
    """Return the pieces of a body with many blocks, for a scatter write; no bytes are copied.

    A length of 0 stands for "not here" in the answer to a fetch.
    """
    pieces: list[bytes | memoryview] = []
    for block, data in blocks:
        pieces.append(FRAME.pack(block, len(data)))
        if len(data):
            pieces.append(data)
    return pieces


def unpack_frames(body: bytes | memoryview) -> Iterator[tuple[BlockId, memoryview]]:
    """Yield (block, bytes) of a framed body; raise INVALID when it is cut short."""
    view, at = memoryview(body), 0
    while at < len(view):
        if at + FRAME.size > len(view):
            raise EverfoldError(Kind.INVALID, "a frame's head is cut short")
        name, length = FRAME.unpack_from(view, at)
        at += FRAME.size
        if at + length > len(view):
            raise EverfoldError(Kind.INVALID, "a frame is cut short")
        yield BlockId(name), view[at : at + length]
        at += length


def held_digest(space: SpaceId, block: BlockId) -> int:
    """Return the 63-bit number that stands for (space, block) in a `PrefixDigest`."""
    mixed = int.from_bytes(block[8:16], "little") ^ (space * 0x9E3779B97F4A7C15)
    return mixed & 0x7FFF_FFFF_FFFF_FFFF
