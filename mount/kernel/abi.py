"""The ABI of linux/fuse.h: numbers and layouts, nothing else.

Protocol 7.40. All fields are little or big endian as the machine is, without padding beyond
what the header file itself declares, hence the "=" in every layout. Each request begins with
`IN_HEADER` (40 bytes), each answer with `OUT_HEADER` (16 bytes).
"""

from __future__ import annotations

import enum
import struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 40  # the newest that we know
OLDEST_MINOR: Final = 31  # Linux 5.4


class Opcode(enum.IntEnum):
    """What the kernel may ask."""

    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    CREATE = 35
    INTERRUPT = 36  # no reply
    DESTROY = 38
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


OPCODES: Final = 64  # size of a table indexed by opcode; a greater one is unknown


class Notify(enum.IntEnum):
    """What we may tell the kernel unasked; stands where an answer has its error."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    DELETE = 6


class Init(enum.IntFlag):
    """Features, offered by the kernel in INIT and accepted in its answer."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30


class Init2(enum.IntFlag):
    """More features: the second word, where INIT_EXT is offered."""

    PASSTHROUGH = 1 << 5


class Fattr(enum.IntFlag):
    """Which fields of SETATTR are meant."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7

# ioctl(2) of /dev/fuse: _IOW(229, 1, BACKING_MAP) and _IOW(229, 2, BACKING_ID)
IOC_BACKING_OPEN: Final = 1 << 30 | 16 << 16 | 229 << 8 | 1
IOC_BACKING_CLOSE: Final = 1 << 30 | 4 << 16 | 229 << 8 | 2

GETATTR_FH: Final = 1 << 0
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FSYNC_FDATASYNC: Final = 1 << 0
LK_FLOCK: Final = 1 << 0

STATX_BASIC_AND_BTIME: Final = 0x0FFF

_ATTR = "QQQqqqIIIIIIIIII"  # ino size blocks, times, nanoseconds, mode nlink uid gid rdev …
_LOCK = "QQII"  # start, end (inclusive), F_* type, pid

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
IN_START: Final = struct.Struct("=IIQQ")  # length, opcode, unique, nodeid
IN_CALLER: Final = struct.Struct("=III")  # uid, gid, pid; at CALLER_AT of the header
CALLER_AT: Final = IN_START.size
BODY_AT: Final = IN_HEADER.size

OUT_HEADER: Final = struct.Struct("=IiQ")  # length, -errno, unique

INIT_IN: Final = struct.Struct("=IIII")  # major, minor, max_readahead, flags
INIT_IN_EXT: Final = struct.Struct("=I")  # flags2; behind the above where INIT_EXT is offered
# major minor max_readahead flags, max_background congestion_threshold, max_write time_gran,
# max_pages map_alignment, flags2 max_stack_depth, unused
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")

# nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec, attr
ENTRY_OUT: Final = struct.Struct("=QQQQII" + _ATTR)
ATTR_OUT: Final = struct.Struct("=QII" + _ATTR)  # valid, valid_nsec, -, attr
OPEN_OUT: Final = struct.Struct("=QII")  # fh, open_flags, backing_id
BACKING_MAP: Final = struct.Struct("=iIQ")  # fd flags -
BACKING_ID: Final = struct.Struct("=I")
SIZE_OUT: Final = struct.Struct("=II")  # write_out and getxattr_out
OFFSET_OUT: Final = struct.Struct("=Q")
STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")
LK_OUT: Final = struct.Struct("=" + _LOCK)

FORGET_IN: Final = struct.Struct("=Q")
BATCH_FORGET_IN: Final = struct.Struct("=II")
FORGET_ONE: Final = struct.Struct("=QQ")
GETATTR_IN: Final = struct.Struct("=IIQ")
# valid -, fh size lock_owner, atime mtime ctime, their nanoseconds, mode -, uid gid -
SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIIIIIII")
MKNOD_IN: Final = struct.Struct("=IIII")
MKDIR_IN: Final = struct.Struct("=II")
RENAME_IN: Final = struct.Struct("=Q")
RENAME2_IN: Final = struct.Struct("=QII")
LINK_IN: Final = struct.Struct("=Q")
OPEN_IN: Final = struct.Struct("=II")
CREATE_IN: Final = struct.Struct("=IIII")  # flags mode umask open_flags
RELEASE_IN: Final = struct.Struct("=QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN: Final = struct.Struct("=QIIQ")  # fh - - lock_owner
READ_IN: Final = struct.Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags -
WRITE_IN: Final = struct.Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags -
FSYNC_IN: Final = struct.Struct("=QII")
SETXATTR_IN: Final = struct.Struct("=II")  # size flags (the short form: no SETXATTR_EXT)
GETXATTR_IN: Final = struct.Struct("=II")
LK_IN: Final = struct.Struct("=QQ" + _LOCK + "II")  # fh owner, lock, lk_flags -
INTERRUPT_IN: Final = struct.Struct("=Q")
FALLOCATE_IN: Final = struct.Struct("=QQQII")  # fh offset length mode -
LSEEK_IN: Final = struct.Struct("=QQII")
# fh_in off_in nodeid_out fh_out off_out len flags
COPY_FILE_RANGE_IN: Final = struct.Struct("=QQQQQQQ")

DIRENT: Final = struct.Struct("=QQII")  # ino off namelen type; name, padded to 8 bytes
DIRENTPLUS: Final = struct.Struct(ENTRY_OUT.format + "QQII")

STATX_IN: Final = struct.Struct("=IIQII")  # getattr_flags - fh sx_flags sx_mask
# attr_valid nsec flags; mask blksize attributes nlink uid gid mode ino size blocks
# attributes_mask; atime btime ctime mtime (seconds, nanoseconds); rdev, dev
STATX_OUT: Final = struct.Struct("=QII16x" + "IIQIIIH2xQQQQ" + "qI4xqI4xqI4xqI4x" + "IIII" + "112x")

NOTIFY_INODE: Final = struct.Struct("=Qqq")  # ino offset length
NOTIFY_ENTRY: Final = struct.Struct("=QII")  # parent namelen flags; name NUL
NOTIFY_STORE: Final = struct.Struct("=QQII")  # ino offset size -; data
NOTIFY_DELETE: Final = struct.Struct("=QQII")  # parent child namelen -; name NUL
