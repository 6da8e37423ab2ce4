"""Reads what the operations of a batch will ask for, many rows with one statement.

Each operation on a file that is there asks for the name, the inode and its versions, one
statement each. In a batch of many (somebody removes a tree) three questions for 64 of them cost
a third of what they cost one by one. What is not found here is asked for when its turn
comes, and so is everything of a small batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from everfold import wire
from nameserver.tree.batch import Batch
from nameserver.tree.rows import INODE_COLUMNS, VERSION_COLUMNS, EntryRow, Inode, Slot, VersionRow

T = TypeVar("T")
FEW: Final = 8  # for fewer it does not pay
_AT_ONCE: Final = 64
_MARKS: Final = ", ".join("?" * _AT_ONCE)
_ENTRIES: Final = (
    "SELECT name, born, ino, vbase, vlast FROM entry INDEXED BY entry_now"
    f" WHERE space_id = ? AND parent = ? AND name IN ({_MARKS}) AND died IS NULL"
)
_INODES: Final = (
    f"SELECT ino, born, {INODE_COLUMNS} FROM inode INDEXED BY inode_now"
    f" WHERE space_id = ? AND ino IN ({_MARKS}) AND died IS NULL"
)
_VERSIONS: Final = (
    f"SELECT ino, {VERSION_COLUMNS} FROM version"
    f" WHERE space_id = ? AND ino IN ({_MARKS}) AND k >= ? ORDER BY ino, k"
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
    for part in _parts(sorted(set(names))):
        for name, born, ino, vbase, vlast in batch.cx.all(_ENTRIES, batch.space, parent, *part):
            yield Slot(parent, name, EntryRow(born, None, ino, vbase, vlast, is_stored=True))


def _inodes(batch: Batch, inos: Sequence[int]) -> list[Inode]:
    """Return live inodes with their versions, as far as these come in numbers."""
    if len(inos) < FEW:
        return []
    found: list[Inode] = []
    for part in _parts(inos):
        rows = batch.cx.all(_INODES, batch.space, *part)
        found += [Inode(row[0], row[1], row[2:], is_stored=True) for row in rows]
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
    for part in _parts([inode.ino for inode in inodes]):
        for ino, *row in batch.cx.all(_VERSIONS, batch.space, *part, version):
            rows_of.setdefault(ino, []).append(VersionRow(tuple(row), is_stored=True))
    for inode in inodes:
        inode.learn(rows_of.get(inode.ino, []))


def _parts(things: Sequence[T]) -> Iterable[list[T]]:
    """Yield them 64 at a time, the last ones filled up: one statement for all lengths."""
    for first in range(0, len(things), _AT_ONCE):
        part = list(things[first : first + _AT_ONCE])
        yield part + [part[-1]] * (_AT_ONCE - len(part))


def _is_number(ino: int) -> bool:
    return 0 < ino < 1 << 63
