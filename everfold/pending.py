"""Answers that are on their way: the two kinds of `services.Pending` that are not a socket.

With them one thread asks several servers and then waits once, where it would otherwise need
threads of its own for it: handing a 4 KiB put to a thread and back costs as much as the put.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from everfold.errors import EverfoldError
from everfold.services import Pending

S = TypeVar("S")
T = TypeVar("T")


class Settled(Generic[T]):
    """What was answered (or failed) before anybody asked for it. Implements `Pending`."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._failed: EverfoldError | None = None
        try:
            self._value = ask()
        except EverfoldError as err:
            self._failed = err

    def is_ready(self, within_s: float = 0.0) -> bool:
        """See `services.Pending.is_ready`."""
        return True

    def result(self) -> T:
        """See `services.Pending.result`."""
        if self._failed is not None:
            raise self._failed
        return self._value

    def cancel(self) -> None:
        """See `services.Pending.cancel`."""


class Read(Generic[S, T]):
    """Another pending answer, as `read` understands it. Implements `Pending`."""

    def __init__(self, pending: Pending[S], read: Callable[[S], T]) -> None:
        self._pending = pending
        self._read = read

    def is_ready(self, within_s: float = 0.0) -> bool:
        """See `services.Pending.is_ready`."""
        return self._pending.is_ready(within_s)

    def result(self) -> T:
        """See `services.Pending.result`."""
        return self._read(self._pending.result())

    def cancel(self) -> None:
        """See `services.Pending.cancel`."""
        self._pending.cancel()
