"""HTTP/1.1 to one server over kept sockets: `HttpTransport`.

Written out instead of taken from a library because of its place: every cold lookup, every
small commit and every block goes through here. Measured side by side on a busy machine:
urllib3 spends 280-410 us of this process's time on a small call, this 60-90 us. It speaks what
our servers speak (Content-Length or chunked answers, kept connections, TLS), not more.

A deadline covers the whole call: connecting, sending, and the last byte of the answer.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable
from urllib.parse import urlsplit

from everfold.errors import EverfoldError, Kind

Body = bytes | memoryview | Iterable[bytes | memoryview] | None

_CONNECT_S = 2.0
_HEAD_MAX = 64 * 1024
_RECV = 256 * 1024
_PIECES_MAX = 512  # of one sendmsg; the kernel takes 1,024


class _Closed(Exception):
    """The server hung up."""


class _Unheard(Exception):
    """The server hung up without a byte of an answer."""


class _Connection:
    """One socket; used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.has_heard = False  # a byte of the answer to the last request came
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)

    def is_stale(self) -> bool:
        """Tell whether an idle connection was closed (or spoken to) by the server."""
        return bool(self._buffer) or bool(self._poll.poll(0))

    def send(self, pieces: list[bytes | memoryview], ends: float) -> bool:
        """Send all pieces, with as few copies as the socket allows; False when cut off."""
        self.has_heard = False
        try:
            self._send(pieces, ends)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _send(self, pieces: list[bytes | memoryview], ends: float) -> None:
        if isinstance(self.sock, ssl.SSLSocket):
            self._deadline(ends)
            self.sock.sendall(b"".join(pieces))
            return
        waiting = deque(memoryview(piece).cast("B") for piece in pieces if len(piece))
        while waiting:
            self._deadline(ends)
            sent = self.sock.sendmsg([waiting[i] for i in range(min(len(waiting), _PIECES_MAX))])
            while sent and sent >= len(waiting[0]):
                sent -= len(waiting.popleft())
            if sent:
                waiting[0] = waiting[0][sent:]

    def receive(self, method: str, ends: float) -> tuple[int, dict[str, str], bytes, bool]:
        """Return (status, headers, body, whether the connection can be used again)."""
        while True:
            head = self._head(ends)
            lines = head.split(b"\r\n")
            version, status = _status(lines[0])
            if status >= 200:
                break  # 1xx: the real answer follows
        headers = dict(_header(line) for line in lines[1:])
        keep = headers.get("connection", "").lower() != "close" and version == b"HTTP/1.1"
        if method == "HEAD" or status in (204, 304):
            return status, headers, b"", keep
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return status, headers, self._chunks(ends), keep
        if "content-length" in headers:
            return status, headers, self._exactly(_length(headers["content-length"]), ends), keep
        return status, headers, self._rest(ends), False

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _deadline(self, ends: float) -> None:
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def _more(self, ends: float) -> None:
        self._deadline(ends)
        data = self.sock.recv(_RECV)
        if not data:
            raise _Closed
        self.has_heard = True
        self._buffer += data

    def _until(self, mark: bytes, limit: int, ends: float) -> bytes:
        at = 0
        while (found := self._buffer.find(mark, at)) < 0:
            if len(self._buffer) > limit:
                raise ValueError("a line without end")
            at = max(0, len(self._buffer) - len(mark))
            self._more(ends)
        line = bytes(self._buffer[:found])
        del self._buffer[: found + len(mark)]
        return line

    def _head(self, ends: float) -> bytes:
        return self._until(b"\r\n\r\n", _HEAD_MAX, ends)

    def _exactly(self, length: int, ends: float) -> bytes:
        if len(self._buffer) >= length:
            body = bytes(self._buffer[:length])
            del self._buffer[:length]
            return body
        whole = bytearray(length)
        view, filled = memoryview(whole), len(self._buffer)
        view[:filled] = self._buffer
        self._buffer.clear()
        while filled < length:
            self._deadline(ends)
            count = self.sock.recv_into(view[filled:])
            if not count:
                raise _Closed
            filled += count
        view.release()
        return bytes(whole)

    def _chunks(self, ends: float) -> bytes:
        parts = []
        while size := int(self._until(b"\r\n", 1024, ends).split(b";")[0], 16):
            parts.append(self._exactly(size, ends))
            self._until(b"\r\n", 2, ends)
        while self._until(b"\r\n", _HEAD_MAX, ends):
            pass  # trailers say nothing that we use
        return b"".join(parts)

    def _rest(self, ends: float) -> bytes:
        try:
            while True:
                self._more(ends)
        except _Closed:
            body = bytes(self._buffer)
            self._buffer.clear()
            return body


class HttpTransport:
    """A pool of connections to one server; see `services.Transport`.

    At most `connections` idle ones are kept; more are opened while they are needed.
    """

    def __init__(self, base_url: str, connections: int = 16, ca_file: str | None = None) -> None:
        parts = urlsplit(base_url)
        try:
            port = parts.port
        except ValueError as err:
            raise EverfoldError(Kind.INVALID, "not the URL of a server", base_url) from err
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EverfoldError(Kind.INVALID, "not the URL of a server", base_url)
        self.base_url = base_url.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._address = (parts.hostname, port or (443 if parts.scheme == "https" else 80))
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._host = parts.netloc.rpartition("@")[2]
        self._connections = connections
        self._lock = threading.Lock()  # guards _idle
        self._idle: list[_Connection] = []

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Body = None,
        timeout_s: float,
    ) -> tuple[int, dict[str, str], bytes]:
        """See `services.Transport.request`."""
        ends = time.monotonic() + timeout_s
        pieces = self._request(method, path, headers, body)
        kept = self._idle_one()
        if kept is not None:
            try:
                return self._ask(kept, method, pieces, ends, timeout_s)
            except _Unheard:
                pass  # closed while it was idle, as servers do: ask again on a fresh one
        try:
            fresh = self._connect(min(ends, time.monotonic() + _CONNECT_S))
        except OSError as err:
            raise self._unreachable(str(err) or "it does not accept connections") from err
        try:
            return self._ask(fresh, method, pieces, ends, timeout_s)
        except _Unheard as err:
            raise self._unreachable("it hung up") from err

    def _ask(
        self,
        connection: _Connection,
        method: str,
        pieces: list[bytes | memoryview],
        ends: float,
        timeout_s: float,
    ) -> tuple[int, dict[str, str], bytes]:
        can_be_used = False
        try:
            # A server may refuse a body before it has read it, and close: its answer counts.
            was_cut_off = not connection.send(pieces, ends)
            status, got, data, can_be_used = connection.receive(method, ends)
            can_be_used = can_be_used and not was_cut_off
        except TimeoutError as err:
            raise EverfoldError(
                Kind.TIMEOUT, f"no answer in {timeout_s:g} s", self.base_url
            ) from err
        except (OSError, _Closed) as err:
            if not connection.has_heard:
                raise _Unheard from err
            raise self._unreachable(str(err) or "it hung up") from err
        except ValueError as err:
            raise self._unreachable(f"it does not speak HTTP: {err}") from err
        finally:
            self._keep(connection, can_be_used)
        return status, got, data

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _unreachable(self, why: str) -> EverfoldError:
        return EverfoldError(Kind.UNAVAILABLE, f"cannot reach it: {why}", self.base_url)

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: Body
    ) -> list[bytes | memoryview]:
        pieces: list[bytes | memoryview]
        if body is None:
            pieces = []
        elif isinstance(body, (bytes, memoryview)):
            pieces = [body]
        else:
            pieces = list(body)
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if (body is not None or method in ("POST", "PUT")) and "Content-Length" not in headers:
            lines.append(f"Content-Length: {sum(len(piece) for piece in pieces)}")
        head = "\r\n".join((*lines, "", ""))
        if "\n" in "".join(lines) or "\r" in "".join(lines) or not head.isascii():
            raise EverfoldError(Kind.INVALID, "not a header or a path", self.base_url)
        return [head.encode("ascii"), *pieces]

    def _idle_one(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not connection.is_stale():
                return connection
            connection.close()

    def _connect(self, ends: float) -> _Connection:
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock = socket.create_connection(self._address, left)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
        except BaseException:
            sock.close()
            raise
        return _Connection(sock)

    def _keep(self, connection: _Connection, can_be_used: bool) -> None:
        if can_be_used:
            with self._lock:
                if len(self._idle) < self._connections:
                    self._idle.append(connection)
                    return
        connection.close()


def _status(line: bytes) -> tuple[bytes, int]:
    version, _, rest = line.partition(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError(f"{line[:40]!r}")
    return version, int(rest[:3])


def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon:
        raise ValueError(f"{line[:40]!r}")
    return name.decode("latin-1").lower(), value.strip().decode("latin-1")


def _length(text: str) -> int:
    length = int(text)
    if length < 0:
        raise ValueError("a negative length")
    return length
