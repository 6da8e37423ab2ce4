"""What a mount does on its own: tends open files, keeps the figures of statfs fresh, and
takes and returns the write lease and the right to grant locks."""

from __future__ import annotations

import logging
import threading

from everfold import wire
from everfold.errors import EverfoldError
from everfold.log import new_request_id
from everfold.model import SpaceUsage
from mount.core import Core
from mount.feed import wait_for_feed
from mount.files import Files
from mount.lease import is_denied_for_good
from mount.locks import Locks

log = logging.getLogger(__name__)
_TICK_S = 0.1
_USAGE_S = 2.0
_SYNC_S = 2.0
_LEASE_TICK_S = 0.25
_CATCH_UP_S = 5.0


class LeaseKeeper:
    """A thread that asks for the write lease when this mount writes, and gives it back.

    The same for the right to grant locks, which is of use under the lease only.
    """

    def __init__(self, core: Core, files: Files, locks: Locks) -> None:
        self._core, self._files, self._locks = core, files, locks
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop; the lease stays as it is."""
        self._is_ending = True
        self._core.wants_lease.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        core, lease = self._core, self._core.lease
        is_denied = core.policy.is_read_only or not core.policy.leases
        while not self._is_ending:
            core.wants_lease.wait(_LEASE_TICK_S)
            core.wants_lease.clear()
            new_request_id()
            try:
                if lease.is_recalled or lease.should_end():
                    self.let_go()
                elif self._locks.should_give():
                    self._let_go_of_locks()
                elif not is_denied and lease.should_ask():
                    self._take()
                if self._locks.should_take():
                    self._locks.take()
            except EverfoldError as err:
                is_denied = is_denied_for_good(err)
                log.info("no write lease: %s", err)
            except Exception:
                log.exception("the write lease was not looked after")  # others may wait for it

    def _take(self) -> None:
        epoch, good_until, seq = self._core.lease.ask()
        if not epoch:
            return
        try:
            wait_for_feed(self._core, seq, _CATCH_UP_S)
        except EverfoldError:
            self._core.lease.decline(epoch)
            raise
        with self._core.lock:
            self._core.lease.begin(epoch, good_until)
            self._core.room.is_left(self._core.lease.quota_left)

    def let_go(self) -> None:
        """Answer nothing early any more, send on what was, give the lease back."""
        core = self._core
        core.lease.stop()
        self._locks.stop()
        self._files.flush_all()
        if core.shipper.drain(core.policy.change_deadline_s):
            self._locks.give()
            core.lease.give_back()

    def _let_go_of_locks(self) -> None:
        """Grant no more locks, send on what was written so far, tell which are held."""
        core = self._core
        self._locks.stop()
        self._files.flush_all()
        try:
            core.wait_all()
        except EverfoldError:
            if core.shipper.broken is None:
                raise
            # What cannot be sent at all shall not keep others from their locks.
        self._locks.give()


class Housekeeper:
    """A thread that ticks; `usage` is the last known answer for statfs, never a call."""

    def __init__(self, core: Core, files: Files) -> None:
        self._core, self._files = core, files
        self.usage = SpaceUsage(live=0, history=0, quota=0, inodes=0, free=0, capacity=0)
        self._ending = threading.Event()
        self._next_usage = 0.0
        self._next_sync = 0.0
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._ending.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        is_failing = False
        while not self._ending.wait(_TICK_S):
            try:
                self._tick()
                is_failing = False
            except EverfoldError as err:
                if not is_failing:
                    log.error("what was written waits in memory, the journal has no more: %s", err)
                is_failing = True
            except Exception:
                log.exception("open files were not looked after")

    def _tick(self) -> None:
        now = self._core.clock.monotonic()
        self._keep_backlog(now)
        if now >= self._next_usage:
            self._next_usage = now + _USAGE_S
            self.refresh_usage()
        self._files.tend()

    def _keep_backlog(self, now: float) -> None:
        """Sync a backlog that the cluster does not take; one that it takes is gone sooner."""
        shipper = self._core.shipper
        if not shipper.backlog[0]:
            self._next_sync = now + _SYNC_S
        elif now >= self._next_sync:
            self._next_sync = now + _SYNC_S
            try:
                shipper.make_durable()
            except EverfoldError as err:
                log.warning("the backlog would not survive a power cut: %s", err)

    def refresh_usage(self) -> None:
        """Ask for the space's usage; when the server is away the old figures stay."""
        new_request_id()
        try:
            self.usage = self._core.names.usage(wire.GetUsage(self._core.space))
        except EverfoldError as err:
            log.debug("no usage figures: %s", err)
