"""Sharing a folder that is there: what comes along, what stays, and what happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nameserver import usage
from nameserver.conversion import Conversion
from tests.harness.browser import Browser
from tests.harness.inprocess import CALM, InProcessCluster
from tests.harness.world import ME, eventually, find, load, save


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("sharing"), policy=CALM) as started:
        yield started


@pytest.fixture
def two(cluster, request) -> tuple[Browser, Browser, str]:
    """An owner, another, and the other's name."""
    return pair(cluster, str(abs(hash(request.node.nodeid)) % 1_000_000))


def pair(cluster: InProcessCluster, tail: str) -> tuple[Browser, Browser, str]:
    owner = Browser(cluster.app, cluster.user("owner" + tail))
    other = Browser(cluster.app, cluster.user("other" + tail))
    return owner, other, "other" + tail


def share(owner: Browser, other: str, path: str = "Plans") -> dict:
    members = [{"username": other, "permission": "write"}]
    return owner.good("POST", "/api/teams", {"path": path, "members": members})["team"]


def errors(cluster: InProcessCluster) -> list[object]:
    with cluster.db.read() as cx:
        drifted = usage.drifted(cx)
    return [*cluster.service.fsck.run()["errors"], *drifted]


def contents(one: Browser, file: str) -> list[bytes]:
    """Return the contents of all versions of a file, the oldest first."""
    versions = one.good("GET", f"/api/files/{file}/versions")["versions"]
    numbers = sorted(each["version"] for each in versions)
    return [one.ask("GET", f"/api/files/{file}/versions/{n}/download")[2] for n in numbers]


def test_a_folder_that_is_shared_keeps_its_files_and_their_history(tmp_path, database_url):
    with InProcessCluster(tmp_path, policy=CALM, database=database_url) as cluster:
        owner, other, name = pair(cluster, "")
        for data in (b"one", b"two", b"three"):
            before = owner.upload("work/Plans/deep/a.txt", data)["id"]
        lost = owner.upload("work/Plans/lost.txt", b"lost")["id"]
        owner.good("DELETE", f"/api/files/{lost}")
        moved = owner.upload("work/Plans/moved.txt", b"while it was there")["id"]
        owner.good("POST", "/api/files/move", {"file_id": moved, "to": "moved.txt"})
        owner.upload("moved.txt", b"private since")
        owner.upload("work/beside.txt", b"mine")
        used = owner.good("GET", "/storage")["used"]
        team = share(owner, name, "work/Plans")

        assert team["path"] == "/work/Plans"
        assert other.names("Plans") == ["deep"]
        assert other.names("Plans/deep") == ["a.txt"]
        assert owner.names("work") == ["Plans", "beside.txt"]
        file = other.good("GET", "/api/files/list", path="Plans/deep")["files"][0]["id"]
        assert owner.good("GET", f"/api/files/{before}")["file"]["id"] == file
        trash = owner.good("GET", "/api/files/list", deleted=1, recursive=1)["files"]
        assert {each["name"] for each in trash if each["team_id"]} == {"lost.txt", "moved.txt"}
        assert contents(other, file) == [b"one", b"two", b"three"]
        trash = other.good("GET", "/api/files/list", path="Plans", deleted=1)["files"]
        assert "lost.txt" in [each["name"] for each in trash]
        back = other.good("POST", "/api/files/undelete", {"path": "Plans/lost.txt"})["file"]
        assert other.load(back["id"]) == b"lost"
        gone = f"{team['id']}-{moved.split('-')[1]}"
        assert b"private since" not in contents(other, gone)
        assert owner.load(moved) == b"private since"
        assert owner.good("GET", "/storage")["used"] == used + len(b"lost")
        assert errors(cluster) == []
        other.upload("Plans/deep/a.txt", b"four")
        assert contents(owner, file)[-1] == b"four"


def test_changes_that_a_mount_has_not_sent_are_shared_too(cluster, two):
    owner, other, name = two
    mount = cluster.mount("m" + name, owner.token)
    mount.vfs.mkdir(find(mount, "").ino, b"Plans", 0o755, ME)
    for number in range(50):
        save(mount, f"Plans/{number}.txt", b"%d" % number)
    mount.vfs.link(find(mount, "Plans/1.txt").ino, find(mount, "").ino, b"outside.txt")
    share(owner, name)

    assert len(other.names("Plans", per_page=100)) == 50
    file = other.good("GET", "/api/files/list", path="Plans", search="49.txt")["files"][0]
    assert other.load(file["id"]) == b"49"
    assert load(mount, "outside.txt") == b"1"
    plans = find(mount, "Plans").ino
    assert eventually(lambda: plans in mount.core.junctions)
    assert eventually(lambda: not mount.core.listing(plans)[1])
    assert errors(cluster) == []


def test_what_is_saved_while_bytes_are_copied_comes_along(cluster, two, monkeypatch):
    owner, other, name = two
    owner.upload("Plans/a.txt", b"before")
    copy = Conversion._copy_blocks
    turns = []

    def slow(self, *args):
        copy(self, *args)
        turns.append(args)
        if len(turns) == 1:
            owner.upload("Plans/b.txt", b"meanwhile")

    monkeypatch.setattr(Conversion, "_copy_blocks", slow)
    share(owner, name)

    assert len(turns) == 2
    assert other.names("Plans") == ["a.txt", "b.txt"]


def test_a_conversion_that_fails_has_changed_nothing(cluster, two):
    owner, _, name = two
    file = owner.upload("Plans/a.txt", b"one")["id"]
    who = cluster.service.gate.by_token(owner.token)
    me = cluster.service.files.visitor(who)

    def fail(*args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cluster.service.conversion.share(me, [b"Plans"], fail)
    assert owner.load(file) == b"one"
    assert owner.good("GET", "/api/teams")["teams"] == []
    assert errors(cluster) == []
    share(owner, name)
    assert owner.names("Plans") == ["a.txt"]


def test_a_link_into_a_folder_leads_into_the_team_folder_afterwards(cluster, two):
    owner, _, name = two
    file = owner.upload("Plans/a.txt", b"one")["id"]
    route = owner.good("POST", f"/api/files/{file}/share", {})["share_url"]
    share(owner, name)

    assert Browser(cluster.app).ask("GET", route + "/download")[2] == b"one"


def test_what_is_no_folder_or_has_a_team_folder_in_it_is_not_shared(cluster, two):
    owner, _, name = two
    owner.upload("file", b"one")
    owner.upload("Plans/a.txt", b"one")
    share(owner, name, "Plans/inner")
    form = {"members": [{"username": name, "permission": "read"}]}

    assert owner.kind("POST", "/api/teams", {"path": "file", **form}) == "not_dir"
    assert owner.kind("POST", "/api/teams", {"path": "Plans", **form}) == "invalid"
    assert owner.kind("POST", "/api/teams", {"path": "Plans/inner", **form}) == "invalid"
