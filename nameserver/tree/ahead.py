"""Reads what the operations of a batch will ask for, many rows with one statement.

Each operation on a file that is there asks for the name, the inode and its versions, one
statement each. In a batch of many (somebody removes a tree) they are asked for together: an
unlink costs 60 us of processor time instead of 72. What is not found here is asked for when its
turn comes, and so is everything of a small batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from everfold import wire
from nameserver.db import select_in
from nameserver.tree.batch import Batch
from nameserver.tree.rows import INODE_COLUMNS, VERSION_COLUMNS, EntryRow, Inode, Slot, VersionRow

FEW: Final = 8  # for fewer it does not pay
_ENTRIES: Final = (
    "SELECT name, born, ino, vbase, vlast FROM entry INDEXED BY entry_now"
    " WHERE space_id = ? AND parent = ? AND name IN ({}) AND died IS NULL"
)
_INODES: Final = (
    f"SELECT ino, born, {INODE_COLUMNS} FROM inode INDEXED BY inode_now"
    " WHERE space_id = ? AND ino IN ({}) AND died IS NULL"
)
_VERSIONS: Final = (
    f"SELECT ino, {VERSION_COLUMNS} FROM version"
    " WHERE space_id = ? AND k >= ? AND ino IN ({}) ORDER BY ino, k"
)
_ON_A_NAME: Final = (wire.Unlink, wire.Rename)
_ON_AN_INODE: Final = (
    wire.Write, wire.SetAttr, wire.SetXattr, wire.RemoveXattr, wire.Seal, wire.Link,
)  # fmt: skip


def read(batch: Batch, ops: Sequence[wire.AnyOp]) -> None:
    """Let a batch know names and inodes, before its first operation is applied."""
    if len(ops) < FEW:
        return
    names: dict[int, list[bytes]] = {}
    inos: set[int] = set()
    made: set[int] = set()
    for op in ops:
        if isinstance(op, wire.Make):
            made.add(op.ino)
        elif isinstance(op, _ON_A_NAME):
            names.setdefault(op.parent, []).append(op.name)
        elif isinstance(op, _ON_AN_INODE):
            inos.add(op.ino)
    slots = [slot for parent, each in names.items() for slot in _slots(batch, parent, each)]
    inos.update(slot.rows[0].ino for slot in slots)
    inodes = _inodes(batch, sorted(ino for ino in inos - made if _is_number(ino)))
    batch.learn(inodes, slots)


def _slots(batch: Batch, parent: int, names: Sequence[bytes]) -> Iterator[Slot]:
    """Yield the names of a directory that lead somewhere now."""
    if len(names) < FEW or not _is_number(parent):
        return
    rows = select_in(batch.cx, _ENTRIES, (batch.space, parent), sorted(set(names)))
    for name, born, ino, vbase, vlast in rows:
        yield Slot(parent, name, EntryRow(born, None, ino, vbase, vlast, is_stored=True))


def _inodes(batch: Batch, inos: Sequence[int]) -> list[Inode]:
    """Return live inodes with their versions, as far as these come in numbers."""
    if len(inos) < FEW:
        return []
    rows = select_in(batch.cx, _INODES, (batch.space,), inos)
    found = [Inode(row[0], row[1], row[2:], is_stored=True) for row in rows]
    alike: dict[int, list[Inode]] = {}
    for inode in found:
        alike.setdefault(inode.version, []).append(inode)
    for version, inodes in alike.items():
        if len(inodes) >= FEW:
            _learn_versions(batch, version, inodes)
    return found


def _learn_versions(batch: Batch, version: int, inodes: Sequence[Inode]) -> None:
    """Let inodes whose content is version `version` know it, and those after it."""
    rows_of: dict[int, list[VersionRow]] = {}
    inos = [inode.ino for inode in inodes]
    for row in select_in(batch.cx, _VERSIONS, (batch.space, version), inos):
        rows_of.setdefault(row[0], []).append(VersionRow(row[1:], is_stored=True))
    for inode in inodes:
        inode.learn(rows_of.get(inode.ino, []))


def _is_number(ino: int) -> bool:
    return 0 < ino < 1 << 63
