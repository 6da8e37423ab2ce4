"""flock and fcntl locks: they hold between machines, and cost no call while nobody else locks.

Two ways. As a rule the nameserver grants: bytes are in the cluster before a lock is let go, and
the feed is followed up to the grant before it is used, so that whoever gets a lock sees what was
written under it before. Under the write lease this mount may ask to *grant locks itself*
(`wire.TakeLocks`): nothing can have changed elsewhere then, so a lock is a look into
`LockTable` (50 us for a lock and its release, as a program sees it; a call is about 1 ms), and
letting it go waits for nothing. When another mount wants a lock, granting stops, everything
written so far is sent on, and what programs hold is told to the nameserver (`give`); only then
does it decide for others.

A grant from memory needs both: the right to grant and a write lease that is good at that moment.
While the lease is silent (or being given back) requests wait until it is known who decides; a
program may let go of a lock at any time. On inodes where other mounts held locks when the right
was granted (`remote`), the nameserver decides as ever.

The owner of a flock is the open file (its number here). The kernel's own number for it may be
given to the next file while the release of the last one, which lets its locks go, is still
under way.
"""

from __future__ import annotations

import logging
import threading

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.http import with_retries
from everfold.locks import checked
from everfold.model import SIZE_MAX, Ino, Lock, LockKind, LockType, MountId
from mount import patience
from mount.core import Core
from mount.feed import wait_for_feed
from mount.files import Files
from mount.handles import Handle
from mount.knowledge import READ_DEADLINE_S
from mount.locktable import LockTable

log = logging.getLogger(__name__)

_RETRY_S = 0.5  # a lock may fall without the feed's telling (a machine died)
_LOOK_S = 0.05  # how soon an interrupted program is noticed
_CATCH_UP_S = 5.0
_TAKE_WAIT_S = 1.0  # for locks on their way to the nameserver, before the right is asked for
_ASK_AGAIN_S = 0.5
_WANTED_S = 1.0
_SETTLED_MAX = 100_000
_IDLE_S = 5.0  # no lock held or asked for since: the nameserver may as well decide


class Locks:
    """See the module's docstring."""

    def __init__(self, core: Core, files: Files, mount: MountId) -> None:
        self._core, self._files, self._mount = core, files, mount
        self._lease = core.lease
        # Guards all below and `lease.grants_locks`; taken after no other lock, before none.
        self._changed = threading.Condition(threading.Lock())
        self._table = LockTable()
        self._remote: frozenset[Ino] = frozenset()
        self._settled: set[Ino] = set()  # looked at since the right to grant was given
        self._asking = 0  # calls about locks that are on their way to the nameserver
        self._is_switching = False  # the right to grant is being asked for, or given back
        self._ask_at = 0.0
        self._wanted_at = -1e9

    # ------------------------------------------------------------ what programs ask

    def test(self, lock: Lock) -> Lock | None:
        """Return a lock in the way of this one; pid 0 when another machine holds it."""
        lock = checked(lock)
        with self._changed:
            if self._decides(lock.ino):
                against = self._table.against(lock)
                return against[0] if against else None
        patience.require()
        with self._changed:
            if self._await_decider(lock):
                against = self._table.against(lock)
                return against[0] if against else None
            self._asking += 1
        core = self._core
        try:
            answer = core.read(
                lambda: core.names.test_lock(wire.TestLock(core.space, self._mount, lock))
            )
        finally:
            self._asked()
        if answer.lock is None or answer.mount == self._mount:
            return answer.lock
        return msgspec.structs.replace(answer.lock, pid=0)

    def set(self, fh: int, lock: Lock, cancel: threading.Event | None) -> None:
        """Take or drop a lock; see `Filesystem.setlk`."""
        if lock.kind is LockKind.FLOCK:
            lock = msgspec.structs.replace(lock, owner=fh)
        lock = checked(lock)
        handle = self._files.handle(fh)
        with self._changed:
            if lock.type is LockType.UNLOCK:
                if not self._table.holds(lock.ino, lock.kind, lock.owner):
                    return
                if self._decides(lock.ino):
                    self._lay(handle, lock)
                    return
            elif self._decides(lock.ino) and self._is_settled(handle):
                if not self._table.against(lock):
                    self._lay(handle, lock)
                    return
                if cancel is None:
                    raise EverfoldError(Kind.WOULD_BLOCK, "the lock is held by another program")
        patience.require()
        if lock.type is LockType.UNLOCK:
            self._let_go(handle, lock)
        else:
            self._get(handle, lock, cancel)

    def _decides(self, ino: Ino) -> bool:
        """Tell whether locks on an inode are granted here, now. Hold the lock."""
        lease = self._lease
        return (
            lease.grants_locks
            and not self._is_switching
            and not lease.are_locks_recalled
            and lease.held != 0
            and ino not in self._remote
        )

    def _await_decider(self, lock: Lock) -> bool:
        """Wait until it is known who decides; True: this mount does. Hold the lock.

        UNAVAILABLE when it stays unknown. Letting go is decided here as long as the right to
        grant was not given back, also while the cluster is silent: nobody else can have it.
        """
        clock = self._core.clock
        ends = clock.monotonic() + READ_DEADLINE_S
        while True:
            if self._decides(lock.ino):
                return True
            if not self._is_switching:
                if not self._lease.grants_locks:
                    return False
                if lock.ino in self._remote:
                    return False
                if lock.type is LockType.UNLOCK:
                    return True
            if clock.monotonic() >= ends:
                raise EverfoldError(Kind.UNAVAILABLE, "nobody can decide about the lock now")
            self._core.wants_lease.set()
            self._changed.wait(_LOOK_S)

    def _lay(self, handle: Handle, lock: Lock) -> None:
        """Grant here. Hold the lock."""
        self._lease.locks_granted += 1
        self._lease.want()
        self._wanted_at = self._core.clock.monotonic()
        self._note(handle, lock)

    def _note(self, handle: Handle, lock: Lock) -> None:
        """A lock is taken or dropped. Hold the lock."""
        if self._table.lay(lock):
            self._changed.notify_all()
        if lock.type is not LockType.UNLOCK and lock.kind is LockKind.POSIX:
            handle.locks.add(lock.owner)
            self._table.end_wait(lock)  # in one step, or who waits for it now sees a circle

    def _get(self, handle: Handle, lock: Lock, cancel: threading.Event | None) -> None:
        self._want(handle)
        try:
            while True:
                gen = self._core.locks_gen
                if self._try(handle, lock, is_waiting=cancel is not None):
                    return
                if cancel is None:
                    raise EverfoldError(Kind.WOULD_BLOCK, "the lock is held by another")
                if self._await_change(lock, gen, cancel):
                    raise EverfoldError(Kind.INTERRUPTED, "interrupted while waiting for a lock")
        finally:
            with self._changed:
                self._table.end_wait(lock)

    def _try(self, handle: Handle, lock: Lock, is_waiting: bool) -> bool:
        """Take a lock if it is free; tell whether it was. DEADLOCK."""
        is_here = True
        while is_here:
            if self._lease.grants_locks and not self._is_settled(handle):
                self._settle(handle)
            with self._changed:
                is_here = self._await_decider(lock)
                if is_here and lock.ino not in self._settled:
                    continue  # granting has begun anew meanwhile
                against = self._table.against(lock)
                if is_waiting and not self._table.wait(lock, {each.owner for each in against}):
                    raise EverfoldError(Kind.DEADLOCK, "the lock's holder waits for the caller")
                if is_here:
                    if not against:
                        self._lay(handle, lock)
                    return not against
                self._asking += 1
        try:
            return self._ask(handle, lock, is_waiting)
        finally:
            self._asked()

    def _is_settled(self, handle: Handle) -> bool:
        """Tell whether a lock on a file may be granted here without another look at the file."""
        content = handle.content
        return content.ino in self._settled and not content.is_stale

    def _settle(self, handle: Handle) -> None:
        """See what was changed elsewhere before the lease began, the kernel too.

        The kernel may have learned the size of a new inode from an answer that was older than
        a change that it was told of before it knew the inode: it must ask again.
        """
        content = handle.content
        self._core.wait_quiet(content)
        self._core.notifier.forget_attr(content.ino)
        wait_for_feed(self._core, 0, _CATCH_UP_S)
        with self._changed:
            if self._lease.grants_locks:
                if len(self._settled) >= _SETTLED_MAX:
                    self._settled.clear()
                self._settled.add(content.ino)

    def _let_go(self, handle: Handle, lock: Lock) -> None:
        with self._changed:
            if self._await_decider(lock):
                self._lay(handle, lock)
                return
        try:
            self._files.sync(handle.content)
        finally:  # a lock never outlives a failure to sync
            with self._changed:
                is_here = self._await_decider(lock)
                if is_here:
                    self._lay(handle, lock)
                else:
                    self._asking += 1
            if not is_here:
                try:
                    self._ask(handle, lock, is_waiting=False)
                finally:
                    self._asked()

    def _await_change(self, lock: Lock, gen: int, cancel: threading.Event) -> bool:
        """Wait until the lock may have become free, or a while; True when cancelled."""
        core = self._core
        ends = core.clock.monotonic() + _RETRY_S
        with self._changed:
            while core.clock.monotonic() < ends and not cancel.is_set():
                if not self._decides(lock.ino):
                    break
                if not self._table.against(lock):
                    return False
                self._changed.wait(_LOOK_S)
        with core.lock:
            while core.locks_gen == gen and core.clock.monotonic() < ends:
                if cancel.is_set():
                    return True
                core.feed_moved.wait(_LOOK_S)
        return cancel.is_set()

    def holds(self, ino: Ino, kind: LockKind, owner: int) -> bool:
        """Tell whether an owner may hold a lock on an inode."""
        with self._changed:
            return self._table.holds(ino, kind, owner)

    def drop(self, fh: int, kind: LockKind, owner: int) -> None:
        """Drop all locks of an owner on a file, as close does."""
        if not self._table:
            return
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

    # ------------------------------------------------------------ asking the nameserver

    def _ask(self, handle: Handle, lock: Lock, is_waiting: bool) -> bool:
        """Take or drop a lock at the nameserver; tell whether that was possible now."""
        core = self._core
        ask = wire.SetLock(core.space, self._mount, lock, is_waiting)
        try:
            granted = with_retries(lambda _left: self._set(ask), READ_DEADLINE_S)
        except EverfoldError as err:
            if err.kind is not Kind.BUSY:
                raise
            return False  # another mount did not say in time whether it is free
        if isinstance(granted, EverfoldError):
            return False
        with self._changed:
            self._note(handle, lock)
        if lock.type is not LockType.UNLOCK:
            wait_for_feed(core, granted.seq, _CATCH_UP_S)
            # While something of ours is on its way (a seal, say), what others did is only noted.
            core.wait_quiet(handle.content)
            core.notifier.forget_attr(lock.ino)  # see `_settle`
            wait_for_feed(core, granted.seq, _CATCH_UP_S)
        return True

    def _set(self, ask: wire.SetLock) -> wire.Granted | EverfoldError:
        """Ask once; a held lock is an answer here, not a failure to try again at once."""
        try:
            return self._core.names.set_lock(ask)
        except EverfoldError as err:
            if err.kind is Kind.WOULD_BLOCK:
                return err
            raise

    def _asked(self) -> None:
        with self._changed:
            self._asking -= 1
            if not self._asking and self._is_switching:
                self._changed.notify_all()

    # ------------------------------------------------------------ the right to grant

    def _want(self, handle: Handle) -> None:
        """A lock has to be asked for elsewhere: the lease keeper may see to the right to grant."""
        core = self._core
        self._wanted_at = core.clock.monotonic()
        if handle.is_writer and core.policy.leases and not core.policy.is_read_only:
            core.want_lease()
        if self._lease.held and not self._lease.grants_locks:
            core.wants_lease.set()

    def should_take(self) -> bool:
        """Tell whether it is time to ask for the right to grant locks."""
        if self._lease.grants_locks or not self._lease.held:
            return False
        now = self._core.clock.monotonic()
        return now - self._wanted_at < _WANTED_S and now >= self._ask_at

    def should_give(self) -> bool:
        """Tell whether the right to grant is wanted back, or of no use."""
        if not self._lease.grants_locks:
            return False
        is_idle = not self._table and self._core.clock.monotonic() - self._wanted_at > _IDLE_S
        return self._lease.are_locks_recalled or self._is_switching or is_idle

    def take(self) -> None:
        """Ask for the right to grant; a caller's thread that may wait.

        When no answer comes it may have been granted: it is given back before locks go on.
        """
        core, lease = self._core, self._lease
        self._ask_at = core.clock.monotonic() + _ASK_AGAIN_S
        with self._changed:
            self._is_switching = True
            if not self._changed.wait_for(lambda: not self._asking, _TAKE_WAIT_S):
                self._is_switching = False
                self._changed.notify_all()
                return
        ask = wire.TakeLocks(core.space, self._mount, lease.held)
        is_granted, remote, is_unknown = False, frozenset[Ino](), False
        try:
            answer = core.names.take_locks(ask)
            is_granted, remote = answer.is_granted, frozenset(answer.remote)
        except EverfoldError as err:
            is_unknown = err.kind.may_retry
            raise
        finally:
            with self._changed:
                lease.are_locks_recalled = False
                lease.grants_locks = is_granted or is_unknown
                self._remote = remote
                self._settled.clear()
                self._is_switching = is_unknown
                self._changed.notify_all()

    def stop(self) -> None:
        """Grant nothing here any more, until `give` has told what is held."""
        with self._changed:
            self._is_switching = self._lease.grants_locks

    def give(self) -> None:
        """Tell the nameserver what is held, which decides from now on.

        To be called after `stop`, when everything written before that is in the cluster.
        """
        core = self._core
        with self._changed:
            if not self._lease.grants_locks:
                return
            self._changed.wait_for(lambda: not self._asking, READ_DEADLINE_S + _CATCH_UP_S)
            ask = wire.GiveLocks(core.space, self._mount, self._table.all())
        kept = with_retries(lambda _left: core.names.give_locks(ask), READ_DEADLINE_S)
        if kept.lost:
            log.error(
                "%d locks were lost: this machine had been silent for too long", len(kept.lost)
            )
        with self._changed:
            for lock in kept.lost:
                self._table.lay(msgspec.structs.replace(lock, type=LockType.UNLOCK))
            self._lease.grants_locks = self._lease.are_locks_recalled = False
            self._is_switching = False
            self._ask_at = core.clock.monotonic() + _ASK_AGAIN_S
            self._changed.notify_all()
