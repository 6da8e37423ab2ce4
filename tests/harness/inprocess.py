"""A whole cluster within the test's process: both servers behind their real routes, no sockets.

Nameserver and datanodes are the production applications, called over `WsgiTransport` by the
production clients; heartbeats, repair and mounts run on their own threads. It starts in a
fraction of a second, so a test may have one of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType

from datanode.beat import Beat
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.exchange import Front
from everfold.http import Answer, Body, WsgiTransport
from everfold.model import BlockId, Node, SpaceId
from everfold.nameclient import NameClient
from everfold.nodeclient import NodeClient
from everfold.pending import Settled
from everfold.services import Pending
from mount.client import Client, Settings
from mount.policy import Policy as MountPolicy
from nameserver.app import create_app
from nameserver.db import Database
from nameserver.policy import Policy
from nameserver.secretfile import Secrets
from nameserver.service import Service
from tests.harness.nodes import SECRET, InProcessNode, InProcessPeers

PASSWORD = "a long enough password"
QUICK = Policy(
    beat_s=0.05,
    busy_beat_s=0.02,
    suspect_s=0.5,
    down_s=1.0,
    repair_grace_s=0.2,
    safe_mode_s=1.0,
    settle_s=0.2,
    surplus_s=1.0,
    spares_s=0.5,
    drop_rest_s=1.0,
    bcrypt_rounds=4,
)
CALM = replace(QUICK, suspect_s=1e6, down_s=1e6)
"""For tests that are not about nodes: on a busy machine none is taken for dead."""


class Switched:
    """A transport with a switch: while `is_down`, nobody can be reached over it."""

    def __init__(self, real: WsgiTransport) -> None:
        self.base_url = real.base_url
        self.is_down = False
        self._real = real

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Body = None,
        timeout_s: float,
    ) -> Answer:
        if self.is_down:
            raise EverfoldError(Kind.UNAVAILABLE, "cannot reach it", self.base_url)
        return self._real.request(method, path, headers=headers, body=body, timeout_s=timeout_s)

    def begin(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Body = None,
        timeout_s: float,
    ) -> Pending[Answer]:
        return Settled(
            lambda: self.request(method, path, headers=headers, body=body, timeout_s=timeout_s)
        )

    def close(self) -> None:
        self._real.close()


class InProcessCluster:
    """Use as a context manager. `nodes` are behind switches; `service` is the nameserver."""

    def __init__(
        self, folder: Path, nodes: int = 3, policy: Policy = QUICK, database: str = ""
    ) -> None:
        self.folder = folder
        self.db = Database(database or f"sqlite:///{folder}/nameserver.db")
        keys = Secrets("s" * 32, "j" * 32, SECRET)
        self.links: dict[str, Switched] = {}  # to the datanodes, by URL
        self._others: list[Service] = []
        self.service = Service(self.db, SystemClock(), policy, keys, self.links.__getitem__)
        self.app = create_app(self.service)
        self.nameserver = Switched(WsgiTransport(self.app, "http://ns.test"))
        self._peers = InProcessPeers()
        self.nodes: dict[str, InProcessNode] = {}
        self._beats: list[Beat] = []
        self._clients: list[Client] = []
        for number in range(1, nodes + 1):
            self._add(f"dn{number}")
        self.token = self.user("ann")
        self.service.driver.start()

    def _add(self, name: str) -> None:
        node = InProcessNode(self.folder / name, name, peers=self._peers)
        beat = node.beat(Switched(WsgiTransport(self.app, "http://ns.test")))
        self.nodes[name] = node
        self.links[node.url] = Switched(node.transport)
        assert beat.beat()
        beat.start()
        self._beats.append(beat)

    def second_app(self) -> Front:
        """Return another nameserver on the same database."""
        keys = Secrets("s" * 32, "j" * 32, SECRET)
        policy = self.service.policy
        other = Service(self.db, SystemClock(), policy, keys, self.links.__getitem__)
        self._others.append(other)
        return create_app(other)

    def user(self, name: str) -> str:
        """Make a user; return a token of theirs."""
        user = self.service.accounts.create(name, PASSWORD)
        device = self.service.devices.at_login(user.id, "", f"{name}s laptop", "")
        return self.service.gate.admit(user, device)

    def cut(self, name: str) -> None:
        """Cut a node off: it is silent, and nobody reaches it. It knows nothing of that."""
        node = self.nodes[name]
        self.links[node.url].is_down = True
        beat = self._beats[list(self.nodes).index(name)]
        beat.close()

    def names(self, token: str = "") -> NameClient:
        """Return the nameserver as the holder of a token sees it."""
        return NameClient(self.nameserver, token or self.token)

    def mount(self, name: str = "a", token: str = "") -> Client:
        """Open a mount without a kernel; the same name again is the same cache directory."""
        settings = Settings(
            self.folder / f"mount-{name}",
            label=name,
            policy=MountPolicy(change_deadline_s=20.0),
            memory_bytes=8 << 20,
            cache_bytes=64 << 20,
        )
        client = Client(settings, self.names(token), self._connect)
        self._clients.append(client)
        return client

    def _connect(self, node: Node) -> NodeClient:
        return NodeClient(self.links[node.url], "")

    def holders(self, space: SpaceId, block: BlockId) -> set[str]:
        """Return the nodes that have a block on their disks, sound or not."""
        return {
            name
            for name, node in self.nodes.items()
            if node.node.store.size_of(space, block) is not None
        }

    def __enter__(self) -> InProcessCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
        for beat in self._beats:
            beat.close()
        for node in self.nodes.values():
            node.close()
        for service in (*self._others, self.service):
            service.stop()
        self.db.close()
