"""A whole cluster for a test, of real processes, and what can be done to it.

`running(folder)` starts `everfold up`, yields a `RealCluster`, and ends everything whatever the
test did: stopped processes are continued, mounts detached, every pid of ours waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from everfold.api import Api
from tests.harness import machine

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 60.0
END_S = 40.0
PASSWORD = "correct horse battery"


def python(*args: str) -> list[str]:
    """Return the command line of one of our modules."""
    return [sys.executable, "-m", *args]


def environment(**extra: str) -> dict[str, str]:
    """Return an environment in which our modules are found from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "EVERFOLD_ADMIN_PASSWORD": PASSWORD, **extra}


class RealCluster:
    """One `everfold up`. Knows pids from the ready file, which is rewritten after restarts."""

    def __init__(self, folder: Path, *flags: str, **env: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.home = folder / "home"
        self.ready_file = folder / "ready.json"
        self.log = folder / "up.log"
        self._flags = flags
        self._env = environment(EVERFOLD_HOME=str(self.home), **env)
        self._process: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------ its life

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.ready_file.unlink(missing_ok=True)
        line = python(
            "tools", "up", "--data", str(self.data), "--port", "0",
            "--ready-file", str(self.ready_file), *self._flags,
        )  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )
        process = self._process
        machine.wait_until(
            lambda: self.ready_file.exists() or process.poll() is not None, START_S, "ready"
        )
        assert process.poll() is None, f"`up` ended at its start:\n{self.said()}"

    def stop(self) -> int:
        """End it in order; return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(END_S)
        self._process = None
        return status

    def kill(self) -> None:
        """Kill the supervisor, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def tear_down(self) -> None:
        """Leave nothing behind, in whatever state it is."""
        if self._process is not None:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        if self._process is not None:
            self.kill()
        machine.detach(machine.fuse_mounts(self.folder))

    # ------------------------------------------------------------ what is known of it

    @property
    def ready(self) -> dict[str, Any]:
        """Return what the ready file says now."""
        form: dict[str, Any] = json.loads(self.ready_file.read_text())
        return form

    @property
    def url(self) -> str:
        """Return the nameserver's URL."""
        return str(self.ready["url"])

    def pid(self, name: str) -> int:
        """Return the pid of "nameserver" or of a datanode."""
        ready = self.ready
        if name == "nameserver":
            return int(ready["nameserver"]["pid"])
        return next(int(node["pid"]) for node in ready["nodes"] if node["id"] == name)

    def pids(self) -> set[int]:
        """Return all pids that the ready file names."""
        ready = self.ready
        return {int(ready["nameserver"]["pid"]), *(int(node["pid"]) for node in ready["nodes"])}

    def root(self, name: str) -> Path:
        """Return where a datanode keeps its blocks."""
        return next(Path(node["root"]) for node in self.ready["nodes"] if node["id"] == name)

    def said(self) -> str:
        """Return what `up` printed so far."""
        return self.log.read_text(errors="replace")

    def api(self) -> Api:
        """Return a client that is logged in as the admin."""
        api = Api(self.url)
        api.login("admin", PASSWORD, device_name="test")
        return api

    # ------------------------------------------------------------ what is done to it

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a server, by pid."""
        os.kill(self.pid(name), number)

    def tool(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run `everfold WORDS` with this cluster's home."""
        return subprocess.run(
            python("tools", *words),
            input=stdin,
            capture_output=True,
            text=True,
            env={**self._env, **env},
            timeout=60,
        )

    def log_in(self) -> None:
        """Log the tools in as the admin."""
        words = ("login", "--server", self.url, "--username", "admin", "--password-stdin")
        done = self.tool(*words, stdin=PASSWORD + "\n")
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running(folder: Path, *flags: str, **env: str) -> Iterator[RealCluster]:
    """Run a cluster for a test; flags are those of `everfold up`."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = RealCluster(folder, *flags, **env)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.tear_down()
