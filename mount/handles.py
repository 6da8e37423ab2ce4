"""An open file description: what this mount remembers between a file's open and its close."""

from __future__ import annotations

import os

from mount.content import Content


class Handle:
    """`ahead` is how far read-ahead has come, `misses` counts reads out of order."""

    __slots__ = (
        "ahead",
        "content",
        "flags",
        "is_unflushed",
        "is_writer",
        "locks",
        "misses",
        "next_offset",
        "pushed",
        "waiting",
        "window",
    )

    def __init__(self, content: Content, flags: int) -> None:
        self.content = content
        self.flags = flags
        self.is_writer = flags & os.O_ACCMODE != os.O_RDONLY  # it was opened for writing
        self.is_unflushed = self.is_writer  # since it was opened or written to last
        self.next_offset = self.window = self.ahead = self.misses = 0
        self.waiting: set[int] = set()  # offsets of reads that are run again
        self.pushed: dict[int, int] = {}  # windows the kernel was given -> reads of them since
        self.locks: set[int] = set()  # owners that took locks through it
