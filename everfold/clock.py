"""The real clock; tests bring their own `services.Clock`."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clocks."""

    def time_ns(self) -> int:
        """Return nanoseconds since the epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds on a clock that never steps."""
        return time.monotonic()
