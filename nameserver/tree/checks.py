"""What may come from outside: names, numbers, modes. Pure; each check raises or returns."""

from __future__ import annotations

import stat
from typing import Final

from everfold import wire
from everfold.blockid import BLOCK_ID_SIZE
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, NAME_MAX, SIZE_MAX, SYMLINK_MAX

VERSIONS_NAME: Final = b".versions"  # virtual in every directory; nothing real may bear it
_INT64: Final = 1 << 63
_ID_END: Final = 1 << 32
_TYPE: Final = 0o170000
_TYPES: Final = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR,
     stat.S_IFBLK)
)  # fmt: skip


def name(given: bytes) -> None:
    """Raise INVALID or NAME_TOO_LONG unless these bytes can be a name."""
    if not given or given in (b".", b"..") or b"/" in given or b"\0" in given:
        raise EverfoldError(Kind.INVALID, "not a name", repr(given[:80]))
    if len(given) > NAME_MAX:
        raise EverfoldError(Kind.NAME_TOO_LONG, f"names have at most {NAME_MAX} bytes")


def new_name(given: bytes) -> None:
    """Raise as `name` does, and NOT_PERMITTED for the one that is virtual."""
    name(given)
    if given == VERSIONS_NAME:
        raise EverfoldError(Kind.NOT_PERMITTED, "the name is that of the version folders")


def int64(*values: int | None) -> None:
    """Raise INVALID unless all fit into 64 bits with sign."""
    for value in values:
        if value is not None and not -_INT64 <= value < _INT64:
            raise EverfoldError(Kind.INVALID, f"not a 64-bit number: {value}")


def natural(*values: int) -> None:
    """Raise INVALID unless all are numbers from 0 up that fit."""
    for value in values:
        if not 0 <= value < _INT64:
            raise EverfoldError(Kind.INVALID, f"not a number from 0 up: {value}")


def owner(uid: int | None, gid: int | None) -> None:
    """Raise INVALID unless these are user and group ids (or None)."""
    for value in (uid, gid):
        if value is not None and not 0 <= value < _ID_END:
            raise EverfoldError(Kind.INVALID, f"not an owner: {value}")


def permissions(mode: int | None) -> None:
    """Raise INVALID unless these are permission bits alone (or None)."""
    if mode is not None and not 0 <= mode <= 0o7777:
        raise EverfoldError(Kind.INVALID, f"not permission bits: {mode:o}")


def making(op: wire.Make) -> None:
    """Raise INVALID unless the inode that `op` describes can be."""
    kind = op.mode & _TYPE
    if kind not in _TYPES or op.mode >> 16:
        raise EverfoldError(Kind.INVALID, f"not the mode of an inode: {op.mode:o}")
    if (kind == stat.S_IFLNK) != bool(op.target) or b"\0" in op.target:
        raise EverfoldError(Kind.INVALID, "symlinks, and they alone, have a target")
    if len(op.target) > SYMLINK_MAX:
        raise EverfoldError(Kind.NAME_TOO_LONG, "the target of the symlink is too long")
    if not (
        0 <= op.uid < _ID_END
        and 0 <= op.gid < _ID_END
        and 0 <= op.rdev < _INT64
        and -_INT64 <= op.time_ns < _INT64
        and -_INT64 <= op.ino < _INT64
    ):
        owner(op.uid, op.gid)
        natural(op.rdev)
        int64(op.time_ns, op.ino)


def writing(op: wire.Write, size_max: int) -> None:
    """Raise INVALID or TOO_LARGE unless the bytes that `op` describes can be."""
    if not (
        -_INT64 <= op.mtime_ns < _INT64 and -_INT64 <= op.time_ns < _INT64 and 0 <= op.base < _INT64
    ):
        int64(op.mtime_ns, op.time_ns)
        natural(op.base)
    permissions(op.mode)
    if op.size > size_max:
        raise EverfoldError(Kind.TOO_LARGE, f"files have at most {size_max} bytes")
    if op.size < 0 or (op.cut is not None and op.cut < 0):
        raise EverfoldError(Kind.INVALID, "sizes are not negative")
    for offset, length in op.holes:
        _range(offset, length)
    for extent in op.extents:
        offset, length, at = extent.offset, extent.length, extent.block_offset
        if offset < 0 or length < 0 or offset + length > SIZE_MAX:
            _range(offset, length)
        if len(extent.block) != BLOCK_ID_SIZE or length < 1 or at < 0 or at + length > BLOCK_MAX:
            raise EverfoldError(Kind.INVALID, f"not a piece of a block: {extent!r:.120}")


def _range(offset: int, length: int) -> None:
    if offset < 0 or length < 0:
        raise EverfoldError(Kind.INVALID, f"not a range of bytes: {offset}, {length}")
    if offset + length > SIZE_MAX:
        raise EverfoldError(Kind.TOO_LARGE, "beyond the largest offset")
