"""The one table of failures: complete, and the same at both ends of a wire."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.errors import EverfoldError, Kind
from everfold.http import error_of, with_retries

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("subject", ["", "dn1"])
def test_the_error_that_a_server_raises_is_the_error_that_its_client_catches(kind, subject):
    raised = EverfoldError(kind, "what was attempted", subject)
    body = json.dumps({"error": raised.to_wire()}).encode()

    caught = error_of(kind.http_status, body, "http://server")

    assert (caught.kind, caught.message, caught.subject) == (kind, "what was attempted", subject)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_failing_status_and_a_known_errno(kind):
    assert 400 <= kind.http_status < 600
    assert kind.errno in errno.errorcode


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.MISSING, Kind.INTERNAL])
def test_an_outage_never_looks_like_a_deletion(kind):
    assert kind.errno == errno.EIO


@pytest.mark.parametrize("kind", Kind)
def test_an_error_without_words_still_says_what_it_is(kind):
    assert str(EverfoldError(kind)) == kind.value.replace("_", " ")


@given(json_values)
def test_an_error_form_that_nobody_knows_becomes_internal(form):
    error = EverfoldError.from_wire(form)

    known = isinstance(form, dict) and form.get("kind") in {kind.value for kind in Kind}
    assert known or error.kind is Kind.INTERNAL


@pytest.mark.parametrize(
    ("status", "kind"), [(502, Kind.UNAVAILABLE), (504, Kind.UNAVAILABLE), (418, Kind.INTERNAL)]
)
def test_a_failure_that_is_not_ours_is_classed_by_its_status(status, kind):
    assert error_of(status, b"<html>bad gateway</html>", "http://proxy").kind is kind


def test_a_call_that_may_succeed_later_is_tried_again():
    answers = [EverfoldError(Kind.UNAVAILABLE), EverfoldError(Kind.TIMEOUT), "done"]

    def call(left_s):
        answer = answers.pop(0)
        if isinstance(answer, EverfoldError):
            raise answer
        return answer

    assert with_retries(call, deadline_s=5.0) == "done"


def test_a_call_that_cannot_succeed_later_is_not_tried_again():
    tried = []

    def call(left_s):
        tried.append(left_s)
        raise EverfoldError(Kind.NOT_FOUND)

    with pytest.raises(EverfoldError):
        with_retries(call, deadline_s=5.0)
    assert len(tried) == 1


def test_retries_end_with_the_last_error_when_the_deadline_has_passed():
    def call(left_s):
        raise EverfoldError(Kind.UNAVAILABLE, "still away")

    with pytest.raises(EverfoldError, match="still away"):
        with_retries(call, deadline_s=0.1)
