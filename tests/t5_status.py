"""What a real mount says of itself: to `everfold status`, and into its log on SIGUSR1."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from everfold import native
from tests.harness import machine
from tests.harness.cluster import RealCluster
from tests.harness.folders import Folder

pytestmark = pytest.mark.fuse


def test_status_tells_what_a_folder_is_doing(
    live_cluster: RealCluster, live: Folder, here: Path
) -> None:
    for number in range(20):
        (here / f"f{number}").write_bytes(b"text")
    done = live_cluster.tool("status", str(live.path), "--json")
    assert done.returncode == 0, done.stderr
    mount = json.loads(done.stdout)["mounts"][0]

    assert mount["path"] == str(live.path)
    assert mount["shipped"]["operations"] + mount["backlog"]["records"] >= 20
    assert {node["id"] for node in mount["nodes"]} == {"dn1", "dn2", "dn3"}
    assert mount["feed"]["live"]
    assert mount["calls"]["commit"]["p50_us"] > 0
    cost = mount["requests"]["CREATE" if live.driver == "kernel" else "create"]
    assert cost["count"] >= 20
    assert 0 < cost["p50_us"] <= cost["p95_us"] <= cost["p99_us"] <= cost["max_us"] + 1


def test_status_finds_the_folders_of_its_cluster_and_prints_them(
    live_cluster: RealCluster, live: Folder
) -> None:
    done = live_cluster.tool("status")

    assert done.returncode == 0, done.stderr
    for words in (str(live.path), "write lease", "not sent yet", "P95", "LATENCY"):
        assert words in done.stdout


def test_a_folder_that_is_none_or_hangs_is_said(
    live_cluster: RealCluster, live: Folder, tmp_path: Path
) -> None:
    assert "does not answer" in live_cluster.tool("status", str(tmp_path)).stderr
    pid = live.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        done = live_cluster.tool("status", str(live.path))
    finally:
        os.kill(pid, signal.SIGCONT)

    assert done.returncode == 1
    assert "does not answer" in done.stderr


def test_sigusr1_writes_the_figures_into_the_log(live: Folder, here: Path) -> None:
    (here / "f").write_bytes(b"text")
    os.kill(live.pid, signal.SIGUSR1)
    machine.wait_until(lambda: "state: {" in live.said(), 10, "the figures are in the log")
    line = next(line for line in live.said().splitlines() if "state: {" in line)
    state = json.loads(line[line.index("{") :])

    assert set(state) >= {"backlog", "cache", "calls", "feed", "hits", "lease", "nodes", "requests"}
    may_be = os.environ.get("EVERFOLD_NATIVE") != "0"
    assert state["compiled"] == (may_be and native.folder().is_dir())
