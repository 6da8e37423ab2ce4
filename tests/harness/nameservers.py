"""Nameserver processes for tests, any number on one database, without `everfold up`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from everfold.api import Api
from tests.harness import machine, nodes
from tests.harness.cluster import ROOT
from tests.harness.nodes import SECRET

PASSWORD = "correct horse battery"
SECRETS = {
    "SECRET_KEY": "the secret key of tests",
    "JWT_SECRET_KEY": "the jwt secret key of tests",
    "CLUSTER_SECRET": SECRET,
}
START_S = 40.0


class Nameserver:
    """`python -m nameserver`; `begin` returns at once, `await_ready` when it serves."""

    def __init__(self, folder: Path, *flags: str, **env: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self._ready = folder / "ready.json"
        self._line = [
            sys.executable, "-m", "nameserver", "--data", str(folder / "data"),
            "--ready-file", str(self._ready), *flags,
        ]  # fmt: skip
        if "--port" not in flags:
            self._line += ["--port", "0"]
        self._env = {
            **os.environ, **SECRETS, "PYTHONPATH": str(ROOT),
            "EVERFOLD_ADMIN_PASSWORD": PASSWORD, **env,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.told: Mapping[str, Any] = {}

    def begin(self) -> None:
        """Start it."""
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._line, env=self._env, stdout=log, stderr=log)

    def await_ready(self) -> None:
        """Wait until it serves; `told` is what its ready file says."""
        process = self.process
        assert process is not None
        machine.wait_until(
            lambda: self._ready.exists() or process.poll() is not None, START_S, "ready"
        )
        assert process.poll() is None, self.log.read_text()
        self.told = json.loads(self._ready.read_text())

    @property
    def url(self) -> str:
        """Return its address."""
        return str(self.told["url"])

    def api(self) -> Api:
        """Return a client that is logged in as the admin."""
        api = Api(self.url)
        api.login("admin", PASSWORD, device_name="test")
        return api

    def stop(self) -> int:
        """End it in order; return its status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)


@contextlib.contextmanager
def running(folder: Path, count: int, *flags: str, **env: str) -> Iterator[list[Nameserver]]:
    """Run processes on one database that are started at the same moment."""
    all_ = [Nameserver(folder / f"ns{k}", *flags, **env) for k in range(count)]
    try:
        for each in all_:
            each.begin()
        for each in all_:
            each.await_ready()
        yield all_
    finally:
        for each in all_:
            if each.process is not None and each.process.poll() is None:
                each.kill()


@contextlib.contextmanager
def with_nodes(folder: Path, count: int, url: str) -> Iterator[list[Nameserver]]:
    """Run processes on the database at `url`, and two datanodes that are up."""
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(running(folder, count, DATABASE_URL=url))
        for k in range(2):
            stack.enter_context(nodes.running(folder / "nodes", f"dn{k + 1}", found[k].url))
        with found[0].api() as api:
            machine.wait_until(
                lambda: [n["state"] for n in api.nodes()] == ["up", "up"], START_S, "the nodes"
            )
        yield found
