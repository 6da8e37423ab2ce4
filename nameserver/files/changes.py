"""Changing a space for callers without a mount: one transaction, all of it or nothing.

The names are looked up in the very transaction that changes them, so nobody can come between. To
the tree it is one mount, called `HTTP`, whose operations are numbered on under the lock of the
space's row; another's write lease is recalled as for any mount.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import SIZE_MAX, Ino, MountId, SpaceId
from everfold.services import Clock
from nameserver.blocks import Ledger
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.files.browse import View
from nameserver.files.intake import Content
from nameserver.files.items import Item
from nameserver.files.paths import FileId, no_such_file, shown
from nameserver.leases import Leases
from nameserver.policy import Policy
from nameserver.tree import history, spaces
from nameserver.tree.batch import Author
from nameserver.tree.commit import Committer

HTTP: Final = MountId("http")
OPS: Final = 10_000  # of one commit, of a change that may be done in several
_FILE_MODE: Final = stat.S_IFREG | 0o644
_FOLDER_MODE: Final = stat.S_IFDIR | 0o755
_SETTLE_S: Final = 10.0  # how long a commit waits for nodes that have its blocks
_LOOK_S: Final = 0.2
_TOGETHER_NS: Final = 60_000_000_000  # what went so shortly before its directory went with it


class Draft:
    """Operations that are being put together, within the transaction that will apply them."""

    def __init__(self, cx: Cx, space: SpaceId, now_ns: int) -> None:
        self.view = View(cx, space)
        self.ops: list[wire.AnyOp] = []
        self.cx = self._cx = cx
        self._space = space
        self._now_ns = now_ns
        self._made: dict[tuple[Ino, bytes], Item] = {}

    # ------------------------------------------------------------ files

    def write(self, names: Sequence[bytes], content: Content) -> None:
        """Let a path have this content: as a new version, or a new file (and its folders)."""
        there = self._there(names)
        if there is None:
            folder = self.folder(names[:-1])
            there = self._make(folder, names[-1], _FILE_MODE)
        elif there.is_dir:
            raise EverfoldError(Kind.IS_DIR, "there is a folder of that name", shown(names))
        self.ops.append(
            wire.Write(
                there.ino, there.version, content.size, self._now_ns, self._now_ns,
                content.extents, cut=0,
            )
        )  # fmt: skip

    def restore(self, item: Item, number: int) -> None:
        """Make an old version of a file its content again."""
        self.ops.append(wire.Restore(item.parent, item.name, number, Ino(0), self._now_ns))

    # ------------------------------------------------------------ names

    def folder(self, names: Sequence[bytes]) -> Item:
        """Return the directory at a path, which is made when it is not there; NOT_DIR."""
        here = self.view.root()
        for depth, name in enumerate(names, 1):
            found = self._made.get((here.ino, name)) or self.view.child(here.ino, name)
            here = found or self._make(here, name, _FOLDER_MODE)
            if not here.is_dir:
                raise EverfoldError(Kind.NOT_DIR, "not a folder", shown(names[:depth]))
        return here

    def make_folder(self, names: Sequence[bytes]) -> Item:
        """Make a directory, and those above it; EXISTS."""
        if self._there(names) is not None:
            raise EverfoldError(Kind.EXISTS, "the name is taken", shown(names))
        return self.folder(names)

    def move(self, item: Item, names: Sequence[bytes], replaces: bool) -> None:
        """Give something another path; its directory must be there. EXISTS unless `replaces`."""
        folder = self.view.at(list(names[:-1]))
        flags = 0 if replaces else wire.RENAME_NOREPLACE
        self.ops.append(
            wire.Rename(
                item.parent, item.name, folder.ino, names[-1], self._now_ns, item.ino, None, flags
            )
        )

    def remove(self, item: Item, is_recursive: bool) -> bool:
        """Remove a name; a directory that is not empty only when told to. False: not all yet."""
        if item.is_dir and is_recursive:
            for below in self._below(item):
                if len(self.ops) >= OPS:
                    return False
                self._unlink(below)
            if len(self.ops) >= OPS:  # a page of a large folder may have been all of these
                return False
        self._unlink(item)
        return True

    def _unlink(self, item: Item) -> None:
        self.ops.append(wire.Unlink(item.parent, item.name, item.ino, item.is_dir, self._now_ns))

    def unlink(self, parent: Ino, name: bytes, ino: Ino) -> None:
        """Remove a name that leads to a file."""
        self.ops.append(wire.Unlink(parent, name, ino, False, self._now_ns))

    def touch(self, folder: Item) -> None:
        """Let a directory be changed now."""
        self.ops.append(wire.SetAttr(folder.ino, self._now_ns, mtime_ns=self._now_ns))

    def _below(self, folder: Item) -> Iterator[Item]:
        """Yield everything below a directory, what is within before what it is in."""
        open_: list[Iterator[Item]] = [iter(self.view.page(folder, 0, OPS).items)]
        inside: list[Item] = []
        while open_:
            item = next(open_[-1], None)
            if item is None:
                open_.pop()
                if inside:
                    yield inside.pop()
            elif item.is_dir:
                inside.append(item)
                open_.append(iter(self.view.page(item, 0, OPS).items))
            else:
                yield item

    # ------------------------------------------------------------ what is gone

    def bring_back(self, item: Item, names: Sequence[bytes]) -> None:
        """Let something deleted stand at a path again; EXISTS when that is taken.

        A directory comes back with what was deleted along with it.
        """
        if self._there(names) is not None:
            raise EverfoldError(Kind.EXISTS, "another file has taken the name", shown(names))
        folder = self.view.at(list(names[:-1]))
        waiting = [(item, folder, names[-1])]
        while waiting:
            gone, where, name = waiting.pop()
            if gone.is_dir:
                made = self._make(where, name, _FOLDER_MODE)
                inside = self.view.lost_in(gone.ino, gone.died_ns - _TOGETHER_NS)
                waiting += [(each, made, each.name) for each in inside]
            elif gone.version:
                restore = wire.Restore(
                    where.ino, name, gone.number, self._reserve(), self._now_ns,
                    gone.parent, gone.name,
                )  # fmt: skip
                self.ops.append(restore)
            else:
                self._make(where, name, gone.mode, self._target(gone))

    def _target(self, item: Item) -> bytes:
        row = history.last_inode(self._cx, item.space, item.ino)
        return bytes(row[13])

    # ------------------------------------------------------------ both

    def _there(self, names: Sequence[bytes]) -> Item | None:
        try:
            return self.view.find(list(names))
        except EverfoldError as err:
            if err.kind is Kind.NOT_FOUND:
                return None
            raise

    def _make(self, where: Item, name: bytes, mode: int, target: bytes = b"") -> Item:
        ino, now = self._reserve(), self._now_ns
        self.ops.append(
            wire.Make(where.ino, name, ino, mode, where.uid, where.gid, now, target=target)
        )
        made = where._replace(
            where=where.names, parent=where.ino, name=name, ino=ino, mode=mode, version=0
        )
        self._made[where.ino, name] = made
        return made

    def _reserve(self) -> Ino:
        return spaces.reserve(self._cx, wire.Reserve(self._space, 1)).first


Told = Sequence[bytes] | FileId | None
"""What the answer shall tell of: what is at a path then, or what has an id."""
Build = Callable[[Draft], Told]
After = Callable[[Cx], object]


def nothing_else(cx: Cx) -> None:
    """Do nothing after a change: the usual `After`."""


class Changes:
    """Commits drafts. Thread-safe."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        policy: Policy,
        ledger: Ledger,
        bell: Bell,
        leases: Leases,
    ) -> None:
        self._db, self._clock, self._bell, self._leases = db, clock, bell, leases
        self._committer = Committer(ledger, policy.min_replicas, policy.max_file_size or SIZE_MAX)

    def apply(
        self,
        space: SpaceId,
        author: Author,
        build: Build,
        stored: Sequence[wire.Stored] = (),
        after: After = nothing_else,
    ) -> Item | None:
        """Apply what `build` drafts, durably; return what it wants to tell of.

        Any operation that is refused raises, and then nothing was done. `build` may be called
        again, when another's write lease was in the way; BUSY when it stays so. `after` runs
        in the same transaction, when the operations are done.
        """
        told: list[Item | None] = []

        def commit() -> wire.Committed:
            told.clear()
            with self._db.write() as cx:
                committed = self._commit(cx, space, author, build, stored, told)
                after(cx)
                self._bell.announce(cx, space)
            return committed

        ends = self._clock.monotonic() + (_SETTLE_S if stored else 0.0)
        while True:
            ticket = self._bell.ticket(space)
            try:
                self._leases.when_free(wire.Commit(space, HTTP, 1, []), commit)
                break
            except EverfoldError as err:
                is_over = self._bell.is_stopped or self._clock.monotonic() > ends
                if err.kind is not Kind.UNAVAILABLE or is_over:
                    raise
            # a node that has just taken a block was silent for a moment: it may be back
            self._bell.wait(space, ticket, _LOOK_S)
        self._bell.ring(space)
        return told[0]

    def _commit(
        self,
        cx: Cx,
        space: SpaceId,
        author: Author,
        build: Build,
        stored: Sequence[wire.Stored],
        told: list[Item | None],
    ) -> wire.Committed:
        cx.lock_space(space)
        now = self._clock.time_ns()
        draft = Draft(cx, space, now)
        about = build(draft)
        row = cx.one("SELECT last_op FROM mount WHERE space_id = ? AND id = ?", space, HTTP)
        ask = wire.Commit(space, HTTP, row[0] + 1 if row else 1, draft.ops, list(stored))
        committed = self._committer.run(cx, ask, author, now)
        for result in committed.results:
            result.check()
        # it is no mount that could be heard of, or be missed
        cx.run("UPDATE mount SET seen_ns = 0 WHERE space_id = ? AND id = ?", space, HTTP)
        view = View(cx, space)
        if isinstance(about, FileId):
            told.append(view.by_id(about))
        elif about is not None:
            told.append(view.at(list(about)))
        else:
            told.append(None)
        return committed


def need(item: Item | None) -> Item:
    """Return what a change tells of; NOT_FOUND when it is not there any more."""
    if item is None:
        raise no_such_file("")
    return item
