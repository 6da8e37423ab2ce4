"""Reading JSON bodies: every nonsense is INVALID, with words that name the field."""

from __future__ import annotations

from typing import Any

from flask import request

from everfold.errors import EverfoldError, Kind

Json = dict[str, Any]
BODY_MAX = 1024 * 1024


def fields() -> Json:
    """Return the request's JSON object; INVALID when it is anything else."""
    if (request.content_length or 0) > BODY_MAX:
        raise EverfoldError(Kind.TOO_LARGE, f"a request has at most {BODY_MAX} bytes")
    try:
        form = request.get_json(force=True, silent=True)
    except RecursionError:  # brackets within brackets, deeper than Python reads
        form = None
    if not isinstance(form, dict):
        raise EverfoldError(Kind.INVALID, "the body is not a JSON object")
    return form


def optional_fields() -> Json:
    """Return the request's JSON object, an empty one when there is no body."""
    return fields() if request.content_length or request.is_json else {}


def text(form: Json, name: str, default: str | None = None) -> str:
    """Return a field that is text; without a default it must be there and not empty."""
    value = form.get(name)
    if value is None or value == "":
        if default is None:
            raise EverfoldError(Kind.INVALID, f"the field {name!r} is missing")
        return default
    if not isinstance(value, str) or "\0" in value:
        raise EverfoldError(Kind.INVALID, f"the field {name!r} is not text")
    try:
        value.encode()
    except UnicodeError as err:
        raise EverfoldError(Kind.INVALID, f"the field {name!r} is not text") from err
    return value


def first(form: Json, *names: str) -> str:
    """Return the first of these fields that is not empty, "" when all are; each is text."""
    return next((value for value in [text(form, name, "") for name in names] if value), "")


def number(form: Json, name: str, default: int) -> int:
    """Return a field that is a whole number from 0 up to 2**63 - 1."""
    value = form.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise EverfoldError(Kind.INVALID, f"the field {name!r} is not a number from 0 up")
    return value
