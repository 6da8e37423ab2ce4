"""``POST /v1/<verb>``: the calls of mounts and datanodes, one table, no ceremony.

They are answered in front of Flask, by a direct handler: Flask's routing, contexts and response
objects cost 230 us a call, a WSGI environ and its answer 40 us, the service itself 30 us. What
they answer, errors included, looks as Flask's routes make it look.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.exchange import Answer, Request, refusal
from everfold.log import adopt_request_id
from nameserver.caller import Caller
from nameserver.service import Service

BODY_MAX = 64 * 1024 * 1024
PREFIX = "/v1/"

_log = logging.getLogger(__name__)


class HotCalls:
    """Answers what is under ``/v1/``. An `exchange.Direct`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._calls: dict[str, tuple[Callable[[Caller, Any], Any], Any]] = {
            PREFIX + verb: (getattr(Caller, verb.replace("-", "_")), form)
            for verb, (form, _) in wire.CALLS.items()
            if verb != "heartbeat"
        }

    def __call__(self, request: Request) -> Answer | None:
        path = request.path
        if not path.startswith(PREFIX):
            return None
        told = (wire.REQUEST_ID, adopt_request_id(request.header("x-request-id")))
        try:
            if request.method != "POST":
                wrong = EverfoldError(Kind.UNSUPPORTED, "calls are POSTed", path[:80])
                return refusal(wrong, ("Allow", "POST"), told, status=405)
            return Answer(200, wire.MSGPACK, self._answer(path, request), (told,))
        except EverfoldError as err:
            if err.kind is Kind.INTERNAL:
                _log.error("%s failed", path[:80], exc_info=err)
            return refusal(err, told)
        except Exception:  # noqa: BLE001  # the last stop of a defect: logged whole, told as 500
            _log.exception("%s failed", path[:80])
            defect = EverfoldError(Kind.INTERNAL, "a defect of the server; its log tells more")
            return refusal(defect, told)

    def _answer(self, path: str, request: Request) -> bytes:
        token = _bearer(request)
        if path == "/v1/heartbeat":
            self._service.gate.node(token)  # strangers do not even reach the decoder
            beat = wire.decode(request.whole(BODY_MAX), wire.Heartbeat)
            return wire.encode(self._service.heartbeat(token, beat))
        who = self._service.gate.by_token(token)
        known = self._calls.get(path)
        if known is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such call", path[len(PREFIX) :][:80])
        method, form = known
        ask = wire.decode(request.whole(BODY_MAX), form)
        answer = method(Caller(self._service, who), ask)
        if form is wire.FeedPoll:  # it may have waited for long
            self._service.gate.by_token(token)
        return wire.encode(answer)


def _bearer(request: Request) -> str:
    scheme, _, token = (request.header("authorization") or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise EverfoldError(Kind.UNAUTHENTICATED, "no token was given")
    return token.strip()
