"""The nameserver without HTTP: the composition root, and what needs several parts at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport
from everfold.model import SIZE_MAX, MountId, NodeId, SpaceId, SpaceUsage
from everfold.services import Clock
from everfold.tokens import Signer
from nameserver import tasks
from nameserver.accounts import ADMIN, Accounts, User
from nameserver.audit import note
from nameserver.beats import Beats
from nameserver.blocks import BlockTokens, Ledger
from nameserver.caller import Caller
from nameserver.conversion import Conversion
from nameserver.db import Database
from nameserver.departures import Departures
from nameserver.devices import Devices
from nameserver.driver import Driver
from nameserver.feed import Bell, Feeds
from nameserver.files.blocks import Connect
from nameserver.files.service import FileService
from nameserver.fsck import Fsck
from nameserver.gate import Gate, Identity
from nameserver.invitations import Invitations
from nameserver.leases import Leases
from nameserver.load import Load
from nameserver.locks import Locks
from nameserver.nodes import LIVE, NodeBook
from nameserver.policy import Policy
from nameserver.secretfile import Secrets
from nameserver.sessions import Sessions
from nameserver.spaces import Spaces
from nameserver.status import Status
from nameserver.teams import Teams
from nameserver.tree import Tree, make_space

FIRST_ADMIN = "admin"


class FirstAdmin(NamedTuple):
    """The admin that a first start made; the password is told once and kept nowhere."""

    username: str
    password: str


class Service:
    """All parts of one nameserver, wired. Any number of them may share a database."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        policy: Policy,
        keys: Secrets,
        connect: Connect = HttpTransport,
    ) -> None:
        self._at_stop: list[Callable[[], None]] = []
        self.db = db
        self.clock = clock
        self.policy = policy
        self.secret_key = keys.secret_key
        cluster = Signer(keys.cluster_secret, clock)
        self.bell = Bell()
        self.nodes = NodeBook(db, clock, policy, self.bell.ring_all)
        tokens = BlockTokens(cluster, clock, policy.block_token_ttl_s)
        self.ledger = Ledger(db, clock, policy, self.nodes, tokens)
        self.beats = Beats(db, clock, policy, self.nodes, tokens)
        self.tree = Tree(
            db, clock, self.ledger, self.bell,
            min_replicas=policy.min_replicas, max_file_size=policy.max_file_size or SIZE_MAX,
        )  # fmt: skip
        self.leases = Leases(db, clock, policy, self.bell)
        self.locks = Locks(db, clock, self.bell, policy)
        self.feeds = Feeds(db, clock, self.bell, self.nodes.fresh, self.leases, self.locks.leases)
        self.spaces = Spaces(db, clock)
        self.accounts = Accounts(db, clock, policy, make_space)
        self.devices = Devices(db, clock)
        self.sessions = Sessions(
            db, clock, policy, self.spaces, self.nodes, self.ledger, self.devices,
            lambda who, device: self.gate.admit(self.accounts.get(who.name), device),
            self._end, self._tidy,
        )  # fmt: skip
        self.gate = Gate(
            db, clock, policy, self.accounts, self.devices,
            Signer(keys.jwt_secret_key, clock), cluster,
        )  # fmt: skip
        self.departures = Departures(db, clock, policy, self.nodes)
        self.status = Status(db, clock, policy, self.nodes, self.departures)
        self.fsck = Fsck(db, clock, policy, self.nodes)
        self.load = Load(db, clock)
        self.invitations = Invitations(db, clock)
        self.driver = Driver(db, clock, policy, self.nodes, self.sessions)
        self.files = FileService(self, connect)
        self.conversion = Conversion(self)
        self.teams = Teams(self)

    def caller(self, who: Identity) -> Caller:
        """Return the nameserver as this caller may use it (`services.NameService`)."""
        return Caller(self, who)

    def heartbeat(self, token: str, ask: wire.Heartbeat) -> wire.BeatReply:
        """Take a datanode's beat; its token must be a node's, and that node's."""
        named = self.gate.node(token)
        if named not in ("", ask.node):
            raise EverfoldError(Kind.FORBIDDEN, "the token is another node's", ask.node[:80])
        reply = self.beats.beat(ask)
        self.load.moved(ask.took, ask.gave)
        return reply

    def first_admin(self, password: str = "") -> FirstAdmin | None:
        """Make the admin when there is no user at all; None when there is one."""
        if self.accounts.has_any():
            return None
        chosen = password or secrets.token_urlsafe(12)
        try:
            self.accounts.create(FIRST_ADMIN, chosen, role=ADMIN)
        except EverfoldError as err:
            if err.kind is Kind.EXISTS:  # another nameserver process was faster
                return None
            raise
        return FirstAdmin(FIRST_ADMIN, chosen)

    def register(self, name: str, password: str, email: str, invitation: str) -> User:
        """Make an account for oneself, as `Policy.registration` allows.

        FORBIDDEN where it is closed, or without a good invitation where that is needed. With
        one, its role and quota are the user's, also where anybody may register.
        """
        mode = self.policy.registration
        if mode == "admin":
            raise EverfoldError(Kind.FORBIDDEN, "registration is closed; ask an admin")
        if mode == "open" and not invitation:
            return self.accounts.create(name, password, email)
        asked = self.invitations.good(invitation, email)
        return self.accounts.create(
            name,
            password,
            email,
            asked.role,
            quota=asked.quota,
            also=lambda cx, user: self.invitations.use(cx, asked, user),
        )

    def _end(self, space: SpaceId, mount: MountId) -> None:
        """Let go of what a mount held that ended or fell silent."""
        self.locks.drop_locks(wire.DropLocks(space, mount))
        with self.db.write() as cx:
            self.tree.seal_all(cx, space, mount)
            self.leases.drop(cx, space, mount)
        self.bell.ring(space)

    def _tidy(self, space: SpaceId, mount: MountId) -> None:
        """A mount begins: what an earlier process of it had open when it died is complete.

        Its write lease stays until it runs out, so that what its journal still holds comes
        before what others do.
        """
        self.locks.drop_locks(wire.DropLocks(space, mount))
        with self.db.write() as cx:
            self.tree.seal_all(cx, space, mount)

    # ------------------------------------------------------------ nodes, by hand

    def fail_node(self, node: NodeId, author: str) -> None:
        """Declare a node dead: its copies count for nothing from now on."""
        self.nodes.say(node, "failed")
        now = self.clock.time_ns()
        with self.db.write() as cx:
            tasks.discard(cx, node)
            note(cx, now, author, "node.fail", node)

    def repair_node(self, node: NodeId, author: str) -> None:
        """Take a node back, a removed one too. Everything that it has is listed and counted
        before anything is dropped anywhere; what is missing is copied."""
        self.nodes.say(node, "", even_removed=True)
        now = self.clock.time_ns()
        with self.db.write() as cx:
            tasks.list_prefixes(cx, node, range(256), now)
            note(cx, now, author, "node.repair", node)

    # ------------------------------------------------------------ figures

    def usage(self, ask: wire.GetUsage) -> SpaceUsage:
        """Return what statfs shows of a space."""
        known = self.tree.usage(ask)
        members = [m for m in self.nodes.members().values() if m.state in LIVE]
        free = sum(m.free for m in members) // self.policy.replicas
        capacity = sum(m.capacity for m in members) // self.policy.replicas
        return msgspec.structs.replace(known, free=free, capacity=capacity)

    def check_ready(self) -> None:
        """Raise unless requests can be answered."""
        with self.db.read() as cx:
            cx.one("SELECT 1 FROM meta LIMIT 1")

    def at_stop(self, stop: Callable[[], None]) -> None:
        """Let something of the layers above end before all others."""
        self._at_stop.append(stop)

    def stop(self) -> None:
        """Let parked requests go, and stop what runs by itself."""
        for stop in self._at_stop:
            stop()
        self.fsck.stop()
        self.bell.stop()
        self.files.stop()
        self.load.stop()
        self.driver.stop()
