"""How soon Socket.IO clients hear of a file that a mount saves: `python -m tools.livebench`.

Starts four nameserver processes on one database (PostgreSQL where it is installed, then SQLite),
two datanodes and a mount, all in a temporary folder; a standard python-socketio client over
WebSocket and one over polling at each of the four. Prints the times from before the file is opened
to the event's arrival. Asserts nothing: times on a busy machine are its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import socketio

from everfold.api import Api
from everfold.errors import EverfoldError, Kind
from tools import command, mountpoint

SERVERS: Final = 4
FILES: Final = 100
PAUSE_S: Final = 0.05
TRANSPORTS: Final = ("websocket", "polling")
_READY_S: Final = 60.0
_EVENT_S: Final = 20.0
_PASSWORD: Final = "adminadmin1"


class Programs:
    """Processes that end with the block, the last first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        keys = ("SECRET_KEY", "JWT_SECRET_KEY", "CLUSTER_SECRET")
        self._env = {
            **os.environ,
            **{key: secrets.token_hex(16) for key in keys},
            "EVERFOLD_ADMIN_PASSWORD": _PASSWORD,
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),  # from a clone, anywhere
        }

    def start(self, name: str, *line: str, **env: str) -> dict[str, Any]:
        """Start a module of ours; return what its ready file says."""
        ready = self.folder / f"{name}.json"
        words = [sys.executable, "-m", *line, "--ready-file", str(ready)]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(words, env={**self._env, **env}, stdout=log, stderr=log)
        self._running.append(process)
        wait_until(lambda: ready.exists() or process.poll() is not None, name)
        if not ready.exists():
            raise EverfoldError(
                Kind.INTERNAL, f"{name} ended", (self.folder / f"{name}.log").read_text()
            )
        told: dict[str, Any] = json.loads(ready.read_text())
        return told

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL server in a folder; yields its URL."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parts[-2]))
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder.mkdir()
    if user:
        shutil.chown(folder, "postgres")

    def run(name: str, *words: str) -> None:
        line = [*user, str(programs / name), *words]
        subprocess.run(line, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60)

    run("initdb", "-D", "data", "-U", "postgres", "-A", "trust")
    options = f"-k {folder} -c listen_addresses= -c max_connections=200"
    run("pg_ctl", "-D", "data", "-w", "-s", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", "data", "-m", "fast", "-w", "-s", "stop")


class Listener:
    """A client of one server; notes when it hears of each file."""

    def __init__(self, url: str, token: str, transport: str) -> None:
        self.transport = transport
        self.heard: dict[str, float] = {}
        self.lags: list[float] = []  # milliseconds since the commit
        self._client = socketio.Client(reconnection=False)
        self._client.on("file_uploaded", self._note)
        self._client.connect(url, auth={"token": token}, transports=[transport])
        self._client.call("join_sync_room", {})

    def _note(self, event: dict[str, Any]) -> None:
        committed = datetime.fromisoformat(str(event["timestamp"]).replace("Z", "+00:00"))
        self.lags.append(time.time() * 1000 - committed.timestamp() * 1000)
        self.heard.setdefault(str(event["name"]), time.monotonic())

    def close(self) -> None:
        """Hang up."""
        self._client.disconnect()


def measure(top: Path, listeners: list[Listener], files: int) -> dict[str, list[list[float]]]:
    """Save files one after the other; return the milliseconds of each listener, by transport."""
    saved: dict[str, float] = {}
    pause = threading.Event()
    for number in range(files):
        name = f"f{number}"
        saved[name] = time.monotonic()
        (top / name).write_bytes(b"content %d" % number)
        pause.wait(PAUSE_S)
    for listener in listeners:
        wait_until(lambda at=listener: len(at.heard) >= files, "events", _EVENT_S)  # type: ignore[misc]
    told: dict[str, list[list[float]]] = {transport: [] for transport in TRANSPORTS}
    for listener in listeners:
        times = [(listener.heard[name] - began) * 1000 for name, began in saved.items()]
        told[listener.transport].append(times)
    return told


def report(database: str, told: dict[str, list[list[float]]]) -> None:
    """Print the quantiles of each transport, over all its clients and of the slowest one."""
    for transport, clients in told.items():
        times = sorted(time_ms for each in clients for time_ms in each)
        slowest = max(_quantile(sorted(each), 0.95) for each in clients)
        print(
            f"{database:<11}{transport:<10} {len(clients)} clients x {len(clients[0])} files:"
            f"  p50 {statistics.median(times):6.1f} ms  p95 {_quantile(times, 0.95):6.1f} ms"
            f"  max {times[-1]:6.1f} ms  p95 of the slowest client {slowest:6.1f} ms",
            flush=True,
        )


def _quantile(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))]


def run(folder: Path, database: str, url: str, files: int) -> None:
    """Start everything on one database, measure, print."""
    folder.mkdir()
    top = folder / "mounted"
    top.mkdir()
    with Programs(folder) as programs:
        urls = [
            str(programs.start(
                f"ns{k}", "nameserver", "--data", str(folder / f"ns{k}"), "--port", "0",
                DATABASE_URL=url,
            )["url"])
            for k in range(SERVERS)
        ]  # fmt: skip
        for name in ("dn1", "dn2"):
            programs.start(
                name, "datanode", "--id", name, "--root", str(folder / name), "--port", "0",
                "--nameserver", urls[0],
            )  # fmt: skip
        with Api(urls[0]) as api:
            api.login("admin", _PASSWORD, device_name="bench")
            wait_until(lambda: sum(n["state"] == "up" for n in api.nodes()) == 2, "datanodes")
            token = api.token
        (folder / "token").write_text(token)
        programs.start(
            "mount", "mount", str(top), "--server", urls[0], "--foreground",
            "--token-file", str(folder / "token"), "--cache-dir", str(folder / "cache"),
        )  # fmt: skip
        try:
            listeners = [Listener(at, token, how) for at in urls for how in TRANSPORTS]
            report(database, measure(top, listeners, files))
            lags = sorted(lag for listener in listeners for lag in listener.lags)
            print(
                f"{database:<11}of which after the commit began:"
                f"  p50 {statistics.median(lags):6.1f} ms  p95 {_quantile(lags, 0.95):6.1f} ms"
            )
            for listener in listeners:
                listener.close()
        finally:
            mountpoint.detach(str(top))


def wait_until(is_so: Callable[[], bool], what: str, within_s: float = _READY_S) -> None:
    """Return once `is_so()`; TIMEOUT."""
    ends = time.monotonic() + within_s
    pause = threading.Event()
    while not is_so():
        if time.monotonic() > ends:
            raise EverfoldError(Kind.TIMEOUT, f"not within {within_s:g} s", what)
        pause.wait(0.02)


def main() -> int:
    """Measure on every database that there is."""
    parser = argparse.ArgumentParser(prog="livebench", description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--only", choices=("postgresql", "sqlite"))
    args = parser.parse_args()
    above = Path(tempfile.mkdtemp(prefix="everfold-livebench-"))
    above.chmod(0o755)  # PostgreSQL runs as a user of its own
    try:
        if args.only != "sqlite" and any(Path("/usr/lib/postgresql").glob("*/bin")):
            with postgres(above / "postgres") as url:
                run(above / "on-postgresql", "postgresql", url, args.files)
        if args.only != "postgresql":
            run(above / "on-sqlite", "sqlite", f"sqlite:///{above}/everfold.db", args.files)
    finally:
        shutil.rmtree(above, ignore_errors=True)
    return command.DONE


if __name__ == "__main__":
    sys.exit(main())
