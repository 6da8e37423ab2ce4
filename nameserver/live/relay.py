"""Requests of a polling client that reach another process than the one that knows it.

Processes that share a listening socket (WORKERS) get each connection by chance, and a client that
polls has two. So a session's id begins with the name of its process, under which that listens on
this machine; whoever gets such a request passes it on, an upgrade to a WebSocket byte by byte. The
names are random and die with their process. What comes this way may do no more than what comes by
HTTP. (Between machines the proxy keeps a client to one of them.)
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import secrets
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec

from everfold.exchange import Environ, StartResponse

_log = logging.getLogger(__name__)

NAME: Final = re.compile(r"[0-9a-f]{16}")
BODY_MAX: Final = 64 * 1024
_FRAME_MAX: Final = 4 * 1024 * 1024
_PARKED_S: Final = 60.0  # a poll is answered within 45 s
_CONNECT_S: Final = 2.0
_LENGTH: Final = struct.Struct("!I")
_PIECE: Final = 64 * 1024
Speak = Callable[[Environ, StartResponse], Iterable[bytes]]


class _Asked(msgspec.Struct, array_like=True):
    environ: dict[str, str]
    body: bytes
    upgrades: bool


class _Answered(msgspec.Struct, array_like=True):
    status: str
    fields: list[tuple[str, str]]
    body: bytes


# Made here and not by whichever threads come first: see `wire.codec`.
_ASKED: Final = msgspec.msgpack.Decoder(_Asked)
_ANSWERED: Final = msgspec.msgpack.Decoder(_Answered)
T = TypeVar("T")


class Relay:
    """See the module. `answer` is what this process answers; it listens from `start` on."""

    def __init__(self, answer: Speak) -> None:
        self.name = secrets.token_hex(8)
        self._answer = answer
        self._lock = threading.Lock()  # guards _listener
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Take what others pass on. To be called often."""
        with self._lock:
            if self._listener is not None:
                return
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(_address(self.name))
            self._listener.listen(256)
            threading.Thread(
                target=self._accept, args=(self._listener,), name="relay", daemon=True
            ).start()

    def stop(self) -> None:
        """Take nothing more."""
        with self._lock, contextlib.suppress(OSError):
            if self._listener is not None:
                self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()

    # ------------------------------------------------------------ passing on

    def forward(
        self, owner: str, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Let the process of this name answer. OSError when there is none."""
        upgrades = bool(environ.get("HTTP_UPGRADE"))
        length = min(int(environ.get("CONTENT_LENGTH") or 0), BODY_MAX + 1)
        body = environ["wsgi.input"].read(length) if length else b""
        told = {key: value for key, value in environ.items() if isinstance(value, str)}
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_CONNECT_S)
            sock.connect(_address(owner))
            sock.settimeout(_PARKED_S)
            _send(sock, _Asked(told, body, upgrades))
            if upgrades:
                with contextlib.suppress(OSError):  # it is the end; nothing of HTTP can follow
                    _join(environ["werkzeug.socket"], sock)
                return ()
            answer = _receive(sock, _ANSWERED)
        start_response(answer.status, answer.fields)
        return [answer.body]

    # ------------------------------------------------------------ answering

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # it was closed
            threading.Thread(target=self._serve, args=(sock,), name="relayed", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.settimeout(_CONNECT_S)
                asked = _receive(sock, _ASKED)
                answer = self._ask(asked, sock)
                sock.settimeout(_CONNECT_S)
                if answer is not None and asked.upgrades:
                    sock.sendall(f"HTTP/1.1 {answer.status}\r\nContent-Length: 0\r\n\r\n".encode())
                elif answer is not None:
                    _send(sock, answer)
        except (OSError, msgspec.MsgspecError) as err:
            _log.debug("a relayed request ends: %r", err)
        except Exception:  # noqa: BLE001  # the last stop of a defect: it ends this request only
            _log.exception("a relayed request failed")

    def _ask(self, asked: _Asked, sock: socket.socket) -> _Answered | None:
        """Return the answer; None when the application spoke for itself, on the socket."""
        environ: dict[str, Any] = {**asked.environ, "wsgi.input": io.BytesIO(asked.body)}
        if asked.upgrades:
            environ["werkzeug.socket"] = sock
        heads: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, fields: list[tuple[str, str]], *_: object) -> None:
            heads.append((status, list(fields)))

        body = b"".join(self._answer(environ, start_response))
        return _Answered(*heads[-1], body) if heads else None


def _address(name: str) -> bytes:
    """Return an address without a file (unix(7), abstract)."""
    return b"\0everfold-live-" + name.encode()


def _send(sock: socket.socket, message: msgspec.Struct) -> None:
    raw = msgspec.msgpack.encode(message)
    sock.sendall(_LENGTH.pack(len(raw)) + raw)


def _receive(sock: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> T:
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    if length > _FRAME_MAX:
        raise ConnectionError("not a message of ours")
    return decoder.decode(_exactly(sock, length))


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise ConnectionResetError("hung up")
        data += more
    return data


def _join(client: socket.socket, owner: socket.socket) -> None:
    """Carry bytes both ways until one side has enough."""
    client.settimeout(_PARKED_S)
    poll = select.poll()
    sides = {client.fileno(): (client, owner), owner.fileno(): (owner, client)}
    for each in sides:
        poll.register(each, select.POLLIN)
    while ready := poll.poll(_PARKED_S * 1000):
        for each, _ in ready:
            source, sink = sides[each]
            while True:
                data = source.recv(_PIECE)
                if not data:
                    return
                sink.sendall(data)
                if not (isinstance(source, ssl.SSLSocket) and source.pending()):
                    break
