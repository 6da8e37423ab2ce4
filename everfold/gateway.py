"""WSGI for the requests that no direct handler takes: environ in, chunks out.

What PEP 3333 asks of a server, for applications such as Flask. The raw socket is reachable as
``werkzeug.socket``, so that an application may go on in another protocol (WebSocket). How long that
may be silent is then the application's to say; to ask for it lifts no limit yet.
"""

from __future__ import annotations

import io
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote_to_bytes

from everfold.errors import EverfoldError, Kind
from everfold.exchange import STATUS_LINES, Environ, Wsgi, answer_head, refusal
from everfold.heads import Head

if TYPE_CHECKING:
    from everfold.peer import Peer

_log = logging.getLogger(__name__)
_BODILESS = ("204", "304")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_TRAILERS_MAX = 100


class FileBody:
    """``wsgi.file_wrapper``: a file as a body, sent by sendfile(2) where that can be done."""

    def __init__(self, file: BinaryIO, size: int = 64 * 1024) -> None:
        self.file = file
        self._size = size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.file.read(self._size), b"")

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class _Body(io.RawIOBase):
    """A body of known length: ``wsgi.input``, under the buffer that gives it read and readline."""

    def __init__(self, peer: Peer, length: int) -> None:
        self._peer = peer
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._peer.take(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left = self._left - len(data) if data else 0  # 0: it hung up
        return len(data)


class _Chunks(io.RawIOBase):
    """A chunked body. A flaw in it is an OSError: half a body is never taken for a whole one."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._left = 0  # of the present chunk
        self._is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._next()
        count = min(len(buffer), self._left)
        data = self._peer.take(count)
        if len(data) < count:
            raise ConnectionResetError("hung up within a body")
        buffer[:count] = data
        self._left -= count
        if count and not self._left and self._peer.line():
            raise OSError("a chunk is longer than it said")
        return count

    def _next(self) -> None:
        if self._is_over:
            return
        size = self._peer.line().split(b";")[0].strip()
        if _CHUNK_SIZE.fullmatch(size) is None:
            raise OSError("not the length of a chunk")
        self._left = int(size, 16)
        if self._left:
            return
        self._is_over = True
        for _ in range(_TRAILERS_MAX):
            if not self._peer.line():
                self._peer.body_ends()
                return
        raise OSError("trailers without end")


class _Call:
    """One request, answered by a WSGI application."""

    def __init__(self, peer: Peer, head: Head) -> None:
        self.keep = False
        self.has_begun = False  # the head of the answer is on its way
        self._peer = peer
        self._head = head
        self._status = ""
        self._fields: list[tuple[str, str]] = []
        self._is_chunked = False
        self._left: int | None = None  # bytes that the answer still lacks, as its head says

    def run(self, app: Wsgi) -> None:
        """Call the application and send what it answers."""
        upgrades = self._head.fields.wants_upgrade
        result = app(_environ(self._peer, self._head), self.start_response)
        try:
            if upgrades and not self._status:
                return  # the application spoke for itself, on the socket
            if isinstance(result, FileBody) and self._send_file(result):
                return
            only = len(result) == 1 if isinstance(result, (list, tuple)) else False
            for chunk in result:
                if chunk:
                    self._send(chunk, len(chunk) if only else None)
            if not self.has_begun:
                self._send(b"", 0)
            if self._is_chunked:
                self._peer.send([b"0\r\n\r\n"])
            self.keep = self.keep and not self._left and not upgrades
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def start_response(
        self, status: str, fields: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """See PEP 3333."""
        if exc_info is not None and self.has_begun:
            raise exc_info[1].with_traceback(exc_info[2])
        if self._status and exc_info is None:
            raise AssertionError("start_response was called twice")
        if any("\n" in text or "\r" in text for text in (status, *itertools.chain(*fields))):
            raise ValueError("a header field with a line break")
        self._status, self._fields = status, list(fields)
        return lambda chunk: self._send(chunk, None)

    def _send(self, chunk: bytes, length: int | None) -> None:
        """Send a part of the body; `length` is that of all of it when that is known."""
        pieces: list[bytes | memoryview] = []
        if not self.has_begun:
            pieces.append(self._begin(length))
        if self._is_chunked and chunk:
            pieces += [b"%x\r\n" % len(chunk), chunk, b"\r\n"]
        elif self._left is None or self._left:
            part = chunk if self._left is None else chunk[: self._left]
            pieces.append(part)
            self._left = None if self._left is None else self._left - len(part)
        if pieces:
            self._peer.send(pieces)

    def _begin(self, length: int | None) -> bytes:
        """Return the head of the answer; from here on it cannot be taken back."""
        if not self._status:
            raise AssertionError("start_response was not called")
        self.has_begun = True
        self.keep = self._peer.keeps(self._head)
        lines = []
        for name, value in self._fields:
            low = name.lower()
            if low == "content-length":
                self._left = int(value)
            elif low == "connection":
                self.keep = self.keep and value.lower() != "close"
            if low not in ("connection", "date", "transfer-encoding"):
                lines.append(f"{name}: {value}\r\n")
        if self._head.method == "HEAD" or self._status[:3] in _BODILESS:
            self._left = 0
        elif self._left is None and length is not None:
            self._left = length
            lines.append(f"Content-Length: {length}\r\n")
        elif self._left is None and self._head.is_http11:
            self._is_chunked = True
            lines.append("Transfer-Encoding: chunked\r\n")
        elif self._left is None:
            self.keep = False
        return answer_head(self._status, "".join(lines), self._head, self.keep)

    def _send_file(self, body: FileBody) -> bool:
        """Send a file by sendfile(2); False when this is none that can be sent so."""
        if self._head.method == "HEAD" or not isinstance(body.file, io.FileIO):
            return False
        told = self._begin(None)
        if self._is_chunked or self._left is None:
            raise AssertionError("a file needs its Content-Length")
        self._peer.send_file(told, body.file, self._left)
        self._left = 0
        return True


def answer(peer: Peer, head: Head, app: Wsgi) -> bool:
    """Let the application answer; tell whether another request may follow."""
    call = _Call(peer, head)
    try:
        call.run(app)
    except Exception:
        if call.has_begun or head.fields.wants_upgrade:  # what was said there, nobody knows
            raise
        path = head.target.partition("?")[0]  # a query may hold a token
        _log.exception("%s %s failed", head.method, path[:80])
        told = refusal(EverfoldError(Kind.INTERNAL, "a defect of the server; its log tells more"))
        assert isinstance(told.body, bytes)
        fields = f"Content-Type: {told.kind}\r\nContent-Length: {len(told.body)}\r\n"
        peer.send([answer_head(STATUS_LINES[told.status], fields, head, keep=False), told.body])
        return False
    return call.keep


def _environ(peer: Peer, head: Head) -> Environ:
    path, _, query = head.target.partition("?")
    host, port = peer.sock.getsockname()[:2]
    fields = head.fields
    reader = _Chunks(peer) if fields.is_chunked else _Body(peer, fields.length or 0)
    environ: Environ = {
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1") if "%" in path else path,
        "QUERY_STRING": query,
        "REQUEST_URI": head.target,
        "SERVER_NAME": str(host),
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": "HTTP/1.1" if head.is_http11 else "HTTP/1.0",
        "REMOTE_ADDR": str(peer.address[0]),
        "REMOTE_PORT": str(peer.address[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": peer.scheme,
        "wsgi.input": io.BufferedReader(reader),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileBody,
        "werkzeug.socket": peer.sock,
    }
    for name, value in fields.headers.items():
        if "_" not in name:  # it would pass for the same name with dashes
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if "HTTP_" + key in environ:
            environ[key] = environ.pop("HTTP_" + key)
    return environ
