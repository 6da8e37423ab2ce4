"""Threads for requests that must wait: at most so many, made when they are needed.

Not a ThreadPoolExecutor: that one joins its threads at interpreter exit, so one call that
waits for a dead network would keep a finished process alive, and its futures cost more than
many of the calls.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable


class Workers:
    """A bounded pool of daemon threads; jobs beyond the bound queue up."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards the counts
        self._threads = 0
        self._unfinished = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` on a thread of the pool; it must not raise."""
        with self._changed:
            self._unfinished += 1
            is_short = self._unfinished > self._threads and self._threads < self._limit
            if is_short:
                self._threads += 1
                number = self._threads
        if is_short:
            threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                with self._changed:
                    self._unfinished -= 1
                    self._changed.notify_all()

    def finish(self, timeout_s: float) -> int:
        """Wait for the jobs under way and end the threads; return how many did not finish."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._unfinished and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            for _ in range(self._threads):
                self._jobs.put(None)
            return self._unfinished
