"""The data directory of an embedded cluster (`everfold up --data DIR`).

lock             flock()ed by everything that runs on it; holds the supervisor's pid
cluster.json     what was chosen once: nodes, copies, ports, the admin's name
secrets.json     the cluster's keys, mode 0600
admin.token      the token that the embedded mount and `up` itself work with, mode 0600
nameserver/      the database
nodes/dnK/       blocks
mount/           cache and journal of the embedded mount
logs/, run/      logs; ready files
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from everfold.errors import EverfoldError, Kind
from everfold.statefile import read_json, write_private

SECRETS = ("SECRET_KEY", "JWT_SECRET_KEY", "CLUSTER_SECRET")
_LINGER_S = 15.0  # for the children of a supervisor that was killed to end


@dataclass
class Chosen:
    """What stays the same from one start to the next."""

    nodes: int
    replicas: int
    port: int = 0
    admin: str = ""
    device: str = ""  # of the admin's, that the embedded mount is
    node_ports: dict[str, int] = field(default_factory=dict)
    url: str = ""  # of the nameserver at its last start
    ca_file: str = ""  # whom that start trusted


class Embedded:
    """One data directory; use `locked` around everything but reading."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.token_file = self.path / "admin.token"

    def log(self, name: str) -> Path:
        """Return the log file of a child."""
        return self.path / "logs" / f"{name}.log"

    def ready_file(self, name: str) -> Path:
        """Return the ready file of a child."""
        return self.path / "run" / f"{name}.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the directory; yields the descriptor that children inherit.

        BUSY when another supervisor runs on it. When one was killed, its children have a
        moment to end.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield handle
        finally:
            os.close(handle)

    def _take(self, handle: int) -> None:
        ends = time.monotonic() + _LINGER_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as err:
                pid = self.supervisor()
                if pid or time.monotonic() > ends:
                    who = f"process {pid}" if pid else "processes of an earlier `up`"
                    raise EverfoldError(
                        Kind.BUSY, f"already in use by {who}", str(self.path)
                    ) from err
                time.sleep(0.1)

    def supervisor(self) -> int:
        """Return the pid of the supervisor that says it runs here, 0 when it is not alive."""
        try:
            pid = int((self.path / "lock").read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return 0
        return pid

    # ------------------------------------------------------------ what is remembered

    def secrets(self) -> dict[str, str]:
        """Return the cluster's keys, made at the first start."""
        path = self.path / "secrets.json"
        kept: dict[str, str] = read_json(path) or {}
        missing = {name: secrets.token_hex(32) for name in SECRETS if name not in kept}
        if missing:
            kept.update(missing)
            write_private(path, json.dumps(kept, indent=2))
        return kept

    def chosen(self) -> Chosen | None:
        """Return what was chosen at the first start, None before it."""
        form = read_json(self.path / "cluster.json")
        return Chosen(**form) if form else None

    def choose(self, chosen: Chosen) -> None:
        """Remember a choice."""
        write_private(self.path / "cluster.json", json.dumps(asdict(chosen), indent=2))


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
