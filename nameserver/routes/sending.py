"""A content as an answer: conditions, ranges, headers that are safe for any name; streamed.

Whatever people upload is served from the address of the web page, so nothing of it may run there:
only types that cannot are shown in place, all else is an attachment, and every answer forbids
scripts and guessing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Final, NamedTuple
from urllib.parse import quote

from flask import Response, request
from werkzeug.datastructures import ETags
from werkzeug.http import http_date

from everfold.errors import EverfoldError, Kind
from everfold.model import Ino, Seq, SpaceId
from nameserver.files.outlet import Outlet
from nameserver.files.paths import UNKNOWN_TYPE, text_of, type_of
from nameserver.files.service import FileService

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SHOWN: Final = ("image/", "audio/", "video/")
_AS_TEXT: Final = frozenset({"application/json", "application/xml", "application/javascript"})
_NEVER_SHOWN: Final = frozenset({"image/svg+xml"})
_PDF: Final = "application/pdf"
_LOCKED: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; media-src 'self'"


class Sent(NamedTuple):
    """What is to be sent: a content under a name."""

    name: bytes
    size: int
    mtime_ns: int
    etag: str
    content: tuple[SpaceId, Ino, Seq]


class _Body:
    """An answer's body; whatever happens, nothing is fetched for it after its end."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._outlet)

    def close(self) -> None:
        self._outlet.close()


def send(files: FileService, what: Sent) -> Response:
    """Answer GET or HEAD for a content: 200, 206, 304, 412 or 416."""
    answer = Response(mimetype=None)
    _describe(answer, what)
    status = _condition(what)
    if status:
        answer.status_code = status
        return answer
    start, stop = 0, what.size
    asked = request.range if _is_range_good(what) else None
    if asked is not None and asked.units == "bytes" and len(asked.ranges) == 1:
        found = asked.range_for_length(what.size)
        if found is None:
            return _unsatisfiable(what)
        start, stop = found
        answer.status_code = 206
        answer.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{what.size}"
    answer.headers["Content-Length"] = str(stop - start)
    if request.method != "HEAD" and stop > start:
        outlet = files.outlet(what.content, start, stop)
        answer.response = _Body(outlet)
        try:
            outlet.begin()
        except BaseException:
            outlet.close()
            raise
    return answer


def _describe(answer: Response, what: Sent) -> None:
    kind, is_shown = _kind(type_of(what.name))
    is_shown = is_shown and request.args.get("inline", "") in ("1", "true")
    headers = answer.headers
    headers["Content-Type"] = kind
    headers["Content-Disposition"] = disposition(what.name, is_shown)
    headers["Accept-Ranges"] = "bytes"
    headers["ETag"] = f'"{what.etag}"'
    headers["Cache-Control"] = "private, no-cache"
    headers["X-Content-Type-Options"] = "nosniff"
    # a PDF is shown by the browser's own viewer, which a sandbox would keep from running
    headers["Content-Security-Policy"] = _LOCKED + ("" if kind == _PDF else "; sandbox")
    modified = _date(what.mtime_ns)
    if modified is not None:
        headers["Last-Modified"] = http_date(modified)


def _kind(guessed: str) -> tuple[str, bool]:
    """Return (the type to tell, whether it may be shown in place)."""
    if guessed.startswith("text/") or guessed in _AS_TEXT:
        return "text/plain; charset=utf-8", True
    is_shown = guessed.startswith(_SHOWN) and guessed not in _NEVER_SHOWN
    return (guessed, True) if is_shown or guessed == _PDF else (guessed or UNKNOWN_TYPE, False)


def disposition(name: bytes, is_shown: bool) -> str:
    """Return a Content-Disposition that is one header line whatever the name is."""
    text = text_of(name)
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in text)
    kind = "inline" if is_shown else "attachment"
    encoded = quote(text.encode("utf-8", "replace"), safe="")
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def _condition(what: Sent) -> int:
    """Return the status that the request's conditions lead to, 0: go on."""
    if request.if_match and not request.if_match.contains(what.etag):
        return 412
    known: ETags = request.if_none_match
    if known:
        return 304 if known.contains_weak(what.etag) else 0
    since, modified = request.if_modified_since, _date(what.mtime_ns)
    return 304 if since is not None and modified is not None and modified <= since else 0


def _is_range_good(what: Sent) -> bool:
    """Tell whether a range may be served: If-Range must name this very content."""
    wanted = request.headers.get("If-Range", "")
    return not wanted or wanted.strip() == f'"{what.etag}"'


def _unsatisfiable(what: Sent) -> Response:
    err = EverfoldError(Kind.RANGE, "the file has no such bytes", f"size {what.size}")
    answer = Response(status=err.kind.http_status)
    answer.headers["Content-Range"] = f"bytes */{what.size}"
    return answer


def _date(at_ns: int) -> datetime | None:
    try:
        return _EPOCH + timedelta(seconds=at_ns // 1_000_000_000)
    except OverflowError:
        return None
