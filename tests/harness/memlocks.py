"""File locks in one process: flock(2) and fcntl(2) rules, waiting, deadlocks."""

from __future__ import annotations

import threading

import msgspec

from everfold.errors import EverfoldError, Kind
from everfold.model import Ino, Lock, LockKind, LockType

_POLL_S = 0.05  # how soon a cancelled wait is noticed


class LockTable:
    """All locks of one filesystem, and who waits for whom."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards all below
        self._held: dict[tuple[Ino, LockKind], list[Lock]] = {}
        self._waits_for: dict[int, int] = {}  # owner -> owner, fcntl only

    def conflicting(self, wanted: Lock) -> Lock | None:
        """Return the first lock in the way of this one."""
        with self._changed:
            return self._conflicting(wanted)

    def set(self, wanted: Lock, cancel: threading.Event | None) -> None:
        """Take or drop; WOULD_BLOCK, or with `cancel` wait: INTERRUPTED, DEADLOCK."""
        with self._changed:
            try:
                while (other := self._conflicting(wanted)) is not None:
                    self._wait(wanted, other, cancel)
            finally:
                self._waits_for.pop(wanted.owner, None)
            self._replace(wanted)
            self._changed.notify_all()

    def _wait(self, wanted: Lock, other: Lock, cancel: threading.Event | None) -> None:
        if cancel is None:
            raise EverfoldError(Kind.WOULD_BLOCK, "locked by another")
        if cancel.is_set():
            raise EverfoldError(Kind.INTERRUPTED, "the wait for a lock was ended")
        if wanted.kind is LockKind.POSIX:
            self._waits_for[wanted.owner] = other.owner
            owner: int | None = other.owner
            while owner is not None:
                if owner == wanted.owner:
                    raise EverfoldError(Kind.DEADLOCK, "each waits for the other")
                owner = self._waits_for.get(owner)
        self._changed.wait(_POLL_S)

    def drop(self, ino: Ino, kind: LockKind, owner: int) -> None:
        """Drop all locks of an owner on an inode."""
        with self._changed:
            held = self._held.get((ino, kind))
            if held:
                held[:] = [lock for lock in held if lock.owner != owner]
                self._changed.notify_all()

    def _conflicting(self, wanted: Lock) -> Lock | None:
        if wanted.type is LockType.UNLOCK:
            return None
        for lock in self._held.get((wanted.ino, wanted.kind), ()):
            is_exclusive = LockType.WRITE in (wanted.type, lock.type)
            overlaps = lock.start < wanted.end and wanted.start < lock.end
            if overlaps and is_exclusive and lock.owner != wanted.owner:
                return lock
        return None

    def _replace(self, new: Lock) -> None:
        # The owner's locks under the new one give way to it, what sticks out stays.
        held = self._held.setdefault((new.ino, new.kind), [])
        kept: list[Lock] = []
        for lock in held:
            if lock.owner != new.owner or lock.end <= new.start or new.end <= lock.start:
                kept.append(lock)
                continue
            if lock.start < new.start:
                kept.append(msgspec.structs.replace(lock, end=new.start))
            if new.end < lock.end:
                kept.append(msgspec.structs.replace(lock, start=new.end))
        if new.type is not LockType.UNLOCK:
            kept.append(new)
        held[:] = kept
