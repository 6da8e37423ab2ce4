"""Figures of a running mount, kept so cheaply that they always are.

Durations are counted by powers of two of a nanosecond: to note one costs 0.15 µs, where a list
of the last thousand would cost memory and a sort. So a percentile is right to within its
power of two, which is enough to tell memory (µs) from a round trip (ms) from a deadline (s).

Nothing here is locked: a count that is lost when two threads add at once does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any, Final, cast

from everfold.services import NameService

_POWERS: Final = 64
_ROUNDED: Final = 4096  # see `packed`


class Durations:
    """How long something took, each time. `count` is added to by who notes."""

    __slots__ = ("buckets", "count", "most_ns", "total_ns")

    def __init__(self) -> None:
        self.count = self.total_ns = self.most_ns = 0
        self.buckets = [0] * _POWERS  # [n]: from 2**(n-1) ns up to 2**n

    def note(self, spent_ns: int) -> None:
        """Add one that is counted already."""
        self.total_ns += spent_ns
        self.buckets[spent_ns.bit_length()] += 1
        if spent_ns > self.most_ns:
            self.most_ns = spent_ns

    def percentile_ns(self, share: float) -> float:
        """Return a time that a `share` (0..1) of all stayed below, 0 when there was none."""
        wanted = share * sum(self.buckets)
        for power, found in enumerate(self.buckets):
            if found and wanted <= found:
                low = (1 << power) >> 1
                return min(low + low * wanted / found, self.most_ns)
            wanted -= found
        return 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one kind of request has cost so far, in microseconds."""

    count: int
    total_us: int
    max_us: int
    p50_us: float
    p95_us: float
    p99_us: float

    @classmethod
    def of(cls, durations: Durations) -> Cost:
        """Return what was noted."""
        p50, p95, p99 = (round(durations.percentile_ns(at) / 1000, 1) for at in (0.5, 0.95, 0.99))
        total, most = durations.total_ns // 1000, durations.most_ns // 1000
        return cls(durations.count, total, most, p50, p95, p99)


class Asked:
    """Stands between a mount and its nameserver and notes how long each call takes.

    Costs a microsecond a call, of which the shortest take three hundred.
    """

    def __init__(self, real: NameService) -> None:
        self._real = real
        self._durations: dict[str, Durations] = {}
        self.seen_seq = 0  # the newest commit that an answer told of

    @property
    def service(self) -> NameService:
        """Return this as what it stands before: every verb passes through."""
        return cast(NameService, self)

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._real, verb)
        if not callable(found):
            return found
        timed = self._timed(found, self._durations.setdefault(verb, Durations()))
        setattr(self, verb, timed)  # the next call finds it without coming here
        return timed

    def _timed(self, call: Callable[..., Any], durations: Durations) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter_ns()
            try:
                answer = call(*args, **kwargs)
            finally:
                durations.count += 1
                durations.note(perf_counter_ns() - began)
            seq = getattr(answer, "seq", 0)
            if seq > self.seen_seq:
                self.seen_seq = seq
            return answer

        return timed

    def costs(self) -> dict[str, Cost]:
        """Return what each verb has cost so far."""
        return {verb: Cost.of(each) for verb, each in self._durations.items() if each.count}


def hits(requests: Mapping[str, Cost], calls: Mapping[str, Cost]) -> dict[str, dict[str, int]]:
    """Return how many names and attributes the kernel asked for, and how many were not known.

    What the kernel remembers it does not ask for: those are no hits here.
    """

    def row(asked: tuple[str, ...], missed: str) -> dict[str, int]:
        wanted = sum(requests[name].count for name in asked if name in requests)
        lacking = calls[missed].count if missed in calls else 0
        return {"asked": wanted, "missed": min(lacking, wanted)}

    return {"names": row(("LOOKUP",), "lookup"), "attributes": row(("GETATTR", "STATX"), "attrs")}


def packed(figures: Mapping[str, object]) -> bytes:
    """Return figures as JSON, filled up with spaces.

    An extended attribute is asked for twice, first for its size: figures that have grown by a
    digit meanwhile must not make the second answer too long.
    """
    text = json.dumps(figures, default=_plain).encode()
    return text.ljust(-(-(len(text) + 64) // _ROUNDED) * _ROUNDED)


def _plain(value: object) -> object:
    return asdict(value) if isinstance(value, Cost) else str(value)
