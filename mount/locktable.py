"""The locks that programs hold through this mount, in memory, whoever granted them.

While this mount grants the space's locks itself, this table is the truth; otherwise it repeats
what the nameserver granted, so that it can become the truth, and be told to the nameserver,
at any time. The rules are `everfold.locks`'. Who waits for whom here is known here too.

No I/O, no locks of its own: `mount.locks` calls under its lock.
"""

from __future__ import annotations

from everfold.locks import Span, closes_circle, laid
from everfold.model import Ino, Lock, LockKind, LockType


class _Held:
    """What one owner holds on one inode; never empty."""

    __slots__ = ("pid", "spans")

    def __init__(self, spans: list[Span], pid: int) -> None:
        self.spans, self.pid = spans, pid


_Owners = dict[int, _Held]


class LockTable:
    """See the module's docstring. Ranges are taken as they come: see `everfold.locks.checked`."""

    def __init__(self) -> None:
        self._posix: dict[Ino, _Owners] = {}
        self._flock: dict[Ino, _Owners] = {}
        self._waits: dict[int, set[int]] = {}  # fcntl owner -> those it waits for

    def _of(self, kind: LockKind) -> dict[Ino, _Owners]:
        return self._flock if kind is LockKind.FLOCK else self._posix

    def __bool__(self) -> bool:
        return bool(self._posix or self._flock)

    def holds(self, ino: Ino, kind: LockKind, owner: int) -> bool:
        """Tell whether an owner holds any lock on an inode."""
        owners = self._of(kind).get(ino)
        return owners is not None and owner in owners

    def against(self, lock: Lock) -> list[Lock]:
        """Return the locks of other owners that are in the way of this one."""
        owners = self._of(lock.kind).get(lock.ino)
        if not owners or (len(owners) == 1 and lock.owner in owners):
            return []
        return [
            Lock(lock.ino, lock.kind, span.type, owner, span.start, span.stop, held.pid)
            for owner, held in owners.items()
            if owner != lock.owner
            for span in held.spans
            if span.is_against(lock)
        ]

    def lay(self, lock: Lock) -> bool:
        """Take or drop a lock that nothing is in the way of; tell whether any lock fell."""
        of = self._of(lock.kind)
        owners = of.get(lock.ino)
        held = owners.get(lock.owner) if owners is not None else None
        if held is None:
            if lock.type is not LockType.UNLOCK:
                span = Span(lock.type, lock.start, lock.end)
                of.setdefault(lock.ino, {})[lock.owner] = _Held([span], lock.pid)
            return False
        before, held.spans = held.spans, laid(held.spans, lock)
        held.pid = lock.pid or held.pid
        if not held.spans and owners is not None:
            del owners[lock.owner]
            if not owners:
                del of[lock.ino]
        return any(span.falls_by(lock) for span in before)

    def all(self) -> list[Lock]:
        """Return every lock that is held."""
        return [
            Lock(ino, kind, span.type, owner, span.start, span.stop, held.pid)
            for kind in LockKind
            for ino, owners in self._of(kind).items()
            for owner, held in owners.items()
            for span in held.spans
        ]

    # ------------------------------------------------------------ who waits for whom

    def wait(self, lock: Lock, holders: set[int]) -> bool:
        """Note that a lock's owner waits for others; False when that would close a circle."""
        if lock.kind is LockKind.FLOCK:
            return True  # flock(2) knows no deadlock
        if closes_circle(lock.owner, holders, lambda owner: self._waits.get(owner, ())):
            return False
        self._waits[lock.owner] = holders
        return True

    def end_wait(self, lock: Lock) -> None:
        """The owner of a lock waits no more."""
        if lock.kind is LockKind.POSIX:
            self._waits.pop(lock.owner, None)
