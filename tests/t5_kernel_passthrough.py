"""Files of the past that lie whole on this machine's disk are read without the driver."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cluster import RealCluster
from tests.harness.folders import Folder, folder
from tests.harness.mounts import until

pytestmark = pytest.mark.fuse

READ_S = 5.0
OLD, NEW = os.urandom(1_000_000), os.urandom(1_000_000)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="passthrough is for root")


@pytest.fixture(scope="module")
def live(live_cluster: RealCluster) -> Iterator[Folder]:
    """A folder over the kernel's protocol: libfuse here knows no passthrough."""
    with (
        tempfile.TemporaryDirectory(prefix="everfold-live-") as above,
        folder(live_cluster, Path(above, "kernel")) as mount,
    ):
        yield mount


@pytest.fixture
def past(live: Folder, here: Path) -> Path:
    """The first version of a file that has another content now."""
    (here / "f").write_bytes(OLD)
    (here / "f").write_bytes(NEW)
    os.sync()
    version = here / ".versions" / "f@v1"
    until(lambda: version.read_bytes() == OLD)
    return version


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let the driver sleep, so that nothing that needs it goes on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def cold(fd: int) -> None:
    """Drop what the kernel remembers of a file."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_by_another(fd: int) -> bytes:
    """Read an open file in a process of its own, which may be given up."""
    program = f"import os,sys; sys.stdout.buffer.write(os.pread({fd}, 1 << 20, 0))"
    done = subprocess.run(
        [sys.executable, "-c", program], pass_fds=[fd], capture_output=True, timeout=READ_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_root
def test_a_version_is_read_while_the_driver_sleeps(live: Folder, past: Path) -> None:
    fd = os.open(past, os.O_RDONLY)
    try:
        with stopped(live.pid):
            cold(fd)
            assert read_by_another(fd) == OLD
    finally:
        os.close(fd)


@needs_root
def test_several_openings_of_a_version_share_its_mode(live: Folder, past: Path) -> None:
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(past.open("rb")) for _ in range(5)]
            assert {file.read() for file in files} == {OLD}
            files[0].close()
            assert past.read_bytes() == OLD


def test_the_present_is_never_a_local_file(here: Path) -> None:
    path = here / "f"
    path.write_bytes(OLD)
    with path.open("rb", buffering=0) as reader, path.open("r+b", buffering=0) as writer:
        assert reader.read(10) == OLD[:10]
        writer.write(b"changed!")
        assert os.pread(reader.fileno(), 8, 0) == b"changed!"


def test_a_version_opened_while_it_is_far_away_can_be_opened_once_it_is_near(
    live: Folder, past: Path, tmp_path: Path
) -> None:
    with folder(live.cluster, tmp_path / "second") as second:
        seen = second.path / past.relative_to(live.path)
        with seen.open("rb", buffering=0) as first:
            assert first.read(2_000_000) == OLD
            with seen.open("rb") as again:
                assert again.read() == OLD
        until(lambda: seen.read_bytes() == OLD)


def test_a_version_keeps_its_bytes_while_its_file_changes(here: Path, past: Path) -> None:
    with past.open("rb", buffering=0) as held:
        for content in (OLD[::-1], b"short"):
            (here / "f").write_bytes(content)
            os.sync()
            cold(held.fileno())
            assert os.pread(held.fileno(), len(OLD), 0) == OLD
