"""The nameserver over HTTP: routes, errors, and the real server process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from everfold import wire
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport
from everfold.model import ROOT, MountId, NodeId, Seq
from everfold.nameclient import NameClient
from everfold.tokens import Signer
from nameserver.db import Database
from nameserver.policy import Policy
from tests.harness import machine
from tests.harness.service import KEYS, PASSWORD, Desk
from tests.harness.web import Web

ROOT_FOLDER = Path(__file__).resolve().parent.parent
Json = dict[str, Any]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    db = Database(f"sqlite:///{tmp_path}/ns.db")
    desk = Desk(db, Policy(bcrypt_rounds=4))
    yield Web(desk)
    desk.service.stop()
    db.close()


# ---------------------------------------------------------------- people


def test_a_feed_that_waited_tells_nothing_to_a_device_revoked_meanwhile(web: Web, monkeypatch):
    desk, device = web.desk, web.login("ann", device_name="laptop")["device"]["id"]
    client = web.client()
    space = client.session(wire.Hello(MountId("m"), "test")).space
    poll = desk.service.feeds.poll

    def wait(ask: wire.FeedPoll) -> wire.Feed:
        desk.service.devices.revoke(desk.ann.id, device, "ann")
        desk.clock.move(1.0)
        return poll(ask)

    monkeypatch.setattr(desk.service.feeds, "poll", wait)
    with pytest.raises(EverfoldError) as refused:
        client.feed(wire.FeedPoll(space, MountId("m"), Seq(0), 0.0))

    assert refused.value.kind is Kind.UNAUTHENTICATED


def test_a_login_gives_a_token_that_opens_the_profile_and_the_hot_calls(web: Web) -> None:
    answer = web.login("ann", device_name="laptop", device_type="mount")

    status, profile, _ = web.call("GET", "/api/auth/profile")
    session = web.client().session(wire.Hello(MountId("m"), "test"))

    assert (answer["user"]["username"], answer["device"]["name"]) == ("ann", "laptop")
    assert answer["expires_in"] > 0
    assert (status, profile["user"]["username"]) == (200, "ann")
    assert (session.user, session.device) == ("ann", "laptop")


def test_devices_are_listed_and_a_revoked_one_is_out(web: Web) -> None:
    web.login("ann", device_id="d1", device_name="laptop")
    status, made, _ = web.call("POST", "/api/auth/devices", {"name": "phone"})
    phone = made["device"]["id"]

    _, listed, _ = web.call("GET", "/api/auth/devices")
    gone, _, _ = web.call("DELETE", "/api/auth/devices/d1")
    web.desk.clock.move(1.0)
    after, error, _ = web.call("GET", "/api/auth/devices")

    assert status == 201
    assert {device["id"] for device in listed["devices"]} == {"d1", phone}
    assert (gone, after, error["error"]["kind"]) == (200, 401, "unauthenticated")


def test_a_changed_password_needs_the_old_one_and_ends_the_tokens(web: Web) -> None:
    web.login("ann")

    bad, _, _ = web.call(
        "PUT", "/api/auth/profile", {"current_password": "wrong one", "new_password": "new one!"}
    )
    good, _, _ = web.call(
        "PUT", "/api/auth/profile", {"current_password": PASSWORD, "new_password": "new one!"}
    )
    web.desk.clock.move(1.0)
    after, _, _ = web.call("GET", "/api/auth/profile")

    assert (bad, good, after) == (401, 200, 401)
    web.login("ann", "new one!")


def test_registration_follows_the_policy(tmp_path: Path, web: Web) -> None:
    form = {"username": "bob", "password": "correct horse", "email": "bob@example.org"}
    closed, error, _ = web.call("POST", "/api/auth/register", form)
    db = Database(f"sqlite:///{tmp_path}/open.db")
    opened = Web(Desk(db, Policy(bcrypt_rounds=4, registration="open")))
    status, made, _ = opened.call("POST", "/api/auth/register", form)
    db.close()

    assert (closed, error["error"]["kind"]) == (403, "forbidden")
    assert (status, made["user"]["role"]) == (201, "user")


def test_basic_authentication_is_accepted(web: Web) -> None:
    basic = requests.auth._basic_auth_str("root", PASSWORD)

    status, nodes, _ = web.call("GET", "/admin/system/nodes", Authorization=basic)

    assert status == 200
    assert [node["id"] for node in nodes] == ["dn1", "dn2", "dn3"]
    assert set(nodes[0]) >= {"id", "url", "state", "used", "capacity", "blocks", "zone"}


# ---------------------------------------------------------------- admins

ADMIN_ROUTES = [
    ("POST", "/register"),
    ("GET", "/api/admin/users"),
    ("PUT", "/api/admin/users/ann/password"),
    ("GET", "/admin/system"),
    ("GET", "/admin/system/nodes"),
    ("POST", "/admin/system/fail-node/dn1"),
    ("POST", "/admin/system/repair-node/dn1"),
    ("POST", "/admin/fsck"),
]


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_only_admins_get_in(web: Web, method: str, path: str) -> None:
    nobody, _, back = web.call(method, path, {})
    web.login("ann")
    user, error, _ = web.call(method, path, {})

    assert (nobody, user, error["error"]["kind"]) == (401, 403, "forbidden")
    assert "www-authenticate" in back


def test_an_admin_makes_users_and_sets_their_passwords(web: Web) -> None:
    web.login("root")

    made, _, _ = web.call("POST", "/register", {"username": "bob", "password": "correct horse"})
    again, error, _ = web.call("POST", "/register", {"username": "bob", "password": "another 1"})
    put, _, _ = web.call("PUT", "/api/admin/users/bob/password", {"password": "fresh horse"})
    none, _, _ = web.call("PUT", "/api/admin/users/rob/password", {"password": "fresh horse"})
    _, listed, _ = web.call("GET", "/api/admin/users")

    assert (made, again, error["error"]["kind"], put, none) == (201, 409, "exists", 200, 404)
    assert [user["username"] for user in listed["users"]] == ["ann", "bob", "root"]
    assert "password" not in json.dumps(listed)
    web.login("bob", "fresh horse")


def test_a_node_is_failed_and_repaired_by_hand(web: Web) -> None:
    web.login("root")

    states = [
        web.call("POST", f"/admin/system/{what}-node/dn1")[1]["state"]
        for what in ("fail", "repair")
    ]
    status, error, _ = web.call("POST", "/admin/system/fail-node/dn9")

    assert states == ["failed", "up"]
    assert (status, error["error"]["kind"]) == (404, "not_found")


def test_status_tells_the_figures_that_tools_rely_on(web: Web) -> None:
    web.login("ann")

    status, told, _ = web.call("GET", "/status")

    expected = {"blocks", "under_replicated", "missing", "corrupt", "nodes", "space_used"}
    assert status == 200
    assert set(told) >= expected


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/api/auth/login", b"{", 400, "invalid"),
        ("POST", "/api/auth/login", b"[1]", 400, "invalid"),
        ("POST", "/api/auth/login", b'{"username": 3, "password": "x"}', 400, "invalid"),
        ("POST", "/api/auth/login", b'{"username": "ann"}', 400, "invalid"),
        ("POST", "/api/auth/login", b'{"username": "a\\u0000", "password": "x"}', 400, "invalid"),
        ("POST", "/api/auth/login", b'{"username": "\\ud800", "password": "x"}', 400, "invalid"),
        ("GET", "/api/auth/login", b"", 405, "unsupported"),
        ("GET", "/nowhere", b"", 404, "not_found"),
        ("POST", "/v1/lookup", b"", 401, "unauthenticated"),
        ("POST", "/v1/heartbeat", b"", 401, "unauthenticated"),
    ],
)
def test_nonsense_gets_a_clear_answer(
    web: Web, method: str, path: str, body: bytes, status: int, kind: str
) -> None:
    got, answer, _ = web.call(method, path, body)

    assert (got, answer["error"]["kind"]) == (status, kind)
    assert answer["error"]["message"]


@pytest.mark.parametrize("verb", [*sorted(set(wire.CALLS) - {"heartbeat"}), "nonsense"])
def test_a_body_that_is_no_request_is_invalid(web: Web, verb: str) -> None:
    web.login("ann")

    for body in (b"", b"\xc1", b"\x91\xa1x", b'{"a": 1}'):
        status, answer, _ = web.call("POST", f"/v1/{verb}", body)
        expected = (404, "not_found") if verb == "nonsense" else (400, "invalid")
        assert (status, answer["error"]["kind"]) == expected


def test_the_error_that_the_service_raises_is_the_error_that_the_client_catches(web: Web) -> None:
    web.login("ann")

    with pytest.RaisesExc(EverfoldError, check=lambda err: err.kind is Kind.NOT_FOUND):
        web.client().lookup(wire.Lookup(77, ROOT, b"a"))  # type: ignore[arg-type]


@pytest.mark.expects_warnings
def test_a_defect_is_a_500_that_tells_nothing_of_the_inside(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.login("ann")
    monkeypatch.setattr(web.desk.service.status, "figures", lambda: 1 // 0)

    status, answer, _ = web.call("GET", "/status")

    assert (status, answer["error"]["kind"]) == (500, "internal")
    assert "division" not in json.dumps(answer)


def test_a_request_id_is_kept_and_one_is_made(web: Web) -> None:
    _, _, kept = web.call("GET", "/healthz", **{wire.REQUEST_ID: "abc-1"})
    _, _, made = web.call("GET", "/readyz")

    assert kept["x-request-id"] == "abc-1"
    assert len(made["x-request-id"]) == 12


# ---------------------------------------------------------------- the server process


class Process:
    """`python -m nameserver`, really."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ready_file = folder / "ready.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> Json:
        self.ready_file.unlink(missing_ok=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT_FOLDER), "CLUSTER_SECRET": KEYS.cluster_secret}
        env.pop("EVERFOLD_ADMIN_PASSWORD", None)
        line = [sys.executable, "-m", "nameserver", "--data", str(self.folder / "data"), "--port",
                str(self.port), "--ready-file", str(self.ready_file)]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(line, env=env, stdout=log, stderr=log, cwd=self.folder)
        process = self.process
        machine.wait_until(
            lambda: self.ready_file.exists() or process.poll() is not None, 20, "ready"
        )
        told: Json = json.loads(self.ready_file.read_text())
        self.port = int(told["url"].rsplit(":", 1)[1])
        return told

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(10)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path)
    yield running
    if running.process is not None and running.process.poll() is None:
        running.end(signal.SIGKILL)


def sign_in(told: Json, admin: Json, connections: int = 16) -> NameClient:
    answer = requests.post(f"{told['url']}/api/auth/login", json=admin, timeout=5)
    assert answer.status_code == 200, answer.text
    return NameClient(HttpTransport(told["url"], connections), answer.json()["token"])


def test_a_killed_server_comes_back_on_its_port_with_everything(process: Process) -> None:
    first = process.start()
    client = sign_in(first, first["admin"])
    space = client.session(wire.Hello(MountId("m"), "test")).space
    client.reserve(wire.Reserve(space, 10))

    process.end(signal.SIGKILL)
    again = process.start()

    assert again["admin"] is None  # told once, and kept nowhere
    assert again["url"] == first["url"]
    assert client.reserve(wire.Reserve(space, 1)).first == 12  # the old token is still good
    secrets = process.folder / "data" / "secrets.json"
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert process.ready_file.stat().st_mode & 0o777 == 0o600
    kept = b"".join(p.read_bytes() for p in process.folder.rglob("*") if p.is_file())
    assert first["admin"]["password"].encode() not in kept


def test_parked_polls_neither_slow_others_nor_hold_up_the_end(process: Process) -> None:
    told = process.start()
    client = sign_in(told, told["admin"], connections=80)
    space = client.session(wire.Hello(MountId("m"), "test")).space
    poll = wire.FeedPoll(space, MountId("m"), Seq(0), 20.0)
    current = client.feed(wire.FeedPoll(space, MountId("m"), Seq(0), 0.0))
    poll = wire.FeedPoll(space, MountId("m"), current.seq, 20.0, current.locks, current.nodes)

    with ThreadPoolExecutor(60) as pool:
        polls = [pool.submit(client.feed, poll) for _ in range(60)]
        took = []
        for _ in range(50):
            began = time.perf_counter()
            client.lookup(wire.Lookup(space, ROOT, b"a"))
            took.append(time.perf_counter() - began)
        assert not any(each.done() for each in polls)
        began = time.perf_counter()
        status = process.end()
        ended = time.perf_counter() - began
        answers = [each.result() for each in polls]

    assert status == 0
    assert ended < 4.0
    assert all(answer.seq == current.seq for answer in answers)
    assert sorted(took)[25] < 0.02


def test_a_heartbeat_over_http_makes_a_node_known(process: Process) -> None:
    told = process.start()
    token = Signer(KEYS.cluster_secret, SystemClock()).mint("node", 60, sub="dn1")
    beat = wire.Heartbeat(
        node=NodeId("dn1"), url="http://127.0.0.1:1", zone="", boot="1", capacity=100, used=0,
        free=100, blocks=0,
    )  # fmt: skip
    status, _, body = HttpTransport(told["url"]).request(
        "POST", "/v1/heartbeat", headers={"Authorization": f"Bearer {token}"},
        body=wire.encode(beat), timeout_s=5,
    )  # fmt: skip

    assert status == 200
    assert wire.decode(body, wire.BeatReply).state.value == "up"


@pytest.mark.parametrize(
    "words",
    [["--replicas", "two"], ["--min-replicas", "3"], ["--database-url", "mysql://x"]],
)
def test_bad_configuration_is_refused_with_the_setting_named(
    tmp_path: Path, words: list[str]
) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT_FOLDER)}
    line = [sys.executable, "-m", "nameserver", "--data", str(tmp_path), "--port", "0", *words]

    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=20)

    assert done.returncode == 2
    assert words[0][2:].replace("-", "_").upper() in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_so(process: Process, tmp_path: Path) -> None:
    process.start()
    env = {**os.environ, "PYTHONPATH": str(ROOT_FOLDER)}
    line = [sys.executable, "-m", "nameserver", "--data", str(tmp_path / "other"), "--port"]

    done = subprocess.run(
        [*line, str(process.port)], env=env, capture_output=True, text=True, timeout=20
    )

    assert done.returncode == 1
    assert str(process.port) in done.stderr
    assert "Traceback" not in done.stderr


def test_many_callers_at_once_all_get_their_own_numbers(process: Process) -> None:
    told = process.start()
    client = sign_in(told, told["admin"], connections=16)
    space = client.session(wire.Hello(MountId("m"), "test")).space
    barrier = threading.Barrier(16)

    def reserve(_: int) -> list[int]:
        barrier.wait()
        return [client.reserve(wire.Reserve(space, 1)).first for _ in range(10)]

    with ThreadPoolExecutor(16) as pool:
        numbers = [n for some in pool.map(reserve, range(16)) for n in some]

    assert len(set(numbers)) == 160
