"""Datanodes for tests: in this process over the real routes, or as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datanode.app import create_app
from datanode.auth import Doorkeeper
from datanode.beat import Beat
from datanode.commands import Commands
from datanode.copying import Copier, Peers
from datanode.node import Identity, Node
from everfold import wire
from everfold.clock import SystemClock
from everfold.files import Files
from everfold.http import HttpTransport, WsgiTransport
from everfold.model import NodeId, NodeState
from everfold.nodeclient import NodeClient
from everfold.services import Transport
from everfold.tokens import Signer
from tests.harness import machine

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "the secret of a cluster in a test"
START_S = 20.0


def token(space: int, verbs: str = "rwd", ttl_s: float = 600, audience: str = "blocks") -> str:
    """Return a token as the nameserver would give it."""
    return Signer(SECRET, SystemClock()).mint(audience, ttl_s, space=space, verbs=verbs)


class InProcessPeers(Peers):
    """Peers that are reached without sockets, by made-up URLs."""

    def __init__(self) -> None:
        super().__init__()
        self.apps: dict[str, Any] = {}

    def transport(self, url: str) -> Transport:
        app = self.apps.get(url)
        return WsgiTransport(app, url) if app else HttpTransport(url)


class InProcessNode:
    """A datanode behind its real routes, without a socket."""

    def __init__(
        self,
        root: Path,
        name: str = "dn1",
        files: Files | None = None,
        peers: InProcessPeers | None = None,
        capacity: int = 0,
        floor: int = 0,
    ) -> None:
        self.url = f"http://{name}.test"
        self.node = Node(Identity(NodeId(name), self.url, "z1", capacity), root, files, floor)
        peers = peers or InProcessPeers()
        self.copier = Copier(self.node, peers)
        self.commands = Commands(self.node, self.copier)
        app = create_app(self.node, Doorkeeper(SECRET, SystemClock()), self.copier)
        peers.apps[self.url] = app
        self.transport = WsgiTransport(app, self.url)

    def client(self, space: int = 1, verbs: str = "rwd") -> NodeClient:
        """Return a client with a token for a space."""
        return NodeClient(self.transport, token(space, verbs))

    def beat(self, nameserver: Transport) -> Beat:
        """Return this node's heartbeat, not started."""
        return Beat(self.node, self.commands, nameserver, SECRET, SystemClock())

    def close(self) -> None:
        """End in order."""
        self.commands.close()
        self.node.close()


class ScriptedNameserver:
    """Receives beats as a nameserver would, writes them down, and answers as told.

    `is_deaf`: takes a beat and loses the answer; `is_away`: cannot be reached.
    """

    def __init__(self) -> None:
        self.beats: list[wire.Heartbeat] = []
        self.commands: list[wire.Command] = []
        self.state = NodeState.UP
        self.beat_s = 0.02
        self.is_deaf = False
        self.is_away = False
        self._lock = threading.Lock()
        self.transport = WsgiTransport(self, "http://nameserver.test")

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if self.is_away:
            start_response("503 Service Unavailable", [])
            return [b""]
        bearer = environ["HTTP_AUTHORIZATION"].removeprefix("Bearer ")
        claims = Signer(SECRET, SystemClock()).verify(bearer, "node")
        raw = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        beat = wire.decode(raw, wire.Heartbeat)
        assert environ["PATH_INFO"] == "/v1/heartbeat"
        assert claims["sub"] == beat.node
        with self._lock:
            self.beats.append(beat)
            if self.is_deaf:
                start_response("504 Gateway Timeout", [])
                return [b""]
            commands, self.commands = self.commands, []
        start_response("200 OK", [("Content-Type", wire.MSGPACK)])
        return [wire.encode(wire.BeatReply(self.state, self.beat_s, commands))]

    def told(self, what: str) -> set[wire.Held]:
        """Return all that the beats said under "added", "removed" or "bad"."""
        with self._lock:
            return {held for beat in self.beats for held in getattr(beat, what)}


class RealNode:
    """A datanode process. `start` may be called again after it ended."""

    def __init__(self, folder: Path, name: str = "dn1", nameserver: str = "", *flags: str) -> None:
        self.name = name
        self.root = folder / name
        self.log = folder / f"{name}.log"
        self._ready = folder / f"{name}.ready"
        self._nameserver = nameserver or "http://127.0.0.1:9"
        self._flags = flags
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it and wait until it serves."""
        self._ready.unlink(missing_ok=True)
        line = [
            sys.executable, "-m", "datanode", "--id", self.name, "--root", str(self.root),
            "--nameserver", self._nameserver, "--ready-file", str(self._ready), "--floor", "0",
            *self._flags,
        ]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(ROOT), "CLUSTER_SECRET": SECRET}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(line, env=env, stdout=log, stderr=log)
        process = self.process
        machine.wait_until(
            lambda: self._ready.exists() or process.poll() is not None, START_S, "ready"
        )
        assert process.poll() is None, self.log.read_text()
        told = json.loads(self._ready.read_text())
        assert told == {"id": self.name, "url": told["url"], "root": str(self.root),
                        "pid": process.pid}  # fmt: skip
        self.url = told["url"]

    def transport(self) -> HttpTransport:
        """Return a way to it."""
        return HttpTransport(self.url)

    def client(self, space: int = 1, timeout_s: float = 5.0) -> NodeClient:
        """Return a client with a token for a space."""
        return NodeClient(self.transport(), token(space), timeout_s)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it in order; return its status."""
        self.send(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(20)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)


@contextlib.contextmanager
def running(
    folder: Path, name: str = "dn1", nameserver: str = "", *flags: str
) -> Iterator[RealNode]:
    """Run a datanode process for a test."""
    folder.mkdir(parents=True, exist_ok=True)
    node = RealNode(folder, name, nameserver, *flags)
    try:
        node.start()
        yield node
    finally:
        if node.process is not None and node.process.poll() is None:
            node.process.kill()
            node.process.wait(20)
