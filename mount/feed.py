"""Follows the space's feed: what other machines did is forgotten here and in the kernel.

One thread polls the nameserver. Commits of this mount itself are passed over: the tree has
them. For every other change exactly the names, attributes and byte ranges concerned are
dropped, first from the tree, then (through the notifier) from the kernel. While the server
is away the thread keeps trying; nothing is dropped, what is in memory is served.
"""

from __future__ import annotations

import logging
import threading

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.log import new_request_id
from everfold.model import MountId, Seq
from mount.core import Core
from mount.tree import ABSENT

log = logging.getLogger(__name__)
_PAUSE_S = 0.2


class FeedFollower:
    """See the module's docstring."""

    def __init__(self, core: Core, mount: MountId) -> None:
        self._core, self._mount = core, mount
        self._ending = threading.Event()
        self._locks = self._nodes = 0
        self._teams = core.session.teams
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """Stop; the poll under way ends by itself."""
        self._ending.set()
        self._thread.join(timeout=self._core.policy.poll_s + 6)

    def _run(self) -> None:
        while not self._ending.is_set():
            new_request_id()
            try:
                self.poll_once(self._core.policy.poll_s)
            except EverfoldError as err:
                if err.kind is Kind.UNAUTHENTICATED and self._core.barred is None:
                    self._core.shut_out(err)
                elif not self._is_away:
                    log.warning("the feed is silent: %s", err)
                self._is_away = True
                self._ending.wait(_PAUSE_S if err.kind.may_retry else 5 * _PAUSE_S)
            except Exception:
                # Whatever it is: what others save must not stay unseen for ever.
                log.exception("the feed could not be followed")
                with self._core.lock:
                    self._start_anew(self._core.feed_seq)
                self._ending.wait(5 * _PAUSE_S)

    def poll_once(self, wait_s: float) -> None:
        """Ask once and apply what comes."""
        core = self._core
        ask = wire.FeedPoll(
            core.space,
            self._mount,
            core.feed_seq,
            wait_s,
            self._locks,
            self._nodes,
            core.lease.epoch,
            core.lease.grants_locks,
            self._teams,
        )
        asked_at = core.clock.monotonic()
        feed = core.names.feed(ask)
        if core.barred is not None:
            core.let_in()
        core.lease.heard(ask, asked_at, feed)
        if core.lease.is_recalled or core.lease.are_locks_recalled:
            core.wants_lease.set()
        if self._is_away:
            log.info("the feed is back")
            self._is_away = False
        if feed.teams != self._teams:
            core.learn_teams()  # before what the feed tells makes their places seen
            self._teams = feed.teams
        with core.lock:
            if feed.is_reset:
                log.warning("the feed cannot go on from %d: starting anew", core.feed_seq)
                self._start_anew(feed.seq)
            try:
                for event in feed.events:
                    if event.mount != self._mount:
                        self._apply(event)
            except Exception:
                log.exception("an event could not be followed: starting anew")
                self._start_anew(feed.seq)
            core.feed_seq = max(core.feed_seq, feed.seq)
            core.pass_own_commits()
            core.feed_heard = core.clock.monotonic()
            core.locks_gen = self._locks = feed.locks
            core.feed_moved.notify_all()
        if feed.nodes != self._nodes:
            self._nodes = feed.nodes
            core.blocks.learn({}, feed.node_list)

    def _apply(self, event: wire.CommitEvent) -> None:
        for change in event.changes:
            if change.what == "entry":
                self._entry(change, event)
            elif change.what == "attr":
                self._core.attr_changed(change.ino, event.seq)
            elif change.what == "data":
                self._core.content_changed(change.ino, event.seq, change.offset, change.length)
            else:
                self._core.inode_gone(change.ino, event.seq)

    def _entry(self, change: wire.Change, event: wire.CommitEvent) -> None:
        core, tree = self._core, self._core.tree
        before = tree.child(change.parent, change.name)
        tree.forget_attr(change.parent)
        if not tree.touch_name(change.parent, change.name, event.seq):
            core.notifier.forget_attr(change.parent)
            return  # a later commit of this mount made the name what it is
        tree.forget_name(change.parent, change.name)
        if change.ino:
            tree.moved_elsewhere(change.ino, change.parent, event.seq)
        if change.ino == 0 and before is not None and before != ABSENT:
            core.notifier.entry_deleted(change.parent, before, change.name)
        core.notifier.forget_entry(change.parent, change.name)
        core.notifier.forget_attr(change.parent)

    def _start_anew(self, seq: Seq) -> None:
        """Believe nothing that is older than commit `seq`, and go on from there. Hold the lock."""
        self._core.forget_known(seq)
        self._core.feed_seq = seq


def wait_for_feed(core: Core, seq: int, timeout_s: float) -> None:
    """Wait until the feed was followed up to `seq` and the kernel was told; else UNAVAILABLE."""
    with core.lock:
        ready = core.feed_moved.wait_for(lambda: core.feed_seq >= seq, timeout_s)
    if not ready or not core.notifier.wait_told(timeout_s):
        raise EverfoldError(Kind.UNAVAILABLE, "the feed does not catch up")
