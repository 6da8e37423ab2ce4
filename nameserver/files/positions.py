"""How far somebody has followed the events of all spaces that they see. Pure.

An event's id is ``SEQ-PART``: the commit, and the event's number within it. In a team folder, which
is a space of its own, it is ``SPACE:SEQ-PART``. A position is one such place for each space, with
commas: within a space places rise, and between spaces there is no order that all processes agree
on. Whoever keeps the id of the last event of each space, or the position that comes with every
page, gets each later event once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from everfold.model import SpaceId

PIECES_MAX: Final = 1000
_PIECE: Final = re.compile(r"(?:([1-9][0-9]{0,9}):)?([0-9]{1,18})(?:-([0-9]{1,9}))?")
_WHOLE: Final = (1 << 31) - 1  # of a commit: none has so many events


class Place(NamedTuple):
    """A place in the order of a space's events: after number `part` of commit `seq`."""

    seq: int
    part: int

    def __str__(self) -> str:
        return str(self.seq) if self.part == _WHOLE else f"{self.seq}-{self.part}"


START: Final = Place(0, 0)


def after_all(seq: int) -> Place:
    """Return the place after all events of a commit."""
    return Place(seq, _WHOLE)


class Sight(NamedTuple):
    """A space that somebody sees, and where: the path of its top folder in their own."""

    space: SpaceId
    above: str = ""  # as "/Plans"; "": it is the home

    def id_of(self, place: Place) -> str:
        """Return the id of the event at a place, as this person is told it."""
        return f"{self.space}:{place}" if self.above else str(place)


Sights = Sequence[Sight]
"""What somebody sees; the home comes first."""
Position = dict[SpaceId, Place]


def read(text: str, home: SpaceId) -> Position | None:
    """Read a position or an event's id; None when it is neither."""
    pieces = text.split(",", PIECES_MAX)
    position: Position = {}
    for piece in pieces:
        found = _PIECE.fullmatch(piece)
        if found is None:
            return None
        space = SpaceId(int(found[1])) if found[1] else home
        position[space] = Place(int(found[2]), int(found[3]) if found[3] else _WHOLE)
    return position


def told(position: Mapping[SpaceId, Place], sights: Sights) -> str:
    """Return a position as text, the home first."""
    return ",".join(
        sight.id_of(position[sight.space]) for sight in sights if sight.space in position
    )
