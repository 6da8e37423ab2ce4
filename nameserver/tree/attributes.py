"""The operations on attributes: owner, mode, times, extended attributes."""

from __future__ import annotations

from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import XATTR_NAME_MAX, XATTR_SIZE_MAX
from nameserver.tree import checks
from nameserver.tree.batch import Batch
from nameserver.tree.rows import Inode

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

_NOW: Final = "SELECT born FROM xattr WHERE space_id = ? AND ino = ? AND name = ? AND died IS NULL"
_ANY: Final = "SELECT 1 FROM xattr WHERE space_id = ? AND ino = ? AND died IS NULL LIMIT 1"
_ADD: Final = (
    "INSERT INTO xattr (space_id, ino, name, born, died, value) VALUES (?, ?, ?, ?, NULL, ?)"
)
_KEY: Final = "space_id = ? AND ino = ? AND name = ? AND born = ?"
_SET: Final = f"UPDATE xattr SET value = ? WHERE {_KEY}"
_CLOSE: Final = f"UPDATE xattr SET died = ? WHERE {_KEY}"
_DELETE: Final = f"DELETE FROM xattr WHERE {_KEY}"


def setattr(batch: Batch, op: wire.SetAttr) -> wire.Result:  # noqa: A001
    """See `wire.SetAttr`. Times alone of a directory have no history."""
    checks.int64(op.time_ns, op.atime_ns, op.mtime_ns)
    checks.permissions(op.mode)
    checks.owner(op.uid, op.gid)
    inode = batch.inode(op.ino)
    if inode.is_dir and op.mode is None and op.uid is None and op.gid is None:
        if inode.is_stored:
            batch.pending.dirty_inode(inode)
    else:
        batch.edit(inode)
    if op.mode is not None:
        inode.mode = inode.mode & ~0o7777 | op.mode
    if op.uid is not None:
        inode.uid = op.uid
    if op.gid is not None:
        inode.gid = op.gid
    if op.atime_ns is not None:
        inode.atime_ns = op.atime_ns
    if op.mtime_ns is not None:
        inode.mtime_ns = op.mtime_ns
        _date_version(batch, inode, op.mtime_ns)
    inode.ctime_ns = op.time_ns
    batch.changed("attr", inode.ino)
    return wire.Result(ino=inode.ino)


def _date_version(batch: Batch, inode: Inode, mtime_ns: int) -> None:
    """Give the current version the time that cp -p, tar and rsync set after the last write."""
    version = batch.current(inode)
    if version is not None:
        version.mtime_ns = mtime_ns
        batch.pending.dirty_version(inode.ino, version)


def set_xattr(batch: Batch, op: wire.SetXattr) -> wire.Result:
    """See `wire.SetXattr`. RANGE for a name, TOO_LARGE for a value beyond the limits."""
    checks.int64(op.time_ns)
    if not 1 <= len(op.name) <= XATTR_NAME_MAX or b"\0" in op.name:
        raise EverfoldError(Kind.RANGE, "not the name of an extended attribute")
    if len(op.value) > XATTR_SIZE_MAX:
        raise EverfoldError(Kind.TOO_LARGE, f"values have at most {XATTR_SIZE_MAX} bytes")
    if op.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise EverfoldError(Kind.INVALID, f"no such flags of setxattr: {op.flags}")
    inode = batch.inode(op.ino)
    born = _born(batch, op.ino, op.name)
    if born is not None and op.flags == XATTR_CREATE:
        raise EverfoldError(Kind.EXISTS, "the extended attribute is set already")
    if born is None and op.flags == XATTR_REPLACE:
        raise EverfoldError(Kind.NO_ATTR, "no such extended attribute")
    if born == batch.seq:
        batch.cx.run(_SET, op.value, batch.space, op.ino, op.name, born)
    else:
        if born is not None:
            batch.cx.run(_CLOSE, batch.seq, batch.space, op.ino, op.name, born)
        batch.cx.run(_ADD, batch.space, op.ino, op.name, batch.seq, op.value)
    _stamp(batch, inode, op.time_ns, has_xattrs=1)
    return wire.Result(ino=op.ino)


def remove_xattr(batch: Batch, op: wire.RemoveXattr) -> wire.Result:
    """See `wire.RemoveXattr`."""
    checks.int64(op.time_ns)
    inode = batch.inode(op.ino)
    born = _born(batch, op.ino, op.name)
    if born is None:
        raise EverfoldError(Kind.NO_ATTR, "no such extended attribute")
    if born == batch.seq:
        batch.cx.run(_DELETE, batch.space, op.ino, op.name, born)
    else:
        batch.cx.run(_CLOSE, batch.seq, batch.space, op.ino, op.name, born)
    left = batch.cx.one(_ANY, batch.space, op.ino)
    _stamp(batch, inode, op.time_ns, has_xattrs=1 if left else 0)
    return wire.Result(ino=op.ino)


def _born(batch: Batch, ino: int, name: bytes) -> int | None:
    row = batch.cx.one(_NOW, batch.space, ino, name)
    return row[0] if row else None


def _stamp(batch: Batch, inode: Inode, time_ns: int, has_xattrs: int) -> None:
    batch.edit(inode)
    inode.has_xattrs = has_xattrs
    inode.ctime_ns = time_ns
    batch.changed("attr", inode.ino)
