"""Share links: what they open, what they do not, and when they end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.browser import Browser, form
from tests.harness.inprocess import CALM, InProcessCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("shares"), policy=CALM) as started:
        yield started


@pytest.fixture
def me(cluster, request) -> Browser:
    """A user of one's own for every test."""
    return Browser(cluster.app, cluster.user("u" + str(abs(hash(request.node.nodeid)))))


@pytest.fixture
def stranger(cluster) -> Browser:
    return Browser(cluster.app)


def share(me: Browser, file: str, **form_: object) -> str:
    """Share a file; return the route of the link."""
    made = me.good("POST", f"/api/files/{file}/share", form_)
    assert made["share_url"].endswith(made["share_token"])
    return str(made["share_url"])


def test_a_link_lets_a_stranger_see_and_load_the_file(me, stranger):
    file = me.upload("secret folder/f.txt", b"shared")["id"]
    link = share(me, file)

    told = stranger.good("GET", link)
    status, _, data = stranger.ask("GET", link + "/download")

    assert (told["file"]["name"], told["permission"]) == ("f.txt", "read")
    assert "path" not in told["file"]
    assert (status, data) == (200, b"shared")


def test_a_link_counts_its_downloads(me, stranger):
    file = me.upload("f", b"0123456789")["id"]
    link = share(me, file)

    stranger.ask("GET", link + "/download")
    stranger.ask("GET", link + "/download", Range="bytes=0-3")
    stranger.ask("GET", link + "/download", Range="bytes=4-")
    stranger.ask("HEAD", link + "/download")

    assert [
        each["downloads"] for each in me.good("GET", f"/api/files/{file}/shares")["shares"]
    ] == [2]


@pytest.mark.parametrize("way", ["flip", "cut", "longer", "empty", "key of another"])
def test_a_forged_link_is_not_found(me, stranger, way):
    link = share(me, me.upload("f", b"x")["id"])
    other = share(me, me.upload("g", b"x")["id"])
    forged = {
        "flip": link[:-1] + ("A" if link[-1] != "A" else "B"),
        "cut": link[:-1],
        "longer": link + "A",
        "empty": "/api/files/shared/x",
        "key of another": link[:-24] + other[-24:],
    }[way]

    assert stranger.kind("GET", forged) == "not_found"
    assert stranger.kind("GET", forged + "/download") == "not_found"
    assert stranger.kind("DELETE", forged) == "not_found"


def test_a_link_ends_when_its_time_is_over(cluster, me, stranger):
    link = share(me, me.upload("f", b"x")["id"], expires_in_days=7)
    assert stranger.good("GET", link)["file"]["size"] == 1
    with cluster.db.write() as cx:
        cx.run("UPDATE share SET expires_ns = expires_ns - ?", 7 * 86_400 * 10**9)

    assert stranger.kind("GET", link) == stranger.kind("GET", link + "/download") == "stale"
    assert me.good("GET", "/api/files/shares")["shares"] == []


def test_a_revoked_link_is_not_found_and_only_its_maker_revokes_it(cluster, me, stranger):
    file = me.upload("f", b"x")["id"]
    link = share(me, file)
    key = me.good("GET", "/api/files/shares")["shares"][0]["id"]
    other = Browser(cluster.app, cluster.user("other" + file))

    assert other.kind("DELETE", f"/api/files/shares/{key}") == "not_found"
    assert other.kind("POST", f"/api/files/{file}/share", {}) == "not_found"
    assert other.kind("GET", f"/api/files/{file}/shares") == "not_found"
    assert stranger.good("GET", link)
    me.good("DELETE", f"/api/files/shares/{key}")
    assert stranger.kind("GET", link) == "not_found"
    assert me.kind("DELETE", f"/api/files/shares/{key}") == "not_found"


def test_a_link_with_a_password_opens_with_it_only_and_guessing_ends(me, stranger):
    link = share(me, me.upload("f", b"x")["id"], password="open sesame")

    assert stranger.kind("GET", link) == "unauthenticated"
    assert stranger.kind("GET", link + "/download", password="wrong") == "unauthenticated"
    assert stranger.ask("GET", link + "/download", X_Share_Password="open sesame")[2] == b"x"
    for _ in range(20):
        if stranger.kind("GET", link, password="guess") == "rate_limited":
            break
    else:
        pytest.fail("one can guess for ever")


def test_a_link_that_may_only_read_takes_no_upload(me, stranger):
    file = me.upload("f", b"old")["id"]
    link = share(me, file, permission="read")

    assert stranger.post(link + "/upload", form(b"new"))[0] == 403
    assert stranger.kind("DELETE", link) == "forbidden"
    assert me.load(file) == b"old"


def test_a_link_that_may_write_gives_its_file_a_new_version_and_touches_nothing_else(me, stranger):
    file = me.upload("d/f", b"old")["id"]
    link = share(me, file, permission="write")

    status, answer = stranger.post(link + "/upload", form(b"new", "evil", path="../../other"))

    assert (status, answer["file"]["version"]) == (201, 2)
    assert me.load(file) == b"new"
    assert me.names(recursive=1) == ["d", "f"]
    assert stranger.kind("DELETE", link) == "forbidden"


def test_a_shared_folder_is_browsed_and_written_to_but_never_left(me, stranger):
    me.upload("outside", b"x")
    inside = me.upload("shared/deep/f", b"inside")
    folder = me.good("GET", "/api/files/list")["files"][1]["id"]
    link = share(me, folder, permission="admin")

    assert [f["name"] for f in stranger.good("GET", link)["files"]] == ["deep"]
    assert [f["name"] for f in stranger.good("GET", link, path="deep")["files"]] == ["f"]
    assert stranger.ask("GET", link + "/download?path=deep/f")[2] == b"inside"
    assert stranger.kind("GET", link + "/download", path="../outside") == "invalid"
    assert stranger.kind("GET", link + "/download", path="outside") == "not_found"
    assert stranger.kind("GET", link + "/download") == "is_dir"
    assert stranger.post(link + "/upload", form(b"1", "up.txt"))[0] == 201
    assert stranger.post(link + "/upload", form(b"1", "x", path="../outside"))[0] == 400
    assert me.names("shared") == ["deep", "up.txt"]
    assert stranger.kind("GET", f"/api/files/{inside['id']}") == "unauthenticated"
    stranger.good("DELETE", link)
    assert stranger.kind("GET", link) == "not_found"


def test_a_link_follows_its_file_and_ends_with_it(me, stranger):
    file = me.upload("f", b"one")["id"]
    link = share(me, file)
    me.good("POST", "/api/files/move", {"path": "f", "to": "g"})
    me.upload("tmp", b"two")
    me.good("POST", "/api/files/move", {"path": "tmp", "to": "g", "replace": True})

    assert stranger.ask("GET", link + "/download")[2] == b"two"
    me.good("DELETE", f"/api/files/{file}")
    assert stranger.kind("GET", link + "/download") == "not_found"


def test_a_link_dies_with_its_makers_account(cluster, me, stranger):
    link = share(me, me.upload("f", b"one")["id"])
    name = me.good("GET", "/api/auth/profile")["user"]["username"]

    cluster.service.accounts.disable(name, True, "test")

    assert stranger.kind("GET", link) == "not_found"


@pytest.mark.parametrize(
    "form_",
    [
        {"permission": "own"}, {"permission": 5}, {"expires_in_days": "soon"},
        {"expires_in_days": 0}, {"expires_in_days": -1}, {"expires_in_days": True},
        {"expires_in_days": 1e300}, {"password": "short"}, {"password": ["x"]},
    ],
)  # fmt: skip
def test_a_link_asked_for_with_nonsense_is_not_made(me, form_):
    file = me.upload("f", b"x")["id"]

    assert me.kind("POST", f"/api/files/{file}/share", form_) == "invalid"
    assert me.good("GET", "/api/files/shares")["shares"] == []
