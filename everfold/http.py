"""Calls to a server: one transport over sockets, one in process, one retry rule.

Every call has a deadline. Nothing here knows what is asked; `nameclient` and `nodeclient` do.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from everfold.connection import Answer, Body, HttpTransport
from everfold.errors import EverfoldError, Kind
from everfold.fileslice import FileSlice
from everfold.pending import Settled

__all__ = ["Answer", "Body", "HttpTransport", "WsgiTransport", "error_of", "with_retries"]
T = TypeVar("T")


class WsgiTransport:
    """Calls a WSGI application in this process: a cluster that starts in milliseconds."""

    def __init__(
        self, app: Callable[..., Iterable[bytes]], base_url: str = "http://in.process"
    ) -> None:
        self.base_url = base_url
        self._app = app

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Body = None,
        timeout_s: float,
    ) -> Answer:
        """See `services.Transport.request`; the deadline is not enforced in process."""
        raw = (
            b""
            if body is None
            else bytes(body)
            if isinstance(body, (bytes, memoryview, FileSlice))
            else b"".join(body)
        )
        path, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(raw)),
            "SERVER_NAME": "in.process",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(raw),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in headers.items():
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else "HTTP_" + key] = value
        got: dict[str, Any] = {}

        def start_response(
            status: str, pairs: list[tuple[str, str]], exc_info: object = None
        ) -> None:
            got["status"] = int(status.split(" ", 1)[0])
            got["headers"] = {k.lower(): v for k, v in pairs}

        chunks = self._app(environ, start_response)
        try:
            answer = b"".join(chunks)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        return got["status"], got["headers"], answer

    def begin(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: Body = None,
        timeout_s: float,
    ) -> Settled[Answer]:
        """See `services.Transport.begin`; it is answered before this returns."""
        return Settled(
            lambda: self.request(method, path, headers=headers, body=body, timeout_s=timeout_s)
        )

    def close(self) -> None:
        """Nothing is kept."""


def error_of(status: int, body: bytes, base_url: str) -> EverfoldError:
    """Return the error that a response with a failing status carries."""
    try:
        return EverfoldError.from_wire(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        kind = Kind.UNAVAILABLE if status in (502, 503, 504) else Kind.INTERNAL
        return EverfoldError(kind, f"HTTP {status}: {body[:200]!r}", base_url)


def with_retries(call: Callable[[float], T], deadline_s: float) -> T:
    """Run `call(seconds left)` until it succeeds, fails for good, or the deadline has passed.

    Only kinds that say so (`Kind.may_retry`) are tried again, with exponential backoff from
    20 ms to 500 ms and full jitter; the last error is raised.
    """
    ends = time.monotonic() + deadline_s
    pause = 0.02
    while True:
        try:
            return call(max(0.05, ends - time.monotonic()))
        except EverfoldError as err:
            left = ends - time.monotonic()
            if not err.kind.may_retry or left <= 0:
                raise
            time.sleep(min(left, random.uniform(pause / 2, pause)))
            pause = min(pause * 2, 0.5)
