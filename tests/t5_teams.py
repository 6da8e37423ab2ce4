"""Team folders in real mounts of several people: what they see, may and may not, and when."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from tests.harness import machine
from tests.harness.cluster import RealCluster, running
from tests.harness.folders import versions
from tests.harness.mounts import DRIVERS

pytestmark = pytest.mark.fuse
PASSWORD = "correct horse battery"
SOON_S = 20.0


class Person:
    """Somebody with an account, a login of the tools, and folders."""

    def __init__(self, cluster: RealCluster, name: str, folder: Path) -> None:
        self.cluster, self.name, self.folder = cluster, name, folder
        folder.mkdir()
        with cluster.api() as api:
            api.add_user(name, PASSWORD, "user", 0)
        words = ("login", "--server", cluster.url, "--username", name, "--password-stdin")
        self.tool(*words, stdin=PASSWORD + "\n")
        answer = requests.post(
            f"{cluster.url}/api/auth/login",
            json={"username": name, "password": PASSWORD},
            timeout=SOON_S,
        )
        self.token = answer.json()["token"]

    def tool(self, *words: str, stdin: str = "") -> None:
        done = self.cluster.tool(*words, stdin=stdin, EVERFOLD_HOME=str(self.folder / "home"))
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.said()}"

    def call(self, method: str, route: str, form: object = None) -> requests.Response:
        answer = requests.request(
            method,
            self.cluster.url + route,
            json=form,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=SOON_S,
        )
        assert answer.ok, answer.text
        return answer

    def mount(self, driver: str) -> Path:
        """Mount the home and return where."""
        path = self.folder / "m"
        cache, log = str(self.folder / "cache"), str(self.folder / "log")
        self.tool(
            "mount", str(path), "--driver", driver, "--cache-dir", cache, "--log-file", log
        )  # fmt: skip
        return path

    def said(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[RealCluster]:
    with running(tmp_path_factory.mktemp("teams")) as started:
        started.log_in()
        yield started


@pytest.fixture(scope="module", params=DRIVERS)
def people(cluster, tmp_path_factory, request) -> Iterator[list[Person]]:
    """Three people with their homes mounted."""
    folder = tmp_path_factory.mktemp(request.param)
    names = [f"{who}-{request.param}" for who in ("owner", "writer", "reader")]
    found = [Person(cluster, name, folder / name) for name in names]
    try:
        for person in found:
            person.mount(request.param)
        yield found
    finally:
        for person in found:
            path = str(person.folder / "m")
            if path in machine.fuse_mounts(person.folder):
                done = cluster.tool("umount", path, EVERFOLD_HOME=str(person.folder / "home"))
                if done.returncode:
                    machine.detach(sorted(machine.fuse_mounts(person.folder), reverse=True))


by_kernel = pytest.mark.parametrize("people", ["kernel"], indirect=True)


class Team(NamedTuple):
    """A team folder of the three, and where each of them has it."""

    owner: Person
    id: int
    name: str
    places: list[Path]

    def member(self, person: Person) -> str:
        return f"/api/teams/{self.id}/members/{person.name}"


@pytest.fixture
def team(people) -> Iterator[Team]:
    """A team folder of one's own for every test."""
    owner, writer, reader = people
    name = f"Plans {secrets.token_hex(2)}"
    members = [
        {"username": writer.name, "permission": "write"},
        {"username": reader.name, "permission": "read"},
    ]
    made = owner.call("POST", "/api/teams", {"path": name, "members": members}).json()["team"]
    for person in people:
        covered(person, name)
    yield Team(owner, made["id"], name, [person.folder / "m" / name for person in people])
    owner.call("DELETE", f"/api/teams/{made['id']}")
    for person in people:
        soon(lambda mine=person: name not in os.listdir(mine.folder / "m"), "the folder is gone")


def covered(person: Person, name: str) -> None:
    """Wait until a team folder is mounted."""
    place = str(person.folder / "m" / name)
    soon(lambda: place in machine.fuse_mounts(person.folder), f"{place} is mounted")


def soon(is_so: Callable[[], bool], what: str) -> None:
    machine.wait_until(is_so, SOON_S, what)


def refusal(act: Callable[[], object]) -> int | None:
    """Return the errno that an attempt gets."""
    try:
        act()
    except OSError as err:
        return err.errno
    return None


def has(path: Path, data: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes() == data
    return False


def test_what_one_writes_the_others_see_and_who_only_reads_changes_nothing(team):
    owner, writer, reader = team.places
    (writer / "plan.txt").write_bytes(b"build it")
    soon(lambda: has(owner / "plan.txt", b"build it"), "the owner sees it")
    soon(lambda: has(reader / "plan.txt", b"build it"), "the reader sees it")
    (owner / "plan.txt").write_bytes(b"build it twice")
    soon(lambda: has(writer / "plan.txt", b"build it twice"), "the writer sees it")

    for act in (
        lambda: (reader / "mine").touch(),
        lambda: (reader / "plan.txt").open("ab"),
        lambda: (reader / "plan.txt").unlink(),
        lambda: (reader / "plan.txt").rename(reader / "other"),
        lambda: (reader / "folder").mkdir(),
        lambda: os.chmod(reader / "plan.txt", 0o600),
    ):
        assert refusal(act) == errno.EROFS
    assert os.stat(writer).st_dev != os.stat(writer.parent).st_dev
    (writer.parent / "private").touch()
    across = refusal(lambda: (writer.parent / "private").rename(writer / "private"))
    assert across == errno.EXDEV
    assert refusal(lambda: writer.rmdir()) == errno.EBUSY
    assert sorted(os.listdir(owner)) == ["plan.txt"]


@by_kernel
def test_a_permission_that_changes_while_it_is_mounted_is_followed(people, team):
    owner, _, reader = people
    place = team.places[2]
    route = team.member(reader)
    assert refusal(lambda: (place / "a").touch()) == errno.EROFS

    owner.call("PUT", route, {"permission": "write"})
    soon(lambda: refusal(lambda: (place / "a").touch()) is None, "the reader may write")
    soon((team.places[0] / "a").exists, "the owner sees it")
    owner.call("PUT", route, {"permission": "read"})
    soon(lambda: refusal(lambda: (place / "b").touch()) == errno.EROFS, "the reader may not write")


@by_kernel
def test_what_could_not_be_sent_before_a_removal_is_kept_and_sent_after_a_return(
    people, team, cluster
):
    owner, writer, _ = people
    ours, place, _ = team.places
    (place / "sent").write_bytes(b"sent")
    soon(lambda: has(ours / "sent", b"sent"), "the first file")
    nodes = [node["id"] for node in cluster.ready["nodes"]]
    for node in nodes:
        cluster.signal(node, signal.SIGSTOP)
    try:
        (place / "unsent").write_bytes(b"unsent")
        owner.call("DELETE", team.member(writer))
        soon(lambda: not place.exists(), "the folder is gone")
        # What waits for the nodes gives them their time first.
        machine.wait_until(lambda: "not sent stay in" in writer.said(), 60, "the log tells")
    finally:
        for node in nodes:
            cluster.signal(node, signal.SIGCONT)
    assert not has(ours / "unsent", b"unsent")

    owner.call("PUT", team.member(writer), {"permission": "write"})
    soon(lambda: has(ours / "unsent", b"unsent"), "it is sent now")


@by_kernel
def test_a_folder_that_is_moved_elsewhere_is_mounted_there(people, team):
    writer = people[1]
    (team.places[0] / "a").write_bytes(b"one")
    writer.call("POST", "/api/files/mkdir", {"path": "work"})
    writer.call("POST", "/api/files/move", {"path": team.name, "to": "work/Ours"})
    covered(writer, "work/Ours")

    soon(lambda: has(writer.folder / "m" / "work" / "Ours" / "a", b"one"), "it is there")
    assert not team.places[1].exists()


def test_a_folder_that_is_there_is_shared_with_all_its_versions(people):
    owner, writer, _ = people
    name = f"Old {secrets.token_hex(2)}"
    ours, theirs = (person.folder / "m" / name for person in (owner, writer))
    (ours / "deep").mkdir(parents=True)
    for data in (b"one", b"two"):
        (ours / "deep" / "a").write_bytes(data)
    large = os.urandom(9_000_000)
    (ours / "large").write_bytes(large)
    members = [{"username": writer.name, "permission": "write"}]
    team = owner.call("POST", "/api/teams", {"path": name, "members": members}).json()["team"]
    for person in (owner, writer):
        covered(person, name)

    assert (theirs / "large").read_bytes() == large
    for place in (ours, theirs):
        assert sorted(os.listdir(place)) == ["deep", "large"]
        assert versions(place / "deep" / "a") == [b"one", b"two"]
    (theirs / "deep" / "a").write_bytes(b"three")
    soon(lambda: has(ours / "deep" / "a", b"three"), "the owner sees it")
    owner.call("DELETE", f"/api/teams/{team['id']}")
    soon(lambda: not ours.exists(), "it is gone")


@by_kernel
def test_a_killed_mount_takes_its_team_folders_with_it_and_the_next_has_them(people, team):
    writer = people[1]
    drivers = {pid: machine.command_line(pid) for pid in machine.children()}
    (parent,) = [
        pid for pid, line in drivers.items() if f" -m mount {writer.folder}/m --server" in line
    ]
    os.kill(parent, signal.SIGKILL)
    child = f" -m mount {team.places[1]} "
    soon(
        lambda: all(child not in machine.command_line(pid) for pid in machine.children()),
        "the child ends",
    )

    writer.mount("kernel")
    covered(writer, team.name)
    (team.places[1] / "back").write_bytes(b"again")
    soon(lambda: has(team.places[0] / "back", b"again"), "the owner sees it")
    writer.tool("umount", str(writer.folder / "m"))
