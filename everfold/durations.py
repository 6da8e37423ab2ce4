"""How long things took, counted in buckets: exact enough for percentiles, and addable.

A bucket is a quarter of a power of two of a nanosecond: a percentile is right to within 12 %, and
the counts of several processes, or of several steps of time, add up to the truth about all of them.

Nothing is locked: a count that is lost when two threads add at once does no harm.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

BUCKETS: Final = 4 * 48  # the last ones are of three days
_PAIR: Final = struct.Struct("<BI")


class Durations:
    """Counts of durations. `note` costs 0.25 us."""

    __slots__ = ("buckets", "total_ns")

    def __init__(self, buckets: Sequence[int] = ()) -> None:
        self.buckets = list(buckets) or [0] * BUCKETS
        self.total_ns = 0

    @property
    def count(self) -> int:
        """Return how many there were."""
        return sum(self.buckets)

    def note(self, spent_ns: int) -> None:
        """Add one."""
        power = spent_ns.bit_length()
        at = power << 2 | (spent_ns >> power - 3 & 3) if power > 2 else power << 2
        self.buckets[at if at < BUCKETS else -1] += 1
        self.total_ns += spent_ns

    def percentile_ns(self, share: float) -> float:
        """Return a time that a `share` (0..1) of all stayed below, 0 when there was none."""
        wanted = share * sum(self.buckets)
        for at, found in enumerate(self.buckets):
            if found and wanted <= found:
                low, high = edge(at), edge(at + 1)
                return low + (high - low) * wanted / found
            wanted -= found
        return 0.0

    def below(self, power: int) -> int:
        """Return how many took less than 2**`power` ns."""
        return sum(self.buckets[: (power + 1) << 2])


def edge(at: int) -> float:
    """Return where a bucket begins, in nanoseconds."""
    power, quarter = at >> 2, at & 3
    return 0.0 if not power else (1 << power - 1) * (1 + quarter / 4)


def pack(buckets: Sequence[int]) -> bytes:
    """Return the counts that are not zero, in few bytes."""
    return b"".join([_PAIR.pack(at, count) for at, count in enumerate(buckets) if count])


def unpack_into(buckets: list[int], packed: bytes) -> None:
    """Add packed counts."""
    for at, count in _PAIR.iter_unpack(packed):
        buckets[at] += count
