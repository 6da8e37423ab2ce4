"""The operations of a commit: all the ways in which a tree can change."""

from __future__ import annotations

from typing import Final

from everfold.errors import EverfoldError
from everfold.model import Extent, Ino, Record


class Op(Record, frozen=True, tag_field="op"):
    """One change of a tree; `time_ns` is the client's clock and becomes mtime/ctime."""


class Make(Op, tag="make", frozen=True):
    """Create `name` in `parent` as the new inode `ino` (from `reserve`): any type.

    `mode` is final (umask and setgid inheritance already applied). EXISTS when the name is
    taken, NOT_FOUND when the parent is gone, NOT_DIR when it is no directory.
    """

    parent: Ino
    name: bytes
    ino: Ino
    mode: int
    uid: int
    gid: int
    time_ns: int
    rdev: int = 0
    target: bytes = b""


class Link(Op, tag="link", frozen=True):
    """Give the non-directory `ino` another name. EXISTS, TOO_MANY_LINKS, NOT_PERMITTED."""

    ino: Ino
    parent: Ino
    name: bytes
    time_ns: int


class Unlink(Op, tag="unlink", frozen=True):
    """Remove a name. `ino` is what the client saw there (0: whatever it is), else CONFLICT.

    With `is_rmdir` the name must be an empty directory (NOT_DIR, NOT_EMPTY), without it
    anything else (IS_DIR).
    """

    parent: Ino
    name: bytes
    ino: Ino
    is_rmdir: bool
    time_ns: int


RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class Rename(Op, tag="rename", frozen=True):
    """Move a name, as renameat2(2). `ino`/`replaced` are what the client saw at both ends.

    `ino` 0 skips the check of the source; `replaced` None skips that of the target, 0 means
    "nothing was there". CONFLICT when either is different now. Moving a directory into
    itself: INVALID.
    """

    parent: Ino
    name: bytes
    new_parent: Ino
    new_name: bytes
    time_ns: int
    ino: Ino = Ino(0)
    replaced: Ino | None = None
    flags: int = 0


class SetAttr(Op, tag="setattr", frozen=True):
    """Set what is not None. ctime becomes `time_ns`. Size is changed by `Write` alone."""

    ino: Ino
    time_ns: int
    mode: int | None = None  # permission bits only (07777)
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class SetXattr(Op, tag="setxattr", frozen=True):
    """Set an extended attribute; flags as setxattr(2): 1 CREATE (EXISTS), 2 REPLACE (NO_ATTR)."""

    ino: Ino
    name: bytes
    value: bytes
    flags: int
    time_ns: int


class RemoveXattr(Op, tag="removexattr", frozen=True):
    """Remove an extended attribute; NO_ATTR when there is none."""

    ino: Ino
    name: bytes
    time_ns: int


class Write(Op, tag="write", frozen=True):
    """Change the bytes of a file, in this order: cut, lay holes, lay extents, set the size.

    `cut`: everything from there on is dropped first (the smallest size that the file had
    since the last Write), None: nothing is. `holes` are (offset, length) that become holes.
    `extents` cover what they cover. `base` is the version `k` that the writer had seen; when
    another mount has written since, the result says `conflict` and the overwritten version
    is marked. A Write with `is_sealed` completes a version; without it the open version of
    this mount is replaced by the next Write of the same mount.

    `is_late`: replayed from a journal after the mount was away. If the base is stale then,
    the current content stays, and this one is kept as a version marked as a conflict.

    Every block named must be safe (see `Commit`).
    """

    ino: Ino
    base: int
    size: int
    mtime_ns: int
    time_ns: int
    extents: list[Extent]
    holes: list[tuple[int, int]] = []
    cut: int | None = None
    is_sealed: bool = True
    is_late: bool = False
    mode: int | None = None  # when the write took setuid/setgid away


class Seal(Op, tag="seal", frozen=True):
    """Complete the open version of a file that went quiet or was closed; no-op if sealed."""

    ino: Ino
    time_ns: int


class Restore(Op, tag="restore", frozen=True):
    """Make version `number` of a name its content again, by reference, as a new version.

    When the name is live its file keeps its inode, owner and mode; when it was deleted it is
    made again as `ino` (a reserved number) with the mode and owner it had.
    `from_parent`/`from_name`: whose history, when it is not the name's own (a `mv` out of
    another `.versions/`).
    """

    parent: Ino
    name: bytes
    number: int
    ino: Ino
    time_ns: int
    from_parent: Ino = Ino(0)
    from_name: bytes = b""


AnyOp = Make | Link | Unlink | Rename | SetAttr | SetXattr | RemoveXattr | Write | Seal | Restore


class Result(Record, frozen=True):
    """What became of one operation: `kind` "" when it was done, else the error's kind."""

    kind: str = ""
    message: str = ""
    ino: Ino = Ino(0)  # the inode concerned
    version: int = 0  # of Write, Seal, Restore: the k that the content has now
    conflict: bool = False  # of Write: another's version was overwritten unseen

    def check(self) -> None:
        """Raise the error that this result carries, if it carries one."""
        if self.kind:
            raise EverfoldError.from_wire({"kind": self.kind, "message": self.message})
