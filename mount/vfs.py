"""The filesystem: inodes and open files, no FUSE.

`Vfs` implements `filesystem.Filesystem` by handing each call to the part that knows it:
names, files, listings, locks, attributes, history. It decides one thing itself: whether a
node is real or belongs to ``.versions``, where nothing can be changed.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Sequence

import msgspec

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Attr, Ino, Lock, LockKind, MountId, SpaceUsage
from mount.core import Core
from mount.feed import FeedFollower
from mount.files import Files
from mount.filesystem import VIRTUAL_INO, Caller, Changes, DirItem, Node, Opened
from mount.history import VERSIONS, HistoryTree, is_virtual
from mount.housekeeping import Housekeeper, LeaseKeeper
from mount.listings import Listings
from mount.locks import Locks
from mount.names import Names, check_name
from mount.xattrs import Xattrs

_NO_CHANGE = "history cannot be changed"


def _real(ino: Ino) -> None:
    if ino >= VIRTUAL_INO:
        raise EverfoldError(Kind.READ_ONLY, _NO_CHANGE)


def _free(name: bytes) -> None:
    if name == VERSIONS:
        raise EverfoldError(Kind.NOT_PERMITTED, "the name .versions is taken")


class Vfs:
    """See the module's docstring; each method's contract is `Filesystem`'s."""

    def __init__(self, core: Core, mount: MountId, about: dict[str, str]) -> None:
        self.core = core
        self.is_read_only = core.policy.is_read_only
        self._names = Names(core)
        self._files = Files(core)
        self._history = HistoryTree(core)
        self._xattrs = Xattrs(core, about)
        self._locks = Locks(core, self._files, mount)
        self._listings = Listings(core, is_virtual, self._history.listing, self._history.node)
        self.feed = FeedFollower(core, mount)
        self.keeper = Housekeeper(core, self._files)
        self.lease_keeper = LeaseKeeper(core, self._files, self._locks)

    def start(self) -> None:
        """Start the threads that follow the feed and tend open files."""
        self.feed.start()
        self.keeper.start()
        self.lease_keeper.start()

    def close(self) -> None:
        """Ship what is left (as far as the cluster takes it) and end the threads."""
        self.lease_keeper.close()
        self.keeper.close()
        self.feed.close()
        self.core.notifier.close()

    def tell(self, name: str, answer: Callable[[], bytes]) -> None:
        """Answer the attribute ``user.everfold.NAME`` of the root from now on."""
        self._xattrs.tell(name, answer)

    @property
    def negative_ttl(self) -> float:
        """Tell how long the kernel may remember that a name is not there."""
        return self.core.policy.negative_ttl_s if self.core.is_live else 0.0

    # ------------------------------------------------------------ names

    def lookup(self, parent: Ino, name: bytes) -> Node:
        node = self.find(parent, name)
        if node is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such name")
        return node

    def find(self, parent: Ino, name: bytes) -> Node | None:
        if parent >= VIRTUAL_INO:
            try:
                return self._virtual(self._history.lookup(parent, name))
            except EverfoldError as err:
                if err.kind is not Kind.NOT_FOUND:
                    raise
                return None
        if name == VERSIONS:
            self.core.attr(parent)
            return self._virtual(self._history.versions_of(parent))
        check_name(name)
        attr = self.core.child(parent, name)
        return None if attr is None else self.core.node(attr)

    def _virtual(self, ino: Ino) -> Node:
        node = self._history.node(ino)
        self._history.refer(ino)
        return node

    def forget(self, ino: Ino, count: int) -> None:
        if ino >= VIRTUAL_INO:
            self._history.forget(ino, count)

    def getattr(self, ino: Ino, fh: int | None = None) -> Node:
        if ino >= VIRTUAL_INO:
            return self._history.node(ino)
        return self.core.node(self.core.attr(ino))

    def setattr(self, ino: Ino, changes: Changes, fh: int | None, caller: Caller) -> Node:
        _real(ino)
        self.core.check_writable()
        if changes.size is not None:
            self._truncate(ino, changes.size, changes.kill_priv, fh)
        now = self.core.clock.time_ns()
        atime = now if changes.atime_now else changes.atime_ns
        mtime = now if changes.mtime_now else changes.mtime_ns
        wanted = (changes.mode, changes.uid, changes.gid, atime, mtime)
        if any(value is not None for value in wanted):
            attr = self._names.set_attr(
                ino,
                mode=changes.mode,
                uid=changes.uid,
                gid=changes.gid,
                atime_ns=atime,
                mtime_ns=mtime,
            )
        else:
            attr = self.core.attr(ino)
        return self.core.node(attr)

    def _truncate(self, ino: Ino, size: int, kill_priv: bool, fh: int | None) -> None:
        if fh is None:
            self._files.truncate_inode(ino, size, kill_priv)
        else:
            self._files.truncate_open(fh, size, kill_priv)

    def readlink(self, ino: Ino) -> bytes:
        attr = self.core.attr(ino)
        if not stat.S_ISLNK(attr.mode):
            raise EverfoldError(Kind.INVALID, "not a symlink")
        return attr.target

    def _make(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        caller: Caller,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Attr:
        _real(parent)
        _free(name)
        return self._names.make(parent, name, mode, caller, rdev=rdev, target=target)

    def mknod(self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller) -> Node:
        mode = mode if stat.S_IFMT(mode) else mode | stat.S_IFREG
        return self.core.node(self._make(parent, name, mode, caller, rdev))

    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Node:
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return self.core.node(self._make(parent, name, mode, caller))

    def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Node:
        mode = stat.S_IFLNK | 0o777
        return self.core.node(self._make(parent, name, mode, caller, target=target))

    def link(self, ino: Ino, new_parent: Ino, new_name: bytes) -> Node:
        _real(ino)
        _real(new_parent)
        _free(new_name)
        return self.core.node(self._names.link(ino, new_parent, new_name))

    def unlink(self, parent: Ino, name: bytes) -> None:
        _real(parent)
        _free(name)
        self._names.remove(parent, name, is_rmdir=False)

    def rmdir(self, parent: Ino, name: bytes) -> None:
        _real(parent)
        _free(name)
        self._names.remove(parent, name, is_rmdir=True)

    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        _real(new_parent)
        _free(new_name)
        if is_virtual(parent):
            check_name(new_name)
            self._history.restore(parent, name, new_parent, new_name, flags)
            return
        _free(name)
        self._names.rename(parent, name, new_parent, new_name, flags)

    # ------------------------------------------------------------ open files

    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Opened]:
        _real(parent)
        _free(name)
        try:
            mode = stat.S_IFREG | stat.S_IMODE(mode)
            attr = self._names.make(parent, name, mode, caller)
        except EverfoldError as err:
            if err.kind is not Kind.EXISTS or flags & os.O_EXCL:
                raise
            attr = self.core.require_child(parent, name)
            opened = self._files.open(attr.ino, flags)
            return self.core.node(self.core.attr(attr.ino)), opened
        return self.core.node(attr), self._files.opened_new(attr, flags)

    def tmpfile(self, parent: Ino, mode: int, flags: int, caller: Caller) -> tuple[Node, Opened]:
        _real(parent)
        self.core.check_writable()
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        attr = self._names.new_attr(self.core.attr(parent), mode, caller)
        attr = msgspec.structs.replace(attr, nlink=0)
        opened = self._files.opened_new(attr, flags, is_orphan=True)
        return self.core.node(attr), opened

    def open(self, ino: Ino, flags: int) -> Opened:
        self.core.check_let_in()
        if not is_virtual(ino):
            return self._files.open(ino, flags)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise EverfoldError(Kind.READ_ONLY, _NO_CHANGE)
        version = self._history.version_of(ino)
        attr = msgspec.structs.replace(self._history.attr(ino), ino=version.ino)
        return self._files.open_past(attr, version.seq)

    def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        self.core.check_let_in()
        return self._files.read(fh, offset, size)

    def write(self, fh: int, offset: int, data: bytes | memoryview, kill_priv: bool) -> int:
        self.core.check_let_in()
        return self._files.write(fh, offset, data, kill_priv)

    def flush(self, fh: int, lock_owner: int) -> None:
        self._locks.drop(fh, LockKind.POSIX, lock_owner)
        self._files.flush(fh)

    def release(self, fh: int, lock_owner: int, flock_release: bool) -> None:
        if flock_release:
            self._locks.drop(fh, LockKind.FLOCK, lock_owner)
        self._locks.drop_all(fh)
        self._files.release(fh)

    def fsync(self, fh: int, datasync: bool) -> None:
        self._files.fsync(fh)

    def fsyncdir(self, ino: Ino) -> None:
        """Wait until all changes made so far are committed; on the root, flush files first.

        The kernel tells no /dev/fuse server of syncfs(2); fsync of the folder takes its place.
        """
        if ino == ROOT:
            self._files.syncfs()
        elif not is_virtual(ino):
            self.core.wait_all()

    def syncfs(self) -> None:
        self._files.syncfs()

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        self._files.fallocate(fh, mode, offset, length)

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        return self._files.lseek(fh, offset, whence)

    def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        return self._files.copy_range(fh_in, offset_in, fh_out, offset_out, length)

    # ------------------------------------------------------------ directories and the rest

    def opendir(self, ino: Ino) -> int:
        return self._listings.open(ino)

    def readdir(self, fh: int, cookie: int, limit: int, plus: bool) -> Sequence[DirItem]:
        items = self._listings.read(fh, cookie, limit, plus)
        for item in items:
            if item.node is not None and is_virtual(item.ino):
                self._history.refer(item.ino)
        return items

    def releasedir(self, fh: int) -> None:
        self._listings.close(fh)

    def statfs(self) -> SpaceUsage:
        return self.keeper.usage

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        if is_virtual(ino):
            raise EverfoldError(Kind.NO_ATTR, "no such extended attribute")
        return self._xattrs.get(ino, name)

    def may_have_xattrs(self, ino: Ino) -> bool:
        return ino < VIRTUAL_INO and self.core.attr(ino).has_xattrs

    def listxattr(self, ino: Ino) -> list[bytes]:
        return [] if is_virtual(ino) else self._xattrs.list(ino)

    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int) -> None:
        _real(ino)
        self._xattrs.set(ino, name, value, flags)

    def removexattr(self, ino: Ino, name: bytes) -> None:
        _real(ino)
        self._xattrs.remove(ino, name)

    def getlk(self, fh: int, lock: Lock) -> Lock | None:
        self._files.handle(fh)
        return self._locks.test(lock)

    def setlk(self, fh: int, lock: Lock, cancel: threading.Event | None) -> None:
        self._files.handle(fh)
        self._locks.set(fh, lock, cancel)

    @property
    def root(self) -> Ino:
        """Return the inode of the folder itself."""
        return ROOT
