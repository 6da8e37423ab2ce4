"""Answers as the kernel wants them: values in, bytes out, no side effects.

A payload is what follows the header of an answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from everfold.model import SpaceUsage
from mount.filesystem import DirItem, Node, Opened
from mount.kernel import abi

BLOCK_SIZE = 4096  # unit of statfs
# What stat(2) recommends for buffers: programs that follow it (C stdio, Python's open) write in
# pieces of this size, and each piece is one request. Above 128 KiB malloc starts to map and
# unmap each buffer.
IO_SIZE = 64 * 1024
SPARE_INODES = 1 << 31  # inode numbers never run out; a figure that tools can show

_second = 1_000_000_000
_entry_out = abi.ENTRY_OUT.pack
_attr_out = abi.ATTR_OUT.pack
_open_out = abi.OPEN_OUT.pack


def entry(node: Node) -> bytes:
    """Return the payload that gives an inode, under a name, to the kernel."""
    attr, entry_ttl, attr_ttl = node
    a_s, a_ns = divmod(attr.atime_ns, _second)
    m_s, m_ns = divmod(attr.mtime_ns, _second)
    c_s, c_ns = divmod(attr.ctime_ns, _second)
    entry_s, attr_s, ino = int(entry_ttl), int(attr_ttl), attr.ino
    return _entry_out(
        ino,
        0,
        entry_s,
        attr_s,
        int((entry_ttl - entry_s) * _second),
        int((attr_ttl - attr_s) * _second),
        ino,
        attr.size,
        (attr.allocated + 511) >> 9,
        a_s,
        m_s,
        c_s,
        a_ns,
        m_ns,
        c_ns,
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        kernel_dev(attr.rdev) if attr.rdev else 0,
        IO_SIZE,
        0,
    )


def negative_entry(ttl: float) -> bytes:
    """Return the payload that says "no such name", good for `ttl` seconds."""
    seconds = int(ttl)
    nanoseconds = int((ttl - seconds) * _second)
    return _entry_out(0, 0, seconds, 0, nanoseconds, 0, *([0] * 16))


def attributes(node: Node) -> bytes:
    """Return the payload of GETATTR and SETATTR."""
    attr, _, ttl = node
    a_s, a_ns = divmod(attr.atime_ns, _second)
    m_s, m_ns = divmod(attr.mtime_ns, _second)
    c_s, c_ns = divmod(attr.ctime_ns, _second)
    ttl_s = int(ttl)
    return _attr_out(
        ttl_s,
        int((ttl - ttl_s) * _second),
        0,
        attr.ino,
        attr.size,
        (attr.allocated + 511) >> 9,
        a_s,
        m_s,
        c_s,
        a_ns,
        m_ns,
        c_ns,
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        kernel_dev(attr.rdev) if attr.rdev else 0,
        IO_SIZE,
        0,
    )


def statx(node: Node) -> bytes:
    """Return the payload of STATX: attributes and the time of birth."""
    attr, ttl = node.attr, node.attr_ttl
    return abi.STATX_OUT.pack(
        int(ttl),
        int((ttl - int(ttl)) * _second),
        0,
        abi.STATX_BASIC_AND_BTIME,
        IO_SIZE,
        0,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.mode,
        attr.ino,
        attr.size,
        (attr.allocated + 511) >> 9,
        0,
        *divmod(attr.atime_ns, _second),
        *divmod(attr.btime_ns, _second),
        *divmod(attr.ctime_ns, _second),
        *divmod(attr.mtime_ns, _second),
        os.major(attr.rdev),
        os.minor(attr.rdev),
        0,
        0,
    )


def opened(handle: Opened) -> bytes:
    """Return the payload of OPEN, and the second half of CREATE's."""
    fh, keep_cache, direct_io, no_flush, _ = handle
    flags = abi.FOPEN_KEEP_CACHE if keep_cache else 0
    if direct_io:
        flags |= abi.FOPEN_DIRECT_IO
    if no_flush:
        flags |= abi.FOPEN_NOFLUSH
    return _open_out(fh, flags, 0)


def listing(items: Sequence[DirItem], room: int) -> bytes:
    """Return as many whole entries of READDIR as fit into `room` bytes."""
    out: list[bytes] = []
    pack, fixed = abi.DIRENT.pack, abi.DIRENT.size
    for name, ino, mode, cookie, _ in items:
        length = len(name)
        size = (fixed + length + 7) & ~7
        room -= size
        if room < 0:
            break
        out.append(pack(ino, cookie, length, mode >> 12 & 15))
        out.append(name.ljust(size - fixed, b"\0"))
    return b"".join(out)


def listing_plus(items: Sequence[DirItem], room: int) -> tuple[bytes, int]:
    """Return what fits of READDIRPLUS, and how many items that was.

    Written out: with a call for each entry a name cost 4 us here, not 2.
    """
    out: list[bytes] = []
    pack, fixed = abi.DIRENTPLUS.pack, abi.DIRENTPLUS.size
    ttls = (0.0, 0.0)
    times = (0, 0, 0, 0)
    for count, (name, ino, mode, cookie, node) in enumerate(items):
        length = len(name)
        size = (fixed + length + 7) & ~7
        room -= size
        if room < 0:
            return b"".join(out), count
        if node is None:
            out.append(_no_entry)
            out.append(abi.DIRENT.pack(ino, cookie, length, mode >> 12 & 15))
        else:
            attr = node.attr
            if node[1:] != ttls:
                ttls = node[1:]
                times = _times(*ttls)
            atime, mtime, ctime = attr.atime_ns, attr.mtime_ns, attr.ctime_ns
            a_s, m_s, c_s = atime // _second, mtime // _second, ctime // _second
            out.append(
                pack(
                    ino,
                    0,
                    *times,
                    ino,
                    attr.size,
                    (attr.allocated + 511) >> 9,
                    a_s,
                    m_s,
                    c_s,
                    atime - a_s * _second,
                    mtime - m_s * _second,
                    ctime - c_s * _second,
                    attr.mode,
                    attr.nlink,
                    attr.uid,
                    attr.gid,
                    kernel_dev(attr.rdev) if attr.rdev else 0,
                    IO_SIZE,
                    0,
                    ino,
                    cookie,
                    length,
                    mode >> 12 & 15,
                )
            )
        out.append(name.ljust(size - fixed, b"\0"))
    return b"".join(out), len(items)


def _times(entry_ttl: float, attr_ttl: float) -> tuple[int, int, int, int]:
    """Return how long a name and attributes may be remembered: seconds, then nanoseconds."""
    entry_s, attr_s = int(entry_ttl), int(attr_ttl)
    return (
        entry_s,
        attr_s,
        int((entry_ttl - entry_s) * _second),
        int((attr_ttl - attr_s) * _second),
    )


_no_entry = bytes(abi.ENTRY_OUT.size)


class SpaceFigures(NamedTuple):
    """statvfs(3) of a space: counts of `BLOCK_SIZE` blocks, and of inodes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int


def space_figures(usage: SpaceUsage) -> SpaceFigures:
    """Return what df shows: the quota as the size of the disk where there is one."""
    if usage.quota:
        total, free = usage.quota, max(0, usage.quota - usage.live)
    else:
        total, free = usage.live + usage.history + usage.free, usage.free
    return SpaceFigures(
        total // BLOCK_SIZE,
        free // BLOCK_SIZE,
        min(free, usage.free) // BLOCK_SIZE,
        usage.inodes + SPARE_INODES,
        SPARE_INODES,
    )


def kernel_dev(rdev: int) -> int:
    """Return a device number as the kernel's `new_encode_dev` packs it into 32 bits."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def user_dev(packed: int) -> int:
    """Return the device number that `kernel_dev` packed."""
    return os.makedev((packed & 0xFFF00) >> 8, (packed & 0xFF) | ((packed >> 12) & 0xFFF00))
