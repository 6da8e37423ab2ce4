"""Uploads in several requests at a real cluster: the connection is cut, the server killed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.harness import machine
from tests.harness.cluster import RealCluster, running

ROUTE = "/api/files/uploads"
SIZE = 40 * 1024 * 1024 + 4321
PIECE = 64 * 1024
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[RealCluster]:
    with running(tmp_path_factory.mktemp("uploads")) as started:
        yield started


class Sender:
    """Somebody who uploads one file."""

    def __init__(self, cluster: RealCluster, path: str, data: bytes) -> None:
        self.url, self.data = cluster.url, data
        with cluster.api() as api:
            self.headers = {"Authorization": f"Bearer {api.token}"}
        said = {"path": path, "size": len(data)}
        self.id = self.ask("POST", ROUTE, json=said).json()["upload"]["id"]

    def ask(self, method: str, route: str, **more: Any) -> requests.Response:
        headers = {**self.headers, **more.pop("headers", {})}
        return requests.request(
            method, self.url + route, headers=headers, timeout=TIMEOUT_S, **more
        )

    def offset(self) -> int:
        """Return how much is safe."""
        answer = self.ask("GET", f"{ROUTE}/{self.id}")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["upload"]["offset"])

    def begin_to_send(self, start: int, stop: int) -> socket.socket:
        """Send a part of what a request says that it has; return its connection."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        head = (
            f"PATCH {ROUTE}/{self.id} HTTP/1.1\r\nHost: x\r\nUpload-Offset: {start}\r\n"
            f"Authorization: {self.headers['Authorization']}\r\n"
            f"Content-Length: {len(self.data) - start}\r\n\r\n"
        )
        connection.sendall(head.encode() + self.data[start:stop])
        return connection

    def send_rest(self) -> requests.Response | None:
        """Send all that is not safe yet; None while the server has not given up another."""
        offset = self.offset()
        headers = {"Upload-Offset": str(offset)}
        route = f"{ROUTE}/{self.id}"
        answer = self.ask("PATCH", route, data=self.data[offset:], headers=headers)
        return None if answer.status_code == 409 else answer

    def load(self, file: str) -> bytes:
        return self.ask("GET", f"/api/files/{file}/download").content


def test_who_hangs_up_goes_on_with_the_next_byte(cluster):
    me = Sender(cluster, "cut off", os.urandom(SIZE))
    came = 0
    for stop in (5_000_000, 5_000_001, 17_000_000):
        with me.begin_to_send(came, stop) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        came = me.offset()
        assert came == stop

    answer = me.send_rest()

    assert answer is not None and answer.status_code == 201
    assert me.load(answer.json()["file_id"]) == me.data


def test_a_large_file_takes_little_memory_also_when_its_length_is_not_told(cluster):
    size, noise = 160 << 20, os.urandom((1 << 20) - 8)
    me = Sender(cluster, "large", b"")
    said = {"path": "large", "size": size}
    me.id = me.ask("POST", ROUTE, json=said).json()["upload"]["id"]
    before = machine.peak_kib(cluster.pid("nameserver"))
    pieces = (k.to_bytes(8, "big") + noise for k in range(size >> 20))

    answer = me.ask("PATCH", f"{ROUTE}/{me.id}", data=pieces, headers={"Upload-Offset": "0"})

    assert answer.status_code == 201, answer.text
    assert machine.peak_kib(cluster.pid("nameserver")) - before < 96 * 1024


def test_what_was_told_to_be_safe_outlives_a_kill_of_the_nameserver(cluster):
    me = Sender(cluster, "killed", os.urandom(SIZE))
    before = cluster.pid("nameserver")
    with me.begin_to_send(0, 9 << 20) as connection:
        left = iter(range(9 << 20, SIZE - PIECE, PIECE))

        def is_some_safe() -> bool:
            at = next(left)
            connection.sendall(me.data[at : at + PIECE])
            return me.offset() >= 8 << 20

        machine.wait_until(is_some_safe, 20, "some of it to be safe")
        safe = me.offset()
        os.kill(before, signal.SIGKILL)
    machine.wait_until(lambda: cluster.pid("nameserver") != before, 30, "the next nameserver")

    assert me.offset() >= safe
    answers: list[requests.Response] = []

    def is_sent() -> bool:
        answer = me.send_rest()
        answers.extend([answer] if answer is not None else [])
        return answer is not None

    machine.wait_until(is_sent, 20, "the end of the request that was killed")
    assert answers[0].status_code == 201
    file = answers[0].json()["file"]
    assert (file["version"], me.load(file["id"]) == me.data) == (1, True)
