"""How fast is the HTTP API, and does it stay so while a folder is at work? `make bench-http`

A file goes up and comes down over HTTP, and is compared byte by byte. Then listings and file
infos are asked for at a steady rate over several connections, first alone, then while a mount
unpacks a source tree again and again. A request's time runs from the moment it was *planned* for:
a server that stops for a second shows that in every request of that second, not in one.

Beside times, the nameserver's CPU time: on a machine that does other things too it says more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import blake3

from everfold.api import Api
from everfold.config import parse_size
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport
from tools import command
from tools.supervisor import python

PASSWORD: Final = "bench-http admin"
START_S: Final = 120.0
FILES: Final = 200  # in the directory that is listed
CONNECTIONS: Final = 16
ASK_S: Final = 30.0
TREE: Final = (40, 50)  # directories, files in each
TRANSFER_S: Final = 1800.0


@dataclass(frozen=True)
class Server:
    """Where to ask; `pids` are the nameserver's processes and `folder` a mount, when known."""

    url: str
    token: str
    pids: tuple[int, ...] = ()
    folder: Path | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Return what each request carries."""
        return {"Authorization": f"Bearer {self.token}"}

    def cpu_s(self) -> float:
        """Return the CPU time that the nameserver has used."""
        ticks = 0
        for pid in self.pids:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Load:
    """What came of asking at a steady rate."""

    times_ms: list[float] = field(default_factory=list)
    failed: int = 0
    took_s: float = 0.0
    cpu_s: float = 0.0
    trees: int = 0  # unpacked meanwhile

    def quantile(self, share: float) -> float:
        """Return the time within which this share of the requests was answered."""
        ordered = sorted(self.times_ms)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


# ---------------------------------------------------------------- one large file


class Moved(NamedTuple):
    """One direction: how fast, and the nameserver's CPU time for each MB."""

    mb_s: float
    cpu_ms: float

    def __str__(self) -> str:
        cpu = f" ({self.cpu_ms:.1f} ms of CPU a MB)" if self.cpu_ms else ""
        return f"{self.mb_s:.0f} MB/s{cpu}"


def transfer(server: Server, size: int, folder: Path) -> tuple[Moved, Moved]:
    """Send a file of random bytes and fetch it again; return (up, down)."""
    if not shutil.which("curl"):
        raise EverfoldError(Kind.UNSUPPORTED, "curl is needed to send a large file")
    sent, got = folder / "sent", folder / "got"
    with sent.open("wb") as file:
        for _ in range(max(1, size >> 20)):
            file.write(os.urandom(1 << 20))
    size = sent.stat().st_size
    name = f"bench-http-{os.getpid()}.bin"
    up, told = _curl(server, size, "-F", f"file=@{sent};filename={name}", f"{server.url}/upload")
    number = json.loads(told)["file"]["file_id"]
    try:
        path = f"/download/{quote(number, safe='')}"
        down, _ = _curl(server, size, "-o", str(got), server.url + path)
        if _digest(sent) != _digest(got):
            raise EverfoldError(Kind.CORRUPT, "what came down is not what went up", name)
    finally:
        with Api(server.url, server.token) as api:
            api.call("DELETE", f"/files/{quote(number, safe='')}")
        sent.unlink()
        got.unlink(missing_ok=True)
    return up, down


def _curl(server: Server, size: int, *words: str) -> tuple[Moved, bytes]:
    line = ["curl", "-sS", "--fail-with-body", "-H", f"Authorization: Bearer {server.token}"]
    began, cpu = time.perf_counter(), server.cpu_s()
    done = subprocess.run([*line, *words], capture_output=True, timeout=TRANSFER_S)
    took, cpu = time.perf_counter() - began, server.cpu_s() - cpu
    if done.returncode:
        raise EverfoldError(Kind.INTERNAL, (done.stderr + done.stdout).decode(errors="replace"))
    return Moved(size / 1e6 / took, cpu * 1000 / (size / 1e6)), done.stdout


def _digest(path: Path) -> bytes:
    hasher = blake3.blake3()
    hasher.update_mmap(path)
    return hasher.digest()


# ---------------------------------------------------------------- many small requests


def ask(server: Server, paths: list[str], rate: float, seconds: float) -> Load:
    """Ask for each of these paths in turn, `rate` times a second, whatever the answers take."""
    transport = HttpTransport(server.url, connections=CONNECTIONS)
    load, lock = Load(), threading.Lock()  # guards what is in load
    count, turn = int(rate * seconds), itertools.count()
    began, cpu = time.perf_counter() + 0.1, server.cpu_s()

    def work() -> None:
        while (number := next(turn)) < count:
            planned = began + number / rate
            time.sleep(max(0.0, planned - time.perf_counter()))
            path = paths[number % len(paths)]
            try:
                is_good = transport.request(
                    "GET", path, headers=server.headers, timeout_s=ASK_S
                )[0] == 200  # fmt: skip
            except EverfoldError:
                is_good = False
            took = (time.perf_counter() - planned) * 1000
            with lock:
                load.times_ms.append(took)
                load.failed += not is_good

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.took_s, load.cpu_s = time.perf_counter() - began, server.cpu_s() - cpu
    transport.close()
    return load


def make_files(server: Server) -> list[str]:
    """Make a directory of files; return what is asked for: its listing, and each file."""
    with Api(server.url, server.token) as api:
        for number in range(FILES):
            body = f"file {number}\n".encode()
            _upload(server, f"bench-http/f{number:04d}.txt", body)
        found = api.call("GET", f"/api/files/list?path=bench-http&per_page={FILES}")["files"]
    listing = "/api/files/list?path=bench-http&per_page=50"
    infos = [f"/api/files/{quote(each['file_id'], safe='')}" for each in found]
    return [path for info in infos for path in (listing, info)]


def _upload(server: Server, path: str, body: bytes) -> None:
    mark = "everfold-bench-http"
    name = path.rpartition("/")[2]
    form = (
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    ).encode() + body + f"\r\n--{mark}--\r\n".encode()  # fmt: skip
    headers = {**server.headers, "Content-Type": f"multipart/form-data; boundary={mark}"}
    transport = HttpTransport(server.url, connections=1)
    try:
        status, _, answer = transport.request(
            "POST", f"/api/files/upload?path={quote(path)}", headers=headers, body=form,
            timeout_s=ASK_S,
        )  # fmt: skip
    finally:
        transport.close()
    if status != 201:
        raise EverfoldError(Kind.INTERNAL, f"HTTP {status}: {answer[:200]!r}", path)


@contextlib.contextmanager
def unpacking(top: Path, archive: Path) -> Iterator[Callable[[], int]]:
    """Unpack a tree again and again meanwhile; yields what tells how often it was."""
    ended, done = threading.Event(), 0

    def work() -> None:
        nonlocal done
        while not ended.is_set():
            folder = top / f"tree{done}"
            folder.mkdir(parents=True)
            subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
            done += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: done
    finally:
        ended.set()
        thread.join()


def make_archive(path: Path) -> None:
    """Write a tar like that of a program's sources: 2,000 files, most of them small."""
    chance = random.Random(4)
    text = "".join(chance.choices("abcdefgh ij(kl)=mn\n", k=65_536)).encode()
    directories, files = TREE
    with tarfile.open(path, "w") as archive:
        for k in range(directories):
            for n in range(files):
                member = tarfile.TarInfo(f"package{k}/module{n}.py")
                member.size = min(65_536, int(chance.lognormvariate(8.0, 1.2)))
                archive.addfile(member, io.BytesIO(text[: member.size]))


# ---------------------------------------------------------------- the whole


@contextlib.contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Server]:
    """Run a cluster with a mount for the measurement."""
    ready, mount = folder / "ready.json", folder / "mount"
    line = python("tools", "up", "--data", str(folder / "data"), "--port", "0", "--mount",
                  str(mount), "--ready-file", str(ready), "--workers", str(workers))  # fmt: skip
    env = {**os.environ, "EVERFOLD_ADMIN_PASSWORD": PASSWORD,
           "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}  # fmt: skip
    process = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > ends:
                raise EverfoldError(Kind.UNAVAILABLE, "the cluster did not start")
            time.sleep(0.1)
        told: dict[str, Any] = json.loads(ready.read_text())
        with Api(told["url"]) as api:
            api.login("admin", PASSWORD, device_name="bench-http")
            yield Server(told["url"], api.token, _with_children(told["nameserver"]["pid"]), mount)
    finally:
        process.terminate()
        process.wait()


def _with_children(pid: int) -> tuple[int, ...]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (pid, *map(int, told))


def show(what: str, load: Load) -> None:
    """Print one row."""
    count = len(load.times_ms)
    cpu = f", nameserver {load.cpu_s / load.took_s * 100:.0f} % of a core" if load.cpu_s else ""
    per = f" ({load.cpu_s / count * 1000:.2f} ms a request)" if cpu and not load.trees else ""
    trees = f", {load.trees} trees unpacked" if load.trees else ""
    print(
        f"{what:28} {count / load.took_s:5.0f}/s  p50 {load.quantile(0.5):6.1f} ms"
        f"  p99 {load.quantile(0.99):6.1f} ms  {load.failed} failed{cpu}{per}{trees}",
        flush=True,
    )


def measure(server: Server, args: argparse.Namespace, folder: Path) -> bool:
    """Measure and print; False when a request failed."""
    up, down = transfer(server, args.size, folder)
    print(f"{'one file of ' + command.size_text(args.size):28} up {up}, down {down}")
    paths = make_files(server)
    ask(server, paths, args.rate, min(2.0, args.seconds))  # warm
    loads = [ask(server, paths, args.rate, args.seconds)]
    show("list and info, alone", loads[0])
    if server.folder is not None:
        archive = folder / "tree.tar"
        make_archive(archive)
        with unpacking(server.folder / "bench-http-trees", archive) as done:
            loads.append(ask(server, paths, args.rate, args.seconds))
            loads[1].trees = done()
        show("… while a mount unpacks", loads[1])
    return not any(load.failed for load in loads)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make bench-http", description=__doc__)
    parser.add_argument("--url", help="of a running nameserver (default: a cluster is started)")
    parser.add_argument("--token", default=os.environ.get("EVERFOLD_TOKEN", ""))
    parser.add_argument("--mount", type=Path, metavar="DIR", help="with --url: a folder of it")
    parser.add_argument("--size", type=parse_size, default=parse_size("1G"))
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1, help="of the cluster that is started")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    args = parser.parse_args()
    if args.quick:
        args.size, args.seconds = args.size // 10, args.seconds / 10
    with tempfile.TemporaryDirectory(prefix="everfold-bench-http-", dir="/var/tmp") as name:
        folder = Path(name)
        try:
            if args.url:
                is_good = measure(Server(args.url, args.token, (), args.mount), args, folder)
            else:
                with cluster(folder, args.workers) as server:
                    is_good = measure(server, args, folder)
        except EverfoldError as err:
            print(f"bench-http: {err}", file=sys.stderr)
            return command.FAILED
    return command.DONE if is_good else command.FAILED


if __name__ == "__main__":
    sys.exit(main())
