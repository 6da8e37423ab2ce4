"""Late writes: what a mount did while it was away, when others have gone on meanwhile.

Nothing that a mount acknowledged is lost, and what others saved meanwhile stays current: the
late content is kept as the bytes of a hidden inode (a number that no name ever leads to) and
listed as a version marked as a conflict. It is what the write makes of the content that its
mount had: its own newest version over the same base, else the base itself. So several late
writes go on from each other, and an open one is replaced by the next.

When the file was deleted meanwhile, its last name tells the conflict, as a version of the file
that stands there now, or that was the last to stand there.
"""

from __future__ import annotations

from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.extents import PieceMap
from everfold.model import BlockId
from nameserver.tree import extents, history, versions
from nameserver.tree.batch import Batch
from nameserver.tree.extents import Patch
from nameserver.tree.rows import VERSION_COLUMNS, EntryRow, Inode, Slot, VersionRow

_OWN: Final = (
    f"SELECT {VERSION_COLUMNS} FROM version WHERE space_id = ? AND ino = ? AND mount = ?"
    " AND base = ? ORDER BY k DESC LIMIT 1"
)
_OWN_ELSEWHERE: Final = (
    f"SELECT {VERSION_COLUMNS} FROM version WHERE space_id = ? AND ino = ? AND mount = ?"
    " AND base = ? AND EXISTS (SELECT 1 FROM inode h WHERE h.space_id = version.space_id"
    " AND h.ino = version.content_ino AND h.ino <> version.ino AND h.rdev = ?)"
    " ORDER BY k DESC LIMIT 1"
)
_BASE: Final = (
    f"SELECT {VERSION_COLUMNS} FROM version WHERE space_id = ? AND ino = ? AND k <= ?"
    " ORDER BY k DESC LIMIT 1"
)
_SEAL: Final = (
    "UPDATE version INDEXED BY version_open SET is_sealed = 1"
    " WHERE space_id = ? AND mount = ? AND is_sealed = 0"
    " AND EXISTS (SELECT 1 FROM inode h WHERE h.space_id = version.space_id"
    " AND h.ino = version.content_ino AND h.ino <> version.ino AND h.rdev = ?)"
)
_TOP: Final = "SELECT k FROM version WHERE space_id = ? AND ino = ? ORDER BY k DESC LIMIT 1"
_LAST_NAME: Final = (
    "SELECT parent, name FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ?"
    " ORDER BY died DESC LIMIT 1"
)


def keep_aside(batch: Batch, op: wire.Write, inode: Inode, patch: Patch) -> wire.Result:
    """Keep the bytes of a late write to a live file as a conflict of it."""
    batch.pending.flush()
    own = _row(batch, _OWN, inode.ino, batch.mount, op.base)
    pieces = _pieces(batch, op, own, patch)
    if _is_current(batch, inode, op.size, pieces):
        return wire.Result(ino=op.ino, version=inode.version)
    hidden = _hidden(batch, op, inode, pieces)
    if own is not None and _is_open(own, inode.ino):
        return _renew(batch, op, inode.ino, own, hidden)
    version = versions.new(batch, hidden, inode.top + 1, op.base, op.is_sealed)
    batch.add_version(inode, version)
    return _conflict(batch, op, inode.ino, version)


def keep_after_death(batch: Batch, op: wire.Write, patch: Patch) -> wire.Result:
    """Keep the bytes of a late write to a file that was deleted; NOT_FOUND when nowhere fits."""
    batch.pending.flush()
    row = batch.cx.one(_LAST_NAME, batch.space, op.ino)
    if row is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such inode", str(op.ino))
    slot = batch.slot(*row)
    newest = slot.rows[-1]
    heir = newest.ino
    own = _row(batch, _OWN_ELSEWHERE, heir, batch.mount, op.base, op.ino)
    whose = heir
    if own is None:
        own, whose = _row(batch, _OWN, op.ino, batch.mount, op.base), op.ino
    pieces = _pieces(batch, op, own, patch)
    dead = Inode(op.ino, 0, history.last_inode(batch.cx, batch.space, op.ino), is_stored=True)
    is_open = own is not None and _is_open(own, whose)
    k = 0 if is_open else _next_k(batch, slot, newest)
    hidden = _hidden(batch, op, dead, pieces)
    if own is not None and is_open:
        return _renew(batch, op, whose, own, hidden)
    version = versions.new(batch, hidden, k, op.base, op.is_sealed)
    batch.pending.fresh_version(heir, version)
    return _conflict(batch, op, heir, version)


def seal(batch: Batch, ino: int) -> bool:
    """Complete this mount's open conflicts of a file, live or dead; tell whether there were any."""
    batch.pending.flush()
    return batch.cx.run(_SEAL, batch.space, batch.mount, ino) > 0


def _next_k(batch: Batch, slot: Slot, newest: EntryRow) -> int:
    """Take the next version of the inode that stands, or was the last to stand, at a name."""
    if newest.died is None:
        heir = batch.inode(newest.ino)
        if not heir.is_file:
            raise EverfoldError(Kind.NOT_FOUND, "the file is gone, and its name is taken")
        batch.current(heir)
        heir.top += 1
        return heir.top
    row = batch.cx.one(_TOP, batch.space, newest.ino)
    top = row[0] if row else 0
    if newest.vlast - newest.vbase != top or batch.is_live(newest.ino):
        raise EverfoldError(Kind.NOT_FOUND, "the file is gone, and so is its name's last file")
    newest.vlast += 1
    batch.pending.close_entry(slot, newest)
    return int(top) + 1


def _row(batch: Batch, statement: str, *values: object) -> VersionRow | None:
    row = batch.cx.one(statement, batch.space, *values)
    return VersionRow(row, is_stored=True) if row else None


def _is_open(version: VersionRow, ino: int) -> bool:
    """Tell whether this is a conflict that the next late write replaces."""
    return not version.is_sealed and version.content_ino != ino


def _pieces(
    batch: Batch, op: wire.Write, own: VersionRow | None, patch: Patch
) -> PieceMap[BlockId]:
    """Return what a write makes of the content that its mount had."""
    origin = own or _row(batch, _BASE, op.ino, op.base)
    before = extents.at(batch.cx, batch.space, origin.content_ino, origin.seq) if origin else []
    return extents.patched(before, patch)


def _is_current(batch: Batch, inode: Inode, size: int, pieces: PieceMap[BlockId]) -> bool:
    if size != inode.size:
        return False
    live = extents.now(batch.cx, batch.space, inode.ino)
    return list(extents.patched(live, Patch(size, [], [], None))) == list(pieces)


def _hidden(batch: Batch, op: wire.Write, inode: Inode, pieces: PieceMap[BlockId]) -> Inode:
    """Make the inode that no name leads to, which has the bytes; `rdev` tells whose conflict."""
    values = (inode.mode, 0, inode.uid, inode.gid, op.size, inode.atime_ns, op.mtime_ns,
              op.time_ns, inode.btime_ns, op.ino, pieces.covered, 0, batch.seq, b"", 0)  # fmt: skip
    hidden = Inode(batch.next_ino, batch.seq, values, is_stored=False)
    batch.next_ino += 1
    batch.pending.hidden_inode(hidden, batch.seq + 1)
    extents.keep_hidden(batch, hidden.ino, pieces)
    batch.history_bytes += pieces.covered
    return hidden


def _renew(
    batch: Batch, op: wire.Write, ino: int, version: VersionRow, hidden: Inode
) -> wire.Result:
    versions.renew(batch, hidden, version, op.is_sealed)
    version.content_ino = hidden.ino
    version.mtime_ns = op.mtime_ns
    batch.pending.dirty_version(ino, version)
    return _conflict(batch, op, ino, version)


def _conflict(batch: Batch, op: wire.Write, ino: int, version: VersionRow) -> wire.Result:
    version.is_conflict = 1
    batch.changed("attr", ino)
    return wire.Result(ino=op.ino, version=version.k, conflict=True)
