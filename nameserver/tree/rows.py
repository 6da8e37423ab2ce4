"""The rows of the tree while a commit works on them: inodes, entries and versions in memory.

A row of the database is immutable once its commit is over, except that it gets closed. What a
commit changes is copied into one of these, changed here, and written when the commit ends.
`is_stored` tells that the database has the row (which is then updated, not inserted).
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

from everfold.model import Ino
from nameserver.db import Row

INODE_COLUMNS = (
    "mode, nlink, uid, gid, size, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " rdev, allocated, version, content, target, has_xattrs"
)
VERSION_COLUMNS = (
    "k, seq, at_ns, size, mtime_ns, mode, author, device, mount, content_ino,"
    " is_sealed, is_conflict, is_pinned, base"
)

_TYPE = 0o170000  # the bits of a mode that tell what an inode is


class VersionRow:
    """A row of `version`; see `models.Version`."""

    __slots__ = (
        "at_ns", "author", "base", "content_ino", "device", "is_conflict", "is_dirty",
        "is_pinned", "is_sealed", "is_stored", "k", "mode", "mount", "mtime_ns", "seq", "size",
    )  # fmt: skip

    def __init__(self, row: Row, is_stored: bool) -> None:
        (self.k, self.seq, self.at_ns, self.size, self.mtime_ns, self.mode, self.author,
         self.device, self.mount, self.content_ino, self.is_sealed, self.is_conflict,
         self.is_pinned, self.base) = row  # fmt: skip
        self.is_stored = is_stored
        self.is_dirty = False

    def values(self) -> Row:
        """Return what `VERSION_COLUMNS` name."""
        return (self.k, self.seq, self.at_ns, self.size, self.mtime_ns, self.mode, self.author,
                self.device, self.mount, self.content_ino, self.is_sealed, self.is_conflict,
                self.is_pinned, self.base)  # fmt: skip


class Inode:
    """The live row of an inode, and its current version once somebody asked for it."""

    __slots__ = (
        "allocated", "atime_ns", "born", "btime_ns", "content", "ctime_ns", "current", "gid",
        "has_xattrs", "ino", "is_known", "is_stored", "mode", "mtime_ns", "nlink", "rdev",
        "size", "target", "top", "uid", "version",
    )  # fmt: skip

    def __init__(self, ino: int, born: int, row: Row, is_stored: bool) -> None:
        self.ino = Ino(ino)
        self.born = born
        (self.mode, self.nlink, self.uid, self.gid, self.size, self.atime_ns, self.mtime_ns,
         self.ctime_ns, self.btime_ns, self.rdev, self.allocated, self.version, self.content,
         self.target, self.has_xattrs) = row  # fmt: skip
        self.is_stored = is_stored
        self.is_known = not is_stored  # whether the next two were asked for
        self.current: VersionRow | None = None  # see `Batch.current`
        self.top = 0  # the greatest k

    def learn(self, versions: Sequence[VersionRow]) -> None:
        """Know the current version, given it and those after it, in order."""
        self.current = versions[0] if versions and self.version else None
        self.top = versions[-1].k if versions else self.version
        self.is_known = True

    def values(self) -> Row:
        """Return what `INODE_COLUMNS` name."""
        return (self.mode, self.nlink, self.uid, self.gid, self.size, self.atime_ns,
                self.mtime_ns, self.ctime_ns, self.btime_ns, self.rdev, self.allocated,
                self.version, self.content, self.target, self.has_xattrs)  # fmt: skip

    @property
    def is_dir(self) -> bool:
        """Tell whether this is a directory."""
        return bool(self.mode & _TYPE == stat.S_IFDIR)

    @property
    def is_file(self) -> bool:
        """Tell whether this is a regular file."""
        return bool(self.mode & _TYPE == stat.S_IFREG)


class EntryRow:
    """A row of `entry`; see `models.Entry`."""

    __slots__ = ("born", "died", "ino", "is_dropped", "is_stored", "vbase", "vlast")

    def __init__(
        self, born: int, died: int | None, ino: int, vbase: int, vlast: int, is_stored: bool
    ) -> None:
        self.born = born
        self.died = died
        self.ino = ino
        self.vbase = vbase
        self.vlast = vlast
        self.is_stored = is_stored
        self.is_dropped = False


class Slot:
    """A name in a directory: its rows, newest last, as far back as this commit had to look."""

    __slots__ = ("name", "parent", "rows")

    def __init__(self, parent: int, name: bytes, newest: EntryRow | None) -> None:
        self.parent = parent
        self.name = name
        self.rows = [] if newest is None else [newest]

    @property
    def live(self) -> EntryRow | None:
        """Return the row of the present, None when the name is free."""
        if not self.rows:
            return None
        last = self.rows[-1]
        return last if last.died is None else None

    @property
    def used(self) -> int:
        """Return the greatest version number that a closed row of the name ever gave out."""
        closed = [row.vlast for row in self.rows if row.died is not None]
        return closed[-1] if closed else 0
