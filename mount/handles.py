"""An open file description: what this mount remembers between a file's open and its close."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mount.content import Content


@dataclass(slots=True)
class Handle:
    """`ahead` is how far read-ahead has come, `misses` counts reads out of order."""

    content: Content
    flags: int
    next_offset: int = 0
    window: int = 0
    ahead: int = 0
    misses: int = 0
    waiting: set[int] = field(default_factory=set)  # offsets of reads that are run again
    pushed: set[int] = field(default_factory=set)  # windows that the kernel was given
    locks: set[int] = field(default_factory=set)  # owners that took locks through it

    @property
    def is_writer(self) -> bool:
        """Tell whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY
