"""Nonsense and malice at every route: each a clear error of its kind, nothing half done, and of
what is another's nothing is told, not even that it exists.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import jwt
import pytest

from everfold.clock import SystemClock
from everfold.tokens import Signer
from nameserver.openapi import ROUTES
from nameserver.openapi.terms import ADMIN, LOGIN, Route
from tests.harness.apidoc import template
from tests.harness.browser import BOUNDARY, Browser, form, noise
from tests.harness.inprocess import CALM, PASSWORD, InProcessCluster
from tests.harness.nodes import SECRET

JWT_KEY = "j" * 32  # of `InProcessCluster`


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("bad"), policy=CALM) as started:
        yield started


@pytest.fixture
def me(cluster, request) -> Browser:
    """A user of one's own for every test."""
    return Browser(cluster.app, cluster.user("u" + str(abs(hash(request.node.nodeid)))))


def bodied(method: str) -> list[Route]:
    """Return the routes of this method that take JSON and need no admin."""
    return [
        route for route in ROUTES
        if route.method == method and route.access == LOGIN and route.body is not None
        and route.body.kind == "application/json"
    ]  # fmt: skip


TAKING = [route for method in ("post", "put") for route in bodied(method)]
GUARDED = [route for route in ROUTES if route.access in (LOGIN, ADMIN)]


def route_id(route: Route) -> str:
    return f"{route.method} {route.path}"


def ask(me: Browser, route: Route, body: bytes | None, **headers: str) -> tuple[int, Any]:
    """Send a body as it stands; return (status, JSON of the answer)."""
    path = re.sub(r"\{\w+\}", "1-1", route.path)
    status, _, raw = me.ask(route.method.upper(), path, body, **headers)
    return status, json.loads(raw)


# ---------------------------------------------------------------- tokens


def claims(cluster: InProcessCluster) -> dict[str, Any]:
    """Return what ann's good token says."""
    return jwt.decode(cluster.token, options={"verify_signature": False})


def forged(cluster: InProcessCluster, how: str) -> str:
    """Return a token that is not good, for one reason."""
    said = claims(cluster)
    clock = SystemClock()
    if how == "alg none":
        return jwt.encode(said, "", algorithm="none")
    if how == "none, signed":
        head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
        _, body, mac = cluster.token.split(".")
        return f"{head}.{body}.{mac}"
    if how == "wrong key":
        return jwt.encode(said, "x" * 32, algorithm="HS256")
    if how == "other algorithm":
        return jwt.encode(said, JWT_KEY * 2, algorithm="HS512")
    if how == "another user":
        head, _, mac = cluster.token.split(".")
        body = base64.urlsafe_b64encode(json.dumps({**said, "sub": 2}).encode()).rstrip(b"=")
        return f"{head}.{body.decode()}.{mac}"
    if how == "expired":
        return jwt.encode({**said, "exp": said["iat"] - 10}, JWT_KEY, algorithm="HS256")
    if how == "other audience":
        return jwt.encode({**said, "aud": "page"}, JWT_KEY, algorithm="HS256")
    if how == "of the blocks of a space":
        return Signer(SECRET, clock).mint("blocks", 60.0, space=1, verbs="rw")
    if how == "of a node":
        return Signer(SECRET, clock).mint("node", 60.0, sub="dn1")
    if how == "blocks, signed for users":
        return Signer(JWT_KEY, clock).mint("blocks", 60.0, space=1, verbs="rw")
    if how == "nobody":
        return jwt.encode({**said, "sub": 10**6}, JWT_KEY, algorithm="HS256")
    return {"empty": "", "dots": "..", "text": "token", "cut": cluster.token[:-4]}[how]


@pytest.mark.parametrize("how", [
    "alg none", "none, signed", "wrong key", "other algorithm", "another user", "expired",
    "other audience", "of the blocks of a space", "of a node", "blocks, signed for users",
    "nobody", "empty", "dots", "text", "cut",
])  # fmt: skip
def test_a_token_that_is_not_good_opens_no_route(cluster, how):
    token = forged(cluster, how)
    stranger = Browser(cluster.app)

    for route in GUARDED:
        headers = {"Authorization": f"Bearer {token}", "Content_Type": "application/json"}
        status, answer = ask(stranger, route, b"{}", **headers)
        assert (status, answer["error"]["kind"]) == (401, "unauthenticated"), route_id(route)


def test_a_good_token_is_good(cluster):
    """Else the test above would prove nothing."""
    made = jwt.encode(claims(cluster), JWT_KEY, algorithm="HS256")

    assert Browser(cluster.app, made).good("GET", "/api/auth/profile")["user"]["username"] == "ann"


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"5", b"null", b'"text"', b"\xff\xfe{}", b'{"path": "\xff"}',
    b"[" * 200_000, b'{"a":' * 100_000, b'{"path": ' + b"9" * 5000 + b"}", b"\x00" * 100,
], ids=lambda body: repr(body[:12]))  # fmt: skip
@pytest.mark.parametrize("route", TAKING, ids=route_id)
def test_a_body_that_is_no_json_object_is_refused(me, route, body):
    is_needed = route.body is not None and route.body.is_required
    status, answer = ask(me, route, body)

    if body or is_needed:
        assert status in (400, 404), answer
    assert me.names(recursive=1) == []


@pytest.mark.parametrize("route", TAKING, ids=route_id)
def test_a_huge_body_is_refused_before_it_is_read(me, route):
    body = b'{"path": "' + b"x" * (2 << 20) + b'"}'
    status, answer = ask(me, route, body)

    assert (status, answer["error"]["kind"]) in ((413, "too_large"), (404, "not_found"))


@pytest.mark.parametrize("value", [5, -1, 1.5, True, [], {}, [["x"]], {"a": 1}])
@pytest.mark.parametrize("route", TAKING, ids=route_id)
def test_every_field_of_a_wrong_type_is_refused(me, route, value):
    assert route.body is not None
    fields = route.body.schema["properties"]
    sound = dict.fromkeys(route.body.schema.get("required", ()), "x")
    for name, schema in fields.items():
        if "string" not in str(schema.get("type", "")):
            continue
        status, answer = ask(me, route, json.dumps({**sound, name: value}).encode())
        assert status in (400, 404), (name, answer)
        assert answer["error"]["kind"] in ("invalid", "not_found"), (name, answer)
    assert me.names(recursive=1) == []


def test_a_profile_is_changed_as_a_whole_or_not_at_all(me):
    before = me.good("GET", "/api/auth/profile")["user"]
    for wrong in (
        {"new_password": "a good new one", "current_password": "not mine"},
        {"new_password": "short", "current_password": PASSWORD},
        {"new_password": "a good new one"},
        {"new_password": "a good new one", "current_password": PASSWORD, "email": "no address"},
    ):
        said = {"email": "new@example.org", **wrong}
        assert me.kind("PUT", "/api/auth/profile", said) in ("invalid", "unauthenticated")

    assert me.good("GET", "/api/auth/profile")["user"] == before


# ---------------------------------------------------------------- paths and names

BAD_PATHS = {
    "../up": "invalid", "a/../../b": "invalid", "./a": "invalid", "a/./b": "invalid",
    "a\0b": "invalid", "\ud800": "invalid", "": "invalid", "/": "invalid", "//": "invalid",
    "x" * 256: "name_too_long", "é" * 128: "name_too_long", "d/" * 2000 + "f": "name_too_long",
    "x" * 40_000: "name_too_long", ".versions": "not_permitted", "a/.versions/b": "not_permitted",
}  # fmt: skip


@pytest.mark.parametrize(("path", "kind"), BAD_PATHS.items(), ids=lambda value: repr(value)[:20])
def test_a_path_that_cannot_be_makes_nothing_anywhere(me, path, kind):
    file = me.upload("there", b"x")["id"]
    for route, said in [
        ("/api/files/mkdir", {"path": path}),
        ("/api/files/uploads", {"path": path, "size": 5}),
        ("/api/files/move", {"file_id": file, "to": path}),
        ("/api/teams", {"path": path, "members": []}),
    ]:
        found = me.kind("POST", route, said)
        if route == "/api/files/move":  # its folder is looked up first; "/" is where it is already
            assert found in (kind, "not_found", "exists"), route
        else:
            assert found == kind, route

    assert me.names(recursive=1) == ["there"]
    assert me.good("GET", "/api/files/uploads")["uploads"] == []


@pytest.mark.parametrize("path", ["%ff", "a%c3", "%ed%a0%80", "d/%80f"])
def test_a_path_in_a_query_that_is_no_utf8_is_refused_and_no_other_name_is_taken(me, path):
    kind = f"multipart/form-data; boundary={BOUNDARY}"

    for route in ("/api/files/upload", "/upload"):
        status, answer = me.post(f"{route}?path={path}", form(b"x"), kind)
        assert (status, answer["error"]["kind"]) == (400, "invalid")
    assert me.ask("GET", f"/api/files/list?path={path}")[0] == 400
    assert me.names(recursive=1) == []
    assert me.post("/api/files/upload?path=%EF%BF%BD", form(b"x"), kind)[0] == 201
    assert me.names() == ["\ufffd"]


@pytest.mark.parametrize("path", ["%2e%2e/x", "..%2fx", "%00", "a%2f..%2fb", "....", "C:\\x"])
def test_what_is_decoded_once_is_not_decoded_again(me, path):
    made = me.upload(path, b"x")

    assert made["path"].strip("/") == path.strip("/")


# ---------------------------------------------------------------- ids


def test_of_another_users_things_no_route_tells_anything(cluster, me):
    other = Browser(cluster.app, cluster.user("victim"))
    said = {"path": "u", "size": 9}
    file = other.upload("secret/plan.txt", b"hidden")["id"]
    ids = {
        "file": file,
        "wanted": "1",
        "key": other.good("POST", f"/api/files/{file}/share", {})["id"],
        "upload": other.good("POST", "/api/files/uploads", said)["upload"]["id"],
        "team": other.good("POST", "/api/teams", {"path": "T", "members": []})["team"]["id"],
        "device": other.good("GET", "/api/auth/devices")["devices"][0]["id"],
        "event": "1-1", "name": "victim",
    }  # fmt: skip
    unknown = {**ids, "file": "1-999999", "key": "no", "upload": "no", "team": "99999",
               "device": "no"}  # fmt: skip
    asked = 0
    for route in GUARDED:
        if not route.in_path or route.access == ADMIN or "event" in route.in_path:
            continue
        told = []
        for names in (ids, unknown):
            path = re.sub(r"\{(\w+)\}", lambda found, names=names: str(names[found[1]]), route.path)
            body = json.dumps({"permission": "read"}).encode()
            headers = {"Upload_Offset": "0", "X_Device_ID": ""}
            status, _, raw = me.ask(route.method.upper(), path, body, **headers)
            answer = json.loads(raw)["error"]
            told.append((status, answer["kind"], answer["message"]))
        assert told[0] == told[1], route_id(route)
        assert told[0][0] == 404, route_id(route)
        asked += 1

    assert asked >= 20
    assert me.ask("GET", "/api/files/list", X_Device_ID=ids["device"])[0] == 404
    assert other.load(file) == b"hidden"
    assert len(other.good("GET", "/api/files/uploads")["uploads"]) == 1


@pytest.mark.parametrize("value", [
    "", "x", "-1", "1e3", "9" * 40, "1.5", "١", "%00", "true", "0x10", " 1",
])  # fmt: skip
def test_a_number_in_a_query_that_is_none_is_refused(me, value):
    for route in ("/api/files/list?page=", "/api/files/list?per_page=", "/api/sync/events?limit=",
                  "/api/files/stats?days="):  # fmt: skip
        status, _, raw = me.ask("GET", route + quote(value))
        assert (status, json.loads(raw)["error"]["kind"]) == (400, "invalid"), route


@pytest.mark.parametrize("said", [
    "bytes=", "bytes=a-b", "bytes=-", "bytes=5-1", "bytes=9999-", "bytes=-0", "lines=1-2", "1-2",
    "bytes=0-1,3-4", "bytes=" + "0-1," * 3000, "bytes=99999999999999999999-", "bytes=--1",
    "bytes=0-99999999999999999999",
])  # fmt: skip
def test_a_range_that_is_nonsense_gets_the_whole_or_416(me, said):
    file = me.upload("f", b"0123456789")["id"]

    status, headers, body = me.ask("GET", f"/api/files/{file}/download", Range=said)

    assert status in (200, 206, 416)
    assert status != 200 or body == b"0123456789"
    assert status != 416 or headers["content-range"] == "bytes */10"
    assert status != 206 or body == b"0123456789"[: len(body)]


# ---------------------------------------------------------------- uploads


def test_uploads_at_once_while_the_quota_runs_out_stay_within_it(cluster, me):
    user = me.good("GET", "/api/auth/profile")["user"]
    with cluster.db.write() as cx:
        cx.run("UPDATE account SET quota = 25000 WHERE id = ?", user["id"])
    kind = f"multipart/form-data; boundary={BOUNDARY}"

    def send(k: int) -> int:
        mine = Browser(cluster.app, me.token)
        return mine.post("/api/files/upload", form(noise(10_000), path=f"d{k}/f"), kind)[0]

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(send, range(6)))

    assert sorted(statuses) == [201, 201, 413, 413, 413, 413]
    assert len(me.names(recursive=1)) == 4  # two files, each in its folder
    assert me.good("GET", "/storage")["used"] == 20_000


@pytest.mark.parametrize("kind", [
    "application/json", "multipart/form-data", "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "x" * 300, "multipart/mixed; boundary=x", "é", "",
])  # fmt: skip
def test_an_upload_of_another_form_is_refused(me, kind):
    for route in ("/api/files/upload", "/upload"):
        assert me.post(route, form(b"x", path="f"), kind)[0] == 400
    assert me.names() == []


def test_the_judge_knows_the_routes_that_are_asked_here():
    assert {template(re.sub(r"\{\w+\}", "1-1", route.path)) for route in TAKING} <= {
        route.path for route in ROUTES
    }
    assert len(TAKING) > 8
