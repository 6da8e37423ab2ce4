"""Tells the kernel what to forget or to remember, from a thread that serves no request.

The kernel may hold a directory's lock while it waits for our answer, and telling it to drop
a name takes that lock: whoever tells must not be whom the kernel waits for.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from everfold.model import Ino
from mount.filesystem import KernelCache

log = logging.getLogger(__name__)
_AGAIN_S = 0.001  # about as long as the answers take that are waited for
_Item = tuple[Callable[..., None], tuple[Any, ...]]


class Notifier:
    """A queue in front of a `KernelCache`; nothing happens until `attach`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._awaited: list[threading.Event] = []  # who waits until all is told; our thread's
        self._cache: KernelCache | None = None
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)

    def attach(self, cache: KernelCache) -> None:
        """Start to pass on to this kernel."""
        self._cache = cache
        self._thread.start()

    @property
    def is_attached(self) -> bool:
        """Tell whether there is a kernel that remembers what it is told."""
        return self._cache is not None

    def forget_entry(self, parent: int, name: bytes) -> None:
        """Queue `KernelCache.forget_entry`."""
        if self._cache is not None:
            self._queue.put((self._cache.forget_entry, (parent, name)))

    def forget_attr(self, ino: int) -> None:
        """Queue `KernelCache.forget_attr`."""
        if self._cache is not None:
            self._queue.put((self._cache.forget_attr, (ino,)))

    def forget_data(self, ino: int, offset: int = 0, length: int = 0) -> None:
        """Queue `KernelCache.forget_data`."""
        if self._cache is not None:
            self._queue.put((self._cache.forget_data, (ino, offset, length)))

    def entry_deleted(self, parent: int, ino: int, name: bytes) -> None:
        """Queue `KernelCache.entry_deleted`."""
        if self._cache is not None:
            self._queue.put((self._cache.entry_deleted, (parent, ino, name)))

    def store(
        self, ino: int, offset: int, data: bytes | memoryview, done: Callable[[], None]
    ) -> None:
        """Queue `KernelCache.store`; `done` is called when it is over, whatever came of it."""
        cache = self._cache

        def tell() -> None:
            try:
                if cache is not None:
                    cache.store(Ino(ino), offset, data)
            finally:
                done()

        self._queue.put((tell, ()))

    def wait_told(self, timeout_s: float) -> bool:
        """Wait until all that was queued before has been told; False when it took too long."""
        if self._cache is None:
            return True
        done = threading.Event()
        self._queue.put((self._awaited.append, (done,)))
        return done.wait(timeout_s)

    def close(self) -> None:
        """End the thread."""
        if self._cache is not None:
            self._cache = None
            self._queue.put(None)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        is_left = False
        while True:
            item: _Item | None = (_nothing, ())
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=_AGAIN_S if is_left else None)
            if item is None:
                return
            call, values = item
            try:
                call(*values)
                cache = self._cache
                is_left = cache is not None and cache.tell_again()
            except OSError as err:  # the kernel may be gone; what it remembers goes with it
                log.warning("the kernel did not take a notice: %s", err)
            except Exception:
                log.exception("a notice was not given")  # those after it are
            if not is_left:
                while self._awaited:
                    self._awaited.pop().set()


def _nothing() -> None:
    """Nothing to tell for the first time."""
