"""HTTP/1.1 to one server over kept sockets: `HttpTransport`.

Written out instead of taken from a library because of its place: every cold lookup, every
small commit and every block goes through here. Measured side by side on a busy machine:
urllib3 spends 280-410 us of this process's time on a small call. It speaks what our servers
speak (Content-Length or chunked answers, kept connections, TLS), not more.

A deadline covers the whole call: connecting, sending, and the last byte of the answer. On plain
sockets the kernel keeps it (SO_RCVTIMEO, SO_SNDTIMEO), set only when it has to change: Python's
own timeouts cost a poll(2) before every system call.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from everfold import tls
from everfold.errors import EverfoldError, Kind
from everfold.fileslice import FileSlice

Body = bytes | memoryview | FileSlice | Iterable[bytes | memoryview] | None
Answer = tuple[int, dict[str, str], bytes]
Pieces = list[bytes | memoryview]

_CONNECT_S = 2.0
_HEAD_MAX = 64 * 1024
_RECV = 16 * 1024  # larger ones are taken from the system and given back at each call
_PIECE = 8 * 1024 * 1024  # of an answer, received at once
_PIECES_MAX = 512  # of one sendmsg; the kernel takes 1,024
_SLACK_S = 0.005  # a limit of the socket's that is so much too long is not shortened
_LIMIT = struct.Struct("@ll")  # struct timeval


class _Closed(Exception):
    """The server hung up."""


class _Unheard(Exception):
    """The server hung up without a byte of an answer."""


class _Connection:
    """One socket; used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.has_heard = False  # a byte of the answer to the last request came
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._limits = {socket.SO_RCVTIMEO: 0.0, socket.SO_SNDTIMEO: 0.0}  # 0: none yet
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
        if not self._is_tls:
            sock.setblocking(True)

    def is_ready(self, within_s: float = 0.0) -> bool:
        """Tell whether there is something to receive, or the server hung up."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        return bool(self._poll.poll(within_s * 1000))

    def send(self, pieces: Pieces, file: FileSlice | None, ends: float) -> bool:
        """Send all pieces and the file, with as few copies as can be; False when cut off."""
        self.has_heard = False
        self._limit(socket.SO_SNDTIMEO, ends)
        try:
            if file is not None:
                self._send_file(pieces, file, ends)
                return True
            if self._is_tls:
                self.sock.sendall(b"".join(pieces))
                return True
            size = sum(map(len, pieces))
            sent = self.sock.sendmsg(pieces[:_PIECES_MAX])
            if sent < size:
                self._send_rest(pieces, sent, ends)
        except (BrokenPipeError, ConnectionResetError):
            return False
        except BlockingIOError as err:
            raise TimeoutError from err
        return True

    def _send_file(self, pieces: Pieces, file: FileSlice, ends: float) -> None:
        """Send what ends with a slice of a file; the kernel takes that from the page cache."""
        head = b"".join(pieces)
        if self._is_tls:
            self.sock.sendall(head + bytes(file))
            return
        self.sock.sendall(head, socket.MSG_MORE)
        at, end = file.offset, file.offset + len(file)
        while at < end:
            self._limit(socket.SO_SNDTIMEO, ends)
            sent = os.sendfile(self.sock.fileno(), file.fileno(), at, end - at)
            if not sent:
                raise OSError(errno.EIO, "bytes of a file are gone")
            at += sent

    def _send_rest(self, pieces: Pieces, sent: int, ends: float) -> None:
        waiting = deque(memoryview(piece) for piece in pieces)
        while True:
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.popleft())
            if not waiting:
                return
            waiting[0] = waiting[0][sent:]
            self._limit(socket.SO_SNDTIMEO, ends)
            sent = self.sock.sendmsg([waiting[i] for i in range(min(len(waiting), _PIECES_MAX))])

    def receive(self, method: str, ends: float) -> tuple[Answer, bool]:
        """Return the answer, and whether the connection can be used again."""
        raw, rest = self._head(method, ends)
        head = _read(raw)
        while head.status < 200:  # the real one follows
            raw, rest = self._until(b"\r\n\r\n", rest, _HEAD_MAX, ends)
            head = _read(raw)
        if method == "HEAD" or head.status in (204, 304):
            body = b""
        elif head.is_chunked:
            body, rest = self._chunks(rest, ends)
        elif head.length is not None:
            body, rest = self._exactly(head.length, rest, ends)
        else:
            return (head.status, head.headers, self._to_the_end(rest, ends)), False
        return (head.status, head.headers, body), head.keep and not rest

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _limit(self, which: int, ends: float) -> None:
        """Let the next system calls of one direction wait until `ends`, and no longer."""
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._is_tls:
            self.sock.settimeout(left)
            return
        limit = self._limits[which]
        if not left - _SLACK_S <= limit <= left + _SLACK_S:
            whole = int(left)
            value = _LIMIT.pack(whole, int((left - whole) * 1e6) or 1)
            self.sock.setsockopt(socket.SOL_SOCKET, which, value)
            self._limits[which] = left

    def _more(self, count: int, ends: float, flags: int = 0) -> bytes:
        self._limit(socket.SO_RCVTIMEO, ends)
        try:
            data = self.sock.recv(count, 0 if self._is_tls else flags)
        except BlockingIOError as err:
            raise TimeoutError from err
        if not data:
            raise _Closed
        self.has_heard = True
        return data

    def _head(self, method: str, ends: float) -> tuple[bytes, bytes]:
        """Receive the head of an answer; what came behind it is the second part.

        The answer to a GET is a block, and is received in one piece without a copy when the
        head is taken off first; looking before costs a system call, a copy of 4 MiB 800 us.
        """
        if method != "GET" or self._is_tls:
            return self._until(b"\r\n\r\n", b"", _HEAD_MAX, ends)
        seen = self._more(2048, ends, socket.MSG_PEEK).find(b"\r\n\r\n")
        data = self._more(seen + 4, ends) if seen >= 0 else b""
        return self._until(b"\r\n\r\n", data, _HEAD_MAX, ends)

    def _until(self, mark: bytes, data: bytes, limit: int, ends: float) -> tuple[bytes, bytes]:
        while (found := data.find(mark)) < 0:
            if len(data) > limit:
                raise ValueError("a line without end")
            data += self._more(_RECV, ends)
        return data[:found], data[found + len(mark) :]

    def _exactly(self, length: int, data: bytes, ends: float) -> tuple[bytes, bytes]:
        if len(data) >= length:
            return data[:length], data[length:]
        parts, left = [data] if data else [], length - len(data)
        while left:
            part = self._more(min(left, _PIECE), ends, socket.MSG_WAITALL)
            parts.append(part)
            left -= len(part)
        return (parts[0] if len(parts) == 1 else b"".join(parts)), b""

    def _chunks(self, data: bytes, ends: float) -> tuple[bytes, bytes]:
        parts = []
        while True:
            line, data = self._until(b"\r\n", data, 1024, ends)
            size = _length(line.split(b";")[0], 16)
            if not size:
                break
            part, data = self._exactly(size, data, ends)
            parts.append(part)
            _, data = self._until(b"\r\n", data, 2, ends)
        while line:  # trailers say nothing that we use
            line, data = self._until(b"\r\n", data, _HEAD_MAX, ends)
        return b"".join(parts), data

    def _to_the_end(self, data: bytes, ends: float) -> bytes:
        parts = [data]
        try:
            while True:
                parts.append(self._more(_RECV, ends))
        except _Closed:
            return b"".join(parts)


class _Call:
    """A request on its way; see `services.Pending`. Whoever began it receives the answer."""

    __slots__ = ("_connection", "_ends", "_failed", "_file", "_is_kept", "_method", "_pieces",
                 "_timeout_s", "_transport", "_was_cut_off")  # fmt: skip

    def __init__(
        self,
        transport: HttpTransport,
        method: str,
        request: tuple[Pieces, FileSlice | None],
        ends: float,
        timeout_s: float,
    ) -> None:
        self._transport = transport
        self._method = method
        self._pieces, self._file = request
        self._ends = ends
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None
        self._failed: EverfoldError | None = None
        self._was_cut_off = False
        kept = transport._idle_one()
        self._is_kept = kept is not None and self._send(kept)
        if not self._is_kept:
            self._ask_afresh()

    def _ask_afresh(self) -> None:
        self._is_kept, self._failed = False, None
        try:
            fresh = self._transport._connect(min(self._ends, time.monotonic() + _CONNECT_S))
        except OSError as err:
            why = tls.failure(err) or "it does not accept connections"
            self._failed = self._unreachable(why, err)
            return
        self._send(fresh)

    def _send(self, connection: _Connection) -> bool:
        """Send; False when the connection was of no use, which `result` tells."""
        try:
            # A server may refuse a body before it has read it, and close: its answer counts.
            self._was_cut_off = not connection.send(self._pieces, self._file, self._ends)
        except TimeoutError as err:
            connection.close()
            self._failed = self._timed_out(err)
            return True
        except OSError as err:
            connection.close()
            self._failed = self._unreachable(str(err), err)
            return False
        self._connection = connection
        return True

    def is_ready(self, within_s: float = 0.0) -> bool:
        """See `services.Pending.is_ready`."""
        return self._connection is None or self._connection.is_ready(within_s)

    def result(self) -> Answer:
        """See `services.Pending.result`."""
        if self._failed is not None:
            raise self._failed
        try:
            return self._receive()
        except _Unheard as err:
            if not self._is_kept:
                raise self._unreachable("it hung up", err) from err
        self._ask_afresh()  # it was closed while it was idle, as servers do
        return self.result()

    def _receive(self) -> Answer:
        connection, self._connection = self._connection, None
        if connection is None:
            raise EverfoldError(Kind.INTERRUPTED, "the answer was taken, or given up")
        can_be_used = False
        try:
            answer, can_be_used = connection.receive(self._method, self._ends)
        except TimeoutError as err:
            raise self._timed_out(err) from err
        except (OSError, _Closed) as err:
            if not connection.has_heard:
                raise _Unheard from err
            raise self._unreachable(str(err) or "it hung up", err) from err
        except ValueError as err:
            raise self._unreachable(f"it does not speak HTTP: {err}", err) from err
        finally:
            self._transport._keep(connection, can_be_used and not self._was_cut_off)
        return answer

    def cancel(self) -> None:
        """See `services.Pending.cancel`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _timed_out(self, cause: Exception) -> EverfoldError:
        why = f"no answer in {self._timeout_s:g} s"
        return _because(cause, Kind.TIMEOUT, why, self._transport.base_url)

    def _unreachable(self, why: str, cause: Exception) -> EverfoldError:
        url = self._transport.base_url
        return _because(cause, Kind.UNAVAILABLE, f"cannot reach it: {why}", url)


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
        self._tls = tls.client_context(ca_file) if parts.scheme == "https" else None
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
    ) -> Answer:
        """See `services.Transport.request`."""
        return self.begin(method, path, headers=headers, body=body, timeout_s=timeout_s).result()

    def begin(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Body = None,
        timeout_s: float,
    ) -> _Call:
        """See `services.Transport.begin`."""
        ends = time.monotonic() + timeout_s
        return _Call(self, method, self._request(method, path, headers, body), ends, timeout_s)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: Body
    ) -> tuple[Pieces, FileSlice | None]:
        pieces: Pieces
        file = body if isinstance(body, FileSlice) else None
        if body is None or isinstance(body, FileSlice):
            pieces = []
        elif isinstance(body, (bytes, memoryview)):
            pieces = [body]
        else:
            pieces = list(body)
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        count = len(headers) + 3
        if (body is not None or method in ("POST", "PUT")) and "Content-Length" not in headers:
            size = sum(map(len, pieces)) + (len(file) if file is not None else 0)
            fields = f"{fields}Content-Length: {size}\r\n"
            count += 1
        line = f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}\r\n"
        head = f"{line}{fields}\r\n"
        if not head.count("\n") == head.count("\r") == count or not head.isascii():
            raise EverfoldError(Kind.INVALID, "not a header or a path", self.base_url)
        return [head.encode("ascii"), *pieces], file

    def _idle_one(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not connection.is_ready():  # neither closed nor spoken to meanwhile
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
                sock.settimeout(max(0.001, ends - time.monotonic()))
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


def _because(cause: Exception, kind: Kind, why: str, url: str) -> EverfoldError:
    error = EverfoldError(kind, why, url)
    error.__cause__ = cause
    return error


class _Head(NamedTuple):
    """What an answer says before its body. Not to be changed: see `_read`."""

    status: int
    headers: dict[str, str]
    length: int | None
    is_chunked: bool
    keep: bool


@functools.lru_cache(maxsize=128)
def _read(raw: bytes) -> _Head:
    """Return the head that these bytes are. Raises ValueError.

    Within a second most answers to small calls begin with the same bytes: 5 us saved on each.
    """
    lines = raw.decode("latin-1").split("\r\n")
    version, _, told = lines[0].partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"{lines[0][:40]!r}")
    headers = dict(map(_header, lines[1:]))
    length = headers.get("content-length")
    return _Head(
        int(told[:3]),
        headers,
        None if length is None else _length(length),
        "chunked" in headers.get("transfer-encoding", "").lower(),
        version == "HTTP/1.1" and headers.get("connection", "").lower() != "close",
    )


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError(f"{line[:40]!r}")
    return name.lower(), value.strip()


def _length(text: str | bytes, base: int = 10) -> int:
    length = int(text, base)
    if length < 0:
        raise ValueError("a negative length")
    return length
