"""A whole filesystem in memory: the simplest correct `Filesystem`.

It is what adapters are tested on alone, and a model to compare others with. One lock over
everything; nothing waits for anything but locks.
"""

from __future__ import annotations

import functools
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

from everfold.errors import EverfoldError, Kind
from everfold.model import (
    NAME_MAX,
    ROOT,
    SIZE_MAX,
    Attr,
    Ino,
    Lock,
    LockKind,
    SpaceUsage,
)
from everfold.wire import RENAME_EXCHANGE, RENAME_NOREPLACE
from mount.filesystem import Caller, Changes, DirItem, Node, Opened
from tests.harness.memlocks import LockTable

PAGE = 4096
CAPACITY = 1 << 40
_XATTR_CREATE, _XATTR_REPLACE = 1, 2
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class Inode:
    """A file, directory, link or node, as it is now."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    nlink: int = 1
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    parent: Ino = ROOT  # of a directory
    pages: dict[int, bytearray] = field(default_factory=dict)  # absent: a hole
    names: dict[bytes, tuple[Ino, int]] = field(default_factory=dict)  # -> inode, cookie
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    references: int = 0  # the kernel's
    opens: int = 0

    @property
    def is_dir(self) -> bool:
        """Tell whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    def attr(self) -> Attr:
        """Return what stat tells."""
        return Attr(
            self.ino,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.size,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.rdev,
            len(self.pages) * PAGE,
            target=self.target,
            has_xattrs=bool(self.xattrs),
        )


@dataclass(slots=True)
class Handle:
    """An open file or directory."""

    inode: Inode
    flags: int
    posix_owners: set[int] = field(default_factory=set)


def _atomic(
    method: Callable[Concatenate[MemoryFilesystem, P], R],
) -> Callable[Concatenate[MemoryFilesystem, P], R]:
    def locked(self: MemoryFilesystem, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    functools.update_wrapper(locked, method)
    return locked


class MemoryFilesystem:
    """`mount.filesystem.Filesystem` over dicts; `ttl_s` is how long kernels may remember.

    The root directory belongs to `owner`.
    """

    def __init__(
        self,
        ttl_s: float = 3600.0,
        negative_ttl: float = 3600.0,
        is_read_only: bool = False,
        owner: int = 0,
    ) -> None:
        self.negative_ttl = negative_ttl
        self.is_read_only = is_read_only
        self._ttl_s = ttl_s
        self.lock = threading.RLock()  # guards all below; never held while waiting
        self._inodes: dict[Ino, Inode] = {}
        self._handles: dict[int, Handle] = {}
        self._last_ino = ROOT
        self._last_fh = 0
        self._last_cookie = 2  # those of "." and ".."
        self.locks = LockTable()
        now = time.time_ns()
        self._inodes[ROOT] = Inode(
            ROOT, stat.S_IFDIR | 0o755, owner, owner, now, now, now, now, nlink=2
        )

    # ------------------------------------------------------------ what tests ask

    @_atomic
    def references(self) -> dict[int, int]:
        """Return the kernel's references by inode, the root's left out."""
        return {i.ino: i.references for i in self._inodes.values() if i.references}

    @_atomic
    def open_handles(self) -> int:
        """Return how many files and directories are open."""
        return len(self._handles)

    @_atomic
    def inode_count(self) -> int:
        """Return how many inodes exist, unlinked ones that are still in use too."""
        return len(self._inodes)

    # ------------------------------------------------------------ names and inodes

    def _inode(self, ino: Ino) -> Inode:
        try:
            return self._inodes[ino]
        except KeyError:
            raise EverfoldError(Kind.STALE, f"inode {ino} is gone") from None

    def _dir(self, ino: Ino) -> Inode:
        inode = self._inode(ino)
        if not inode.is_dir:
            raise EverfoldError(Kind.NOT_DIR, f"inode {ino}")
        return inode

    def _child(self, parent: Inode, name: bytes) -> Inode:
        if len(name) > NAME_MAX:
            raise EverfoldError(Kind.NAME_TOO_LONG, f"{len(name)} bytes")
        entry = parent.names.get(name)
        if entry is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such name", os.fsdecode(name))
        return self._inodes[entry[0]]

    def _room_for(self, parent: Ino, name: bytes) -> Inode:
        directory = self._dir(parent)
        if len(name) > NAME_MAX:
            raise EverfoldError(Kind.NAME_TOO_LONG, f"{len(name)} bytes")
        if name in directory.names:
            raise EverfoldError(Kind.EXISTS, "the name is taken", os.fsdecode(name))
        if directory.nlink == 0:
            raise EverfoldError(Kind.NOT_FOUND, "the directory is gone")
        return directory

    def _node(self, inode: Inode) -> Node:
        return Node(inode.attr(), self._ttl_s, self._ttl_s)

    def _referenced(self, inode: Inode) -> Node:
        inode.references += 1
        return self._node(inode)

    def _enter(self, directory: Inode, name: bytes, inode: Inode) -> None:
        # A name that stays keeps its cookie, whatever it leads to.
        known = directory.names.get(name)
        if known is None:
            self._last_cookie += 1
        directory.names[name] = (inode.ino, known[1] if known else self._last_cookie)
        directory.mtime_ns = directory.ctime_ns = time.time_ns()

    def _remove(self, directory: Inode, name: bytes) -> None:
        inode = self._inodes[directory.names.pop(name)[0]]
        inode.ctime_ns = directory.mtime_ns = directory.ctime_ns = time.time_ns()
        if inode.is_dir:
            inode.nlink = 0
            directory.nlink -= 1
        else:
            inode.nlink -= 1
        self._drop_if_unused(inode)

    def _drop_if_unused(self, inode: Inode) -> None:
        if inode.nlink <= 0 and inode.opens == 0 and inode.references <= 0:
            self._inodes.pop(inode.ino, None)

    def _make(self, mode: int, caller: Caller, parent: Inode) -> Inode:
        self._last_ino = Ino(self._last_ino + 1)
        now = time.time_ns()
        if not stat.S_ISLNK(mode):
            mode &= ~caller.umask
        gid = caller.gid
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        inode = Inode(self._last_ino, mode, caller.uid, gid, now, now, now, now)
        self._inodes[inode.ino] = inode
        return inode

    @_atomic
    def lookup(self, parent: Ino, name: bytes) -> Node:
        return self._referenced(self._child(self._dir(parent), name))

    def find(self, parent: Ino, name: bytes) -> Node | None:
        try:
            return self.lookup(parent, name)
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            return None

    @_atomic
    def forget(self, ino: Ino, count: int) -> None:
        inode = self._inodes.get(ino)
        if inode is not None and ino != ROOT:
            inode.references -= count
            self._drop_if_unused(inode)

    @_atomic
    def getattr(self, ino: Ino, fh: int | None = None) -> Node:
        return self._node(self._inode(ino))

    @_atomic
    def setattr(self, ino: Ino, changes: Changes, fh: int | None, caller: Caller) -> Node:
        inode, now = self._inode(ino), time.time_ns()
        if changes.size is not None:
            if inode.is_dir:
                raise EverfoldError(Kind.IS_DIR, "a directory has no size")
            self._resize(inode, changes.size)
            inode.mtime_ns = now
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | (changes.mode & 0o7777)
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        if changes.kill_priv:
            _kill_priv(inode)
        if changes.atime_ns is not None or changes.atime_now:
            inode.atime_ns = now if changes.atime_now else changes.atime_ns or 0
        if changes.mtime_ns is not None or changes.mtime_now:
            inode.mtime_ns = now if changes.mtime_now else changes.mtime_ns or 0
        inode.ctime_ns = now
        return self._node(inode)

    @_atomic
    def readlink(self, ino: Ino) -> bytes:
        inode = self._inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise EverfoldError(Kind.INVALID, "not a symlink")
        return inode.target

    @_atomic
    def mknod(self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller) -> Node:
        directory = self._room_for(parent, name)
        inode = self._make(mode, caller, directory)
        inode.rdev = rdev
        self._enter(directory, name, inode)
        return self._referenced(inode)

    @_atomic
    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Node:
        directory = self._room_for(parent, name)
        inode = self._make(stat.S_IFDIR | (mode & 0o7777), caller, directory)
        inode.nlink, inode.parent = 2, parent
        directory.nlink += 1
        self._enter(directory, name, inode)
        return self._referenced(inode)

    @_atomic
    def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Node:
        directory = self._room_for(parent, name)
        inode = self._make(stat.S_IFLNK | 0o777, caller, directory)
        inode.target, inode.size = target, len(target)
        self._enter(directory, name, inode)
        return self._referenced(inode)

    @_atomic
    def link(self, ino: Ino, new_parent: Ino, new_name: bytes) -> Node:
        inode = self._inode(ino)
        if inode.is_dir:
            raise EverfoldError(Kind.NOT_PERMITTED, "a directory has one name")
        directory = self._room_for(new_parent, new_name)
        inode.nlink += 1
        inode.ctime_ns = time.time_ns()
        self._enter(directory, new_name, inode)
        return self._referenced(inode)

    @_atomic
    def unlink(self, parent: Ino, name: bytes) -> None:
        directory = self._dir(parent)
        if self._child(directory, name).is_dir:
            raise EverfoldError(Kind.IS_DIR, "a directory", os.fsdecode(name))
        self._remove(directory, name)

    @_atomic
    def rmdir(self, parent: Ino, name: bytes) -> None:
        directory = self._dir(parent)
        inode = self._child(directory, name)
        if not inode.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "not a directory", os.fsdecode(name))
        if inode.names:
            raise EverfoldError(Kind.NOT_EMPTY, "not empty", os.fsdecode(name))
        self._remove(directory, name)

    @_atomic
    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        old, new = self._dir(parent), self._dir(new_parent)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise EverfoldError(Kind.INVALID, f"rename flags {flags}")
        moved = self._child(old, name)
        if len(new_name) > NAME_MAX:
            raise EverfoldError(Kind.NAME_TOO_LONG, f"{len(new_name)} bytes")
        self._refuse_loop(moved, new)
        target = new.names.get(new_name)
        if flags & RENAME_EXCHANGE:
            other = self._child(new, new_name)
            self._refuse_loop(other, old)
            self._move(moved, old, new, new_name)
            self._move(other, new, old, name)
            return
        if target is not None:
            self._check_replaced(moved, self._inodes[target[0]], flags)
            if target[0] == moved.ino:
                return
            replaced = self._inodes[target[0]]
            self._release_name(replaced, new)
        old.names.pop(name)
        old.mtime_ns = old.ctime_ns = time.time_ns()
        self._move(moved, old, new, new_name)

    def _refuse_loop(self, moved: Inode, into: Inode) -> None:
        while moved.is_dir:
            if into is moved:
                raise EverfoldError(Kind.INVALID, "a directory cannot go into itself")
            if into.ino == ROOT:
                return
            into = self._inodes[into.parent]

    @staticmethod
    def _check_replaced(moved: Inode, target: Inode, flags: int) -> None:
        if flags & RENAME_NOREPLACE:
            raise EverfoldError(Kind.EXISTS, "the name is taken")
        if moved.is_dir and not target.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "a directory replaces a directory only")
        if target.is_dir and not moved.is_dir:
            raise EverfoldError(Kind.IS_DIR, "a file does not replace a directory")
        if target.names:
            raise EverfoldError(Kind.NOT_EMPTY, "the directory to replace is not empty")

    def _release_name(self, replaced: Inode, directory: Inode) -> None:
        replaced.ctime_ns = time.time_ns()
        if replaced.is_dir:
            replaced.nlink = 0
            directory.nlink -= 1
        else:
            replaced.nlink -= 1
        self._drop_if_unused(replaced)

    def _move(self, moved: Inode, old: Inode, new: Inode, new_name: bytes) -> None:
        self._enter(new, new_name, moved)
        moved.ctime_ns = time.time_ns()
        if moved.is_dir:
            moved.parent = new.ino
            old.nlink -= 1
            new.nlink += 1

    # ------------------------------------------------------------ files

    def _opened(self, inode: Inode, flags: int) -> Opened:
        self._last_fh += 1
        self._handles[self._last_fh] = Handle(inode, flags)
        inode.opens += 1
        return Opened(self._last_fh, no_flush=flags & os.O_ACCMODE == os.O_RDONLY)

    def _handle(self, fh: int) -> Handle:
        try:
            return self._handles[fh]
        except KeyError:
            raise EverfoldError(Kind.STALE, f"handle {fh} is closed") from None

    @_atomic
    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Opened]:
        directory = self._dir(parent)
        if name in directory.names and not flags & os.O_EXCL:
            inode = self._child(directory, name)
            if inode.is_dir:
                raise EverfoldError(Kind.IS_DIR, "a directory", os.fsdecode(name))
            if flags & os.O_TRUNC:
                self._resize(inode, 0)
        else:
            directory = self._room_for(parent, name)
            inode = self._make(stat.S_IFREG | (mode & 0o7777), caller, directory)
            self._enter(directory, name, inode)
        return self._referenced(inode), self._opened(inode, flags)

    @_atomic
    def tmpfile(self, parent: Ino, mode: int, flags: int, caller: Caller) -> tuple[Node, Opened]:
        inode = self._make(stat.S_IFREG | (mode & 0o7777), caller, self._dir(parent))
        inode.nlink = 0
        return self._referenced(inode), self._opened(inode, flags)

    @_atomic
    def open(self, ino: Ino, flags: int) -> Opened:
        inode = self._inode(ino)
        if flags & os.O_TRUNC:
            self._resize(inode, 0)
            inode.mtime_ns = inode.ctime_ns = time.time_ns()
        return self._opened(inode, flags)

    @_atomic
    def read(self, fh: int, offset: int, size: int) -> bytes:
        inode = self._handle(fh).inode
        end = min(offset + size, inode.size)
        return self._bytes(inode, offset, end) if offset < end else b""

    @staticmethod
    def _bytes(inode: Inode, offset: int, end: int) -> bytes:
        first, last = offset // PAGE, (end - 1) // PAGE
        hole = bytes(PAGE)
        whole = b"".join(inode.pages.get(number, hole) for number in range(first, last + 1))
        return whole[offset - first * PAGE : end - first * PAGE]

    @_atomic
    def write(self, fh: int, offset: int, data: bytes | memoryview, kill_priv: bool) -> int:
        inode = self._handle(fh).inode
        if offset + len(data) > SIZE_MAX:
            raise EverfoldError(Kind.TOO_LARGE, "beyond the largest offset")
        self._put(inode, offset, data)
        if kill_priv:
            _kill_priv(inode)
        inode.mtime_ns = inode.ctime_ns = time.time_ns()
        return len(data)

    @staticmethod
    def _put(inode: Inode, offset: int, data: bytes | memoryview) -> None:
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, PAGE)
            count = min(PAGE - start, len(data) - at)
            page = inode.pages.setdefault(number, bytearray(PAGE))
            page[start : start + count] = data[at : at + count]
            at += count
        inode.size = max(inode.size, offset + len(data))

    def _resize(self, inode: Inode, size: int) -> None:
        if size < inode.size:
            self._punch(inode, size, inode.size)
        inode.size = size

    def _punch(self, inode: Inode, start: int, end: int) -> None:
        for number in [n for n in inode.pages if start < (n + 1) * PAGE and n * PAGE < end]:
            low, high = max(start - number * PAGE, 0), min(end - number * PAGE, PAGE)
            is_tail = end >= inode.size and high + number * PAGE >= inode.size
            if low == 0 and (high == PAGE or is_tail):
                del inode.pages[number]
            else:
                inode.pages[number][low:high] = bytes(high - low)

    @_atomic
    def flush(self, fh: int, lock_owner: int) -> None:
        self.locks.drop(self._handle(fh).inode.ino, LockKind.POSIX, lock_owner)

    @_atomic
    def release(self, fh: int, lock_owner: int, flock_release: bool) -> None:
        handle = self._handles.pop(fh)
        inode = handle.inode
        if flock_release:
            self.locks.drop(inode.ino, LockKind.FLOCK, lock_owner)
        for owner in handle.posix_owners:  # those whose close sent no FLUSH
            self.locks.drop(inode.ino, LockKind.POSIX, owner)
        inode.opens -= 1
        self._drop_if_unused(inode)

    @_atomic
    def fsync(self, fh: int, datasync: bool) -> None:
        self._handle(fh)

    @_atomic
    def fsyncdir(self, ino: Ino) -> None:
        self._dir(ino)

    @_atomic
    def syncfs(self) -> None:
        """Memory has nothing to sync."""

    @_atomic
    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        inode = self._handle(fh).inode
        end = offset + length
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            raise EverfoldError(Kind.UNSUPPORTED, f"fallocate mode {mode}")
        if mode & (_PUNCH_HOLE | _ZERO_RANGE):
            self._punch(inode, offset, end)
        if not mode & _KEEP_SIZE:
            inode.size = max(inode.size, end)
        inode.mtime_ns = inode.ctime_ns = time.time_ns()

    @_atomic
    def lseek(self, fh: int, offset: int, whence: int) -> int:
        inode = self._handle(fh).inode
        if offset >= inode.size:
            raise EverfoldError(Kind.NO_DATA, "beyond the end")
        wants_data = whence == os.SEEK_DATA
        number = offset // PAGE
        while number * PAGE < inode.size:
            if (number in inode.pages) == wants_data:
                return max(offset, number * PAGE)
            number += 1
        if wants_data:
            raise EverfoldError(Kind.NO_DATA, "a hole up to the end")
        return inode.size

    @_atomic
    def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        data = self.read(fh_in, offset_in, length)
        return self.write(fh_out, offset_out, data, False)

    # ------------------------------------------------------------ directories

    @_atomic
    def opendir(self, ino: Ino) -> int:
        return self._opened(self._dir(ino), os.O_RDONLY).fh

    @_atomic
    def readdir(self, fh: int, cookie: int, limit: int, plus: bool) -> Sequence[DirItem]:
        directory = self._handle(fh).inode
        items: list[DirItem] = []
        dots = ((b".", directory.ino), (b"..", directory.parent))
        for number, (name, ino) in enumerate(dots, start=1):
            if number > cookie:
                items.append(DirItem(name, ino, stat.S_IFDIR, number, None))
        for name, (ino, own) in sorted(directory.names.items(), key=lambda item: item[1][1]):
            if own > cookie and len(items) < limit:
                inode = self._inodes[ino]
                node = self._referenced(inode) if plus else None
                items.append(DirItem(name, ino, inode.mode, own, node))
        return items[:limit]

    @_atomic
    def releasedir(self, fh: int) -> None:
        self.release(fh, 0, False)

    @_atomic
    def statfs(self) -> SpaceUsage:
        used = sum(len(inode.pages) for inode in self._inodes.values()) * PAGE
        return SpaceUsage(used, 0, 0, len(self._inodes), CAPACITY - used, CAPACITY)

    # ------------------------------------------------------------ extended attributes, locks

    @_atomic
    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        try:
            return self._inode(ino).xattrs[name]
        except KeyError:
            raise EverfoldError(Kind.NO_ATTR, os.fsdecode(name)) from None

    @_atomic
    def may_have_xattrs(self, ino: Ino) -> bool:
        return bool(self._inode(ino).xattrs)

    @_atomic
    def listxattr(self, ino: Ino) -> list[bytes]:
        return list(self._inode(ino).xattrs)

    @_atomic
    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int) -> None:
        inode = self._inode(ino)
        if not name.startswith((b"user.", b"trusted.", b"security.")):
            raise EverfoldError(Kind.UNSUPPORTED, os.fsdecode(name))
        if flags & _XATTR_CREATE and name in inode.xattrs:
            raise EverfoldError(Kind.EXISTS, os.fsdecode(name))
        if flags & _XATTR_REPLACE and name not in inode.xattrs:
            raise EverfoldError(Kind.NO_ATTR, os.fsdecode(name))
        inode.xattrs[name] = value
        inode.ctime_ns = time.time_ns()

    @_atomic
    def removexattr(self, ino: Ino, name: bytes) -> None:
        inode = self._inode(ino)
        if inode.xattrs.pop(name, None) is None:
            raise EverfoldError(Kind.NO_ATTR, os.fsdecode(name))
        inode.ctime_ns = time.time_ns()

    def getlk(self, fh: int, lock: Lock) -> Lock | None:
        self._handle(fh)
        return self.locks.conflicting(lock)

    def setlk(self, fh: int, lock: Lock, cancel: threading.Event | None) -> None:
        handle = self._handle(fh)
        self.locks.set(lock, cancel)
        if lock.kind is LockKind.POSIX:
            handle.posix_owners.add(lock.owner)


def _kill_priv(inode: Inode) -> None:
    inode.mode &= ~stat.S_ISUID
    if inode.mode & stat.S_IXGRP:
        inode.mode &= ~stat.S_ISGID
