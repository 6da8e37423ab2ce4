"""The small benchmark: `python -m tools.bench`, or `make bench`.

Starts an embedded cluster in a temporary folder, mounts it, and times what a person would
notice, beside the same on the local disk below it: `cp -a` of the Python standard library,
`ls -lR` of it (warm), one large file written (with fsync) and read. What is copied is compared
by hash. Big enough to mean something, small enough to run before a commit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools import command
from tools.supervisor import python

START_S = 120.0
END_S = 120.0
CHUNK = 1 << 20


class Row(NamedTuple):
    """One measured thing; `is_rate`: more is better."""

    what: str
    unit: str
    measured: list[float]  # in the folder, on the local disk
    goal: float
    is_rate: bool

    @property
    def is_met(self) -> bool:
        """Tell whether the folder reaches the goal."""
        here = self.measured[0]
        return here >= self.goal if self.is_rate else here <= self.goal


@contextlib.contextmanager
def cluster(folder: Path, driver: str) -> Iterator[Path]:
    """Run an embedded cluster in `folder`; yields the mountpoint."""
    ready, mount = folder / "ready.json", folder / "mnt"
    line = python(
        "tools", "up", "--data", str(folder / "data"), "--port", "0", "--mount", str(mount),
        "--driver", driver, "--ready-file", str(ready),
    )  # fmt: skip
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > ends:
                words = (folder / "up.log").read_text(errors="replace").strip()
                raise RuntimeError(f"the cluster does not start:\n{words}")
            time.sleep(0.05)
        yield mount
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(END_S)


def timed(line: list[str]) -> float:
    """Return the seconds that a command takes; it must succeed."""
    began = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def tree_hash(folder: Path) -> str:
    """Return a hash over names, types and contents of a tree."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(os.fsencode(path.relative_to(folder)) + b"\0")
        if path.is_symlink():
            total.update(os.fsencode(os.readlink(path)))
        elif path.is_file():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_large(path: Path, size: int) -> float:
    """Write a file of random bytes and fsync it; return MB/s."""
    piece = os.urandom(CHUNK)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for number in range(size // CHUNK):
            file.write(number.to_bytes(8, "little") + piece[8:])  # no two blocks are the same
        os.fsync(file.fileno())
    return size / 1e6 / (time.perf_counter() - began)


def read_large(path: Path) -> float:
    """Read a file without what the kernel remembers of it; return MB/s."""
    piece = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.readinto(piece):
            pass
        return path.stat().st_size / 1e6 / (time.perf_counter() - began)


def measure(here: Path, local: Path, source: Path, size: int) -> list[Row]:
    """Return all rows; raises when a copy differs from its source."""
    copies = [folder / "stdlib" for folder in (here, local)]
    copying = [timed(["cp", "-a", str(source), str(copy)]) for copy in copies]
    for copy in copies:
        subprocess.run(["ls", "-lR", str(copy)], check=True, stdout=subprocess.DEVNULL)
    listing = [timed(["ls", "-lR", str(copy)]) for copy in copies]
    wanted = tree_hash(source)
    for copy in copies:
        if tree_hash(copy) != wanted:
            raise RuntimeError(f"{copy} differs from {source}")
    large = [folder / "large" for folder in (here, local)]
    writing = [write_large(path, size) for path in large]
    reading = [read_large(path) for path in large]
    count = sum(1 for path in source.rglob("*") if path.is_file())
    return [
        Row(f"cp -a of {count} files", "s", copying, 30, False),
        Row("ls -lR of them, warm", "s", listing, 1, False),
        Row(f"write {size >> 20} MiB + fsync", "MB/s", writing, 200, True),
        Row(f"read {size >> 20} MiB", "MB/s", reading, 200, True),
    ]


def stdlib(folder: Path) -> Path:
    """Return a copy of the standard library without what is compiled or installed into it."""
    source = folder / "source"
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages"),
    )
    return source


def main() -> int:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument("--driver", choices=("kernel", "fusepy"), default="kernel")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of the large file")
    parser.add_argument("--dir", metavar="D", help="where to make the temporary folder")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="everfold-bench-", dir=args.dir) as made:
        folder = Path(made)
        source, local = stdlib(folder), folder / "local"
        local.mkdir()
        try:
            with cluster(folder, args.driver) as here:
                rows = measure(here, local, source, args.size << 20)
        except (RuntimeError, OSError, subprocess.SubprocessError) as err:
            command.say(f"bench: {err}")
            return command.FAILED
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        command.print_table(
            ("WHAT", "UNIT", "EVERFOLD", "LOCAL DISK", "GOAL", ""),
            [
                (
                    row.what,
                    row.unit,
                    round(row.measured[0], 2),
                    round(row.measured[1], 2),
                    f"{'>' if row.is_rate else '<'} {row.goal:g}",
                    "" if row.is_met else "MISSED",
                )
                for row in rows
            ],
        )
    return command.DONE


if __name__ == "__main__":
    sys.exit(main())
