"""Sharing a folder that is there: its subtree becomes a space, with all its history.

The bytes go first: blocks are read from the nodes with the old space's token and put with the new
one's, a few in memory, while everybody goes on. Then one transaction, with the old space's lease
recalled, copies the rows under their commit numbers and lets the content leave the old space,
whose history keeps it; the folder itself stays as the junction. When a block came meanwhile that
the new space lacks, nothing is changed and the bytes have another turn. Until that transaction
there is only a space without a tree, whose blocks are garbage.

What had left the folder, for elsewhere or for good, comes as far as it was in the folder and no
further: `until` is the commit with which it left. Of the log only times and authors come; the
names in it are of things outside, too.
"""

from __future__ import annotations

import secrets
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, Ino, SpaceId
from nameserver import usage
from nameserver.db import Cx, select_in
from nameserver.files.browse import View
from nameserver.files.changes import Draft
from nameserver.files.items import Item
from nameserver.files.visitors import Visitor
from nameserver.spaces import TEAM
from nameserver.tree import make_space

if TYPE_CHECKING:
    from nameserver.service import Service

_ROUNDS: Final = 30
_WINDOW: Final = 4  # blocks on their way
_TOLD: Final = 64  # blocks that are noted at once
_STAYS: Final = 1 << 62  # `until` of what is in the folder now

_NAMES: Final = (
    "SELECT e.ino, e.born, e.died, (SELECT i.mode FROM inode i WHERE i.space_id = e.space_id"
    " AND i.ino = e.ino ORDER BY i.born DESC LIMIT 1)"
    " FROM entry e WHERE e.space_id = ? AND e.parent = ?"
)
_HIDDEN: Final = (
    "SELECT ino, content_ino FROM version WHERE space_id = ? AND content_ino <> ino AND ino IN ({})"
)
_BLOCKS: Final = "SELECT DISTINCT ino, block, born FROM extent WHERE space_id = ? AND ino IN ({})"
_MOVED: Final = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS team_moved"
    " (ino BIGINT PRIMARY KEY, until_seq BIGINT NOT NULL)"
)
_DIED: Final = (
    f"CASE WHEN m.until_seq < {_STAYS} AND (x.died IS NULL OR x.died > m.until_seq)"
    " THEN m.until_seq ELSE x.died END"
)
_FROM: Final = (
    " FROM team_moved m CROSS JOIN {0} x"
    " WHERE x.space_id = ? AND x.{1} = m.ino AND x.{2} < m.until_seq"
)
_INO: Final = "CASE WHEN x.ino = ? THEN 1 ELSE x.ino END"
_INODE: Final = (
    "mode, nlink, uid, gid, rdev, size, allocated, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " version, content, target, has_xattrs"
)
_VERSION: Final = "k, seq, at_ns, size, mtime_ns, mode, author, device, content_ino"
_COPIES: Final = (
    f"INSERT INTO inode (space_id, ino, born, died, {_INODE})"
    f" SELECT ?, {_INO}, x.born, {_DIED}, {_INODE}" + _FROM.format("inode", "ino", "born"),
    "INSERT INTO entry (space_id, parent, name, born, died, ino, vbase, vlast)"
    f" SELECT ?, CASE WHEN x.parent = ? THEN 1 ELSE x.parent END, x.name, x.born, {_DIED}, x.ino,"
    f" x.vbase, CASE WHEN x.died IS NULL AND m.until_seq < {_STAYS} THEN x.vbase + COALESCE("
    "(SELECT MAX(v.k) FROM version v WHERE v.space_id = x.space_id AND v.ino = x.ino"
    " AND v.seq < m.until_seq), 0) ELSE x.vlast END" + _FROM.format("entry", "parent", "born"),
    "INSERT INTO extent (space_id, ino, off, born, died, length, block, block_offset)"
    f" SELECT ?, {_INO}, x.off, x.born, {_DIED}, x.length, x.block, x.block_offset"
    + _FROM.format("extent", "ino", "born"),
    "INSERT INTO xattr (space_id, ino, name, born, died, value)"
    f" SELECT ?, {_INO}, x.name, x.born, {_DIED}, x.value" + _FROM.format("xattr", "ino", "born"),
    f"INSERT INTO version (space_id, ino, {_VERSION}, mount, is_sealed, is_conflict, is_pinned,"
    f" base) SELECT ?, {_INO}, {_VERSION}, '', 1, is_conflict, is_pinned, base"
    + _FROM.format("version", "ino", "seq"),
)
"""Each with (new space, the folder's inode, old space)."""
_LINKS: Final = (
    "UPDATE inode SET nlink = (SELECT count(*) FROM entry e WHERE e.space_id = inode.space_id"
    " AND e.ino = inode.ino AND e.died IS NULL)"
    " WHERE space_id = ? AND died IS NULL AND nlink > 1 AND (mode & 61440) <> 16384"
)
_LOG: Final = (
    "INSERT INTO commit_log (space_id, seq, at_ns, author, device, mount, changes)"
    " SELECT ?, c.seq, c.at_ns, c.author, c.device, '', ? FROM commit_log c"
    " WHERE c.space_id = ? AND (c.seq = ? OR c.seq IN ("
    "SELECT born FROM entry WHERE space_id = ?"
    " UNION SELECT died FROM entry WHERE space_id = ? AND died IS NOT NULL"
    " UNION SELECT born FROM inode WHERE space_id = ?"
    " UNION SELECT died FROM inode WHERE space_id = ? AND died IS NOT NULL"
    " UNION SELECT seq FROM version WHERE space_id = ?))"
)
_SHARES: Final = (
    "UPDATE share SET space_id = ?, ino = CASE WHEN ino = ? THEN 1 ELSE ino END"
    f" WHERE space_id = ? AND ino IN (SELECT ino FROM team_moved WHERE until_seq = {_STAYS})"
)

_ORIGIN: Final = (  # the new space is as the old one was before its first commit without it
    "UPDATE team SET origin_id = ?, origin_seq = (SELECT seq + 1 FROM space WHERE id = ?),"
    " origin_end = (SELECT seq FROM space WHERE id = ?) WHERE space_id = ?"
)

_MANY_NAMES: Final = (
    "SELECT e.parent, e.name, e.ino FROM inode i JOIN team_moved m ON m.ino = i.ino"
    f" AND m.until_seq = {_STAYS} JOIN entry e ON e.space_id = ? AND e.ino = i.ino"
    " AND e.died IS NULL WHERE i.space_id = ? AND i.died IS NULL AND i.nlink > 1"
    " AND (i.mode & 61440) <> 16384 AND i.ino <> ?"
)
_END_NAMES: Final = (
    "UPDATE entry SET died = ?, vlast = vbase + COALESCE((SELECT MAX(v.k) FROM version v"
    " WHERE v.space_id = entry.space_id AND v.ino = entry.ino), 0)"
    " WHERE space_id = ? AND died IS NULL"
    f" AND parent IN (SELECT ino FROM team_moved WHERE until_seq = {_STAYS})"
)
_END: Final = tuple(
    f"UPDATE {table} INDEXED BY {table}_now SET died = ? WHERE space_id = ? AND died IS NULL"
    " AND ino IN (SELECT ino FROM team_moved)"
    for table in ("inode", "extent", "xattr")
)
_SEALED: Final = " WHERE space_id = ? AND is_sealed = 0 AND ino IN (SELECT ino FROM team_moved)"
_ENDED_NAMES: Final = "SELECT name FROM entry WHERE space_id = ? AND parent = ? AND died = ?"

Subtree = dict[int, int]
"""Inode -> the commit with which it left the folder, `_STAYS` if it did not."""
Begin = Callable[[Cx, SpaceId, Item], object]
"""(transaction, new space, the folder that becomes its junction): make it a team folder."""


class _Lacking(Exception):
    """The new space lacks blocks."""


class Conversion:
    """See the module. Thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._db, self._clock = service.db, service.clock

    def share(self, me: Visitor, names: list[bytes], begin: Begin) -> SpaceId:
        """Let a folder of the visitor's home become a space of its own; return it.

        NOT_DIR; INVALID when a team folder lies in it; BUSY when it changes faster than it can be
        copied.
        """
        with self._db.read() as cx:
            folder = View(cx, me.home).at(names)
            _check(cx, me.home, folder)
        space = self._reserve(me)
        for _ in range(_ROUNDS):
            self._copy_blocks(me.home, space, folder)
            try:
                self._switch(me, names, folder, space, begin)
                return space
            except _Lacking:
                continue
        raise EverfoldError(Kind.BUSY, "the folder changes faster than it can be copied")

    def _reserve(self, me: Visitor) -> SpaceId:
        """Make a space without a tree."""
        with self._db.write() as cx:
            space = make_space(cx, me.who.user, TEAM + secrets.token_hex(8), self._clock.time_ns())
            cx.run("DELETE FROM inode WHERE space_id = ?", space)
            cx.run("UPDATE space SET inodes = 0 WHERE id = ?", space)
        return space

    # ------------------------------------------------------------ bytes

    def _copy_blocks(self, old: SpaceId, new: SpaceId, folder: Item) -> None:
        """Put the blocks that the new space lacks, each verified, on enough nodes."""
        with self._db.read() as cx:
            lacking = self._lacking(cx, old, new, subtree(cx, old, folder.ino))
        under_way: deque[Future[wire.Stored]] = deque()
        stored: list[wire.Stored] = []
        with ThreadPoolExecutor(_WINDOW, "conversion") as pool:
            for block in sorted(lacking):
                if len(under_way) >= _WINDOW:
                    stored.append(under_way.popleft().result())
                under_way.append(pool.submit(self._copy, old, new, block))
                if len(stored) >= _TOLD:
                    self._note(new, stored)
            stored += [future.result() for future in under_way]
        self._note(new, stored)

    def _copy(self, old: SpaceId, new: SpaceId, block: BlockId) -> wire.Stored:
        blocks = self._service.files.blocks
        return blocks.put(new, block, blocks.get(old, block))

    def _note(self, space: SpaceId, stored: list[wire.Stored]) -> None:
        least = self._service.policy.min_replicas
        with self._db.write() as cx:
            self._service.ledger.record(cx, space, stored, self._clock.time_ns(), least)
        stored.clear()

    def _lacking(self, cx: Cx, old: SpaceId, new: SpaceId, moved: Subtree) -> set[BlockId]:
        """Return the blocks of a subtree that are not on enough nodes in the new space."""
        named: set[BlockId] = set()
        for ino, block, born in select_in(cx, _BLOCKS, (old,), moved):
            if born < moved[ino]:
                named.add(BlockId(bytes(block)))
        return self._service.ledger.short(cx, new, named, self._service.policy.min_replicas)

    # ------------------------------------------------------------ rows

    def _switch(
        self, me: Visitor, names: list[bytes], folder: Item, space: SpaceId, begin: Begin
    ) -> None:
        """Copy the rows, and let the content leave the home; all of it or nothing."""

        linked: set[int] = set()

        def build(draft: Draft) -> None:
            cx = draft.cx
            there = draft.view.at(names)
            if there.ino != folder.ino:
                raise EverfoldError(Kind.CONFLICT, "another folder has taken its place")
            _check(cx, me.home, there)
            moved = subtree(cx, me.home, there.ino)
            if self._lacking(cx, me.home, space, moved):
                raise _Lacking
            _copy_rows(cx, me.home, space, there.ino, moved, draft.view.seq)
            linked.clear()
            for parent, name, ino in _linked(cx, me.home, there.ino):
                linked.add(ino)
                draft.unlink(parent, name, ino)
            draft.touch(there)

        def after(cx: Cx) -> None:
            _leave(cx, me.home, folder.ino, linked)
            usage.repair(cx, me.home)
            usage.repair(cx, space)
            begin(cx, space, folder)
            cx.run(_ORIGIN, me.home, space, me.home, space)

        self._service.files.changes.apply(me.home, me.author, build, after=after)


def subtree(cx: Cx, space: SpaceId, top: Ino) -> Subtree:
    """Return every inode that is, or was, in a folder, at any depth; the folder itself, too."""
    until: Subtree = {top: _STAYS}
    waiting = deque([int(top)])
    while waiting:
        folder = waiting.popleft()
        for ino, born, died, mode in cx.all(_NAMES, space, folder):
            left = min(_STAYS if died is None else died, until[folder])
            if born < left and until.get(ino, 0) < left:
                until[ino] = left
                if mode & 0o170000 == 0o040000:
                    waiting.append(ino)
    for ino, hidden in list(select_in(cx, _HIDDEN, (space,), until)):
        until[hidden] = max(until.get(hidden, 0), until[ino])
    return until


def _check(cx: Cx, home: SpaceId, folder: Item) -> None:
    """Raise unless a directory can become a team folder."""
    if not folder.is_dir:
        raise EverfoldError(Kind.NOT_DIR, "not a folder")
    inside = subtree(cx, home, folder.ino)
    junctions = cx.all("SELECT ino FROM member WHERE home_id = ?", home)
    if any(inside.get(ino, 0) == _STAYS for (ino,) in junctions):
        raise EverfoldError(Kind.INVALID, "a team folder lies in it, or is it")


def _copy_rows(cx: Cx, old: SpaceId, new: SpaceId, top: Ino, moved: Subtree, seq: int) -> None:
    cx.run(_MOVED)
    cx.run("DELETE FROM team_moved")
    cx.many("INSERT INTO team_moved (ino, until_seq) VALUES (?, ?)", list(moved.items()))
    for statement in _COPIES:
        cx.run(statement, new, top, old)
    cx.run(_LINKS, new)
    cx.run(_LOG, new, wire.encode([]), old, seq, *[new] * 5)
    cx.run(_SHARES, new, top, old)
    cx.run(
        "UPDATE space SET seq = ?, next_ino = (SELECT next_ino FROM space WHERE id = ?)"
        " WHERE id = ?",
        seq, old, new,
    )  # fmt: skip


def _linked(cx: Cx, home: SpaceId, top: Ino) -> list[tuple[Ino, bytes, Ino]]:
    """Return the names in the folder of files that have names elsewhere, too, and stay there."""
    names: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for parent, name, ino in cx.all(_MANY_NAMES, home, home, top):
        names[ino].append((parent, name))
    staying = {row[0] for row in cx.all(f"SELECT ino FROM team_moved WHERE until_seq = {_STAYS}")}
    return [
        (Ino(parent), name, Ino(ino))
        for ino, found in names.items()
        if any(parent not in staying for parent, _ in found)
        for parent, name in found
        if parent in staying
    ]


def _leave(cx: Cx, home: SpaceId, top: Ino, linked: set[int]) -> None:
    """Let all that is in the folder end with the commit that has just been written.

    What `Batch.close_entry` and `Batch.kill` do to each row, done to all at once: one by one it
    took six times as long (2 s of 10,000 files), while nobody else could write.
    """
    row = cx.one("SELECT seq FROM space WHERE id = ?", home)
    seq = row[0] if row else 0
    cx.run(_END_NAMES, seq, home)
    cx.run(f"DELETE FROM team_moved WHERE ino = ? OR until_seq < {_STAYS}", top)
    cx.many("DELETE FROM team_moved WHERE ino = ?", [(ino,) for ino in linked])
    for statement in _END:
        cx.run(statement, seq, home)
    cx.run("UPDATE version SET is_sealed = 1" + _SEALED, home)
    cx.run("UPDATE inode SET nlink = 2 WHERE space_id = ? AND ino = ? AND died IS NULL", home, top)
    logged = cx.one("SELECT changes FROM commit_log WHERE space_id = ? AND seq = ?", home, seq)
    changes = wire.decode(logged[0], list[wire.Change]) if logged else []
    for (name,) in cx.all(_ENDED_NAMES, home, top, seq):
        changes.append(wire.Change("entry", Ino(0), top, name))
    changes += [wire.Change("gone", Ino(ino)) for (ino,) in cx.all("SELECT ino FROM team_moved")]
    cx.run(
        "UPDATE commit_log SET changes = ? WHERE space_id = ? AND seq = ?",
        wire.encode(changes), home, seq,
    )  # fmt: skip
    cx.run("DELETE FROM team_moved")
