"""The operations on content: write, seal, restore; the rules of versions live here.

The versions of an inode are numbered k = 1, 2, … and the inode's `version` tells which one is
current. The rules:

 - A write of the mount that has the newest version open replaces that version; any other
   write adds one (and completes the open one first). A write that changes no byte adds none.
 - A write over a version of another mount that its writer had not seen (`base`) is done, and
   the version it covers is marked as a conflict: it stays in the history.
 - A late write (`is_late`, replayed after the mount was away) in that case does not become
   current: it is kept aside as a version marked as a conflict (`late`). `version` of the inode
   stays, so a conflict's k may lie above the current one; numbers rise and are unique all the
   same.
"""

from __future__ import annotations

from typing import Final

from everfold import wire
from everfold.model import Ino
from nameserver.tree import checks, extents, history, late, versions
from nameserver.tree.batch import Batch
from nameserver.tree.extents import Patch
from nameserver.tree.rows import Inode

_RANGES_MAX: Final = 8  # of one write, in the feed; more become one that covers them


def write(batch: Batch, op: wire.Write) -> wire.Result:
    """See `wire.Write`."""
    batch.check_writing(op)
    patch = Patch(op.size, op.extents, op.holes, op.cut)
    if op.is_late and not batch.is_live(op.ino):
        return late.keep_after_death(batch, op, patch)
    inode = batch.file(op.ino)
    current = batch.current(inode)
    is_stale = current is not None and current.mount != batch.mount and current.k > op.base
    if is_stale and op.is_late:
        return late.keep_aside(batch, op, inode, patch)
    batch.check_quota(op.size - inode.size)
    if not replace(batch, inode, patch, op.base, is_sealed=op.is_sealed, is_stale=is_stale):
        is_stale = False
    inode.mtime_ns = op.mtime_ns
    inode.ctime_ns = op.time_ns
    if op.mode is not None:
        inode.mode = inode.mode & ~0o7777 | op.mode
    if inode.current is not None:
        inode.current.mtime_ns, inode.current.mode = op.mtime_ns, inode.mode
        batch.pending.dirty_version(inode.ino, inode.current)
    return wire.Result(ino=op.ino, version=inode.version, conflict=is_stale)


def seal(batch: Batch, op: wire.Seal) -> wire.Result:
    """See `wire.Seal`. A file that was never written gets its first, empty version."""
    checks.int64(op.time_ns)
    if not batch.is_live(op.ino) and late.seal(batch, op.ino):
        return wire.Result(ino=op.ino)
    inode = batch.file(op.ino)
    current = batch.current(inode)
    if not inode.version:
        versions.add_first(batch, inode)
    elif current is not None and current.mount == batch.mount:
        batch.seal(inode, current)
    if inode.top > inode.version:
        late.seal(batch, inode.ino)
    return wire.Result(ino=op.ino, version=inode.version)


def replace(
    batch: Batch, inode: Inode, patch: Patch, base: int, *, is_sealed: bool, is_stale: bool
) -> bool:
    """Give a file new bytes and the version that goes with them; False when no byte changed.

    The inode's row is this commit's after it; times are the caller's.
    """
    current = batch.current(inode)
    change = extents.swap(batch, inode, patch)
    if inode.version and patch.size == inode.size and not (change.closed or change.opened):
        if is_sealed and current is not None and current.mount == batch.mount:
            batch.seal(inode, current)
        batch.edit(inode)
        batch.changed("attr", inode.ino)
        return False
    if current is not None and current.is_sealed and batch.is_shown_first(inode):
        batch.next_seq()  # the version of this very commit stays
    _tell(batch, inode, patch)
    batch.edit(inode)
    extents.apply(batch, inode, change)
    batch.live_bytes += patch.size - inode.size
    inode.size = patch.size
    inode.content = batch.seq
    if current is not None and not current.is_sealed and current.mount == batch.mount:
        versions.renew(batch, inode, current, is_sealed)
        batch.pending.dirty_version(inode.ino, current)
    else:
        if current is not None:
            batch.seal(inode, current)
            if is_stale:
                current.is_conflict = 1
                batch.pending.dirty_version(inode.ino, current)
        versions.add_current(batch, inode, base, is_sealed)
    return True


def restore(batch: Batch, op: wire.Restore) -> wire.Result:
    """See `wire.Restore`. The time of a live file becomes `time_ns`, a deleted one gets its own."""
    checks.new_name(op.name)
    checks.int64(op.time_ns, op.number)
    whose = (op.from_parent, op.from_name) if op.from_parent else (op.parent, op.name)
    checks.natural(*(whose[0], op.parent, op.ino))
    parent = batch.directory(op.parent)
    batch.pending.flush()
    source = history.find(batch.cx, batch.space, whose[0], whose[1], op.number)
    bytes_then = extents.at(batch.cx, batch.space, source.ino, source.seq)
    patch = Patch(source.size, bytes_then, [], 0)
    slot = batch.slot(op.parent, op.name)
    if slot.live is not None:
        inode = batch.file(slot.live.ino)
        batch.check_quota(source.size - inode.size)
        current = batch.current(inode)
        if current is not None:
            batch.seal(inode, current)  # what is replaced is a version
        replace(batch, inode, patch, inode.version, is_sealed=True, is_stale=False)
        inode.mtime_ns = inode.ctime_ns = op.time_ns
    else:
        batch.check_fresh(op.ino)
        batch.check_quota(source.size)
        inode = _copy(batch, op, source.ino)
        batch.add(inode)
        batch.open_entry(slot, inode)
        batch.touch(parent, op.time_ns)
        replace(batch, inode, patch, 0, is_sealed=True, is_stale=False)
        inode.mtime_ns = source.mtime_ns
    if inode.current is not None:
        inode.current.mtime_ns = inode.mtime_ns
        batch.pending.dirty_version(inode.ino, inode.current)
    return wire.Result(ino=Ino(inode.ino), version=inode.version)


def _tell(batch: Batch, inode: Inode, patch: Patch) -> None:
    """Note for the feed which bytes change; length 0: from there to the end."""
    ranges = [(e.offset, e.length) for e in patch.extents]
    if patch.holes:
        ranges += [hole for hole in patch.holes if hole[1]]
    cut = patch.size if patch.cut is None else min(patch.size, patch.cut)
    if cut < inode.size:
        batch.changed("data", inode.ino, at=min([cut, *(r[0] for r in ranges)]))
        return
    if not ranges:
        batch.changed("attr", inode.ino)
        return
    if len(ranges) > _RANGES_MAX:
        start = min(offset for offset, _ in ranges)
        end = max(offset + length for offset, length in ranges)
        ranges = [(start, end - start)]
    for offset, length in ranges:
        batch.changed("data", inode.ino, at=offset, length=length)


def _copy(batch: Batch, op: wire.Restore, ino: int) -> Inode:
    """Return a new, empty inode with the mode and owner that another has, or had at its end."""
    row = history.last_inode(batch.cx, batch.space, ino)
    mode, _, uid, gid = row[:4]
    values = (mode, 1, uid, gid, 0, op.time_ns, op.time_ns, op.time_ns, op.time_ns,
              0, 0, 0, 0, b"", 0)  # fmt: skip
    return Inode(op.ino, batch.seq, values, is_stored=False)
