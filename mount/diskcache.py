"""Whole blocks on this machine's disk, within a limit: the lower half of the block cache.

Layout: large blocks are files, ``<dir>/aa/<hash>.<space>`` (``aa``: the first two hex digits),
written to ``<dir>/temp`` and renamed; small ones lie many to a file in ``<dir>/packs``
(`mount.cachepacks`). Nothing is synced: a cache may lose, it may not lie. What was found at start
is checked against its name before its first use in this process, small blocks at every use; what
is kept was checked by the caller.

Invariants: the limit holds (each block rounded to 4 KiB, which for the small ones bounds what is
known of them in memory, too; at most one block over, for a moment); no error of the disk reaches
a caller, it only makes the cache smaller. What was not used for longest goes first: a file, or a
pack with all that is in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from everfold import blockid
from everfold.errors import EverfoldError
from everfold.model import SMALL_BLOCK, SpaceId
from mount.cachepacks import Found, Key, PackFiles, Place

_UNIT: Final = 4096
_AHEAD: Final = 512 * 1024  # the kernel heeds so much of one advice, and no more
_PACK_SHARE: Final = 16  # no pack may take more than this part of the limit
_PACK_MAX: Final = 32 << 20
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _File:
    size: int
    is_verified: bool
    used: int  # the tick of its last use


@dataclass(slots=True)
class _Pack:
    number: int
    is_noted: bool  # its file tells that this process used it
    used: int
    size: int = 0  # of its blocks, each rounded
    keys: list[Key] = field(default_factory=list)


class DiskCache:
    """The blocks that one mount keeps on disk. Thread-safe; one process a directory."""

    def __init__(self, directory: Path, limit: int) -> None:
        """Open (or make) the directory and take over what an earlier process left there."""
        self._directory = directory
        self._root = str(directory)
        self._temp = directory / "temp"
        self.limit = limit  # bytes; becomes less when the disk refuses
        self.used = 0
        self.rotten = 0  # blocks that did not match their name, and were dropped
        self._packing = threading.Lock()  # one thread appends to a pack; taken before _room
        self._pack_files = PackFiles(directory / "packs")
        self._growing: _Pack | None = None  # guarded by _packing
        self._room = threading.Lock()  # one thread makes room; taken before _lock
        self._lock = threading.Lock()  # guards the figures and all below; never held over I/O
        self._files: OrderedDict[Key, _File] = OrderedDict()  # least recently used first
        self._packs: OrderedDict[int, _Pack] = OrderedDict()  # likewise
        self._packed: dict[Key, Place] = {}
        self._tick = 0  # counts uses
        try:
            self._take_over()
        except OSError as err:
            self._shrink(err)
        self._make_room(0)

    def _take_over(self) -> None:
        self._temp.mkdir(parents=True, exist_ok=True)
        for leftover in self._temp.iterdir():
            leftover.unlink()
        packs = self._pack_files.found()
        for used_ns, key, size in sorted(self._scan(), key=lambda item: item[0]):
            while packs and packs[0].used_ns <= used_ns:  # oldest use first
                self._take_pack(packs.pop(0))
            self._files[key] = _File(size, is_verified=False, used=self._next_tick())
            self.used += _rounded(size)
        for pack in packs:
            self._take_pack(pack)

    def _take_pack(self, found: Found) -> None:
        pack = _Pack(found.number, is_noted=False, used=self._next_tick())
        for key, place in found.blocks:
            self._packed[key] = place
            pack.keys.append(key)
            pack.size += _rounded(place.size)
        self._packs[pack.number] = pack
        self.used += pack.size

    def _scan(self) -> Iterator[tuple[int, Key, int]]:
        for folder in self._directory.iterdir():
            if len(folder.name) != 2:
                continue
            for entry in os.scandir(folder):
                name, _, space = entry.name.partition(".")
                if len(name) == 2 * blockid.BLOCK_ID_SIZE and space.isdigit():
                    stat = entry.stat()
                    key = (SpaceId(int(space)), blockid.parse(name))
                    yield stat.st_mtime_ns, key, stat.st_size

    def _next_tick(self) -> int:
        self._tick += 1
        return self._tick

    # ------------------------------------------------------------ reading

    def has(self, key: Key) -> bool:
        """Tell whether a block is here; it may still turn out rotten."""
        return key in self._files or key in self._packed

    def get(self, key: Key) -> bytes | None:
        """Return a block, checked; None when it is not here."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._use_file(key, file)
        if file is None:
            return self._from_pack(key)
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
        return data

    def part(self, key: Key, offset: int, length: int) -> bytes | None:
        """Return a part of a block that was checked before and need not be read whole."""
        with self._lock:
            file = self._files.get(key)
            if file is None or not file.is_verified:
                return None
            self._use_file(key, file)
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

    def path_of(self, key: Key, size: int) -> str | None:
        """Return the path of a block's own file if it was checked and has `size` bytes."""
        with self._lock:
            file = self._files.get(key)
            if file is None or not file.is_verified or file.size != size:
                return None
            self._use_file(key, file)
        return self._path(key)

    def will_need(self, keys: Iterable[Key]) -> None:
        """Let the disk begin to read large blocks, so that reading them soon is quick."""
        for key in keys:
            file = self._files.get(key)
            if file is None:
                continue
            try:
                fd = os.open(self._path(key), os.O_RDONLY)
                try:
                    for at in range(0, file.size, _AHEAD):
                        os.posix_fadvise(fd, at, _AHEAD, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)
            except OSError as err:  # who reads it finds out
                _log.debug("block cache: nothing read ahead of %s: %s", key[1].hex(), err)

    def _use_file(self, key: Key, file: _File) -> None:
        """Note that a file is used. Lock held."""
        file.used = self._next_tick()
        self._files.move_to_end(key)

    def _from_pack(self, key: Key) -> bytes | None:
        with self._lock:
            place = self._packed.get(key)
            if place is None:
                return None
            pack = self._packs[place.pack]
            pack.used = self._next_tick()
            self._packs.move_to_end(pack.number)
            is_to_note, pack.is_noted = not pack.is_noted, True
        path = self._pack_files.path(place.pack)
        try:
            data = _read(path, place.at, place.size)
            blockid.check(key[1], data)
            if is_to_note:
                os.utime(path)
        except (OSError, EverfoldError) as err:
            self._lost_packed(key, place, err)
            return None
        return data

    # ------------------------------------------------------------ keeping

    def keep(self, blocks: Sequence[tuple[Key, bytes]]) -> None:
        """Keep blocks whose bytes the caller has checked. Never fails."""
        small: list[tuple[Key, bytes]] = []
        for key, data in blocks:
            if len(data) >= SMALL_BLOCK:
                self.keep_file(key, data)
            elif not self.has(key):
                small.append((key, data))
        if small:
            self._keep_small(small)

    def keep_file(self, key: Key, data: bytes | memoryview) -> None:
        """Keep a block in a file of its own."""
        if _rounded(len(data)) > self.limit or key in self._files:
            return
        self._make_room(_rounded(len(data)))
        draft = f"{self._root}/temp/{key[1].hex()}.{key[0]}.{threading.get_ident()}"
        try:
            try:
                _write(draft, data)
                _rename(draft, self._path(key))
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(draft)
                raise
        except OSError as err:
            self._give_back(_rounded(len(data)))
            self._shrink(err)
            return
        self._took(key, len(data))

    def link(self, key: Key, source: str, size: int) -> bool:
        """Link a file here that is never written to again; False when that cannot be."""
        if key in self._files:
            return True
        if _rounded(size) > self.limit:
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
            self._give_back(_rounded(size))
            return False
        self._took(key, size)
        return True

    def _took(self, key: Key, size: int) -> None:
        """Note a file for which there was made room."""
        with self._lock:
            if key in self._files:  # another thread kept it at the same time
                self.used -= _rounded(size)
            self._files[key] = _File(size, is_verified=True, used=self._next_tick())

    def _give_back(self, size: int) -> None:
        with self._lock:
            self.used -= size

    def _keep_small(self, blocks: list[tuple[Key, bytes]]) -> None:
        """Keep small blocks, as many at a time as a pack takes."""
        most = min(_PACK_MAX, self.limit // _PACK_SHARE)
        some: list[tuple[Key, bytes]] = []
        size = 0
        for block in blocks:
            rounded = _rounded(len(block[1]))
            if some and size + rounded > most:
                self._pack(some, size, most)
                some, size = [], 0
            some.append(block)
            size += rounded
        self._pack(some, size, most)

    def _pack(self, blocks: list[tuple[Key, bytes]], size: int, most: int) -> None:
        """Append blocks (`size`: rounded) to the pack that grows, or to another beyond `most`."""
        if size > self.limit:
            return
        with self._packing:
            self._make_room(size)
            try:
                pack = self._pack_with_room(size, most)
                places = self._pack_files.append(blocks)
            except OSError as err:
                self._growing = None  # what came behind a record that was cut short is lost
                self._give_back(size)
                self._shrink(err)
                return
            with self._lock:
                if pack.number not in self._packs:  # it had to make room itself meanwhile
                    self.used -= size
                    return
                # What another thread kept at the same time is here twice: the later one counts.
                for (key, _), place in zip(blocks, places, strict=True):
                    self._packed[key] = place
                    pack.keys.append(key)
                pack.size += size
                pack.used = self._next_tick()
                self._packs.move_to_end(pack.number)

    def _pack_with_room(self, size: int, most: int) -> _Pack:
        """Return the pack that the next blocks are appended to."""
        pack = self._growing
        if pack is not None and pack.size + size <= most and pack.number in self._packs:
            return pack
        pack = _Pack(self._pack_files.begin(), is_noted=True, used=0)
        with self._lock:
            pack.used = self._next_tick()
            self._packs[pack.number] = pack
        self._growing = pack
        return pack

    # ------------------------------------------------------------ letting go

    def clear(self) -> None:
        """Forget all blocks; those that are kept meanwhile may stay."""
        with self._room:
            with self._lock:
                files, self._files = self._files, OrderedDict()
                packs, self._packs = self._packs, OrderedDict()
                self._packed.clear()
            for key, file in files.items():
                self._remove(self._path(key), _rounded(file.size))
            for pack in packs.values():
                self._remove(self._pack_files.path(pack.number), pack.size)

    def close(self) -> None:
        """Let go of the pack that grows."""
        with self._packing:
            self._pack_files.end()
            self._growing = None

    def _make_room(self, size: int) -> None:
        """Count `size` as used, after removing what has to go for it."""
        with self._room:
            while True:
                with self._lock:
                    is_enough = self.used + size <= self.limit
                    if is_enough or not (self._files or self._packs):
                        self.used += size
                        return
                    path, freed = self._take_oldest()
                self._remove(path, freed)

    def _take_oldest(self) -> tuple[str, int]:
        """Forget what was not used for longest; return its path and its size. Lock held."""
        file = next(iter(self._files.values()), None)
        pack = next(iter(self._packs.values()), None)
        if pack is None or (file is not None and file.used < pack.used):
            key, old = self._files.popitem(last=False)
            return self._path(key), _rounded(old.size)
        self._forget_pack(pack)
        return self._pack_files.path(pack.number), pack.size

    def _forget_pack(self, pack: _Pack) -> None:
        """Lock held."""
        del self._packs[pack.number]
        for key in pack.keys:
            place = self._packed.get(key)
            if place is not None and place.pack == pack.number:
                del self._packed[key]

    def _remove(self, path: str, freed: int) -> None:
        """Remove a file that is forgotten already, and count its bytes as free."""
        try:
            _unlink(path)
        except OSError as err:
            _log.warning("block cache: cannot remove %s: %s", path, err)
        self._give_back(freed)

    def _lost(self, key: Key, file: _File, err: Exception | None) -> None:
        """Forget a file that is gone, unreadable or rotten."""
        with self._lock:
            if self._files.get(key) is not file:
                return  # was evicted meanwhile: an ordinary miss
            del self._files[key]
            self.used -= _rounded(file.size)
            if isinstance(err, FileNotFoundError):
                return  # evicted just as another thread put it again
            self.rotten += 1
        _log.warning("block cache: dropped %s: %s", self._path(key), err or "it was cut short")
        try:
            _unlink(self._path(key))
        except OSError as failed:
            _log.warning("block cache: cannot remove %s: %s", self._path(key), failed)

    def _lost_packed(self, key: Key, place: Place, err: Exception) -> None:
        """Forget a block that is not where it should be or has rotted, or a pack that is gone."""
        with self._lock:
            if self._packed.get(key) is not place:
                return  # its pack went meanwhile: an ordinary miss
            if isinstance(err, FileNotFoundError):
                pack = self._packs[place.pack]
                self._forget_pack(pack)
                self.used -= pack.size
                return
            del self._packed[key]  # its bytes go with the pack
            self.rotten += 1
        _log.warning("block cache: dropped %s of pack %d: %s", key[1].hex(), place.pack, err)

    def _shrink(self, err: OSError) -> None:
        """Live with less: three quarters of the present when the disk is full, else nothing."""
        is_full = err.errno in (errno.ENOSPC, errno.EDQUOT)
        with self._lock:
            self.limit = min(self.limit, self.used * 3 // 4 if is_full else 0)
        _log.warning("block cache: %s; going on with at most %d bytes", err, self.limit)
        if is_full:
            self._make_room(0)

    def _path(self, key: Key) -> str:
        """Return a file's path; text, because a `Path` costs more than the open."""
        name = key[1].hex()
        return f"{self._root}/{name[:2]}/{name}.{key[0]}"


def _rounded(size: int) -> int:
    return -(-size // _UNIT) * _UNIT


def _read(path: str, offset: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


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
