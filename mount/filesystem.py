"""The seam between the filesystem and a kernel: what `vfs` offers and what it needs.

`Filesystem` is a filesystem over inode numbers with no FUSE in it; adapters (`mount.kernel`,
`mount.fusepy_adapter`) translate a kernel's requests into its calls and its `EverfoldError`s
into errnos (`err.kind.errno`). `KernelCache` is the other direction: what must be dropped
when another machine changed something.

Rules for both sides:
 - Permissions of the mode bits are the kernel's job (`default_permissions`).
 - Any method may raise `patience.MustWait` on an impatient thread, before any side effect.
 - `KernelCache` methods may block on the kernel's own locks: `Filesystem` calls them from a
   thread of its own that serves no request, never while holding one of its locks.
 - Inode numbers are the kernel's node ids. Virtual nodes (`.versions`) have numbers from
   `VIRTUAL_INO` up.
 - Every reply that carries an inode to the kernel (lookup, create, mkdir, mknod, symlink,
   link, tmpfile, readdirplus entries except "." and "..") is one kernel reference, given
   back by `forget`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from everfold.model import Attr, Ino, Lock, SpaceUsage

VIRTUAL_INO: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: what is made belongs to these, and umask is applied by `Filesystem`."""

    uid: int
    gid: int
    pid: int
    umask: int = 0
    groups: tuple[int, ...] = ()


class Node(NamedTuple):
    """An inode on its way to the kernel, with how long it may be cached, in seconds."""

    attr: Attr
    entry_ttl: float
    attr_ttl: float


class Opened(NamedTuple):
    """An open file. `keep_cache`: pages the kernel has are still right."""

    fh: int
    keep_cache: bool = True
    direct_io: bool = False
    no_flush: bool = False  # opened read-only: close needs no FLUSH
    backing: str = ""  # a local file of the same bytes; neither will ever change


Names = list[tuple[bytes, Ino, int]]  # of a directory: name, inode, mode


class DirItem(NamedTuple):
    """One name of a listing; `cookie` is the offset to go on from after it."""

    name: bytes
    ino: Ino
    mode: int
    cookie: int
    node: Node | None  # with readdirplus; None for "." and ".." and without it


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr is to set; None leaves. `*_now` means the time of the call."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False
    ctime_ns: int | None = None
    kill_priv: bool = False  # FATTR_KILL_SUIDGID: drop setuid/setgid as a write would


class Filesystem(Protocol):
    """A filesystem, as a kernel asks for it. All methods raise `EverfoldError` kinds."""

    is_read_only: bool

    @property
    def negative_ttl(self) -> float:
        """How long the kernel may remember that a name is not there, in seconds."""
        ...

    def lookup(self, parent: Ino, name: bytes) -> Node: ...
    def find(self, parent: Ino, name: bytes) -> Node | None:
        """Look a name up; None where `lookup` raises NOT_FOUND, which costs more."""
        ...

    def forget(self, ino: Ino, count: int) -> None: ...
    def getattr(self, ino: Ino, fh: int | None = None) -> Node: ...
    def setattr(self, ino: Ino, changes: Changes, fh: int | None, caller: Caller) -> Node: ...
    def readlink(self, ino: Ino) -> bytes: ...

    def mknod(self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller) -> Node: ...
    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Node: ...
    def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Node: ...
    def link(self, ino: Ino, new_parent: Ino, new_name: bytes) -> Node: ...
    def unlink(self, parent: Ino, name: bytes) -> None: ...
    def rmdir(self, parent: Ino, name: bytes) -> None: ...
    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        """Rename as renameat2(2); flags are `wire.RENAME_NOREPLACE` / `RENAME_EXCHANGE`."""
        ...

    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Opened]:
        """Create (or with an existing name and no O_EXCL, open) a regular file."""
        ...

    def tmpfile(self, parent: Ino, mode: int, flags: int, caller: Caller) -> tuple[Node, Opened]:
        """Make a file with no name (O_TMPFILE); `link` may give it one later."""
        ...

    def open(self, ino: Ino, flags: int) -> Opened:
        """Open a file; O_TRUNC in `flags` empties it."""
        ...

    def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes, short only at the end of the file."""
        ...

    def write(self, fh: int, offset: int, data: bytes | memoryview, kill_priv: bool) -> int:
        """Write all of `data`, which is only valid during the call; returns its length."""
        ...

    def flush(self, fh: int, lock_owner: int) -> None:
        """One descriptor was closed: journal what is dirty, drop the owner's fcntl locks."""
        ...

    def release(self, fh: int, lock_owner: int, flock_release: bool) -> None: ...
    def fsync(self, fh: int, datasync: bool) -> None: ...
    def fsyncdir(self, ino: Ino) -> None: ...
    def syncfs(self) -> None: ...
    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None: ...
    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE only."""
        ...

    def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int: ...

    def opendir(self, ino: Ino) -> int: ...
    def readdir(self, fh: int, cookie: int, limit: int, plus: bool) -> Sequence[DirItem]:
        """Return up to `limit` items after `cookie` (0: from the start, "." and ".." first).

        Names that stay are given exactly once, whatever comes and goes meanwhile. With
        `plus`, each item's reference counts only if the adapter delivers it: the adapter
        calls `forget(ino, 1)` for items that it was given and did not deliver.
        """
        ...

    def releasedir(self, fh: int) -> None: ...

    def statfs(self) -> SpaceUsage:
        """Answer from memory, always."""
        ...

    def getxattr(self, ino: Ino, name: bytes) -> bytes: ...
    def may_have_xattrs(self, ino: Ino) -> bool:
        """Tell whether an inode has, or may have, extended attributes of its own."""
        ...

    def listxattr(self, ino: Ino) -> list[bytes]: ...
    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, ino: Ino, name: bytes) -> None: ...

    def getlk(self, fh: int, lock: Lock) -> Lock | None:
        """Return a lock in the way of this one (pid 0 when it is another machine's)."""
        ...

    def setlk(self, fh: int, lock: Lock, cancel: threading.Event | None) -> None:
        """Take or drop a lock. Without `cancel` a held one is WOULD_BLOCK; with it, wait.

        A waiting call ends with INTERRUPTED soon after `cancel` is set. It may wait for
        hours: give it a thread of its own.
        """
        ...


class KernelCache(Protocol):
    """What a kernel remembers, and how to make it forget."""

    def forget_entry(self, parent: Ino, name: bytes) -> None:
        """Drop a name, a remembered absence too, and the listing of its directory."""
        ...

    def forget_attr(self, ino: Ino) -> None:
        """Drop the attributes of an inode, not its pages."""
        ...

    def forget_data(self, ino: Ino, offset: int, length: int) -> None:
        """Drop attributes, and the pages of a range (length 0: to the end)."""
        ...

    def entry_deleted(self, parent: Ino, ino: Ino, name: bytes) -> None:
        """A name was deleted elsewhere: drop it even if it is in use, tell inotify."""
        ...

    def store(self, ino: Ino, offset: int, data: bytes | memoryview) -> None:
        """Put bytes into the page cache of a file, replacing what is there."""
        ...

    def tell_again(self) -> bool:
        """Repeat what the kernel could not heed when it was told; True: call it again soon."""
        ...
