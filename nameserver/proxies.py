"""Who really asks, when a reverse proxy stands in between: its word is taken, nobody else's.

Limits on failed logins go by the client's address, and cookies and links depend on whether the
client came by TLS. A proxy tells both (``X-Forwarded-For``, ``X-Forwarded-Proto``); anybody else
who sends these fields is not believed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from everfold.config import Network
from everfold.exchange import Environ, StartResponse, Wsgi

_FOR: Final = "HTTP_X_FORWARDED_FOR"
_PROTO: Final = "HTTP_X_FORWARDED_PROTO"


class BehindProxies:
    """A WSGI application that is asked by way of proxies in these networks."""

    def __init__(self, app: Wsgi, trusted: Iterable[Network]) -> None:
        self._app = app
        self._trusted = tuple(trusted)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Set REMOTE_ADDR and the scheme to the client's own, and ask."""
        told_for, told_proto = environ.pop(_FOR, ""), environ.pop(_PROTO, "")
        if self._is_trusted(environ["REMOTE_ADDR"]):
            environ["REMOTE_ADDR"] = self._client(environ["REMOTE_ADDR"], told_for)
            if told_proto in ("http", "https"):
                environ["wsgi.url_scheme"] = told_proto
        return self._app(environ, start_response)

    def _client(self, nearest: str, told: str) -> str:
        """Return the last address that no proxy of ours has: what is before it, anybody may say."""
        found = nearest
        for word in reversed(told.split(",")):
            address = _plain(word.strip())
            if not address:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _is_trusted(self, address: str) -> bool:
        try:
            known = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(known, "ipv4_mapped", None) or known
        return any(mapped in network for network in self._trusted)


def _plain(word: str) -> str:
    """Return an address without port and brackets, "" when it is none."""
    if word.startswith("["):
        word = word[1:].partition("]")[0]
    elif word.count(":") == 1:
        word = word.partition(":")[0]
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        return ""
