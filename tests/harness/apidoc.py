"""The API's document as a judge: whether an answer is one that it describes.

Stricter than what is published: here an object has no field that the document does not name, so
that whoever adds one writes it down.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from nameserver.openapi import document

Json = dict[str, Any]


def template(path: str) -> str | None:
    """Return the document's path that an actual one is of; literal parts count more."""
    path = path.partition("?")[0].rstrip("/")
    for pattern, known in _patterns():
        if pattern.fullmatch(path):
            return known
    return None


def check(method: str, path: str, status: int, kind: str, body: bytes) -> None:
    """Fail unless the document says that this may be answered. Paths it has not: any answer."""
    known = template(path)
    method = "get" if method == "HEAD" else method.lower()
    operation = known and document()["paths"][known].get(method)
    if not operation:
        return
    said = f"{method} {known} answered {status}"
    answers = operation["responses"]
    assert str(status) in answers, f"{said}, which the document does not have"
    content = answers[str(status)].get("content", {})
    if "application/json" not in content:
        assert content or not body, f"{said} with a body, which the document does not have"
        return
    if method == "get" and not body:  # HEAD
        return
    assert kind == "application/json", f"{said} as {kind!r}"
    errors = [
        f"{'/'.join(map(str, error.instance_path))}: {error.message}"
        for error in _validator(known or "", method, str(status)).iter_errors(json.loads(body))
    ]
    assert not errors, f"{said} unlike the document: {errors[:5]}"


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    known = sorted(document()["paths"], key=lambda path: [part[:1] == "{" for part in _parts(path)])
    return [
        (
            re.compile("/".join("[^/]+" if p[:1] == "{" else re.escape(p) for p in _parts(path))),
            path,
        )
        for path in known
    ]


def _parts(path: str) -> list[str]:
    return path.split("/")


@functools.cache
def _validator(path: str, method: str, status: str) -> Any:
    answer = document()["paths"][path][method]["responses"][status]
    schema = answer["content"]["application/json"]["schema"]
    schemas = {name: _closed(each) for name, each in document()["components"]["schemas"].items()}
    return jsonschema_rs.Draft202012Validator(
        {**_closed(schema), "components": {"schemas": schemas}}
    )


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        made["additionalProperties"] = False
    return made


def operations() -> Iterator[tuple[str, str, Json]]:
    """Yield (method, path, operation) of all that the document has."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation
