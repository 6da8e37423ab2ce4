"""Tokens are HS256 JWTs: any JWT library reads ours, and ours reads theirs."""

from __future__ import annotations

import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.tokens import Signer

SECRET = "a secret of sufficient length, 32"


class StoppedClock:
    """A clock that stands where it is put."""

    def __init__(self, now_s: float = 1_800_000_000) -> None:
        self.now_s = now_s

    def time_ns(self) -> int:
        return int(self.now_s * 1_000_000_000)

    def monotonic(self) -> float:
        return self.now_s


def refused(signer, token, audience="user"):
    with pytest.raises(EverfoldError) as caught:
        signer.verify(token, audience)
    return caught.value


def test_a_jwt_library_reads_what_we_mint():
    token = Signer(SECRET, SystemClock()).mint("user", 60, sub="ann", gen=3)

    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="user")

    assert (claims["sub"], claims["gen"]) == ("ann", 3)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}


def test_we_read_what_a_jwt_library_mints():
    body = {"aud": "user", "exp": int(time.time()) + 60, "sub": "ann"}
    token = jwt.encode(body, SECRET, algorithm="HS256", headers={"alg": "HS256", "typ": "JWT"})

    assert Signer(SECRET, SystemClock()).verify(token, "user")["sub"] == "ann"


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.lists(st.booleans())))
def test_claims_come_back_as_they_went(claims):
    for taken in ("aud", "iat", "exp", "self", "audience", "ttl_s"):
        claims.pop(taken, None)
    signer = Signer(SECRET, StoppedClock())

    back = signer.verify(signer.mint("user", 60, **claims), "user")

    assert {key: back[key] for key in claims} == claims


def test_a_token_is_good_until_it_expires_and_not_after():
    clock = StoppedClock()
    signer = Signer(SECRET, clock)
    token = signer.mint("user", 60)

    clock.now_s += 59
    signer.verify(token, "user")
    clock.now_s += 1

    assert "expired" in str(refused(signer, token))


def test_a_token_for_one_thing_is_not_good_for_another():
    signer = Signer(SECRET, StoppedClock())

    assert refused(signer, signer.mint("blocks", 60)).kind is Kind.UNAUTHENTICATED


def test_a_token_of_another_secret_is_refused():
    token = Signer(SECRET + "!", StoppedClock()).mint("user", 60)

    assert refused(Signer(SECRET, StoppedClock()), token).kind is Kind.UNAUTHENTICATED


def test_a_token_that_claims_to_need_no_signature_is_refused():
    unsigned = jwt.encode({"aud": "user", "exp": 2_000_000_000}, None, algorithm="none")

    assert refused(Signer(SECRET, StoppedClock()), unsigned).kind is Kind.UNAUTHENTICATED


@given(st.text(max_size=80))
def test_no_nonsense_passes_for_a_token_or_fails_in_another_way(text):
    assert refused(Signer(SECRET, StoppedClock()), text).kind is Kind.UNAUTHENTICATED


@given(st.data())
def test_a_token_with_any_character_changed_is_refused(data):
    signer = Signer(SECRET, StoppedClock())
    token = signer.mint("user", 60, sub="ann")
    at = data.draw(st.integers(0, len(token) - 2))  # the last character has unused bits
    other = data.draw(st.sampled_from("ABab01-_.").filter(lambda c: c != token[at]))

    assert refused(signer, token[:at] + other + token[at + 1 :]).kind is Kind.UNAUTHENTICATED
