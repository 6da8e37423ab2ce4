"""What a commit is going to write, collected so that each statement runs once for many rows.

Order matters within a table: rows are deleted and closed before others are inserted, because
at most one row of a thing may be live. `flush` may run any number of times in a commit; after
it, the database agrees with the rows in memory.
"""

from __future__ import annotations

from typing import Final

from nameserver.db import Cx, Row
from nameserver.tree.rows import INODE_COLUMNS, VERSION_COLUMNS, EntryRow, Inode, Slot, VersionRow


def _insert(table: str, key: str, columns: str) -> str:
    names = f"{key}, {columns}"
    marks = ", ".join("?" * len(names.split(",")))
    return f"INSERT INTO {table} ({names}) VALUES ({marks})"


def _update(table: str, columns: str, key: str) -> str:
    sets = ", ".join(f"{column.strip()} = ?" for column in columns.split(","))
    return f"UPDATE {table} SET {sets} WHERE {key}"


_INODE_KEY: Final = "space_id = ? AND ino = ? AND born = ?"
_INODE_INSERT: Final = _insert("inode", "space_id, ino, born, died", INODE_COLUMNS)
_INODE_UPDATE: Final = _update("inode", INODE_COLUMNS, _INODE_KEY)
_INODE_CLOSE: Final = f"UPDATE inode SET died = ? WHERE {_INODE_KEY}"
_INODE_DELETE: Final = f"DELETE FROM inode WHERE {_INODE_KEY}"
_ENTRY_KEY: Final = "space_id = ? AND parent = ? AND name = ? AND born = ?"
_ENTRY_INSERT: Final = _insert("entry", "space_id, parent, name", "born, died, ino, vbase, vlast")
_ENTRY_CLOSE: Final = f"UPDATE entry SET died = ?, vlast = ? WHERE {_ENTRY_KEY}"
_ENTRY_DELETE: Final = f"DELETE FROM entry WHERE {_ENTRY_KEY}"
_VERSION_INSERT: Final = _insert("version", "space_id, ino", VERSION_COLUMNS)
_VERSION_UPDATE: Final = _update("version", VERSION_COLUMNS, "space_id = ? AND ino = ? AND k = ?")
_EXTENT_KEY: Final = "space_id = ? AND ino = ? AND off = ? AND born = ?"
_EXTENT_INSERT: Final = _insert(
    "extent", "space_id, ino, off, born, died", "length, block, block_offset"
)
_EXTENT_CLOSE: Final = f"UPDATE extent SET died = ? WHERE {_EXTENT_KEY}"
_EXTENT_DELETE: Final = f"DELETE FROM extent WHERE {_EXTENT_KEY}"
_EXTENTS_END: Final = (
    "UPDATE extent INDEXED BY extent_now SET died = ?"
    " WHERE space_id = ? AND ino = ? AND died IS NULL"
)
_XATTRS_END: Final = "UPDATE xattr SET died = ? WHERE space_id = ? AND ino = ? AND died IS NULL"
_XATTRS_DELETE: Final = "DELETE FROM xattr WHERE space_id = ? AND ino = ? AND born = ?"
_LOG_INSERT: Final = _insert("commit_log", "space_id, seq", "at_ns, author, device, mount, changes")


class Pending:
    """The rows of one space that wait to be written."""

    def __init__(self, cx: Cx, space: int) -> None:
        self._cx = cx
        self._space = space
        self._fresh_inodes: dict[int, Inode] = {}
        self._dirty_inodes: dict[int, Inode] = {}
        self._past_inodes: list[Row] = []  # came and went within this transaction
        self._fresh_entries: list[tuple[Slot, EntryRow]] = []
        self._fresh_versions: list[tuple[int, VersionRow]] = []
        self._dirty_versions: list[tuple[int, VersionRow]] = []
        self._fresh_extents: list[Row] = []
        self._extent_inos: set[int] = set()
        self._rows: dict[str, list[Row]] = {}  # statement -> rows of values

    def _queue(self, statement: str, row: Row) -> None:
        self._rows.setdefault(statement, []).append(row)

    # ------------------------------------------------------------ inodes

    def fresh_inode(self, inode: Inode) -> None:
        """Insert this row (as it will be when it is written)."""
        self._fresh_inodes[inode.ino] = inode

    def dirty_inode(self, inode: Inode) -> None:
        """Update this row, which the database has."""
        self._dirty_inodes[inode.ino] = inode

    def close_inode(self, inode: Inode, seq: int) -> None:
        """Let the inode's row end at `seq`, as it is now."""
        if not inode.is_stored:
            del self._fresh_inodes[inode.ino]
            self._past_inodes.append((self._space, inode.ino, inode.born, seq, *inode.values()))
            return
        if self._dirty_inodes.pop(inode.ino, None):
            self._queue(_INODE_UPDATE, (*inode.values(), self._space, inode.ino, inode.born))
        self._queue(_INODE_CLOSE, (seq, self._space, inode.ino, inode.born))

    def end_inode(self, inode: Inode, seq: int) -> None:
        """Let the inode with its extents and attributes end at `seq`."""
        if inode.born < seq:
            self.close_inode(inode, seq)
        elif inode.is_stored:
            self._dirty_inodes.pop(inode.ino, None)
            self._queue(_INODE_DELETE, (self._space, inode.ino, inode.born))
        else:
            del self._fresh_inodes[inode.ino]
        if inode.allocated:
            self._queue(_EXTENTS_END, (seq, self._space, inode.ino))
        if inode.has_xattrs:
            self._queue(_XATTRS_DELETE, (self._space, inode.ino, seq))
            self._queue(_XATTRS_END, (seq, self._space, inode.ino))

    def hidden_inode(self, inode: Inode, died: int) -> None:
        """Insert a row that no name leads to, alive in one commit."""
        self._past_inodes.append((self._space, inode.ino, inode.born, died, *inode.values()))

    # ------------------------------------------------------------ entries

    def fresh_entry(self, slot: Slot, entry: EntryRow) -> None:
        """Insert this row (as it will be when it is written)."""
        self._fresh_entries.append((slot, entry))

    def close_entry(self, slot: Slot, entry: EntryRow) -> None:
        """Write the end of this row."""
        if entry.is_stored:
            values = (entry.died, entry.vlast, self._space, slot.parent, slot.name, entry.born)
            self._queue(_ENTRY_CLOSE, values)

    def drop_entry(self, slot: Slot, entry: EntryRow) -> None:
        """Forget a row that nobody saw."""
        entry.is_dropped = True
        if entry.is_stored:
            self._queue(_ENTRY_DELETE, (self._space, slot.parent, slot.name, entry.born))

    # ------------------------------------------------------------ versions, extents, log

    def fresh_version(self, ino: int, version: VersionRow) -> None:
        """Insert this row (as it will be when it is written)."""
        self._fresh_versions.append((ino, version))

    def dirty_version(self, ino: int, version: VersionRow) -> None:
        """Update this row if the database has it."""
        if version.is_stored and not version.is_dirty:
            version.is_dirty = True
            self._dirty_versions.append((ino, version))

    def has_extents_of(self, ino: int) -> bool:
        """Tell whether extents of this inode wait to be written."""
        return ino in self._extent_inos

    def open_extent(
        self, ino: int, offset: int, seq: int, died: int | None, piece: tuple[int, bytes, int]
    ) -> None:
        """Insert an extent: `piece` is (length, block, offset in block)."""
        self._extent_inos.add(ino)
        self._fresh_extents.append((self._space, ino, offset, seq, died, *piece))

    def close_extent(self, ino: int, offset: int, born: int, seq: int) -> None:
        """Let an extent end at `seq`; one that was born there never was."""
        self._extent_inos.add(ino)
        if born == seq:
            self._queue(_EXTENT_DELETE, (self._space, ino, offset, born))
        else:
            self._queue(_EXTENT_CLOSE, (seq, self._space, ino, offset, born))

    def log(self, row: Row) -> None:
        """Insert a row of the commit log."""
        self._queue(_LOG_INSERT, row)

    # ------------------------------------------------------------ writing

    def flush(self) -> None:
        """Write everything that waits."""
        self._flush_inodes()
        self._flush_entries()
        self._flush_versions()
        self._run_exactly(_EXTENT_DELETE)
        self._run_exactly(_EXTENT_CLOSE)
        self._cx.many(_EXTENT_INSERT, self._fresh_extents)
        self._fresh_extents.clear()
        self._extent_inos.clear()
        self._run(_EXTENTS_END)
        self._run(_XATTRS_DELETE)
        self._run(_XATTRS_END)
        self._run(_LOG_INSERT)

    def _run(self, statement: str) -> None:
        self._cx.many(statement, self._rows.pop(statement, []))

    def _run_exactly(self, statement: str, rows: list[Row] | None = None) -> None:
        """Change one row for each of `rows`; anything else would be a defect, and is undone."""
        asked = self._rows.pop(statement, []) if rows is None else rows
        if self._cx.many(statement, asked) != len(asked):
            raise RuntimeError(f"rows are not as they were read: {statement}")

    def _flush_inodes(self) -> None:
        self._run_exactly(_INODE_UPDATE)
        self._run_exactly(_INODE_DELETE)
        self._run_exactly(_INODE_CLOSE)
        self._run_exactly(
            _INODE_UPDATE,
            [(*i.values(), self._space, i.ino, i.born) for i in self._dirty_inodes.values()],
        )
        self._cx.many(_INODE_INSERT, self._past_inodes)
        fresh = list(self._fresh_inodes.values())
        self._cx.many(
            _INODE_INSERT, [(self._space, i.ino, i.born, None, *i.values()) for i in fresh]
        )
        for inode in fresh:
            inode.is_stored = True
        self._dirty_inodes.clear()
        self._past_inodes.clear()
        self._fresh_inodes.clear()

    def _flush_entries(self) -> None:
        self._run_exactly(_ENTRY_DELETE)
        self._run_exactly(_ENTRY_CLOSE)
        fresh = [(slot, entry) for slot, entry in self._fresh_entries if not entry.is_dropped]
        self._cx.many(
            _ENTRY_INSERT,
            [
                (self._space, s.parent, s.name, e.born, e.died, e.ino, e.vbase, e.vlast)
                for s, e in fresh
            ],
        )
        for _, entry in fresh:
            entry.is_stored = True
        self._fresh_entries.clear()

    def _flush_versions(self) -> None:
        self._run_exactly(
            _VERSION_UPDATE,
            [(*v.values(), self._space, ino, v.k) for ino, v in self._dirty_versions],
        )
        self._cx.many(
            _VERSION_INSERT, [(self._space, ino, *v.values()) for ino, v in self._fresh_versions]
        )
        for _, version in self._dirty_versions:
            version.is_dirty = False
        for _, version in self._fresh_versions:
            version.is_stored = True
        self._dirty_versions.clear()
        self._fresh_versions.clear()
