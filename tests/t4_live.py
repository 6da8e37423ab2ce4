"""Socket.IO with real processes: a mount saves, and all who listen hear of it, wherever they do."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.harness import machine
from tests.harness.authority import Authority
from tests.harness.cluster import ROOT
from tests.harness.listeners import WAIT_S, Listener
from tests.harness.nameservers import PASSWORD, Nameserver, running, with_nodes

COUNT = 4
TRANSPORTS = ("websocket", "polling")


@pytest.fixture(scope="module")
def servers(bare_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Nameserver]]:
    """Four processes on one database, and two datanodes."""
    with with_nodes(tmp_path_factory.mktemp("servers"), COUNT, bare_url) as found:
        yield found


@pytest.fixture(scope="module")
def token(servers: list[Nameserver]) -> str:
    with servers[0].api() as api:
        return api.token


@pytest.fixture
def top(servers: list[Nameserver], token: str, tmp_path: Path) -> Iterator[Path]:
    """A mount that talks to the first of them."""
    point = tmp_path / "mounted"
    point.mkdir()
    (tmp_path / "token").write_text(token)
    line = [
        sys.executable, "-m", "mount", str(point), "--server", servers[0].url, "--foreground",
        "--token-file", str(tmp_path / "token"), "--cache-dir", str(tmp_path / "cache"),
        "--ready-file", str(tmp_path / "ready"), "--log-file", str(tmp_path / "log"),
    ]  # fmt: skip
    process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        machine.wait_until((tmp_path / "ready").exists, WAIT_S, "the mount")
        yield point
    finally:
        process.terminate()
        process.wait(WAIT_S)


@contextlib.contextmanager
def listening(urls: list[str], token: str, **how: Any) -> Iterator[list[Listener]]:
    """Listen at each of these, over each transport."""
    made: list[Listener] = []
    try:
        for at in urls:
            for transport in TRANSPORTS:
                made.append(Listener(at, token, (transport,), **how))
                made[-1].join()
        yield made
    finally:
        for each in made:
            each.close()


@pytest.mark.fuse
def test_a_save_in_a_mount_is_told_at_every_process(servers, token, top):
    names = [f"f{k}" for k in range(10)]
    with listening([server.url for server in servers], token) as listeners:
        for name in names:
            (top / name).write_text("saved " + name)
        for each in listeners:
            machine.wait_until(
                lambda at=each: at.named("file_uploaded")[-1:] and _last(at) == names[-1],
                WAIT_S, "the last save",
            )  # fmt: skip

    for each in listeners:
        assert [event["name"] for event in each.named("file_uploaded")] == names
        assert len(set(each.ids)) == len(each.ids)
    assert len(listeners) == 2 * COUNT


def _last(listener: Listener) -> str:
    return str(listener.named("file_uploaded")[-1]["name"])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_loses_its_process_goes_on_at_another(servers, bare_url, token, tmp_path, transport):
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"

    def make(*names: str) -> None:
        for name in names:
            route = f"{servers[1].url}/api/files/mkdir"
            answer = session.post(route, json={"path": f"{transport}/{name}"}, timeout=WAIT_S)
            assert answer.status_code == 201, answer.text

    with running(tmp_path, 1, DATABASE_URL=bare_url) as (doomed,):
        client = Listener(doomed.url, token, (transport,))
        client.join()
        make("a", "b")
        client.hears(3)
        doomed.kill()
    make("c", "d")
    assert client.has_ended.wait(WAIT_S)
    again = Listener(servers[2].url, token, (transport,))
    again.join(since=client.ids[-1])
    make("e")
    again.hears(3)

    assert [event["name"] for event in client.events] == [transport, "a", "b"]
    assert [event["name"] for event in again.events] == ["c", "d", "e"]
    again.close()


def test_workers_of_one_address_are_as_one_under_tls_too(tmp_path):
    authority = Authority(tmp_path)
    chain, key = authority.issue("ns", "127.0.0.1")
    flags = ("--workers", "3", "--tls-cert", str(chain), "--tls-key", str(key))
    every = [("websocket",), ("polling",), ("polling", "websocket")] * 2
    with contextlib.ExitStack() as stack:
        (server,) = stack.enter_context(running(tmp_path, 1, *flags))
        session = trusting(authority)
        form = {"username": "admin", "password": PASSWORD}
        answer = session.post(f"{server.url}/api/auth/login", json=form, timeout=WAIT_S)
        token = answer.json()["token"]
        clients = []
        for transports in every:
            how = {"http_session": trusting(authority)}
            clients.append(Listener(server.url, token, transports, client=how))
            stack.callback(clients[-1].close)
            clients[-1].join()

        session.headers["Authorization"] = f"Bearer {token}"
        for k in range(5):
            session.post(f"{server.url}/api/files/mkdir", json={"path": f"d{k}"}, timeout=WAIT_S)
        for client in clients:
            client.hears(5)
        status = server.stop()

        assert status == 0
        assert all(client.has_ended.wait(WAIT_S) for client in clients)
    assert all([e["name"] for e in c.events] == [f"d{k}" for k in range(5)] for c in clients)
    assert [c.io.transport() for c in clients] == [transports[-1] for transports in every]


def trusting(authority: Authority) -> requests.Session:
    """Return a session that trusts this authority and no other."""
    session = requests.Session()
    session.trust_env = False
    session.verify = str(authority.ca_file)
    return session


def test_the_example_of_the_api_document_follows(servers, token, tmp_path):
    text = (ROOT / "docs" / "API.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "follow.py").write_text(example)
    env = {**os.environ, "URL": servers[0].url, "TOKEN": token}
    line = [sys.executable, str(tmp_path / "follow.py")]
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True) as follower:
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(iter(follower.stdout.readline, "")))
        reader.start()
        try:
            header = {"Authorization": f"Bearer {token}"}
            for k in range(2):
                route = f"{servers[k].url}/api/files/mkdir"
                requests.post(route, json={"path": f"x{k}"}, headers=header, timeout=WAIT_S)
                machine.wait_until(lambda at=k: f"folder_created /x{at}\n" in said, WAIT_S, "it")
        finally:
            follower.kill()
            reader.join(WAIT_S)

    assert len(set(said)) == len(said)
