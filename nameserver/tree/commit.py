"""The commit: a batch of operations in one transaction, each applied at most once.

A mount numbers its operations; `mount.last_op` is the last one that was dealt with, refused
ones included, and `mount.results` what was answered to its last batch. A retry, in whatever
grouping, is answered from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import NOW, BlockId, Record, Seq, SpaceId
from nameserver import leases
from nameserver import quota as quotas
from nameserver.db import Cx, Row
from nameserver.tree import ahead, attributes, checks, content, names
from nameserver.tree.batch import Author, Batch, SpaceState
from nameserver.tree.ledger import BlockLedger

OPS_MAX: Final = 50_000  # in one batch

_SPACE: Final = (
    "SELECT s.seq, s.next_ino, a.quota, s.owner_id,"
    " (SELECT c.at_ns FROM commit_log c WHERE c.space_id = s.id AND c.seq = s.seq)"
    " FROM space s JOIN account a ON a.id = s.owner_id WHERE s.id = ?"
)
_OWNER: Final = "SELECT 1 FROM account WHERE id = ? FOR NO KEY UPDATE"
_MOUNT: Final = "SELECT last_op, results, is_read_only FROM mount WHERE space_id = ? AND id = ?"
_REMEMBER: Final = (
    "INSERT INTO mount (space_id, id, author, device, device_id, label, last_op, results,"
    " seen_ns, is_read_only) VALUES (?, ?, ?, ?, '', '', ?, ?, ?, 0)"
    " ON CONFLICT (space_id, id) DO UPDATE SET last_op = excluded.last_op,"
    " results = excluded.results, seen_ns = excluded.seen_ns"
)

_NAMED: Final = "SELECT 1 FROM extent WHERE space_id = ? AND block = ? LIMIT 1"

_APPLY: Final[dict[type, Callable[[Batch, Any], wire.Result]]] = {
    wire.Make: names.make,
    wire.Link: names.link,
    wire.Unlink: names.unlink,
    wire.Rename: names.rename,
    wire.SetAttr: attributes.setattr,
    wire.SetXattr: attributes.set_xattr,
    wire.RemoveXattr: attributes.remove_xattr,
    wire.Write: content.write,
    wire.Seal: content.seal,
    wire.Restore: content.restore,
}


class _LastBatch(Record, frozen=True):
    """What is kept of a mount's last batch, for a retry; `seq` 0: of before that was kept."""

    first_op: int
    results: list[wire.Result]
    seq: Seq = NOW


class Committer:
    """Applies batches within a transaction that is given; knows no bell and no clock."""

    def __init__(self, blocks: BlockLedger, min_replicas: int, size_max: int) -> None:
        self._blocks = blocks
        self._min_replicas = min_replicas
        self._size_max = size_max

    def run(self, cx: Cx, ask: wire.Commit, author: Author, now_ns: int) -> wire.Committed:
        """Apply what of `ask` was not applied yet.

        NOT_FOUND, INVALID, READ_ONLY (a mount that said it only reads), UNAVAILABLE (unsafe
        blocks) for the whole of it: nothing is applied.
        """
        if not ask.mount or not 1 <= ask.first_op < 1 << 62 or len(ask.ops) > OPS_MAX:
            raise EverfoldError(Kind.INVALID, f"not a batch of 1 to {OPS_MAX} numbered operations")
        state = _space(cx, ask.space)
        mount = cx.one(_MOUNT, ask.space, ask.mount)
        if mount is not None and mount[2]:
            raise EverfoldError(Kind.READ_ONLY, "this mount is read-only", ask.mount)
        safe: set[BlockId] = set()
        if ask.stored:
            safe = self._blocks.record(cx, ask.space, ask.stored, now_ns, self._min_replicas)
        is_late = leases.check(cx, ask, now_ns)
        answered, seq = _answered(mount, ask)
        if len(answered) == len(ask.ops):
            return wire.Committed(seq or Seq(state.seq), answered, quota_left=state.quota_left)
        batch = Batch(cx, ask.space, state, author, ask.mount, now_ns)
        batch.size_max = self._size_max
        fresh = ask.ops[len(answered) :] if answered else ask.ops
        if is_late:
            fresh = [_late(op) for op in fresh]
        self._check_safe(cx, ask.space, self._named(batch, fresh) - safe)
        ahead.read(batch, fresh)
        results = answered + [_apply(batch, op) for op in fresh]
        seq = batch.finish()
        last_op = ask.first_op + len(ask.ops) - 1
        kept = wire.encode(_LastBatch(ask.first_op, results, seq))
        user, device = author
        cx.run(_REMEMBER, ask.space, ask.mount, user, device, last_op, kept, now_ns)
        return wire.Committed(seq, results, batch.first, batch.quota_left)

    def _check_safe(self, cx: Cx, space: SpaceId, named: set[BlockId]) -> None:
        """Refuse the whole batch while it names a block that is not safe yet.

        Refusing one write alone would let what follows it through: a rename that publishes a
        file without its bytes. A block that history names already may be named again, however
        many copies are left: that makes nothing worse, and waiting might be for ever.
        """
        if not named:
            return
        for block in self._blocks.short(cx, space, named, self._min_replicas):
            if cx.one(_NAMED, space, block) is None:
                raise EverfoldError(
                    Kind.UNAVAILABLE, "a block is not on enough datanodes yet", block.hex()
                )

    def _named(self, batch: Batch, ops: list[wire.AnyOp]) -> set[BlockId]:
        """Return the blocks that writes name; none of one that is refused for being nonsense."""
        named: set[BlockId] = set()
        for op in ops:
            if isinstance(op, wire.Write):
                try:
                    checks.writing(op, self._size_max)
                except EverfoldError:
                    continue  # it is refused again, in its turn
                batch.sound.add(id(op))
                named.update([extent.block for extent in op.extents])
        return named


def _late(op: wire.AnyOp) -> wire.AnyOp:
    """Return an operation that was answered under a lease that another has held since."""
    return msgspec.structs.replace(op, is_late=True) if isinstance(op, wire.Write) else op


def _space(cx: Cx, space: SpaceId) -> SpaceState:
    """Lock a space for this transaction and return where it stands."""
    row = cx.one(_SPACE + (" FOR UPDATE OF s" if cx.is_postgres else ""), space)
    if row is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such space", str(space))
    seq, next_ino, quota, owner, at_ns = row
    if quota and cx.is_postgres:  # other spaces of the owner share it: one commit at a time
        cx.one(_OWNER, owner)
    return SpaceState(seq, next_ino, at_ns or 0, quotas.left(cx, quota, owner))


def _answered(mount: Row | None, ask: wire.Commit) -> tuple[list[wire.Result], Seq]:
    """Return the results of those operations of `ask` that were applied before.

    And the commit number after them, NOW where that is not known any more: with a later one,
    what others changed since would pass for older than them.
    """
    count = 0 if mount is None else min(max(0, mount[0] - ask.first_op + 1), len(ask.ops))
    if mount is None or not count:
        return [], NOW
    last = wire.decode(mount[1], _LastBatch) if mount[1] else _LastBatch(0, [])
    results = [
        last.results[number - last.first_op]
        if 0 <= number - last.first_op < len(last.results)
        else wire.Result()
        for number in range(ask.first_op, ask.first_op + count)
    ]
    return results, last.seq if ask.first_op >= last.first_op else NOW


def _apply(batch: Batch, op: wire.AnyOp) -> wire.Result:
    try:
        return _APPLY[type(op)](batch, op)
    except EverfoldError as err:
        return wire.Result(kind=err.kind.value, message=err.message)
