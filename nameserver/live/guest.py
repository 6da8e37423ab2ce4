"""Somebody who is connected: a position in the log, and the way to reach them."""

from __future__ import annotations

import threading
from typing import Final, Protocol

from nameserver.files.positions import Position, Sights
from nameserver.gate import Identity

TEAMS_UNKNOWN: Final = -1  # no generation: the team folders are looked at again


class Line(Protocol):
    """The way to one client. No call waits."""

    @property
    def room(self) -> int:
        """How many more messages may wait for the client to take them."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether the client took all."""
        ...

    def tell(self, packet: str) -> None:
        """Send what `Encode` made."""
        ...

    def end(self) -> None:
        """End the connection for good: the client may not be here any more."""
        ...


class Guest:
    """See the module. Who has joined has `sights`."""

    def __init__(self, line: Line, who: Identity, token: str, check_at: float) -> None:
        self.line, self.who, self.token = line, who, token
        self.check_at = check_at  # monotonic: then the token is looked at again
        self.lock = threading.Lock()  # guards all below; held while they are told something
        self.sights: Sights = ()
        self.position: Position = {}
        self.misses = False  # is still told, in pages, what happened before it joined
        self.is_behind = False  # something waits to be told
        self.teams = TEAMS_UNKNOWN  # the generation of their team folders in `sights`
        self.seen_ns = 0  # and when these were asked for, or before; 0 until they joined
