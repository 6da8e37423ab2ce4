"""What this mount knows: the tree, the files' contents, and the nameserver behind them.

`attr`, `child` and `listing` answer from memory, else (where the thread may wait) from the
nameserver; local changes that are on their way are included. What other machines changed is
forgotten here (`attr_changed`, `content_changed`, `inode_gone`), and the kernel is told.

Lock order: `lock` before the locks of journal, staging and shipper. It is never held over a
call to the network. Reads of staging segments happen under it, because releasing their bytes
does.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.extents import from_extents
from everfold.http import with_retries
from everfold.model import NOW, ROOT, SIZE_MAX, Attr, Entry, Ino, Seq
from everfold.services import Clock, NameService
from mount import patience
from mount.blockio import BlockIO
from mount.content import Content
from mount.filesystem import Names, Node
from mount.notifier import Notifier
from mount.policy import Policy
from mount.staging import Staging
from mount.tree import ABSENT, Tree
from mount.walking import NAMES_MAX, Walk, Walking

T = TypeVar("T")
log = logging.getLogger(__name__)

READ_DEADLINE_S = 10.0
_GONE_S = 2.0  # how long the feed may take to tell of a deletion that an answer shows
_LISTING_ATTEMPTS = 3  # before a listing is answered as the nameserver gave it
_WALKED_MAX = 10_000  # directories whose unknown names are counted
LISTING_MAX = 50_000  # names of a directory past which it is asked for once only
KEPT_CONTENTS = 20_000  # closed files whose extents are remembered


class Unknown(Exception):
    """A change cannot be evaluated from memory; `fetch` gets what is missing, then try again."""

    def __init__(self, fetch: Callable[[], object]) -> None:
        super().__init__()
        self.fetch = fetch


class Knowledge(ABC):
    """See the module's docstring."""

    def __init__(
        self,
        session: wire.Session,
        names: NameService,
        blocks: BlockIO,
        staging: Staging,
        clock: Clock,
        policy: Policy,
    ) -> None:
        self.session, self.names, self.blocks = session, names, blocks
        self.staging, self.clock, self.policy = staging, clock, policy
        self.space = session.space
        self.lock = threading.RLock()  # guards tree, contents, xattrs, the journal's order
        self.tree = Tree()
        self.contents: dict[Ino, Content] = {}
        self.xattrs: dict[Ino, dict[bytes, bytes]] = {}  # of inodes whose attributes are known
        self.notifier = Notifier()
        self.walking = Walking(
            self.space,
            self.tree,
            self.lock,
            lambda ask: self.read(lambda: self.names.list_many(ask)),
        )
        self._unlisted: dict[Ino, int] = {}  # unknown names to go until a directory is listed
        self.feed_seq = session.seq
        self.locks_gen = 0  # the feed's counter of locks that fell
        self.feed_moved = threading.Condition(self.lock)
        self.feed_heard = clock.monotonic()

    # ------------------------------------------------------------ reading

    @abstractmethod
    def shut_out(self, why: EverfoldError) -> None:
        """The cluster lets this mount in no more; afterwards what the root is is known."""

    def attr(self, ino: Ino) -> Attr:
        """Return the attributes of an inode, local changes included. NOT_FOUND, or STALE."""
        with self.lock:
            content = self.contents.get(ino)
            if content is None:
                attr = self.tree.attr(ino)
            else:
                attr = content.attr or self.tree.attr(ino)
                if attr is not None and content.is_active:
                    return _with(content, attr)
            if attr is not None:
                return attr
        if content is not None and content.is_orphan:
            return self._orphan_attr(content)
        patience.require()
        try:
            answer = self.read(lambda: self.names.attrs(wire.GetAttrs(self.space, [ino])))
        except EverfoldError as err:
            if ino != ROOT or err.kind is not Kind.UNAUTHENTICATED:
                raise
            self.shut_out(err)  # the feed hears of it soon; until then tools may ask, too
            return self.attr(ROOT)
        if not answer.attrs:
            if content is not None and self._is_orphaned_soon(content):
                return self._orphan_attr(content)
            raise EverfoldError(Kind.STALE, "the inode is gone")
        with self.lock:
            attr = answer.attrs[0]
            self.tree.install_attr(attr, answer.seq)
            return self._local(attr)

    def _local(self, attr: Attr) -> Attr:
        content = self.contents.get(attr.ino)
        return attr if content is None or not content.is_active else _with(content, attr)

    def shown(self, attr: Attr) -> Attr:
        """Return attributes as this mount shows them (owner mapping)."""
        policy = self.policy
        if policy.uid is None and policy.gid is None:
            return attr
        return replace(
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
        policy = self.policy
        if policy.uid is not None or policy.gid is not None:
            attr = self.shown(attr)
        if self.clock.monotonic() - self.feed_heard < policy.freshness_s:  # `is_live`
            return Node(attr, policy.entry_ttl_s, policy.attr_ttl_s)
        return Node(attr, 0.0, 0.0)

    def child(self, parent: Ino, name: bytes) -> Attr | None:
        """Return what a name leads to, None when there is no such name."""
        with self.lock:
            ino = self.tree.child(parent, name)
            if ino == ABSENT:
                return None
            attr = self.tree.attr(ino) if ino is not None else None
            if attr is not None:
                if parent in self.walking.ahead:
                    self.walking.arrives(parent)
                return self._local(attr)
        patience.require()
        if ino is None and (self.walking.awaits(parent) or self._learns(parent)):
            with self.lock:
                ino = self.tree.child(parent, name)
                if ino == ABSENT:
                    return None
                attr = self.tree.attr(ino) if ino is not None else None
                if attr is not None:
                    return self._local(attr)
        answer = self.read(lambda: self.names.lookup(wire.Lookup(self.space, parent, name)))
        with self.lock:
            self.tree.install_entry(parent, name, answer.entry, answer.seq)
            ino = self.tree.child(parent, name)  # not what was answered if a change is on its way
            attr = self.tree.attr(ino) if ino is not None else None
            if attr is None and answer.entry is not None and ino in (None, answer.entry.attr.ino):
                attr = answer.entry.attr
            return None if attr is None else self._local(attr)

    def _learns(self, directory: Ino) -> bool:
        """Count a name that was not known, and ask for all of the directory's if that pays.

        At the second one, or the first where a program walks; after that when as many were
        asked for as a listing is worth: one costs 0.25 to 0.4 ms, a hundred together 0.9.
        """
        with self.lock:
            left = self._unlisted.get(directory, 2) - 1
            if len(self._unlisted) > _WALKED_MAX:
                self._unlisted.clear()
            self._unlisted[directory] = left
            is_large = left > SIZE_MAX // 2  # as its last listing told
            walk = None if is_large else self.walking.expects(directory)
        is_due = walk is not None or left == 0
        if is_due:
            self._learn_directory(directory, walk)
        return is_due

    def _learn_directory(self, directory: Ino, walk: Walk | None) -> None:
        """Ask for the names of a directory, with attributes, if it is not too large."""
        ask = wire.ListDir(self.space, directory, limit=NAMES_MAX)
        try:
            page = self.read(lambda: self.names.listdir(ask))
        except EverfoldError as err:
            if err.kind not in (Kind.NOT_FOUND, Kind.NOT_DIR):
                raise
            return  # it is gone: what that means for a name, the lookup tells
        with self.lock:
            if not page.more:
                self.tree.install_listing(directory, page.parent, page.entries, page.seq)
                self.walking.listed(walk, directory, page.parent, page.entries)
            self._unlisted[directory] = SIZE_MAX if page.more else 2 + len(page.entries) // 16

    def require_child(self, parent: Ino, name: bytes) -> Attr:
        """Return what a name leads to; NOT_FOUND when there is no such name."""
        attr = self.child(parent, name)
        if attr is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such name")
        return attr

    def listing(self, ino: Ino) -> tuple[Ino, Names, int]:
        """Return (the directory's parent, its names with what they lead to, `Tree.changed`)."""
        with self.lock:
            known = self._known_listing(ino)
            if known is not None and ino in self.walking.ahead:
                self.walking.arrives(ino)
        if known is not None:
            return known
        patience.require()
        if self.walking.awaits(ino):
            with self.lock:
                known = self._known_listing(ino)
            if known is not None:
                return known
        with self.lock:
            walk = self.walking.expects(ino)
        for _ in range(_LISTING_ATTEMPTS):
            parent, entries, seq = self._fetch_listing(ino)
            with self.lock:
                is_believed = self.tree.install_listing(ino, parent, entries, seq)
                changed = self.tree.changed(ino) if is_believed else 0
                known = self._known_listing(ino)  # with what is on its way from here
                if known is not None:
                    self.walking.listed(walk, ino, parent, entries)
                    return known
            if len(entries) > LISTING_MAX:
                break
        # It changes faster than it can be asked for, or is too large to be remembered.
        names = [(entry.name, entry.attr.ino, entry.attr.mode) for entry in entries]
        return parent, names, changed

    def _known_listing(self, ino: Ino) -> tuple[Ino, Names, int] | None:
        known = self.tree.listing(ino)
        if known is None or not known[0]:
            return None
        names: Names = []
        attr_of = self.tree.attr
        for name, child in known[1]:
            attr = attr_of(child)
            if attr is None:
                return None
            names.append((name, child, attr.mode))
        return known[0], names, self.tree.changed(ino)

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
                known = self.tree.attr(content.ino)
                if known is not None and not known.version and not content.read_seq:
                    content.load_nothing()  # never written; the cluster may not even know it yet
                if content.extents is not None:
                    return
            patience.require()
            ask = wire.GetExtents(self.space, content.ino, seq=content.read_seq)
            try:
                answer = self.read(lambda: self.names.extents(ask))  # noqa: B023
            except EverfoldError as err:
                if err.kind is not Kind.NOT_FOUND or ask.seq or not self._is_orphaned_soon(content):
                    raise
                continue
            self.blocks.learn(answer.where, [])
            with self.lock:
                if content.read_seq or not self.tree.touched_after(content.ino, answer.seq):
                    if content.extents is None:
                        content.extents = from_extents(answer.extents)
                    return

    def load_many(self, contents: Sequence[Content]) -> None:
        """Fetch the committed extents of small files, as far as one answer tells them."""
        patience.require()
        ask = wire.GetManyExtents(self.space, [content.ino for content in contents])
        answer = self.read(lambda: self.names.many_extents(ask))
        self.blocks.learn(answer.where, [])
        with self.lock:
            for content in contents:
                found = answer.files.get(content.ino)
                is_newer = self.tree.touched_after(content.ino, answer.seq)
                if found and content.extents is None and not is_newer and not content.read_seq:
                    content.extents = from_extents(found)

    def refresh(self, content: Content) -> None:
        """Let an open file that others may have changed follow its committed attributes."""
        if content.is_orphan:
            if content.attr is None:
                self._orphan_attr(content)
        elif not content.is_active:
            attr = self.attr(content.ino)
            with self.lock:
                if not content.is_active:
                    content.follow(attr)

    def read(self, call: Callable[[], T]) -> T:
        """Ask the nameserver; a passing failure is tried again until `READ_DEADLINE_S`."""
        return with_retries(lambda _left: call(), READ_DEADLINE_S)

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
        idle = [content for content in self.contents.values() if content.is_idle]
        for content in idle[: len(idle) // 2 + 1]:
            del self.contents[content.ino]

    def drop_content(self, content: Content) -> None:
        """Let go of what a closed file without a name still holds. Hold the lock."""
        if content.is_orphan and not content.handles and not content.pending:
            content.discard()
            self.tree.forget_attr(content.ino)
            if self.contents.get(content.ino) is content:
                del self.contents[content.ino]

    def orphan(self, content: Content, attr: Attr | None, seq: Seq) -> None:
        """The last name of an open file is gone: from now on its changes stay here.

        `seq`: the last commit at which the nameserver knew the file; as of then its attributes
        are asked for when they are not known (None). Hold the lock.
        """
        if attr is not None:
            if not content.is_active:
                content.follow(attr)
            content.attr = replace(self._local(attr), nlink=0)
        content.is_orphan = True
        content.read_seq = seq

    def _is_orphaned_soon(self, content: Content) -> bool:
        """Tell whether an open file that the nameserver knows no more was deleted elsewhere.

        The feed says so, and as of when it can still be read.
        """
        with self.lock:
            if content.handles:
                self.feed_moved.wait_for(lambda: content.is_orphan, _GONE_S)
            return content.is_orphan

    def _orphan_attr(self, content: Content) -> Attr:
        """Ask for the attributes that a file had when it lost its last name."""
        patience.require()
        ask = wire.GetAttrs(self.space, [content.ino], content.read_seq)
        answer = self.read(lambda: self.names.attrs(ask))
        if not answer.attrs:
            raise EverfoldError(Kind.STALE, "the inode is gone")
        with self.lock:
            if content.attr is None:
                if not content.is_changed and not content.pending:
                    content.follow(answer.attrs[0])
                content.attr = replace(answer.attrs[0], nlink=0)
            return self._local(content.attr)

    def adopt(self, content: Content) -> None:
        """The opposite of `orphan`: a name leads to the file. Hold the lock."""
        content.is_orphan = False
        content.attr = None
        content.read_seq = NOW

    # ------------------------------------------------------------ what others changed

    def attr_changed(self, ino: Ino, seq: Seq) -> None:
        """Another machine changed attributes. Hold the lock.

        Also when a later commit of this mount is known already: it need not have seen this one.
        """
        self.tree.touch_ino(ino, seq)
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
            self.orphan(content, self.tree.attr(ino), Seq(seq - 1))
        self.tree.touch_ino(ino, seq)
        self.tree.forget_attr(ino)
        self.tree.forget_directory(ino)


def _with(content: Content, attr: Attr) -> Attr:
    """Return the attributes of a file with the local changes of its bytes."""
    return replace(
        attr,
        mode=content.mode_of(attr),
        size=content.size,
        mtime_ns=content.mtime_ns,
        ctime_ns=max(attr.ctime_ns, content.time_ns),
    )
