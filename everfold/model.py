"""All the nouns, on one page.

A **space** is one person's (or team's) tree. It has a commit number, `Seq`, that rises by
one with every commit; the tree is a set of rows with a life ``[born, died)`` in commit
numbers, so every past moment is still there and is asked for by its number (`seq` 0 means
"now").

An **inode** is a file, directory, link or node; its number is unique in its space and never
reused (so the FUSE generation is constant). An **entry** is a name in a directory that
leads to an inode. A file's bytes are **extents**: ``(offset, length) -> (block, offset in
block)``; what no extent covers is a hole and reads as zeros. A **block** is 1 byte to
`BLOCK_MAX` bytes, immutable, named by the BLAKE3-256 of its bytes, kept on several
**datanodes** as **replicas**; its name is good within one space only.

History follows the *name*. Every inode counts its content versions `k` = 1, 2, …; an entry
carries the offset that turns `k` into the version number of that name (`Version.number`),
so numbers rise along a name across the inodes that bore it, and are never reused.

Times are nanoseconds since the epoch, sizes and offsets are bytes, names are bytes without
``/`` and NUL, at most `NAME_MAX` long. All records are frozen; on the wire they are arrays
in field order (see `wire.py`): append fields at the end, with a default.
"""

from __future__ import annotations

import enum
import stat
from typing import NewType

import msgspec

SpaceId = NewType("SpaceId", int)
Ino = NewType("Ino", int)
Seq = NewType("Seq", int)
BlockId = NewType("BlockId", bytes)  # 32 bytes; .hex() in URLs and file names
NodeId = NewType("NodeId", str)  # "dn1"
MountId = NewType("MountId", str)  # one cache directory = one mount id, for its whole life
UserId = NewType("UserId", int)
DeviceId = NewType("DeviceId", str)

ROOT: Ino = Ino(1)
NOW: Seq = Seq(0)  # in a question: "as it is now"
NAME_MAX = 255
BLOCK_MAX = 4 * 1024 * 1024
SMALL_BLOCK = 64 * 1024  # below this a datanode packs blocks together
SIZE_MAX = (1 << 63) - 1
SYMLINK_MAX = 4095
LINK_MAX = 65_000
XATTR_NAME_MAX = 255
XATTR_SIZE_MAX = 65_536


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of everything that travels: frozen, compared by value, an array on the wire."""


class Attr(Record, frozen=True):
    """What stat(2) tells of an inode, and what the driver needs besides."""

    ino: Ino
    mode: int  # type and permission bits, as st_mode
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    rdev: int = 0
    allocated: int = 0  # bytes covered by extents
    version: int = 0  # k of the current content; 0: never written
    content: Seq = NOW  # the commit that last changed the bytes
    target: bytes = b""  # of a symlink
    has_xattrs: bool = False

    @property
    def is_dir(self) -> bool:
        """Tell whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Tell whether this is a regular file."""
        return stat.S_ISREG(self.mode)


class Entry(Record, frozen=True):
    """A name in a directory with the attributes of what it leads to."""

    name: bytes
    attr: Attr


class Extent(Record, frozen=True):
    """`length` bytes of a file at `offset` are those of `block` at `block_offset`."""

    offset: int
    length: int
    block: BlockId
    block_offset: int = 0

    @property
    def end(self) -> int:
        """Return the first offset after this extent."""
        return self.offset + self.length


class Version(Record, frozen=True):
    """One content that was visible at a name.

    `number` is the name's version number; (`ino`, `seq`) is where its bytes are read:
    `extents(ino, seq)`. `current` marks what the name shows now.
    """

    number: int
    ino: Ino
    seq: Seq
    at_ns: int  # when it was committed
    size: int
    mtime_ns: int
    mode: int
    author: str  # user name
    device: str  # device name, as shown in the version's file name
    sealed: bool = True  # False: a writer still holds the file open
    conflict: bool = False  # another machine saved over this without having seen it
    current: bool = False
    digest: bytes = b""  # equal for equal contents (BLAKE3 over size and normalised extents)


class HistoryName(Record, frozen=True):
    """A name that has, or had, something in a directory."""

    name: bytes
    mode: int  # of its newest inode
    is_live: bool
    died_ns: int = 0  # when it was deleted, 0 while live


class NodeState(enum.Enum):
    """Where a datanode stands, as the nameserver sees it."""

    UP = "up"
    SUSPECT = "suspect"  # missed beats: not written to, read last
    DOWN = "down"  # its blocks are being copied elsewhere
    DRAINING = "draining"  # readable, being emptied
    FAILED = "failed"  # an admin said so: behaves as dead at both ends
    REMOVED = "removed"


class Node(Record, frozen=True):
    """A datanode, as mounts and tools see it."""

    id: NodeId
    url: str
    state: NodeState
    zone: str = ""
    used: int = 0
    capacity: int = 0
    blocks: int = 0


class LockKind(enum.Enum):
    """flock(2) and fcntl(2) locks never see each other."""

    FLOCK = "flock"
    POSIX = "posix"


class LockType(enum.Enum):
    """What is asked of a byte range."""

    READ = "read"
    WRITE = "write"
    UNLOCK = "unlock"


class Lock(Record, frozen=True):
    """A lock on bytes ``[start, end)`` (end `SIZE_MAX`: to the end, whatever it becomes)."""

    ino: Ino
    kind: LockKind
    type: LockType
    owner: int  # the kernel's lock owner, unique within a mount
    start: int
    end: int
    pid: int


class SpaceUsage(Record, frozen=True):
    """What statfs and the quota show; all bytes but `inodes`."""

    live: int  # bytes of live files (logical)
    history: int  # bytes that only history names
    quota: int  # 0: none
    inodes: int
    free: int  # what the cluster can still take, replication considered
    capacity: int
