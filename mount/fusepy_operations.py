"""fusepy's `Operations` over a `Filesystem`: paths in, calls over inodes out.

Every call walks its path by `lookup` and gives the references back at its end: nothing is
remembered between calls that another machine's rename could make wrong. Only what is open is
known by its handle, and what was deleted while open by the
name that libfuse gave it. Errors become `OSError`s here, which is how the binding takes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import logging
import re
import stat
import threading
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any, TypeVar

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, SIZE_MAX, Ino, Lock, LockKind, LockType
from everfold.wire import RENAME_NOREPLACE
from mount.filesystem import Caller, Changes, Filesystem, Node, Opened
from mount.kernel import encode
from mount.statistics import Durations

# Each keeps one of libfuse's threads (see `fusepy_adapter.THREADS`).
WAITING_LOCKS = 32
_POLL_S = 0.05  # how soon the wait for a lock sees that its program was interrupted
_LISTING = 256
_HIDDEN = re.compile(rb"\.fuse_hidden[0-9a-f]{16}")
_HANDLE_KILLPRIV = 1 << 20  # libfuse's FUSE_CAP_HANDLE_KILLPRIV
_LOCK_TYPES = {
    fcntl.F_RDLCK: LockType.READ,
    fcntl.F_WRLCK: LockType.WRITE,
    fcntl.F_UNLCK: LockType.UNLOCK,
}
_FLOCK_TYPES = {
    fcntl.LOCK_SH: LockType.READ,
    fcntl.LOCK_EX: LockType.WRITE,
    fcntl.LOCK_UN: LockType.UNLOCK,
}


class _Flock(ctypes.Structure):
    """Linux's `struct flock`: the binding leaves it open there."""

    _fields_ = [
        ("l_type", ctypes.c_short),
        ("l_whence", ctypes.c_short),
        ("l_start", ctypes.c_int64),
        ("l_len", ctypes.c_int64),
        ("l_pid", ctypes.c_int),
    ]


_log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


def _encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")  # as the binding decoded it


def _operation(method: F) -> F:
    """Make errors errnos, as the binding wants them: this is the border; and count the cost."""

    @functools.wraps(method)
    def called(self: Operations, *args: Any) -> Any:
        started = perf_counter_ns()
        try:
            return method(self, *args)
        except EverfoldError as err:
            raise OSError(err.kind.errno, err.message) from err
        except OSError:
            raise
        except Exception as err:
            _log.exception("%s failed", method.__name__)
            raise OSError(errno.EIO, "a defect of the driver") from err
        finally:
            self.count(method.__name__, perf_counter_ns() - started)

    return called  # type: ignore[return-value]


class Operations:
    """What mfusepy calls. `fi` is libfuse's file info (the binding's `raw_fi` mode)."""

    use_ns = True

    def __init__(self, filesystem: Filesystem, library: Any) -> None:
        self._fs = filesystem
        self._library = library
        self._waiting = threading.BoundedSemaphore(WAITING_LOCKS)
        self._inos: dict[int, Ino] = {}  # by handle of an open file
        self._hidden: dict[bytes, Ino] = {}  # deleted while open, by libfuse's name for it
        self.is_ready = threading.Event()
        self.costs: dict[str, Durations] = {}  # by name; not locked

    def count(self, name: str, spent_ns: int) -> None:
        """Add one call to the statistics."""
        cost = self.costs.setdefault(name, Durations())
        cost.count += 1
        cost.note(spent_ns)

    # ------------------------------------------------------------ paths

    @contextlib.contextmanager
    def _at(self, path: bytes) -> Iterator[Node]:
        """Walk to `path`; its inodes stay referenced until the block ends."""
        hidden = self._hidden.get(path.rpartition(b"/")[2])
        if hidden is not None:
            yield self._fs.getattr(hidden)
            return
        held: list[Ino] = []
        try:
            node = self._fs.getattr(ROOT)
            for name in path.split(b"/"):
                if name:
                    node = self._fs.lookup(node.attr.ino, name)
                    held.append(node.attr.ino)
            yield node
        finally:
            for ino in held:
                self._fs.forget(ino, 1)

    @contextlib.contextmanager
    def _ino(self, path: str) -> Iterator[Ino]:
        with self._at(_encode(path)) as node:
            yield node.attr.ino

    @contextlib.contextmanager
    def _above(self, path: str) -> Iterator[tuple[Ino, bytes]]:
        parent, _, name = _encode(path).rpartition(b"/")
        with self._at(parent) as node:
            yield node.attr.ino, name

    def _caller(self) -> Caller:
        uid, gid, pid = self._library.fuse_get_context()
        return Caller(uid, gid, pid)  # the kernel applied the umask already

    def _made(self, node: Node) -> None:
        # The kernel got no inode of ours: the reference goes back at once.
        self._fs.forget(node.attr.ino, 1)

    # ------------------------------------------------------------ life

    def init_with_config(self, connection: Any, config: Any) -> None:
        """Let the kernel drop setuid bits itself: this interface does not say when to."""
        if connection is not None:
            connection.want &= ~_HANDLE_KILLPRIV
        self.is_ready.set()

    # ------------------------------------------------------------ names and inodes

    @_operation
    def getattr(self, path: str, fi: Any = None) -> dict[str, int]:
        if fi:
            attr = self._fs.getattr(self._inos[fi.fh], fi.fh).attr
        else:
            with self._at(_encode(path)) as node:
                attr = node.attr
        return {
            "st_ino": attr.ino,
            "st_mode": attr.mode,
            "st_nlink": attr.nlink,
            "st_uid": attr.uid,
            "st_gid": attr.gid,
            "st_rdev": attr.rdev,
            "st_size": attr.size,
            "st_blocks": (attr.allocated + 511) >> 9,
            "st_blksize": encode.IO_SIZE,
            "st_atime": attr.atime_ns,
            "st_mtime": attr.mtime_ns,
            "st_ctime": attr.ctime_ns,
        }

    def _set(self, path: str, changes: Changes, fi: Any = None) -> None:
        with self._ino(path) as ino:
            self._fs.setattr(ino, changes, fi.fh if fi else None, self._caller())

    @_operation
    def chmod(self, path: str, mode: int) -> None:
        self._set(path, Changes(mode=mode))

    @_operation
    def chown(self, path: str, uid: int, gid: int) -> None:
        self._set(path, Changes(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid))

    @_operation
    def truncate(self, path: str, length: int, fi: Any = None) -> None:
        self._set(path, Changes(size=length), fi)

    @_operation
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        if times is None:
            self._set(path, Changes(atime_now=True, mtime_now=True))
        else:
            self._set(path, Changes(atime_ns=times[0], mtime_ns=times[1]))

    @_operation
    def set_times(self, path: str, changes: Changes) -> None:
        self._set(path, changes)

    @_operation
    def readlink(self, path: str) -> str:
        with self._ino(path) as ino:
            return self._fs.readlink(ino).decode("utf-8", "surrogateescape")

    @_operation
    def mknod(self, path: str, mode: int, dev: int) -> None:
        with self._above(path) as (parent, name):
            self._made(self._fs.mknod(parent, name, mode, dev, self._caller()))

    @_operation
    def mkdir(self, path: str, mode: int) -> None:
        with self._above(path) as (parent, name):
            self._made(self._fs.mkdir(parent, name, mode, self._caller()))

    @_operation
    def symlink(self, path: str, target: str) -> None:
        with self._above(path) as (parent, name):
            self._made(self._fs.symlink(parent, name, _encode(target), self._caller()))

    @_operation
    def link(self, path: str, existing: str) -> None:
        with self._ino(existing) as ino, self._above(path) as (parent, name):
            self._made(self._fs.link(ino, parent, name))

    @_operation
    def unlink(self, path: str) -> None:
        with self._above(path) as (parent, name):
            hidden = self._hidden.pop(name, None)
            if hidden is None:
                self._fs.unlink(parent, name)
            else:
                self._fs.forget(hidden, 1)

    @_operation
    def rmdir(self, path: str) -> None:
        with self._above(path) as (parent, name):
            self._fs.rmdir(parent, name)

    @_operation
    def rename(self, old: str, new: str, flags: int = 0) -> None:
        if flags & ~RENAME_NOREPLACE:
            raise EverfoldError(Kind.INVALID, f"rename flags {flags}", old)
        with self._above(old) as (parent, name), self._above(new) as (new_parent, new_name):
            if not (_HIDDEN.fullmatch(new_name) and self._hide(parent, name, new_name)):
                self._fs.rename(parent, name, new_parent, new_name, flags)

    def _hide(self, parent: Ino, name: bytes, alias: bytes) -> bool:
        # libfuse does not delete or replace a file that is open: it renames it to a name of its
        # own and deletes that after the release, which comes late enough for a `rm -r` to find
        # the folder not empty. So the name goes at once, and libfuse's is one of ours alone,
        # which holds a reference; `Filesystem` keeps what is open.
        ino = self._fs.lookup(parent, name).attr.ino
        if ino not in list(self._inos.values()):  # a program's rename, not libfuse's
            self._fs.forget(ino, 1)
            return False
        try:
            self._fs.unlink(parent, name)
        except BaseException:
            self._fs.forget(ino, 1)
            raise
        self._hidden[alias] = ino
        return True

    # ------------------------------------------------------------ files

    def _put_into(self, fi: Any, ino: Ino, opened: Opened) -> None:
        self._inos[opened.fh] = ino
        fi.fh = opened.fh
        fi.direct_io = opened.direct_io

    @_operation
    def create(self, path: str, mode: int, fi: Any) -> None:
        with self._above(path) as (parent, name):
            node, opened = self._fs.create(
                parent, name, stat.S_IFREG | mode, fi.flags, self._caller()
            )
        self._made(node)
        self._put_into(fi, node.attr.ino, opened)

    @_operation
    def open(self, path: str, fi: Any) -> None:
        try:
            with self._ino(path) as ino:
                self._put_into(fi, ino, self._fs.open(ino, fi.flags))
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            # The kernel remembers a name that is gone; told so it looks again, and may create.
            raise EverfoldError(Kind.STALE, "the name is gone", err.subject) from err

    @_operation
    def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
        return bytes(self._fs.read(fi.fh, offset, size))

    @_operation
    def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:
        return self._fs.write(fi.fh, offset, data, False)

    @_operation
    def flush(self, path: str, fi: Any) -> None:
        self._fs.flush(fi.fh, fi.lock_owner)

    @_operation
    def release(self, path: str, fi: Any) -> None:
        del self._inos[fi.fh]
        self._fs.release(fi.fh, fi.lock_owner, bool(fi.flock_release))

    @_operation
    def fsync(self, path: str, datasync: int, fi: Any) -> None:
        self._fs.fsync(fi.fh, bool(datasync))

    @_operation
    def fallocate(self, path: str, mode: int, offset: int, length: int, fi: Any) -> None:
        self._fs.fallocate(fi.fh, mode, offset, length)

    @_operation
    def lseek(self, path: str, offset: int, whence: int, fi: Any) -> int:
        return self._fs.lseek(fi.fh, offset, whence)

    @_operation
    def copy_file_range(self, fi_in: Any, at_in: int, fi_out: Any, at_out: int, count: int) -> int:
        return self._fs.copy_file_range(fi_in.fh, at_in, fi_out.fh, at_out, count)

    # ------------------------------------------------------------ directories and the whole

    @_operation
    def opendir(self, path: str) -> int:
        with self._ino(path) as ino:
            return self._fs.opendir(ino)

    def readdir_with_offset(
        self, path: str, offset: int, fh: int
    ) -> Iterator[tuple[str, dict[str, int], int]]:
        """Yield (name, type and number, offset of the next); the binding stops when it is full."""
        while items := self._listed(fh, offset):
            for name, ino, mode, cookie, _ in items:
                offset = cookie
                known = {"st_mode": mode, "st_ino": ino}
                yield name.decode("utf-8", "surrogateescape"), known, cookie

    @_operation
    def _listed(self, fh: int, offset: int) -> Any:
        return self._fs.readdir(fh, offset, _LISTING, False)

    @_operation
    def releasedir(self, path: str, fh: int) -> None:
        self._fs.releasedir(fh)

    @_operation
    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        with self._ino(path) as ino:
            self._fs.fsyncdir(ino)

    @_operation
    def statfs(self, path: str) -> dict[str, int]:
        blocks, bfree, bavail, files, ffree = encode.space_figures(self._fs.statfs())
        return {
            "f_bsize": encode.BLOCK_SIZE,
            "f_frsize": encode.BLOCK_SIZE,
            "f_blocks": blocks,
            "f_bfree": bfree,
            "f_bavail": bavail,
            "f_files": files,
            "f_ffree": ffree,
            "f_favail": ffree,
            "f_namemax": 255,
        }

    # ------------------------------------------------------------ extended attributes

    @_operation
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        with self._ino(path) as ino:
            return self._fs.getxattr(ino, _encode(name))

    @_operation
    def listxattr(self, path: str) -> list[str]:
        with self._ino(path) as ino:
            return [name.decode("utf-8", "surrogateescape") for name in self._fs.listxattr(ino)]

    @_operation
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> None:
        with self._ino(path) as ino:
            self._fs.setxattr(ino, _encode(name), value, options)

    @_operation
    def removexattr(self, path: str, name: str) -> None:
        with self._ino(path) as ino:
            self._fs.removexattr(ino, _encode(name))

    # ------------------------------------------------------------ locks

    @_operation
    def lock(self, path: str, fi: Any, command: int, pointer: Any) -> None:
        asked = ctypes.cast(pointer, ctypes.POINTER(_Flock)).contents
        ino, type_, start = self._inos[fi.fh], _LOCK_TYPES[asked.l_type], asked.l_start
        end = start + asked.l_len if asked.l_len else SIZE_MAX
        lock = Lock(ino, LockKind.POSIX, type_, fi.lock_owner, start, end, asked.l_pid)
        if command != fcntl.F_GETLK:
            self._take(fi.fh, lock, is_waiting=command == fcntl.F_SETLKW)
            return
        held = self._fs.getlk(fi.fh, lock)
        if held is None:
            asked.l_type = fcntl.F_UNLCK
            return
        asked.l_type = fcntl.F_WRLCK if held.type is LockType.WRITE else fcntl.F_RDLCK
        asked.l_start, asked.l_pid = held.start, held.pid
        asked.l_len = 0 if held.end >= SIZE_MAX else held.end - held.start

    @_operation
    def flock(self, path: str, fi: Any, operation: int) -> None:
        type_ = _FLOCK_TYPES[operation & ~fcntl.LOCK_NB]
        lock = Lock(self._inos[fi.fh], LockKind.FLOCK, type_, fi.lock_owner, 0, SIZE_MAX, 0)
        self._take(fi.fh, lock, is_waiting=not operation & fcntl.LOCK_NB)

    def _take(self, fh: int, lock: Lock, is_waiting: bool) -> None:
        if not is_waiting or lock.type is LockType.UNLOCK:
            self._fs.setlk(fh, lock, None)
            return
        try:
            self._fs.setlk(fh, lock, None)
        except EverfoldError as err:
            if err.kind is not Kind.WOULD_BLOCK:
                raise
            self._wait_for(fh, lock)

    def _wait_for(self, fh: int, lock: Lock) -> None:
        # libfuse tells of an interrupt only when asked, and only on the request's own thread:
        # so another one waits for the lock.
        if not self._waiting.acquire(blocking=False):
            raise OSError(errno.ENOLCK, "too many programs wait for locks")
        cancel, ended = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def wait() -> None:
            try:
                self._fs.setlk(fh, lock, cancel)
            except Exception as err:  # noqa: BLE001 - raised again on the request's thread
                failures.append(err)
            finally:
                ended.set()

        try:
            threading.Thread(target=wait, name="fuse-lock", daemon=True).start()
            while not ended.wait(_POLL_S):
                if self._library._libfuse.fuse_interrupted():
                    cancel.set()
        finally:
            self._waiting.release()
        if failures:
            raise failures[0]
