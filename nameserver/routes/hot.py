"""``POST /v1/<verb>``: the calls of mounts and datanodes, one table, no ceremony.

They are answered in front of Flask, as a WSGI application of their own: Flask's routing,
contexts and response objects cost 230 us a call, the service itself 30 us. What they answer,
errors included, looks as Flask's routes make it look.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.log import adopt_request_id
from nameserver.caller import Caller
from nameserver.service import Service

BODY_MAX = 64 * 1024 * 1024
PREFIX = "/v1/"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]

_log = logging.getLogger(__name__)
_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class HotCalls:
    """Answers what is under ``/v1/`` and hands everything else on."""

    def __init__(self, service: Service, rest: Wsgi) -> None:
        self._service = service
        self._rest = rest
        self._calls: dict[str, tuple[Callable[[Caller, Any], Any], Any]] = {
            verb: (getattr(Caller, verb.replace("-", "_")), form)
            for verb, (form, _) in wire.CALLS.items()
            if verb != "heartbeat"
        }

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        if not path.startswith(PREFIX):
            return self._rest(environ, start_response)
        request_id = adopt_request_id(environ.get("HTTP_X_REQUEST_ID"))
        status, kind, more = 200, wire.MSGPACK, []
        try:
            if environ["REQUEST_METHOD"] != "POST":
                status, more = 405, [("Allow", "POST")]
                raise EverfoldError(Kind.UNSUPPORTED, "calls are POSTed", path[:80])
            answer = self._answer(path[len(PREFIX) :], environ)
        except EverfoldError as err:
            if err.kind is Kind.INTERNAL:
                _log.error("%s failed", path[:80], exc_info=err)
            status = status if status == 405 else err.kind.http_status
            if status == 401:
                more = [("WWW-Authenticate", 'Bearer realm="everfold"')]
            kind, answer = "application/json", json.dumps({"error": err.to_wire()}).encode()
        except Exception:  # noqa: BLE001  # the last stop of a defect: logged whole, told as 500
            _log.exception("%s failed", path[:80])
            told = EverfoldError(Kind.INTERNAL, "a defect of the server; its log tells more")
            status, kind = 500, "application/json"
            answer = json.dumps({"error": told.to_wire()}).encode()
        head = [
            ("Content-Type", kind),
            ("Content-Length", str(len(answer))),
            (wire.REQUEST_ID, request_id),
        ]
        start_response(_LINES[status], head + more)
        return [answer]

    def _answer(self, verb: str, environ: Environ) -> bytes:
        token = _bearer(environ)
        if verb == "heartbeat":
            self._service.gate.node(token)  # strangers do not even reach the decoder
            beat = wire.decode(_body(environ), wire.Heartbeat)
            return wire.encode(self._service.heartbeat(token, beat))
        who = self._service.gate.by_token(token)
        known = self._calls.get(verb)
        if known is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such call", verb[:80])
        method, form = known
        return wire.encode(method(Caller(self._service, who), wire.decode(_body(environ), form)))


def _bearer(environ: Environ) -> str:
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise EverfoldError(Kind.UNAUTHENTICATED, "no token was given")
    return str(token.strip())


def _body(environ: Environ) -> bytes:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError as err:
        raise EverfoldError(Kind.INVALID, "the length is no number") from err
    if length > BODY_MAX:
        raise EverfoldError(Kind.TOO_LARGE, f"a request has at most {BODY_MAX} bytes")
    body: bytes = environ["wsgi.input"].read(length)
    if len(body) != length:
        raise EverfoldError(Kind.INVALID, "the body is cut short")
    return body
