"""flock and fcntl locks, granted by the nameserver: they hold between machines.

Whoever gets a lock must see what was written under it before: bytes are in the cluster
before a lock is let go, and the feed is followed up to the grant before it is used.

The owner of a flock is the open file (its number here). The kernel's own number for it may be
given to the next file while the release of the last one, which lets its locks go, is still
under way.
"""

from __future__ import annotations

import threading

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.http import with_retries
from everfold.model import SIZE_MAX, Ino, Lock, LockKind, LockType, MountId
from mount import patience
from mount.core import Core
from mount.feed import wait_for_feed
from mount.files import Files, Handle
from mount.knowledge import READ_DEADLINE_S

_RETRY_S = 0.5  # a lock may fall without the feed's telling (a machine died)
_CATCH_UP_S = 5.0


class Locks:
    """See the module's docstring."""

    def __init__(self, core: Core, files: Files, mount: MountId) -> None:
        self._core, self._files, self._mount = core, files, mount
        self._lock = threading.Lock()  # guards _held
        self._held: set[tuple[Ino, LockKind, int]] = set()  # (inode, kind, owner) with any lock

    def test(self, lock: Lock) -> Lock | None:
        """Return a lock in the way of this one; pid 0 when another machine holds it."""
        patience.require()
        core = self._core
        answer = core.read(
            lambda: core.names.test_lock(wire.TestLock(core.space, self._mount, lock))
        )
        if answer.lock is None or answer.mount == self._mount:
            return answer.lock
        return msgspec.structs.replace(answer.lock, pid=0)

    def set(self, fh: int, lock: Lock, cancel: threading.Event | None) -> None:
        """Take or drop a lock; see `Filesystem.setlk`."""
        if lock.kind is LockKind.FLOCK:
            lock = msgspec.structs.replace(lock, owner=fh)
        if lock.type is LockType.UNLOCK and not self.holds(lock.ino, lock.kind, lock.owner):
            return
        patience.require()
        handle = self._files.handle(fh)
        if lock.type is LockType.UNLOCK:
            try:
                self._files.sync(handle.content)
            finally:
                self._ask(handle, lock, is_waiting=False)  # a lock never outlives a failure to sync
            return
        while True:
            gen = self._core.locks_gen
            try:
                self._ask(handle, lock, cancel is not None)
                return
            except EverfoldError as err:
                if err.kind is not Kind.WOULD_BLOCK or cancel is None:
                    raise
            if self._await_change(gen, cancel):
                raise EverfoldError(Kind.INTERRUPTED, "interrupted while waiting for a lock")

    def _ask(self, handle: Handle, lock: Lock, is_waiting: bool) -> None:
        core = self._core
        ask = wire.SetLock(core.space, self._mount, lock, is_waiting)
        granted = with_retries(lambda _left: self._set(ask), READ_DEADLINE_S)
        if isinstance(granted, EverfoldError):
            raise granted
        with self._lock:
            if lock.type is not LockType.UNLOCK:
                self._held.add((lock.ino, lock.kind, lock.owner))
                handle.locks.add(lock.owner)
            elif lock.start == 0 and lock.end == SIZE_MAX:
                self._held.discard((lock.ino, lock.kind, lock.owner))
        if lock.type is not LockType.UNLOCK:
            wait_for_feed(core, granted.seq, _CATCH_UP_S)
            # While something of ours is on its way (a seal, say), what others did is only noted.
            core.wait_quiet(handle.content)
            wait_for_feed(core, granted.seq, _CATCH_UP_S)

    def _set(self, ask: wire.SetLock) -> wire.Granted | EverfoldError:
        """Ask once; a held lock is an answer here, not a failure to try again at once."""
        try:
            return self._core.names.set_lock(ask)
        except EverfoldError as err:
            if err.kind is Kind.WOULD_BLOCK:
                return err
            raise

    def _await_change(self, gen: int, cancel: threading.Event) -> bool:
        """Wait until some lock of the space fell, or a while; True when cancelled."""
        core = self._core
        ends = core.clock.monotonic() + _RETRY_S
        with core.lock:
            while core.locks_gen == gen and core.clock.monotonic() < ends:
                if cancel.is_set():
                    return True
                core.feed_moved.wait(0.05)
        return cancel.is_set()

    def holds(self, ino: Ino, kind: LockKind, owner: int) -> bool:
        """Tell whether an owner may hold a lock on an inode."""
        with self._lock:
            return (ino, kind, owner) in self._held

    def drop(self, fh: int, kind: LockKind, owner: int) -> None:
        """Drop all locks of an owner on a file, as close does."""
        ino = self._files.handle(fh).content.ino
        owner = fh if kind is LockKind.FLOCK else owner
        if self.holds(ino, kind, owner):
            self.set(fh, Lock(ino, kind, LockType.UNLOCK, owner, 0, SIZE_MAX, 0), None)

    def drop_all(self, fh: int) -> None:
        """Drop the fcntl locks that were taken through a file and not let go by a close.

        The kernel tells of no close of a file that was opened read-only (see `Opened.no_flush`).
        """
        for owner in list(self._files.handle(fh).locks):
            self.drop(fh, LockKind.POSIX, owner)
