"""The reader of multipart bodies: the same parts however the bytes happen to be cut."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.errors import EverfoldError, Kind
from nameserver.routes.multipart import Form

TYPE = "multipart/form-data; boundary=bnd"


def parts(body: bytes, sizes: list[int] | None = None) -> list[tuple[str, str | None, bytes]]:
    """Return (name, filename, bytes) of all parts; the body comes in pieces of these sizes."""
    stream, left = io.BytesIO(body), list(sizes or [])

    def read(size: int) -> bytes:
        return stream.read(min(size, left.pop(0) if left else size))

    return [(p.name, p.filename, b"".join(p.chunks())) for p in Form(read, TYPE)]


def body_of(content: bytes) -> bytes:
    return (
        b'--bnd\r\nContent-Disposition: form-data; name="path"\r\n\r\na/b\r\n'
        b'--bnd \r\nContent-Disposition: form-data; name="file"; filename="f"\r\n'
        b"Content-Type: x/y\r\n\r\n" + content + b"\r\n--bnd--\r\n"
    )


@given(
    content=st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--bnd", b"\r\n--bn", b"x", b"\r\n"]))
    .map(b"".join)
    .filter(lambda data: b"\r\n--bnd" not in b"\r\n" + data + b"\r\n--bn"),
    sizes=st.lists(st.integers(1, 9), max_size=60),
)
def test_the_bytes_of_a_part_are_the_same_however_they_are_cut(content, sizes):
    assert parts(body_of(content), sizes) == [("path", None, b"a/b"), ("file", "f", content)]


def test_a_body_that_ends_anywhere_before_its_end_is_refused():
    whole = body_of(b"some content")
    for end in range(len(whole) - 4):  # the last line break may lack, and the second dash must not
        with pytest.raises(EverfoldError) as caught:
            parts(whole[:end])
        assert caught.value.kind is Kind.INVALID


@pytest.mark.parametrize(
    "body",
    [
        b"--bnd\r\n\r\nx\r\n--bnd--",
        b"--bnd\r\nContent-Disposition: form-data\r\n\r\nx\r\n--bnd--",
        b"--bnd\r\nContent-Disposition: attachment; name=x\r\n\r\nx\r\n--bnd--",
        b"--bndmore\r\nContent-Disposition: form-data; name=x\r\n\r\nx\r\n--bnd--",
        b"--bnd\r\nX: " + b"y" * 20_000 + b"\r\n\r\nx\r\n--bnd--",
        b"--bnd\r\nContent-Disposition: form-data; name=\xff\r\n\r\nx\r\n--bnd--",
        b"x" * 70_000,
    ],
)
def test_a_malformed_body_is_refused(body):
    with pytest.raises(EverfoldError) as caught:
        parts(body)
    assert caught.value.kind is Kind.INVALID


def test_a_form_without_parts_is_empty():
    assert parts(b"--bnd--\r\n") == []
