"""Our own HTTP connections against servers that behave, and servers that do not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from everfold.connection import HttpTransport
from everfold.errors import EverfoldError, Kind
from everfold.fileslice import FileSlice

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
Script = Callable[[socket.socket], None]


def request_of(peer: socket.socket) -> bytes:
    """Read one request, its body included."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = peer.recv(65536)
        if not got:
            return data
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            wanted = int(line.split(b":")[1])
            while len(body) < wanted:
                body += peer.recv(1 << 20)
    return head + b"\r\n\r\n" + body


@contextmanager
def server(*scripts: Script) -> Iterator[str]:
    """Serve one connection after the other, each by its script."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            for script in scripts:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    script(peer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.close()
        thread.join(5)


def answering(*answers: bytes) -> Script:
    def script(peer: socket.socket) -> None:
        for answer in answers:
            if not request_of(peer):
                return
            peer.sendall(answer)

    return script


def ask(url: str, timeout_s: float = 5.0, **more: object) -> tuple[int, dict[str, str], bytes]:
    transport = HttpTransport(url)
    try:
        return transport.request("GET", "/", headers={}, timeout_s=timeout_s, **more)  # type: ignore[arg-type]
    finally:
        transport.close()


def kind_of(url: str, timeout_s: float = 0.3) -> Kind:
    with pytest.raises(EverfoldError) as err:
        ask(url, timeout_s)
    return err.value.kind


def test_one_connection_carries_many_requests() -> None:
    with server(answering(OK, OK, OK)) as url:
        transport = HttpTransport(url)
        got = [transport.request("GET", "/", headers={}, timeout_s=5)[2] for _ in range(3)]
        transport.close()

    assert got == [b"hello"] * 3


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    with server(answering(OK), answering(OK)) as url:
        transport = HttpTransport(url)
        first = transport.request("GET", "/", headers={}, timeout_s=5)
        second = transport.request("GET", "/", headers={}, timeout_s=5)
        transport.close()

    assert first == second


@pytest.mark.parametrize("size", [1, 5 * 1024 * 1024])
def test_a_slice_of_a_file_arrives_as_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        part = FileSlice(file.fileno(), 100, size)
    expected = (data * 2)[100 : 100 + size]
    (tmp_path / "file").write_bytes(data * 2)
    got: list[bytes] = []

    def script(peer: socket.socket) -> None:
        got.append(request_of(peer))
        peer.sendall(OK)

    with server(script) as url:
        answer = HttpTransport(url).request("PUT", "/x", headers={}, body=part, timeout_s=5)

    assert answer[2] == b"hello"
    head, _, body = got[0].partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % size in head
    assert body == expected


def test_a_file_that_is_shorter_than_its_slice_is_told_as_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    with (tmp_path / "file").open("rb") as file:
        part = FileSlice(file.fileno(), 0, 100)

    with server(lambda peer: None) as url, pytest.raises(EverfoldError) as caught:
        HttpTransport(url).request("PUT", "/x", headers={}, body=part, timeout_s=2)

    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_body_in_many_pieces_arrives_whole() -> None:
    seen = []

    def script(peer: socket.socket) -> None:
        seen.append(request_of(peer))
        peer.sendall(OK)

    pieces = [bytes([i % 256]) * (i * 7) for i in range(1500)]
    with server(script) as url:
        HttpTransport(url).request("PUT", "/x", headers={}, body=pieces, timeout_s=5)

    assert seen[0].partition(b"\r\n\r\n")[2] == b"".join(pieces)


def test_chunked_answers_are_understood() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n"
    )
    with server(answering(chunked)) as url:
        assert ask(url)[2] == b"abcdefg"


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    with server(answering(b"HTTP/1.1 200 OK\r\n\r\nall of it")) as url:
        assert ask(url)[2] == b"all of it"


def test_an_interim_answer_is_passed_over() -> None:
    with server(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as url:
        assert ask(url)[2] == b"hello"


def test_headers_are_told_in_lower_case() -> None:
    with server(
        answering(b"HTTP/1.1 404 No\r\nX-Some:  thing \r\nContent-Length: 0\r\n\r\n")
    ) as url:
        assert ask(url) == (404, {"x-some": "thing", "content-length": "0"}, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_an_answer_that_is_none_is_unavailable(answer: bytes) -> None:
    with server(answering(answer)) as url:
        assert kind_of(url, 5.0) is Kind.UNAVAILABLE


def test_silence_is_a_timeout_within_the_deadline() -> None:
    ended = threading.Event()

    def script(peer: socket.socket) -> None:
        request_of(peer)
        ended.wait(10)

    with server(script) as url:
        assert kind_of(url) is Kind.TIMEOUT
        ended.set()


def test_drops_that_never_end_are_a_timeout_too() -> None:
    ended = threading.Event()

    def script(peer: socket.socket) -> None:
        request_of(peer)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.wait(0.02):
            try:
                peer.sendall(b"x")
            except OSError:
                return

    with server(script) as url:
        assert kind_of(url) is Kind.TIMEOUT
        ended.set()


def test_nobody_listening_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert kind_of(f"http://127.0.0.1:{port}") is Kind.UNAVAILABLE


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:port", "nonsense"])
def test_what_is_no_url_is_invalid(url: str) -> None:
    with pytest.raises(EverfoldError) as err:
        HttpTransport(url)
    assert err.value.kind is Kind.INVALID


def test_a_line_break_cannot_be_smuggled_into_a_header() -> None:
    with pytest.raises(EverfoldError) as err:
        HttpTransport("http://127.0.0.1:9").request(
            "GET", "/", headers={"X": "a\r\nY: b"}, timeout_s=1
        )
    assert err.value.kind is Kind.INVALID


# ---------------------------------------------------------------- begun, and received later


def test_two_servers_work_at_the_same_time_for_one_thread() -> None:
    both = threading.Barrier(2)

    def script(peer: socket.socket) -> None:
        request_of(peer)
        both.wait(5)  # broken, and no answer, unless the other server was asked too
        peer.sendall(OK)

    with server(script) as one, server(script) as two:
        calls = [
            HttpTransport(url).begin("GET", "/", headers={}, timeout_s=5) for url in (one, two)
        ]
        got = [call.result()[2] for call in calls]

    assert got == [b"hello"] * 2


def test_what_fails_while_sending_is_told_by_the_result() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    call = HttpTransport(f"http://127.0.0.1:{port}").begin("GET", "/", headers={}, timeout_s=1)

    assert call.is_ready()
    with pytest.raises(EverfoldError) as err:
        call.result()
    assert err.value.kind is Kind.UNAVAILABLE


def test_the_deadline_runs_from_the_beginning() -> None:
    ended = threading.Event()

    def script(peer: socket.socket) -> None:
        request_of(peer)
        ended.wait(10)

    with server(script) as url:
        call = HttpTransport(url).begin("GET", "/", headers={}, timeout_s=0.2)
        assert not call.is_ready(0.3)
        with pytest.raises(EverfoldError) as err:
            call.result()
        ended.set()

    assert err.value.kind is Kind.TIMEOUT


def test_a_connection_closed_while_it_was_idle_is_replaced_behind_a_begun_call() -> None:
    with server(answering(OK), answering(OK)) as url:
        transport = HttpTransport(url)
        transport.request("GET", "/", headers={}, timeout_s=5)
        call = transport.begin("PUT", "/", headers={}, body=b"x" * 100, timeout_s=5)
        got = call.result()[2]
        transport.close()

    assert got == b"hello"


def test_an_answer_that_was_given_up_is_never_anothers() -> None:
    second = OK.replace(b"hello", b"again")

    with server(answering(OK), answering(second)) as url:
        transport = HttpTransport(url)
        call = transport.begin("GET", "/", headers={}, timeout_s=5)
        assert call.is_ready(5)
        call.cancel()
        got = transport.request("GET", "/", headers={}, timeout_s=5)[2]
        transport.close()

    assert got == b"again"
    with pytest.raises(EverfoldError) as err:
        call.result()
    assert err.value.kind is Kind.INTERRUPTED


def test_an_answer_with_more_behind_it_ends_the_connection() -> None:
    with server(answering(OK + b"HTTP/1.1 200 OK\r\n"), answering(OK)) as url:
        transport = HttpTransport(url)
        got = [transport.request("POST", "/", headers={}, timeout_s=5)[2] for _ in range(2)]
        transport.close()

    assert got == [b"hello"] * 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_large_answer_arrives_whole_however_it_is_cut(method: str) -> None:
    body = bytes(range(256)) * 20_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def script(peer: socket.socket) -> None:
        for cuts in ([], [1, 5], [60, 61, 70_000], [17, 3_000_000]):
            request_of(peer)
            for first, last in zip([0, *cuts], [*cuts, len(answer)], strict=True):
                peer.sendall(answer[first:last])

    with server(script) as url:
        transport = HttpTransport(url)
        got = [transport.request(method, "/", headers={}, timeout_s=5)[2] for _ in range(4)]
        transport.close()

    assert got == [body] * 4
