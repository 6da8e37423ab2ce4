"""The words in which a route is described: what it takes, tells, and refuses. Pure values.

A table beside each file of routes uses them (`people` for `routes/people.py`, …); `document` makes
OpenAPI of the tables. That they are true is tested: `tests/t2_openapi.py` compares them with the
routes of the application, and every answer that the API's tests see with the schemas.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from nameserver.passwords import PASSWORD_MAX, PASSWORD_MIN

Json = dict[str, Any]

LOGIN: Final = "login"
ADMIN: Final = "admin"
OPEN: Final = "open"
BYTES: Final = "application/octet-stream"
JSON: Final = "application/json"
FORM: Final = "multipart/form-data"

_IN_PATH: Final = re.compile(r"\{(\w+)\}")

# ---------------------------------------------------------------- schemas

TEXT: Final[Json] = {"type": "string"}
NUMBER: Final[Json] = {"type": "integer"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
SHARE_OF: Final[Json] = {"type": "number", "minimum": 0}
TRUTH: Final[Json] = {"type": "boolean"}
MOMENT: Final[Json] = {"type": ["string", "null"], "description": "ISO 8601, UTC"}
SECONDS: Final[Json] = {"type": "number", "description": "seconds since the epoch"}
NOTHING: Final[Json] = {"type": "null"}
ANY: Final[Json] = {"type": "string", "pattern": "^[^\\u0000]*$"}
NEEDED: Final[Json] = {"type": "string", "minLength": 1, "pattern": "^[^\\u0000]+$"}
GIVEN: Final[Json] = {"type": ["string", "null"], "pattern": "^[^\\u0000]*$"}
FLAG: Final[Json] = {"type": "string", "enum": ["0", "1", "false", "true"]}
NAME: Final[Json] = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}
PASSWORD: Final[Json] = {
    "type": "string",
    "minLength": PASSWORD_MIN,
    "maxLength": PASSWORD_MAX,
    "pattern": "^[^\\u0000]*$",
}


def ref(name: str) -> Json:
    """Return a reference to a schema of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def maybe(schema: Json) -> Json:
    """Return a schema that null fulfils, too."""
    return {"anyOf": [schema, NOTHING]}


def of(schema: Json) -> Json:
    """Return a list of such things."""
    return {"type": "array", "items": schema}


def one_of(*values: str) -> Json:
    """Return a text of a few."""
    return {"type": "string", "enum": list(values)}


def obj(_optional: Json | None = None, /, **fields: Json) -> Json:
    """Return an object with these fields, all required but those in `_optional`."""
    made: Json = {"type": "object", "properties": {**fields, **(_optional or {})}}
    if fields:
        made["required"] = list(fields)
    return made


# ---------------------------------------------------------------- routes


class Param(NamedTuple):
    """A parameter of the query string or the head."""

    name: str
    schema: Json
    about: str = ""
    where: str = "query"
    is_required: bool = False

    def to_openapi(self) -> Json:
        """Return it as OpenAPI has it."""
        made: Json = {"name": self.name, "in": self.where, "schema": self.schema}
        if self.about:
            made["description"] = self.about
        if self.is_required:
            made["required"] = True
        return made


class Body(NamedTuple):
    """What a request carries."""

    schema: Json
    kind: str = JSON
    is_required: bool = True


class Route(NamedTuple):
    """One method of one path. `answers`: by status, what is told; None: no content.

    `errors` are the statuses of failures besides those that follow from the rest: 400 and 413
    with a body or parameters, 401, 403 and 429 where one logs in, 503 wherever the database is
    asked.
    """

    method: str
    path: str
    about: str
    answers: dict[int, Json | str | None]
    body: Body | None = None
    params: tuple[Param, ...] = ()
    errors: tuple[int, ...] = ()
    access: str = LOGIN

    @property
    def in_path(self) -> list[str]:
        """Return the names of the path's parameters."""
        return _IN_PATH.findall(self.path)

    def refusals(self) -> set[int]:
        """Return all statuses of failures."""
        told = {*self.errors, 503}
        if self.body is not None or self.params:
            told.add(400)
        if self.body is not None:
            told.add(413)
        if self.access != OPEN:
            told |= {400, 401, 403, 429}
        if self.in_path:
            told.add(404)
        return told
