"""A program at work in a folder while nodes fail, and what the cluster says of itself meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import machine
from tests.harness.cluster import RealCluster
from tests.harness.folders import cool, folder

MIB = 1 << 20
_SYNCS = 6  # of the disk, one after the other, that one fsync may have to wait for


def told(cluster: RealCluster, *words: str) -> Any:
    done = cluster.tool(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def state(cluster: RealCluster, node: str) -> str:
    return str(next(n["state"] for n in told(cluster, "node", "list") if n["id"] == node))


def is_whole(cluster: RealCluster) -> bool:
    status = told(cluster, "status")
    return (status["under_replicated"], status["missing"]) == (0, 0)


@dataclass
class Work:
    """Saves files and reads earlier ones back in a thread, and measures each operation.

    Another thread watches how long the disk takes that everything here lies on.
    """

    top: Path
    saved: dict[str, str] = field(default_factory=dict)  # name -> digest
    errors: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    longest: str = ""
    count: int = 0
    disk_s: float = 0.0  # the longest that the disk below took for a sync of a few bytes

    def __post_init__(self) -> None:
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._run, self._watch_disk)
        ]

    def allowed_s(self, promised_s: float) -> float:
        """Return how long an operation may have taken on a disk like the one that was here.

        Where its own syncs took seconds, as they do beside other busy machines, nobody can be
        quicker than it.
        """
        return promised_s + _SYNCS * self.disk_s

    def _timed(self, what: str, call: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return call()
        finally:
            spent = time.monotonic() - began
            if spent > self.longest_s:
                self.longest_s, self.longest = spent, what

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._save(self.count)
                self._check(self.count // 2)
            except (OSError, AssertionError) as err:
                self.errors.append(f"{self.count}: {err!r}")
                return
            self.count += 1

    def _save(self, number: int) -> None:
        content = os.urandom(2 * MIB if number % 10 == 5 else 3_000 + number * 100)
        path = self.top / f"f{number}"
        handle = self._timed("create", lambda: os.open(path, os.O_RDWR | os.O_CREAT))
        try:
            for at in range(0, len(content), MIB):
                self._timed("write", lambda: os.pwrite(handle, content[at : at + MIB], at))  # noqa: B023
            if number % 3 == 0:
                self._timed("fsync", lambda: os.fsync(handle))
        finally:
            self._timed("close", lambda: os.close(handle))
        self.saved[path.name] = hashlib.sha256(content).hexdigest()

    def _check(self, number: int) -> None:
        path = self.top / f"f{number}"
        cool(path)
        with path.open("rb", buffering=0) as file:
            content = b""
            while part := self._timed("read", lambda: file.read(MIB)):
                content += part
        assert hashlib.sha256(content).hexdigest() == self.saved[path.name], path

    def at_least(self, count: int) -> None:
        """Wait until so many more files were saved and read."""
        goal = self.count + count
        machine.wait_until(
            lambda: self.count >= goal or bool(self.errors), 60, f"{count} more files"
        )

    def _watch_disk(self) -> None:
        beside = self.top.parent.with_name("disk-of-the-test")
        while not self._ending.wait(0.2):
            began = time.monotonic()
            with beside.open("wb") as file:
                file.write(b"a few bytes")
                file.flush()
                os.fsync(file.fileno())
            self.disk_s = max(self.disk_s, time.monotonic() - began)

    def __enter__(self) -> Work:
        self.top.mkdir()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(60)

    def check_all(self, cluster: RealCluster, tmp_path: Path) -> None:
        """Read everything through a fresh mount that has nothing cached."""
        assert self.errors == []
        print(
            f"{self.count} files, longest: {self.longest} {self.longest_s:.2f} s", file=sys.stderr
        )
        with folder(cluster, tmp_path / "fresh") as fresh:
            for name, digest in self.saved.items():
                content = (fresh.path / self.top.name / name).read_bytes()
                assert hashlib.sha256(content).hexdigest() == digest, name
