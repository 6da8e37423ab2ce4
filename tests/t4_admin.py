"""Administration of a real cluster: a node leaves with data on it; load and metrics are told."""

from __future__ import annotations

import random

import pytest
import requests

from tests.harness import machine
from tests.harness.cluster import PASSWORD, running

FILES = 12
DRAINED_S = 90.0
STEPS_S = 30.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("admin")) as started:
        started.log_in()
        yield started


@pytest.fixture(scope="module")
def files(cluster):
    """Files by their id, uploaded over HTTP."""
    rng, made = random.Random(5), {}
    for number in range(FILES):
        data = rng.randbytes(100_000 + number)
        answer = requests.post(
            f"{cluster.url}/upload",
            files={"file": (f"f{number}", data)},
            auth=("admin", PASSWORD),
            timeout=30,
        )
        made[answer.json()["file_id"]] = data
    return made


def test_a_node_leaves_with_all_that_it_had_copied_and_every_file_is_whole(cluster, files):
    with cluster.api() as api:
        before = {row["id"]: row for row in api.nodes()}
        left = api.drain_node("dn1")["to_copy"]
        machine.wait_until(
            lambda: next(r for r in api.nodes() if r["id"] == "dn1")["to_copy"] == 0,
            DRAINED_S,
            "nothing needs the node",
        )
        removed = api.remove_node("dn1")
        status = api.status()

    assert before["dn1"]["blocks"] > 0 < left
    assert removed == {"removed": "dn1", "lacking": 0, "lost": 0}
    assert (status["under_replicated"], status["missing"]) == (0, 0)
    for file, data in files.items():
        got = requests.get(f"{cluster.url}/download/{file}", auth=("admin", PASSWORD), timeout=30)
        assert got.content == data
    assert cluster.tool("node", "repair", "dn1", "--wait").returncode == 0


def test_the_load_of_the_last_minute_tells_of_what_was_stored(cluster, files):
    with cluster.api() as api:

        def told(field):
            answer = api.call("GET", "/admin/system/load?minutes=60")
            return sum(point[field] for point in answer["series"]) * answer["step_s"]

        machine.wait_until(
            lambda: told("bytes_in_per_s") >= 2 * FILES * 100_000, STEPS_S, "a step is over"
        )

        assert told("http_bytes_in_per_s") >= FILES * 100_000
        assert told("requests_per_s") >= FILES
        assert told("p99_ms") > 0


def test_both_servers_tell_prometheus_what_they_do(cluster, files):
    own = requests.get(f"{cluster.url}/metrics", timeout=10).text
    node = cluster.ready["nodes"][0]["url"]
    nodes = requests.get(f"{node}/metrics", timeout=10).text

    assert 'everfold_nodes{state="up"} 3' in own
    assert 'kind="files",le="+Inf"}' in own
    assert "everfold_datanode_bytes_in_total" in nodes
    assert 'kind="put"} ' in nodes
    assert requests.get(f"{node}/readyz", timeout=10).status_code == 200
