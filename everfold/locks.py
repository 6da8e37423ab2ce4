"""The rules of advisory locks, for whoever grants them.

The nameserver grants locks between machines; a mount that was told that it may (see
`wire.TakeLocks`) grants those of its own programs. Both must come to the same answer, so the
rules are here: flock(2) and fcntl(2) as one algebra of byte ranges. A new lock of an owner
replaces, splits and joins what it had; flock's range is the whole file.

Values in, values out: who holds what, and where that is kept, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from everfold.errors import EverfoldError, Kind
from everfold.model import SIZE_MAX, Lock, LockKind, LockType

W = TypeVar("W")


class Span(NamedTuple):
    """A stretch of one owner's locks: READ or WRITE on bytes ``[start, stop)``."""

    type: LockType
    start: int
    stop: int

    def is_against(self, lock: Lock) -> bool:
        """Tell whether this stretch of another owner is in the way of a lock."""
        return (
            self.start < lock.end
            and lock.start < self.stop
            and (lock.type is LockType.WRITE or self.type is LockType.WRITE)
        )

    def falls_by(self, lock: Lock) -> bool:
        """Tell whether this stretch, of the same owner, lets something go by a lock."""
        return (
            self.start < lock.end
            and lock.start < self.stop
            and (
                lock.type is LockType.UNLOCK
                or (self.type is LockType.WRITE and lock.type is LockType.READ)
            )
        )


def checked(lock: Lock) -> Lock:
    """Return a lock with a range that can be (INVALID); flock's is the whole file."""
    if lock.kind is LockKind.FLOCK:
        if lock.start == 0 and lock.end == SIZE_MAX:
            return lock
        return Lock(lock.ino, lock.kind, lock.type, lock.owner, 0, SIZE_MAX, lock.pid)
    if not 0 <= lock.start < lock.end <= SIZE_MAX:
        raise EverfoldError(Kind.INVALID, f"not a range of bytes: {lock.start}, {lock.end}")
    return lock


def laid(spans: Iterable[Span], lock: Lock) -> list[Span]:
    """Return an owner's spans after `lock`: cut by it, joined with equal neighbours."""
    after: list[Span] = []
    for span in spans:
        if span.start < lock.start:
            after.append(Span(span.type, span.start, min(span.stop, lock.start)))
        if span.stop > lock.end:
            after.append(Span(span.type, max(span.start, lock.end), span.stop))
    if lock.type is not LockType.UNLOCK:
        after.append(Span(lock.type, lock.start, lock.end))
    joined: list[Span] = []
    for span in sorted(set(after), key=lambda span: span.start):
        if joined and joined[-1].type is span.type and joined[-1].stop >= span.start:
            joined[-1] = joined[-1]._replace(stop=max(joined[-1].stop, span.stop))
        else:
            joined.append(span)
    return joined


def closes_circle(who: W, holders: Iterable[W], waits_for: Callable[[W], Iterable[W]]) -> bool:
    """Tell whether `who`, if it waited for `holders`, would wait for itself in the end."""
    reached = set(holders)
    todo = list(reached)
    while todo:
        new = set(waits_for(todo.pop())) - reached
        reached |= new
        todo += new
    return who in reached
