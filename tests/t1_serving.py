"""Our own HTTP server, under clients that behave and clients that do not."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from everfold import peer, serving
from everfold.connection import HttpTransport
from everfold.errors import EverfoldError
from everfold.exchange import Answer, Front, Request, refusal
from tests.harness.machine import wait_until

BIG = bytes(range(256)) * 20_000


class Place:
    """What the tests' server does; `gate` holds up whoever asks for /wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = threading.Event()
        self.waiting = threading.Semaphore(0)
        (folder / "big").write_bytes(BIG)

    def direct(self, request: Request) -> Answer | None:
        path = request.path
        if path == "/echo":
            try:
                body = request.whole(10_000_000)
            except EverfoldError as err:
                return refusal(err)
            return Answer(200, "x/y", body if isinstance(body, bytes) else [body])
        if path == "/unread":
            return Answer(403, "x/y", b"no")
        if path == "/file":
            return Answer(200, "x/y", io.FileIO(self.folder / "big"))
        if path == "/wait":
            self.waiting.release()
            assert self.gate.wait(20)
            return Answer(200, "x/y", b"at last")
        if path == "/defect":
            raise ZeroDivisionError
        return None

    def rest(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        kind = environ["PATH_INFO"].strip("/")
        if kind == "environ":
            told = {k: v for k, v in environ.items() if isinstance(v, (str, bool))}
            told["body"] = environ["wsgi.input"].read().decode("latin-1")
            body = json.dumps(told).encode()
            start_response("200 OK", [("Content-Type", "application/json")])
            return [body]
        if kind == "pieces":
            start_response("200 OK", [])
            return iter([b"one", b"", b"two"])
        if kind == "file":
            start_response("200 OK", [("Content-Length", str(len(BIG)))])
            return environ["wsgi.file_wrapper"](io.FileIO(self.folder / "big"))
        if kind == "short":
            start_response("200 OK", [("Content-Length", "100")])
            return [b"only this"]
        if kind == "long":
            start_response("200 OK", [("Content-Length", "4")])
            return [b"this is more"]
        if kind == "nothing":
            start_response("204 No Content", [])
            return []
        if kind == "smuggle":
            start_response("200 OK", [("X", "a\r\nY: b")])
            return [b"x"]
        if kind == "upgrade":
            sock = environ["werkzeug.socket"]
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            sock.sendall(sock.recv(100).upper())
            return []
        raise KeyError(kind)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Running:
    def __init__(self, place: Place, **more: Any) -> None:
        self.listener = serving.listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        front = Front(place.direct, place.rest)
        self.server = serving.Server(front, self.listener, **more)
        self.server.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def end(self, grace_s: float = 5.0) -> None:
        self.server.refuse()
        self.server.stop(grace_s)

    def ask(self, raw: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes."""
        with self.connect() as sock:
            sock.sendall(raw)
            return rest_of(sock)


@pytest.fixture
def running(place: Place) -> Iterator[Running]:
    running = Running(place)
    yield running
    place.gate.set()
    running.end()


def rest_of(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def head(method: str, path: str, *more: str) -> bytes:
    return "".join(
        f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", "Host: x", *more, "")
    ).encode()


def last(method: str, path: str, *more: str) -> bytes:
    return head(method, path, "Connection: close", *more)


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


class TestRequests:
    def test_requests_sent_at_once_are_answered_in_order(self, running: Running) -> None:
        many = b"".join(
            head("POST", "/echo", f"Content-Length: {n}") + b"x" * n for n in (3, 0, 70_000, 5)
        )

        got = running.ask(many + last("POST", "/echo", "Content-Length: 2") + b"ok")

        bodies = [len(part.partition(b"\r\n\r\n")[2]) for part in got.split(b"HTTP/1.1 ")[1:]]
        assert bodies == [3, 0, 70_000, 5, 2]

    def test_a_request_in_single_bytes_is_understood(self, running: Running) -> None:
        with running.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"\r\n" + last("POST", "/echo", "Content-Length: 3") + b"abc":
                sock.sendall(bytes([byte]))
            assert body_of(rest_of(sock)) == b"abc"

    def test_large_bodies_arrive_whole_one_after_the_other(self, running: Running) -> None:
        transport = HttpTransport(f"http://127.0.0.1:{running.port}")

        for size in (4_000_000, 10, 65_536, 4_000_001, 65_535, 1):
            body = BIG[:size]
            got = transport.request("POST", "/echo", headers={}, body=body, timeout_s=10)
            assert got[2] == body
        transport.close()

    @pytest.mark.parametrize("path", ["/file", "/file/"])
    def test_a_file_is_sent_whole_and_the_connection_goes_on(
        self, running: Running, path: str
    ) -> None:
        transport = HttpTransport(f"http://127.0.0.1:{running.port}")

        for _ in range(3):
            assert transport.request("GET", path, headers={}, timeout_s=10)[2] == BIG
        transport.close()

    def test_an_answer_to_head_has_no_body(self, running: Running) -> None:
        for path in ("/unread", "/environ", "/pieces", "/file/"):
            got = running.ask(last("HEAD", path))
            assert (status_of(got), body_of(got)) in ((200, b""), (403, b""))

    def test_a_client_that_waits_for_a_word_gets_it_when_the_body_is_wanted(
        self, running: Running
    ) -> None:
        with running.connect() as sock:
            sock.sendall(last("POST", "/echo", "Content-Length: 2", "Expect: 100-continue"))
            assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"ok")
            assert body_of(rest_of(sock)) == b"ok"

        got = running.ask(head("POST", "/unread", "Content-Length: 2", "Expect: 100-continue"))
        assert status_of(got) == 403  # and the connection ended: nobody knows what would follow

    def test_an_old_client_is_served_too(self, running: Running) -> None:
        kept = b"GET /unread HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        with running.connect() as sock:
            sock.sendall(kept)
            assert b"Connection: keep-alive\r\n" in sock.recv(1000)
            sock.sendall(b"GET /pieces HTTP/1.0\r\n\r\n")
            assert body_of(rest_of(sock)) == b"onetwo"


class TestRefusals:
    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (b"nonsense\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000, 431),
            (head("POST", "/echo", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
            (head("POST", "/echo", "Content-Length: 10000001"), 413),
            (head("POST", "/echo", "Transfer-Encoding: chunked"), 400),
        ],
    )
    def test_nonsense_is_answered_and_the_connection_ends(
        self, running: Running, raw: bytes, status: int
    ) -> None:
        got = running.ask(raw)

        assert status_of(got) == status
        assert b"\r\nConnection: close\r\n" in got
        assert json.loads(body_of(got))["error"]["message"]

    def test_who_is_refused_while_sending_still_gets_the_answer(self, running: Running) -> None:
        transport = HttpTransport(f"http://127.0.0.1:{running.port}")

        for _ in range(5):
            got = transport.request("PUT", "/unread", headers={}, body=BIG, timeout_s=10)
            assert got[0] == 403
        transport.close()

    def test_a_small_body_that_nobody_read_costs_no_connection(self, running: Running) -> None:
        asked = head("POST", "/unread", "Content-Length: 5") + b"GET /"

        got = running.ask(asked * 3 + last("POST", "/echo", "Content-Length: 2") + b"ok")

        assert got.count(b"HTTP/1.1 403 ") == 3
        assert got.endswith(b"ok")

    def test_a_body_that_is_cut_short_is_invalid(self, running: Running) -> None:
        with running.connect() as sock:
            sock.sendall(head("POST", "/echo", "Content-Length: 100") + b"only")
            sock.shutdown(socket.SHUT_WR)
            got = rest_of(sock)

        assert status_of(got) == 400
        assert json.loads(body_of(got))["error"]["kind"] == "invalid"

    @pytest.mark.expects_warnings
    def test_a_defect_of_a_handler_ends_one_connection_only(self, running: Running) -> None:
        assert running.ask(head("GET", "/defect")) == b""
        assert status_of(running.ask(last("GET", "/unread"))) == 403


class TestWsgi:
    def environ(self, running: Running, *raw: bytes) -> dict[str, Any]:
        answer = running.ask(b"".join(raw))
        told: dict[str, Any] = json.loads(body_of(answer))
        return told

    def test_the_environ_tells_the_request(self, running: Running) -> None:
        told = self.environ(
            running,
            last("POST", "/environ%2F?a=%20b", "Content-Length: 3", "Content-Type: x/y",
                 "X-Some: thing", "X_Some: other"),
            b"abc",
        )  # fmt: skip

        assert told["REQUEST_METHOD"] == "POST"
        assert (told["PATH_INFO"], told["QUERY_STRING"]) == ("/environ/", "a=%20b")
        assert (told["CONTENT_LENGTH"], told["CONTENT_TYPE"]) == ("3", "x/y")
        assert (told["HTTP_X_SOME"], told["HTTP_HOST"]) == ("thing", "x")
        assert (told["REMOTE_ADDR"], told["SERVER_PORT"]) == ("127.0.0.1", str(running.port))
        assert told["body"] == "abc"
        assert "HTTP_CONTENT_LENGTH" not in told

    def test_a_chunked_body_is_put_together(self, running: Running) -> None:
        told = self.environ(
            running,
            last("POST", "/environ", "Transfer-Encoding: chunked"),
            b"3\r\nabc\r\n1f;x=y\r\n" + b"d" * 31 + b"\r\n0\r\nTrailer: 1\r\n\r\n",
        )

        assert told["body"] == "abc" + "d" * 31

    @pytest.mark.expects_warnings
    @pytest.mark.parametrize(
        "chunks", [b"zz\r\n", b"-3\r\nabc", b"3\r\nabcd\r\n0\r\n\r\n", b"+3\r\nabc\r\n0\r\n\r\n"]
    )
    def test_a_chunk_that_is_none_never_passes_for_a_body(
        self, running: Running, chunks: bytes
    ) -> None:
        got = running.ask(head("POST", "/environ", "Transfer-Encoding: chunked") + chunks)

        assert status_of(got) == 500

    def test_an_answer_of_unknown_length_is_chunked(self, running: Running) -> None:
        transport = HttpTransport(f"http://127.0.0.1:{running.port}")

        got = [transport.request("GET", "/pieces", headers={}, timeout_s=5) for _ in range(2)]

        transport.close()
        assert [body for _, _, body in got] == [b"onetwo"] * 2
        assert got[0][1]["transfer-encoding"] == "chunked"

    def test_an_answer_is_never_longer_than_it_says(self, running: Running) -> None:
        assert body_of(running.ask(last("GET", "/long"))) == b"this"

    def test_an_answer_shorter_than_it_says_ends_the_connection(self, running: Running) -> None:
        assert body_of(running.ask(head("GET", "/short"))) == b"only this"

    def test_an_answer_without_content_has_none(self, running: Running) -> None:
        got = running.ask(head("GET", "/nothing") + last("GET", "/unread"))

        assert got.count(b"HTTP/1.1 ") == 2
        assert b"chunked" not in got

    @pytest.mark.expects_warnings
    @pytest.mark.parametrize("path", ["/smuggle", "/unknown"])
    def test_a_defect_is_a_500(self, running: Running, path: str) -> None:
        got = running.ask(head("GET", path))

        assert status_of(got) == 500
        assert json.loads(body_of(got))["error"]["kind"] == "internal"
        assert b"\r\nY: b" not in got

    def test_an_application_may_go_on_in_another_protocol(self, running: Running) -> None:
        with running.connect() as sock:
            sock.sendall(head("GET", "/upgrade", "Connection: Upgrade", "Upgrade: loud"))
            assert sock.recv(100).startswith(b"HTTP/1.1 101 ")
            sock.sendall(b"hello")
            assert rest_of(sock) == b"HELLO"


class TestManyClients:
    def test_parked_requests_hold_nobody_up(self, place: Place, running: Running) -> None:
        parked = [running.connect() for _ in range(150)]
        for sock in parked:
            sock.sendall(last("GET", "/wait"))
        for _ in parked:
            assert place.waiting.acquire(timeout=20)

        assert status_of(running.ask(last("GET", "/unread"))) == 403
        place.gate.set()
        assert all(body_of(rest_of(sock)) == b"at last" for sock in parked)

    def test_an_idle_connection_makes_room_for_a_new_one(self, place: Place) -> None:
        running = Running(place, connections=3)
        idle = [running.connect() for _ in range(3)]
        for sock in idle:
            sock.sendall(head("GET", "/unread"))
            assert status_of(sock.recv(1000)) == 403

        assert status_of(running.ask(last("GET", "/unread"))) == 403

        gone = [sock for sock in idle if is_closed(sock)]
        running.end()
        assert gone[0] is idle[0]  # who was idle longest

    def test_a_thread_says_when_it_ends(self, place: Place) -> None:
        ended: list[str] = []
        running = Running(place, thread_ends=lambda: ended.append(threading.current_thread().name))
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: running.ask(last("GET", "/unread")), range(40)))
        running.end()

        def is_over() -> bool:
            return all(thread.name != "peer" for thread in threading.enumerate())

        wait_until(is_over, 10, "the threads' ends")
        assert set(ended) == {"peer"}


def is_closed(sock: socket.socket) -> bool:
    sock.settimeout(0.2)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False


class TestTimeLimits:
    def test_a_silent_client_is_let_go(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serving, "STALLED_S", 1)
        running = Running(place)

        with (
            running.connect() as silent,
            running.connect() as half,
            running.connect() as body,
            running.connect() as upgrade,
        ):
            half.sendall(b"GET / HT")
            body.sendall(head("POST", "/echo", "Content-Length: 100") + b"some")
            upgrade.sendall(head("GET", "/upgrade", "Connection: Upgrade", "Upgrade: loud"))
            assert rest_of(silent) == b""
            assert rest_of(half) == b""
            assert status_of(rest_of(body)) == 504
            assert rest_of(upgrade).startswith(b"HTTP/1.1 101 ")
        running.end()

    def test_a_client_that_drips_is_let_go(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peer, "STALLED_S", 0.2)
        running = Running(place)
        over = threading.Event()

        with running.connect() as sock:

            def drip() -> None:
                for byte in head("GET", "/unread", "X: " + "y" * 2000):
                    if over.wait(0.005):
                        return
                    sock.sendall(bytes([byte]))

            with ThreadPoolExecutor(1) as pool:
                dripping = pool.submit(drip)
                assert status_of(sock.recv(1000)) == 408
                over.set()
                assert dripping.exception() is None
        running.end()


class TestEnd:
    def test_idle_connections_do_not_delay_the_end_and_none_is_accepted_any_more(
        self, place: Place
    ) -> None:
        running = Running(place)
        idle = [running.connect() for _ in range(10)]
        for sock in idle:
            sock.sendall(head("GET", "/unread"))
            assert status_of(sock.recv(1000)) == 403

        ending = threading.Thread(target=running.end, args=(60.0,))
        ending.start()
        ending.join(20)

        assert not ending.is_alive()
        assert all(rest_of(sock) == b"" for sock in idle)
        with pytest.raises(OSError):
            running.connect()

    def test_what_was_asked_is_answered_and_then_the_connection_ends(self, place: Place) -> None:
        running = Running(place)
        sock = running.connect()
        sock.sendall(head("GET", "/wait"))
        assert place.waiting.acquire(timeout=10)
        running.server.refuse()

        ending = threading.Thread(target=running.server.stop, args=(60.0,))
        ending.start()
        place.gate.set()
        got = rest_of(sock)
        ending.join(20)

        assert body_of(got) == b"at last"
        assert b"\r\nConnection: close\r\n" in got
        assert not ending.is_alive()

    def test_whoever_takes_too_long_is_cut_off(self, place: Place) -> None:
        running = Running(place)
        sock = running.connect()
        sock.sendall(head("GET", "/wait"))
        assert place.waiting.acquire(timeout=10)

        running.end(grace_s=0.1)

        assert rest_of(sock) == b""
        place.gate.set()
