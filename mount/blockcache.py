"""Whole, verified blocks near the reader: some in memory, more on disk.

Disk layout: ``<dir>/aa/<hash>.<space>`` (``aa``: the first two hex digits), written to
``<dir>/temp`` and renamed, never synced: a cache may lose, it may not lie. What was found on
disk at start is checked against its name before its first use in this process; what is put
was checked by the caller.

Invariants: the limits hold (disk: rounded to 4 KiB, as files are; at most one block over, for
a moment); no error of the disk reaches a reader, it only makes the cache smaller. Small blocks
stay in memory and reach the disk when they are pushed out or at `close`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from everfold import blockid
from everfold.errors import EverfoldError
from everfold.fileslice import FileSlice
from everfold.model import SMALL_BLOCK, BlockId, SpaceId

_Key = tuple[SpaceId, BlockId]
_UNIT: Final = 4096
_MEMORY_SHARE: Final = 4  # no block may take more than this part of the memory
_VIEW_MIN: Final = 64 * 1024  # making a view costs 0.2 µs, copying so much 4
_AHEAD: Final = 512 * 1024  # the kernel heeds so much of one advice, and no more
_log = logging.getLogger(__name__)


class CacheStatistics(NamedTuple):
    """Figures since the start, and the present sizes in bytes."""

    memory_hits: int
    disk_hits: int
    misses: int
    rotten: int  # files that did not match their name, and were removed
    memory_bytes: int
    disk_bytes: int
    disk_limit: int  # less than asked for when the disk refused


@dataclass(slots=True)
class _File:
    size: int
    is_verified: bool


class BlockCache:
    """The cache of one mount. Thread-safe; one process a directory."""

    def __init__(self, directory: Path, disk_bytes: int, memory_bytes: int) -> None:
        """Open (or make) the directory and take over what an earlier process left there."""
        self._directory = directory
        self._root = str(directory)
        self._temp = directory / "temp"
        self._memory_limit = memory_bytes
        self._disk_limit = disk_bytes
        self._room = threading.Lock()  # one thread makes room on disk; taken before _lock
        self._lock = threading.Lock()  # guards all below; never held over disk I/O
        self._memory: OrderedDict[_Key, bytes] = OrderedDict()  # least recently used first
        self._passing: set[_Key] = set()  # of those in memory, what is not worth the disk
        self._files: OrderedDict[_Key, _File] = OrderedDict()
        self._memory_used = 0
        self._disk_used = 0
        self._counts = {"memory_hits": 0, "disk_hits": 0, "misses": 0, "rotten": 0}
        try:
            self._take_over()
        except OSError as err:
            self._shrink(err)
        self._make_room(0)

    # ------------------------------------------------------------------ reading

    def get(self, space: SpaceId, block: BlockId) -> bytes | None:
        """Return the bytes of a block, or None when it is not here."""
        key = (space, block)
        data = self._from_memory(key)
        if data is None and (data := self._from_disk(key)) is not None:
            self._keep_in_memory(key, data)
        if data is None:
            self._counts["misses"] += 1
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
        with self._lock:
            file = self._files.get(key)
            is_ready = file is not None and file.is_verified
            if is_ready:
                self._files.move_to_end(key)
        if is_ready and file is not None:
            part = self._part(key, file, offset, length)
            if part is not None:
                self._counts["disk_hits"] += 1
                return part
        data = self.get(space, block)
        return None if data is None else part_of(data, offset, length)

    def has(self, space: SpaceId, block: BlockId) -> bool:
        """Tell whether the block is here; what is on disk may still turn out rotten."""
        key = (space, block)
        return key in self._memory or key in self._files

    def file_of(self, space: SpaceId, block: BlockId, size: int) -> str | None:
        """Return the path of a block's file if it was checked and has `size` bytes, else None.

        The file is never written to again; it may be removed at any time.
        """
        key = (space, block)
        with self._lock:
            file = self._files.get(key)
            if file is None or not file.is_verified or file.size != size:
                return None
            self._files.move_to_end(key)
        return self._path(key)

    def will_need(self, space: SpaceId, blocks: Iterable[BlockId]) -> None:
        """Let the disk begin to read blocks that are here, so that reading them soon is quick."""
        for block in blocks:
            key = (space, block)
            file = self._files.get(key)
            if file is None or key in self._memory:
                continue
            try:
                fd = os.open(self._path(key), os.O_RDONLY)
                try:
                    for at in range(0, file.size, _AHEAD):
                        os.posix_fadvise(fd, at, _AHEAD, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)
            except OSError as err:  # who reads it finds out
                _log.debug("block cache: nothing read ahead of %s: %s", block.hex(), err)

    @property
    def disk_limit(self) -> int:
        """Return how many bytes of this machine's disk may be used."""
        return self._disk_limit

    def statistics(self) -> CacheStatistics:
        """Return the figures."""
        return CacheStatistics(
            **self._counts,
            memory_bytes=self._memory_used,
            disk_bytes=self._disk_used,
            disk_limit=self._disk_limit,
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
        is_small = len(data) < SMALL_BLOCK
        in_memory = self._keep_in_memory(key, data)
        if not (in_memory and is_small):
            self._keep_on_disk(key, data)

    def adopt(self, space: SpaceId, block: BlockId, file: FileSlice) -> None:
        """Keep a block that lies in a file, as `put` does; a file of its own is linked here."""
        key = (space, block)
        if file.path is None or not self._adopt(key, file.path, len(file)):
            self.put(space, block, bytes(file))

    def clear(self) -> None:
        """Forget all blocks; those that are put meanwhile may stay."""
        with self._room:
            with self._lock:
                self._memory.clear()
                self._passing.clear()
                self._memory_used = 0
                files, self._files = self._files, OrderedDict()
            for key, file in files.items():
                try:
                    _unlink(self._path(key))
                except OSError as err:
                    _log.warning("block cache: cannot remove %s: %s", self._path(key), err)
                with self._lock:
                    self._disk_used -= _rounded(file.size)

    def close(self) -> None:
        """Put what is in memory alone on the disk."""
        with self._lock:
            left = [item for item in self._memory.items() if item[0] not in self._passing]
        for key, data in left:
            self._keep_on_disk(key, data)

    # ------------------------------------------------------------------ memory

    def _from_memory(self, key: _Key) -> bytes | None:
        with self._lock:
            data = self._memory.get(key)
            if data is not None:
                self._memory.move_to_end(key)
                self._counts["memory_hits"] += 1
        return data

    def _keep_in_memory(
        self, key: _Key, data: bytes | memoryview, is_passing: bool = False
    ) -> bool:
        """Tell whether it fits; what it pushes out goes to the disk if it is not there."""
        if len(data) > self._memory_limit // _MEMORY_SHARE:
            return False
        if not isinstance(data, bytes):
            data = bytes(data)
        pushed_out: list[tuple[_Key, bytes]] = []
        with self._lock:
            if key in self._memory:
                return True
            while self._memory_used + len(data) > self._memory_limit:
                old, bytes_ = self._memory.popitem(last=False)
                self._memory_used -= len(bytes_)
                if old in self._passing:
                    self._passing.discard(old)
                elif old not in self._files:
                    pushed_out.append((old, bytes_))
            self._memory[key] = data
            if is_passing:
                self._passing.add(key)
            self._memory_used += len(data)
        for old, bytes_ in pushed_out:
            self._keep_on_disk(old, bytes_)
        return True

    # ------------------------------------------------------------------ disk

    def _path(self, key: _Key) -> str:
        """Return a file's path; text, because a `Path` costs more than the open."""
        name = key[1].hex()
        return f"{self._root}/{name[:2]}/{name}.{key[0]}"

    def _take_over(self) -> None:
        self._temp.mkdir(parents=True, exist_ok=True)
        for leftover in self._temp.iterdir():
            leftover.unlink()
        found = sorted(self._scan(), key=lambda item: item[0])
        for _, key, size in found:  # oldest use first
            self._files[key] = _File(size, is_verified=False)
            self._disk_used += _rounded(size)

    def _scan(self) -> Iterator[tuple[int, _Key, int]]:
        for folder in self._directory.iterdir():
            if len(folder.name) != 2:
                continue
            for entry in os.scandir(folder):
                name, _, space = entry.name.partition(".")
                if len(name) == 2 * blockid.BLOCK_ID_SIZE and space.isdigit():
                    stat = entry.stat()
                    key = (SpaceId(int(space)), blockid.parse(name))
                    yield stat.st_mtime_ns, key, stat.st_size

    def _from_disk(self, key: _Key) -> bytes | None:
        with self._lock:
            file = self._files.get(key)
            if file is None:
                return None
            self._files.move_to_end(key)
        path = self._path(key)
        try:
            data = _read(path, 0, file.size)
            if not file.is_verified:
                blockid.check(key[1], data)
                os.utime(path)  # so that its use is remembered over a restart
                file.is_verified = True
        except (OSError, EverfoldError) as err:
            self._lost(key, file, err)
            return None
        if len(data) != file.size:
            self._lost(key, file, None)
            return None
        self._counts["disk_hits"] += 1
        return data

    def _part(self, key: _Key, file: _File, offset: int, length: int) -> bytes | None:
        wanted = max(0, min(length, file.size - offset))
        try:
            data = _read(self._path(key), offset, wanted)
        except OSError as err:
            self._lost(key, file, err)
            return None
        if len(data) != wanted:
            self._lost(key, file, None)
            return None
        return data

    def _keep_on_disk(self, key: _Key, data: bytes | memoryview) -> None:
        if _rounded(len(data)) > self._disk_limit or key in self._files:
            return
        self._make_room(_rounded(len(data)))
        draft = f"{self._root}/temp/{key[1].hex()}.{key[0]}.{threading.get_ident()}"
        path = self._path(key)
        try:
            try:
                _write(draft, data)
                _rename(draft, path)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(draft)
                raise
        except OSError as err:
            with self._lock:
                self._disk_used -= _rounded(len(data))
            self._shrink(err)
            return
        with self._lock:
            if key in self._files:  # another thread put it at the same time
                self._disk_used -= _rounded(len(data))
            self._files[key] = _File(len(data), is_verified=True)

    def _adopt(self, key: _Key, source: str, size: int) -> bool:
        """Link a file here that is never written to again; False when that cannot be."""
        if key in self._files:
            return True
        if _rounded(size) > self._disk_limit:
            return False
        self._make_room(_rounded(size))
        path = self._path(key)
        try:
            try:
                os.link(source, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.link(source, path)
        except OSError:  # another device, no such file any more, or there already: copied
            with self._lock:
                self._disk_used -= _rounded(size)
            return False
        with self._lock:
            self._files[key] = _File(size, is_verified=True)
        return True

    def _make_room(self, size: int) -> None:
        """Count `size` as used, after removing what has to go for it."""
        with self._room:
            while True:
                with self._lock:
                    if self._disk_used + size <= self._disk_limit or not self._files:
                        self._disk_used += size
                        return
                    key, file = self._files.popitem(last=False)
                try:
                    _unlink(self._path(key))
                except OSError as err:
                    _log.warning("block cache: cannot remove %s: %s", self._path(key), err)
                with self._lock:
                    self._disk_used -= _rounded(file.size)

    def _lost(self, key: _Key, file: _File, err: Exception | None) -> None:
        """Forget a file that is gone, unreadable or rotten."""
        with self._lock:
            if self._files.get(key) is not file:
                return  # was evicted meanwhile: an ordinary miss
            del self._files[key]
            self._disk_used -= _rounded(file.size)
            if isinstance(err, FileNotFoundError):
                return  # evicted just as another thread put it again
            self._counts["rotten"] += 1
        _log.warning("block cache: dropped %s: %s", self._path(key), err or "it was cut short")
        try:
            _unlink(self._path(key))
        except OSError as failed:
            _log.warning("block cache: cannot remove %s: %s", self._path(key), failed)

    def _shrink(self, err: OSError) -> None:
        """Live with less: three quarters of the present when the disk is full, else nothing."""
        is_full = err.errno in (errno.ENOSPC, errno.EDQUOT)
        with self._lock:
            limit = self._disk_used * 3 // 4 if is_full else 0
            self._disk_limit = min(self._disk_limit, limit)
        _log.warning("block cache: %s; going on with at most %d bytes", err, self._disk_limit)
        if is_full:
            self._make_room(0)


def _rounded(size: int) -> int:
    return -(-size // _UNIT) * _UNIT


def _read(path: str, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def part_of(data: bytes, offset: int, length: int) -> bytes | memoryview:
    """Return ``[offset, offset + length)`` of a block; without a copy where that is dearer."""
    if length < _VIEW_MIN:
        return data[offset : offset + length]
    return memoryview(data)[offset : offset + length]


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _write(path: str, data: bytes | memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        done = os.write(fd, data)
        while done < len(data):
            done += os.write(fd, memoryview(data)[done:])
    finally:
        os.close(fd)


def _rename(draft: str, path: str) -> None:
    try:
        os.rename(draft, path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(draft, path)
