"""A nameserver without HTTP whose clock a test moves, and datanodes that do as they are told."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import Any

from everfold import wire
from everfold.blockid import name_of
from everfold.model import BlockId, DeviceId, MountId, NodeId, NodeState, SpaceId
from nameserver.accounts import ADMIN, User
from nameserver.caller import Caller
from nameserver.db import Database
from nameserver.gate import Identity
from nameserver.policy import Policy
from nameserver.secretfile import Secrets
from nameserver.service import Service
from tests.harness.trees import HandClock

KEYS = Secrets("secret key of a test", "token key of a test", "cluster secret of a test")
PASSWORD = "a password of a test"
FREE = 1 << 40
Key = tuple[SpaceId, BlockId]


class ObedientNode:
    """What a datanode holds, as sets, and its side of the heartbeat. `rotten`: bytes went bad."""

    def __init__(self, name: str, zone: str = "", free: int = FREE) -> None:
        self.id = NodeId(name)
        self.zone = zone
        self.free = free
        self.url = f"http://{name}.test"
        self.boot = "1"
        self.held: dict[Key, int] = {}
        self.rotten: set[Key] = set()
        self.obeyed: list[wire.Command] = []
        self._added: dict[Key, int] = {}
        self._removed: dict[Key, int] = {}
        self._bad: dict[Key, int] = {}
        self._lists: list[wire.PrefixList] = []
        self._owes_digests = True

    def put(self, space: SpaceId, block: BlockId, size: int = 1000) -> None:
        """Keep a block; told with the next beat."""
        self.held[space, block] = size
        self._added[space, block] = size

    def restart(self, boot: str) -> None:
        """Start anew with what is on the disk."""
        self.boot = boot
        self._added, self._removed, self._bad, self._lists = {}, {}, {}, []
        self._owes_digests = True

    def lose_disk(self) -> None:
        """Come back empty."""
        self.held = {}

    def report(self, digests: bool = False) -> wire.Heartbeat:
        """Return the next beat."""
        beat = wire.Heartbeat(
            node=self.id, url=self.url, zone=self.zone, boot=self.boot, capacity=FREE,
            used=sum(self.held.values()), free=self.free, blocks=len(self.held),
            added=_held(self._added), removed=_held(self._removed), bad=_held(self._bad),
            digests=self._digests() if digests or self._owes_digests else [],
            lists=self._lists,
        )  # fmt: skip
        self._added, self._removed, self._bad, self._lists = {}, {}, {}, []
        self._owes_digests = False
        return beat

    def _digests(self) -> list[wire.PrefixDigest]:
        counts, xors = [0] * 256, [0] * 256
        for space, block in self.held:
            counts[block[0]] += 1
            xors[block[0]] ^= wire.held_digest(space, block)
        return [wire.PrefixDigest(p, counts[p], xors[p]) for p in range(256)]

    def obey(self, command: wire.Command) -> None:
        """Do what the answer to a beat said."""
        self.obeyed.append(command)
        if isinstance(command, wire.ListPrefix):
            listed = {key: s for key, s in self.held.items() if key[1][0] == command.prefix}
            self._lists.append(wire.PrefixList(command.prefix, _held(listed)))
            return
        key = (command.space, command.block)
        if isinstance(command, wire.Copy):
            self.rotten.discard(key)
            self.put(command.space, command.block, command.size)
        elif isinstance(command, wire.Drop):
            self._removed[key] = self.held.pop(key, 0)
        elif key in self.rotten and key in self.held:
            self._bad[key] = self._removed[key] = self.held.pop(key)
        elif key in self.held:
            self._added[key] = self.held[key]
        else:
            self._removed[key] = 0


def _held(blocks: dict[Key, int]) -> list[wire.Held]:
    return [wire.Held(space, block, size) for (space, block), size in blocks.items()]


class Desk:
    """A service with its clock and nodes; `pass_time` lets everybody do what is due."""

    def __init__(self, db: Database, policy: Policy | None = None, nodes: int = 3) -> None:
        self.clock = HandClock()
        self.policy = policy or Policy(bcrypt_rounds=4)
        self.service = Service(db, self.clock, self.policy, KEYS)
        self.nodes = {f"dn{k}": ObedientNode(f"dn{k}") for k in range(1, nodes + 1)}
        self.silent: set[str] = set()
        self._numbers = itertools.count()
        self.admin = self.service.accounts.create("root", PASSWORD, role=ADMIN)
        self.ann = self.service.accounts.create("ann", PASSWORD)
        self.beat()

    @classmethod
    def resume(cls, before: Desk, db: Database) -> Desk:
        """Return a second nameserver process on the same database, clock and nodes."""
        desk = cls.__new__(cls)
        desk.__dict__.update(before.__dict__)
        desk.service = Service(db, before.clock, before.policy, KEYS)
        return desk

    # ------------------------------------------------------------ nodes

    def beat(self, *names: str, digests: bool = False) -> None:
        """Let nodes (all that are not silent) beat once and obey."""
        for name in names or [n for n in self.nodes if n not in self.silent]:
            node = self.nodes[name]
            reply = self.service.beats.beat(node.report(digests))
            if reply.state not in (NodeState.FAILED, NodeState.REMOVED):
                for command in reply.commands:
                    node.obey(command)

    def pass_time(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time go by: nodes beat, the driver looks around."""
        for _ in range(round(seconds / step_s)):
            self.clock.move(step_s)
            self.beat()
            self.service.driver.tick()

    def run_fsck(self, is_repairing: bool = False) -> dict[str, Any]:
        """Run fsck, while the nodes go on beating."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(0.01):
                self.beat()
            self.service.db.close()

        beating = threading.Thread(target=beat)
        beating.start()
        try:
            return self.service.fsck.run(is_repairing=is_repairing)
        finally:
            ended.set()
            beating.join()

    def state(self, name: str) -> NodeState:
        """Return where a node stands."""
        return self.service.nodes.get(NodeId(name)).state

    # ------------------------------------------------------------ people

    def identity(self, user: User | None = None, device: str = "laptop") -> Identity:
        """Return somebody (ann) at a device."""
        user = user or self.ann
        return Identity(user.id, user.name, user.role, DeviceId(f"id-{device}"), device)

    def caller(self, user: User | None = None) -> Caller:
        """Return the nameserver as somebody (ann) sees it."""
        return self.service.caller(self.identity(user))

    def mount(self, user: User | None = None, name: str = "m1") -> wire.Session:
        """Begin a session of a mount."""
        return self.caller(user).session(wire.Hello(MountId(name), "test"))

    # ------------------------------------------------------------ blocks

    def block(self) -> BlockId:
        """Return the name of a block that nobody has seen."""
        return name_of(b"block %d" % next(self._numbers))

    def store(self, space: SpaceId, on: Iterable[str], size: int = 1000) -> BlockId:
        """Put a fresh block on nodes, which tell of it; as a client before its commit."""
        block = self.block()
        for name in on:
            self.nodes[name].put(space, block, size)
        self.beat(*on)
        return block

    def holders(self, space: SpaceId, block: BlockId) -> set[str]:
        """Return the nodes that really have a sound copy."""
        key = (space, block)
        return {n.id for n in self.nodes.values() if key in n.held and key not in n.rotten}
