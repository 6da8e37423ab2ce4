"""Spaces: how one begins, and the numbers it hands out."""

from __future__ import annotations

import stat
import time

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Ino, SpaceId
from nameserver.db import Cx

RESERVE_MAX = 1_000_000
_ROOT_MODE = stat.S_IFDIR | 0o755


def make_space(cx: Cx, owner_id: int, name: str, now_ns: int | None = None) -> SpaceId:
    """Create an empty tree: a root directory, at commit number 0.

    Raises EXISTS when the owner has a space of that name.
    """
    at = time.time_ns() if now_ns is None else now_ns
    if cx.one("SELECT id FROM space WHERE owner_id = ? AND name = ?", owner_id, name):
        raise EverfoldError(Kind.EXISTS, "there is a space of that name", name)
    rows = cx.all(
        "INSERT INTO space (name, owner_id, seq, next_ino, live_bytes, history_bytes, inodes,"
        " replicas, locks_gen, lease_mount, lease_epoch, lease_until_ns, lease_recalled,"
        " lease_recalled_ns, created_ns, teams_gen)"
        " VALUES (?, ?, 0, 2, 0, 0, 1, 0, 0, '', 0, 0, 0, 0, ?, 0) RETURNING id",
        name,
        owner_id,
        at,
    )
    space = SpaceId(rows[0][0])
    cx.run(
        "INSERT INTO inode (space_id, ino, born, mode, nlink, uid, gid, rdev, size, allocated,"
        " atime_ns, mtime_ns, ctime_ns, btime_ns, version, content, target, has_xattrs)"
        " VALUES (?, ?, 0, ?, 2, 0, 0, 0, 0, 0, ?, ?, ?, ?, 0, 0, ?, 0)",
        space, ROOT, _ROOT_MODE, at, at, at, at, b"",
    )  # fmt: skip
    return space


def reserve(cx: Cx, ask: wire.Reserve) -> wire.Reserved:
    """Hand out fresh inode numbers; they are never handed out again."""
    if not 1 <= ask.count <= RESERVE_MAX:
        raise EverfoldError(Kind.INVALID, f"1 to {RESERVE_MAX} numbers can be reserved at once")
    locked = cx.lock_space(ask.space)
    if locked is None:
        raise EverfoldError(Kind.NOT_FOUND, "no such space", str(ask.space))
    cx.run("UPDATE space SET next_ino = next_ino + ? WHERE id = ?", ask.count, ask.space)
    return wire.Reserved(Ino(locked[1]), ask.count)
