"""Team folders over HTTP: how they appear, who reaches what, how they end and come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT
from nameserver import usage
from nameserver.teams import Teams
from tests.harness.browser import Browser
from tests.harness.inprocess import CALM, InProcessCluster
from tests.harness.world import ME, eventually, find, save


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("teams"), policy=CALM) as started:
        yield started


class People(NamedTuple):
    """An owner, one who writes, one who reads, a stranger; and what the names of them are."""

    owner: Browser
    writer: Browser
    reader: Browser
    stranger: Browser
    names: tuple[str, str, str, str]


@pytest.fixture
def people(cluster, request) -> People:
    """People of one's own for every test."""
    tail = format(abs(hash(request.node.nodeid)) % 1_000_000)
    names = tuple(f"{role}{tail}" for role in ("owner", "writer", "reader", "stranger"))
    found = [Browser(cluster.app, cluster.user(name)) for name in names]
    return People(*found, names)


def team_of(people: People, path: str = "Plans") -> Any:
    """Make a team folder with a member who writes and one who reads."""
    members = [
        {"username": people.names[1], "permission": "write"},
        {"username": people.names[2], "permission": "read"},
    ]
    return people.owner.good("POST", "/api/teams", {"path": path, "members": members})["team"]


def usage_errors(cluster: InProcessCluster) -> object:
    with cluster.db.read() as cx:
        return usage.drifted(cx)


def test_a_team_folder_appears_in_the_folder_of_everybody_who_is_in_it(people):
    team = team_of(people)

    assert team["name"] == "Plans"
    assert team["path"] == "/Plans"
    assert team["permission"] == "owner"
    assert [each["permission"] for each in team["members"]] == ["read", "write"]
    for one in (people.owner, people.writer, people.reader):
        assert one.names() == ["Plans"]
        assert [each["id"] for each in one.good("GET", "/api/teams")["teams"]] == [team["id"]]
    assert people.stranger.names() == []
    assert people.stranger.good("GET", "/api/teams")["teams"] == []
    assert people.stranger.kind("GET", f"/api/teams/{team['id']}") == "not_found"


def test_what_one_member_uploads_the_others_have(people):
    team_of(people)
    told = people.writer.upload("Plans/2026/plan.txt", b"build it")

    assert told["path"] == "/Plans/2026/plan.txt"
    assert told["permission"] == "write"
    for one in (people.owner, people.reader):
        listed = one.good("GET", "/api/files/list", path="Plans/2026")["files"]
        assert [each["path"] for each in listed] == ["/Plans/2026/plan.txt"]
        assert one.load(told["id"]) == b"build it"
    assert people.stranger.kind("GET", f"/api/files/{told['id']}") == "not_found"


def test_a_member_who_reads_changes_nothing(people):
    team_of(people)
    file = people.owner.upload("Plans/a.txt", b"one")["id"]
    reader = people.reader

    assert reader.refused("Plans/b.txt") == (403, "read_only")
    assert reader.kind("DELETE", f"/api/files/{file}") == "read_only"
    assert reader.kind("POST", "/api/files/mkdir", {"path": "Plans/x"}) == "read_only"
    move = {"file_id": file, "to": "Plans/c.txt"}
    assert reader.kind("POST", "/api/files/move", move) == "read_only"
    assert reader.kind("POST", f"/api/files/{file}/versions/1/restore") == "read_only"
    assert reader.kind("POST", f"/api/files/{file}/share", {}) == "read_only"
    assert reader.kind("DELETE", f"/files/{file}") == "forbidden"
    assert reader.names("Plans") == ["a.txt"]


def test_a_name_that_is_taken_makes_another_one_of_it(people):
    people.writer.good("POST", "/api/files/mkdir", {"path": "Plans"})
    people.writer.upload("Plans/mine.txt", b"private")
    team_of(people)

    assert people.writer.names() == ["Plans", f"Plans ({people.names[0]})"]
    assert people.writer.names("Plans") == ["mine.txt"]
    assert people.owner.names("Plans") == []


def test_a_member_may_call_and_put_it_as_they_like(people):
    team = team_of(people)
    people.owner.upload("Plans/a.txt", b"one")
    people.writer.good("POST", "/api/files/mkdir", {"path": "work"})
    moved = people.writer.good("POST", "/api/files/move", {"path": "Plans", "to": "work/Ours"})

    assert moved["file"]["id"] == team["file_id"]
    assert moved["file"]["path"] == "/work/Ours"
    assert people.writer.names("work/Ours") == ["a.txt"]
    assert people.owner.names("Plans") == ["a.txt"]
    found = people.writer.good("GET", "/api/files/list", search="a.txt")["files"]
    assert [each["path"] for each in found] == ["/work/Ours/a.txt"]
    assert people.writer.good("GET", f"/api/teams/{team['id']}")["team"]["path"] == "/work/Ours"


def test_a_folder_and_its_root_are_one_thing_by_either_id(people, cluster):
    team = team_of(people)
    listed = people.writer.good("GET", "/api/files/list")["files"][0]
    found = cluster.names(people.writer.token)
    home = found.session(wire.Hello("m", "test")).space
    junction = found.lookup(wire.Lookup(home, ROOT, b"Plans")).entry.attr.ino

    told = people.writer.good("GET", f"/api/files/{home}-{junction}")["file"]
    assert told["id"] == listed["id"] == team["file_id"]
    assert told["path"] == listed["path"] == "/Plans"
    assert told["parent_id"] == listed["parent_id"] == f"{home}-1"


def test_nothing_is_moved_across_the_border_by_mistake(people):
    team_of(people)
    file = people.owner.upload("mine.txt", b"private")["id"]

    kind = people.owner.kind("POST", "/api/files/move", {"file_id": file, "to": "Plans/"})
    assert kind == "cross_space"
    assert people.owner.names() == ["Plans", "mine.txt"]
    theirs = people.owner.upload("Plans/ours.txt", b"shared")["id"]
    kind = people.owner.kind("POST", "/api/files/move", {"file_id": theirs, "to": "mine2.txt"})
    assert kind == "cross_space"


def test_who_leaves_loses_the_folder_and_nobody_else_does(people):
    team = team_of(people)
    file = people.writer.upload("Plans/a.txt", b"one")["id"]
    route = f"/api/teams/{team['id']}/members/{people.names[1]}"
    people.writer.good("DELETE", route)

    assert people.writer.names() == []
    assert people.writer.kind("GET", f"/api/files/{file}") == "not_found"
    assert people.writer.kind("GET", f"/api/teams/{team['id']}") == "not_found"
    assert people.reader.names("Plans") == ["a.txt"]
    people.reader.good("DELETE", f"/api/files/{team['file_id']}")  # the junction: leaves, too
    assert people.reader.names() == []
    assert people.owner.load(file) == b"one"
    assert people.owner.good("GET", f"/api/teams/{team['id']}")["team"]["members"] == []


def test_only_the_owner_manages_members(people):
    team = team_of(people)
    route = f"/api/teams/{team['id']}/members/"
    join = {"permission": "write"}

    assert people.writer.kind("PUT", route + people.names[3], join) == "forbidden"
    assert people.writer.kind("DELETE", route + people.names[2]) == "forbidden"
    assert people.writer.kind("DELETE", f"/api/teams/{team['id']}") == "forbidden"
    assert people.stranger.kind("PUT", route + people.names[3], join) == "not_found"
    assert people.owner.kind("DELETE", route + people.names[0]) == "not_permitted"
    assert people.owner.kind("PUT", route + "nobody-at-all", join) == "not_found"
    assert people.owner.kind("PUT", route + people.names[3], {"permission": "all"}) == "invalid"
    people.owner.good("PUT", route + people.names[3], join)
    assert people.stranger.names() == ["Plans"]


def test_a_permission_can_be_given_and_taken_at_any_time(people):
    team = team_of(people)
    route = f"/api/teams/{team['id']}/members/{people.names[2]}"
    people.owner.good("PUT", route, {"permission": "write"})
    people.reader.upload("Plans/a.txt", b"now I may")
    people.owner.good("PUT", route, {"permission": "read"})

    assert people.reader.refused("Plans/a.txt") == (403, "read_only")


def test_members_that_cannot_be_had_whole_are_not_had_at_all(people):
    members = [{"username": people.names[1]}, {"username": "nobody-at-all"}]
    form = {"path": "Plans", "members": members}

    assert people.owner.kind("POST", "/api/teams", form) == "not_found"
    assert people.owner.names() == people.writer.names() == []
    team_of(people, "Plans")
    inside = {"path": "Plans/inner", "members": []}
    assert people.owner.kind("POST", "/api/teams", inside) == "invalid"


def test_a_team_folder_that_one_member_cannot_be_let_into_never_was(people, cluster, monkeypatch):
    add = Teams._add
    added = []

    def fail_second(self, *args):
        added.append(args)
        if len(added) == 2:
            raise EverfoldError(Kind.BUSY, "somebody has just been writing there")
        add(self, *args)

    monkeypatch.setattr(Teams, "_add", fail_second)
    names = people.names[1:3]
    form = {"path": "Plans", "members": [{"username": name} for name in names]}
    assert people.owner.kind("POST", "/api/teams", form) == "busy"
    for one in (people.owner, people.writer, people.reader):
        assert one.names() == []
    assert people.owner.good("GET", "/api/teams")["teams"] == []

    people.owner.upload("Old/a.txt", b"one")
    added.clear()
    assert people.owner.kind("POST", "/api/teams", {**form, "path": "Old"}) == "busy"
    assert people.owner.names("Old") == ["a.txt"]
    assert people.writer.names() == people.reader.names() == []
    assert not usage_errors(cluster)


def test_what_the_owner_deletes_is_in_the_trash_and_comes_back(people, cluster):
    team = team_of(people)
    people.writer.upload("Plans/deep/a.txt", b"one")
    people.writer.upload("Plans/deep/a.txt", b"two")
    people.owner.good("DELETE", f"/api/teams/{team['id']}")

    for one in (people.owner, people.writer, people.reader):
        assert one.names() == []
        assert one.good("GET", "/api/teams")["teams"] == []
    (top,) = people.owner.good("GET", "/api/files/list", deleted=1, recursive=1)["files"]
    assert (top["id"], top["path"], top["type"]) == (team["file_id"], "/Plans", "directory")
    assert people.owner.kind("GET", f"/api/files/{top['id']}") == "not_found"
    assert people.owner.good("GET", f"/api/files/{top['id']}", deleted=1)["file"]["deleted_at"]
    used = people.owner.good("GET", "/storage")
    assert used["used"] == 0
    assert not usage_errors(cluster)
    back = people.owner.good("POST", "/api/files/undelete", {"file_id": top["id"]})["file"]
    assert back["path"] == "/Plans"
    file = people.owner.good("GET", "/api/files/list", path="Plans/deep")["files"][0]
    assert people.owner.load(file["id"]) == b"two"
    versions = people.owner.good("GET", f"/api/files/{file['id']}/versions")["versions"]
    assert [each["size"] for each in versions] == [3, 3]
    assert people.owner.good("GET", "/storage")["used"] == 3
    assert not usage_errors(cluster)
    assert people.writer.names() == []


def test_no_mount_puts_anything_where_a_team_folder_stands(people, cluster):
    team_of(people)
    mine = cluster.names(people.writer.token)
    home = mine.session(wire.Hello("direct", "test")).space
    junction = mine.lookup(wire.Lookup(home, ROOT, b"Plans")).entry.attr.ino
    fresh = mine.reserve(wire.Reserve(home, 2)).first
    ops = [
        wire.Make(junction, b"lost", fresh, 0o100644, 0, 0, 1),
        wire.Unlink(ROOT, b"Plans", junction, True, 1),
        wire.Make(ROOT, b"dir", fresh + 1, 0o40755, 0, 0, 1),
        wire.Rename(ROOT, b"dir", ROOT, b"Plans", 1),
        wire.Rename(ROOT, b"Plans", ROOT, b"Ours", 1),
    ]
    done = mine.commit(wire.Commit(home, "direct", 1, ops))

    refused = "not_permitted"
    assert [each.kind for each in done.results] == [refused, refused, "", refused, ""]
    assert people.writer.names() == ["Ours", "dir"]


def test_a_mount_that_does_not_cover_a_team_folder_puts_nothing_there(people, cluster):
    mount = cluster.mount(f"m{people.names[1]}", people.writer.token)
    save(mount, "before.txt", b"so that it has the write lease")
    team_of(people)
    root = find(mount, "").ino
    assert eventually(lambda: mount.core.junctions)
    plans = find(mount, "Plans").ino

    for act in (
        lambda: mount.vfs.mkdir(plans, b"x", 0o755, ME),
        lambda: mount.vfs.create(plans, b"x", 0o644, 0, ME),
        lambda: mount.vfs.rename(root, b"before.txt", plans, b"x", 0),
        lambda: mount.vfs.link(find(mount, "before.txt").ino, plans, b"x"),
        lambda: mount.vfs.rmdir(root, b"Plans"),
    ):
        with pytest.raises(EverfoldError) as refused:
            act()
        assert refused.value.kind is Kind.NOT_PERMITTED
    mount.vfs.rename(root, b"Plans", root, b"Ours", 0)
    mount.vfs.syncfs()
    assert people.writer.names() == ["Ours", "before.txt"]
    assert people.writer.names("Ours") == []


def test_who_is_removed_is_shut_out_at_every_process_within_a_second(people, cluster):
    team = team_of(people)
    file = people.owner.upload("Plans/a.txt", b"one")["id"]
    elsewhere = Browser(cluster.second_app(), people.writer.token)
    assert elsewhere.load(file) == b"one"

    people.owner.good("DELETE", f"/api/teams/{team['id']}/members/{people.names[1]}")
    assert people.writer.kind("GET", f"/api/files/{file}") == "not_found"
    gone = lambda: elsewhere.call("GET", f"/api/files/{file}")[0] == 404  # noqa: E731
    assert eventually(gone, 1.0)


def test_a_quota_is_the_owners(people, cluster):
    team_of(people)
    with cluster.db.write() as cx:
        cx.run("UPDATE account SET quota = 1000 WHERE name = ?", people.names[0])
    people.writer.upload("Plans/a", b"x" * 900)

    assert people.writer.refused("Plans/b", b"x" * 200) == (413, "quota")
    assert people.owner.refused("mine", b"x" * 200) == (413, "quota")
    people.writer.upload("mine", b"x" * 2000)


def test_figures_are_of_all_that_one_sees(people):
    team = team_of(people)
    people.owner.upload("Plans/a.txt", b"x" * 300)
    people.owner.upload("Plans/a.txt", b"y" * 200)
    people.reader.upload("mine.txt", b"z" * 50)
    told = people.reader.good("GET", "/api/files/stats")

    assert (told["total_files"], told["total_bytes"], told["total_versions"]) == (2, 250, 3)
    assert told["quota_used"] == 50
    assert [each["bytes"] for each in told["by_type"]] == [250]
    assert [each["size"] for each in told["largest"]] == [200, 50]
    (ours,) = told["teams"]
    assert (ours["team_id"], ours["path"], ours["total_bytes"]) == (team["id"], "/Plans", 200)


def test_a_link_dies_with_its_makers_right_to_write(people, cluster):
    team = team_of(people)
    file = people.writer.upload("Plans/a.txt", b"one")["id"]
    link = people.writer.good("POST", f"/api/files/{file}/share", {"permission": "write"})
    public = Browser(cluster.app)
    route = link["share_url"]

    status, _, data = public.ask("GET", route + "/download")
    assert (status, data) == (200, b"one")
    member = f"/api/teams/{team['id']}/members/{people.names[1]}"
    people.owner.good("PUT", member, {"permission": "read"})
    assert public.kind("GET", route) == "not_found"
    people.owner.good("PUT", member, {"permission": "write"})
    assert public.good("GET", route)["file"]["name"] == "a.txt"
    people.owner.good("DELETE", member)
    assert public.kind("GET", route) == "not_found"


def test_listings_of_all_spaces_stay_of_one_moment_page_by_page(people):
    team_of(people)
    for name in ("a", "c", "e"):
        people.owner.upload(f"Z{name}.txt", b"mine")
        people.owner.upload(f"Plans/{name}.txt", b"ours")
    first = people.owner.good("GET", "/api/files/list", search="txt", per_page=4)
    people.owner.upload("Plans/b.txt", b"later")
    people.owner.upload("Zb.txt", b"later")
    second = people.owner.good(
        "GET", "/api/files/list", search="txt", per_page=4, page=2, as_of=first["as_of"]
    )

    paths = [each["path"] for each in first["files"] + second["files"]]
    wanted = ["/Plans/a.txt", "/Plans/c.txt", "/Plans/e.txt", "/Za.txt", "/Zc.txt", "/Ze.txt"]
    assert paths == wanted
    assert first["total"] == second["total"] == 6
