"""The tools on a real mount: mounting, unmounting, versions, restore, the embedded folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import xattr

from tests.harness import machine
from tests.harness.cluster import environment, running

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster with the folder at `folder/mnt`, and the tools logged in."""
    folder = tmp_path_factory.mktemp("tools")
    with running(folder, "--mount", str(folder / "mnt")) as started:
        started.log_in()
        yield started


@pytest.fixture
def here(cluster, request):
    """A fresh folder inside the embedded mount."""
    made = cluster.folder / "mnt" / hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    made.mkdir()
    return made


def driver_pids(cluster):
    """Return the drivers that run for this cluster."""
    found = {pid: machine.command_line(pid) for pid in machine.children()}
    return {p for p, line in found.items() if " -m mount " in line and cluster.url in line}


def test_up_with_a_mount_ends_in_a_usable_folder_and_says_where(cluster, here):
    (here / "hello").write_text("hello")

    assert cluster.ready["mount"] == str(cluster.folder / "mnt")
    assert (here / "hello").read_text() == "hello"


def test_the_mount_says_what_it_is_to_tools(cluster):
    told = json.loads(xattr.getxattr(str(cluster.folder / "mnt"), "user.everfold.mount"))

    assert told["server"] == cluster.url
    assert set(told) >= {"server", "space", "token_file"}


# ---------------------------------------------------------------- mount and umount


@pytest.mark.parametrize("driver", ["kernel", "fusepy"])
def test_a_folder_is_mounted_in_the_background_and_unmounted_without_a_trace(
    cluster, here, tmp_path, driver
):
    second, before = tmp_path / "second", driver_pids(cluster)

    done = cluster.tool("mount", str(second), "--driver", driver)
    assert done.returncode == 0, done.stderr
    (second / here.name / "from-second").write_text("x" * 100_000)
    done = cluster.tool("umount", str(second))

    assert done.returncode == 0, done.stderr
    assert not os.path.ismount(second)
    assert driver_pids(cluster) == before
    assert (here / "from-second").read_text() == "x" * 100_000


def test_a_busy_folder_stays_mounted_and_the_reason_is_said(cluster, here, tmp_path):
    second = tmp_path / "second"
    cluster.tool("mount", str(second))
    try:
        with (second / here.name / "open").open("w"):
            done = cluster.tool("umount", str(second))
        assert done.returncode == 1
        assert "a program works in it" in done.stderr
        assert os.path.ismount(second)
    finally:
        assert cluster.tool("umount", str(second)).returncode == 0


def test_a_mounted_folder_is_not_mounted_over(cluster):
    done = cluster.tool("mount", str(cluster.folder / "mnt"))

    assert done.returncode == 1
    assert "mounted there already" in done.stderr


def test_the_folder_of_a_killed_driver_is_taken_over_with_all_that_it_answered(
    cluster, here, tmp_path
):
    second, before = tmp_path / "second", driver_pids(cluster)
    cluster.tool("mount", str(second))
    (second / here.name / "kept").write_text("kept")
    (pid,) = driver_pids(cluster) - before
    os.kill(pid, signal.SIGKILL)
    machine.wait_until(lambda: not machine.is_alive(pid), 5, "the driver is dead")

    done = cluster.tool("mount", str(second))
    try:
        assert done.returncode == 0, done.stderr
        assert (second / here.name / "kept").read_text() == "kept"
    finally:
        assert cluster.tool("umount", str(second)).returncode == 0


def test_read_only_means_that_nothing_can_be_written(cluster, here, tmp_path):
    second = tmp_path / "second"
    (here / "there").write_text("x")
    cluster.tool("mount", str(second), "-o", "ro")
    try:
        assert (second / here.name / "there").read_text() == "x"
        with pytest.raises(OSError, match="Read-only"):
            (second / here.name / "new").touch()
    finally:
        assert cluster.tool("umount", str(second)).returncode == 0


def test_in_the_foreground_the_command_lasts_as_long_as_the_mount(cluster, tmp_path):
    second = tmp_path / "second"
    process = subprocess.Popen(
        [sys.executable, "-m", "tools", "mount", str(second), "--foreground"],
        env=environment(EVERFOLD_HOME=str(cluster.home)),
    )
    machine.wait_until(lambda: os.path.ismount(second), 20, "mounted")

    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == 0
    assert not os.path.ismount(second)


def test_a_wrong_space_is_said_and_nothing_stays_mounted(cluster, tmp_path):
    done = cluster.tool("mount", str(tmp_path / "second"), "--space", "nobodys")

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not os.path.ismount(tmp_path / "second")


# ---------------------------------------------------------------- versions and restore


def test_every_saved_content_is_a_version_and_comes_back(cluster, here):
    path = here / "note.txt"
    for text in ("one", "two!", "three"):
        path.write_text(text)

    versions = json.loads(cluster.tool("versions", str(path), "--json").stdout)
    assert [v["version"] for v in versions] == [1, 2, 3]
    assert [v["size"] for v in versions] == [3, 4, 5]
    assert {v["author"] for v in versions} == {"admin"}
    assert set(versions[0]) >= {"version", "at", "size", "author", "device"}

    done = cluster.tool("restore", str(path), "--version", "1")
    assert done.returncode == 0, done.stderr
    assert path.read_text() == "one"
    versions = json.loads(cluster.tool("versions", str(path), "--json").stdout)
    assert [v["size"] for v in versions] == [3, 4, 5, 3]


def test_a_deleted_file_comes_back(cluster, here):
    path = here / "deleted"
    path.write_text("not gone")
    path.unlink()

    assert json.loads(cluster.tool("versions", str(path), "--json").stdout)[-1]["size"] == 8
    assert cluster.tool("restore", str(path), "--version", "1").returncode == 0
    assert path.read_text() == "not gone"


def test_a_relative_path_and_strange_names_are_understood(cluster, here):
    name = b"\xff strange\nname"
    with open(os.path.join(os.fsencode(here), name), "wb") as file:
        file.write(b"x")

    done = subprocess.run(
        [sys.executable, "-m", "tools", "versions", name, "--json"],
        cwd=here, env=environment(EVERFOLD_HOME=str(cluster.home)), capture_output=True, timeout=30,
    )  # fmt: skip

    assert [v["version"] for v in json.loads(done.stdout)] == [1]


@pytest.mark.parametrize(
    "words",
    [
        ("versions", "never-was"),
        ("restore", "never-was", "--version", "1"),
        ("restore", "note", "--version", "99"),
        ("versions", "no/such/folder"),
    ],
)
def test_what_never_was_cannot_be_shown_or_restored(cluster, here, words):
    (here / "note").write_text("x")
    verb, name, *rest = words

    done = cluster.tool(verb, str(here / name), *rest)

    assert done.returncode == 1
    assert done.stderr.startswith(f"everfold: {here.name}/{name}: ")
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- two mounts, trouble


def test_two_mounts_see_each_others_changes_and_exclude_each_other(cluster, tmp_path):
    second = tmp_path / "second"
    cluster.tool("mount", str(second))
    try:
        line = [sys.executable, "-m", "tools.freshness", str(cluster.folder / "mnt"), str(second)]
        ran = subprocess.run(
            [*line, "--trials", "5", "--rounds", "30"],
            env=environment(), capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "exactly one won each" in ran.stdout
        assert "flock: excludes" in ran.stdout
    finally:
        assert cluster.tool("umount", str(second)).returncode == 0


def test_reads_and_writes_go_on_while_a_node_counts_as_failed(cluster, here):
    before = os.urandom(300_000)
    (here / "before").write_bytes(before)
    assert cluster.tool("node", "fail", "dn1").returncode == 0
    try:
        (here / "during").write_bytes(before[::-1])
        assert (here / "before").read_bytes() == before
        assert (here / "during").read_bytes() == before[::-1]
    finally:
        done = cluster.tool("node", "repair", "dn1", "--wait", "--timeout", "50")
    assert done.returncode == 0, done.stderr
    status = json.loads(cluster.tool("status", "--json").stdout)
    assert (status["under_replicated"], status["missing"]) == (0, 0)
    assert cluster.tool("fsck").returncode == 0


def test_a_killed_driver_of_the_embedded_folder_is_replaced(cluster, here):
    (here / "kept").write_text("kept")
    (pid,) = {p for p in driver_pids(cluster) if str(cluster.data) in machine.command_line(p)}

    os.kill(pid, signal.SIGKILL)

    machine.wait_until(lambda: "mount is back" in cluster.said(), 30, "the mount is back")
    assert (here / "kept").read_text() == "kept"


def test_ending_up_leaves_no_mount_and_all_that_was_written_comes_back(tmp_path):
    mnt = tmp_path / "mnt"
    with running(tmp_path, "--mount", str(mnt)) as cluster:
        (mnt / "kept").write_text("kept")
        assert cluster.stop() == 0
        assert not os.path.ismount(mnt)
        assert list(mnt.iterdir()) == []

        cluster.start()
        assert (mnt / "kept").read_text() == "kept"


def test_the_embedded_folder_can_be_unmounted_and_stays_so(tmp_path):
    mnt = tmp_path / "mnt"
    with running(tmp_path, "--mount", str(mnt)) as cluster:
        (mnt / "kept").write_text("kept")

        done = cluster.tool("umount", str(mnt))

        assert done.returncode == 0, done.stderr
        machine.wait_until(lambda: "mount ended, as it was asked" in cluster.said(), 20, "said")
        assert not os.path.ismount(mnt)
        assert cluster.stop() == 0


def test_a_killed_supervisor_leaves_no_mount_and_no_process(tmp_path):
    mnt = tmp_path / "mnt"
    with running(tmp_path, "--mount", str(mnt)) as cluster:
        (mnt / "kept").write_text("kept")
        cluster.kill()
        machine.wait_until(lambda: not machine.fuse_mounts(tmp_path), 30, "unmounted")
        machine.wait_until(lambda: not driver_pids(cluster), 30, "the driver ended")

        cluster.start()
        assert (mnt / "kept").read_text() == "kept"
