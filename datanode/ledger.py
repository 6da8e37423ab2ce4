"""What the node must tell the nameserver: digests of all it holds, and what changed since.

The digests are sums of single events (came, went), and of a block that changed more than once
a beat tells how it stands at that moment; so it does not matter in which order two threads
report, nor how often a beat is lost. A change stays until a beat that told it was answered.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from everfold import wire
from everfold.model import BlockId, SpaceId

PREFIXES = 256
_TOLD_AT_ONCE = 10_000
_PENDING_MAX = 200_000
Key = tuple[SpaceId, BlockId]


class News(NamedTuple):
    """What one beat tells; give it back to `confirm` when the beat was answered."""

    added: list[wire.Held]
    removed: list[wire.Held]
    bad: list[wire.Held]
    digests: list[wire.PrefixDigest]
    lists: list[wire.PrefixList]
    is_all: bool  # nothing was left for the next beat
    ticket: int


class Ledger:
    """Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below; a leaf
        self._counts = [0] * PREFIXES
        self._xors = [0] * PREFIXES
        self._sizes = [0] * PREFIXES
        self._total = (0, 0)  # blocks, bytes
        self._versions = [0] * PREFIXES
        # -> (tick of the last event, size, +1 came, -1 went, 0 the store must say)
        self._changes: dict[Key, tuple[int, int, int]] = {}
        self._bad: dict[Key, tuple[int, wire.Held]] = {}
        self._lists: dict[int, tuple[int, wire.PrefixList]] = {}
        self._tick = 0
        self._working = 0
        self._next_prefix = 0
        self._owes_all = True  # all digests, as after a start
        self._owes_since = 0  # the tick at which that came to be

    # ------------------------------------------------------------ events

    def load(self, held: Iterable[wire.Held]) -> None:
        """Count what was there at start; nothing of it is news."""
        with self._lock:
            for one in held:
                self._count(one, +1)

    def came(self, held: wire.Held) -> None:
        """Note that a block is kept now that was not."""
        self._event(held, +1)

    def came_all(self, space: SpaceId, new: Iterable[tuple[BlockId, int]]) -> None:
        """Note that blocks (names and sizes) are kept now that were not.

        As `came` for each, written plainly: 1.2 us a block, not 3.7.
        """
        changes, digest_of = self._changes, wire.held_digest
        counts, sizes, xors, versions = self._counts, self._sizes, self._xors, self._versions
        with self._lock:
            tick, total = self._tick, 0
            for count, (block, size) in enumerate(new, 1):
                prefix = block[0]
                counts[prefix] += 1
                sizes[prefix] += size
                xors[prefix] ^= digest_of(space, block)
                versions[prefix] += 1
                total += size
                key = (space, block)
                self._tick = tick + count
                changes[key] = (tick + count, size, 0 if key in changes else +1)
            self._total = (self._total[0] + self._tick - tick, self._total[1] + total)
            self._forget_what_is_too_much()

    def went(self, held: wire.Held, is_bad: bool = False) -> None:
        """Note that a block is not kept any more; `is_bad`: because it had rotted."""
        self._event(held, -1, is_bad)

    def answer(self, held: wire.Held) -> None:
        """Tell the nameserver, which asked, how it stands with a block."""
        with self._lock:
            self._change(held, 0)

    def enclose(self, prefix: int, held: list[wire.Held]) -> None:
        """Send the list of a prefix with the next beat."""
        with self._lock:
            self._tick += 1
            self._lists[prefix] = (self._tick, wire.PrefixList(prefix, held))

    def _event(self, held: wire.Held, sign: int, is_bad: bool = False) -> None:
        with self._lock:
            self._count(held, sign)
            self._change(held, sign)
            if is_bad:
                self._bad[held.space, held.block] = (self._tick, held)
            self._forget_what_is_too_much()

    def _forget_what_is_too_much(self) -> None:
        if len(self._changes) > _PENDING_MAX:  # silent for long: the digests will tell
            self._changes.clear()
            self._owe_all()

    def _change(self, held: wire.Held, sign: int) -> None:
        self._tick += 1
        key = (held.space, held.block)
        if key in self._changes:
            sign = 0
        _, size, _ = self._changes.get(key, (0, 0, 0))
        self._changes[key] = (self._tick, held.size or size, sign)

    def _count(self, held: wire.Held, sign: int) -> None:
        prefix = held.block[0]
        self._counts[prefix] += sign
        self._sizes[prefix] += sign * held.size
        self._total = (self._total[0] + sign, self._total[1] + sign * held.size)
        self._xors[prefix] ^= wire.held_digest(held.space, held.block)
        self._versions[prefix] += 1

    # ------------------------------------------------------------ recounting

    def __enter__(self) -> None:
        """Mark that a change of the store is under way and not yet told here."""
        with self._lock:
            self._working += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._working -= 1

    def version(self, prefix: int) -> int | None:
        """Return a number for `recount`; None while changes are under way."""
        with self._lock:
            return None if self._working else self._versions[prefix]

    def recount(self, prefix: int, version: int | None, held: list[wire.Held]) -> bool:
        """Believe what was really found under a prefix; tell whether that was news.

        Only when nothing changed since `version` was taken, before the look.
        """
        with self._lock:
            if version is None or self._working or self._versions[prefix] != version:
                return False
            before = (self._counts[prefix], self._xors[prefix], self._sizes[prefix])
            self._total = (self._total[0] - before[0], self._total[1] - before[2])
            self._counts[prefix] = self._sizes[prefix] = self._xors[prefix] = 0
            for one in held:
                self._count(one, +1)
            return before != (self._counts[prefix], self._xors[prefix], self._sizes[prefix])

    def totals(self) -> tuple[int, int]:
        """Return (blocks, bytes) held."""
        with self._lock:
            return self._total

    # ------------------------------------------------------------ telling

    def _owe_all(self) -> None:
        self._owes_all, self._owes_since = True, self._tick

    def news(self, size_of: Callable[[SpaceId, BlockId], int | None]) -> News:
        """Return what the next beat has to tell; of what changed, `size_of` says how it is now.

        Of what changed once there is no need to ask: another event would tell another beat.
        """
        with self._lock:
            some = list(itertools.islice(self._changes.items(), _TOLD_AT_ONCE))
            is_all = len(some) == len(self._changes)
            prefixes: Iterable[int] = ()
            if is_all:  # a digest is true only together with every change before it
                prefixes = range(PREFIXES) if self._owes_all else (self._next_prefix,)
            digests = [wire.PrefixDigest(p, self._counts[p], self._xors[p]) for p in prefixes]
            bad = [held for _, held in self._bad.values()]
            lists = [told for _, told in self._lists.values()]
            ticket = self._tick
        added, removed = [], []
        for (space, block), (_, size, sign) in some:
            now = size if sign > 0 else None if sign < 0 else size_of(space, block)
            if now is None:
                removed.append(wire.Held(space, block, size))
            else:
                added.append(wire.Held(space, block, now))
        return News(added, removed, bad, digests, lists, is_all, ticket)

    def confirm(self, told: News) -> None:
        """Forget what a beat that was answered has told, unless it changed again meanwhile."""
        with self._lock:
            for held in (*told.added, *told.removed):
                key = (held.space, held.block)
                if key in self._changes and self._changes[key][0] <= told.ticket:
                    del self._changes[key]
            self._bad = {k: v for k, v in self._bad.items() if v[0] > told.ticket}
            self._lists = {k: v for k, v in self._lists.items() if v[0] > told.ticket}
            if len(told.digests) == PREFIXES:
                self._owes_all = self._owes_since > told.ticket
            elif told.digests:
                self._next_prefix = (told.digests[0].prefix + 1) % PREFIXES
