"""Memory that all transfers together may use for bytes on their way."""

from __future__ import annotations

import threading
from typing import Final

BUDGET: Final = 96 * 1024 * 1024  # bytes, of uploads; as many of downloads


class Budget:
    """How many bytes may still be taken. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._changed = threading.Condition()  # guards _left

    def take(self, size: int, within_s: float) -> bool:
        """Take so many bytes once they are free; False when they are not in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._left >= size, within_s):
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._left += size
            self._changed.notify_all()
