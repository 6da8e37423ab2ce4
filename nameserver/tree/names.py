"""The operations on names: make, link, unlink, rename.

Each one checks everything first and changes rows after that, so that a refused operation has
no effect.
"""

from __future__ import annotations

import stat

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import LINK_MAX
from nameserver.tree import checks
from nameserver.tree.batch import Batch
from nameserver.tree.rows import Inode, Slot


def make(batch: Batch, op: wire.Make) -> wire.Result:
    """See `wire.Make`."""
    checks.new_name(op.name)
    checks.making(op)
    parent = batch.directory(op.parent)
    slot = batch.new_slot(op.parent, op.name)
    if slot.live is not None:
        raise EverfoldError(Kind.EXISTS, "the name is taken", repr(op.name))
    ino, time_ns = op.ino, op.time_ns
    batch.check_fresh(ino)
    is_dir = stat.S_ISDIR(op.mode)
    values = (op.mode, 2 if is_dir else 1, op.uid, op.gid, len(op.target), time_ns, time_ns,
              time_ns, time_ns, op.rdev, 0, 0, 0, op.target, 0)  # fmt: skip
    inode = Inode(ino, batch.seq, values, is_stored=False)
    batch.add(inode)
    batch.open_entry(slot, inode)
    batch.touch(parent, time_ns, nlink=1 if is_dir else 0)
    return wire.Result(ino=ino)


def link(batch: Batch, op: wire.Link) -> wire.Result:
    """See `wire.Link`."""
    checks.new_name(op.name)
    checks.int64(op.time_ns)
    inode = batch.inode(op.ino)
    parent = batch.directory(op.parent)
    if inode.is_dir:
        raise EverfoldError(Kind.NOT_PERMITTED, "directories have one name")
    slot = batch.new_slot(op.parent, op.name)
    if slot.live is not None:
        raise EverfoldError(Kind.EXISTS, "the name is taken", repr(op.name))
    if inode.nlink >= LINK_MAX:
        raise EverfoldError(Kind.TOO_MANY_LINKS, f"a file has at most {LINK_MAX} names")
    batch.edit(inode)
    inode.nlink += 1
    inode.ctime_ns = op.time_ns
    batch.open_entry(slot, inode)
    batch.touch(parent, op.time_ns)
    batch.changed("attr", inode.ino)
    return wire.Result(ino=op.ino)


def unlink(batch: Batch, op: wire.Unlink) -> wire.Result:
    """See `wire.Unlink`."""
    checks.name(op.name)
    checks.int64(op.time_ns)
    parent = batch.directory(op.parent)
    slot, inode = _standing(batch, op.parent, op.name)
    _expect(op.ino or None, inode.ino)
    if op.is_rmdir:
        if not inode.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "not a directory", repr(op.name))
        batch.check_removable(inode)
        if not batch.is_empty(inode):
            raise EverfoldError(Kind.NOT_EMPTY, "the directory is not empty", repr(op.name))
    elif inode.is_dir:
        raise EverfoldError(Kind.IS_DIR, "a directory", repr(op.name))
    _keep(batch, slot, inode)
    batch.touch(parent, op.time_ns, nlink=-1 if inode.is_dir else 0)
    _let_go(batch, slot, inode, op.time_ns)
    return wire.Result(ino=inode.ino)


def rename(batch: Batch, op: wire.Rename) -> wire.Result:
    """See `wire.Rename`."""
    checks.name(op.name)
    checks.new_name(op.new_name)
    checks.int64(op.time_ns)
    if op.flags not in (0, wire.RENAME_NOREPLACE, wire.RENAME_EXCHANGE):
        raise EverfoldError(Kind.INVALID, f"no such flags of a rename: {op.flags}")
    batch.directory(op.parent)
    batch.directory(op.new_parent)
    slot, inode = _standing(batch, op.parent, op.name)
    _expect(op.ino or None, inode.ino)
    target = batch.new_slot(op.new_parent, op.new_name)
    replaced = batch.inode(target.live.ino) if target.live else None
    if op.flags == wire.RENAME_NOREPLACE and replaced is not None:
        raise EverfoldError(Kind.EXISTS, "the name is taken", repr(op.new_name))
    _expect(op.replaced, replaced.ino if replaced else 0)
    if op.flags == wire.RENAME_EXCHANGE and replaced is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such name", repr(op.new_name))
    if replaced is not None and replaced.ino == inode.ino:
        return wire.Result(ino=inode.ino)
    if inode.is_dir:
        _refuse_circle(batch, inode.ino, op.parent, op.new_parent)
    if op.flags == wire.RENAME_EXCHANGE and replaced is not None:
        if replaced.is_dir:
            _refuse_circle(batch, replaced.ino, op.new_parent, op.parent)
        _exchange(batch, op, (slot, inode), (target, replaced))
    else:
        if replaced is not None:
            _may_replace(batch, inode, replaced)
        _move(batch, op, (slot, inode), (target, replaced))
    return wire.Result(ino=inode.ino)


def _standing(batch: Batch, parent: int, name: bytes) -> tuple[Slot, Inode]:
    slot = batch.slot(parent, name)
    if slot.live is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such name", repr(name))
    return slot, batch.inode(slot.live.ino)


def _expect(seen: int | None, there: int) -> None:
    if seen is not None and seen != there:
        raise EverfoldError(Kind.CONFLICT, "the name leads elsewhere now", str(there))


def _keep(batch: Batch, slot: Slot, inode: Inode) -> None:
    entry = slot.live
    if entry is not None:
        batch.keep(entry, inode)


def _let_go(batch: Batch, slot: Slot, inode: Inode, time_ns: int) -> None:
    """Take a name from an inode, which ends with its last one."""
    batch.close_entry(slot, inode)
    if inode.is_dir or inode.nlink == 1:
        batch.kill(inode)
        batch.changed("gone", inode.ino)
        return
    batch.edit(inode)
    inode.nlink -= 1
    inode.ctime_ns = time_ns
    batch.changed("attr", inode.ino)


def _refuse_circle(batch: Batch, moved: int, parent: int, new_parent: int) -> None:
    """Raise INVALID when a directory would come to lie within itself."""
    above: int | None = new_parent
    if parent == new_parent:
        return
    while above is not None:
        if above == moved:
            raise EverfoldError(Kind.INVALID, "a directory cannot be moved into itself")
        above = batch.parent_of(above)


def _may_replace(batch: Batch, inode: Inode, replaced: Inode) -> None:
    if replaced.is_dir:
        if not inode.is_dir:
            raise EverfoldError(Kind.IS_DIR, "a directory stands there")
        batch.check_removable(replaced)
        if not batch.is_empty(replaced):
            raise EverfoldError(Kind.NOT_EMPTY, "the directory there is not empty")
    elif inode.is_dir:
        raise EverfoldError(Kind.NOT_DIR, "not a directory stands there")


def _move(
    batch: Batch,
    op: wire.Rename,
    source: tuple[Slot, Inode],
    target: tuple[Slot, Inode | None],
) -> None:
    slot, inode = source
    new_slot, replaced = target
    _keep(batch, slot, inode)
    if replaced is not None:
        _keep(batch, new_slot, replaced)
        _let_go(batch, new_slot, replaced, op.time_ns)
    batch.close_entry(slot, inode)
    batch.open_entry(new_slot, inode)
    subdirectory = 1 if inode.is_dir else 0
    lost = 1 if replaced is not None and replaced.is_dir else 0
    batch.touch(batch.directory(op.parent), op.time_ns, nlink=-subdirectory)
    batch.touch(batch.directory(op.new_parent), op.time_ns, nlink=subdirectory - lost)
    _stamp(batch, inode, op.time_ns)


def _exchange(
    batch: Batch, op: wire.Rename, source: tuple[Slot, Inode], target: tuple[Slot, Inode]
) -> None:
    slot, inode = source
    other_slot, other = target
    _keep(batch, slot, inode)
    _keep(batch, other_slot, other)
    batch.close_entry(slot, inode)
    batch.close_entry(other_slot, other)
    batch.open_entry(slot, other)
    batch.open_entry(other_slot, inode)
    gained = int(other.is_dir) - int(inode.is_dir)
    batch.touch(batch.directory(op.parent), op.time_ns, nlink=gained)
    batch.touch(batch.directory(op.new_parent), op.time_ns, nlink=-gained)
    _stamp(batch, inode, op.time_ns)
    _stamp(batch, other, op.time_ns)


def _stamp(batch: Batch, inode: Inode, time_ns: int) -> None:
    """Note that an inode was renamed."""
    if inode.is_dir:
        inode.ctime_ns = time_ns
        if inode.is_stored:
            batch.pending.dirty_inode(inode)
    else:
        batch.edit(inode)
        inode.ctime_ns = time_ns
    batch.changed("attr", inode.ino)
