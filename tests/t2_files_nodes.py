"""Files over HTTP while datanodes are away or lie."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everfold.model import BLOCK_MAX
from nameserver.files import blocks
from tests.harness.browser import Browser, noise
from tests.harness.inprocess import InProcessCluster


@pytest.fixture
def cluster(tmp_path) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path) as started:
        yield started


@pytest.fixture
def me(cluster) -> Browser:
    return Browser(cluster.app, cluster.token)


@pytest.mark.expects_warnings
def test_with_a_node_away_uploads_and_downloads_go_on(cluster, me):
    data = noise(3 * BLOCK_MAX + 5)
    before = me.upload("before", data)["id"]

    cluster.cut("dn1")
    after = me.upload("after", data[::-1])["id"]

    assert me.load(before) == data
    assert me.load(after) == data[::-1]
    for block in me.good("GET", f"/files/{after}")["replicas"]["blocks"]:
        assert {"dn2", "dn3"} <= {each["node"] for each in block["replicas"]}


@pytest.mark.expects_warnings
def test_with_too_few_nodes_an_upload_is_refused_and_leaves_nothing(cluster, me, monkeypatch):
    monkeypatch.setattr(blocks, "PATIENCE_S", 1.0)
    file = me.upload("before", b"x")["id"]
    for name in ("dn1", "dn2", "dn3"):
        cluster.cut(name)

    assert me.refused("new/after", noise(10)) == (503, "unavailable")
    assert me.names() == ["before"]
    status, _, _ = me.ask("GET", f"/api/files/{file}/download")
    assert status == 503
    assert me.kind("GET", f"/api/files/{file}/download") in ("unavailable", "missing")


@pytest.mark.expects_warnings
def test_a_copy_that_rotted_is_passed_over_and_reported(cluster, me):
    data = noise(BLOCK_MAX)
    file = me.upload("f", data)["id"]
    block = me.good("GET", f"/files/{file}")["replicas"]["blocks"][0]
    rotten = block["replicas"][0]["node"]
    found = list((cluster.folder / rotten).rglob(f"*{block['block'][2:]}*"))
    assert found, "the block's file"
    for path in found:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)

    for _ in range(3):
        assert me.load(file) == data
