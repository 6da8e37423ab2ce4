"""The head of an HTTP/1.1 request: bytes in, a checked `Head` out. No I/O.

Strict, because two readers of one stream must never disagree on where a request ends: a head that
is not exactly what RFC 9112 allows is refused, and so is every doubt about the body's length
(two lengths, a length and a coding, an unknown coding, blanks before a colon, folded lines).
"""

from __future__ import annotations

import functools
import re
from http import HTTPStatus
from typing import Final, NamedTuple

HEAD_MAX: Final = 32 * 1024
_LINE_MAX: Final = 8 * 1024
_FIELDS_MAX: Final = 100
_LENGTH_DIGITS: Final = 18
_REMEMBERED_MAX: Final = 1024  # bytes of header fields; longer ones are read each time

_LINE = re.compile(rb"([A-Za-z]{1,20}) ([!-~\x80-\xff]+) HTTP/([0-9])\.([0-9])")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*")
_ONCE: Final = frozenset(
    {"authorization", "content-length", "content-type", "host", "range", "transfer-encoding"}
)


class Refused(Exception):
    """A request that is none; `status` says how it is answered, and the connection ends."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Fields(NamedTuple):
    """The header fields, and what they say of the body and the connection. Not to be changed.

    `length` is the body's, None when none was told; then the body is chunked or empty.
    """

    headers: dict[str, str]
    length: int | None
    is_chunked: bool
    keep: bool
    expects_continue: bool  # the client waits for a word before it sends the body
    wants_upgrade: bool  # another protocol may follow on this connection


class Head(NamedTuple):
    """What a request says before its body."""

    method: str
    target: str
    is_http11: bool
    fields: Fields


def parse(raw: bytes) -> Head:
    """Return the head that these bytes are, up to the end of its last line.

    Raises `Refused`.
    """
    line, _, rest = raw.partition(b"\r\n")
    match = _LINE.fullmatch(line)
    if len(line) > _LINE_MAX:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "the request line is too long")
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "not an HTTP request")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here")
    is_http11 = minor != b"0"
    read = _remembered if len(rest) <= _REMEMBERED_MAX else _fields
    fields = read(rest, is_http11)
    return Head(method.decode(), _origin_form(target.decode("latin-1")), is_http11, fields)


def _fields(raw: bytes, is_http11: bool) -> Fields:
    if _FIELDS.fullmatch(raw) is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "not an HTTP header")
    lines = raw.decode("latin-1").split("\r\n")
    if len(lines) > _FIELDS_MAX + 1:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
    headers: dict[str, str] = {}
    for line in lines[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = _joined(name, headers[name], value) if name in headers else value
    if is_http11 and "host" not in headers:
        raise Refused(HTTPStatus.BAD_REQUEST, "a Host is needed")
    length, is_chunked = _framing(headers, is_http11)
    tokens = [token.strip() for token in headers.get("connection", "").lower().split(",")]
    return Fields(
        headers,
        length,
        is_chunked,
        "close" not in tokens and (is_http11 or "keep-alive" in tokens),
        is_http11 and headers.get("expect", "").lower() == "100-continue",
        "upgrade" in tokens,
    )


# A client says the same again and again, and only the request line differs: 2 us instead of 8.
_remembered = functools.lru_cache(maxsize=512)(_fields)


def _joined(name: str, one: str, two: str) -> str:
    if name in _ONCE:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is given twice")
    return one + ("; " if name == "cookie" else ", ") + two


def _origin_form(target: str) -> str:
    """Return the path and query of a target, which a proxy may have sent as a whole URL."""
    if target[0] == "/" or target == "*":
        return target
    scheme, mark, rest = target.partition("://")
    if mark and scheme.lower() in ("http", "https"):
        slash = rest.find("/")
        return rest[slash:] if slash >= 0 else "/"
    raise Refused(HTTPStatus.BAD_REQUEST, "not a path")


def _framing(headers: dict[str, str], is_http11: bool) -> tuple[int | None, bool]:
    """Return (length of the body, whether it is chunked)."""
    told = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if told is not None or not is_http11:
            raise Refused(HTTPStatus.BAD_REQUEST, "the length of the body is in doubt")
        if coding.lower() != "chunked":
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "only chunked bodies are understood")
        return None, True
    if told is None:
        return None, False
    if not (told.isascii() and told.isdigit()) or len(told) > _LENGTH_DIGITS:
        raise Refused(HTTPStatus.BAD_REQUEST, "the length of the body is no number")
    return int(told), False
