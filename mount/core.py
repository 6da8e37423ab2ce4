"""What every part of the filesystem leans on: the tree, the files' contents, the way out.

Reading: `attr` and `lookup` answer from memory, else (where the thread may wait) from the
nameserver. Changing: `submit` puts a record into the journal and on its way and returns at
once; `commit` waits for its outcome too. A change of names (`change`) is evaluated here,
applied to the tree and answered at once while this mount holds the write lease; without it,
it is applied when its commit is known. A change of bytes or attributes is applied at once in
both modes, and the file counts as *active* until its records are committed: while it is, what
others changed is noted (`is_stale`) and looked at when the last record is through.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

from msgspec.structs import replace

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import NOW, ROOT, Attr, Ino, Seq
from everfold.services import Clock, NameService
from mount import patience
from mount.blockio import BlockIO
from mount.content import Content, youngest_hole
from mount.journal import Journal
from mount.knowledge import Knowledge, Unknown
from mount.lease import WriteLease
from mount.policy import Policy
from mount.records import Local, Names, StagedWrite, encode, ino_of, sealed, touched_by
from mount.room import Room
from mount.shipper import Item, Shipper
from mount.staging import Staging

log = logging.getLogger(__name__)

INO_RANGE = 4096
_OWN_MAX = 1000
_SETTLED_AT_ONCE = 64  # records, about 1 ms; then whoever waits for the lock gets his turn
_BREATH_S = 0.0001

_GLANCE_S = 0.5  # who waits for one change looks so often whether there is any use in it

Outcome = Future[tuple[wire.Result, Seq]]


@dataclass(slots=True, eq=False)
class Change(Item):
    """A record of this mount on its way, and what is to happen when it is through."""

    names: Names = ()  # that it changes: held in the tree until then
    inos: Sequence[Ino] = ()
    holes: int = 0  # the youngest local hole that it can hold
    apply: Callable[[Seq], None] | None = None
    outcome: Outcome | None = None  # somebody may wait for it


class Core(Knowledge):
    """What this mount knows, and the way out for what it changes."""

    def __init__(
        self,
        session: wire.Session,
        names: NameService,
        blocks: BlockIO,
        staging: Staging,
        journal: Journal,
        shipper: Shipper,
        lease: WriteLease,
        clock: Clock,
        policy: Policy,
    ) -> None:
        super().__init__(session, names, blocks, staging, clock, policy)
        self.journal, self.shipper, self.lease = journal, shipper, lease
        self.wants_lease = threading.Event()  # set when the lease keeper has something to do
        self._fresh_inos: tuple[Ino, Ino] = (Ino(0), Ino(0))  # [next, end)
        # (first, last) of our commits that the feed's position has not reached. Those that are
        # too many to be remembered it reaches by itself, after `poll_s` of silence.
        self._own_commits: deque[tuple[Seq, Seq]] = deque(maxlen=_OWN_MAX)
        self.size_max = session.size_max
        self.room = Room(session.quota_left, self.contents.values)
        self.team_places: list[wire.TeamPlace] = []  # replaced as a whole
        self.junctions: frozenset[Ino] = frozenset()  # directories that only stand for these
        self.teams_moved = threading.Event()
        if session.teams:
            self.learn_teams()
        self.barred: EverfoldError | None = None  # why the cluster lets this mount in no more
        shipper.tell = self._settle

    def check_writable(self) -> None:
        """Raise READ_ONLY on a read-only mount, and what keeps changes from being sent, if so."""
        self.check_let_in()
        if self.policy.is_read_only:
            raise EverfoldError(Kind.READ_ONLY, "the folder is mounted read-only")
        if self.shipper.broken is not None:
            raise self.shipper.broken

    def check_let_in(self) -> None:
        """Raise UNAUTHENTICATED when the cluster lets this mount in no more."""
        if self.barred is not None:
            raise self.barred

    def shut_out(self, why: EverfoldError) -> None:
        """The cluster lets this mount in no more: forget what is its, keep what is not sent.

        Who waits for the cluster is told at once. What the root is stays known: tools ask there
        what is the matter.
        """
        if self.barred is not None:
            return
        records, nbytes = self.shipper.backlog
        log.error(
            "the cluster lets this mount in no more (%s); %d changes, %d bytes that are not sent"
            " stay in the journal; log in again to go on",
            why, records, nbytes,
        )  # fmt: skip
        with self.lock:
            self.barred = self.shipper.barred = why
            root = self.tree.attr(ROOT) or _closed_root(self.clock.time_ns())
            self.forget_known(self.feed_seq)
            self.tree.set_attr(root)
            self.feed_moved.notify_all()
        self.blocks.forget()

    def let_in(self) -> None:
        """The cluster lets this mount in again: what waited is sent."""
        log.info("the cluster lets this mount in again")
        with self.lock:
            self.barred = self.shipper.barred = None
            self.tree.forget_attr(ROOT)
            self.notifier.forget_attr(ROOT)
            self.feed_moved.notify_all()

    def forget_known(self, seq: Seq) -> None:
        """Drop all names, attributes and bytes, here and in the kernel. Hold the lock."""
        for parent, name in self.tree.names():
            self.notifier.forget_entry(parent, name)
        for ino in list(self.tree.inos()):
            self.content_changed(ino, seq)
        self.tree.forget_all()
        self.walking.forget()

    def _await(self, is_done: Callable[[], bool], otherwise: EverfoldError) -> None:
        """Wait for the cluster at most `change_deadline_s`; raise why not. Hold the lock."""
        self.feed_moved.wait_for(
            lambda: is_done() or self.barred is not None, self.policy.change_deadline_s
        )
        if not is_done():
            raise self.barred or otherwise

    def learn_teams(self) -> None:
        """Ask which team folders stand in this space, and where."""
        ask = wire.GetTeams(self.space)
        self.team_places = self.read(lambda: self.names.teams(ask)).teams
        self.junctions = frozenset(place.ino for place in self.team_places)
        self.teams_moved.set()

    def check_holds_names(self, directory: Ino) -> None:
        """Raise NOT_PERMITTED for the place of a team folder that is not covered (yet)."""
        if directory in self.junctions:
            raise EverfoldError(Kind.NOT_PERMITTED, "the team folder is not mounted here yet")

    def change(
        self, op: wire.AnyOp, check: Callable[[], None], apply: Callable[[Seq], None]
    ) -> Seq:
        """Make a change of names: at once under the write lease, else once it is committed.

        Return the commit's number, NOW when there is none yet.

        `check` raises what refuses the change as far as memory tells, or `Unknown`; it runs
        under the lease only. `apply` lets the tree follow; it gets the commit number, or NOW
        when there is none yet. Both are called with the lock held.
        """
        self.want_lease()
        while self.lease.held:
            if self.shipper.queued >= self.policy.backlog_ops:
                self._wait_turn()
            try:
                with self.lock:
                    if self.lease.held:
                        check()
                        self.send(op)
                        apply(NOW)
                        return NOW
            except Unknown as unknown:
                unknown.fetch()
        self.wants_lease.set()
        return self.commit(op, apply)[1]

    def want_lease(self) -> None:
        """Note that this mount changes something; the lease keeper asks when it has no lease."""
        lease = self.lease
        lease.want()
        if not lease.epoch:
            self.wants_lease.set()

    def _wait_turn(self) -> None:
        """Slow down whoever changes names while too many changes wait for the cluster."""
        if self.shipper.queued < self.policy.backlog_ops:
            return
        patience.require()
        with self.lock:
            self._await(lambda: self.shipper.queued < self.policy.backlog_ops, _backlog())

    def new_ino(self) -> Ino:
        """Return an inode number that nobody else will ever use."""
        with self.lock:
            first, end = self._fresh_inos
            if first < end:
                self._fresh_inos = (Ino(first + 1), end)
                return first
        patience.require()
        got = self.read(lambda: self.names.reserve(wire.Reserve(self.space, INO_RANGE)))
        with self.lock:
            self._fresh_inos = (Ino(got.first + 1), Ino(got.first + got.count))
            return got.first

    def send(self, record: Local, hold_s: float = 0.0) -> None:
        """Journal a record and put it on its way; nobody waits for it.

        The lock is taken here, so that the journal's order is the order of the changes.
        """
        with self.lock:
            item = Change(self.journal.append((encode(record),)), record, epoch=self.lease.held)
            if hold_s:
                item.hold_until = self.clock.monotonic() + hold_s
            self._expect(item)
            self.shipper.submit([item])

    def submit(self, *records: Local, apply: Callable[[Seq], None] | None = None) -> Outcome:
        """Journal records and send them on their way, in one commit.

        The future tells what became of the first; `apply` is called when that is committed,
        in one step with the end of its hold on the tree, whether or not somebody still waits.
        """
        outcome: Outcome = Future()
        with self.lock:
            first = self.journal.append([encode(record) for record in records])
            items: list[Item] = []
            for number, record in enumerate(records, first):
                item = Change(number, record, epoch=self.lease.held, is_glued=number > first)
                if number == first:
                    item.apply, item.outcome = apply, outcome
                self._expect(item)
                items.append(item)
            self.shipper.submit(items)
        return outcome

    def _expect(self, item: Change) -> None:
        record = item.record
        item.names, item.inos = touched_by(record)
        self.tree.hold(item.names, item.inos)
        content = None if item.names else self.contents.get(ino_of(record))
        if content is not None:
            content.pending += 1
            content.last_number = item.number
            if type(record) is StagedWrite:
                content.write_sent, content.last_write_number = item, item.number
                item.holes = youngest_hole()
            elif type(record) is wire.Seal:
                content.seals += 1

    def seal(self, content: Content) -> None:
        """Complete the open version of a file; nobody writes it any more. Hold the lock.

        Where the last write waits here still it takes the seal along: the journal has a
        record of each save all the same, and there is one operation less to commit.
        """
        write = content.write_sent
        if write is not None and write.number == content.last_number:
            record = sealed(write.record)
            if self.shipper.amend(write, record):
                self.journal.amend(write.number, encode(record))
                return
        self.send(wire.Seal(content.ino, self.clock.time_ns()))
        self.shipper.release(content.last_number)

    def commit(
        self, record: Local, apply: Callable[[Seq], None] | None = None
    ) -> tuple[wire.Result, Seq]:
        """Submit a change and wait until it is in the cluster; raise what refused it.

        TIMEOUT after `change_deadline_s`: the change stays in the journal and may still be
        applied, as after a crash.
        """
        patience.require()
        outcome = self.submit(record, apply=apply)
        self.shipper.hurry(self.journal.next_number - 1)
        return self.outcome_of(outcome)

    def outcome_of(self, outcome: Outcome) -> tuple[wire.Result, Seq]:
        """Wait for what became of a change; raises as `commit` does."""
        ends = self.clock.monotonic() + self.policy.change_deadline_s
        while True:
            try:
                result, seq = outcome.result(_GLANCE_S)
                break
            except FutureTimeout:
                self.check_let_in()
                if self.clock.monotonic() >= ends:
                    raise _not_taken() from None
        result.check()
        return result, seq

    def wait_number(self, content: Content) -> None:
        """Wait until all records of a file are in the cluster; raise what befell one."""
        with self.lock:
            self.wait_quiet(content)
            if content.error is not None:
                err, content.error = content.error, None
                raise err

    def wait_quiet(self, content: Content) -> None:
        """Wait until what became of all records of a file is known."""
        with self.lock:
            if content.pending:
                patience.require()
                self.shipper.hurry(content.last_number)
                self._await(lambda: content.pending == 0, _not_taken())

    def wait_all(self) -> None:
        """Wait until every change journalled so far is in the cluster."""
        number = self.journal.next_number - 1
        if self.shipper.committed_number >= number or not self.shipper.backlog[0]:
            return
        patience.require()
        self.shipper.hurry(number)
        with self.lock:
            self._await(lambda: self.shipper.committed_number >= number, _not_taken())

    def drop_caches(self) -> None:
        """Forget what can be asked for again: names, attributes, extents, blocks.

        For measurements: the next reader finds what a mount finds that has just begun. What
        the kernel keeps is the kernel's (``/proc/sys/vm/drop_caches``).
        """
        self.wait_all()
        with self.lock:
            self.tree.forget_all()
            self.walking.forget()
            self._unlisted.clear()
            for content in list(self.contents.values()):
                if content.is_idle:
                    del self.contents[content.ino]
        self.blocks.forget()

    def settle(self, timeout_s: float) -> None:
        """Give what was changed here so far a chance to be in the cluster before it is asked.

        On a read of history, so that a program finds the version that it just saved.
        """
        if self.shipper.backlog[0]:
            patience.require()
            self.shipper.drain(timeout_s)

    def flush(self, content: Content, is_sealed: bool = False, hold_s: float = 0.0) -> None:
        """Put what is dirty of a file into the journal and on its way.

        Raises as the journal does (a full disk); then it is dirty still, and tried again.
        """
        with self.lock:
            if content.is_orphan:
                return
            known = self.tree.attr(content.ino)
            if known is not None and content.kill_mode is not None:
                self.tree.set_attr(replace(known, mode=content.mode_of(known)))
            record = content.record(is_sealed)
            if record is not None:
                self.want_lease()
                self.send(record, hold_s)
                content.recorded()
                content.has_open_version = not is_sealed

    def _settle(self, items: Sequence[Item], results: Sequence[wire.Result], seq: Seq) -> None:
        """Records are through: let what is known follow. Shipper's thread."""
        for first in range(0, len(items), _SETTLED_AT_ONCE):
            if first:
                time.sleep(_BREATH_S)
            part = range(first, min(first + _SETTLED_AT_ONCE, len(items)))
            with self.lock:
                self._advance(items[first], seq)
                for i in part:
                    item = items[i]
                    if isinstance(item, Change):
                        self._settle_one(item, results[i], seq)
                    else:  # of an earlier process
                        item.done(item, results[i], seq)
                if part.stop == len(items):
                    self.room.is_left(self.shipper.quota_left)
                self.feed_moved.notify_all()
            for i in part:
                item = items[i]
                if isinstance(item, Change) and item.outcome is not None:
                    item.outcome.set_result((results[i], seq))

    def _settle_one(self, item: Change, result: wire.Result, seq: Seq) -> None:
        """Let the tree and the file's committed state follow a record. Hold the lock."""
        if item.apply is not None and not result.kind:
            item.apply(seq)
        self.tree.let_go(item.names, item.inos, Seq(0) if result.kind else seq)
        if result.kind:
            self._unlearn(item.names, item.inos)
        content = None if item.names else self.contents.get(ino_of(item.record))
        if content is None:
            return
        content.pending -= 1
        content.seals -= type(item.record) is wire.Seal
        if content.write_sent is item:
            content.write_sent = None
        if not result.kind:
            self._settle_done(content, item, result, seq)
        else:
            self._settle_refused(content, item, result)
        if content.is_stale and not content.is_active:
            self._forget_file(content)
        if content.is_orphan:
            self.drop_content(content)

    def _settle_refused(self, content: Content, item: Change, result: wire.Result) -> None:
        record, kind = item.record, Kind(result.kind)
        if kind is not Kind.NOT_FOUND or self.shipper.broken is not None:
            content.error = EverfoldError(kind, result.message)
            if self.shipper.broken is not None:
                return  # the journal keeps it, and the next mount sends it
        if isinstance(record, StagedWrite):
            if content.is_orphan:  # a name that it was to get was taken, perhaps
                content.unsent(record)
            else:
                content.refused(record, item.holes)
        if kind is not Kind.NOT_FOUND:
            content.is_stale = True
            return
        attr = self.tree.attr(content.ino)
        if attr is not None and not content.is_orphan:
            self.orphan(content, attr, Seq(max(1, self.feed_seq - 1)))

    def _unlearn(self, names: Names, inos: Sequence[Ino]) -> None:
        """A change was refused: what the tree may have made of it is asked for anew."""
        for parent, name in names:
            self.tree.forget_name(parent, name)
            self.notifier.forget_entry(parent, name)
        for ino in inos:
            if names and not self.tree.is_held(ino):
                self.tree.forget_attr(ino)
                self.notifier.forget_attr(ino)

    def _settle_done(self, content: Content, item: Change, result: wire.Result, seq: Seq) -> None:
        record = item.record
        attr = self.tree.attr(content.ino)
        if isinstance(record, StagedWrite) and isinstance(item.shipped, wire.Write):
            content.committed(record, item.shipped.extents, item.holes)
            content.committed_size = record.size
            content.base = result.version or content.base
            if attr is not None:
                attr = replace(
                    attr,
                    size=record.size,
                    mtime_ns=record.mtime_ns,
                    ctime_ns=max(attr.ctime_ns, record.time_ns),
                    version=content.base,
                    content=seq,
                    allocated=_allocated(content, record.size),
                )
                self.tree.set_attr(attr)
        elif isinstance(record, wire.SetAttr) and attr is not None:
            if record.mtime_ns is not None:  # a write that went before it has set its own
                self.tree.set_attr(replace(attr, mtime_ns=record.mtime_ns))
        elif isinstance(record, wire.Seal) and attr is not None and result.version:
            content.base = result.version
            self.tree.set_attr(replace(attr, version=result.version))

    def _advance(self, item: Item, seq: Seq) -> None:
        """Follow the feed's position over commits of our own, once nothing lies between."""
        if item.first_seq:
            self._own_commits.append((item.first_seq, seq))
            self.pass_own_commits()

    def pass_own_commits(self) -> None:
        """Follow the feed's position over what the feed does not tell: our own. Hold the lock."""
        own = self._own_commits
        while own and own[0][0] <= self.feed_seq + 1:
            self.feed_seq = max(self.feed_seq, own.popleft()[1])

    def _forget_file(self, content: Content) -> None:
        """Others changed the file while it was active here: read it anew. Hold the lock."""
        content.is_stale = False
        content.extents = None
        self.tree.forget_attr(content.ino)
        self.notifier.forget_data(content.ino)

    def require_room(self, content: Content, size: int) -> None:
        """Raise TOO_LARGE or QUOTA when a file may not grow to `size`.

        What is on its way may set bytes free: it is waited for before the quota refuses.
        """
        if size > self.size_max:
            raise EverfoldError(Kind.TOO_LARGE, "beyond the largest file")
        if not self.room.is_limited or content.is_orphan:
            return
        try:
            with self.lock:
                self.room.take(size - content.size)
        except EverfoldError:
            if not self.shipper.backlog[0]:
                raise
            patience.require()
            self.wait_all()
            with self.lock:
                self.room.take(size - content.size)

    def wait_room(self) -> None:
        """Slow a writer down while too many bytes wait for the cluster."""
        if self.staging.used_bytes < self.policy.backlog_max:
            return
        patience.require()
        with self.lock:
            for content in list(self.contents.values()):
                self.flush(content)
            self._await(lambda: self.staging.used_bytes < self.policy.backlog_max, _backlog())


def _allocated(content: Content, size: int) -> int:
    return content.extents.covered if content.extents is not None else size


def _closed_root(now_ns: int) -> Attr:
    """Return what the root of a folder is that nobody looked at before it was closed."""
    mode, me = stat.S_IFDIR | 0o755, os.getuid()
    return Attr(ROOT, mode, 2, me, os.getgid(), 0, now_ns, now_ns, now_ns, now_ns)


def _backlog() -> EverfoldError:
    return EverfoldError(Kind.UNAVAILABLE, "the cluster does not take the backlog")


def _not_taken() -> EverfoldError:
    return EverfoldError(Kind.TIMEOUT, "the cluster did not take the change")
