"""Reading open files: from local changes, the cache, or a datanode; and what readers want next.

Sees local changes first, then committed extents. A missing block is an error, never zeros.
Who reads on is read ahead for, in a window that doubles; who reads here and there gets the
neighbourhood into the kernel's page cache (see `mount.pushes`).
"""

from __future__ import annotations

from everfold.extents import Piece
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId
from mount import patience
from mount.content import Content, Source
from mount.core import Core
from mount.handles import Handle
from mount.neighbours import Neighbours
from mount.pushes import Pushes
from mount.staging import Place

READ_AHEAD_MAX = 8 * BLOCK_MAX
_STREAM_ENDS_S = 5.0  # without a read, after which another file may be streamed
_PASSING_SHARE = 8  # of the disk cache: larger files are not kept there when streamed


class Reading:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._pushes = Pushes(core)
        self._neighbours = Neighbours(core)
        self._streaming, self._streamed = 0, 0.0  # id of a handle; when it wanted more, monotonic

    def read(self, handle: Handle, offset: int, size: int) -> bytes | memoryview:
        """Return bytes at `offset`, short only at the end of the file."""
        content, core = handle.content, self._core
        core.refresh(content)
        is_cold = False
        while True:
            with core.lock:
                size = min(size, content.size - offset)
                if size <= 0:
                    return b""
                parts = self._gather(content, offset, size)
            if parts is not None:
                break
            self._neighbours.wait_for(content)
            core.load_extents(content)
            is_cold = True
        if (is_cold or self._neighbours.window) and content.size < SMALL_BLOCK:
            self._neighbours.reads(content)
        if offset in handle.waiting:
            handle.waiting.discard(offset)  # noted when it was tried where it must not wait
        else:
            self._note(handle, offset, size)
        read = core.blocks.read
        try:
            pieces = [
                part if isinstance(part, bytes) else read(part.source, part.at, part.length)
                for part in parts
            ]
        except patience.MustWait:
            handle.waiting.add(offset)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def local_file(self, content: Content) -> str:
        """Return the path of the local file that has just these bytes, "" when there is none."""
        if not SMALL_BLOCK <= content.size <= BLOCK_MAX:
            return ""  # smaller ones are packed and one READ is enough, larger ones are many files
        self._core.load_extents(content)
        extents = content.extents
        pieces = extents.slices(0, content.size) if extents is not None else []
        if len(pieces) != 1 or pieces[0].at or pieces[0].length != content.size:
            return ""
        core = self._core
        return core.blocks.cache.file_of(core.space, pieces[0].source, content.size) or ""

    def _note(self, handle: Handle, offset: int, size: int) -> None:
        """Follow where a program reads, and do something about what it wants next."""
        is_next = offset == handle.next_offset
        handle.next_offset = offset + size
        if is_next:
            self._read_ahead(handle, offset, size)
        else:
            handle.window = handle.ahead = 0
            self._pushes.missed(handle, offset)

    def _gather(
        self, content: Content, offset: int, size: int
    ) -> list[bytes | Piece[BlockId]] | None:
        """Return what a range consists of, None when committed extents must be fetched first.

        Staged bytes are read here, under the lock that keeps them from being released.
        """
        parts: list[bytes | Piece[BlockId]] = []
        at = offset
        for piece in content.overlay.slices(offset, size):
            if piece.offset > at and not _committed(content, at, piece.offset - at, parts):
                return None
            parts.append(self._local(piece))
            at = piece.end
        rest = offset + size - at
        if rest and not _committed(content, at, rest, parts):
            return None
        return parts

    def _local(self, piece: Piece[Source]) -> bytes | Piece[BlockId]:
        if not isinstance(piece.source, int):
            return Piece(piece.offset, piece.length, piece.source, piece.at)
        if piece.source < 0:
            return bytes(piece.length)
        return self._core.staging.read(Place(piece.source, piece.at), piece.length)

    def _read_ahead(self, handle: Handle, offset: int, size: int) -> None:
        """Fetch what a sequential reader wants next; the window doubles while it goes on."""
        end, content = offset + size, handle.content
        if content.extents is None or end < handle.ahead - handle.window // 2:
            return
        handle.window = min(max(BLOCK_MAX, handle.window * 2), READ_AHEAD_MAX)
        start = max(end, handle.ahead)
        with self._core.lock:
            if content.extents is None:
                return
            wanted = content.extents.slices(start, end + handle.window - start)
        handle.ahead = end + handle.window
        if wanted:
            self._core.blocks.prefetch(
                [(piece.source, piece.at + piece.length) for piece in wanted],
                self._is_passing(handle, content.size),
            )

    def _is_passing(self, handle: Handle, size: int) -> bool:
        """Tell whether what a reader wants next is not worth this machine's disk.

        Read through, a file that would take much of the cache pushes out what is there, and to
        write it costs a fifth of the mount's processor time. One reader at a time: memory has
        room for the windows of two.
        """
        limit = self._core.blocks.cache.disk_limit
        if handle.window < READ_AHEAD_MAX or size <= limit // _PASSING_SHARE:
            return False
        now = self._core.clock.monotonic()
        if self._streaming != id(handle) and now < self._streamed + _STREAM_ENDS_S:
            return False
        self._streaming, self._streamed = id(handle), now
        return True


def _committed(
    content: Content, offset: int, size: int, parts: list[bytes | Piece[BlockId]]
) -> bool:
    if content.extents is None:
        return False
    at = offset
    for piece in content.extents.slices(offset, size):
        if piece.offset > at:
            parts.append(bytes(piece.offset - at))
        parts.append(piece)
        at = piece.end
    if at < offset + size:
        parts.append(bytes(offset + size - at))
    return True
