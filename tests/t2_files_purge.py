"""Deleting for good: nothing of the file stays, nothing else goes, and the figures are right."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.harness.browser import Browser, noise
from tests.harness.inprocess import CALM, InProcessCluster
from tests.harness.world import find, save


@pytest.fixture
def cluster(tmp_path, database_url) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path, policy=CALM, database=database_url) as started:
        yield started


def rows(cluster: InProcessCluster, table: str) -> int:
    with cluster.db.read() as cx:
        row = cx.one(f"SELECT count(*) FROM {table}")
    return int(row[0]) if row else 0


def history_bytes(me: Browser) -> int:
    return int(me.good("GET", "/storage")["history_bytes"])


def test_a_purged_file_is_gone_with_its_history_and_nothing_else_is(cluster):
    me = Browser(cluster.app, cluster.token)
    kept = me.upload("kept", b"one")["id"]
    me.upload("kept", b"three")
    before = {table: rows(cluster, table) for table in ("inode", "entry", "extent", "version")}
    assert history_bytes(me) == 3
    client = cluster.mount("a", me.token)
    save(client, "f", noise(100_000))  # a mount's ways of writing, too
    with_pieces(client, "f")
    assert client.drain()
    for content in (b"two", b"", noise(5000)):
        file = me.upload("f", content)["id"]
    me.good("POST", f"/api/files/{file}/versions/1/restore")
    me.upload("tmp", b"saved by an editor")
    me.good("POST", "/api/files/move", {"path": "tmp", "to": "f", "replace": True})
    assert history_bytes(me) > 100_000

    me.good("DELETE", f"/files/{file}")

    after = {table: rows(cluster, table) for table in before}
    assert after == before
    assert history_bytes(me) == 3
    assert me.names() == ["kept"]
    assert me.good("GET", "/api/files/list", deleted=1)["files"] == []
    assert me.kind("GET", f"/api/files/{file}/versions") == "not_found"
    assert len(me.good("GET", f"/api/files/{kept}/versions")["versions"]) == 2
    assert cluster.service.fsck.run()["errors"] == []


def with_pieces(client, path: str) -> None:
    """Overwrite parts of a file, so that extents are split and laid over each other."""
    attr = find(client, path)
    handle = client.vfs.open(attr.ino, os.O_WRONLY).fh
    for at, size in [(10, 20), (15, 1000), (90_000, 20_000), (0, 50)]:
        client.vfs.write(handle, at, noise(size), False)
        client.vfs.fsync(handle, False)
    client.vfs.release(handle, 0, False)


def test_what_lies_in_the_trash_is_purged_by_its_id(cluster):
    me = Browser(cluster.app, cluster.token)
    file = me.upload("d/f", b"x")["id"]
    me.good("DELETE", f"/api/files/{file}")

    me.good("DELETE", f"/files/{file}")

    assert me.names("d", deleted=1) == []
    assert me.kind("POST", "/api/files/undelete", {"file_id": file}) == "not_found"
    assert me.kind("DELETE", f"/files/{file}") == "not_found"
    assert me.good("GET", "/storage")["history_bytes"] == 0
    folder = me.good("GET", "/api/files/list")["files"][0]["id"]
    assert me.kind("DELETE", f"/files/{folder}") == "is_dir"


def test_another_user_purges_nothing(cluster):
    me = Browser(cluster.app, cluster.token)
    file = me.upload("f", b"x")["id"]
    other = Browser(cluster.app, cluster.user("bob"))

    assert other.kind("DELETE", f"/files/{file}") == "not_found"
    assert me.load(file) == b"x"
