"""One commit at work: what it has read of the tree, and what it is going to write.

The operations change rows here, in memory; `finish` writes them with a few statements run many
times. What was read is right until the end, because the space's row is locked.

Invariant: a row is changed in place only while `born` is the number that this commit is
writing; a directory's times and link count are the exception, they have no history. A commit
that would lose what history must keep (a content, or a name that showed one) takes another
number first (`next_seq`), so one batch may be several commits; to others they appear at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import MountId, Seq, SpaceId
from nameserver.db import Cx
from nameserver.tree import checks
from nameserver.tree.pending import Pending
from nameserver.tree.rows import INODE_COLUMNS, VERSION_COLUMNS, EntryRow, Inode, Slot, VersionRow
from nameserver.tree.swaps import Swap, lost

_INODE: Final = (
    f"SELECT born, {INODE_COLUMNS} FROM inode INDEXED BY inode_now"
    " WHERE space_id = ? AND ino = ? AND died IS NULL"
)
_NEXT_USED: Final = "SELECT ino FROM inode WHERE space_id = ? AND ino >= ? ORDER BY ino LIMIT 1"
_NEXT_NAME: Final = (
    "SELECT name FROM entry WHERE space_id = ? AND parent = ? AND name >= ? ORDER BY name LIMIT 1"
)
_NEWEST_ENTRY: Final = (
    "SELECT born, died, ino, vbase, vlast FROM entry"
    " WHERE space_id = ? AND parent = ? AND name = ? ORDER BY born DESC LIMIT 1"
)
_SHOWN_BEFORE: Final = (
    "SELECT vlast - vbase FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ?"
    " AND parent = ? AND name = ? AND born < ? ORDER BY born DESC LIMIT 1"
)
_VERSIONS: Final = (
    f"SELECT {VERSION_COLUMNS} FROM version WHERE space_id = ? AND ino = ? AND k >= ? ORDER BY k"
)
_ANY_CHILD: Final = (
    "SELECT 1 FROM entry INDEXED BY entry_now"
    " WHERE space_id = ? AND parent = ? AND died IS NULL LIMIT 1"
)
_PARENT: Final = (
    "SELECT parent FROM entry INDEXED BY entry_ino"
    " WHERE space_id = ? AND ino = ? AND died IS NULL LIMIT 1"
)
_JUNCTIONS: Final = (
    "SELECT m.ino FROM member m JOIN team t ON t.space_id = m.space_id AND t.deleted_ns = 0"
    " WHERE m.home_id = ?"
)


class Author(NamedTuple):
    """Who commits, as history shows it."""

    user: str
    device: str


class SpaceState(NamedTuple):
    """The row of a space as the commit found it; `quota` 0: none, else what is left of it."""

    seq: int
    next_ino: int
    at_ns: int  # of commit `seq`
    quota_left: int | None


class Batch:
    """The operations of one `wire.Commit` on the tree of one space."""

    def __init__(
        self, cx: Cx, space: SpaceId, state: SpaceState, author: Author, mount: MountId, now_ns: int
    ) -> None:
        self.cx = cx
        self.space = space
        self.author = author
        self.mount = mount
        self.first = Seq(state.seq + 1)
        self.seq = state.seq + 1
        self.at_ns = max(now_ns, state.at_ns + 1)
        self.next_ino = self._reserved = state.next_ino
        self.size_max = 0  # set by the tree: the largest file
        self.sound: set[int] = set()  # ids of operations that were looked at before
        self.live_bytes = self.history_bytes = self.inodes = 0  # by how much they change
        self._swaps: dict[int, list[Swap]] = {}  # of the commit being written
        self._quota_left = state.quota_left
        self._inodes: dict[int, Inode | None] = {}
        self._slots: dict[tuple[int, bytes], Slot] = {}
        self._made: set[int] = set()  # inodes that these operations made
        self._named: set[int] = set()  # inodes that got a name in the commit being written
        self._unused = (0, 0)  # inode numbers [from, to) that the database never had
        self._free: dict[int, tuple[bytes, bytes | None]] = {}  # and names, of a directory
        self._junctions: frozenset[int] | None = None
        self._changes: dict[tuple[object, ...], tuple[object, ...]] = {}
        self.pending = Pending(cx, space)

    # ------------------------------------------------------------ reading

    def learn(self, inodes: Iterable[Inode], slots: Iterable[Slot]) -> None:
        """Take in what was read before the first operation; see `ahead`."""
        self._inodes.update((inode.ino, inode) for inode in inodes)
        self._slots.update(((slot.parent, slot.name), slot) for slot in slots)

    def inode(self, ino: int) -> Inode:
        """Return a live inode; NOT_FOUND when there is none."""
        found = self._inodes.get(ino)
        if found is not None:
            return found
        if ino not in self._inodes:
            row = self.cx.one(_INODE, self.space, ino) if 0 < ino < 1 << 63 else None
            found = Inode(ino, row[0], row[1:], is_stored=True) if row else None
            if found is not None:
                self._inodes[ino] = found
        if found is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such inode", str(ino))
        return found

    def is_live(self, ino: int) -> bool:
        """Tell whether there is such an inode."""
        try:
            self.inode(ino)
        except EverfoldError:
            return False
        return True

    def directory(self, ino: int) -> Inode:
        """Return a live directory that names may be in; NOT_FOUND, NOT_DIR, NOT_PERMITTED."""
        found = self.inode(ino)
        if not found.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "not a directory", str(ino))
        if self.is_junction(ino):
            raise EverfoldError(Kind.NOT_PERMITTED, "a team folder's place holds nothing", str(ino))
        return found

    def is_junction(self, ino: int) -> bool:
        """Tell whether this directory only stands for a team folder, which is another space."""
        if self._junctions is None:
            rows = self.cx.all(_JUNCTIONS, self.space)
            self._junctions = frozenset(row[0] for row in rows)
        return ino in self._junctions

    def check_removable(self, directory: Inode) -> None:
        """Raise NOT_PERMITTED for a junction: it goes with the membership and not before."""
        if self.is_junction(directory.ino):
            raise EverfoldError(Kind.NOT_PERMITTED, "a team folder is left, not removed")

    def file(self, ino: int) -> Inode:
        """Return a live regular file; NOT_FOUND, IS_DIR, INVALID."""
        found = self.inode(ino)
        if found.is_dir:
            raise EverfoldError(Kind.IS_DIR, "a directory", str(ino))
        if not found.is_file:
            raise EverfoldError(Kind.INVALID, "not a regular file", str(ino))
        return found

    def slot(self, parent: int, name: bytes) -> Slot:
        """Return what stands, or last stood, at a name."""
        found = self._slots.get((parent, name))
        if found is None:
            row = self.cx.one(_NEWEST_ENTRY, self.space, parent, name)
            newest = EntryRow(*(*row, True)) if row else None
            found = self._slots[parent, name] = Slot(parent, name, newest)
        return found

    def new_slot(self, parent: int, name: bytes) -> Slot:
        """Return what `slot` does; quicker for names that never were, if they come in numbers.

        One question tells the whole gap that a name lies in, and there is none to ask about a
        directory that this commit made.
        """
        found = self._slots.get((parent, name))
        if found is not None:
            return found
        if parent not in self._made:
            start, end = self._free.get(parent, (b"", b""))
            if name < start or (end is not None and name >= end):
                row = self.cx.one(_NEXT_NAME, self.space, parent, name)
                if row is not None and row[0] == name:
                    return self.slot(parent, name)
                self._free[parent] = (name, row[0] if row else None)
        found = self._slots[parent, name] = Slot(parent, name, None)
        return found

    def current(self, inode: Inode) -> VersionRow | None:
        """Return the version that is the inode's content now; `inode.top` is known after it."""
        if not inode.is_known:
            rows = self.cx.all(_VERSIONS, self.space, inode.ino, inode.version)
            inode.learn([VersionRow(row, is_stored=True) for row in rows])
        return inode.current

    def is_empty(self, directory: Inode) -> bool:
        """Tell whether no name is in a directory."""
        self.pending.flush()
        return self.cx.one(_ANY_CHILD, self.space, directory.ino) is None

    def parent_of(self, directory: int) -> int | None:
        """Return the directory that a directory is in; None for the root."""
        self.pending.flush()
        row = self.cx.one(_PARENT, self.space, directory)
        return row[0] if row else None

    def check_fresh(self, ino: int) -> None:
        """Raise INVALID unless this inode number was reserved and never used."""
        if not 1 < ino < self._reserved:
            raise EverfoldError(Kind.INVALID, "the inode number was not reserved", str(ino))
        if ino not in self._inodes:
            start, end = self._unused
            if start <= ino < end:
                return
            row = self.cx.one(_NEXT_USED, self.space, ino)
            self._unused = (ino, row[0] if row else self._reserved)
            if row is None or row[0] > ino:
                return
        raise EverfoldError(Kind.INVALID, "the inode number was used before", str(ino))

    def check_writing(self, op: wire.Write) -> None:
        """Raise INVALID or TOO_LARGE unless the bytes that `op` describes can be."""
        if id(op) not in self.sound:
            checks.writing(op, self.size_max)

    @property
    def quota_left(self) -> int | None:
        """Return what the owner may still store, after what was applied; None without a quota."""
        return None if self._quota_left is None else self._quota_left - self.live_bytes

    def check_quota(self, growth: int) -> None:
        """Raise QUOTA when the owner may not have `growth` bytes more."""
        left = self.quota_left
        if left is not None and growth > 0 and growth > left:
            raise EverfoldError(Kind.QUOTA, "the quota is used up")

    def swapped(self, ino: int, swap: Swap) -> None:
        """Note that bytes of a file took the place of others, in the commit being written."""
        self._swaps.setdefault(ino, []).append(swap)

    def _add_history(self) -> None:
        """Add up what the commit being written leaves to history of the files it changed."""
        for swaps in self._swaps.values():
            self.history_bytes += lost(swaps, self.seq)
        self._swaps.clear()

    # ------------------------------------------------------------ time

    def next_seq(self) -> None:
        """Close the commit that is being written and go on with the next number."""
        self._log()
        self._add_history()
        self._named.clear()
        self.seq += 1
        self.at_ns += 1

    def is_shown_first(self, inode: Inode) -> bool:
        """Tell whether only the commit being written shows what the inode has, at some name."""
        return inode.content == self.seq or (not inode.size and inode.ino in self._named)

    def keep(self, entry: EntryRow, inode: Inode) -> None:
        """Before a name lets go of an inode: keep what it shows, if only this commit made it."""
        if (inode.version or inode.top) and self.seq in (entry.born, inode.content):
            self.next_seq()

    # ------------------------------------------------------------ changing inodes

    def add(self, inode: Inode) -> None:
        """Take in a new inode, born now."""
        self._inodes[inode.ino] = inode
        self._made.add(inode.ino)
        self.pending.fresh_inode(inode)
        self.inodes += 1

    def edit(self, inode: Inode) -> Inode:
        """Make the inode's row one of this commit: the row before it stays as it was."""
        if inode.born == self.seq:
            if inode.is_stored:
                self.pending.dirty_inode(inode)
        else:
            self.pending.close_inode(inode, self.seq)
            inode.born = self.seq
            inode.is_stored = False
            self.pending.fresh_inode(inode)
        return inode

    def touch(self, directory: Inode, time_ns: int, nlink: int = 0) -> None:
        """Give a directory new times and `nlink` more subdirectories, without history."""
        directory.mtime_ns = directory.ctime_ns = time_ns
        directory.nlink += nlink
        if directory.is_stored:
            self.pending.dirty_inode(directory)

    def kill(self, inode: Inode) -> None:
        """End an inode that lost its last name; its past stays."""
        self._inodes[inode.ino] = None
        self.pending.end_inode(inode, self.seq)
        self.inodes -= 1
        self.history_bytes += inode.allocated
        if inode.is_file:
            self.live_bytes -= inode.size

    # ------------------------------------------------------------ changing names

    def open_entry(self, slot: Slot, inode: Inode) -> None:
        """Let a free name lead to `inode` from now on."""
        used = slot.used if slot.rows else 0
        is_old = inode.top > 0 or not inode.is_known
        shown = self._shown_before(slot, inode) if used and is_old else 0
        entry = EntryRow(self.seq, None, inode.ino, used - shown, 0, is_stored=False)
        slot.rows.append(entry)
        self._named.add(inode.ino)
        self.pending.fresh_entry(slot, entry)
        self.changed("entry", inode.ino, slot.parent, slot.name)

    def close_entry(self, slot: Slot, inode: Inode) -> None:
        """Let a name lead nowhere from now on. `keep` has been asked before."""
        entry = slot.rows[-1]
        if entry.born == self.seq:
            slot.rows.pop()
            self.pending.drop_entry(slot, entry)
        else:
            current = self.current(inode)
            entry.died = self.seq
            entry.vlast = entry.vbase + inode.top
            self.pending.close_entry(slot, entry)
            if current is not None:
                self.seal(inode, current)  # what the name shows at its end stays as it is
        self.changed("entry", 0, slot.parent, slot.name)

    def _shown_before(self, slot: Slot, inode: Inode) -> int:
        """Return the greatest k that `inode` showed at this name in an earlier life there."""
        for row in reversed(slot.rows):
            if row.ino == inode.ino:
                return row.vlast - row.vbase
        found = self.cx.one(
            _SHOWN_BEFORE, self.space, inode.ino, slot.parent, slot.name, slot.rows[0].born
        )
        return found[0] if found else 0

    # ------------------------------------------------------------ changing versions

    def seal(self, inode: Inode, version: VersionRow) -> None:
        """Complete a version."""
        if not version.is_sealed:
            version.is_sealed = 1
            self.pending.dirty_version(inode.ino, version)

    def add_version(self, inode: Inode, version: VersionRow) -> None:
        """Add a version as the newest of `inode`; whether it is current is the caller's."""
        inode.top = version.k
        self.pending.fresh_version(inode.ino, version)

    # ------------------------------------------------------------ the end

    def changed(
        self, what: str, ino: int, parent: int = 0, name: bytes = b"", at: int = 0, length: int = 0
    ) -> None:
        """Note what the feed will tell; of several notes on one name the last one counts."""
        key = (parent, name) if what == "entry" else (what, ino, at, length)
        self._changes.pop(key, None)
        self._changes[key] = (what, ino, parent, name, at, length)  # a `wire.Change` on the wire

    def finish(self) -> Seq:
        """Write everything; return the commit number that the space has then."""
        self._add_history()
        if self._changes:
            self._log()
        else:
            self.seq -= 1
        self.pending.flush()
        self.cx.run(
            "UPDATE space SET seq = ?, next_ino = ?, live_bytes = live_bytes + ?,"
            " history_bytes = history_bytes + ?, inodes = inodes + ? WHERE id = ?",
            self.seq, self.next_ino, self.live_bytes, self.history_bytes, self.inodes, self.space,
        )  # fmt: skip
        return Seq(self.seq)

    def _log(self) -> None:
        user, device = self.author
        told = wire.encode(list(self._changes.values()))
        self._changes.clear()
        self.pending.log((self.space, self.seq, self.at_ns, user, device, self.mount, told))
