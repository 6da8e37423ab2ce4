"""The API's document is true: it has every route and no other, and is well-formed.

That answers are as it says is checked with every answer that `Browser` gets (`harness/apidoc.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from jsonschema_rs import meta

from everfold.http import WsgiTransport
from nameserver.app import flask_app
from nameserver.openapi import ROUTES, document
from nameserver.openapi.terms import ADMIN, OPEN
from tests.harness.apidoc import check, operations, template
from tests.harness.browser import Browser
from tests.harness.inprocess import CALM, InProcessCluster

_NOT_API = {"web"}  # blueprints: what a browser shows


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("openapi"), policy=CALM) as started:
        yield started


def routes_of(cluster: InProcessCluster) -> set[tuple[str, str]]:
    """Return (method, path) of all routes of the application."""
    found = set()
    for rule in flask_app(cluster.service).url_map.iter_rules():
        if rule.endpoint.partition(".")[0] in _NOT_API:
            continue
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        found |= {(m.lower(), path) for m in rule.methods or () if m not in ("HEAD", "OPTIONS")}
    return found


def test_the_document_has_every_route_and_no_other(cluster):
    told = {(method, path) for method, path, _ in operations()}

    assert told - routes_of(cluster) == set()
    assert routes_of(cluster) - told == set()
    assert len(told) == len(ROUTES) > 50


def test_the_document_is_served_to_anybody(cluster):
    status, headers, body = Browser(cluster.app).ask("GET", "/api/openapi.json")

    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == json.loads(json.dumps(document()))


def test_every_schema_is_one_and_every_name_leads_somewhere():
    text = json.dumps(document())
    names = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text))

    assert names == set(document()["components"]["schemas"])
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    for _, _, operation in operations():
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                meta.validate(content.get("schema", {}))
    for schema in document()["components"]["schemas"].values():
        meta.validate(schema)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_who_may_ask_is_as_the_document_says(cluster, route):
    path = re.sub(r"\{\w+\}", "1-1", route.path)
    stranger = WsgiTransport(cluster.app)
    somebody = cluster.user(f"u{ROUTES.index(route)}")
    ann = {"Authorization": f"Bearer {somebody}"}
    json_ = {"Content-Type": "application/json"}

    alone, _, said = stranger.request(route.method.upper(), path, headers=json_, timeout_s=9)
    status, _, _ = stranger.request(
        route.method.upper(), path, headers={**ann, **json_}, timeout_s=9
    )

    check(route.method, path, alone, "application/json", said or b"null")
    assert (alone == 401) == (route.access != OPEN)
    assert (status == 403) == (route.access == ADMIN)
    assert status != 500


def test_a_judge_that_sees_what_is_wrong():
    good = json.dumps({"status": "ok"}).encode()
    check("GET", "/healthz", 200, "application/json", good)
    check("GET", "/no/such/route", 599, "text/plain", b"?")

    for status, kind, body in [
        (200, "application/json", b'{"status": "bad"}'),
        (200, "application/json", b'{"status": "ok", "more": 1}'),
        (200, "application/json", b"{}"),
        (200, "text/html", good),
        (418, "application/json", good),
    ]:
        with pytest.raises(AssertionError, match="get /healthz answered"):
            check("GET", "/healthz", status, kind, body)
    assert template("/api/files/list?x=1") == "/api/files/list"
    assert template("/api/files/1-2") == "/api/files/{file}"
    assert template("/api/files/shared/x") == "/api/files/shared/{token}"
