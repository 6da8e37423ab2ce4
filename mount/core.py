"""What every part of the filesystem leans on: the tree, the files' contents, the way out.

Reading: `attr` and `lookup` answer from memory, else (where the thread may wait) from the
nameserver. Changing: `submit` puts a record into the journal and on its way and returns at
once; `commit` waits for its outcome too. A change of names (`change`) is evaluated here,
applied to the tree and answered at once while this mount holds the write lease; without it,
it is applied when its commit is known. A change of bytes or attributes is applied at once in
both modes, and the file counts as *active* until its records are committed: while it is, what
others changed is noted (`is_stale`) and looked at when the last record is through.

Lock order: `Core.lock` before the locks of journal, staging and shipper. It is never held
over a call to the network. Reads of staging segments happen under it, because releasing
their bytes does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.extents import from_extents
from everfold.http import with_retries
from everfold.model import NOW, Attr, Entry, Ino, Seq
from everfold.services import Clock, NameService
from mount import patience
from mount.blockio import BlockIO
from mount.content import Content, youngest_hole
from mount.filesystem import Node
from mount.journal import Journal
from mount.lease import WriteLease
from mount.notifier import Notifier
from mount.records import Local, StagedWrite, encode, ino_of, touched_by
from mount.shipper import Item, Shipper
from mount.staging import Staging
from mount.tree import ABSENT, Tree

T = TypeVar("T")
log = logging.getLogger(__name__)

INO_RANGE = 4096
READ_DEADLINE_S = 10.0
KEPT_CONTENTS = 20_000  # closed files whose extents are remembered


@dataclass(frozen=True, slots=True)
class Policy:
    """How this mount behaves; times in seconds, sizes in bytes."""

    entry_ttl_s: float = 3600.0  # the feed invalidates, so the kernel may remember for long
    attr_ttl_s: float = 3600.0
    negative_ttl_s: float = 3600.0
    is_read_only: bool = False
    uid: int | None = None  # show everything as owned by this user
    gid: int | None = None
    leases: bool = True  # ask for the write lease; without it every change waits
    backlog_ops: int = 20_000  # changes on their way past which those who make more wait
    change_deadline_s: float = 60.0  # how long a change may wait for its commit
    dirty_max: int = 16 * 1024 * 1024  # past this a file's dirty bytes are sent on
    dirty_age_s: float = 0.5
    quiet_s: float = 5.0  # an open file without writes for so long has made a version
    backlog_max: int = 512 * 1024 * 1024  # staged bytes past which writers wait
    freshness_s: float = 2.0  # silence of the feed after which nothing is cached by the kernel
    poll_s: float = 1.0  # a quiet feed answers this often, which shows that it lives


class Unknown(Exception):
    """A change cannot be evaluated from memory; `fetch` gets what is missing, then try again."""

    def __init__(self, fetch: Callable[[], object]) -> None:
        super().__init__()
        self.fetch = fetch


class Core:
    """See the module's docstring."""

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
        self.session, self.names, self.blocks = session, names, blocks
        self.staging, self.journal, self.shipper = staging, journal, shipper
        self.lease, self.clock, self.policy = lease, clock, policy
        self.space = session.space
        self.lock = threading.RLock()  # guards tree, contents, _fresh_inos, journal order
        self.tree = Tree()
        self.contents: dict[Ino, Content] = {}
        self.notifier = Notifier()
        self.xattrs: dict[Ino, dict[bytes, bytes]] = {}  # of inodes whose attributes are known
        self.feed_seq = session.seq
        self.locks_gen = 0  # the feed's counter of locks that fell
        self.wants_lease = threading.Event()
        self.feed_moved = threading.Condition(self.lock)
        self.feed_heard = clock.monotonic()
        self._fresh_inos: tuple[Ino, Ino] = (Ino(0), Ino(0))  # [next, end)

    # ------------------------------------------------------------ reading

    def attr(self, ino: Ino) -> Attr:
        """Return the attributes of an inode, local changes included. NOT_FOUND, or STALE."""
        with self.lock:
            content = self.contents.get(ino)
            attr = self.tree.attr(ino) if content is None or content.attr is None else content.attr
            if attr is not None:
                return self._local(attr)
        patience.require()
        answer = self.read(lambda: self.names.attrs(wire.GetAttrs(self.space, [ino])))
        if not answer.attrs:
            raise EverfoldError(Kind.STALE, "the inode is gone")
        with self.lock:
            attr = answer.attrs[0]
            self.tree.install_attr(attr, answer.seq)
            return self._local(attr)

    def _local(self, attr: Attr) -> Attr:
        content = self.contents.get(attr.ino)
        if content is None or not content.is_active:
            return attr
        return msgspec.structs.replace(
            attr,
            size=content.size,
            mtime_ns=content.mtime_ns,
            ctime_ns=max(attr.ctime_ns, content.time_ns),
        )

    def shown(self, attr: Attr) -> Attr:
        """Return attributes as this mount shows them (owner mapping)."""
        policy = self.policy
        if policy.uid is None and policy.gid is None:
            return attr
        return msgspec.structs.replace(
            attr,
            uid=attr.uid if policy.uid is None else policy.uid,
            gid=attr.gid if policy.gid is None else policy.gid,
        )

    @property
    def is_live(self) -> bool:
        """Tell whether the feed is heard, so that the kernel may remember what it is told."""
        return self.clock.monotonic() - self.feed_heard < self.policy.freshness_s

    def node(self, attr: Attr) -> Node:
        """Return an inode as the kernel gets it."""
        if self.is_live:
            return Node(self.shown(attr), self.policy.entry_ttl_s, self.policy.attr_ttl_s)
        return Node(self.shown(attr), 0.0, 0.0)

    def child(self, parent: Ino, name: bytes) -> Attr | None:
        """Return what a name leads to, None when there is no such name."""
        with self.lock:
            ino = self.tree.child(parent, name)
            if ino == ABSENT:
                return None
            attr = self.tree.attr(ino) if ino is not None else None
            if attr is not None:
                return self._local(attr)
        patience.require()
        answer = self.read(lambda: self.names.lookup(wire.Lookup(self.space, parent, name)))
        with self.lock:
            self.tree.install_entry(parent, name, answer.entry, answer.seq)
            return None if answer.entry is None else self._local(answer.entry.attr)

    def require_child(self, parent: Ino, name: bytes) -> Attr:
        """Return what a name leads to; NOT_FOUND when there is no such name."""
        attr = self.child(parent, name)
        if attr is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such name")
        return attr

    def listing(self, ino: Ino) -> tuple[Ino, list[tuple[bytes, Attr]]]:
        """Return (the directory's parent, its names with attributes)."""
        with self.lock:
            known = self._known_listing(ino)
        if known is not None:
            return known
        patience.require()
        parent, entries, seq = self._fetch_listing(ino)
        with self.lock:
            self.tree.install_listing(ino, parent, entries, seq)
            known = self._known_listing(ino)  # with what is on its way from here
            if known is not None:
                return known
            return parent, [(entry.name, self._local(entry.attr)) for entry in entries]

    def _known_listing(self, ino: Ino) -> tuple[Ino, list[tuple[bytes, Attr]]] | None:
        known = self.tree.listing(ino)
        if known is None or not known[0]:
            return None
        pairs = [(name, self.tree.attr(child)) for name, child in known[1]]
        found = [(name, self._local(attr)) for name, attr in pairs if attr is not None]
        return (known[0], found) if len(found) == len(pairs) else None

    def _fetch_listing(self, ino: Ino) -> tuple[Ino, list[Entry], Seq]:
        entries: list[Entry] = []
        after, seq = b"", NOW
        while True:
            ask = wire.ListDir(self.space, ino, after=after)
            page = self.read(lambda ask=ask: self.names.listdir(ask))  # type: ignore[misc]
            entries.extend(page.entries)
            seq = min(seq, page.seq) if seq else page.seq  # true as of the first page only
            if not page.more:
                return page.parent, entries, seq
            after = page.entries[-1].name

    def load_extents(self, content: Content) -> None:
        """Fetch a file's committed extents unless they are there."""
        while True:
            with self.lock:
                if content.extents is not None:
                    return
            patience.require()
            ask = wire.GetExtents(self.space, content.ino, seq=content.read_seq)
            answer = self.read(lambda: self.names.extents(ask))  # noqa: B023
            self.blocks.learn(answer.where, [])
            with self.lock:
                if self.tree.touched_after(content.ino, answer.seq) and not content.read_seq:
                    continue
                if content.extents is None:
                    content.extents = from_extents(answer.extents)
                return

    def refresh(self, content: Content) -> None:
        """Let an open file that others may have changed follow its committed attributes."""
        if not content.is_active:
            attr = self.attr(content.ino)
            with self.lock:
                if not content.is_active:
                    content.follow(attr)

    def read(self, call: Callable[[], T]) -> T:
        """Ask the nameserver; a passing failure is tried again until `READ_DEADLINE_S`."""
        return with_retries(lambda _left: call(), READ_DEADLINE_S)

    # ------------------------------------------------------------ contents

    def content(self, attr: Attr) -> Content:
        """Return the state of a file's bytes, made when there is none. Hold the lock."""
        content = self.contents.get(attr.ino)
        if content is None:
            content = Content(attr, self.staging.release)
            self.contents[attr.ino] = content
            if len(self.contents) > KEPT_CONTENTS:
                self._shed()
        elif not content.is_active:
            content.follow(attr)
        return content

    def _shed(self) -> None:
        """Forget the oldest half of the files that nobody has open."""
        idle = [c for c in self.contents.values() if not c.handles and not c.is_active]
        for content in idle[: len(idle) // 2 + 1]:
            del self.contents[content.ino]

    def drop_content(self, content: Content) -> None:
        """Let go of what a closed file without a name still holds. Hold the lock."""
        if content.is_orphan and not content.handles and not content.pending:
            content.discard()
            self.tree.forget_attr(content.ino)
            if self.contents.get(content.ino) is content:
                del self.contents[content.ino]

    def orphan(self, content: Content, attr: Attr, seq: Seq) -> None:
        """The last name of an open file is gone: from now on its changes stay here.

        `seq`: the last commit at which the nameserver knew the file. Hold the lock.
        """
        content.is_orphan = True
        content.attr = msgspec.structs.replace(self._local(attr), nlink=0)
        content.read_seq = seq

    # ------------------------------------------------------------ changing

    def check_writable(self) -> None:
        """Raise READ_ONLY on a read-only mount, and what stopped the shipper if it was stopped."""
        if self.policy.is_read_only:
            raise EverfoldError(Kind.READ_ONLY, "the folder is mounted read-only")
        if self.shipper.broken is not None:
            raise self.shipper.broken

    def change(
        self, op: wire.AnyOp, check: Callable[[], None], apply: Callable[[Seq], None]
    ) -> None:
        """Make a change of names: at once under the write lease, else once it is committed.

        `check` raises what refuses the change as far as memory tells, or `Unknown`; it runs
        under the lease only. `apply` lets the tree follow; it gets the commit number, or NOW
        when there is none yet. Both are called with the lock held.
        """
        self.lease.want()
        while self.lease.held:
            self._wait_turn()
            try:
                with self.lock:
                    if not self.lease.held:
                        break
                    check()
                    self.submit(op)
                    apply(NOW)
                    return
            except Unknown as unknown:
                unknown.fetch()
        self.wants_lease.set()
        _, seq = self.commit(op)
        with self.lock:
            apply(seq)

    def _wait_turn(self) -> None:
        """Slow down whoever changes names while too many changes wait for the cluster."""
        if self.shipper.queued < self.policy.backlog_ops:
            return
        patience.require()
        with self.lock:
            ready = self.feed_moved.wait_for(
                lambda: self.shipper.queued < self.policy.backlog_ops,
                self.policy.change_deadline_s,
            )
        if not ready:
            raise EverfoldError(Kind.UNAVAILABLE, "the cluster does not take the backlog")

    def known_child(self, parent: Ino, name: bytes) -> Ino | None:
        """Return what a name leads to as far as memory tells; `Unknown`. Hold the lock."""
        ino = self.tree.child(parent, name)
        if ino is None:
            raise Unknown(lambda: self.child(parent, name))
        return None if ino == ABSENT else ino

    def known_empty(self, ino: Ino) -> bool:
        """Tell whether a directory is empty; `Unknown`. Hold the lock."""
        known = self.tree.listing(ino)
        if known is None:
            raise Unknown(lambda: self.listing(ino))
        return not known[1]

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

    def submit(self, *records: Local, hold_s: float = 0.0) -> Future[tuple[wire.Result, Seq]]:
        """Journal records and send them on their way, in one commit.

        The future tells what became of the first. The lock is taken here, so that the
        journal's order is the order of the changes.
        """
        outcome: Future[tuple[wire.Result, Seq]] = Future()
        holes = youngest_hole()

        def done(item: Item, result: wire.Result, seq: Seq) -> None:
            self._settle(item, result, seq, holes)
            if item.number == first:
                outcome.set_result((result, seq))

        with self.lock:
            first = self.journal.append([encode(record) for record in records])
            until = self.clock.monotonic() + hold_s if hold_s else 0.0
            items = []
            for number, record in enumerate(records, first):
                self._expect(record, number)
                items.append(
                    Item(
                        number,
                        record,
                        done,
                        epoch=self.lease.held,
                        hold_until=until,
                        is_glued=number > first,
                    )
                )
            self.shipper.submit(items)
        return outcome

    def _expect(self, record: Local, number: int) -> None:
        self.tree.hold(*touched_by(record))
        content = self.contents.get(ino_of(record))
        if content is not None:
            content.pending += 1
            content.last_number = number
            if isinstance(record, StagedWrite):
                content.last_write_number = number

    def commit(self, record: Local) -> tuple[wire.Result, Seq]:
        """Submit a change and wait until it is in the cluster; raise what refused it.

        TIMEOUT after `change_deadline_s`: the change stays in the journal and may still be
        applied, as after a crash.
        """
        patience.require()
        outcome = self.submit(record)
        self.shipper.hurry(self.journal.next_number - 1)
        try:
            result, seq = outcome.result(self.policy.change_deadline_s)
        except FutureTimeout:
            raise EverfoldError(Kind.TIMEOUT, "the cluster did not take the change") from None
        result.check()
        return result, seq

    def wait_number(self, content: Content) -> None:
        """Wait until all records of a file are in the cluster; raise what befell one."""
        with self.lock:
            if content.pending:
                patience.require()
                self.shipper.hurry(content.last_number)
                ready = self.feed_moved.wait_for(
                    lambda: content.pending == 0, self.policy.change_deadline_s
                )
                if not ready:
                    raise EverfoldError(Kind.TIMEOUT, "the cluster did not take the change")
            if content.error is not None:
                err, content.error = content.error, None
                raise err

    def wait_all(self) -> None:
        """Wait until every change journalled so far is in the cluster."""
        number = self.journal.next_number - 1
        if self.shipper.committed_number >= number or not self.shipper.backlog[0]:
            return
        patience.require()
        self.shipper.hurry(number)
        with self.lock:
            ready = self.feed_moved.wait_for(
                lambda: self.shipper.committed_number >= number, self.policy.change_deadline_s
            )
        if not ready:
            raise EverfoldError(Kind.TIMEOUT, "the cluster did not take the changes")

    def settle(self, timeout_s: float) -> None:
        """Give what was changed here so far a chance to be in the cluster before it is asked.

        On a read of history, so that a program finds the version that it just saved.
        """
        if self.shipper.backlog[0]:
            patience.require()
            self.shipper.drain(timeout_s)

    def flush(self, content: Content, is_sealed: bool = False, hold_s: float = 0.0) -> None:
        """Put what is dirty of a file into the journal and on its way."""
        with self.lock:
            if content.is_orphan:
                return
            record = content.take(is_sealed)
            if record is not None:
                content.has_open_version = not is_sealed
                self.submit(record, hold_s=hold_s)

    def _settle(self, item: Item, result: wire.Result, seq: Seq, holes: int) -> None:
        """A record is through: let its file's committed state follow. Shipper's thread."""
        record = item.record
        ino = ino_of(record)
        with self.lock:
            names, inos = touched_by(record)
            self.tree.let_go(names, inos, Seq(0) if result.kind else seq)
            if result.kind:
                self._unlearn(names, inos)
            self._advance(item, seq)
            self.feed_moved.notify_all()
            content = self.contents.get(ino) if ino else None
            if content is None:
                return
            content.pending -= 1
            kind = Kind(result.kind) if result.kind else None
            if kind is None:
                self._settle_done(content, item, result, seq, holes)
            elif kind is Kind.NOT_FOUND:
                if isinstance(record, StagedWrite):
                    content.refused(record)
                attr = self.tree.attr(ino)
                if attr is not None and not content.is_orphan:
                    self.orphan(content, attr, Seq(max(1, self.feed_seq - 1)))
            elif self.shipper.broken is None:
                if isinstance(record, StagedWrite):
                    content.refused(record)
                content.is_stale = True
                content.error = EverfoldError(kind, result.message)
            else:
                content.error = EverfoldError(kind, result.message)
            if not content.is_active and content.is_stale:
                self._forget_file(content)
            self.drop_content(content)

    def _unlearn(self, names: list[tuple[Ino, bytes]], inos: list[Ino]) -> None:
        """A change was refused: what the tree may have made of it is asked for anew."""
        for parent, name in names:
            self.tree.forget_name(parent, name)
            self.notifier.forget_entry(parent, name)
        for ino in inos:
            if names and not self.tree.is_held(ino):
                self.tree.forget_attr(ino)
                self.notifier.forget_attr(ino)

    def _settle_done(
        self, content: Content, item: Item, result: wire.Result, seq: Seq, holes: int
    ) -> None:
        record = item.record
        attr = self.tree.attr(content.ino)
        if isinstance(record, StagedWrite) and isinstance(item.shipped, wire.Write):
            content.committed(record, item.shipped.extents, holes)
            content.base = result.version or content.base
            if attr is not None:
                attr = msgspec.structs.replace(
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
                self.tree.set_attr(msgspec.structs.replace(attr, mtime_ns=record.mtime_ns))
        elif isinstance(record, wire.Seal) and attr is not None and result.version:
            content.base = result.version
            self.tree.set_attr(msgspec.structs.replace(attr, version=result.version))

    def _advance(self, item: Item, seq: Seq) -> None:
        """Follow the feed's position over commits of our own: nothing lies between."""
        if item.first_seq and item.first_seq <= self.feed_seq + 1 <= seq:
            self.feed_seq = seq

    def _forget_file(self, content: Content) -> None:
        """Others changed the file while it was active here: read it anew. Hold the lock."""
        content.is_stale = False
        content.extents = None
        self.tree.forget_attr(content.ino)
        self.notifier.forget_data(content.ino)

    # ------------------------------------------------------------ what others changed

    def attr_changed(self, ino: Ino, seq: Seq) -> None:
        """Another machine changed attributes. Hold the lock."""
        if not self.tree.touch_ino(ino, seq):
            return
        content = self.contents.get(ino)
        if content is not None and content.is_active:
            content.is_stale = True
            return
        self.tree.forget_attr(ino)
        self.xattrs.pop(ino, None)
        self.notifier.forget_attr(ino)

    def content_changed(self, ino: Ino, seq: Seq, offset: int = 0, length: int = 0) -> None:
        """Another machine changed bytes (length 0: to the end). Hold the lock."""
        content = self.contents.get(ino)
        self.attr_changed(ino, seq)
        if content is None or not content.is_active:
            if content is not None:
                content.extents = None
            self.notifier.forget_data(ino, offset, length)

    def inode_gone(self, ino: Ino, seq: Seq) -> None:
        """Another machine removed the last name. An open file stays readable. Hold the lock."""
        content = self.contents.get(ino)
        if content is not None and not content.is_orphan and content.handles:
            attr = self.tree.attr(ino) or Attr(
                ino=ino,
                mode=0o100600,
                nlink=0,
                uid=0,
                gid=0,
                size=content.size,
                atime_ns=content.mtime_ns,
                mtime_ns=content.mtime_ns,
                ctime_ns=content.time_ns,
                btime_ns=content.time_ns,
            )
            self.orphan(content, attr, Seq(seq - 1))
        self.tree.touch_ino(ino, seq)
        self.tree.forget_attr(ino)
        self.tree.forget_directory(ino)

    def wait_room(self) -> None:
        """Slow a writer down while too many bytes wait for the cluster."""
        if self.staging.used_bytes < self.policy.backlog_max:
            return
        patience.require()
        with self.lock:
            for content in list(self.contents.values()):
                self.flush(content)
            ready = self.feed_moved.wait_for(
                lambda: self.staging.used_bytes < self.policy.backlog_max,
                self.policy.change_deadline_s,
            )
        if not ready:
            raise EverfoldError(Kind.UNAVAILABLE, "the cluster does not take the backlog")


def _allocated(content: Content, size: int) -> int:
    return content.extents.covered if content.extents is not None else size
