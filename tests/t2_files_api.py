"""Files over HTTP: uploads, downloads, listings, trash, and nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from everfold.model import BLOCK_MAX
from tests.harness.browser import BOUNDARY, Browser, form, noise
from tests.harness.inprocess import CALM, InProcessCluster
from tests.harness.world import load, save


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("files"), policy=CALM) as started:
        yield started


@pytest.fixture
def me(cluster, request) -> Browser:
    """A user of one's own for every test."""
    name = "u" + str(abs(hash(request.node.nodeid)))
    return Browser(cluster.app, cluster.user(name))


# ---------------------------------------------------------------- uploads and downloads


@pytest.mark.parametrize("size", [0, 1, 70_000, BLOCK_MAX, 2 * BLOCK_MAX + 12_345])
def test_what_is_uploaded_is_downloaded(me, size):
    data = noise(size)

    file = me.upload("a folder/that is new/file.bin", data)

    assert (file["path"], file["size"]) == ("/a folder/that is new/file.bin", size)
    assert me.load(file["id"]) == data


def test_an_upload_to_the_same_path_is_a_new_version_of_the_same_file(me):
    first = me.upload("note.txt", b"one")
    second = me.upload("note.txt", b"two")

    assert first["id"] == second["id"]
    assert (first["version"], second["version"]) == (1, 2)
    assert first["etag"] != second["etag"]
    assert me.load(first["id"]) == b"two"


def test_the_file_name_counts_when_there_is_no_path_or_it_is_a_folder(me):
    me.good("POST", "/api/files/mkdir", {"path": "docs"})

    assert me.upload("", b"1", "plain.txt")["path"] == "/plain.txt"
    assert me.upload("docs", b"1", "inside.txt")["path"] == "/docs/inside.txt"
    assert me.upload("new/", b"1", "inside.txt")["path"] == "/new/inside.txt"
    assert me.upload("", b"1", "tree/from/a/browser.txt")["path"] == "/tree/from/a/browser.txt"


def test_the_path_may_come_after_the_file_or_in_the_query(me):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="path"\r\n\r\nlate.txt\r\n'
    late = form(b"x").replace(f"--{BOUNDARY}--\r\n".encode(), head.encode())

    assert me.post("/api/files/upload", late + f"--{BOUNDARY}--\r\n".encode())[0] == 201
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    assert me.post("/api/files/upload?path=query.txt", form(b"x"), kind)[0] == 201
    assert me.names() == ["late.txt", "query.txt"]


def test_what_is_uploaded_is_in_the_mount_and_the_other_way_round(cluster, me):
    client = cluster.mount("both", me.token)
    data = noise(100_000)
    file = me.upload("docs/from http", data)
    assert load(client, "docs/from http") == data

    save(client, "docs/from mount", data[::-1])
    assert client.drain()
    assert me.names("docs") == ["from http", "from mount"]
    changed = me.upload("docs/from mount", b"changed by http")
    assert me.load(changed["id"]) == b"changed by http"

    save(client, "docs/from http", b"changed by the mount")
    assert client.drain()
    assert me.load(file["id"]) == b"changed by the mount"
    assert me.good("GET", f"/api/files/{file['id']}")["file"]["version"] == 2


def test_ranges_are_served_from_within_and_across_blocks(me):
    data = noise(BLOCK_MAX + 1000)
    file = me.upload("big", data)["id"]
    size = len(data)

    for said, start, stop in [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, size),
        ("bytes=-10", size - 10, size),
        (f"bytes={BLOCK_MAX - 5}-{BLOCK_MAX + 5}", BLOCK_MAX - 5, BLOCK_MAX + 6),
        (f"bytes=10-{size + 99}", 10, size),
    ]:
        status, back, got = me.ask("GET", f"/api/files/{file}/download", Range=said)
        assert (status, got == data[start:stop]) == (206, True), said
        assert back["content-range"] == f"bytes {start}-{stop - 1}/{size}"


def test_several_ranges_or_nonsense_get_the_whole_and_what_is_beyond_is_refused(me):
    file = me.upload("f", b"0123456789")["id"]
    route = f"/api/files/{file}/download"

    for said in ("bytes=0-1,4-5", "bytes=x-y", "lines=1-2", "bytes=5-2"):
        assert me.ask("GET", route, Range=said)[::2] == (200, b"0123456789"), said
    status, back, _ = me.ask("GET", route, Range="bytes=10-")
    assert (status, back["content-range"]) == (416, "bytes */10")


def test_conditions_save_the_transfer(me):
    file = me.upload("f", b"0123456789")
    route = f"/api/files/{file['id']}/download"
    tag = f'"{file["etag"]}"'

    status, back, body = me.ask("GET", route)
    assert (status, back["etag"], body) == (200, tag, b"0123456789")
    assert me.ask("GET", route, If_None_Match=tag)[::2] == (304, b"")
    assert me.ask("GET", route, If_None_Match='"other"')[0] == 200
    assert me.ask("GET", route, If_Match='"other"')[0] == 412
    assert me.ask("GET", route, If_Modified_Since=back["last-modified"])[0] == 304
    assert me.ask("GET", route, Range="bytes=0-1", If_Range=tag)[::2] == (206, b"01")
    assert me.ask("GET", route, Range="bytes=0-1", If_Range='"old"')[0] == 200
    status, back, body = me.ask("HEAD", route)
    assert (status, back["content-length"], body) == (200, "10", b"")


@pytest.mark.parametrize(
    "name", ["plain.txt", "Übergröße 文件.pdf", 'quo"te\\%41.txt', "semi;colon=.html", "tab\there"]
)
def test_the_name_of_a_download_is_one_safe_header_line(me, name):
    file = me.upload(name, b"x")

    _, back, _ = me.ask("GET", f"/api/files/{file['id']}/download", inline="1")
    said = back["content-disposition"]

    assert file["name"] == name
    assert said.startswith("attachment; ") and said.isascii() and said.isprintable()
    assert back["x-content-type-options"] == "nosniff"


def test_what_could_run_in_the_page_is_never_shown_in_place(me):
    def shown(name: str) -> str:
        file = me.upload(name, b"x")["id"]
        return me.ask("GET", f"/api/files/{file}/download?inline=1")[1]["content-disposition"][:6]

    assert shown("picture.png") == shown("song.mp3") == shown("notes.md") == "inline"
    assert shown("drawing.svg") == shown("thing.bin") == "attach"
    file = me.upload("page.html", b"<script>")["id"]
    back = me.ask("GET", f"/api/files/{file}/download?inline=1")[1]
    assert back["content-type"].startswith("text/plain")
    assert "sandbox" in back["content-security-policy"]


# ---------------------------------------------------------------- listings


def test_a_listing_is_of_one_moment_however_much_changes_between_its_pages(me):
    for k in range(7):
        me.upload(f"f{k}", b"x")
    first = me.good("GET", "/api/files/list", per_page=3)
    assert [f["name"] for f in first["files"]] == ["f0", "f1", "f2"]
    assert (first["total"], first["pages"], first["has_next"]) == (7, 3, True)

    me.upload("a new one", b"x")
    me.good("DELETE", "/api/files/" + first["files"][0]["id"])

    assert me.names(page=2, per_page=3, as_of=first["as_of"]) == ["f3", "f4", "f5"]
    assert me.names(page=3, per_page=3, as_of=first["as_of"]) == ["f6"]
    assert me.names(per_page=3) == ["a new one", "f1", "f2"]


def test_a_search_finds_parts_of_names_below_a_folder_whatever_their_case(me):
    me.upload("Straße/REPORT final.txt", b"x")
    me.upload("Straße/deep/report draft.txt", b"x")
    me.upload("other/report.txt", b"x")

    assert me.names(search="report") == ["REPORT final.txt", "report draft.txt", "report.txt"]
    assert me.names("Straße", search="DRAFT report") == ["report draft.txt"]
    assert me.names(search="STRASSE") == ["Straße"]
    assert me.names("other", recursive=1) == ["report.txt"]
    assert me.names(search="nothing has this") == []


def test_a_listing_can_be_sorted(me):
    for name, size in [("a", 3), ("b", 1), ("c", 2)]:
        me.upload(name, b"x" * size)

    assert me.names(sort="size") == ["b", "c", "a"]
    assert me.names(sort="modified", order="desc") == ["c", "b", "a"]


# ---------------------------------------------------------------- names


def test_a_deleted_file_is_in_the_trash_and_comes_back_with_its_history(me):
    me.upload("d/f", b"one")
    file = me.upload("d/f", b"two")
    me.good("DELETE", "/api/files/" + file["id"])
    assert me.names("d") == []
    assert me.kind("GET", f"/api/files/{file['id']}") == "not_found"
    lost = me.good("GET", "/api/files/list", path="d", deleted=1)["files"]
    assert [(each["name"], each["id"], each["version"]) for each in lost] == [("f", file["id"], 2)]
    assert lost[0]["deleted_at"]

    back = me.good("POST", "/api/files/undelete", {"file_id": file["id"]})["file"]

    assert (back["path"], back["version"]) == ("/d/f", 3)
    assert me.load(back["id"]) == me.load(file["id"]) == b"two"
    assert me.good("GET", "/api/files/list", path="d", deleted=1)["files"] == []


def test_a_folder_is_deleted_and_comes_back_with_all_that_is_in_it(me):
    data = {"t/a": b"1", "t/deep/b": b"2", "t/deep/er/c": b"3"}
    for path, content in data.items():
        me.upload(path, content)
    folder = next(f for f in me.good("GET", "/api/files/list")["files"] if f["name"] == "t")
    assert me.kind("DELETE", "/api/files/" + folder["id"]) == "not_empty"
    me.good("DELETE", "/api/files/" + folder["id"], recursive=1)
    assert me.names(recursive=1) == []

    me.good("POST", "/api/files/undelete", {"path": "t"})

    found = me.good("GET", "/api/files/list", recursive=1)["files"]
    files = {f["path"][1:]: me.load(f["id"]) for f in found if f["type"] == "file"}
    assert files == data


def test_moving_keeps_id_and_history_and_replaces_only_when_told(me):
    file = me.upload("a", b"a")
    me.upload("b", b"b")
    me.good("POST", "/api/files/mkdir", {"path": "dir"})
    assert me.kind("POST", "/api/files/move", {"file_id": file["id"], "to": "b"}) == "exists"

    moved = me.good("POST", "/api/files/move", {"path": "a", "to": "dir"})["file"]
    assert (moved["id"], moved["path"]) == (file["id"], "/dir/a")
    form_ = {"file_id": file["id"], "to": "/b", "replace": True}
    assert me.good("POST", "/api/files/move", form_)["file"]["path"] == "/b"
    assert me.load(file["id"]) == b"a"


def test_an_id_follows_the_file_through_an_editors_way_of_saving(me):
    for way in ("over", "aside"):
        old = me.upload(f"{way}.txt", b"old")
        me.upload("tmp", b"new")
        if way == "aside":
            me.good("POST", "/api/files/move", {"path": "aside.txt", "to": "aside.txt~"})
        form_ = {"path": "tmp", "to": f"{way}.txt", "replace": True}
        me.good("POST", "/api/files/move", form_)
        if way == "aside":
            backup = next(
                f for f in me.good("GET", "/api/files/list")["files"] if f["name"].endswith("~")
            )
            me.good("DELETE", "/api/files/" + backup["id"])

        assert me.load(old["id"]) == b"new"


# ---------------------------------------------------------------- who may, how much, nonsense


def test_another_users_files_are_not_there(cluster, me):
    file = me.upload("secret", b"x")["id"]
    other = Browser(cluster.app, cluster.user(f"other{file}"))

    for method, path, form_ in [
        ("GET", f"/api/files/{file}", None),
        ("GET", f"/api/files/{file}/download", None),
        ("DELETE", f"/api/files/{file}", None),
        ("POST", "/api/files/move", {"file_id": file, "to": "mine"}),
        ("POST", "/api/files/undelete", {"file_id": file}),
    ]:
        assert other.kind(method, path, form_) == "not_found", path
    assert me.load(file) == b"x"


def test_strangers_get_nothing(cluster):
    stranger = Browser(cluster.app)
    forged = Browser(cluster.app, cluster.token[:-2] + "xx")

    for who in (stranger, forged):
        assert who.kind("GET", "/api/files/list") == "unauthenticated"
        assert who.refused("f") == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("../up", "invalid"),
        ("a/../../b", "invalid"),
        ("./a", "invalid"),
        ("a\0b", "invalid"),
        ("x" * 256, "name_too_long"),
        ("d/" * 2000 + "f", "name_too_long"),
        (".versions/x", "not_permitted"),
        ("a/.versions", "not_permitted"),
    ],
)
def test_a_path_that_cannot_be_is_refused_and_leaves_nothing(me, path, kind):
    assert me.refused(path)[1] == kind
    assert me.kind("POST", "/api/files/mkdir", {"path": path}) == kind
    assert me.names() == []


def test_an_upload_over_a_folder_or_below_a_file_is_refused(me):
    me.upload("file", b"x")
    me.upload("folder/file", b"x")

    assert me.refused("file/below") == (409, "not_dir")
    assert me.refused("", filename="folder") == (409, "is_dir")


@pytest.mark.parametrize("query", [
    {"page": 0}, {"page": "x"}, {"page": -1}, {"per_page": 0}, {"per_page": 10**9},
    {"page": "9" * 30}, {"as_of": 10**15}, {"sort": "colour"}, {"order": "up"},
    {"path": "a/../b"}, {"deleted": "perhaps"},
])  # fmt: skip
def test_a_listing_asked_for_with_nonsense_says_so(me, query):
    assert me.kind("GET", "/api/files/list", **query) == "invalid"


@pytest.mark.parametrize(
    "file", ["0-1", "1-0", "x", "1", "1-" + "9" * 19, "99999-5", "1-99999", "-"]
)
def test_an_unknown_id_is_not_found(me, file):
    assert me.kind("GET", f"/api/files/{file}") == "not_found"
    assert me.kind("GET", f"/api/files/{file}/download") == "not_found"
    assert me.kind("DELETE", f"/api/files/{file}") == "not_found"


@pytest.mark.parametrize("form_", [{}, [], "x", {"path": 5}, {"path": ["a"]}, {"path": "\ud800"}])
def test_a_body_of_the_wrong_shape_is_invalid(me, form_):
    assert me.kind("POST", "/api/files/mkdir", form_) == "invalid"
    assert me.kind("POST", "/api/files/move", form_) == "invalid"
    assert me.kind("POST", "/api/files/undelete", form_) == "invalid"


def test_half_an_upload_is_none(me):
    whole = form(noise(200_000), path="half.bin")

    for body in (whole[: len(whole) // 2], whole[:-6], whole[:60], b"", b"nonsense" * 5000):
        status, answer = me.post("/api/files/upload", body)
        assert (status, answer["error"]["kind"]) == (400, "invalid")
    for kind in ("multipart/form-data", "text/plain", "", "multipart/form-data; boundary="):
        assert me.post("/api/files/upload", whole, kind)[0] == 400
    assert me.post("/api/files/upload", form(b"", None, path="no file"))[0] == 400
    assert me.names() == []


def test_too_large_a_file_and_one_of_a_wrong_type_are_refused(tmp_path):
    limits = replace(CALM, max_file_size=1000, allowed_extensions=frozenset({"txt", "pdf"}))
    with InProcessCluster(tmp_path, policy=limits) as cluster:
        me = Browser(cluster.app, cluster.token)

        assert me.refused("big.txt", b"x" * 1001) == (413, "too_large")
        assert me.refused("program.exe") == (400, "invalid")
        assert me.refused("noextension") == (400, "invalid")
        assert me.refused(".txt") == (400, "invalid")
        file = me.upload("right.PDF", b"x" * 1000)
        form_ = {"file_id": file["id"], "to": "right.exe"}
        assert me.kind("POST", "/api/files/move", form_) == "invalid"
        assert me.names() == ["right.PDF"]


def test_an_upload_beyond_the_quota_is_refused_and_leaves_no_folder(cluster, me):
    user = me.good("GET", "/api/auth/profile")["user"]
    with cluster.db.write() as cx:
        cx.run("UPDATE account SET quota = 5000 WHERE id = ?", user["id"])
    me.upload("first", b"x" * 3000)

    assert me.refused("new folder/second", b"x" * 3000) == (413, "quota")
    assert me.refused("third", b"x" * 9000) == (413, "quota")
    assert me.names() == ["first"]
    assert me.upload("first", b"y" * 5000)["size"] == 5000


def test_uploads_to_one_path_at_a_time_are_all_versions(cluster, me):
    def send(k: int) -> str:
        return str(Browser(cluster.app, me.token).upload("d/same", b"content %d" % k)["id"])

    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(send, range(6)))

    assert len(ids) == 1
    assert me.good("GET", f"/api/files/{ids.pop()}")["file"]["version"] == 6


def test_an_action_at_another_device_is_its_devices(cluster, me):
    device = me.good("POST", "/api/auth/devices", {"device_name": "phone"})["device"]["id"]
    body = form(b"x", path="from the phone")
    kind = f"multipart/form-data; boundary={BOUNDARY}"

    assert (
        me.ask("POST", "/api/files/upload", body, Content_Type=kind, X_Device_ID=device)[0] == 201
    )
    assert me.ask("POST", "/api/files/upload", body, Content_Type=kind, X_Device_ID="no")[0] == 404
    with cluster.db.read() as cx:
        row = cx.one("SELECT device FROM commit_log ORDER BY at_ns DESC LIMIT 1")
    assert row == ("phone",)
