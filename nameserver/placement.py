"""Where copies go: a pure choice among nodes.

Nodes are drawn without replacement, with a weight of their free space (so they fill evenly),
from zones that hold no copy yet as long as there are such. Nothing here knows a database.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable
from typing import NamedTuple

from everfold.model import NodeId


class Candidate(NamedTuple):
    """A node that may be written to, and the bytes it can still take."""

    id: NodeId
    zone: str
    free: int


def choose(
    candidates: Iterable[Candidate],
    count: int,
    size: int,
    rng: random.Random,
    held_zones: Collection[str] = (),
) -> list[NodeId]:
    """Return up to `count` nodes with room for `size` bytes, as far apart as possible.

    `held_zones` are the zones of the copies that exist. The empty zone is no zone: nodes
    without one are as far from each other as any.
    """
    drawn = sorted(
        (c for c in candidates if c.free >= max(1, size)),
        key=lambda c: _arrival(c.free, rng),
    )
    chosen: list[NodeId] = []
    same_zone: list[NodeId] = []
    zones = {zone for zone in held_zones if zone}
    for candidate in drawn:
        if candidate.zone in zones:
            same_zone.append(candidate.id)
        elif len(chosen) < count:
            chosen.append(candidate.id)
            zones.update({candidate.zone} - {""})
    return chosen + same_zone[: count - len(chosen)]


def _arrival(weight: int, rng: random.Random) -> float:
    """Return a draw whose order is a weighted sample without replacement (Efraimidis-Spirakis)."""
    return -math.log(1.0 - rng.random()) / weight
