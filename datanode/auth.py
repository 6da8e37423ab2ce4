"""Who may do what here: tokens of audience "blocks", signed with the cluster's secret.

A token says for which space it is good and for which verbs: "r" read, "w" put and copy, "d"
delete. The node needs nobody to check one, so it serves while the nameserver is away.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import SpaceId
from everfold.services import Clock
from everfold.tokens import Signer

_REMEMBERED = 1024


class Grant(NamedTuple):
    """What a good token allows, until `expires_ns`."""

    space: SpaceId
    verbs: frozenset[str]
    expires_ns: int


class Doorkeeper:
    """Verifies tokens, and remembers the good ones: verifying was a fifth of a small put."""

    def __init__(self, secret: str, clock: Clock) -> None:
        self._signer = Signer(secret, clock)
        self._clock = clock
        self._lock = threading.Lock()  # guards _known
        self._known: dict[str, Grant] = {}

    def admit(self, authorization: str | None, verb: str) -> SpaceId:
        """Return the space that this header opens for `verb`: UNAUTHENTICATED, FORBIDDEN."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise EverfoldError(Kind.UNAUTHENTICATED, "a bearer token is needed")
        grant = self._known.get(token)
        if grant is None or grant.expires_ns <= self._clock.time_ns():
            grant = self._verify(token)
        if verb not in grant.verbs:
            raise EverfoldError(Kind.FORBIDDEN, f"the token does not allow {verb!r}")
        return grant.space

    def _verify(self, token: str) -> Grant:
        claims = self._signer.verify(token, "blocks")
        try:
            grant = Grant(
                SpaceId(int(claims["space"])),
                frozenset(claims["verbs"]),
                int(claims["exp"]) * 1_000_000_000,
            )
        except (KeyError, TypeError, ValueError) as err:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token names no space") from err
        if grant.space < 0:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token names no space")
        with self._lock:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[token] = grant
        return grant
