"""What waits to be sent to one client: Engine.IO's queue, bounded, and the hub hears of its room.

The hub puts something in only while there is room; the rest waits in the database, where it costs
nothing. So only answers to what a client asks can fill it, and a client that asks for more and
more without reading is let go.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Final

PACKETS_MAX: Final = 400
ROOM: Final = 32  # packets that the hub lets wait here; acknowledgements and pings come on top
ROOM_BYTES: Final = 256 * 1024
BYTES_MAX: Final = 2 * 1024 * 1024
# python-socketio takes no more packets in the answer to one poll (and no option raises that).
_AT_ONCE: Final = 16


class Overflow(Exception):
    """A client reads too little of what it asks for."""


def _nothing() -> None:
    pass


class Outbox(queue.Queue[Any]):
    """See the module. `drained` is called whenever the last packet is taken; it may not block."""

    def __init__(self) -> None:
        super().__init__()
        self.drained: Callable[[], None] = _nothing
        self._bytes = 0
        self._batch = 0  # packets that were taken since the last call that could wait

    @property
    def room(self) -> int:
        """Return how many more packets the hub may put in now."""
        with self.mutex:
            return ROOM - len(self.queue) if self._bytes < ROOM_BYTES else 0

    @property
    def is_empty(self) -> bool:
        """Tell whether all was taken."""
        with self.mutex:
            return not self.queue

    @property
    def is_full(self) -> bool:
        """Tell whether so much waits that nothing more shall be asked for."""
        with self.mutex:
            return len(self.queue) > PACKETS_MAX // 2 or self._bytes > BYTES_MAX // 2

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """As `queue.Queue`; those that do not wait get at most `_AT_ONCE` in a row."""
        if block:
            self._batch = 1
        elif self._batch >= _AT_ONCE:
            raise queue.Empty
        else:
            self._batch += 1
        return super().get(block, timeout)

    def _put(self, item: Any) -> None:
        """Called with the mutex held. None is the end, and always fits."""
        if item is not None:
            size = _size(item)
            if len(self.queue) >= PACKETS_MAX or (self.queue and self._bytes + size > BYTES_MAX):
                raise Overflow
            self._bytes += size
        super()._put(item)

    def _get(self) -> Any:
        item = super()._get()
        if item is not None:
            self._bytes -= _size(item)
        if not self.queue:
            self.drained()
        return item


def _size(packet: Any) -> int:
    data = packet.data
    return len(data) if isinstance(data, (str, bytes)) else 100
