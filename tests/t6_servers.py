"""The nameserver, the mount and the whole cluster killed, while a folder is at work."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import machine
from tests.harness.cluster import RealCluster, running
from tests.harness.folders import Folder, folder, picture, versions
from tests.harness.mounts import DRIVERS

pytestmark = pytest.mark.fuse
# What a kill can lose is in the journal and the servers, not in the driver: one is enough each day.
_DRIVERS = (DRIVERS[0], *(pytest.param(driver, marks=pytest.mark.soak) for driver in DRIVERS[1:]))


@pytest.fixture(scope="module")
def cluster(live_cluster: RealCluster) -> RealCluster:
    return live_cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[RealCluster]:
    """A cluster that the test may stop."""
    with running(tmp_path / "cluster") as started:
        started.log_in()
        yield started


@pytest.fixture(params=_DRIVERS)
def mount(cluster: RealCluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Folder]:
    with folder(cluster, tmp_path / "folder", request.param) as made:
        yield made


@pytest.fixture
def here(mount: Folder) -> Path:
    fresh = mount.path / secrets.token_hex(4)
    fresh.mkdir()
    return fresh


def kill_nameserver(cluster: RealCluster) -> None:
    """Kill it; the supervisor starts another."""
    before = cluster.pid("nameserver")
    os.kill(before, signal.SIGKILL)
    machine.wait_until(lambda: cluster.pid("nameserver") != before, 30, "it is started again")


_SAVER = """
import os, sys
folder, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    with open(f"{folder}/f{number}", "wb") as file:
        file.write(f"{number} ".encode() * 500)
        file.flush()
        os.fsync(file.fileno())
    print(number, flush=True)
"""


def test_work_goes_on_over_a_kill_of_the_nameserver_and_nothing_is_lost(
    cluster: RealCluster, mount: Folder, here: Path, tmp_path: Path
) -> None:
    top, count = here / "work", 150
    top.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", _SAVER, top, str(count)], stdout=subprocess.PIPE, text=True
    ) as saver:
        assert saver.stdout is not None
        for line in saver.stdout:
            if int(line) in (30, 90):
                kill_nameserver(cluster)
    assert saver.returncode == 0

    with folder(cluster, tmp_path / "fresh") as fresh:
        for number in range(count):
            expected = f"{number} ".encode() * 500
            assert (fresh.path / here.name / "work" / f"f{number}").read_bytes() == expected
    assert cluster.tool("fsck").returncode == 0


def test_a_tree_is_copied_while_the_nameserver_is_killed_again_and_again(
    cluster: RealCluster, mount: Folder, here: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for name in ("email", "xml", "json", "unittest"):
        stdlib = Path(sysconfig.get_path("stdlib"), name)
        shutil.copytree(stdlib, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    with subprocess.Popen(["cp", "-a", source, here / "copy"]) as copy:
        for _ in range(2):
            kill_nameserver(cluster)
        assert copy.wait(90) == 0

    assert picture(here / "copy") == picture(source)
    mount.unmount()
    with folder(cluster, tmp_path / "fresh") as fresh:
        assert picture(fresh.path / here.name / "copy") == picture(source)


def test_a_name_that_was_acknowledged_survives_a_kill_of_the_nameserver(
    cluster: RealCluster, mount: Folder, here: Path, tmp_path: Path
) -> None:
    (here / "d").mkdir()
    (here / "d" / "old").write_bytes(b"content")
    os.rename(here / "d" / "old", here / "d" / "new")
    handle = os.open(here / "d", os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    kill_nameserver(cluster)

    with folder(cluster, tmp_path / "fresh") as fresh:
        assert os.listdir(fresh.path / here.name / "d") == ["new"]
        assert (fresh.path / here.name / "d" / "new").read_bytes() == b"content"


def test_what_is_known_is_read_while_the_nameserver_hangs(
    cluster: RealCluster, mount: Folder, here: Path
) -> None:
    content = os.urandom(200_000)
    (here / "f").write_bytes(content)
    os.sync()
    cluster.signal("nameserver", signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert (here / "f").read_bytes() == content
        assert os.statvfs(here).f_namemax == 255
        assert time.monotonic() - began < 5
    finally:
        cluster.signal("nameserver", signal.SIGCONT)


# ---------------------------------------------------------------- the mount


def test_changes_that_a_killed_mount_had_not_sent_are_sent_by_the_next(
    cluster: RealCluster, mount: Folder, here: Path, tmp_path: Path
) -> None:
    path = here / "f"
    path.write_bytes(b"first")
    with (here / "large").open("wb") as large:
        os.fsync(large.fileno())
        cluster.signal("nameserver", signal.SIGSTOP)
        path.write_bytes(b"second, not sent")
        content = os.urandom(5 << 20)
        large.write(content)
    mount.kill()
    cluster.signal("nameserver", signal.SIGCONT)
    with pytest.raises(OSError):
        os.listdir(here)

    mount.mount()
    assert path.read_bytes() == b"second, not sent"
    assert hashlib.sha256((here / "large").read_bytes()).digest() == (
        hashlib.sha256(content).digest()
    )
    assert versions(path) == [b"first", b"second, not sent"]
    with folder(cluster, tmp_path / "fresh") as fresh:
        assert (fresh.path / here.name / "f").read_bytes() == b"second, not sent"
        assert (fresh.path / here.name / "large").read_bytes() == content


def test_names_made_early_by_a_killed_mount_are_sent_by_the_next(
    cluster: RealCluster, mount: Folder, here: Path, tmp_path: Path
) -> None:
    script = """
import os, sys
top = sys.argv[1]
for number in range(400):
    os.makedirs(f"{top}/d{number % 7}", exist_ok=True)
    with open(f"{top}/d{number % 7}/draft", "wb") as file:
        file.write(b"%d" % number)
    os.rename(f"{top}/d{number % 7}/draft", f"{top}/d{number % 7}/f{number}")
    print(number, flush=True)
"""
    done = -1
    with subprocess.Popen(
        [sys.executable, "-c", script, here],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            done = int(line)
            if done == 100:
                mount.kill()
    assert done >= 100
    mount.mount()
    os.sync()

    with folder(cluster, tmp_path / "fresh") as fresh:
        for seen in (here, fresh.path / here.name):
            for number in range(done + 1):
                path = seen / f"d{number % 7}" / f"f{number}"
                assert path.read_bytes() == b"%d" % number, path


def test_a_mount_that_is_killed_again_and_again_loses_no_save(
    cluster: RealCluster, mount: Folder, here: Path, tmp_path: Path
) -> None:
    saved: list[bytes] = []
    for _ in range(3):
        for number in range(5):
            saved.append(b"save %d %d" % (len(saved), number))
            (here / "f").write_bytes(saved[-1])
        mount.kill()
        mount.mount()
        assert (here / "f").read_bytes() == saved[-1]

    assert versions(here / "f") == saved


def test_a_terminated_mount_sends_everything_and_leaves(
    cluster: RealCluster, mount: Folder, here: Path, tmp_path: Path
) -> None:
    for number in range(4):
        (here / "f").write_bytes(b"%d" % number * 10_000)
        pid = mount.pid
        os.kill(pid, signal.SIGTERM)
        machine.wait_until(lambda: not machine.is_alive(pid), 20, "it ended")  # noqa: B023
        assert not os.path.ismount(mount.path)
        mount.mount()
        assert (here / "f").read_bytes() == b"%d" % number * 10_000

    assert len(versions(here / "f")) == 4


def test_a_lock_of_a_killed_mount_does_not_hold_up_the_next(
    cluster: RealCluster, mount: Folder, here: Path
) -> None:
    script = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.{}(f, fcntl.LOCK_EX); print()"
    (here / "f").write_bytes(b"x")
    for kind in ("flock", "lockf"):
        with subprocess.Popen(
            [sys.executable, "-c", script.format(kind) + "; input()", here / "f"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            mount.kill()
            holder.kill()
        mount.mount()
        line = [sys.executable, "-c", script.format(kind), str(here / "f")]
        assert subprocess.run(line, timeout=20, capture_output=True, check=False).returncode == 0


# ---------------------------------------------------------------- everything


def test_a_restart_of_the_whole_cluster_brings_everything_back(
    own_cluster: RealCluster, tmp_path: Path
) -> None:
    cluster, mount = own_cluster, Folder(own_cluster, tmp_path / "folder")
    mount.mount()
    for number in range(20):
        (mount.path / f"f{number}").write_bytes(b"%d" % number * 1000)
    (mount.path / "f0").write_bytes(b"newer")
    before = picture(mount.path)
    mount.unmount()
    assert cluster.stop() == 0
    cluster.start()
    cluster.log_in()
    mount.mount()

    assert picture(mount.path) == before
    assert versions(mount.path / "f0") == [b"0" * 1000, b"newer"]
    mount.unmount()


def test_a_cluster_killed_at_once_has_all_that_was_synced(
    own_cluster: RealCluster, tmp_path: Path
) -> None:
    cluster, mount = own_cluster, Folder(own_cluster, tmp_path / "folder")
    mount.mount()
    for number in range(10):
        with (mount.path / f"f{number}").open("wb") as file:
            file.write(b"%d" % number * 1000)
            file.flush()
            os.fsync(file.fileno())
    before = picture(mount.path)
    servers = cluster.pids()
    cluster.kill()
    machine.kill(servers)
    mount.kill()
    machine.wait_until(lambda: not any(map(machine.is_alive, servers)), 30, "all are dead")
    cluster.start()
    cluster.log_in()
    mount.mount()

    assert picture(mount.path) == before
    assert cluster.tool("fsck").returncode == 0
    mount.unmount()
