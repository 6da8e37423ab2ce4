"""Whole, verified blocks near the reader: some in memory, more on disk (`mount.diskcache`).

Small blocks stay in memory and reach the disk when they are pushed out or at `close`; large ones
are put there at once. What is put was checked by the caller.

Invariants: the limits hold; no error of the disk reaches a reader.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from everfold.fileslice import FileSlice
from everfold.model import SMALL_BLOCK, BlockId, SpaceId
from mount.cachepacks import Key
from mount.diskcache import DiskCache

_MEMORY_SHARE: Final = 4  # no block may take more than this part of the memory
_VIEW_MIN: Final = 64 * 1024  # making a view costs 0.2 µs, copying so much 4


class CacheStatistics(NamedTuple):
    """Figures since the start, and the present sizes in bytes."""

    memory_hits: int
    disk_hits: int
    misses: int
    rotten: int  # blocks on disk that did not match their name, and were dropped
    memory_bytes: int
    disk_bytes: int
    disk_limit: int  # less than asked for when the disk refused


class BlockCache:
    """The cache of one mount. Thread-safe; one process a directory."""

    def __init__(self, directory: Path, disk_bytes: int, memory_bytes: int) -> None:
        """Open (or make) the directory and take over what an earlier process left there."""
        self._disk = DiskCache(directory, disk_bytes)
        self._memory_limit = memory_bytes
        self._lock = threading.Lock()  # guards all below; never held over disk I/O
        self._memory: OrderedDict[Key, bytes] = OrderedDict()  # least recently used first
        self._passing: set[Key] = set()  # of those in memory, what is not worth the disk
        self._memory_used = 0
        self._memory_hits = self._disk_hits = self._misses = 0

    # ------------------------------------------------------------------ reading

    def get(self, space: SpaceId, block: BlockId) -> bytes | None:
        """Return the bytes of a block, or None when it is not here."""
        key = (space, block)
        data = self._from_memory(key)
        if data is not None:
            return data
        data = self._disk.get(key)
        if data is None:
            self._misses += 1
            return None
        self._disk_hits += 1
        self._keep_in_memory(key, data)
        return data

    def read(
        self, space: SpaceId, block: BlockId, offset: int, length: int
    ) -> bytes | memoryview | None:
        """Return ``[offset, offset + length)`` of a block, or None when it is not here.

        Short only at the end of the block. Loads the whole block only where it must be
        checked first.
        """
        key = (space, block)
        data = self._from_memory(key)
        if data is not None:
            return part_of(data, offset, length)
        part = self._disk.part(key, offset, length)
        if part is not None:
            self._disk_hits += 1
            return part
        data = self.get(space, block)
        return None if data is None else part_of(data, offset, length)

    def has(self, space: SpaceId, block: BlockId) -> bool:
        """Tell whether the block is here; what is on disk may still turn out rotten."""
        key = (space, block)
        return key in self._memory or self._disk.has(key)

    def file_of(self, space: SpaceId, block: BlockId, size: int) -> str | None:
        """Return the path of a block's file if it was checked and has `size` bytes, else None.

        The file is never written to again; it may be removed at any time.
        """
        return self._disk.path_of((space, block), size)

    def will_need(self, space: SpaceId, blocks: Iterable[BlockId]) -> None:
        """Let the disk begin to read blocks that are here, so that reading them soon is quick."""
        keys = [(space, block) for block in blocks]
        self._disk.will_need([key for key in keys if key not in self._memory])

    @property
    def disk_limit(self) -> int:
        """Return how many bytes of this machine's disk may be used."""
        return self._disk.limit

    def statistics(self) -> CacheStatistics:
        """Return the figures."""
        disk = self._disk
        return CacheStatistics(
            self._memory_hits,
            self._disk_hits,
            self._misses,
            disk.rotten,
            self._memory_used,
            disk.used,
            disk.limit,
        )

    # ------------------------------------------------------------------ keeping

    def remember(
        self, space: SpaceId, block: BlockId, data: bytes | memoryview, is_passing: bool = False
    ) -> bool:
        """Keep a checked block in memory, if it fits there: the first half of `put`.

        One that is only passing through is not kept on disk when it has to make room.
        """
        return self._keep_in_memory((space, block), data, is_passing)

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """Keep a block whose bytes the caller has checked. Never fails."""
        key = (space, block)
        in_memory = self._keep_in_memory(key, data)
        if len(data) >= SMALL_BLOCK:
            self._disk.keep_file(key, data)
        elif not in_memory:
            self._disk.keep([(key, bytes(data))])

    def adopt(self, space: SpaceId, block: BlockId, file: FileSlice) -> None:
        """Keep a block that lies in a file, as `put` does; a file of its own is linked here."""
        key = (space, block)
        if file.path is None or not self._disk.link(key, file.path, len(file)):
            self.put(space, block, bytes(file))

    def clear(self) -> None:
        """Forget all blocks; those that are put meanwhile may stay."""
        with self._lock:
            self._memory.clear()
            self._passing.clear()
            self._memory_used = 0
        self._disk.clear()

    def close(self) -> None:
        """Put what is in memory alone on the disk."""
        with self._lock:
            left = [item for item in self._memory.items() if item[0] not in self._passing]
        self._disk.keep(left)
        self._disk.close()

    # ------------------------------------------------------------------ memory

    def _from_memory(self, key: Key) -> bytes | None:
        with self._lock:
            data = self._memory.get(key)
            if data is not None:
                self._memory.move_to_end(key)
                self._memory_hits += 1
        return data

    def _keep_in_memory(self, key: Key, data: bytes | memoryview, is_passing: bool = False) -> bool:
        """Tell whether it fits; what it pushes out goes to the disk if it is not there."""
        if len(data) > self._memory_limit // _MEMORY_SHARE:
            return False
        if not isinstance(data, bytes):
            data = bytes(data)
        pushed_out: list[tuple[Key, bytes]] = []
        with self._lock:
            if key in self._memory:
                return True
            while self._memory_used + len(data) > self._memory_limit:
                old, bytes_ = self._memory.popitem(last=False)
                self._memory_used -= len(bytes_)
                if old in self._passing:
                    self._passing.discard(old)
                elif not self._disk.has(old):
                    pushed_out.append((old, bytes_))
            self._memory[key] = data
            if is_passing:
                self._passing.add(key)
            self._memory_used += len(data)
        if pushed_out:
            self._disk.keep(pushed_out)
        return True


def part_of(data: bytes, offset: int, length: int) -> bytes | memoryview:
    """Return ``[offset, offset + length)`` of a block; without a copy where that is dearer."""
    if length < _VIEW_MIN:
        return data[offset : offset + length]
    return memoryview(data)[offset : offset + length]
