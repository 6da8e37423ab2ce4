"""``POST /v1/<verb>``: the calls of mounts and datanodes, one table, no ceremony."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, request

from everfold import wire
from everfold.errors import EverfoldError, Kind
from nameserver.caller import Caller
from nameserver.service import Service

BODY_MAX = 64 * 1024 * 1024


def blueprint(service: Service) -> Blueprint:
    """Return the routes of `wire.CALLS`."""
    hot = Blueprint("hot", __name__)
    calls: dict[str, tuple[Callable[[Caller, Any], Any], Any]] = {
        verb: (getattr(Caller, verb.replace("-", "_")), form)
        for verb, (form, _) in wire.CALLS.items()
        if verb != "heartbeat"
    }
    beat_form = wire.Heartbeat

    @hot.post("/v1/heartbeat")
    def heartbeat() -> Response:
        token = _bearer()
        service.gate.node(token)  # strangers do not even reach the decoder
        return _answer(service.heartbeat(token, wire.decode(_body(), beat_form)))

    @hot.post("/v1/<verb>")
    def call(verb: str) -> Response:
        who = service.gate.by_token(_bearer())
        known = calls.get(verb)
        if known is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such call", verb[:80])
        method, form = known
        return _answer(method(Caller(service, who), wire.decode(_body(), form)))

    return hot


def _bearer() -> str:
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise EverfoldError(Kind.UNAUTHENTICATED, "no token was given")
    return str(token.strip())


def _body() -> bytes:
    length = request.content_length
    if length is not None and length > BODY_MAX:
        raise EverfoldError(Kind.TOO_LARGE, f"a request has at most {BODY_MAX} bytes")
    return request.get_data(cache=False)


def _answer(record: Any) -> Response:
    return Response(wire.encode(record), content_type=wire.MSGPACK)
