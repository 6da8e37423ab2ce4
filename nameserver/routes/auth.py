"""Flask-HTTPAuth over the gate: Bearer tokens, and Basic for people with curl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import request
from flask_httpauth import HTTPBasicAuth, HTTPTokenAuth, MultiAuth

from everfold.errors import EverfoldError, Kind
from nameserver.accounts import ADMIN
from nameserver.gate import Gate, Identity

F = TypeVar("F", bound=Callable[..., Any])


class Guard:
    """Decorators for routes (`login`, `admin`), and who asks (`who`)."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        bearer, basic = HTTPTokenAuth("Bearer"), HTTPBasicAuth()
        bearer.verify_token(self._by_token)
        basic.verify_password(self._by_password)
        for scheme in (bearer, basic):
            scheme.get_user_roles(_role)
            scheme.error_handler(_refuse)
        self._multi = MultiAuth(bearer, basic)

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

    def _by_token(self, token: str) -> Identity | None:
        return self._gate.by_token(token) if token else None

    def _by_password(self, name: str, password: str) -> Identity | None:
        address = request.remote_addr or ""
        return self._gate.by_password(name, password, address) if name else None


def _role(who: Identity) -> str:
    return who.role


def _refuse(status: int) -> None:
    if status == 403:
        raise EverfoldError(Kind.FORBIDDEN, "only admins may do this")
    raise EverfoldError(Kind.UNAUTHENTICATED, "log in first")
