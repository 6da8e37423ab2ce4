"""A request and its answer, as a server and a handler that needs no WSGI hand them over.

A `Front` stands before an ordinary WSGI application: `direct` answers what is asked often, and the
application the rest. Our own server asks `direct` without making an environ (half of what a small
call costs); to every other server, and to the tests' transport, a `Front` is a WSGI application.
"""

from __future__ import annotations

import email.utils
import functools
import io
import json
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol

from everfold.errors import EverfoldError, Kind
from everfold.heads import Head

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]

STATUS_LINES: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
JSON: Final = "application/json"
_BARE: Final = ("CONTENT_TYPE", "CONTENT_LENGTH")  # without HTTP_ in an environ


class Request(Protocol):
    """What is asked. Good until it is answered."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """Return the path as it came, without the query."""
        ...

    def header(self, name: str) -> str | None:
        """Return a header field by its lower-case name."""
        ...

    def whole(self, limit: int) -> bytes | memoryview:
        """Return the body; to be called once.

        TOO_LARGE beyond `limit`, before a byte of it is read; INVALID when its length was not
        told or it is cut short; TIMEOUT when it does not come.
        """
        ...


class Answer(NamedTuple):
    """What is answered. A file is sent from where it stands to its end, and closed."""

    status: int
    kind: str = ""  # of content
    body: bytes | list[bytes | memoryview] | io.FileIO = b""
    more: tuple[tuple[str, str], ...] = ()  # header fields
    length: int | None = None  # told instead of the body's own, in answers to HEAD


Direct = Callable[[Request], Answer | None]
"""Answer a request, or return None, having read nothing of it: then it is not for you."""


class Front:
    """A direct handler and the WSGI application behind it."""

    def __init__(self, direct: Direct, rest: Wsgi) -> None:
        self.direct = direct
        self.rest = rest

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as WSGI wants it."""
        answer = self.direct(_WsgiRequest(environ))
        if answer is None:
            return self.rest(environ, start_response)
        body = answer.body
        if isinstance(body, io.FileIO):
            with body:
                body = body.read()
        elif isinstance(body, list):
            body = b"".join(body)
        length = len(body) if answer.length is None else answer.length
        fields = [("Content-Length", str(length)), *answer.more]
        if answer.kind:
            fields.append(("Content-Type", answer.kind))
        start_response(STATUS_LINES[answer.status], fields)
        return [body]


def refusal(err: EverfoldError, *more: tuple[str, str], status: int = 0) -> Answer:
    """Return the answer that carries a failure, as `wire` says."""
    status = status or err.kind.http_status
    if status == HTTPStatus.UNAUTHORIZED:
        more += (("WWW-Authenticate", 'Bearer realm="everfold"'),)
    return Answer(status, JSON, json.dumps({"error": err.to_wire()}).encode(), more)


def answer_head(status: str, fields: str, head: Head | None, keep: bool) -> bytes:
    """Return the head of an answer; `head` is the request's, None when it was none."""
    if not keep:
        fields += "Connection: close\r\n"
    elif head is not None and not head.is_http11:
        fields += "Connection: keep-alive\r\n"
    date = _date(int(time.time()))
    return f"HTTP/1.1 {status}\r\nDate: {date}\r\n{fields}\r\n".encode("latin-1")


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


class _WsgiRequest:
    """A request in an environ."""

    def __init__(self, environ: Environ) -> None:
        self._environ = environ

    @property
    def method(self) -> str:
        return str(self._environ["REQUEST_METHOD"])

    @property
    def path(self) -> str:
        return str(self._environ["PATH_INFO"])

    def header(self, name: str) -> str | None:
        key = name.upper().replace("-", "_")
        value = self._environ.get(key if key in _BARE else "HTTP_" + key)
        return None if value is None else str(value)

    def whole(self, limit: int) -> bytes:
        told = self._environ.get("CONTENT_LENGTH") or ""
        if not told.isdigit():
            raise EverfoldError(Kind.INVALID, "Content-Length is needed")
        length = allowed(int(told), limit)
        try:
            body: bytes = self._environ["wsgi.input"].read(length)
        except OSError as err:
            raise EverfoldError(Kind.TIMEOUT, f"the body did not come: {err}") from err
        if len(body) != length:
            raise cut_short(len(body), length)
        return body


def allowed(length: int, limit: int) -> int:
    """Return the length of a body; TOO_LARGE when it is beyond the limit."""
    if length > limit:
        raise EverfoldError(Kind.TOO_LARGE, f"the body may have {limit} bytes, not {length}")
    return length


def cut_short(got: int, length: int) -> EverfoldError:
    """Return what says that a client hung up within a body."""
    return EverfoldError(Kind.INVALID, f"the body was cut short at {got} of {length}")
