"""Uploads in several requests: what is safe is kept, who is cut off goes on, nobody twice."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from everfold.model import BLOCK_MAX
from nameserver import gc
from nameserver.files import uploads as engine
from nameserver.files.uploads import expire
from tests.harness.browser import Browser, noise
from tests.harness.inprocess import CALM, InProcessCluster
from tests.harness.world import load

ROUTE = "/api/files/uploads"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("uploads"), policy=CALM) as started:
        yield started


@pytest.fixture
def me(cluster, request) -> Browser:
    """A user of one's own for every test."""
    return Browser(cluster.app, cluster.user("u" + str(abs(hash(request.node.nodeid)))))


def begin(me: Browser, path: str, size: int) -> str:
    """Announce a file; return the upload's id."""
    upload = me.good("POST", ROUTE, {"path": path, "size": size})["upload"]
    assert (upload["offset"], upload["size"]) == (0, size)
    return str(upload["id"])


def send(me: Browser, upload: str, offset: object, data: bytes) -> tuple[int, Any]:
    """Send bytes; return (status, answer)."""
    status, _, raw = me.ask("PATCH", f"{ROUTE}/{upload}", data, Upload_Offset=str(offset))
    return status, json.loads(raw)


class Body:
    """A body that comes as a test lets it come, and may break off."""

    def __init__(self, *pieces: bytes, breaks: bool = False, length: int | None = None) -> None:
        self.pieces = list(pieces)
        self.breaks = breaks
        self.length = sum(map(len, pieces)) if length is None else length
        self.gate: threading.Event | None = None
        self.reached = threading.Event()  # the gate

    def read(self, size: int = -1) -> bytes:
        if not self.pieces:
            self.reached.set()
            if self.gate is not None:
                assert self.gate.wait(20)
            if self.breaks:
                raise ConnectionResetError("hung up")
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > size >= 0:
            self.pieces.insert(0, piece[size:])
            piece = piece[:size]
        return piece


def stream(cluster: InProcessCluster, me: Browser, upload: str, offset: int, body: Body) -> int:
    """PATCH with a body of which not all comes; return the status."""
    got: list[str] = []
    environ = {
        "REQUEST_METHOD": "PATCH", "PATH_INFO": f"{ROUTE}/{upload}", "QUERY_STRING": "",
        "CONTENT_LENGTH": str(body.length), "SERVER_NAME": "test", "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http",
        "wsgi.input": body, "HTTP_UPLOAD_OFFSET": str(offset),
        "HTTP_AUTHORIZATION": f"Bearer {me.token}",
    }  # fmt: skip
    for _ in cluster.app(environ, lambda status, fields, exc=None: got.append(status)):
        pass
    return int(got[0].split()[0])


# ---------------------------------------------------------------- the ordinary way


def test_a_file_that_comes_in_pieces_is_whole_and_in_the_folder(cluster, me):
    data = noise(2 * BLOCK_MAX + 12_345)
    upload = begin(me, "a new folder/film.bin", len(data))
    cuts = [0, 100_000, BLOCK_MAX + 7, len(data)]

    answers = [send(me, upload, a, data[a:b]) for a, b in itertools.pairwise(cuts)]

    assert [status for status, _ in answers] == [200, 200, 201]
    assert [told["upload"]["offset"] for _, told in answers] == cuts[1:]
    file = answers[-1][1]["file"]
    assert (file["path"], file["size"], file["version"]) == (
        "/a new folder/film.bin", len(data), 1,
    )  # fmt: skip
    assert me.load(answers[-1][1]["file_id"]) == data
    assert load(cluster.mount("pieces", me.token), "a new folder/film.bin") == data


def test_nothing_is_seen_before_the_last_byte_came(me):
    upload = begin(me, "d/f", 10)
    send(me, upload, 0, b"12345")

    assert me.names() == []
    assert [each["id"] for each in me.good("GET", ROUTE)["uploads"]] == [upload]
    assert send(me, upload, 5, b"67890")[0] == 201
    assert me.names("d") == ["f"]
    assert me.good("GET", ROUTE)["uploads"] == []


def test_an_upload_to_a_path_that_is_there_is_its_next_version(me):
    file = me.upload("f", b"one")
    status, told = send(me, begin(me, "f", 3), 0, b"two")

    assert (status, told["file_id"], told["file"]["version"]) == (201, file["id"], 2)


def test_an_empty_file_is_kept_at_once(me):
    told = me.good("POST", ROUTE, {"path": "empty", "size": 0})

    assert (told["file"]["size"], told["upload"]["complete"]) == (0, True)
    assert me.names() == ["empty"]


def test_who_lost_the_last_answer_gets_it_again_and_no_second_version(me):
    upload = begin(me, "f", 3)
    first = send(me, upload, 0, b"one")

    assert send(me, upload, 3, b"") == first
    told = me.good("GET", f"{ROUTE}/{upload}")
    assert (told["file_id"], told["upload"]["offset"]) == (first[1]["file_id"], 3)
    assert told["file"]["version"] == 1
    me.good("DELETE", "/api/files/" + told["file_id"])
    assert me.good("GET", f"{ROUTE}/{upload}")["file"] is None


def test_an_upload_given_up_is_gone(me):
    upload = begin(me, "f", 10)
    send(me, upload, 0, b"12345")

    me.good("DELETE", f"{ROUTE}/{upload}")

    assert send(me, upload, 5, b"67890")[0] == 404
    for method in ("GET", "DELETE"):
        assert me.kind(method, f"{ROUTE}/{upload}") == "not_found"
    assert me.names() == []


# ---------------------------------------------------------------- cut off


def test_of_a_body_that_breaks_off_all_that_came_stays(cluster, me):
    data = noise(BLOCK_MAX + 600_000)
    upload = begin(me, "f", len(data))
    came = BLOCK_MAX + 300_000
    for breaks in (True, False):
        upload = begin(me, "f", len(data))
        body = Body(data[:came], breaks=breaks, length=len(data))

        assert stream(cluster, me, upload, 0, body) == 400

        assert me.good("GET", f"{ROUTE}/{upload}")["upload"]["offset"] == came
        status, told = send(me, upload, came, data[came:])
        assert status == 201
        assert me.load(told["file_id"]) == data


def test_the_wrong_offset_is_a_conflict_that_tells_the_right_one(me):
    upload = begin(me, "f", 10)
    send(me, upload, 0, b"123")

    for wrong in (0, 2, 4, 9):
        status, told = send(me, upload, wrong, b"x")
        assert (status, told["error"]["kind"], told["error"]["subject"]) == (409, "conflict", "3")
    status, headers, _ = me.ask("GET", f"{ROUTE}/{upload}")
    assert (status, headers["upload-offset"]) == (200, "3")


def test_of_two_requests_at_a_time_one_wins(cluster, me):
    data = noise(1000)
    upload = begin(me, "f", len(data))
    slow = Body(data[:500])
    slow.length, slow.gate = len(data), threading.Event()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream, cluster, me, upload, 0, slow)
        assert slow.reached.wait(20)
        status, told = send(me, upload, 0, data)
        slow.gate.set()
        assert first.result(20) == 400

    assert (status, told["error"]["kind"]) == (409, "busy")
    assert send(me, upload, 500, data[500:])[0] == 201


def test_who_lost_its_connection_takes_over_from_itself(cluster, me, monkeypatch):
    monkeypatch.setattr(engine, "_SILENT_S", 0.0)
    data = noise(1000)
    upload = begin(me, "f", len(data))
    dead = Body(data[:500])
    dead.length, dead.gate = len(data), threading.Event()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream, cluster, me, upload, 0, dead)
        assert dead.reached.wait(20)
        status, told = send(me, upload, 0, data)
        dead.gate.set()
        assert first.result(20) == 409

    assert status == 201
    assert me.load(told["file_id"]) == data
    assert told["file"]["version"] == 1


def test_many_at_once_make_one_version(cluster, me):
    upload = begin(me, "f", 4)
    send(me, upload, 0, b"123")

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: send(me, upload, 3, b"4"), range(6)))

    assert sorted({status for status, _ in answers} | {409}) == [201, 409]
    assert me.good("GET", f"{ROUTE}/{upload}")["file"]["version"] == 1


@pytest.mark.expects_warnings
def test_what_was_safe_stays_when_the_datanodes_go_away_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("nameserver.files.blocks.PATIENCE_S", 0.3)
    monkeypatch.setattr(engine, "_NOTE_S", 0.0)
    with InProcessCluster(tmp_path, policy=CALM) as cluster:
        me = Browser(cluster.app, cluster.token)
        data = noise(3 * BLOCK_MAX)
        upload = begin(me, "f", len(data))
        assert send(me, upload, 0, data[:BLOCK_MAX])[0] == 200
        for link in cluster.links.values():
            link.is_down = True

        assert send(me, upload, BLOCK_MAX, data[BLOCK_MAX:])[0] == 503

        for link in cluster.links.values():
            link.is_down = False
        offset = me.good("GET", f"{ROUTE}/{upload}")["upload"]["offset"]
        assert offset == BLOCK_MAX
        monkeypatch.setattr("nameserver.files.blocks.PATIENCE_S", 15.0)
        status, told = send(me, upload, offset, data[offset:])
        assert status == 201
        assert me.load(told["file_id"]) == data


# ---------------------------------------------------------------- restarts, processes, garbage


def test_an_upload_goes_on_at_another_nameserver_process(tmp_path, database_url):
    data = noise(BLOCK_MAX + 1000)
    with InProcessCluster(tmp_path / "one", policy=CALM, database=database_url) as cluster:
        me = Browser(cluster.app, cluster.token)
        upload = begin(me, "f", len(data))
        assert send(me, upload, 0, data[:BLOCK_MAX])[0] == 200
        second = cluster.second_app()
        me.transport = Browser(second).transport
        status, told = send(me, upload, BLOCK_MAX, data[BLOCK_MAX:])
        assert status == 201
        assert me.load(told["file_id"]) == data


def test_blocks_of_a_running_upload_are_no_garbage_and_of_a_forgotten_one_are(tmp_path):
    policy = replace(CALM, gc_grace_s=0.0, gc_interval_s=1e9)
    with InProcessCluster(tmp_path, policy=policy) as cluster:
        me = Browser(cluster.app, cluster.token)
        service = cluster.service
        first, left = begin(me, "f", 2 * BLOCK_MAX), begin(me, "g", BLOCK_MAX + 1)
        data = noise(2 * BLOCK_MAX)
        send(me, first, 0, data[:BLOCK_MAX])
        send(me, left, 0, noise(BLOCK_MAX))
        assert gc.collect(cluster.db, service.clock, policy) == 0

        with cluster.db.write() as cx:
            cx.run("UPDATE upload SET touched_ns = 1 WHERE id = ?", left)
        assert me.kind("GET", f"{ROUTE}/{left}") == "not_found"
        assert expire(cluster.db, service.clock, policy) == 1

        assert gc.collect(cluster.db, service.clock, policy) == 1
        status, told = send(me, first, BLOCK_MAX, data[BLOCK_MAX:])
        assert status == 201
        assert gc.collect(cluster.db, service.clock, policy) == 0
        assert me.load(told["file_id"]) == data


# ---------------------------------------------------------------- who may, how much, nonsense


def test_anothers_upload_is_not_there(cluster, me):
    upload = begin(me, "f", 10)
    other = Browser(cluster.app, cluster.user("other" + upload[:8]))

    assert send(other, upload, 0, b"x")[0] == 404
    for method in ("GET", "DELETE"):
        assert other.kind(method, f"{ROUTE}/{upload}") == "not_found"
    assert other.good("GET", ROUTE)["uploads"] == []
    assert send(me, upload, 0, b"1234567890")[0] == 201


def test_into_a_team_folder_its_writers_upload_until_they_are_removed(cluster, me):
    names = {may: f"{may}{abs(hash(me.token))}" for may in ("write", "read")}
    writer, reader = (Browser(cluster.app, cluster.user(names[may])) for may in names)
    members = [{"username": name, "permission": may} for may, name in names.items()]
    team = me.good("POST", "/api/teams", {"path": "Plans", "members": members})["team"]["id"]

    upload = begin(writer, "Plans/deep/f", 4)
    assert writer.good("GET", f"{ROUTE}/{upload}")["upload"]["path"] == "/Plans/deep/f"
    assert send(writer, upload, 0, b"1234")[1]["file"]["path"] == "/Plans/deep/f"
    assert me.names("Plans/deep") == ["f"]
    assert reader.kind("POST", ROUTE, {"path": "Plans/g", "size": 1}) == "read_only"
    assert writer.kind("POST", ROUTE, {"path": "Plans", "size": 1}) == "is_dir"

    upload = begin(writer, "Plans/late", 2)
    assert send(writer, upload, 0, b"1")[0] == 200
    me.good("DELETE", f"/api/teams/{team}/members/{names['write']}")
    assert send(writer, upload, 1, b"2")[0] == 404
    assert writer.kind("GET", f"{ROUTE}/{upload}") == "not_found"
    assert writer.good("GET", ROUTE)["uploads"] == []
    assert me.names("Plans") == ["deep"]


def test_a_folder_that_was_shared_meanwhile_takes_no_bytes_of_another_space(me):
    me.upload("Docs/there", b"x")
    upload = begin(me, "Docs/f", 2)
    assert send(me, upload, 0, b"1")[0] == 200
    me.good("POST", "/api/teams", {"path": "Docs", "members": []})

    status, told = send(me, upload, 1, b"2")

    assert (status, told["error"]["kind"]) == (409, "cross_space")
    assert me.names("Docs") == ["there"]
    assert send(me, begin(me, "Docs/f", 2), 0, b"12")[1]["file"]["path"] == "/Docs/f"


@pytest.mark.parametrize("form", [
    {}, {"path": "f"}, {"size": 1}, {"path": "", "size": 1}, {"path": "f", "size": -1},
    {"path": "f", "size": 1.5}, {"path": "f", "size": "1"}, {"path": "f", "size": True},
    {"path": "f", "size": 1 << 63}, {"path": "../f", "size": 1}, {"path": "a\0b", "size": 1},
    {"path": 5, "size": 1},
])  # fmt: skip
def test_a_file_announced_with_nonsense_is_refused(me, form):
    assert me.kind("POST", ROUTE, form) == "invalid"
    assert me.good("GET", ROUTE)["uploads"] == []


@pytest.mark.parametrize("offset", ["", "x", "-1", "1.0", "9" * 30, "١"])
def test_an_offset_that_is_none_is_invalid(me, offset):
    upload = begin(me, "f", 10)

    status, told = send(me, upload, offset, b"x")

    assert (status, told["error"]["kind"]) == (400, "invalid")


def test_more_bytes_than_announced_are_refused_and_nothing_is_kept(cluster, me):
    upload = begin(me, "f", 10)

    assert send(me, upload, 0, b"x" * 11)[0] == 413
    assert send(me, upload, 1 << 62, b"")[0] == 413
    body = Body(b"x" * 8, b"y" * 8, length=10)  # its length lies
    assert stream(cluster, me, upload, 0, body) in (201, 413)


def test_a_folder_is_not_written_over(me):
    me.good("POST", "/api/files/mkdir", {"path": "d"})
    me.upload("file", b"x")

    assert me.kind("POST", ROUTE, {"path": "d", "size": 1}) == "is_dir"
    assert me.kind("POST", ROUTE, {"path": "new/", "size": 1}) == "is_dir"
    assert me.kind("POST", ROUTE, {"path": "file/below", "size": 1}) == "not_dir"


def test_limits_are_told_at_the_beginning(tmp_path):
    limits = replace(CALM, max_file_size=1000, allowed_extensions=frozenset({"txt"}))
    with InProcessCluster(tmp_path, policy=limits) as cluster:
        me = Browser(cluster.app, cluster.token)

        assert me.kind("POST", ROUTE, {"path": "f.txt", "size": 1001}) == "too_large"
        assert me.kind("POST", ROUTE, {"path": "f.exe", "size": 10}) == "invalid"
        assert send(me, begin(me, "f.txt", 1000), 0, b"x" * 1000)[0] == 201


def test_the_quota_counts_at_the_beginning_and_in_the_end_and_room_can_be_made(cluster, me):
    user = me.good("GET", "/api/auth/profile")["user"]
    with cluster.db.write() as cx:
        cx.run("UPDATE account SET quota = 5000 WHERE id = ?", user["id"])
    assert me.kind("POST", ROUTE, {"path": "f", "size": 5001}) == "quota"
    upload = begin(me, "f", 3000)
    send(me, upload, 0, b"x" * 2999)
    other = me.upload("other", b"x" * 3000)
    assert me.kind("POST", ROUTE, {"path": "third", "size": 2001}) == "quota"
    assert me.good("POST", ROUTE, {"path": "other", "size": 5000})

    status, told = send(me, upload, 2999, b"x")
    assert (status, told["error"]["kind"]) == (413, "quota")
    assert me.names() == ["other"]

    me.good("DELETE", "/api/files/" + other["id"])
    status, told = send(me, upload, 3000, b"")
    assert (status, told["file"]["size"]) == (201, 3000)


def test_a_user_has_so_many_uploads_and_no_more(me, monkeypatch):
    monkeypatch.setattr(engine, "UPLOADS_MAX", 2)
    begin(me, "a", 1)
    kept = begin(me, "b", 1)

    assert me.kind("POST", ROUTE, {"path": "c", "size": 1}) == "rate_limited"
    send(me, kept, 0, b"x")
    assert begin(me, "c", 1)
