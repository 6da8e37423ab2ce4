"""Disks that are slow, all of them, as a busy one or a poor one is: saves wait, nothing falls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import machine
from tests.harness.cluster import RealCluster, running
from tests.harness.folders import Folder
from tests.harness.slowdisk import SlowDisk
from tests.harness.work import Work, told

pytestmark = [pytest.mark.fuse, pytest.mark.native]  # a compiler makes the disk slow
SLOW_MS = 1300  # longer than any one request may take at first, and than a node may be silent


@pytest.fixture
def disk(tmp_path: Path) -> SlowDisk:
    return SlowDisk(tmp_path / "disk")


@pytest.fixture
def cluster(tmp_path: Path, disk: SlowDisk) -> Iterator[RealCluster]:
    with running(tmp_path / "cluster", **disk.env) as started:
        started.log_in()
        yield started


@pytest.mark.timeout(250)
def test_where_every_sync_takes_long_saves_go_on_and_no_node_is_given_up(
    cluster: RealCluster, mount: Folder, tmp_path: Path, disk: SlowDisk
) -> None:
    with Work(mount.path / "work") as work:
        work.at_least(3)
        disk.slow(SLOW_MS)
        goal = work.count + 10  # a third of them synced: before, not one came to an end
        seen = set()

        def is_there() -> bool:
            seen.update(node["state"] for node in told(cluster, "node", "list"))
            return work.count >= goal or bool(work.errors)

        machine.wait_until(is_there, 100, "ten more files")
        disk.slow(0)

    assert "down" not in seen
    work.check_all(cluster, tmp_path)
