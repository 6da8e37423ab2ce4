"""TLS between our clients and our server: what works, and what is refused with a reason."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everfold import serving, tls
from everfold.api import Api
from everfold.connection import HttpTransport
from everfold.errors import EverfoldError, Kind
from everfold.exchange import Answer, Front, Request, refusal
from everfold.fileslice import FileSlice
from tests.harness.authority import Authority
from tests.harness.machine import wait_until

BIG = bytes(range(256)) * 20_000
BODY_MAX = 10_000_000


class Place:
    """What the tests' server does."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "big"
        self.file.write_bytes(BIG)

    def direct(self, request: Request) -> Answer | None:
        if request.path == "/echo":
            try:
                body = request.whole(BODY_MAX)
            except EverfoldError as err:
                return refusal(err)
            return Answer(200, "x/y", body if isinstance(body, bytes) else [body])
        if request.path == "/file":
            return Answer(200, "x/y", io.FileIO(self.file))
        return None

    def rest(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/upgrade":
            sock = environ["werkzeug.socket"]
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            sock.sendall(sock.recv(100).upper())
            return []
        told = {k: v for k, v in environ.items() if isinstance(v, (str, bool))}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(told).encode()]


class Running:
    def __init__(self, place: Place, certificate: tls.Certificate | None) -> None:
        self.listener = serving.listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        front = Front(place.direct, place.rest)
        self.server = serving.Server(front, self.listener, tls=certificate)
        self.server.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@contextlib.contextmanager
def served(place: Place, certificate: tls.Certificate | None) -> Iterator[Running]:
    running = Running(place, certificate)
    yield running
    running.server.refuse()
    running.server.stop(5.0)


@pytest.fixture(scope="module")
def running(place: Place, authority: Authority) -> Iterator[Running]:
    with served(place, tls.Certificate(*authority.issue("server", "127.0.0.1"))) as found:
        yield found


def ask(
    url: str, authority: Authority | None, method: str = "GET", path: str = "/", **more: Any
) -> tuple[int, dict[str, str], bytes]:
    transport = HttpTransport(url, ca_file=str(authority.ca_file) if authority else None)
    try:
        return transport.request(method, path, headers={}, timeout_s=10, **more)
    finally:
        transport.close()


def test_whatever_is_sent_over_plain_http_is_sent_over_tls(
    running: Running, authority: Authority, place: Place
) -> None:
    transport = HttpTransport(running.url, ca_file=str(authority.ca_file))

    def call(method: str, path: str, body: Any = None) -> bytes:
        return transport.request(method, path, headers={}, body=body, timeout_s=10)[2]

    echoed = [call("POST", "/echo", body) for body in (b"x", BIG, [BIG[:99], BIG[99:]])]
    with place.file.open("rb") as file:
        slice_ = FileSlice(file.fileno(), 100, 200_000)
        from_file = call("POST", "/echo", slice_)
    told = json.loads(call("GET", "/environ"))
    sent = call("GET", "/file")
    transport.close()

    assert echoed == [b"x", BIG, BIG]
    assert from_file == BIG[100:200_100]
    assert sent == BIG
    assert told["wsgi.url_scheme"] == "https"


def test_a_socket_that_was_upgraded_goes_on_secretly(
    running: Running, authority: Authority
) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    with context.wrap_socket(running.connect(), server_hostname="127.0.0.1") as sock:
        sock.sendall(
            b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
        )
        assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")
        sock.sendall(b"shout")

        assert sock.recv(100) == b"SHOUT"


def test_nothing_older_than_tls_1_2_is_spoken(running: Running) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1

    with running.connect() as sock, pytest.raises(ssl.SSLError):
        old.wrap_socket(sock)


class TestTrust:
    def test_a_stranger_s_certificate_is_refused_and_the_error_says_why(
        self, running: Running
    ) -> None:
        with pytest.raises(EverfoldError, match="certificate does not verify") as caught:
            ask(running.url, None)

        assert caught.value.kind is Kind.UNAVAILABLE
        assert "--ca-file" in str(caught.value)

    def test_a_certificate_for_another_host_is_refused(
        self, place: Place, authority: Authority
    ) -> None:
        elsewhere = tls.Certificate(*authority.issue("elsewhere", "files.example.org"))
        with (
            served(place, elsewhere) as running,
            pytest.raises(EverfoldError, match=r"certificate does not verify.*127\.0\.0\.1"),
        ):
            ask(running.url, authority)

    def test_the_tools_client_says_the_same(self, running: Running, authority: Authority) -> None:
        with Api(running.url) as api, pytest.raises(EverfoldError) as caught:
            api.call("GET", "/")
        with Api(running.url, ca_file=str(authority.ca_file)) as trusting:
            told = trusting.call("GET", "/")

        assert "certificate does not verify" in str(caught.value)
        assert told["wsgi.url_scheme"] == "https"

    @pytest.mark.parametrize("what", ["nothing", "rubbish", "folder"])
    def test_a_file_without_authorities_is_refused_at_once(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / what
        if what == "rubbish":
            path.write_text("not a certificate")
        elif what == "folder":
            path.mkdir()

        with pytest.raises(EverfoldError) as caught:
            HttpTransport("https://127.0.0.1:1", ca_file=str(path))
        with pytest.raises(EverfoldError) as of_tools:
            Api("https://127.0.0.1:1", ca_file=str(path))

        assert caught.value.kind is of_tools.value.kind is Kind.INVALID
        assert caught.value.subject == str(path)


class TestTheWrongProtocol:
    def test_plain_http_at_a_tls_port_is_told_so(self, running: Running) -> None:
        with pytest.raises(EverfoldError, match="TLS is spoken here") as caught:
            Api(running.url.replace("https", "http")).call("GET", "/")

        assert caught.value.kind is Kind.INVALID

    def test_tls_at_a_plain_port_is_told_so_at_once(
        self, place: Place, authority: Authority
    ) -> None:
        with served(place, None) as plain:
            url = plain.url.replace("http", "https")
            with pytest.raises(EverfoldError, match="does not speak TLS") as caught:
                ask(url, authority)
            with Api(url) as api, pytest.raises(EverfoldError, match="does not speak TLS"):
                api.call("GET", "/")

        assert caught.value.kind is Kind.UNAVAILABLE

    def test_a_body_that_is_refused_unread_still_gets_its_answer(
        self, running: Running, authority: Authority
    ) -> None:
        status, _, body = ask(running.url, authority, "POST", "/echo", body=b"x" * (BODY_MAX + 1))

        assert status == 413
        assert b"too_large" in body


def test_a_slow_handshake_holds_up_nobody_and_ends_by_itself(
    running: Running, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everfold.peer._HANDSHAKE_S", 0.3)
    with running.connect() as silent, running.connect() as slow:
        slow.sendall(b"\x16\x03\x01\x02")
        assert ask(running.url, authority)[0] == 200

        assert slow.recv(100) == b""  # it took too long
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recv(1)  # nothing was begun: it may still


class TestRenewal:
    def hosts(self, certificate: tls.Certificate, authority: Authority, place: Place) -> str:
        """Return whom the certificate that is shown now is for."""
        with served(place, certificate) as running:
            context = ssl.create_default_context(cafile=str(authority.ca_file))
            context.check_hostname = False
            with context.wrap_socket(running.connect()) as sock:
                shown = sock.getpeercert()
        assert shown is not None
        return str(shown["subjectAltName"])

    @pytest.fixture
    def own(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path)

    def test_a_renewed_certificate_is_shown_without_a_restart(
        self, own: Authority, place: Place
    ) -> None:
        certificate = tls.Certificate(*own.issue("it", "one.example"))
        assert "one.example" in self.hosts(certificate, own, place)

        own.issue("it", "two.example")
        certificate.reload()

        assert "two.example" in self.hosts(certificate, own, place)

    def test_it_is_noticed_without_being_told(self, own: Authority, place: Place) -> None:
        certificate = tls.Certificate(*own.issue("it", "one.example"))
        own.issue("it", "two.example")
        before = certificate.context()

        wait_until(lambda: certificate.context() is not before, 10, "the renewed one is loaded")

        assert "two.example" in self.hosts(certificate, own, place)

    @pytest.mark.expects_warnings
    def test_a_broken_one_leaves_the_old_one_in_place(
        self, own: Authority, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        paths = own.issue("it", "one.example")
        certificate = tls.Certificate(*paths)

        paths[0].write_text("half a certific")
        certificate.reload()

        assert "one.example" in self.hosts(certificate, own, place)
        assert "the certificate in use stays" in caplog.text

    def test_a_server_looks_again_at_sighup(self, own: Authority) -> None:
        chain, key = own.issue("it", "127.0.0.1")
        code = (
            "import sys\nfrom everfold import serving, tls\n"
            "sock = serving.listen('127.0.0.1', 0)\n"
            "print(sock.getsockname()[1], flush=True)\n"
            "serving.serve(lambda e, s: (s('200 OK', []), [b'ok'])[1], sock, grace_s=1,"
            " tls=tls.Certificate(*sys.argv[1:]))\n"
        )
        root = str(Path(__file__).resolve().parent.parent)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(chain), str(key)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            url = f"https://127.0.0.1:{process.stdout.readline().strip()}"
            assert ask(url, own)[2] == b"ok"
            process.send_signal(signal.SIGHUP)
            assert ask(url, own)[2] == b"ok"
        finally:
            process.terminate()
            status = process.wait(20)
            assert process.stdout is not None
            process.stdout.close()

        assert status == 0


class TestTheFiles:
    def test_a_key_in_the_certificate_s_file_is_enough(
        self, tmp_path: Path, authority: Authority
    ) -> None:
        chain, key = authority.issue("both", "127.0.0.1")
        both = tmp_path / "both.pem"
        both.write_bytes(key.read_bytes() + chain.read_bytes())

        assert tls.certificate(str(both), "") is not None

    @pytest.mark.parametrize("what", ["absent", "anothers key", "no key", "encrypted"])
    def test_files_of_no_use_are_refused(
        self, tmp_path: Path, authority: Authority, what: str
    ) -> None:
        chain, key = authority.issue("mine", "127.0.0.1")
        other = authority.issue("other", "127.0.0.1")[1]
        secret = tmp_path / "secret.key"
        if what == "encrypted":
            subprocess.run(
                ["openssl", "rsa", "-aes128", "-passout", "pass:1234", "-in", key, "-out", secret],
                check=False, capture_output=True,
            )  # fmt: skip
            subprocess.run(
                ["openssl", "ec", "-aes128", "-passout", "pass:1234", "-in", key, "-out", secret],
                check=False, capture_output=True,
            )  # fmt: skip
        given = {
            "absent": (tmp_path / "no", key),
            "anothers key": (chain, other),
            "no key": (chain, None),
            "encrypted": (chain, secret),
        }[what]

        with pytest.raises(EverfoldError) as caught:
            tls.Certificate(*given)

        assert caught.value.kind is Kind.INVALID

    def test_a_key_alone_is_a_mistake(self) -> None:
        with pytest.raises(EverfoldError):
            tls.certificate("", "/some/key.pem")

        assert tls.certificate("", "") is None


def test_many_threads_share_a_certificate(authority: Authority) -> None:
    certificate = tls.Certificate(*authority.issue("shared", "127.0.0.1"))
    found: list[ssl.SSLContext] = []

    def look() -> None:
        certificate.reload()
        found.append(certificate.context())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(map(id, found))) == 1
