"""Gives memory that was used in a rush back to the system.

What is freed stays with malloc, in pieces between what is still used: after a mixed load a mount
held 270 MiB, of which 160 were free. To give them back takes malloc a few milliseconds, during
which other threads wait for it; so it is asked for once the process has come to rest, and every
half a minute of a process that does not.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Final

_TICK_S: Final = 2.0
_REST: Final = 0.15  # of one core; below it a process rests
_PATIENCE: Final = 15  # ticks without a rest


class Giver:
    """Decides when to give back. `tick` is called every now and then, with the CPU time used."""

    def __init__(self, give: Callable[[], object]) -> None:
        self._give = give
        self._used = 0.0
        self._busy = 0  # ticks since it last gave, or had nothing to give

    def tick(self, used_s: float, passed_s: float) -> None:
        """Look at what was used since the last tick, which is `passed_s` ago."""
        spent, self._used = used_s - self._used, used_s
        is_busy = spent > _REST * passed_s
        self._busy += is_busy
        if self._busy >= (_PATIENCE if is_busy else 1):
            self._busy = 0
            self._give()


def trim() -> bool:
    """Give back what malloc holds and does not need; False where it cannot (not glibc)."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return False
    libc.malloc_trim(0)
    return True


def give_back_at_rest() -> None:
    """Start a thread that does so for as long as the process lives."""
    threading.Thread(target=_watch, name="memory", daemon=True).start()


def _watch() -> None:
    giver = Giver(trim)
    while True:
        time.sleep(_TICK_S)
        giver.tick(time.process_time(), _TICK_S)
