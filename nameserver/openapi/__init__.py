"""The API's description, as OpenAPI 3.1: `document` makes it of one table beside each file of
routes. See `terms` for how it is kept true.
"""

from __future__ import annotations

import functools
from typing import Final

from nameserver.openapi import admin, files, people, short, sync, teams
from nameserver.openapi.schemas import SCHEMAS
from nameserver.openapi.terms import ADMIN, JSON, OPEN, Json, Param, Route, ref

ROUTES: Final[tuple[Route, ...]] = (
    *people.ROUTES, *files.ROUTES, *teams.ROUTES, *sync.ROUTES, *short.ROUTES, *admin.ROUTES,
)  # fmt: skip

_ABOUT: Final = (
    "Files with all their versions, for programs and people without a mount. What is not yours to"
    " know of is 404. docs/API.md tells it in words, with examples that are tested."
)
_SECURITY: Final[Json] = {
    "token": {"type": "http", "scheme": "bearer"},
    "password": {"type": "http", "scheme": "basic"},
    "session": {"type": "apiKey", "in": "cookie", "name": "everfold_session"},
}
_CSRF: Final = Param("X-CSRF-Token", {"type": "string"}, "with the cookie of a session", "header")
_WORDS: Final = {
    200: "as asked", 201: "made", 206: "a part", 304: "as you have it", 400: "nonsense",
    401: "log in", 403: "known, but not allowed", 404: "not there, or not yours to know of",
    409: "not as things stand", 410: "it has ended", 412: "the condition does not hold",
    413: "too large, or beyond the quota", 416: "no such bytes", 429: "too many; later",
    503: "something needed is away; again", 504: "it did not come in time", 507: "full",
}  # fmt: skip
_BARE: Final = (412, 416)  # told without a body, as browsers expect


@functools.cache
def document() -> Json:
    """Return the document. Not to be changed."""
    found: dict[str, Json] = {}
    for route in ROUTES:
        found.setdefault(route.path, {})[route.method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Everfold", "version": "1", "description": _ABOUT},
        "paths": found,
        "components": {"schemas": SCHEMAS, "securitySchemes": _SECURITY},
    }


def _operation(route: Route) -> Json:
    params = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.in_path
    ]
    params += [param.to_openapi() for param in route.params]
    if route.access != OPEN and route.method != "get":
        params.append(_CSRF.to_openapi())
    made: Json = {
        "operationId": _name(route),
        "summary": route.about + (" (admins)" if route.access == ADMIN else ""),
        "responses": {
            **{str(status): _answer(status, told) for status, told in route.answers.items()},
            **{str(status): _refusal(status) for status in sorted(route.refusals())},
        },
        "security": [] if route.access == OPEN else [{name: []} for name in _SECURITY],
    }
    if params:
        made["parameters"] = params
    if route.body is not None:
        content = {route.body.kind: {"schema": route.body.schema}}
        made["requestBody"] = {"content": content, "required": route.body.is_required}
    return made


def _name(route: Route) -> str:
    words = [word.strip("{}") for word in route.path.replace(".", "/").split("/") if word]
    return "_".join([route.method, *words]).replace("-", "_")


def _answer(status: int, told: Json | str | None) -> Json:
    made: Json = {"description": _WORDS[status]}
    if isinstance(told, str):
        made["content"] = {"*/*": {}}
    elif told is not None:
        made["content"] = {JSON: {"schema": told}}
    return made


def _refusal(status: int) -> Json:
    made: Json = {"description": _WORDS[status]}
    if status not in _BARE:
        made["content"] = {JSON: {"schema": ref("Error")}}
    return made
