"""A WebSocket on a connection of our server, as Engine.IO wants one.

The connection's own thread receives; whoever has something sends. The socket does not block:
each call has a deadline of its own, and OpenSSL, which must not be used by two threads at once,
is only called under a lock that nobody waits with. (simple-websocket takes a thread more for each
client, sends without regard to a second sender, and not all of what is long.) Messages are not
compressed: that takes 300 KiB for each client, to save a third of a few hundred bytes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from everfold.exchange import Environ, StartResponse

_log = logging.getLogger(__name__)

SILENT_S: Final = 60.0  # Engine.IO's client answers a ping every 25 s
SEND_S: Final = 20.0  # for one message
_GOODBYE_S: Final = 1.0
_RECV: Final = 4096
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_WANTS: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
MESSAGE_MAX: Final = 64 * 1024  # bytes that a client may say at once


class WebSocket:
    """One connection; called once, as a WSGI application. `speak` is Engine.IO's part of it."""

    def __init__(self, speak: Callable[[WebSocket], object]) -> None:
        self._speak = speak
        self._frames = Connection(ConnectionType.SERVER)
        self._call = threading.Lock()  # around each call of the socket; nobody waits with it
        self._turn = threading.Lock()  # to send one message whole; guards _is_over
        self._is_over = False
        self._inbox: list[str | bytes] = []
        self._begun: list[str | bytes] = []  # of a message that comes in parts
        self._begun_size = 0

    def __call__(self, environ: Environ, start_response: StartResponse) -> tuple[bytes, ...]:
        """Speak until one side has enough; nothing of HTTP is left to be answered then.

        (A tuple: Engine.IO would take a list for packets, and answer once more.)
        """
        sock = environ.get("werkzeug.socket")
        accept = _accepted(environ)
        if sock is None or accept is None:
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return (b"not a WebSocket",)
        self._stream: socket.socket = sock  # not "_sock": Engine.IO would set its timeout
        sock.setblocking(False)
        try:
            self._send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self._speak(self)
        except (OSError, ValueError, IndexError, TypeError) as err:  # the latter: no Engine.IO
            _log.debug("a client is let go: %r", err)
        finally:
            self.close()
        return ()

    # ------------------------------------------------------------ as Engine.IO calls it

    def send(self, message: str | bytes) -> None:
        """Send a message; OSError when the client does not take it."""
        event = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        try:
            self._tell(event)
        except LocalProtocolError as err:
            raise ConnectionAbortedError("the connection is over") from err

    def wait(self) -> str | bytes | None:
        """Return the next message; None when there is none any more."""
        try:
            while not self._inbox:
                data = self._receive()
                self._frames.receive_data(data or None)
                for event in self._frames.events():
                    if not self._take(event):
                        return None
                if not data:
                    return None
        except (OSError, RemoteProtocolError, LocalProtocolError, UnicodeError) as err:
            _log.debug("a client is gone: %s", err)
            return None
        return self._inbox.pop(0)

    def close(self) -> None:
        """Say goodbye if that can be done at once, and hang up: whoever waits here returns."""
        if self._is_over:
            return
        with contextlib.suppress(OSError, LocalProtocolError):
            self._tell(CloseConnection(CloseReason.GOING_AWAY), _GOODBYE_S)
        self.hang_up()

    def hang_up(self) -> None:
        """End the connection at once, from any thread."""
        self._is_over = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._stream, socket.SHUT_RDWR)

    # ------------------------------------------------------------ frames

    def _take(self, event: Event) -> bool:
        """Deal with what came; tell whether more may follow."""
        if isinstance(event, Message):
            self._begun.append(event.data)
            self._begun_size += len(event.data) + 1
            if self._begun_size > MESSAGE_MAX:
                raise RemoteProtocolError("a message is too long")
            if event.message_finished:
                self._inbox.append(_joined(self._begun))
                self._begun, self._begun_size = [], 0
        elif isinstance(event, Ping):
            self._tell(event.response())
        elif isinstance(event, CloseConnection):
            with contextlib.suppress(OSError, LocalProtocolError):
                self._tell(event.response(), _GOODBYE_S)
            return False
        return True

    def _tell(self, event: Event, within_s: float = SEND_S) -> None:
        if not self._turn.acquire(timeout=within_s):
            raise TimeoutError("another message is still being sent")
        try:
            self._send(self._frames.send(event), within_s)
        finally:
            self._turn.release()

    # ------------------------------------------------------------ bytes

    def _send(self, data: bytes, within_s: float = SEND_S) -> None:
        left = memoryview(data)
        ends = time.monotonic() + within_s
        while left:
            try:
                with self._call:
                    sent = self._stream.send(left)
            except _WANTS as err:
                self._wait_for(_wanted(err, select.POLLOUT), ends)
            except ConnectionError:
                self._is_over = True
                raise
            else:
                left = left[sent:]

    def _receive(self) -> bytes:
        ends = time.monotonic() + SILENT_S
        while True:
            try:
                with self._call:
                    return self._stream.recv(_RECV)
            except _WANTS as err:
                self._wait_for(_wanted(err, select.POLLIN), ends)

    def _wait_for(self, what: int, ends: float) -> None:
        if self._is_over:
            raise ConnectionAbortedError("hung up")
        poll = select.poll()
        poll.register(self._stream, what)
        left = ends - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            self.hang_up()  # half a message may have been sent
            raise TimeoutError("too slow")


def _wanted(err: OSError, otherwise: int) -> int:
    """Return what TLS waits for, which need not be the direction of the call."""
    if isinstance(err, ssl.SSLWantReadError):
        return select.POLLIN
    return select.POLLOUT if isinstance(err, ssl.SSLWantWriteError) else otherwise


def _joined(parts: list[str | bytes]) -> str | bytes:
    if isinstance(parts[0], str):
        return "".join(part for part in parts if isinstance(part, str))
    return b"".join(part for part in parts if not isinstance(part, str))


def _accepted(environ: Environ) -> bytes | None:
    """Return what accepts a client's handshake (RFC 6455, 4.2.2); None when it is none."""
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    try:
        is_key = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return None
    if not is_key or environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        return None
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest())
