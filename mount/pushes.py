"""Gives the kernel pages of a file before it asks for them, when a program reads here and there.

The kernel reads ahead only for who reads in order; a random reader asks for each page, and
each costs 80 µs here against 2 µs in the page cache. So after a few reads out of order the
whole window (4 MiB) around the next ones is put into the page cache, off the reader's path.

Putting replaces what the kernel has, so it must never be older than that:

 - Windows go through the notifier's queue, in which they are entered under the core's lock
   only if the file still consists of exactly the blocks that were read. A change that the
   feed brings later is told later, and drops them.
 - While one is on its way (`Content.pushing`), nobody begins to change the file here: who
   opens it for writing or truncates it waits (`settled`), and none is sent while a writer is.

What the kernel dropped again is not put again soon: memory is short. Nothing is fetched from
a datanode for it; nothing is kept here but one window at a time.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from everfold.errors import EverfoldError, Kind
from everfold.extents import Piece
from everfold.model import BLOCK_MAX, BlockId
from mount import patience
from mount.content import Content
from mount.core import Core
from mount.handles import Handle

WINDOW: Final = BLOCK_MAX
_PATIENT: Final = 4  # reads out of order before anything is put
_LATE: Final = 8  # reads of a window that may have been asked for before it was put
_BACK_OFF: Final = 256  # further ones before a window is put that the kernel has dropped
_UNDER_WAY: Final = 2
_log = logging.getLogger(__name__)


class Pushes:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._readers = ThreadPoolExecutor(1, "push")
        self._under_way = 0  # windows; guarded by the core's lock

    def missed(self, handle: Handle, offset: int) -> None:
        """A program asked for a page out of order: perhaps put what is around it."""
        handle.misses += 1
        number = offset // WINDOW
        if handle.misses < _PATIENT or self._under_way >= _UNDER_WAY:
            return
        if number in handle.pushed:
            handle.pushed[number] += 1
            if handle.pushed[number] > _LATE and not handle.content.pushing:
                del handle.pushed[number]
                handle.misses = -_BACK_OFF
            return
        core, content = self._core, handle.content
        with core.lock:
            pieces = self._stable(content, number * WINDOW)
            has = core.blocks.cache.has
            if pieces is None or not all(has(core.space, piece.source) for piece in pieces):
                return
            self._under_way += 1
        handle.pushed[number] = 0
        try:
            self._readers.submit(self._push, content, number * WINDOW, pieces)
        except RuntimeError:  # the mount is ending
            self._done()

    def _push(self, content: Content, start: int, pieces: list[Piece[BlockId]]) -> None:
        """Read a window, and enter it into the queue if it is still what the file consists of."""
        core = self._core
        try:
            parts = [core.blocks.read(piece.source, piece.at, piece.length) for piece in pieces]
            data = parts[0] if len(parts) == 1 else b"".join(parts)
        except EverfoldError as err:
            _log.info("a window of inode %d is not put: %s", content.ino, err)
            self._done()
            return
        with core.lock:
            if self._stable(content, start) != pieces or not core.notifier.is_attached:
                self._done()
                return
            content.pushing += 1
            core.notifier.store(content.ino, start, data, lambda: self._stored(content))

    def _stable(self, content: Content, start: int) -> list[Piece[BlockId]] | None:
        """Return what a window consists of; None where it has holes or may change here."""
        if content.is_active or content.writers or content.extents is None:
            return None
        attr = self._core.tree.attr(content.ino)
        if attr is None or attr.size != content.size or attr.version != content.base:
            return None  # something newer is known already, or is just being asked for
        end = min(start + WINDOW, content.size)
        at, pieces = start, content.extents.slices(start, end - start)
        for piece in pieces:
            if piece.offset != at:
                return None
            at = piece.end
        return pieces if start < at == end else None

    def _stored(self, content: Content) -> None:
        with self._core.lock:
            content.pushing -= 1
            self._done()

    def _done(self) -> None:
        with self._core.lock:
            self._under_way -= 1
            self._core.feed_moved.notify_all()


def settled(core: Core, content: Content) -> None:
    """Wait until nothing of a file is on its way to the kernel. Hold the lock."""
    if content.pushing:
        patience.require()
        if not core.feed_moved.wait_for(lambda: not content.pushing, core.policy.change_deadline_s):
            raise EverfoldError(Kind.TIMEOUT, "the kernel does not take the file's pages")
