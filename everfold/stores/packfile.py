"""One open pack: an append-only file and what is known about its durability.

Invariant: bytes before `synced` are on the medium; bytes before `size` are whole records; what
the file has after them is zeros.

A pack whose sync failed once is poisoned for good: the kernel reports such an error only
once, so a second sync that succeeds proves nothing. Nothing is appended to it any more.

The zeros are room for small records: to sync bytes that take the place of others is a write, to
sync a file that became longer is a commit of the filesystem's log, too, which is one for all.
Three processes that write and sync 4 KiB on one ext4: 150-210 us each instead of 330-650, and
half the CPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from everfold.errors import EverfoldError, Kind
from everfold.files import Files, Piece, translated

SUFFIX = ".pack"
_ROOM = memoryview(bytes(128 * 1024))
_SMALL = 64 * 1024  # what is larger makes no room: the next is likely to be large, too


class PackFile:
    """A pack. Appending is for one thread at a time (its owner's lock); reading for any.

    Readers keep the object, not the descriptor: it closes when the last of them lets go, so
    a pack may be removed while it is being read.
    """

    def __init__(self, folder: Path, number: int, files: Files) -> None:
        self.number = number
        self.path = folder / f"{number:08d}{SUFFIX}"
        self.live = 0  # bytes of records that are not garbage; guarded by the owner's lock
        self.is_poisoned = False
        self._files = files
        self._fd = -1
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = self.synced = self._length = os.fstat(self._fd).st_size
        self._sync_lock = threading.Lock()  # guards synced, is_poisoned; a leaf

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def fd(self) -> int:
        """Return the descriptor; good as long as the caller holds this object."""
        return self._fd

    def append(self, label: str, pieces: Sequence[Piece]) -> int:
        """Write at the end, all or nothing; return where it starts. Not durable before `sync`."""
        start = self.size
        end = start + sum(map(len, pieces))
        if self._length < end <= start + _SMALL:
            pieces = [*pieces, _ROOM]
        try:
            written = self._files.write(label, self._fd, pieces, start)
        except OSError:
            self.cut(start)
            raise
        self.size, self._length = end, max(self._length, start + written)
        return start

    def cut(self, size: int) -> None:
        """Drop what was appended after `size`; when even that fails, poison the pack."""
        try:
            self._files.truncate("pack.truncate", self._fd, size)
        except OSError:
            self.is_poisoned = True
        self.size = self._length = size
        with self._sync_lock:  # what comes in its place is not on the medium
            self.synced = min(self.synced, size)

    def trim(self) -> None:
        """Give back the room that was not used. Durable after a sync of the filesystem."""
        if self._length > self.size:
            with translated(str(self.path)):
                self._files.truncate("pack.trim", self._fd, self.size)
            self._length = self.size

    def sync(self, end: int) -> None:
        """Return when all before `end` is on the medium. One sync serves all who wait."""
        with self._sync_lock:
            if self.synced >= end:
                return
            if self.is_poisoned:
                raise EverfoldError(Kind.UNAVAILABLE, "an earlier sync of this pack failed")
            upto = self.size
            try:
                self._files.sync("pack.sync", self._fd)
            except OSError as err:
                self.is_poisoned = True
                raise EverfoldError(Kind.UNAVAILABLE, f"the disk failed: {err}") from err
            self.synced = upto

    def read(self, at: int, size: int) -> bytes:
        """Return bytes as they are on disk (fewer at the end)."""
        return os.pread(self._fd, size, at)
