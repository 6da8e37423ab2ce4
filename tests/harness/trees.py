"""A tree to test: a space, a clock that can be moved, a ledger in memory, and short sentences.

`Writer` is a mount that numbers its operations and speaks in paths: `w.save("a/b", b"text")`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence

from everfold import wire
from everfold.blockid import name_of
from everfold.model import (
    NOW,
    ROOT,
    Attr,
    BlockId,
    Entry,
    Extent,
    Ino,
    MountId,
    NodeId,
    Seq,
    SpaceId,
    Version,
)
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.tree import Tree, make_space

T0 = 1_700_000_000_000_000_000


class HandClock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_ns = T0

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def move(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class MemoryLedger:
    """A replica map in memory: `tree.BlockLedger`."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[SpaceId, BlockId], set[NodeId]] = {}

    def record(
        self,
        cx: Cx,
        space: SpaceId,
        stored: Sequence[wire.Stored],
        now_ns: int,
        min_replicas: int,
    ) -> set[BlockId]:
        for item in stored:
            self.nodes.setdefault((space, item.block), set()).update(item.nodes)
        return {item.block for item in stored if len(set(item.nodes)) >= min_replicas}

    def short(
        self, cx: Cx, space: SpaceId, blocks: Iterable[BlockId], min_replicas: int
    ) -> set[BlockId]:
        return {b for b in blocks if len(self.nodes.get((space, b), ())) < min_replicas}

    def where(
        self, cx: Cx, space: SpaceId, blocks: Iterable[BlockId]
    ) -> dict[BlockId, list[NodeId]]:
        return {b: sorted(self.nodes[space, b]) for b in blocks if (space, b) in self.nodes}


class Stage:
    """A database with a tree in it, one space, and the bytes of all blocks."""

    def __init__(self, db: Database, min_replicas: int = 2, quota: int = 0) -> None:
        self.db = db
        self.clock = HandClock()
        self.bell = Bell()
        self.ledger = MemoryLedger()
        self.tree = Tree(db, self.clock, self.ledger, self.bell, min_replicas=min_replicas)
        self.bytes: dict[BlockId, bytes] = {}
        self.space = self.new_space("home", quota)

    def new_space(self, name: str, quota: int = 0) -> SpaceId:
        """Create a user and a space of the same name."""
        with self.db.write() as cx:
            rows = cx.all(
                "INSERT INTO account (name, password_hash, role, quota, created_ns, is_disabled,"
                " token_gen) VALUES (?, '', 'user', ?, 0, 0, 0) RETURNING id",
                name,
                quota,
            )
            return make_space(cx, rows[0][0], name, T0)

    def writer(self, name: str = "m1", user: str = "ann", device: str = "laptop") -> Writer:
        """Return a mount of the space."""
        return Writer(self, MountId(name), user, device)

    def put(self, data: bytes, copies: int = 2) -> wire.Stored:
        """Keep a block on some nodes; return what a client tells the commit of it."""
        block = name_of(data)
        self.bytes[block] = data
        return wire.Stored(block, len(data), [NodeId(f"dn{n}") for n in range(1, copies + 1)])

    # ------------------------------------------------------------ asking

    @property
    def seq(self) -> Seq:
        """The space's commit number."""
        return self.tree.attrs(wire.GetAttrs(self.space, [])).seq

    def entry(self, path: str, seq: Seq = NOW) -> Entry | None:
        """Return what is at a path."""
        return self.tree.resolve(wire.ResolvePath(self.space, names(path), seq)).entry

    def attr(self, path: str, seq: Seq = NOW) -> Attr:
        """Return the attributes at a path, which must exist."""
        found = self.entry(path, seq)
        assert found is not None, f"{path} is not there"
        return found.attr

    def parent(self, path: str, seq: Seq = NOW) -> tuple[Ino, bytes]:
        """Return the directory's number and the last name of a path."""
        answer = self.tree.resolve(wire.ResolvePath(self.space, names(path), seq))
        return answer.parent, names(path)[-1]

    def read(self, ino: Ino, seq: Seq = NOW) -> bytes:
        """Return the bytes of an inode; holes are zeros."""
        answer = self.tree.extents(wire.GetExtents(self.space, ino, seq=seq))
        content = bytearray(answer.size)
        for e in answer.extents:
            assert e.end <= answer.size
            content[e.offset : e.end] = self.bytes[e.block][e.block_offset :][: e.length]
        return bytes(content)

    def content(self, path: str, seq: Seq = NOW) -> bytes:
        """Return the bytes at a path."""
        return self.read(self.attr(path, seq).ino, seq)

    def names(self, path: str = "", seq: Seq = NOW) -> list[bytes]:
        """Return the names in a directory."""
        ino = self.attr(path, seq).ino if path else ROOT
        listing = self.tree.listdir(wire.ListDir(self.space, ino, seq=seq))
        return [entry.name for entry in listing.entries]

    def versions(self, path: str) -> list[Version]:
        """Return the history of a path."""
        parent, name = self.parent(path)
        return self.tree.history(wire.GetHistory(self.space, parent, name)).versions

    def story(self, path: str) -> list[tuple[int, bytes]]:
        """Return (number, bytes) of every version of a path."""
        return [(v.number, self.read(v.ino, v.seq)) for v in self.versions(path)]

    def events(self, after: int = 0) -> list[wire.CommitEvent]:
        """Return the commit log as the feed tells it."""
        with self.db.read() as cx:
            rows = cx.all(
                "SELECT seq, at_ns, author, device, mount, changes FROM commit_log"
                " WHERE space_id = ? AND seq > ? ORDER BY seq",
                self.space,
                after,
            )
        return [wire.CommitEvent(*row[:5], wire.decode(row[5], list[wire.Change])) for row in rows]


class Writer:
    """A mount: its operations are numbered, and each call is one commit unless batched."""

    def __init__(self, stage: Stage, mount: MountId, user: str, device: str) -> None:
        self.stage = stage
        self.mount = mount
        self.author = (user, device)
        self.next_op = 1

    def ask(self, *ops: wire.AnyOp, stored: Sequence[wire.Stored] = ()) -> wire.Commit:
        """Return a commit of the next operations, without sending it."""
        return wire.Commit(self.stage.space, self.mount, self.next_op, list(ops), list(stored))

    def commit(self, *ops: wire.AnyOp, stored: Sequence[wire.Stored] = ()) -> list[wire.Result]:
        """Commit operations in one batch; return their results, failed ones too."""
        ask = self.ask(*ops, stored=stored)
        self.next_op += len(ops)
        return self.stage.tree.commit(ask, self.author).results

    def do(self, *ops: wire.AnyOp, stored: Sequence[wire.Stored] = ()) -> list[wire.Result]:
        """Commit operations, all of which must be done."""
        results = self.commit(*ops, stored=stored)
        for result in results:
            result.check()
        return results

    def fresh(self) -> Ino:
        """Return an inode number that was never used."""
        return self.stage.tree.reserve(wire.Reserve(self.stage.space, 1)).first

    @property
    def now(self) -> int:
        return self.stage.clock.time_ns()

    # ------------------------------------------------------------ operations, from paths

    def making(self, path: str, mode: int = stat.S_IFREG | 0o644, **more: int) -> wire.Make:
        parent, name = self.stage.parent(path)
        return wire.Make(parent, name, self.fresh(), mode, 1000, 1000, self.now, **more)

    def writing(
        self, ino: Ino, data: bytes, base: int = 0, **more: object
    ) -> tuple[wire.Write, list[wire.Stored]]:
        """Return a Write of the whole content, and what the client stored for it."""
        stored = [self.stage.put(data)] if data else []
        pieces = [Extent(0, len(data), s.block) for s in stored]
        op = wire.Write(ino, base, len(data), self.now, self.now, pieces, cut=0, **more)  # type: ignore[arg-type]
        return op, stored

    def unlinking(self, path: str, is_rmdir: bool = False) -> wire.Unlink:
        parent, name = self.stage.parent(path)
        return wire.Unlink(parent, name, Ino(0), is_rmdir, self.now)

    def renaming(self, old: str, new: str, flags: int = 0) -> wire.Rename:
        parent, name = self.stage.parent(old)
        new_parent, new_name = self.stage.parent(new)
        return wire.Rename(parent, name, new_parent, new_name, self.now, flags=flags)

    # ------------------------------------------------------------ whole sentences

    def make(self, path: str, mode: int = stat.S_IFREG | 0o644) -> Ino:
        """Create an empty file (or what `mode` says)."""
        op = self.making(path, mode)
        self.do(op)
        return op.ino

    def mkdir(self, path: str) -> Ino:
        """Create a directory."""
        return self.make(path, stat.S_IFDIR | 0o755)

    def write(self, ino: Ino, data: bytes, **more: object) -> wire.Result:
        """Replace the content of an inode, having seen its current version."""
        if "base" not in more:
            attrs = self.stage.tree.attrs(wire.GetAttrs(self.stage.space, [ino])).attrs
            more["base"] = attrs[0].version if attrs else 0
        op, stored = self.writing(ino, data, **more)  # type: ignore[arg-type]
        result = self.commit(op, stored=stored)[0]
        result.check()
        return result

    def save(self, path: str, data: bytes) -> Ino:
        """Write a file in place, making it when it is not there."""
        found = self.stage.entry(path)
        ino = found.attr.ino if found else self.make(path)
        self.write(ino, data)
        return ino

    def unlink(self, path: str) -> None:
        self.do(self.unlinking(path))

    def rmdir(self, path: str) -> None:
        self.do(self.unlinking(path, is_rmdir=True))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.do(self.renaming(old, new, flags))

    def link(self, old: str, new: str) -> None:
        parent, name = self.stage.parent(new)
        self.do(wire.Link(self.stage.attr(old).ino, parent, name, self.now))


def names(path: str) -> list[bytes]:
    """Return the names of a path."""
    return [part.encode() for part in path.split("/") if part]
