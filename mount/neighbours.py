"""Fetches small files that a program is about to read, while it reads those before them.

Who reads a tree through (a build, a copy, `git status`) opens one small file after the other,
and each that was never here costs a question to the nameserver and one to a datanode. Files
that were made together have neighbouring inode numbers; so once two of them were read in
that order, the following ones whose attributes are known are fetched: their extents with one
question, their blocks many to a request. How far ahead doubles while it goes on.

A reader who comes to a file that is being fetched waits for that, for a while: asking for
each file beside it cost three times the processor time, on all sides.

Only hints: what fails or comes too late is left to the reader. Bounded by `AHEAD_MAX`.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from everfold.errors import EverfoldError
from everfold.model import SMALL_BLOCK, Ino
from mount import patience
from mount.content import Content
from mount.core import Core

AHEAD_MAX: Final = 128  # inodes
_NEAR: Final = 16  # inode numbers that two files read after each other may lie apart
_AT_ONCE: Final = 2  # questions under way
_WAIT_S: Final = 0.2  # for one of them, before the reader asks for itself
_log = logging.getLogger(__name__)


class Neighbours:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._fetchers = ThreadPoolExecutor(_AT_ONCE, "neighbours")
        self.window = 0  # 0: nobody reads files in order; guarded, as what follows, by the lock
        self._last = Ino(0)
        self._ahead = Ino(0)  # up to here was seen to
        self._coming: dict[Ino, Future[None]] = {}

    def reads(self, content: Content) -> None:
        """A small file is read of which nothing was known, or while there is a window."""
        ino = content.ino
        with self._core.lock:
            is_next = self._last < ino <= max(self._last, self._ahead) + _NEAR
            if ino != self._last and not is_next:
                self.window, self._ahead = 0, ino
            self._last = ino
            if not is_next or ino + self.window // 2 < self._ahead:
                return
            self.window = min(max(8, self.window * 2), AHEAD_MAX)
            wanted = self._known(max(ino, self._ahead), Ino(ino + self.window))
            if not wanted:
                return
            self._ahead = wanted[-1]
            with contextlib.suppress(RuntimeError):  # the mount is ending
                fetched = self._fetchers.submit(self._fetch, wanted)
                for each in wanted:
                    self._coming[each] = fetched

    def wait_for(self, content: Content) -> None:
        """Wait until a file that is being fetched is known, and its blocks are on their way."""
        fetched = self._coming.get(content.ino)
        if fetched is not None:
            patience.require()
            wait((fetched,), _WAIT_S)

    def _known(self, after: Ino, end: Ino) -> list[Ino]:
        """Return the inodes behind `after` that are in the tree, up to the first gap.

        What is not listed yet, the files of the next directory, is seen to when it is. Taken
        for fetched, it cost a question for each of 4,300 of 5,000 files. Hold the lock.
        """
        known: list[Ino] = []
        last, attr_of = after, self._core.tree.attr
        for each in range(after + 1, end + 1):
            if attr_of(Ino(each)) is not None:
                last = Ino(each)
                known.append(last)
            elif each - last > _NEAR:
                break
        return known

    def _fetch(self, inos: list[Ino]) -> None:
        try:
            self._fetch_known(inos)
        finally:
            with self._core.lock:
                for ino in inos:
                    self._coming.pop(ino, None)

    def _fetch_known(self, inos: list[Ino]) -> None:
        core = self._core
        contents = [content for ino in inos if (content := self._cold(ino)) is not None]
        if not contents:
            return
        try:
            core.load_many(contents)
        except EverfoldError as err:
            _log.info("neighbours are not fetched: %s", err)
            return
        with core.lock:
            blocks = [
                (piece.source, piece.at + piece.length)
                for content in contents
                for piece in content.extents or ()
            ]
        core.blocks.prefetch(blocks)

    def _cold(self, ino: Ino) -> Content | None:
        """Return the state of a small file whose extents are not known, else None."""
        core = self._core
        with core.lock:
            attr = core.tree.attr(ino)
            if attr is None or not attr.is_file or not 0 < attr.size < SMALL_BLOCK:
                return None
            content = core.content(attr)
            return None if content.extents is not None or content.is_active else content
