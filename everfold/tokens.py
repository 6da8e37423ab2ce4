"""Signed tokens: HS256 JWTs, minted and verified with itsdangerous.

Three kinds by audience: "user" (a login or a device, signed with JWT_SECRET_KEY, which only
nameservers know), "blocks" (good at datanodes for one space and some verbs) and "node" (a
datanode towards the nameserver), both signed with CLUSTER_SECRET, which servers share.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import itsdangerous

from everfold.errors import EverfoldError, Kind
from everfold.services import Clock

_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")


class Signer:
    """Mints and verifies the tokens of one secret."""

    def __init__(self, secret: str, clock: Clock) -> None:
        self._signer = itsdangerous.Signer(
            secret, sep=".", key_derivation="none", digest_method=hashlib.sha256
        )
        self._clock = clock

    def mint(self, audience: str, ttl_s: float, **claims: Any) -> str:
        """Return a token for `audience` that is good for `ttl_s` seconds from now."""
        now = self._clock.time_ns() // 1_000_000_000
        body = {"aud": audience, "iat": now, "exp": now + int(ttl_s), **claims}
        payload = base64.urlsafe_b64encode(json.dumps(body, separators=(",", ":")).encode())
        return self._signer.sign(_HEADER + b"." + payload.rstrip(b"=")).decode()

    def verify(self, token: str, audience: str) -> dict[str, Any]:
        """Return the claims of a good token; raise UNAUTHENTICATED for any other."""
        try:
            head, payload = self._signer.unsign(token.encode()).split(b".", 1)
            claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
            good = head == _HEADER and claims["aud"] == audience
            expires = int(claims["exp"])
        except (itsdangerous.BadSignature, ValueError, KeyError, TypeError, UnicodeError) as err:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token is not valid") from err
        if not good:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token is for something else")
        if self._clock.time_ns() >= expires * 1_000_000_000:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token has expired")
        answer: dict[str, Any] = claims
        return answer
