"""The real clock; tests bring their own `services.Clock`."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clocks: nanoseconds since the epoch, seconds on a clock that never steps."""

    time_ns = staticmethod(time.time_ns)  # no call of ours between: it is asked at every request
    monotonic = staticmethod(time.monotonic)
