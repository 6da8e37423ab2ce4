"""`everfold up`: starts everything, keeps it running, ends it, leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from everfold.api import Api
from everfold.errors import EverfoldError, Kind
from tests.harness import machine
from tests.harness.cluster import PASSWORD, RealCluster, running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("up")) as started:
        yield started


def states(api: Api) -> dict[str, str]:
    return {node["id"]: node["state"] for node in api.nodes()}


def test_the_ready_file_names_everything_that_runs(cluster):
    ready = cluster.ready

    assert ready["mount"] is None
    assert ready["admin"] == {"username": "admin", "password": PASSWORD}
    assert [node["id"] for node in ready["nodes"]] == ["dn1", "dn2", "dn3"]
    assert all(machine.is_alive(pid) for pid in cluster.pids())
    assert all(Path(node["root"]).is_dir() for node in ready["nodes"])
    with cluster.api() as api:
        assert states(api) == {"dn1": "up", "dn2": "up", "dn3": "up"}


def test_what_holds_a_secret_is_for_the_owner_alone(cluster):
    private = [cluster.ready_file, cluster.data / "secrets.json", cluster.data / "admin.token"]

    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600] * 3
    assert stat.S_IMODE(cluster.data.stat().st_mode) == 0o700


def test_the_admins_password_is_stored_nowhere_in_clear(cluster):
    found = [
        path
        for path in cluster.data.rglob("*")
        if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]

    assert found == []


def test_no_secret_is_on_a_command_line(cluster):
    secrets = json.loads((cluster.data / "secrets.json").read_text()).values()
    lines = [machine.command_line(pid) for pid in cluster.pids()]

    assert not any(secret in line for secret in [*secrets, PASSWORD] for line in lines)


@pytest.mark.parametrize("name", ["dn1", "nameserver"])
def test_a_child_that_dies_is_started_again_at_its_place_and_said(cluster, name):
    old, url = cluster.pid(name), cluster.url
    node_urls = {node["id"]: node["url"] for node in cluster.ready["nodes"]}

    cluster.signal(name, signal.SIGKILL)
    machine.wait_until(lambda: cluster.pid(name) != old, 20, f"{name} restarted")

    assert f"{name} ended (signal 9); starting it again" in cluster.said()
    assert cluster.url == url
    assert {node["id"]: node["url"] for node in cluster.ready["nodes"]} == node_urls
    with cluster.api() as api:
        machine.wait_until(lambda: set(states(api).values()) == {"up"}, 20, "all up again")


def test_a_second_up_on_the_same_data_is_refused_and_harms_nothing(cluster):
    done = cluster.tool("up", "--data", str(cluster.data), "--port", "0")

    assert done.returncode == 1
    assert "already in use by process" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert all(machine.is_alive(pid) for pid in cluster.pids())


def test_a_port_that_is_taken_is_said(cluster, tmp_path):
    port = cluster.url.rpartition(":")[2]

    done = cluster.tool("up", "--data", str(tmp_path / "other"), "--port", port)

    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--nodes", "0"), "NODES"),
        (("--nodes", "2", "--replicas", "3"), "3 copies need as many nodes"),
        (("--replicas", "two"), "REPLICAS"),
        (("--port", "99999"), "port"),
        (("--config", "/nonexistent/file"), "cannot read it"),
    ],
)
def test_nonsense_on_the_command_line_is_one_clear_line(cluster, tmp_path, flags, said):
    done = cluster.tool("up", "--data", str(tmp_path / "new"), *flags)

    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_datanode_can_be_added_while_all_runs(cluster):
    done = cluster.tool("node", "add", "--data", str(cluster.data))

    assert (done.returncode, done.stdout.strip()) == (0, "dn4"), done.stderr
    with cluster.api() as api:
        assert states(api)["dn4"] == "up"


def test_a_later_up_brings_everything_back_without_the_password(tmp_path):
    cluster = RealCluster(tmp_path, "--nodes", "2", EVERFOLD_ADMIN_PASSWORD="")
    try:
        cluster.start()
        first = cluster.ready
        assert cluster.stop() == 0
        pids = {int(first["nameserver"]["pid"]), *(int(node["pid"]) for node in first["nodes"])}
        assert not any(machine.is_alive(pid) for pid in pids)

        cluster.start()
        second = cluster.ready
        with Api(second["url"]) as api:
            api.login("admin", first["admin"]["password"])
            assert states(api) == {"dn1": "up", "dn2": "up"}
    finally:
        cluster.tear_down()

    assert len(first["admin"]["password"]) >= 12
    assert second["admin"] == {"username": "admin"}
    assert second["url"] == first["url"]
    assert [n["url"] for n in second["nodes"]] == [n["url"] for n in first["nodes"]]


def test_nothing_survives_a_killed_supervisor_and_the_next_up_works(tmp_path):
    with running(tmp_path, "--nodes", "1", "--replicas", "1") as cluster:
        pids = cluster.pids()
        cluster.kill()
        gone = machine.wait_gone(lambda: {p for p in pids if machine.is_alive(p)}, 15)
        assert gone == set()

        cluster.start()
        with cluster.api() as api:
            assert states(api) == {"dn1": "up"}


def test_a_child_that_hangs_does_not_keep_up_from_ending(tmp_path):
    with running(tmp_path, "--nodes", "1", "--replicas", "1") as cluster:
        pid = cluster.pid("dn1")
        os.kill(pid, signal.SIGSTOP)

        assert cluster.stop() == 0
        assert not machine.is_alive(pid)


def test_a_wrong_password_is_unauthenticated(cluster):
    with Api(cluster.url) as api, pytest.raises(EverfoldError) as caught:
        api.login("admin", "wrong password")

    assert caught.value.kind is Kind.UNAUTHENTICATED


def test_the_servers_give_way_to_the_programs_of_this_machine(cluster):
    ready = cluster.ready
    own = os.getpriority(os.PRIO_PROCESS, 0)

    for pid in (ready["nameserver"]["pid"], *(node["pid"] for node in ready["nodes"])):
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, own + 5)
