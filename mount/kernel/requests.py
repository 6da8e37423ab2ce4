"""Each request of the kernel as one call of `Filesystem`.

A handler gets the node it is about, the request's bytes and where they end, and returns the
payload of the answer; None means that no answer is due (yet), a number is the errno of what
is refused as a rule. Other errors are raised. A handler may
be run twice: a `MustWait` comes before any side effect (see `mount.patience`).

The request's buffer is used again for the next one: nothing may keep a view of it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import SIZE_MAX, Ino, Lock, LockKind, LockType
from mount import patience
from mount.filesystem import VIRTUAL_INO, Caller, Changes, DirItem, Filesystem
from mount.kernel import abi, encode
from mount.kernel.abi import BODY_AT, Fattr, Opcode

Payload = bytes | memoryview | int | None
Handler = Callable[[int, memoryview, int], Payload]

_LOCK_TYPES = (LockType.READ, LockType.WRITE, LockType.UNLOCK)  # F_RDLCK, F_WRLCK, F_UNLCK
_CAPABILITY = b"security.capability"
_NAME_ROOM = 32  # bytes that a name takes in a listing, as a guess of how many fit


def lock_of(nodeid: int, request: memoryview) -> tuple[int, Lock]:
    """Return the file handle and the lock of a GETLK, SETLK or SETLKW."""
    fh, owner, start, end, type_, pid, flags, _ = abi.LK_IN.unpack_from(request, BODY_AT)
    if type_ >= len(_LOCK_TYPES):
        raise EverfoldError(Kind.INVALID, f"lock type {type_}")
    kind = LockKind.FLOCK if flags & abi.LK_FLOCK else LockKind.POSIX
    end = SIZE_MAX if end >= SIZE_MAX else end + 1  # theirs is the last byte
    return fh, Lock(Ino(nodeid), kind, _LOCK_TYPES[type_], owner, start, end, pid)


def changes_of(request: memoryview) -> tuple[Changes, int | None]:
    """Return what a SETATTR is to change, and its file handle if it has one."""
    (valid, _, fh, size, _, a_s, m_s, c_s, a_ns, m_ns, c_ns, mode, _, uid, gid, _) = (
        abi.SETATTR_IN.unpack_from(request, BODY_AT)
    )
    changes = Changes(
        mode=mode if valid & Fattr.MODE else None,
        uid=uid if valid & Fattr.UID else None,
        gid=gid if valid & Fattr.GID else None,
        size=size if valid & Fattr.SIZE else None,
        atime_ns=a_s * 1_000_000_000 + a_ns if valid & Fattr.ATIME else None,
        mtime_ns=m_s * 1_000_000_000 + m_ns if valid & Fattr.MTIME else None,
        atime_now=bool(valid & Fattr.ATIME_NOW),
        mtime_now=bool(valid & Fattr.MTIME_NOW),
        ctime_ns=c_s * 1_000_000_000 + c_ns if valid & Fattr.CTIME else None,
        kill_priv=bool(valid & Fattr.KILL_SUIDGID),
    )
    return changes, fh if valid & Fattr.FH else None


class _Page(NamedTuple):
    """What READDIRPLUS answers, encoded: the first `delivered` of `items` fit into `size`."""

    items: Sequence[DirItem]
    size: int
    payload: bytes
    delivered: int


class Requests:
    """The table of handlers over one filesystem; the session adds its own to it."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._fs = filesystem
        self._last_caller = (b"", Caller(0, 0, 0))
        self._next_page: tuple[int, int, int, int] | None = None  # fh, cookie, limit, size
        self._prepared: _Page | None = None
        self.table: list[Handler | None] = [None] * abi.OPCODES
        for opcode in Opcode:
            self.table[opcode] = getattr(self, f"_{opcode.name.lower()}", None)

    def _caller(self, request: memoryview, umask: int = 0) -> Caller:
        # Runs of requests come from the same process: the last caller is kept.
        key = bytes(request[abi.CALLER_AT : abi.CALLER_AT + abi.IN_CALLER.size])
        last_key, last = self._last_caller
        if key == last_key and last.umask == umask:
            return last
        uid, gid, pid = abi.IN_CALLER.unpack(key)
        caller = Caller(uid, gid, pid, umask)
        self._last_caller = (key, caller)
        return caller

    # ------------------------------------------------------------ names and inodes

    def _lookup(self, nodeid: int, request: memoryview, end: int) -> Payload:
        node = self._fs.find(Ino(nodeid), bytes(request[BODY_AT : end - 1]))
        if node is not None:
            return encode.entry(node)
        ttl = self._fs.negative_ttl
        return encode.negative_entry(ttl) if ttl > 0 else errno.ENOENT

    def _forget(self, nodeid: int, request: memoryview, end: int) -> Payload:
        (count,) = abi.FORGET_IN.unpack_from(request, BODY_AT)
        self._fs.forget(Ino(nodeid), count)
        return None

    def _batch_forget(self, nodeid: int, request: memoryview, end: int) -> Payload:
        count, _ = abi.BATCH_FORGET_IN.unpack_from(request, BODY_AT)
        first = BODY_AT + abi.BATCH_FORGET_IN.size
        last = first + count * abi.FORGET_ONE.size
        for ino, references in abi.FORGET_ONE.iter_unpack(request[first:last]):
            self._fs.forget(ino, references)
        return None

    def _getattr(self, nodeid: int, request: memoryview, end: int) -> Payload:
        flags, _, fh = abi.GETATTR_IN.unpack_from(request, BODY_AT)
        return encode.attributes(
            self._fs.getattr(Ino(nodeid), fh if flags & abi.GETATTR_FH else None)
        )

    def _statx(self, nodeid: int, request: memoryview, end: int) -> Payload:
        flags, _, fh, _, _ = abi.STATX_IN.unpack_from(request, BODY_AT)
        return encode.statx(self._fs.getattr(Ino(nodeid), fh if flags & abi.GETATTR_FH else None))

    def _setattr(self, nodeid: int, request: memoryview, end: int) -> Payload:
        changes, fh = changes_of(request)
        return encode.attributes(self._fs.setattr(Ino(nodeid), changes, fh, self._caller(request)))

    def _readlink(self, nodeid: int, request: memoryview, end: int) -> Payload:
        return self._fs.readlink(Ino(nodeid))

    def _mknod(self, nodeid: int, request: memoryview, end: int) -> Payload:
        mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(request, BODY_AT)
        name = bytes(request[BODY_AT + abi.MKNOD_IN.size : end - 1])
        caller = self._caller(request, umask)
        return encode.entry(self._fs.mknod(Ino(nodeid), name, mode, encode.user_dev(rdev), caller))

    def _mkdir(self, nodeid: int, request: memoryview, end: int) -> Payload:
        mode, umask = abi.MKDIR_IN.unpack_from(request, BODY_AT)
        name = bytes(request[BODY_AT + abi.MKDIR_IN.size : end - 1])
        return encode.entry(self._fs.mkdir(Ino(nodeid), name, mode, self._caller(request, umask)))

    def _symlink(self, nodeid: int, request: memoryview, end: int) -> Payload:
        name, target = bytes(request[BODY_AT : end - 1]).split(b"\0", 1)
        return encode.entry(self._fs.symlink(Ino(nodeid), name, target, self._caller(request)))

    def _link(self, nodeid: int, request: memoryview, end: int) -> Payload:
        (ino,) = abi.LINK_IN.unpack_from(request, BODY_AT)
        name = bytes(request[BODY_AT + abi.LINK_IN.size : end - 1])
        return encode.entry(self._fs.link(ino, Ino(nodeid), name))

    def _unlink(self, nodeid: int, request: memoryview, end: int) -> Payload:
        self._fs.unlink(Ino(nodeid), bytes(request[BODY_AT : end - 1]))
        return b""

    def _rmdir(self, nodeid: int, request: memoryview, end: int) -> Payload:
        self._fs.rmdir(Ino(nodeid), bytes(request[BODY_AT : end - 1]))
        return b""

    def _rename(self, nodeid: int, request: memoryview, end: int) -> Payload:
        (newdir,) = abi.RENAME_IN.unpack_from(request, BODY_AT)
        names = bytes(request[BODY_AT + abi.RENAME_IN.size : end - 1])
        old, new = names.split(b"\0", 1)
        self._fs.rename(Ino(nodeid), old, newdir, new, 0)
        return b""

    def _rename2(self, nodeid: int, request: memoryview, end: int) -> Payload:
        newdir, flags, _ = abi.RENAME2_IN.unpack_from(request, BODY_AT)
        names = bytes(request[BODY_AT + abi.RENAME2_IN.size : end - 1])
        old, new = names.split(b"\0", 1)
        self._fs.rename(Ino(nodeid), old, newdir, new, flags)
        return b""

    # ------------------------------------------------------------ files

    def _create(self, nodeid: int, request: memoryview, end: int) -> Payload:
        flags, mode, umask, _ = abi.CREATE_IN.unpack_from(request, BODY_AT)
        name = bytes(request[BODY_AT + abi.CREATE_IN.size : end - 1])
        node, opened = self._fs.create(Ino(nodeid), name, mode, flags, self._caller(request, umask))
        return encode.entry(node) + encode.opened(opened)

    def _tmpfile(self, nodeid: int, request: memoryview, end: int) -> Payload:
        flags, mode, umask, _ = abi.CREATE_IN.unpack_from(request, BODY_AT)
        node, opened = self._fs.tmpfile(Ino(nodeid), mode, flags, self._caller(request, umask))
        return encode.entry(node) + encode.opened(opened)

    def _open(self, nodeid: int, request: memoryview, end: int) -> Payload:
        flags, open_flags = abi.OPEN_IN.unpack_from(request, BODY_AT)
        if open_flags & abi.OPEN_KILL_SUIDGID:  # O_TRUNC by one who may not keep the bits
            self._fs.setattr(Ino(nodeid), Changes(kill_priv=True), None, self._caller(request))
        return encode.opened(self._fs.open(Ino(nodeid), flags))

    def _read(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(request, BODY_AT)
        return self._fs.read(fh, offset, size)

    def _write(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, offset, size, flags, _, _, _ = abi.WRITE_IN.unpack_from(request, BODY_AT)
        at = BODY_AT + abi.WRITE_IN.size
        written = self._fs.write(
            fh, offset, request[at : at + size], bool(flags & abi.WRITE_KILL_SUIDGID)
        )
        return abi.SIZE_OUT.pack(written, 0)

    def _flush(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, _, _, lock_owner = abi.FLUSH_IN.unpack_from(request, BODY_AT)
        self._fs.flush(fh, lock_owner)
        return b""

    def _release(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, _, flags, lock_owner = abi.RELEASE_IN.unpack_from(request, BODY_AT)
        self._fs.release(fh, lock_owner, bool(flags & abi.RELEASE_FLOCK_UNLOCK))
        return b""

    def _fsync(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, flags, _ = abi.FSYNC_IN.unpack_from(request, BODY_AT)
        self._fs.fsync(fh, bool(flags & abi.FSYNC_FDATASYNC))
        return b""

    def _fallocate(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(request, BODY_AT)
        self._fs.fallocate(fh, mode, offset, length)
        return b""

    def _lseek(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, offset, whence, _ = abi.LSEEK_IN.unpack_from(request, BODY_AT)
        return abi.OFFSET_OUT.pack(self._fs.lseek(fh, offset, whence))

    def _copy_file_range(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh_in, off_in, _, fh_out, off_out, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(
            request, BODY_AT
        )
        copied = self._fs.copy_file_range(fh_in, off_in, fh_out, off_out, length)
        return abi.SIZE_OUT.pack(copied, 0)

    # ------------------------------------------------------------ directories

    def _opendir(self, nodeid: int, request: memoryview, end: int) -> Payload:
        # Where an absent name may be remembered, because we say when it appears, a listing may.
        # The kernel drops what it has of a directory when it changes it itself.
        may_keep = nodeid < VIRTUAL_INO and self._fs.negative_ttl > 0
        flags = abi.FOPEN_CACHE_DIR | abi.FOPEN_KEEP_CACHE if may_keep else 0
        return abi.OPEN_OUT.pack(self._fs.opendir(Ino(nodeid)), flags, 0)

    def _readdir(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, cookie, size, _, _, _, _ = abi.READ_IN.unpack_from(request, BODY_AT)
        limit = max(1, size // (abi.DIRENT.size + _NAME_ROOM))
        return encode.listing(self._fs.readdir(fh, cookie, limit, False), size)

    def _readdirplus(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, cookie, size, _, _, _, _ = abi.READ_IN.unpack_from(request, BODY_AT)
        limit = max(1, size // (abi.DIRENTPLUS.size + _NAME_ROOM))
        items = self._fs.readdir(fh, cookie, limit, True)
        page, self._prepared = self._prepared, None
        if page is None or page.size != size or page.items != items:
            page = _Page(items, size, *encode.listing_plus(items, size))
        self._take_back(items[page.delivered :])
        is_more = page.delivered < len(items) or len(items) == limit
        if is_more and page.delivered and nodeid < VIRTUAL_INO:
            self._next_page = (fh, items[page.delivered - 1].cookie, limit, size)
        return page.payload

    def prepare(self) -> None:
        """After an answer of READDIRPLUS: encode the next one while its reader is at this one.

        Used only if the listing is the same when it is asked for.
        """
        wanted, self._next_page = self._next_page, None
        if wanted is None:
            return
        fh, cookie, limit, size = wanted
        try:
            items = self._fs.readdir(fh, cookie, limit, True)
        except (EverfoldError, patience.MustWait):
            return  # the directory was closed, or this must wait: whoever asks finds out
        self._take_back(items)
        self._prepared = _Page(items, size, *encode.listing_plus(items, size))

    def _take_back(self, undelivered: Sequence[DirItem]) -> None:
        for item in undelivered:
            if item.node is not None:
                self._fs.forget(item.ino, 1)

    def _releasedir(self, nodeid: int, request: memoryview, end: int) -> Payload:
        (fh, _, _, _) = abi.RELEASE_IN.unpack_from(request, BODY_AT)
        self._fs.releasedir(fh)
        return b""

    def _fsyncdir(self, nodeid: int, request: memoryview, end: int) -> Payload:
        self._fs.fsyncdir(Ino(nodeid))
        return b""

    # ------------------------------------------------------------ the whole filesystem

    def _statfs(self, nodeid: int, request: memoryview, end: int) -> Payload:
        blocks, bfree, bavail, files, ffree = encode.space_figures(self._fs.statfs())
        unit = encode.BLOCK_SIZE
        return abi.STATFS_OUT.pack(blocks, bfree, bavail, files, ffree, unit, 255, unit, 0)

    def _syncfs(self, nodeid: int, request: memoryview, end: int) -> Payload:
        self._fs.syncfs()
        return b""

    # ------------------------------------------------------------ extended attributes

    def _getxattr(self, nodeid: int, request: memoryview, end: int) -> Payload:
        size, _ = abi.GETXATTR_IN.unpack_from(request, BODY_AT)
        name = bytes(request[BODY_AT + abi.GETXATTR_IN.size : end - 1])
        if name == _CAPABILITY and not self._fs.may_have_xattrs(Ino(nodeid)):
            return errno.ENODATA  # the kernel asks before it writes to a file that was opened
        return _sized(self._fs.getxattr(Ino(nodeid), name), size)

    def _listxattr(self, nodeid: int, request: memoryview, end: int) -> Payload:
        size, _ = abi.GETXATTR_IN.unpack_from(request, BODY_AT)
        names = self._fs.listxattr(Ino(nodeid))
        return _sized(b"".join(name + b"\0" for name in names), size)

    def _setxattr(self, nodeid: int, request: memoryview, end: int) -> Payload:
        size, flags = abi.SETXATTR_IN.unpack_from(request, BODY_AT)
        value = bytes(request[end - size : end])
        name = bytes(request[BODY_AT + abi.SETXATTR_IN.size : end - size - 1])
        self._fs.setxattr(Ino(nodeid), name, value, flags)
        return b""

    def _removexattr(self, nodeid: int, request: memoryview, end: int) -> Payload:
        self._fs.removexattr(Ino(nodeid), bytes(request[BODY_AT : end - 1]))
        return b""

    # ------------------------------------------------------------ locks (SETLKW: the session)

    def _getlk(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, wanted = lock_of(nodeid, request)
        held = self._fs.getlk(fh, wanted)
        if held is None:
            return abi.LK_OUT.pack(wanted.start, SIZE_MAX, _LOCK_TYPES.index(LockType.UNLOCK), 0)
        last = SIZE_MAX if held.end >= SIZE_MAX else held.end - 1
        return abi.LK_OUT.pack(held.start, last, _LOCK_TYPES.index(held.type), held.pid)

    def _setlk(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, lock = lock_of(nodeid, request)
        self._fs.setlk(fh, lock, None)
        return b""


def _sized(value: bytes, size: int) -> bytes:
    # The two steps of getxattr(2): asked with size 0, only the length is wanted.
    if size == 0:
        return abi.SIZE_OUT.pack(len(value), 0)
    if len(value) > size:
        raise EverfoldError(Kind.RANGE, f"the value takes {len(value)} bytes")
    return value
