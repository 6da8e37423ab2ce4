"""The newest events of one space, as long as somebody who listens lacks them.

Read once for all listeners. Who lags behind what is kept here reads for itself, from the database.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Final

from everfold.model import SpaceId
from nameserver.files.events import Event, Events
from nameserver.files.positions import Place

KEPT: Final = 512
READ: Final = 200  # at once


class Stream:
    """See the module. Only the thread that follows uses it."""

    def __init__(self, space: SpaceId, place: Place, teams: int) -> None:
        self.space = space
        self.teams = teams  # the generation of the team folders in it, if it is a home
        self.place = place  # up to where it was read
        self.has_more = False  # there was more than could be read at once
        self._start = place  # what is kept comes after this
        self._kept: deque[Event] = deque()

    def advance(self, events: Events) -> None:
        """Read what is new."""
        found, place, self.teams = events.news(self.space, self.place, READ)
        self.place = max(self.place, place)
        self._kept.extend(found)
        while len(self._kept) > KEPT:
            self._start = self._kept.popleft().place
        self.has_more = len(found) == READ

    def after(self, place: Place, limit: int, events: Events) -> tuple[list[Event], Place]:
        """Return up to `limit` of the events after a place, and up to where that is all."""
        if place < self._start:
            return events.read(self.space, place, limit)
        later = (event for event in self._kept if event.place > place)
        found = list(itertools.islice(later, limit))
        return found, self.place if len(found) < limit else found[-1].place

    def forget(self) -> None:
        """Keep nothing: all who listen have it."""
        self._kept.clear()
        self._start = self.place
