"""Bytes on their way in: cut into blocks as they come, stored while more come.

Only a few blocks are in memory at any time, however large the file is, and of all uploads together
no more than a budget allows. Nothing names a block before the commit; what was stored for an upload
that breaks off is garbage, which is collected.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, Extent, SpaceId
from nameserver.files.blocks import Blocks
from nameserver.files.budget import Budget

WINDOW: Final = 3  # blocks of one upload that are being stored while the next one gathers
_ROOM_S: Final = 30.0


class Content(NamedTuple):
    """A whole file's bytes, safe in the cluster: what a commit may name."""

    size: int
    extents: list[Extent]
    stored: list[wire.Stored]


class Intake:
    """One upload's bytes. Of one thread."""

    def __init__(
        self,
        blocks: Blocks,
        pool: Executor,
        budget: Budget,
        space: SpaceId,
        size_max: int,
        room: int | None,
    ) -> None:
        """`room`: what the quota leaves (None: no limit); the commit checks it again."""
        self._blocks, self._pool, self._budget, self._space = blocks, pool, budget, space
        self._size_max, self._room = size_max, room
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._size = 0
        self._extents: list[Extent] = []
        self._stored: list[wire.Stored] = []
        self._under_way: deque[Future[wire.Stored]] = deque()

    def write(self, data: bytes) -> None:
        """Take the next bytes. TOO_LARGE, QUOTA as soon as there are too many of them."""
        self.check(self._size + len(data))
        self._size += len(data)
        while data:
            piece = data[: BLOCK_MAX - self._gathered]
            self._make_room(len(piece))
            self._pieces.append(piece)
            self._gathered += len(piece)
            data = data[len(piece) :]
            if self._gathered == BLOCK_MAX:
                self._send()

    def _make_room(self, size: int) -> None:
        """Take a piece's bytes from the budget.

        When it is used up a short block is sent, so that all that others wait for is under way.
        """
        if self._budget.take(size, 0.0):
            return
        if self._gathered:
            self._send()
        if not self._budget.take(size, _ROOM_S):
            raise EverfoldError(Kind.UNAVAILABLE, "too many uploads at once; try again")

    def check(self, size: int) -> None:
        """Raise TOO_LARGE or QUOTA when a file of this size cannot be taken."""
        if size > self._size_max:
            raise EverfoldError(Kind.TOO_LARGE, f"files have at most {self._size_max} bytes")
        if self._room is not None and size > self._room:
            raise EverfoldError(Kind.QUOTA, "the quota leaves no room for this file")

    def safe(self) -> Content:
        """Return the beginning that is on enough datanodes by now; waits for nothing."""
        while self._under_way and self._under_way[0].done() and not self._under_way[0].exception():
            self._receive()
        size = self._extents[-1].end if self._extents else 0
        return Content(size, self._extents, self._stored)

    def end(self) -> Content:
        """Return the content once all of it is on enough datanodes."""
        if self._gathered:
            self._send()
        while self._under_way:
            self._receive()
        return Content(self._size, self._extents, self._stored)

    def cancel(self) -> None:
        """Give the upload up; blocks under way may still be stored."""
        for future in self._under_way:
            future.cancel()
        self._under_way.clear()
        self._pieces.clear()
        self._budget.give(self._gathered)
        self._gathered = 0

    def _send(self) -> None:
        while len(self._under_way) >= WINDOW:
            self._receive()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._gathered = 0
        future = self._pool.submit(self._store, data)
        future.add_done_callback(lambda _: self._budget.give(len(data)))
        self._under_way.append(future)

    def _store(self, data: bytes) -> wire.Stored:
        return self._blocks.put(self._space, blockid.name_of(data), data)

    def _receive(self) -> None:
        stored = self._under_way[0].result()  # one that failed stays: nothing comes after it
        self._under_way.popleft()
        offset = self._extents[-1].end if self._extents else 0
        self._extents.append(Extent(offset, stored.size, stored.block))
        self._stored.append(stored)
