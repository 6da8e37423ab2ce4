"""Versions and figures over HTTP, and the short routes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everfold.model import BLOCK_MAX
from tests.harness.browser import Browser, form, noise
from tests.harness.inprocess import CALM, PASSWORD, InProcessCluster
from tests.harness.world import save


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("past"), policy=CALM) as started:
        yield started


@pytest.fixture
def me(cluster, request) -> Browser:
    """A user of one's own for every test."""
    return Browser(cluster.app, cluster.user("u" + str(abs(hash(request.node.nodeid)))))


def versions(me: Browser, file: str) -> list[dict]:
    return me.good("GET", f"/api/files/{file}/versions")["versions"]


def test_every_upload_is_a_version_that_can_be_downloaded(me):
    for content in (b"one", b"two", b"three"):
        file = me.upload("f.txt", content)["id"]

    listed = versions(me, file)

    assert [(v["version"], v["size"], v["current"]) for v in listed] == [
        (3, 5, True), (2, 3, False), (1, 3, False),
    ]  # fmt: skip
    for number, content in [(1, b"one"), (2, b"two"), (3, b"three")]:
        route = f"/api/files/{file}/versions/{number}/download"
        status, back, body = me.ask("GET", route)
        assert (status, body) == (200, content)
        assert me.ask("GET", route, If_None_Match=back["etag"])[0] == 304
        assert me.ask("GET", route, Range="bytes=1-")[2] == content[1:]


def test_a_restored_version_is_a_new_one_and_what_it_replaced_stays(me):
    me.upload("f", b"one")
    file = me.upload("f", b"two")["id"]

    back = me.good("POST", f"/api/files/{file}/versions/1/restore")["file"]

    assert (back["id"], back["version"]) == (file, 3)
    assert me.load(file) == b"one"
    assert [v["version"] for v in versions(me, file)] == [3, 2, 1]


def test_an_old_version_of_a_deleted_file_brings_it_back(me):
    me.upload("f", b"one")
    file = me.upload("f", b"two")["id"]
    me.good("DELETE", f"/api/files/{file}")
    assert [v["version"] for v in versions(me, file)] == [2, 1]

    me.good("POST", f"/api/files/{file}/versions/1/restore")

    assert me.load(file) == b"one"
    assert me.names() == ["f"]


def test_what_a_mount_saved_is_a_version_here_with_its_author(cluster, me):
    client = cluster.mount("past", me.token)
    save(client, "f", b"from the mount")
    assert client.drain()
    file = me.good("GET", "/api/files/list")["files"][0]["id"]
    me.upload("f", b"from http")

    listed = versions(me, file)

    assert [v["version"] for v in listed] == [2, 1]
    assert {v["author"] for v in listed} == {
        me.good("GET", "/api/auth/profile")["user"]["username"]
    }


@pytest.mark.parametrize("number", ["0", "9", "x", "-1", "9" * 30, "1.5"])
def test_an_unknown_version_is_not_found(me, number):
    file = me.upload("f", b"one")["id"]

    assert me.kind("GET", f"/api/files/{file}/versions/{number}/download") == "not_found"
    assert me.kind("POST", f"/api/files/{file}/versions/{number}/restore") == "not_found"


def test_another_users_versions_are_not_there(cluster, me):
    file = me.upload("f", b"secret")["id"]
    other = Browser(cluster.app, cluster.user("o" + file))

    assert other.kind("GET", f"/api/files/{file}/versions") == "not_found"
    assert other.kind("GET", f"/api/files/{file}/versions/1/download") == "not_found"
    assert other.kind("POST", f"/api/files/{file}/versions/1/restore") == "not_found"
    assert other.kind("GET", f"/files/{file}") == "not_found"
    assert other.kind("GET", f"/download/{file}") == "not_found"


def test_the_figures_count_what_is_there(me):
    block = noise(BLOCK_MAX)
    me.upload("a/one.png", block)
    me.upload("a/two.png", block)
    me.upload("b.txt", b"12345")
    me.upload("b.txt", b"1234567")

    told = me.good("GET", "/api/files/stats", days=7)

    assert (told["total_files"], told["total_folders"], told["total_versions"]) == (3, 1, 4)
    assert told["total_bytes"] == 2 * BLOCK_MAX + 7
    assert told["history_bytes"] == 5
    assert told["by_type"][0] == {"mime_type": "image/png", "count": 2, "bytes": 2 * BLOCK_MAX}
    assert told["dedup"]["saved_bytes"] == BLOCK_MAX
    assert len(told["over_time"]) == 7
    assert told["over_time"][-1]["versions"] + told["over_time"][-2]["versions"] == 4
    me.good("DELETE", "/api/files/" + me.good("GET", "/api/files/list")["files"][1]["id"])
    assert me.good("GET", "/api/files/stats")["total_files"] == 2
    assert me.kind("GET", "/api/files/stats", days=0) == "invalid"


# ---------------------------------------------------------------- the short routes


def test_the_short_routes_do_what_the_long_ones_do(cluster, me):
    status, answer = me.post("/upload", form(b"short", "s.txt"))
    assert status == 201
    file = answer["file_id"]
    me.upload("deep/er/f", b"x")

    listed = me.good("GET", "/files")["files"]
    assert [each["path"] for each in listed] == ["/deep/er/f", "/s.txt"]
    assert me.ask("GET", f"/download/{file}")[::2] == (200, b"short")
    used = me.good("GET", "/storage")
    assert (used["used"], used["limit"], used["available"]) == (6, 0, None)
    assert me.good("GET", "/status")["nodes_up"] == 3


def test_a_files_description_tells_where_its_copies_are(me):
    file = me.upload("f", noise(BLOCK_MAX + 5))["id"]

    told = me.good("GET", f"/files/{file}")["replicas"]

    assert [(b["offset"], b["length"], b["copies"]) for b in told["blocks"]] == [
        (0, BLOCK_MAX, 2), (BLOCK_MAX, 5, 2),
    ]  # fmt: skip
    assert {r["state"] for b in told["blocks"] for r in b["replicas"]} == {"up"}
    assert set(told["nodes"]) <= {"dn1", "dn2", "dn3"}


def test_a_login_at_the_short_route_gives_a_token(cluster, me):
    name = me.good("GET", "/api/auth/profile")["user"]["username"]
    stranger = Browser(cluster.app)

    stranger.token = stranger.good("POST", "/login", {"username": name, "password": PASSWORD})[
        "token"
    ]

    assert stranger.names() == []
    assert me.kind("POST", "/register", {"username": "new", "password": PASSWORD}) == "forbidden"
