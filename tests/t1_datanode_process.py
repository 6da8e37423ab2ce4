"""A datanode as a process: killed, frozen, stopped; and its server under rude clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId
from everfold.nodeclient import NodeClient
from tests.contracts.blockstore import block_of, random_block
from tests.harness import nodes


@pytest.fixture
def node(tmp_path: Path) -> Iterator[nodes.RealNode]:
    with nodes.running(tmp_path) as node:
        yield node


def connect(node: nodes.RealNode) -> socket.socket:
    parts = urlsplit(node.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def request(method: str, path: str, length: int, *more: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1", "Host: node", f"Authorization: Bearer {nodes.token(1)}",
        f"Content-Length: {length}", *more,
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


class TestEnds:
    def test_it_ends_in_order_and_quickly_though_clients_stay_connected(
        self, node: nodes.RealNode
    ) -> None:
        client = node.client()
        client.put(*block_of(100))
        started = time.monotonic()

        assert node.stop() == 0

        assert time.monotonic() - started < 3
        assert (node.root / "packs" / "index.complete").exists()

    def test_a_stalled_client_delays_the_end_by_the_grace_and_no_more(
        self, node: nodes.RealNode
    ) -> None:
        with connect(node) as sock:
            sock.sendall(request("PUT", f"/v1/blocks/{block_of(9)[0].hex()}", 9) + b"only")
            node.client().put(*block_of(100))
            started = time.monotonic()

            assert node.stop() == 0

            assert time.monotonic() - started < 6

    def test_what_was_acknowledged_before_a_kill_is_there_after_it(
        self, node: nodes.RealNode
    ) -> None:
        kept: list[dict[BlockId, bytes]] = [{} for _ in range(3)]

        def work(mine: dict[BlockId, bytes]) -> None:
            client = node.client()
            while True:
                batch = [random_block(size) for size in (50, 4096, SMALL_BLOCK * 3)]
                try:
                    client.put(*batch[0])
                    mine[batch[0][0]] = batch[0][1]
                    told = client.put_many(batch[1:])
                except EverfoldError:
                    return
                assert told == [None, None]
                mine.update(batch[1:])

        for _ in range(3):
            seen = [len(mine) for mine in kept]
            with ThreadPoolExecutor(3) as pool:
                workers = [pool.submit(work, mine) for mine in kept]
                nodes.machine.wait_until(
                    lambda seen=seen: all(
                        len(mine) > n + 20 for mine, n in zip(kept, seen, strict=True)
                    ),
                    20,
                    "some puts",
                )
                node.kill()
                for worker in workers:
                    worker.result(20)
            node.start()

        client = node.client()
        for mine in kept:
            names = list(mine)
            for first in range(0, len(names), 50):
                some = names[first : first + 50]
                assert client.get_many(some) == {name: mine[name] for name in some}
        assert list((node.root / "tmp").iterdir()) == []

    def test_a_frozen_node_costs_its_callers_their_deadline_and_no_more(
        self, node: nodes.RealNode
    ) -> None:
        client = node.client(timeout_s=0.3)
        block, data = block_of(BLOCK_MAX)
        client.put(block, data, timeout_s=10)
        node.send(signal.SIGSTOP)
        try:
            for call in (
                lambda: client.get(block),
                lambda: client.put(*block_of(7)),
                lambda: client.put_many([block_of(BLOCK_MAX - 1)]),
                lambda: client.size_of(block),
            ):
                started = time.monotonic()
                with pytest.raises(EverfoldError) as caught:
                    call()
                assert caught.value.kind in (Kind.TIMEOUT, Kind.UNAVAILABLE)
                assert time.monotonic() - started < 3
        finally:
            node.send(signal.SIGCONT)

        assert node.client(timeout_s=10).get(block) == data

    def test_without_a_secret_it_says_so_and_ends(self, tmp_path: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(nodes.ROOT)}
        env.pop("CLUSTER_SECRET", None)
        line = [sys.executable, "-m", "datanode", "--id", "dn1", "--root", str(tmp_path / "r"),
                "--nameserver", "http://127.0.0.1:9"]  # fmt: skip

        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=20)

        assert done.returncode == 2
        assert done.stderr == "everfold-datanode: CLUSTER_SECRET: is not set\n"

    def test_a_folder_of_another_node_is_refused_without_a_traceback(self, tmp_path: Path) -> None:
        with nodes.running(tmp_path) as node:
            node.stop()
            line = [sys.executable, "-m", "datanode", "--id", "dn2", "--root", str(node.root),
                    "--nameserver", "http://127.0.0.1:9"]  # fmt: skip
            env = {**os.environ, "PYTHONPATH": str(nodes.ROOT), "CLUSTER_SECRET": "x" * 40}

            done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=20)

        assert done.returncode == 1
        assert "belongs to node 'dn1'" in done.stderr
        assert "Traceback" not in done.stderr


class TestServer:
    def test_a_body_in_drops_and_two_requests_at_once_are_understood(
        self, node: nodes.RealNode
    ) -> None:
        block, data = block_of(3000)
        path = f"/v1/blocks/{block.hex()}"
        whole = request("PUT", path, len(data)) + data + request("GET", path, 0)
        with connect(node) as sock:
            for first in range(0, len(whole), 500):
                sock.sendall(whole[first : first + 500])
            got = b""
            while not got.endswith(data):
                got += sock.recv(65536)

        assert got.startswith(b"HTTP/1.1 201 ")
        assert b"HTTP/1.1 200 " in got

    def test_a_client_that_hangs_up_in_a_body_leaves_nothing(self, node: nodes.RealNode) -> None:
        block, data = block_of(BLOCK_MAX)
        with connect(node) as sock:
            sock.sendall(request("PUT", f"/v1/blocks/{block.hex()}", len(data)) + data[:-1])
            sock.shutdown(socket.SHUT_WR)
            assert b" 400 " in sock.recv(65536)

        client = node.client()
        assert client.size_of(block) is None
        assert client.put(block, data) is True

    def test_a_body_that_is_too_large_is_refused_before_it_is_sent(
        self, node: nodes.RealNode
    ) -> None:
        with connect(node) as sock:
            sock.sendall(request("POST", "/v1/blocks", 10 << 30))

            assert b" 413 " in sock.recv(65536)

    def test_a_client_may_think_before_its_first_request(self, node: nodes.RealNode) -> None:
        with connect(node) as sock:
            sock.settimeout(6)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.sendall(request("HEAD", f"/v1/blocks/{block_of(1)[0].hex()}", 0))
            assert b" 404 " in sock.recv(65536)

    def test_chunked_bodies_are_refused(self, node: nodes.RealNode) -> None:
        head = request("PUT", f"/v1/blocks/{block_of(3)[0].hex()}", 0, "Transfer-Encoding: chunked")
        head = head.replace(b"Content-Length: 0\r\n", b"")
        with connect(node) as sock:
            sock.sendall(head + b"3\r\nabc\r\n0\r\n\r\n")

            assert b" 400 " in sock.recv(65536)

    def test_more_clients_than_threads_are_all_served(self, node: nodes.RealNode) -> None:
        idle = [connect(node) for _ in range(100)]
        for sock in idle:
            sock.sendall(request("HEAD", f"/v1/blocks/{block_of(1)[0].hex()}", 0))
        for sock in idle:
            assert b" 404 " in sock.recv(65536)

        assert node.client().put(*block_of(1)) is True
        for sock in idle:
            sock.close()

    def test_large_blocks_in_parallel_arrive_whole(self, node: nodes.RealNode) -> None:
        pairs = [block_of(BLOCK_MAX - seed, seed) for seed in range(8)]
        client = node.client(timeout_s=20)
        ready = threading.Barrier(8)

        def work(pair: tuple[BlockId, bytes]) -> bool:
            ready.wait(10)
            return client.put(*pair) and client.get(pair[0]) == pair[1]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, pairs))

    def test_a_restarted_node_is_found_again_by_the_same_client(
        self, node: nodes.RealNode, tmp_path: Path
    ) -> None:
        port = urlsplit(node.url).port
        node.stop()
        fixed = nodes.RealNode(tmp_path, "dn1", "", "--port", str(port))
        fixed.start()
        client = NodeClient(fixed.transport(), nodes.token(1), 5.0)
        client.put(*block_of(10))
        fixed.kill()
        with pytest.raises(EverfoldError) as caught:
            client.get(block_of(10)[0])
        fixed.start()

        assert caught.value.kind is Kind.UNAVAILABLE
        assert client.get(block_of(10)[0]) == block_of(10)[1]
        fixed.stop()
