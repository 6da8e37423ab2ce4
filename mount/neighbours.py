"""Fetches small files that a program is about to read, while it reads those before them.

Who reads a tree through (a build, a copy, `git status`) opens one small file after the other,
and each that was never here costs a question to the nameserver and one to a datanode. Files
that were made together have neighbouring inode numbers; so once two of them were read in
that order, the following ones whose attributes are known are fetched: their extents with one
question, their blocks many to a request. How far ahead doubles while it goes on.

Only hints: what fails or comes too late is left to the reader. Bounded by `AHEAD_MAX`.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from everfold.errors import EverfoldError
from everfold.model import SMALL_BLOCK, Ino
from mount.content import Content
from mount.core import Core

AHEAD_MAX: Final = 128  # inodes
_NEAR: Final = 16  # inode numbers that two files read after each other may lie apart
_AT_ONCE: Final = 2  # questions under way
_log = logging.getLogger(__name__)


class Neighbours:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._fetchers = ThreadPoolExecutor(_AT_ONCE, "neighbours")
        self.window = 0  # 0: nobody reads files in order; guarded, as what follows, by the lock
        self._last = Ino(0)
        self._ahead = Ino(0)  # up to here was seen to

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
            first, self._ahead = max(ino, self._ahead) + 1, Ino(ino + self.window)
            wanted = [Ino(each) for each in range(first, self._ahead + 1)]
        with contextlib.suppress(RuntimeError):  # the mount is ending
            self._fetchers.submit(self._fetch, wanted)

    def _fetch(self, inos: list[Ino]) -> None:
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
