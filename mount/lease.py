"""This mount's side of the write lease: may it answer changes before they are committed?

A mount that writes asks for the lease; while it holds one, and has heard from the nameserver
recently enough to be sure that nobody else does, it answers from memory. When another mount
wants to write (the feed says so), it stops at once, sends on what it answered, and gives the
lease back. Between, and while two are writing, every change waits for its commit.

With the lease may go the right to grant locks (`mount.locks`), which the feed takes back alone.

The time that counts is this machine's: a lease is believed for as long as the nameserver said
when it was last asked, counted from before the question, less a margin for clocks that run
at different speeds.
"""

from __future__ import annotations

import logging
import threading

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.http import with_retries
from everfold.model import MountId, Seq, SpaceId
from everfold.services import Clock, NameService

log = logging.getLogger(__name__)

_MARGIN_S = 0.5
_ASK_AGAIN_S = 0.3
_IDLE_S = 30.0  # a lease that was not used for so long is given back
_GIVE_BACK_S = 20.0


class WriteLease:
    """See the module's docstring. `held` is read without a lock: an epoch, 0 for none."""

    def __init__(self, space: SpaceId, mount: MountId, names: NameService, clock: Clock) -> None:
        self._space, self._mount = space, mount
        self._names, self._clock = names, clock
        self._lock = threading.Lock()  # guards all below
        self._epoch = 0
        self._good_until = 0.0
        self._is_recalled = False
        self._ask_at = 0.0
        self._wanted_at = -1e9
        self.quota_left: int | None = None  # as the last grant told
        self.takes = self.recalls = self.locks_granted = 0
        self.grants_locks = False  # set by `mount.locks`, under its lock
        self.are_locks_recalled = False

    @property
    def held(self) -> int:
        """Return the epoch of the lease if changes may be answered early now, else 0."""
        if self._is_recalled or self._clock.monotonic() > self._good_until:
            return 0
        return self._epoch

    @property
    def epoch(self) -> int:
        """Return the epoch that is to be renewed or given back, 0 for none."""
        return self._epoch

    @property
    def is_recalled(self) -> bool:
        """Tell whether the lease must be given back."""
        return self._is_recalled and bool(self._epoch)

    def want(self) -> None:
        """Note that this mount changes something."""
        self._wanted_at = self._clock.monotonic()

    def should_ask(self) -> bool:
        """Tell whether it is time to ask for the lease."""
        now = self._clock.monotonic()
        return not self._epoch and now - self._wanted_at < 1.0 and now >= self._ask_at

    def should_end(self) -> bool:
        """Tell whether the lease has been idle for long."""
        return bool(self._epoch) and self._clock.monotonic() - self._wanted_at > _IDLE_S

    def ask(self) -> tuple[int, float, Seq]:
        """Ask for the lease; return (epoch or 0, good until, the commit to have seen first)."""
        before = self._clock.monotonic()
        self._ask_at = before + _ASK_AGAIN_S
        got = self._names.lease(wire.TakeLease(self._space, self._mount))
        self.quota_left = got.quota_left
        return got.epoch, before + got.left_s - _MARGIN_S, got.seq

    def begin(self, epoch: int, good_until: float) -> None:
        """The lease is ours, and the feed was followed far enough: answer early from now on."""
        with self._lock:
            self._epoch, self._good_until, self._is_recalled = epoch, good_until, False
            self.takes += 1

    def heard(self, asked: wire.FeedPoll, asked_at: float, feed: wire.Feed) -> None:
        """Take in what the feed says of the lease that was held when it was asked."""
        with self._lock:
            if feed.are_locks_recalled and self.grants_locks:
                self.are_locks_recalled = True  # before the lease is believed again, below
            if feed.is_recalled and self._epoch and not self._is_recalled:
                self._is_recalled = True
                self.recalls += 1
            if not asked.epoch or asked.epoch != self._epoch:
                return
            self._good_until = asked_at + feed.lease_left_s - _MARGIN_S

    def give_back(self) -> None:
        """Let the lease go; everything answered under it is in the cluster by now."""
        with self._lock:
            epoch, self._epoch, self._good_until = self._epoch, 0, 0.0
            self._is_recalled = False
            self._ask_at = self._clock.monotonic() + 1.0
        if epoch:
            self.decline(epoch)

    def decline(self, epoch: int) -> None:
        """Let the nameserver give this lease to others; it is not believed here (any more)."""
        ask = wire.TakeLease(self._space, self._mount, epoch)
        try:
            with_retries(lambda _left: self._names.lease(ask), _GIVE_BACK_S)
        except EverfoldError as err:
            log.warning("the write lease could not be given back, it will run out: %s", err)

    def clear(self) -> None:
        """Let go of a lease that an earlier process of this mount may have left."""
        got = self._names.lease(wire.TakeLease(self._space, self._mount))
        if got.epoch:
            self._names.lease(wire.TakeLease(self._space, self._mount, got.epoch))

    def stop(self) -> None:
        """Answer nothing early any more, until the lease was given back."""
        with self._lock:
            self._is_recalled = True


def is_denied_for_good(err: EverfoldError) -> bool:
    """Tell whether asking for the lease will never be granted to this mount."""
    return err.kind in (Kind.READ_ONLY, Kind.FORBIDDEN)
