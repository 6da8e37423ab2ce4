"""Small blocks of the block cache on disk: many to a file, which is written once, to its end.

A file for each cost 45 us (made, renamed, and its name found again), a record here costs 6. A
pack is ``<folder>/<number>.pack``, of the form that a datanode's have (`stores.packformat`).
Nothing is ever overwritten or taken out: a pack goes as a whole. Nothing is synced either: a
record that a crash cut short is not found again, and who reads checks the bytes.

One thread appends at a time (the caller sees to it).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from everfold.model import BlockId, SpaceId
from everfold.stores import packformat
from everfold.stores.packformat import BLOCK, HEAD_SIZE

Key = tuple[SpaceId, BlockId]
_SUFFIX: Final = ".pack"


class Place(NamedTuple):
    """Where the bytes of a block are."""

    pack: int
    at: int
    size: int


class Found(NamedTuple):
    """A pack that an earlier process left."""

    number: int
    used_ns: int  # when it was last used, as far as its file tells
    blocks: list[tuple[Key, Place]]


class PackFiles:
    """The packs of a folder, which is made by the first append. Raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._next = 1
        self._fd = -1  # of the pack that grows
        self._number = 0
        self._end = 0

    def found(self) -> list[Found]:
        """Return the packs that are there, the least recently used first; none is appended to."""
        packs = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._folder):
                number, _, suffix = entry.name.partition(".")
                if number.isdigit() and "." + suffix == _SUFFIX:
                    used_ns = entry.stat().st_mtime_ns
                    packs.append(Found(int(number), used_ns, self._scan(int(number))))
                    self._next = max(self._next, int(number) + 1)
        return sorted(packs, key=lambda pack: (pack.used_ns, pack.number))

    def path(self, number: int) -> str:
        """Return the path of a pack."""
        return f"{self._folder}/{number}{_SUFFIX}"

    def begin(self) -> int:
        """Append to a new pack from now on; return its number."""
        self.end()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            number = self._next
            try:
                self._fd = os.open(self.path(number), flags, 0o600)
            except FileNotFoundError:
                os.makedirs(self._folder, exist_ok=True)
            except FileExistsError:  # one that could not be taken over
                self._next += 1
            else:
                self._next, self._number, self._end = number + 1, number, 0
                return number

    def append(self, blocks: Sequence[tuple[Key, bytes]]) -> list[Place]:
        """Append blocks to the pack that was begun; all or, where that raises, none."""
        pieces: list[bytes] = []
        places: list[Place] = []
        number, at = self._number, self._end
        for (space, block), data in blocks:
            size = len(data)
            pieces.append(packformat.head(BLOCK, space, block, size))
            pieces.append(data)
            places.append(Place(number, at + HEAD_SIZE, size))
            at += HEAD_SIZE + size
        joined = b"".join(pieces)
        done = 0
        while done < len(joined):
            done += os.pwrite(self._fd, joined[done:] if done else joined, self._end + done)
        self._end = at
        return places

    def end(self) -> None:
        """Append no more to the pack that was begun."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _scan(self, number: int) -> list[tuple[Key, Place]]:
        """Return the blocks of a pack, without what is cut short or makes no sense."""
        with open(self.path(number), "rb", buffering=0) as file:
            fd = file.fileno()
            return [
                ((record.space, record.block), Place(number, record.at + HEAD_SIZE, record.size))
                for record in packformat.scan(fd, os.fstat(fd).st_size, is_verified=False)
            ]
