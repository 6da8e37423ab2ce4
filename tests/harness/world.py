"""A cluster within the test's process: the real nameserver service over a real database,
datanodes in memory that can be down or lie, and mounts without a kernel.

Everything between a `Vfs` call and the database is the production code; only the sockets and
the datanodes' disks are left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from everfold import blockid, wire
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.fileslice import FileSlice
from everfold.model import ROOT, Attr, BlockId, DeviceId, Ino, Node, NodeId, SpaceId
from everfold.stores.memory import MemoryStore
from mount.client import Client, Settings
from mount.filesystem import Caller
from mount.policy import Policy as MountPolicy
from nameserver.db import Database
from nameserver.gate import Identity
from nameserver.policy import Policy
from nameserver.rounds import Rounds
from nameserver.secretfile import Secrets
from nameserver.service import Service
from tests.harness.blocknodes import PendingPut
from tests.harness.line import Line

ME = Caller(uid=1000, gid=1000, pid=1, umask=0o022)
NEVER_S = 1e6


class MemoryNode:
    """A datanode in memory: a `mount.nodes.BlockClient`, with switches."""

    def __init__(self, name: str) -> None:
        self.id = NodeId(name)
        self.token = ""
        self.store = MemoryStore()
        self.is_down = False
        self.is_lying = False
        self.space = SpaceId(1)
        self.lists: list[wire.PrefixList] = []  # that it was asked for, for the next beat

    def _check_up(self) -> None:
        if self.is_down:
            raise EverfoldError(Kind.UNAVAILABLE, "the node is down", self.id)

    def put(self, block: BlockId, data: bytes | memoryview | FileSlice, timeout_s: float) -> object:
        self._check_up()
        self.store.put(self.space, block, bytes(data))
        return None

    def put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float
    ) -> Sequence[Kind | None]:
        for block, data in blocks:
            self.put(block, data, timeout_s)
        return [None] * len(blocks)

    def begin_put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float
    ) -> PendingPut:
        return PendingPut(lambda: list(self.put_many(blocks, timeout_s)))

    def get(self, block: BlockId, timeout_s: float) -> bytes:
        self._check_up()
        data = self.store.get(self.space, block)
        return bytes(len(data)) if self.is_lying else data

    def get_many(self, blocks: Sequence[BlockId], timeout_s: float) -> dict[BlockId, bytes]:
        self._check_up()
        return {block: self.get(block, timeout_s) for block in blocks
                if self.store.size_of(self.space, block) is not None}  # fmt: skip

    def close(self) -> None:
        """Nothing is kept open."""


class World:
    """See the module's docstring. Use as a context manager."""

    def __init__(
        self, folder: Path, database: str = "", nodes: int = 3, write_lease_s: float = 5.0
    ) -> None:
        self.folder = folder
        clock = SystemClock()
        self.db = Database(database or f"sqlite:///{folder}/nameserver.db")
        policy = Policy(
            suspect_s=NEVER_S,
            down_s=NEVER_S,
            bcrypt_rounds=4,
            gc_grace_s=NEVER_S,
            settle_s=0.0,
            drop_rest_s=0.0,
            write_lease_s=write_lease_s,
            write_calm_s=0.2,
        )
        self.service = Service(self.db, clock, policy, Secrets("s" * 32, "j" * 32, "c" * 32))
        user = self.service.accounts.create("ann", "a long enough password")
        self.identity = Identity(user.id, user.name, user.role, DeviceId("d"), "laptop")
        self.nodes = {f"dn{k}": MemoryNode(f"dn{k}") for k in range(1, nodes + 1)}
        self.lines: dict[str, Line] = {}  # of each mount, by name
        self._clients: list[Client] = []
        self._rounds = Rounds(self.db, clock, policy, self.service.nodes)
        for node in self.nodes.values():
            self.beat(node)

    def beat(self, node: MemoryNode) -> int:
        """Let a node say that it lives and what it has, and obey; return how many orders it got."""
        held = list(node.store.blocks())
        lists, node.lists = node.lists, []
        reply = self.service.beats.beat(
            wire.Heartbeat(
                node=node.id,
                url=f"http://{node.id}.test",
                zone="",
                boot="1",
                capacity=1 << 40,
                used=0,
                free=1 << 40,
                blocks=len(held),
                added=held,
                lists=lists,
            )
        )
        for command in reply.commands:
            self._obey(node, command)
        return len(reply.commands)

    def _obey(self, node: MemoryNode, command: wire.Command) -> None:
        if isinstance(command, wire.Copy):
            source = self.nodes[command.sources[0].removeprefix("http://").removesuffix(".test")]
            node.store.put(
                command.space, command.block, source.store.get(command.space, command.block)
            )
        elif isinstance(command, wire.Drop):
            node.store.delete(command.space, command.block)
        elif isinstance(command, wire.ListPrefix):
            held = [each for each in node.store.blocks() if each.block[0] == command.prefix]
            node.lists.append(wire.PrefixList(command.prefix, held))

    def repair(self) -> None:
        """Plan copies and let the nodes work until there is nothing left to do."""
        for _ in range(100):
            if not self._rounds.repair() + sum(self.beat(node) for node in self.nodes.values()):
                return
        raise AssertionError("repair comes to no end")

    def fsck(self) -> list[object]:
        """Return what the nameserver finds wrong, after asking the nodes."""
        ended = threading.Event()

        def beats() -> None:
            while not ended.is_set():
                for node in self.nodes.values():
                    self.beat(node)
                ended.wait(0.01)
            self.db.close()  # this thread's connection

        heart = threading.Thread(target=beats)
        heart.start()
        try:
            errors: list[object] = self.service.fsck.run()["errors"]
            return errors
        finally:
            ended.set()
            heart.join()

    def lease_holder(self) -> str:
        """Return the mount that holds the write lease, "" for none."""
        with self.db.read() as cx:
            row = cx.one("SELECT lease_mount FROM space WHERE id = ?", 1)
        return str(row[0]) if row else "no space"

    def mount(self, name: str = "a", policy: MountPolicy | None = None) -> Client:
        """Open a mount (no kernel); the same name again is the same cache directory."""
        settings = Settings(
            self.folder / f"mount-{name}",
            label=name,
            policy=policy or MountPolicy(change_deadline_s=20.0, poll_s=0.1),
            memory_bytes=8 << 20,
            cache_bytes=256 << 20,
        )
        who = self.identity._replace(device_name=f"device-{name}")
        self.lines[name] = Line(self.service.caller(who))
        client = Client(settings, self.lines[name], self._connect)
        self._clients.append(client)
        return client

    def _connect(self, node: Node) -> MemoryNode:
        return self.nodes[node.id]

    def forget(self, client: Client) -> None:
        """The test closed this mount itself."""
        self._clients.remove(client)

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
        self.service.stop()
        self.db.close()


# ---------------------------------------------------------------- what a program would do


def find(client: Client, path: str) -> Attr:
    """Walk a path from the root; NOT_FOUND as lookup says it."""
    ino = ROOT
    attr = client.vfs.getattr(ino).attr
    for name in filter(None, path.split("/")):
        attr = client.vfs.lookup(ino, os.fsencode(name)).attr
        ino = attr.ino
    return attr


def split(client: Client, path: str) -> tuple[Ino, bytes]:
    """Return (inode of the directory, last name) of a path."""
    above, _, name = path.rpartition("/")
    return find(client, above).ino, os.fsencode(name)


def save(client: Client, path: str, data: bytes) -> None:
    """Write a whole file, as ``open(path, "wb").write(data)`` does."""
    parent, name = split(client, path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        attr = client.vfs.lookup(parent, name).attr
        opened = client.vfs.open(attr.ino, flags)
    except EverfoldError as err:
        if err.kind is not Kind.NOT_FOUND:
            raise
        _, opened = client.vfs.create(parent, name, 0o666, flags, ME)
    for at in range(0, len(data), 1 << 17):
        client.vfs.write(opened.fh, at, data[at : at + (1 << 17)], False)
    client.vfs.flush(opened.fh, 0)
    client.vfs.release(opened.fh, 0, False)


def load(client: Client, path: str) -> bytes:
    """Read a whole file."""
    attr = find(client, path)
    opened = client.vfs.open(attr.ino, os.O_RDONLY)
    data = b""
    while part := client.vfs.read(opened.fh, len(data), 1 << 17):
        data += part
    client.vfs.release(opened.fh, 0, False)
    return data


def names(client: Client, path: str) -> list[str]:
    """List a directory, without "." and ".."."""
    fh = client.vfs.opendir(find(client, path).ino)
    found = [os.fsdecode(item.name) for item in client.vfs.readdir(fh, 0, 1 << 20, False)]
    client.vfs.releasedir(fh)
    return [name for name in found if name not in (".", "..")]


def eventually(what: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Wait until something becomes true; False when it does not in time."""
    ends = time.monotonic() + within_s
    pause = threading.Event()
    while not what():
        if time.monotonic() > ends:
            return False
        pause.wait(0.005)
    return True


def content_name(data: bytes) -> str:
    """Return a short name for bytes, for messages."""
    return blockid.name_of(data).hex()[:12] if data else "empty"
