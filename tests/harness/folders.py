"""A space of a real cluster as a folder, mounted as a person would: by `everfold mount`.

`folder(...)` mounts, yields a `Folder`, and unmounts; what a crash test did to the driver
meanwhile does not matter. `live_cluster`, `live` and `here` are fixtures: a cluster and its
folder for the tests of one module, over each adapter. `mount` is one for a single test.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness import machine
from tests.harness.cluster import RealCluster, running
from tests.harness.mounts import DRIVERS


@dataclass
class Folder:
    """One mount of a cluster's space."""

    cluster: RealCluster
    path: Path
    driver: str = "kernel"
    flags: tuple[str, ...] = ()
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cache = self.path.with_name(self.path.name + ".cache")

    def mount(self) -> None:
        """Mount it."""
        done = self.cluster.tool(
            "mount", str(self.path), "--driver", self.driver,
            "--cache-dir", str(self.cache), "--log-file", str(self.log), *self.flags,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr}\n{self.said()}"

    def unmount(self) -> None:
        """Unmount it, which returns when everything is in the cluster."""
        done = self.cluster.tool("umount", str(self.path))
        assert done.returncode == 0, f"{done.stderr}\n{self.said()}"

    @property
    def log(self) -> Path:
        """Where the driver writes its log."""
        return self.path.with_name(self.path.name + ".log")

    def said(self) -> str:
        """Return what the driver logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """Return the driver's process."""
        for pid in machine.children():
            line = machine.command_line(pid)
            if " -m mount " in line and f" {self.path} " in line:
                return pid
        raise AssertionError(f"no driver serves {self.path}")

    def kill(self) -> None:
        """Kill the driver as a crash would; the mountpoint stays behind, dead."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        machine.wait_until(lambda: not machine.is_alive(pid), 10, "the driver is dead")


@contextlib.contextmanager
def folder(
    cluster: RealCluster, path: Path, driver: str = "kernel", *flags: str
) -> Iterator[Folder]:
    """Mount the space of a cluster (whose tools are logged in) until the block ends."""
    made = Folder(cluster, path, driver, flags)
    try:
        made.mount()
        yield made
    finally:
        if str(path) in machine.fuse_mounts(path.parent):
            done = cluster.tool("umount", str(path))
            if done.returncode:
                machine.detach([str(path)])


# ---------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def live_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster of real processes, the tools logged in; one for a whole module."""
    with running(tmp_path_factory.mktemp("live")) as started:
        started.log_in()
        yield started


@pytest.fixture(scope="module", params=DRIVERS)
def live(request: pytest.FixtureRequest, live_cluster: RealCluster) -> Iterator[Folder]:
    """Its folder, once over each adapter; other users can reach it."""
    with (
        tempfile.TemporaryDirectory(prefix="everfold-live-") as above,
        folder(live_cluster, Path(above, request.param), request.param) as mount,
    ):
        Path(above).chmod(0o755)
        yield mount


@pytest.fixture
def mount(cluster: RealCluster, tmp_path: Path) -> Iterator[Folder]:
    """A folder of the module's own `cluster`."""
    with folder(cluster, tmp_path / "folder") as made:
        yield made


@pytest.fixture
def here(live: Folder) -> Path:
    """A fresh directory in the folder."""
    fresh = live.path / secrets.token_hex(4)
    fresh.mkdir()
    return fresh


# ---------------------------------------------------------------- what is in a folder


def picture(top: Path) -> dict[str, tuple[Any, ...]]:
    """Return what matters of each name below: mode, mtime, and the bytes or the target."""
    seen: dict[str, tuple[Any, ...]] = {}
    for above, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(above, name)
            known = path.lstat()
            content: tuple[Any, ...] = ()
            if path.is_symlink():
                content = (os.readlink(path),)
            elif path.is_file():
                content = (known.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            seen[str(path.relative_to(top))] = (known.st_mode, known.st_mtime_ns, *content)
    return seen


def versions(path: Path) -> list[bytes]:
    """Return the contents that ``.versions`` shows for a path, oldest first."""
    past = path.parent / ".versions" / path.name
    return [(past / name).read_bytes() for name in sorted(os.listdir(past), key=_number)]


def _number(listed: str) -> int:
    return int(listed.split("_")[1].removeprefix("v"))


def run(*words: str | Path, cwd: Path | None = None, **env: str) -> str:
    """Run a program to its end; it must succeed. Returns what it printed."""
    done = subprocess.run(
        words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def cool(path: Path) -> None:
    """Let the kernel forget the pages of a file, so that the next read asks the driver."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
