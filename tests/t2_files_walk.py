"""Every route of files once, in the order of a new user's first day, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everfold.model import BLOCK_MAX
from tests.harness.browser import Browser, form, noise
from tests.harness.inprocess import CALM, PASSWORD, InProcessCluster


@pytest.fixture
def cluster(tmp_path, database_url) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path, policy=CALM, database=database_url) as started:
        yield started


def test_a_first_day_with_every_route(cluster):
    me = Browser(cluster.app)
    told = me.good("POST", "/login", {"username": "ann", "password": PASSWORD})
    me.token = told["token"]
    data = noise(BLOCK_MAX + 100)

    file = me.upload("docs/big.bin", data)["id"]
    me.upload("docs/note.txt", b"one")
    note = me.upload("docs/note.txt", b"two")["id"]
    me.good("POST", "/api/files/mkdir", {"path": "pictures/2026"})
    me.good("POST", "/api/files/move", {"path": "docs/big.bin", "to": "pictures/2026/"})
    assert me.load(file) == data
    assert me.names("docs") == ["note.txt"]
    assert me.names(recursive=1, search="NOTE") == ["note.txt"]
    listed = me.good("GET", "/api/files/list", per_page=1)
    assert listed["total"] == 2
    assert me.names(page=2, per_page=1, as_of=listed["as_of"]) == ["pictures"]
    assert me.names(recursive=1, as_of=listed["as_of"])[0] == "docs"

    versions = me.good("GET", f"/api/files/{note}/versions")["versions"]
    assert [v["version"] for v in versions] == [2, 1]
    me.good("POST", f"/api/files/{note}/versions/1/restore")
    assert me.load(note) == b"one"
    me.good("DELETE", f"/api/files/{note}")
    assert me.names("docs", deleted=1) == me.names(deleted=1, recursive=1) == ["note.txt"]
    folder = me.good("GET", "/api/files/list")["files"][1]["id"]
    me.good("DELETE", f"/api/files/{folder}", recursive=1)
    assert me.names(deleted=1) == ["pictures"]
    me.good("POST", "/api/files/undelete", {"file_id": folder})
    me.good("POST", "/api/files/undelete", {"path": "docs/note.txt"})
    assert me.load(note) == b"one"
    assert me.load(file) == data

    stats = me.good("GET", "/api/files/stats")
    assert (stats["total_files"], stats["total_bytes"]) == (2, BLOCK_MAX + 103)
    assert me.good("GET", "/storage")["used"] == BLOCK_MAX + 103
    assert len(me.good("GET", "/files")["files"]) == 2
    assert me.good("GET", f"/files/{file}")["replicas"]["block_count"] == 2
    assert me.ask("GET", f"/download/{note}")[2] == b"one"

    link = me.good("POST", f"/api/files/{note}/share", {"permission": "write"})["share_url"]
    stranger = Browser(cluster.app)
    assert stranger.ask("GET", link + "/download")[2] == b"one"
    assert stranger.post(link + "/upload", form(b"by a stranger"))[0] == 201
    assert me.good("GET", f"/api/files/{note}/shares")["shares"][0]["downloads"] == 1

    events = me.good("GET", "/api/sync/events")["events"]
    assert events[-1]["event_type"] == "file_uploaded"
    assert events[-1]["device"] == "share link"
    me.good("PUT", f"/api/sync/events/{events[-1]['id']}/processed")
    assert me.good("GET", "/api/sync/events")["events"] == []
    assert me.good("POST", "/api/sync/ping")["pending"] == 0
    assert me.good("GET", "/api/sync/status")["devices"]
    assert cluster.service.fsck.run()["errors"] == []
