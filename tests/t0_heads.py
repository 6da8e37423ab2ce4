"""The heads of HTTP requests: what is understood, and every doubt that is refused."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.heads import Refused, parse


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")


def status_of(raw: bytes) -> HTTPStatus:
    with pytest.raises(Refused) as caught:
        parse(raw)
    return caught.value.status


def test_a_plain_request_is_understood() -> None:
    got = parse(head("POST /v1/a?b=c HTTP/1.1", "Host: x", "X-Some:  thing\t", "content-LENGTH: 7"))

    assert (got.method, got.target, got.is_http11) == ("POST", "/v1/a?b=c", True)
    assert got.fields.headers == {"host": "x", "x-some": "thing", "content-length": "7"}
    assert (got.fields.length, got.fields.is_chunked, got.fields.keep) == (7, False, True)


def test_the_same_fields_behind_another_line_are_understood_again() -> None:
    one = parse(head("PUT /a HTTP/1.1", "Host: x", "Content-Length: 1"))
    two = parse(head("GET /b HTTP/1.0", "Host: x", "Content-Length: 1"))

    assert (one.method, one.target, two.method, two.target) == ("PUT", "/a", "GET", "/b")
    assert (one.fields.keep, two.fields.keep) == (True, False)


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [("1.1", "", True), ("1.1", "close", False), ("1.1", "TE, Close", False),
     ("1.0", "", False), ("1.0", "Keep-Alive", True), ("1.1", "closed", True)],
)  # fmt: skip
def test_who_asked_for_it_keeps_the_connection(version: str, connection: str, keep: bool) -> None:
    more = [f"Connection: {connection}"] if connection else []

    assert parse(head(f"GET / HTTP/{version}", "Host: x", *more)).fields.keep is keep


def test_a_whole_url_is_its_path() -> None:
    assert parse(head("GET http://some.where/a?b HTTP/1.1", "Host: x")).target == "/a?b"
    assert parse(head("GET http://some.where HTTP/1.1", "Host: x")).target == "/"


def test_fields_given_twice_are_joined_or_refused() -> None:
    got = parse(head("GET / HTTP/1.1", "Host: x", "Accept: a", "accept: b"))

    assert got.fields.headers["accept"] == "a, b"
    for name in ("Host", "Content-Length", "Authorization", "Transfer-Encoding", "Range"):
        twice = head("GET / HTTP/1.1", "Host: x", f"{name}: 1", f"{name}: 1")
        assert status_of(twice) is HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    "lines",
    [
        ["GET / HTTP/1.1"],  # no Host
        ["GET  / HTTP/1.1", "Host: x"],
        ["GET / HTTP/1.1 ", "Host: x"],
        ["GET /a b HTTP/1.1", "Host: x"],
        ["GET nowhere HTTP/1.1", "Host: x"],
        ["GET / http/1.1", "Host: x"],
        ["GET /", "Host: x"],
        ["G\u00c9T / HTTP/1.1", "Host: x"],
        ["GET / HTTP/1.1", "Host : x"],
        ["GET / HTTP/1.1", " Host: x"],
        ["GET / HTTP/1.1", "Host: x", " folded"],
        ["GET / HTTP/1.1", "Host: x", "no colon"],
        ["GET / HTTP/1.1", "Host: x", ": nameless"],
        ["GET / HTTP/1.1", "Host: x", "A: b\x00c"],
        ["GET / HTTP/1.1", "Host: x", "A: b\nC: d"],
        ["GET / HTTP/1.1", "Host: x", "A: b\rC: d"],
        ["POST / HTTP/1.1", "Host: x", "Content-Length: -1"],
        ["POST / HTTP/1.1", "Host: x", "Content-Length: +1"],
        ["POST / HTTP/1.1", "Host: x", "Content-Length: 1, 1"],
        ["POST / HTTP/1.1", "Host: x", "Content-Length: 1_0"],
        ["POST / HTTP/1.1", "Host: x", "Content-Length: \u00b2"],
        ["POST / HTTP/1.1", "Host: x", "Content-Length:"],
        ["POST / HTTP/1.1", "Host: x", "Content-Length: " + "9" * 30],
        ["POST / HTTP/1.1", "Host: x", "Content-Length: 1", "Transfer-Encoding: chunked"],
        ["POST / HTTP/1.0", "Host: x", "Transfer-Encoding: chunked"],
    ],
)
def test_every_doubt_is_refused(lines: list[str]) -> None:
    assert status_of(head(*lines)) is HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET / HTTP/2.0", "Host: x"], 505),
        (["GET /" + "a" * 9000 + " HTTP/1.1", "Host: x"], 414),
        (["GET / HTTP/1.1", "Host: x", *(f"A{n}: b" for n in range(200))], 431),
        (["POST / HTTP/1.1", "Host: x", "Transfer-Encoding: gzip"], 501),
        (["POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked, chunked"], 501),
    ],
)
def test_what_is_too_much_has_a_status_of_its_own(lines: list[str], status: int) -> None:
    assert status_of(head(*lines)) == status


@given(st.binary(max_size=300))
def test_no_bytes_fail_in_another_way(raw: bytes) -> None:
    try:
        got = parse(b"GET / HTTP/1.1\r\nHost: x\r\n" + raw)
    except Refused as err:
        assert err.status in (400, 431, 501)
    else:
        assert raw == b"" or raw.endswith(b"\r\n")
        assert got.target == "/"
