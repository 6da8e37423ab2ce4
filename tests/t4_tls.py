"""A whole cluster under TLS: people's tools, the folder, nodes among each other."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import socketio

from everfold.api import Api
from everfold.errors import EverfoldError
from tests.harness.authority import Authority
from tests.harness.cluster import PASSWORD, RealCluster, running
from tests.harness.machine import wait_until

BIG = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RealCluster]:
    """A cluster under TLS with a folder; its tools have logged in with `--ca-file`."""
    folder = tmp_path_factory.mktemp("cluster")
    chain, key = authority.issue("cluster", "127.0.0.1")
    flags = ("--tls-cert", str(chain), "--tls-key", str(key), "--ca-file", str(authority.ca_file))
    more = ("--workers", "2", "--mount", str(folder / "folder"))
    with running(folder, *flags, *more) as cluster:
        words = ("--server", cluster.url, "--username", "admin", "--password-stdin")
        done = cluster.tool(
            "login", *words, "--ca-file", str(authority.ca_file), stdin=PASSWORD + "\n"
        )
        assert done.returncode == 0, done.stderr
        yield cluster


@pytest.mark.fuse
def test_the_folder_works_and_every_address_is_https(secret: RealCluster) -> None:
    folder = secret.folder / "folder"
    (folder / "big").write_bytes(BIG)
    fd = os.open(folder / "big", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

    told = secret.tool("versions", str(folder / "big"))
    nodes = secret.tool("node", "list", "--json")

    assert (folder / "big").read_bytes() == BIG
    assert told.returncode == 0, told.stderr
    assert "v1" in told.stdout or "1" in told.stdout
    assert secret.url.startswith("https://")
    assert nodes.stdout.count('"url": "https://') == 3
    assert '"url": "http://' not in nodes.stdout


@pytest.mark.fuse
def test_nodes_copy_from_each_other(secret: RealCluster, authority: Authority) -> None:
    folder = secret.folder / "folder"
    files = [folder / f"copied{k}" for k in range(8)]  # some of them on dn1, surely
    for k, path in enumerate(files):
        path.write_bytes(BIG[k:200_000])
    with files[-1].open("rb") as file:
        os.fsync(file.fileno())
    api = Api(secret.url, ca_file=str(authority.ca_file))
    api.login("admin", PASSWORD)
    api.fail_node("dn1")

    wait_until(lambda: api.status()["under_replicated"] == 0, 60, "every block has its copies")
    api.repair_node("dn1")
    api.close()

    assert [path.read_bytes() for path in files] == [BIG[k:200_000] for k in range(8)]


def test_a_renewed_certificate_reaches_every_worker(
    secret: RealCluster, authority: Authority
) -> None:
    authority.issue("cluster", "127.0.0.1", "renewed.example")
    os.kill(secret.pid("nameserver"), signal.SIGHUP)
    port = urlsplit(secret.url).port
    context = ssl.create_default_context(cafile=str(authority.ca_file))

    def is_renewed() -> bool:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as sock,
        ):
            return "renewed.example" in str(sock.getpeercert())

    wait_until(lambda: all(is_renewed() for _ in range(8)), 20, "all show the new one")


@pytest.mark.parametrize("way", ["polling", "websocket"])
def test_live_events_come_by_tls_whichever_worker_has_them(
    secret: RealCluster, authority: Authority, way: str
) -> None:
    """A polling client's connections reach both workers; a websocket is one of TLS's own."""
    with Api(secret.url, ca_file=str(authority.ca_file)) as api:
        api.login("admin", PASSWORD)
        token = api.token
    session = requests.Session()
    session.trust_env, session.verify = False, str(authority.ca_file)
    trust = {"sslopt": {"ca_certs": str(authority.ca_file)}}
    client = socketio.Client(http_session=session, websocket_extra_options=trust)
    connected = threading.Event()
    client.on("connected", lambda *_: connected.set())
    client.connect(secret.url, auth={"token": token}, transports=[way], wait_timeout=20)
    try:
        assert connected.wait(20)
        assert client.transport() == way
    finally:
        client.disconnect()


def test_whoever_does_not_know_the_authority_is_told(secret: RealCluster, tmp_path: Path) -> None:
    words = ("--server", secret.url, "--username", "admin", "--password-stdin")
    done = secret.tool("login", *words, stdin=PASSWORD + "\n", EVERFOLD_HOME=str(tmp_path))

    assert done.returncode == 1
    assert "certificate does not verify" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_plain_http_is_refused_with_a_reason(secret: RealCluster) -> None:
    with Api(secret.url.replace("https://", "http://")) as api, pytest.raises(EverfoldError) as e:
        api.login("admin", PASSWORD)

    assert "TLS is spoken here" in str(e.value)


def test_a_certificate_of_no_use_ends_the_start_with_one_line(
    secret: RealCluster, tmp_path: Path, authority: Authority
) -> None:
    key = authority.issue("other", "127.0.0.1")[1]
    done = secret.tool(
        "up", "--data", str(tmp_path / "d"), "--port", "0",
        "--tls-cert", str(tmp_path / "no.pem"), "--tls-key", str(key),
    )  # fmt: skip

    assert done.returncode in (1, 2)
    assert "no.pem" in done.stderr
