"""The `everfold` command: help, answers, and what it says when something is wrong."""

from __future__ import annotations

import json
import stat

import pytest

from tests.harness.cluster import PASSWORD, running
from tools.__main__ import VERBS
from tools.fstab import translate


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("tools")) as started:
        started.log_in()
        yield started


def failed(done, *said, status=1):
    """Assert that a command failed with one clear line."""
    assert done.returncode == status, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("everfold: ")
    for words in said:
        assert words in done.stderr


# ---------------------------------------------------------------- help


@pytest.mark.parametrize(
    "words",
    [
        *((verb,) for verb in VERBS),
        *(("node", action) for action in ("list", "add", "fail", "repair", "drain", "remove")),
        *(("user", action) for action in ("add", "list", "passwd", "set", "invite")),
        *(("team", action) for action in ("list", "create", "add", "remove")),
    ],
)
def test_every_verb_has_help_with_an_example_and_its_exit_status(cluster, words):
    done = cluster.tool(*words, "--help")

    assert done.returncode == 0
    assert "example:" in done.stdout
    assert "EXIT STATUS" in done.stdout


@pytest.mark.parametrize("words", [(), ("dance",), ("node",), ("restore", "x", "--version", "y")])
def test_a_command_line_that_makes_no_sense_is_status_2(cluster, words):
    done = cluster.tool(*words)

    assert done.returncode == 2
    assert "usage: everfold" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- login


def test_a_login_is_kept_for_the_owner_alone_and_without_the_password(cluster):
    files = [path for path in cluster.home.rglob("*") if path.is_file()]

    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not any(PASSWORD.encode() in path.read_bytes() for path in files)


def test_logging_in_again_stays_the_same_device(cluster):
    cluster.log_in()
    cluster.log_in()

    with cluster.api() as api:
        devices = api.call("GET", "/api/auth/devices")["devices"]
    wanted = json.loads((cluster.home / "logins.json").read_text())["logins"][cluster.url]
    assert [d["id"] for d in devices].count(wanted["device_id"]) == 1
    assert len(devices) <= 3  # the embedded one, this one, the test's own


@pytest.mark.parametrize(
    ("server", "stdin", "said"),
    [
        (None, "wrong password\n", "wrong name or password"),
        (None, "", "password is empty"),
        ("http://127.0.0.1:9", PASSWORD, "cannot reach the nameserver"),
        ("ftp://somewhere", PASSWORD, "not the URL of a server"),
    ],
)
def test_a_login_that_fails_says_why_and_changes_nothing(cluster, tmp_path, server, stdin, said):
    home = tmp_path / "home"
    words = ("--server", server or cluster.url, "--username", "admin", "--password-stdin")

    done = cluster.tool("login", *words, stdin=stdin, EVERFOLD_HOME=str(home))

    failed(done, said)
    assert not home.exists()


@pytest.mark.parametrize("words", [("status",), ("node", "list"), ("user", "list"), ("mount", "d")])
def test_without_a_login_the_tools_say_to_log_in(cluster, tmp_path, words):
    failed(cluster.tool(*words, EVERFOLD_HOME=str(tmp_path)), "not logged in")


def test_a_forged_token_is_refused(cluster, tmp_path):
    home = tmp_path / "home"
    words = ("--server", cluster.url, "--username", "admin", "--password-stdin")
    cluster.tool("login", *words, stdin=PASSWORD, EVERFOLD_HOME=str(home))
    token = next((home / "tokens").iterdir())
    token.write_text(token.read_text()[:-4] + "AAAA\n")

    failed(cluster.tool("status", EVERFOLD_HOME=str(home)), "token is not valid")


def test_a_damaged_state_file_is_said_not_ignored(cluster, tmp_path):
    (tmp_path / "logins.json").write_text("{")

    failed(cluster.tool("status", EVERFOLD_HOME=str(tmp_path)), "cannot read it", "logins.json")


# ---------------------------------------------------------------- the cluster


def test_status_tells_what_other_tools_build_on(cluster):
    done = cluster.tool("status", "--json")
    status = json.loads(done.stdout)

    assert done.returncode == 0
    for name in ("blocks", "under_replicated", "missing", "corrupt", "space_used"):
        assert isinstance(status[name], int)
    assert [node["id"] for node in status["nodes"]] == ["dn1", "dn2", "dn3"]


def test_node_list_tells_what_other_tools_build_on(cluster):
    nodes = json.loads(cluster.tool("node", "list", "--json").stdout)

    assert [node["id"] for node in nodes] == ["dn1", "dn2", "dn3"]
    for node in nodes:
        assert set(node) >= {"id", "url", "state", "used", "capacity", "blocks"}
        assert node["state"] == "up"


def test_for_people_there_is_a_table(cluster):
    done = cluster.tool("node", "list")

    assert done.stdout.splitlines()[0].split() == [
        "NODE", "STATE", "USED", "CAPACITY", "BLOCKS", "TO-COPY", "URL",
    ]  # fmt: skip
    assert len(done.stdout.splitlines()) == 4


def test_an_empty_cluster_is_sound(cluster):
    done = cluster.tool("fsck", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["errors"] == []


def test_a_check_that_cannot_be_made_is_not_taken_for_damage(cluster, tmp_path):
    failed(cluster.tool("fsck", EVERFOLD_HOME=str(tmp_path)), "not logged in", status=3)


def test_a_node_is_failed_and_repaired_by_hand(cluster):
    assert cluster.tool("node", "fail", "dn2").returncode == 0
    with cluster.api() as api:
        assert {n["id"]: n["state"] for n in api.nodes()}["dn2"] == "failed"

    done = cluster.tool("node", "repair", "dn2", "--wait")

    assert done.returncode == 0, done.stderr
    with cluster.api() as api:
        assert {n["id"]: n["state"] for n in api.nodes()}["dn2"] == "up"
        assert api.status()["under_replicated"] == 0


def test_a_node_is_drained_removed_and_taken_back(cluster):
    in_use = cluster.tool("node", "remove", "dn1")
    drained = cluster.tool("node", "drain", "dn1", "--wait")
    removed = cluster.tool("node", "remove", "dn1")
    with cluster.api() as api:
        left = {n["id"]: n["state"] for n in api.nodes()}
    back = cluster.tool("node", "repair", "dn1", "--wait")

    failed(in_use, "dn1", "drain it first")
    assert (drained.returncode, removed.returncode) == (0, 0), (drained.stderr, removed.stderr)
    assert left == {"dn2": "up", "dn3": "up"}
    assert back.returncode == 0, back.stderr


@pytest.mark.parametrize("action", ["fail", "repair", "drain", "remove"])
def test_a_node_that_is_not_there_is_said(cluster, action):
    failed(cluster.tool("node", action, "dn99"), "dn99")


def test_a_repair_that_takes_too_long_ends_with_what_is_still_lacking(cluster):
    cluster.tool("node", "fail", "dn3")
    try:
        done = cluster.tool("node", "repair", "dn3", "--wait", "--timeout", "0")
        failed(done, "dn3", "blocks lack copies")
    finally:
        cluster.tool("node", "repair", "dn3", "--wait")


# ---------------------------------------------------------------- people


def test_a_user_is_invited_limited_and_shut_out(cluster):
    token = cluster.tool("user", "invite", "--days", "1").stdout.strip()
    cluster.tool("user", "add", "eve", "--password-stdin", stdin="e" * 12)

    limited = cluster.tool("user", "set", "eve", "--quota", "1G", "--disable")
    last = cluster.tool("user", "set", "admin", "--role", "user")

    users = json.loads(cluster.tool("user", "list", "--json").stdout)
    eve = next(user for user in users if user["username"] == "eve")
    assert len(token) >= 20
    assert limited.returncode == 0, limited.stderr
    assert (eve["quota"], eve["disabled"], eve["used_bytes"]) == (1 << 30, True, 0)
    failed(last, "last admin")


def test_a_user_is_made_listed_and_can_log_in_and_change_the_password(cluster, tmp_path):
    home = str(tmp_path)
    words = ("--server", cluster.url, "--username", "ann", "--password-stdin")

    added = cluster.tool("user", "add", "ann", "--quota", "5G", "--password-stdin", stdin="a" * 12)
    assert added.returncode == 0, added.stderr
    users = json.loads(cluster.tool("user", "list", "--json").stdout)
    assert {u["username"]: u["quota"] for u in users}["ann"] == 5 << 30
    assert cluster.tool("login", *words, stdin="a" * 12, EVERFOLD_HOME=home).returncode == 0

    assert cluster.tool("user", "passwd", "ann", "--password-stdin", stdin="b" * 12).returncode == 0
    failed(cluster.tool("login", *words, stdin="a" * 12, EVERFOLD_HOME=home), "wrong name")
    assert cluster.tool("login", *words, stdin="b" * 12, EVERFOLD_HOME=home).returncode == 0


def test_only_an_admin_may_administer(cluster, tmp_path):
    cluster.tool("user", "add", "bob", "--password-stdin", stdin="b" * 12)
    words = ("--server", cluster.url, "--username", "bob", "--password-stdin")
    cluster.tool("login", *words, stdin="b" * 12, EVERFOLD_HOME=str(tmp_path))

    for refused in (("node", "fail", "dn1"), ("user", "list"), ("fsck",)):
        done = cluster.tool(*refused, EVERFOLD_HOME=str(tmp_path))
        assert "only admins" in done.stderr
        assert done.returncode in (1, 3)


def test_a_team_folder_is_made_shared_and_deleted(cluster):
    cluster.tool("user", "add", "tim", "--password-stdin", stdin="t" * 12)
    made = cluster.tool("team", "create", "Plans", "tim=write")
    changed = cluster.tool("team", "add", "Plans", "tim=read")
    listed = json.loads(cluster.tool("team", "list", "--json").stdout)
    refused = cluster.tool("team", "add", "Plans", "tim=everything")
    shown = cluster.tool("team", "list").stdout
    removed = cluster.tool("team", "remove", "Plans", "tim")
    deleted = cluster.tool("team", "remove", "Plans")

    assert made.returncode == changed.returncode == removed.returncode == deleted.returncode == 0
    assert listed[0]["members"] == [{"username": "tim", "permission": "read"}]
    assert "tim=read" in shown
    assert refused.returncode == 1
    assert "tim=everything" in refused.stderr
    assert json.loads(cluster.tool("team", "list", "--json").stdout) == []


def test_a_user_that_is_there_already_is_not_made_twice(cluster):
    done = cluster.tool("user", "add", "admin", "--password-stdin", stdin="x" * 12)

    failed(done, "admin", "taken")


def test_changing_ones_own_password_keeps_the_tools_logged_in(cluster, tmp_path):
    home = {"EVERFOLD_HOME": str(tmp_path)}
    cluster.tool("user", "add", "root2", "--role", "admin", "--password-stdin", stdin="c" * 12)
    words = ("--server", cluster.url, "--username", "root2", "--password-stdin")
    cluster.tool("login", *words, stdin="c" * 12, **home)

    done = cluster.tool("user", "passwd", "root2", "--password-stdin", stdin="d" * 12, **home)

    assert done.returncode == 0, done.stderr
    assert cluster.tool("user", "list", **home).returncode == 0


# ---------------------------------------------------------------- paths and mounts


@pytest.mark.parametrize(
    "words", [("versions", "/etc/passwd"), ("restore", "/etc/passwd", "--version", "1")]
)
def test_a_path_outside_every_mount_is_said(cluster, words):
    failed(cluster.tool(*words), "not inside an Everfold folder")


def test_version_numbers_below_one_are_refused(cluster):
    failed(cluster.tool("restore", "x", "--version", "0"), "versions count from 1")


def test_unmounting_what_is_not_mounted_is_said(cluster, tmp_path):
    failed(cluster.tool("umount", str(tmp_path)), "nothing is mounted there")


def test_mounting_on_a_file_is_refused(cluster, tmp_path):
    (tmp_path / "file").touch()

    failed(cluster.tool("mount", str(tmp_path / "file")), "not a folder")


def test_a_server_that_was_not_logged_in_at_is_said(cluster):
    done = cluster.tool("status", "--server", "http://127.0.0.1:9")

    failed(done, "not logged in at http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("http://ns:5000 /mnt", "mount /mnt --server http://ns:5000"),
        (
            "http://ns:5000#team /mnt -o ro,_netdev,uid=1000 -n",
            "mount /mnt --server http://ns:5000 --space team -o ro --uid 1000",
        ),
        (
            "http://ns /m -v -t everfold -o driver=fusepy",
            "mount /m --server http://ns --driver fusepy",
        ),
    ],
)
def test_mount_8s_way_of_asking_is_understood(given, wanted):
    assert translate(given.split()) == wanted.split()
