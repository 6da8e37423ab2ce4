"""Flask-HTTPAuth over the gate: Bearer tokens, Basic for people with curl, a cookie for the page.

A browser sends the cookie whoever made it ask. So a request that comes with nothing else, and may
change something, must also show what only our own page can read: the header ``X-CSRF-Token``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from typing import Any, Final, TypeVar

from flask import Response, request
from flask_httpauth import HTTPBasicAuth, HTTPTokenAuth, MultiAuth
from werkzeug.datastructures import Authorization, Headers

from everfold.errors import EverfoldError, Kind
from nameserver.accounts import ADMIN
from nameserver.gate import Gate, Identity

F = TypeVar("F", bound=Callable[..., Any])
COOKIE: Final = "everfold_session"
CSRF_HEADER: Final = "X-CSRF-Token"
_SAFE: Final = ("GET", "HEAD", "OPTIONS")


class _SessionAuth(HTTPTokenAuth):  # type: ignore[misc]
    """The cookie of a browser, when there is nothing else."""

    def is_compatible_auth(self, headers: Headers) -> bool:
        return "Authorization" not in headers and COOKIE in request.cookies

    def get_auth(self) -> Authorization:
        return Authorization(self.scheme, token=request.cookies.get(COOKIE, ""))


class Guard:
    """Decorators for routes (`login`, `admin`), and who asks (`who`)."""

    def __init__(self, gate: Gate, secret: str) -> None:
        self._gate = gate
        self._secret = secret.encode()
        bearer, basic, session = HTTPTokenAuth("Bearer"), HTTPBasicAuth(), _SessionAuth("Session")
        bearer.verify_token(self._by_token)
        basic.verify_password(self._by_password)
        session.verify_token(self._by_cookie)
        for scheme in (bearer, basic, session):
            scheme.get_user_roles(_role)
            scheme.error_handler(_refuse)
        self._multi = MultiAuth(bearer, basic, session)

    def login(self, route: F) -> F:
        """Let in whoever has logged in."""
        guarded: F = self._multi.login_required(route)
        return guarded

    def admin(self, route: F) -> F:
        """Let in admins."""
        guarded: F = self._multi.login_required(role=ADMIN)(route)
        return guarded

    @property
    def who(self) -> Identity:
        """Return who asks; only within a guarded route."""
        who: Identity = self._multi.current_user()
        return who

    @property
    def token(self) -> str:
        """Return the token that the request came with, "" for a password."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme:
            return token.strip() if scheme.lower() == "bearer" else ""
        return request.cookies.get(COOKIE, "")

    def check(self) -> None:
        """Raise UNAUTHENTICATED when who asks would be let in no more, while the request lasts."""
        self._gate.check(self.who, self.token)

    def csrf(self, token: str) -> str:
        """Return what a page must show besides the cookie that holds this token."""
        mac = hmac.new(self._secret, b"csrf\0" + token.encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")

    def _by_token(self, token: str) -> Identity | None:
        return self._gate.by_token(token) if token else None

    def _by_cookie(self, token: str) -> Identity | None:
        who = self._gate.by_token(token)
        shown = request.headers.get(CSRF_HEADER, "").encode("utf-8", "replace")
        if request.method not in _SAFE and not hmac.compare_digest(
            shown, self.csrf(token).encode()
        ):
            raise EverfoldError(Kind.FORBIDDEN, f"the header {CSRF_HEADER} is missing or wrong")
        return who

    def _by_password(self, name: str, password: str) -> Identity | None:
        address = request.remote_addr or ""
        return self._gate.by_password(name, password, address) if name else None


def is_secure() -> bool:
    """Tell whether the browser came by TLS, to us or to a proxy before us."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto", "") == "https"


def set_cookie(answer: Response, token: str, ttl_s: int | None) -> None:
    """Give a browser the token of its session; None: until it is closed."""
    answer.set_cookie(
        COOKIE, token, max_age=ttl_s, secure=is_secure(), httponly=True, samesite="Strict"
    )


def _role(who: Identity) -> str:
    return who.role


def _refuse(status: int) -> None:
    if status == 403:
        raise EverfoldError(Kind.FORBIDDEN, "only admins may do this")
    raise EverfoldError(Kind.UNAUTHENTICATED, "log in first")
