"""One client's connection to our server: requests off the socket, answers onto it.

A thread belongs to it and blocks in recv(2) between requests: the answer to a small call leaves
two system calls after its question came. (A poller that hands each request to another thread,
as gunicorn does, cost 130 us a call more.) What a client may cost is bounded: the socket's own
time limits end a silent one, totals end one that drips.

Deadlines are the kernel's (`serving.listen` sets them on the listener, sockets inherit them); with
TLS they are Python's. The handshake is this thread's too: a slow one holds up nobody.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from everfold import gateway, tls
from everfold.errors import EverfoldError, Kind
from everfold.exchange import STATUS_LINES, Answer, Front, allowed, answer_head, cut_short, refusal
from everfold.files import DIRECT_MIN, aligned
from everfold.heads import HEAD_MAX, Head, Refused, parse

STALLED_S = 30  # a connection that moves no byte for so long is given up
_SLOWEST = 16 * 1024  # bytes a second below which a body or an answer is given up
_RECV = 8 * 1024  # holds a small request whole; it is what an idle connection costs
_PIECE = 8 * 1024 * 1024  # of a body, received at once
_LARGE = 64 * 1024
_PIECES_MAX = 512  # of one sendmsg; the kernel takes 1,024
_HANDSHAKE_S = 10  # for all of it
_LINGER_S = 1.0
_LINGER_BYTES = 16 * 1024 * 1024


_log = logging.getLogger(__name__)


class Peer:
    """See the module; `serve` is called once, on the thread that the connection gets."""

    def __init__(
        self,
        sock: socket.socket,
        address: Any,
        front: Front,
        certificate: tls.Certificate | None,
        is_ending: Callable[[], bool],
    ) -> None:
        self.sock = sock
        self.address = address
        self.is_idle = False  # between requests; read by the threads of the server
        self.idle_since = time.monotonic()
        self._front = front
        self._certificate = certificate
        self._is_tls = False  # the handshake is done
        self._is_ending = is_ending
        self._rest = b""  # received, and not yet used
        self._left: int | None = 0  # bytes of the request's body still to come; None: chunked
        self._must_continue = False  # the client waits for "100 Continue"
        self._last_was_large = False
        self._must_linger = False

    def serve(self) -> None:
        """Answer until the client has no more to ask, stalls, or the server ends."""
        try:
            if self._certificate is not None and not self._secure(self._certificate):
                return
            while self._exchange():
                pass
        except OSError as err:  # it hung up or stalled: nobody is left to be told
            _log.debug("%s is gone: %s", self.address, err)
        except Exception:  # noqa: BLE001  # the last stop of a defect: it ends this client only
            _log.exception("the connection with %s ends", self.address)
        finally:
            self._close()

    @property
    def scheme(self) -> str:
        """Return how the client reached us."""
        return "https" if self._is_tls else "http"

    def hang_up(self, how: int = socket.SHUT_RDWR) -> None:
        """End the connection from another thread; SHUT_RD lets what was asked be answered."""
        with contextlib.suppress(OSError):
            # not SSLSocket's own, which makes whatever is sent afterwards go in the clear
            socket.socket.shutdown(self.sock, how)

    def _secure(self, certificate: tls.Certificate) -> bool:
        """Agree on keys; False for whoever speaks no TLS, and is told so."""
        self.is_idle = True
        first = self.sock.recv(1, socket.MSG_PEEK)
        self.is_idle = False
        if first and first[0] != tls.HANDSHAKE:
            self._refuse(Refused(HTTPStatus.BAD_REQUEST, "TLS is spoken here: https://"))
            return False
        self.sock.settimeout(_HANDSHAKE_S)
        self.sock = certificate.context().wrap_socket(self.sock, server_side=True)
        self.sock.settimeout(STALLED_S)
        self._is_tls = True
        return True

    def _exchange(self) -> bool:
        """Take one request and answer it; tell whether another may follow."""
        try:
            raw = self._head()
            if raw is None:
                return False
            head = parse(raw)
        except Refused as err:
            self._refuse(err)
            return False
        fields = head.fields
        self._left = None if fields.is_chunked else fields.length or 0
        self._must_continue = fields.expects_continue
        answer = self._front.direct(_Request(self, head))
        if answer is None:
            return gateway.answer(self, head, self._front.rest)
        return self._answer(head, answer)

    # ------------------------------------------------------------------ receiving

    def _head(self) -> bytes | None:
        """Receive a head, up to the end of its last line; None when there is no more."""
        data, self._rest = self._rest, b""
        if not data:
            self.idle_since, self.is_idle = time.monotonic(), True
            if self._is_ending():
                return None
            data = self._first()
            self.is_idle = False
            if not data:
                return None
            if data[0] == tls.HANDSHAKE:
                raise Refused(HTTPStatus.BAD_REQUEST, "no TLS is spoken here: http://")
        end = data.find(b"\r\n\r\n")
        if end < 0 or not end:
            data, end = self._head_in_drops(data)
        self._rest = data[end + 4 :]
        return data[: end + 2]

    def _first(self) -> bytes:
        """Wait for a request; receive its beginning.

        After a large body another is expected: its head is looked at and taken off first, so
        that the body can be received in one piece (for 4 MiB a copy costs 400-800 us).
        """
        try:
            if self._last_was_large and not self._is_tls:
                seen = self.sock.recv(_RECV, socket.MSG_PEEK).find(b"\r\n\r\n")
                return self.sock.recv(seen + 4 if seen >= 0 else _RECV)
            return self.sock.recv(_RECV)
        except (BlockingIOError, TimeoutError):
            return b""

    def _head_in_drops(self, data: bytes) -> tuple[bytes, int]:
        ends = time.monotonic() + STALLED_S
        while True:
            data = data.lstrip(b"\r\n") if data[:1] in (b"\r", b"\n") else data
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                return data, end
            if len(data) > HEAD_MAX:
                raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")
            if time.monotonic() > ends:
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the request did not come")
            more = self.sock.recv(_RECV)
            if not more:
                raise ConnectionResetError("hung up within a request")
            data += more

    def take(self, length: int) -> bytes:
        """Receive the next `length` bytes, which belong to the request's body.

        Fewer when the client hangs up. Raises OSError when they do not come.
        """
        if self._left is not None:
            self._left -= length
        data, self._rest = self._rest[:length], self._rest[length:]
        self._last_was_large = length >= _LARGE
        if len(data) == length:
            return data
        if self._must_continue:
            self._must_continue = False
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts, left = [data] if data else [], length - len(data)
        ends = time.monotonic() + STALLED_S + length / _SLOWEST
        flags = 0 if self._is_tls else socket.MSG_WAITALL
        while left:
            part = self.sock.recv(min(left, _PIECE), flags)
            if not part:
                break
            parts.append(part)
            left -= len(part)
            if left and time.monotonic() > ends:
                raise TimeoutError("too slow")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def take_large(self, length: int) -> memoryview:
        """As `take`, into memory that a disk can take as it is."""
        view = aligned(length)
        filled = min(len(self._rest), length)
        view[:filled], self._rest = self._rest[:filled], self._rest[filled:]
        if self._left is not None:
            self._left -= length
        self._last_was_large = True
        if self._must_continue and filled < length:
            self._must_continue = False
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        ends = time.monotonic() + STALLED_S + length / _SLOWEST
        flags = 0 if self._is_tls else socket.MSG_WAITALL
        while filled < length:
            count = self.sock.recv_into(view[filled:], 0, flags)
            if not count:
                break
            filled += count
            if filled < length and time.monotonic() > ends:
                raise TimeoutError("too slow")
        return view[:filled]

    def line(self) -> bytes:
        """Receive the next line of a chunked body."""
        while (end := self._rest.find(b"\r\n")) < 0:
            if len(self._rest) > _RECV:
                raise OSError("a line without end")
            if self._must_continue:
                self._must_continue = False
                self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            more = self.sock.recv(_RECV)
            if not more:
                raise ConnectionResetError("hung up within a body")
            self._rest += more
        line, self._rest = self._rest[:end], self._rest[end + 2 :]
        return line

    def body_ends(self) -> None:
        """Note that a chunked body was read to its end."""
        self._left = 0

    # ------------------------------------------------------------------ answering

    def keeps(self, head: Head) -> bool:
        """Tell whether another request may follow this one. Asked when its answer begins.

        What was not read of its body is thrown away if it has come; else the connection ends.
        """
        if self._left and self._left <= len(self._rest):
            self._rest = self._rest[self._left :]
            self._left = 0
        if self._left != 0:
            self._must_linger = True
            return False
        return head.fields.keep and not self._is_ending()

    def _answer(self, head: Head, answer: Answer) -> bool:
        keep = self.keeps(head)
        body = answer.body
        if isinstance(body, io.FileIO):
            with body:
                size = os.fstat(body.fileno()).st_size
                self.send_file(_told(answer, size, head, keep), body, size)
            return keep
        pieces = body if isinstance(body, list) else [body]
        told = _told(answer, sum(map(len, pieces)), head, keep)
        self.send([told] if head.method == "HEAD" else [told, *pieces])
        return keep

    def _refuse(self, why: Refused) -> None:
        """Answer what is no request; nobody knows where the next one would begin."""
        self._must_linger = True
        answer = refusal(EverfoldError(Kind.INVALID, why.why), status=why.status)
        assert isinstance(answer.body, bytes)
        self.send([_told(answer, len(answer.body), None, keep=False), answer.body])

    def send(self, pieces: list[bytes | memoryview]) -> None:
        """Send all of it. Raises OSError when the client does not take it."""
        size = sum(map(len, pieces))
        if size <= _LARGE:
            self.sock.sendall(b"".join(pieces))
            return
        ends = time.monotonic() + STALLED_S + size / _SLOWEST
        if self._is_tls:
            self._send_secretly(pieces, ends)
            return
        waiting = deque(memoryview(piece) for piece in pieces)
        sent = 0
        while True:
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.popleft())
            if not waiting:
                return
            if sent and time.monotonic() > ends:
                raise TimeoutError("too slow")
            waiting[0] = waiting[0][sent:]
            sent = self.sock.sendmsg(list(itertools.islice(waiting, _PIECES_MAX)))

    def _send_secretly(self, pieces: Iterable[bytes | memoryview], ends: float) -> None:
        """Send large pieces through TLS, which copies them in any case."""
        for piece in pieces:
            for at in range(0, len(piece), _LARGE):
                self.sock.sendall(piece[at : at + _LARGE])
                if time.monotonic() > ends:
                    raise TimeoutError("too slow")

    def send_file(self, told: bytes, file: io.FileIO, size: int) -> None:
        """Send the head of an answer and the first `size` bytes of a file."""
        ends = time.monotonic() + STALLED_S + size / _SLOWEST
        if self._is_tls:
            left = iter(lambda: file.read(_LARGE), b"")
            self._send_secretly(itertools.chain([told], left), ends)
            return
        self.sock.sendall(told, socket.MSG_MORE)
        at = 0
        while at < size:
            if at and time.monotonic() > ends:
                raise TimeoutError("too slow")
            count = os.sendfile(self.sock.fileno(), file.fileno(), at, size - at)
            if not count:
                raise OSError("the file became shorter")
            at += count

    def _close(self) -> None:
        """Close; a client that is still sending gets the time to see its answer first.

        Closing at once, with bytes unread, would make the kernel throw the answer away. What
        is read so late is thrown away in any case: under TLS, as it came.
        """
        with contextlib.suppress(OSError):
            if isinstance(self.sock, ssl.SSLSocket):
                self._say_goodbye(self.sock)
            if self._must_linger:
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
                self.sock.settimeout(_LINGER_S)
                ends, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
                while left > 0 and time.monotonic() < ends:
                    count = len(socket.socket.recv(self.sock, _LARGE))
                    if not count:
                        break
                    left -= count
        self.sock.close()

    def _say_goodbye(self, sock: ssl.SSLSocket) -> None:
        """Tell that nothing was cut off, without waiting to be told the same."""
        sock.settimeout(0)
        with contextlib.suppress(OSError, ValueError):
            sock.unwrap()


class _Request:
    """A request as a direct handler sees it. Implements `exchange.Request`."""

    __slots__ = ("_head", "_peer", "method", "path")

    def __init__(self, peer: Peer, head: Head) -> None:
        self._peer = peer
        self._head = head
        self.method = head.method
        self.path = head.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        return self._head.fields.headers.get(name)

    def whole(self, limit: int) -> bytes | memoryview:
        length = self._head.fields.length
        if length is None:
            raise EverfoldError(Kind.INVALID, "Content-Length is needed")
        take = self._peer.take_large if length >= DIRECT_MIN else self._peer.take
        try:
            body = take(allowed(length, limit))
        except OSError as err:
            raise EverfoldError(Kind.TIMEOUT, f"the body did not come: {err}") from err
        if len(body) != length:
            raise cut_short(len(body), length)
        return body


def _told(answer: Answer, size: int, head: Head | None, keep: bool) -> bytes:
    kind = f"Content-Type: {answer.kind}\r\n" if answer.kind else ""
    more = "".join([f"{name}: {value}\r\n" for name, value in answer.more])
    length = size if answer.length is None else answer.length
    fields = f"{kind}Content-Length: {length}\r\n{more}"
    return answer_head(STATUS_LINES[answer.status], fields, head, keep)
