"""``/api/auth/session``: the login of a browser, kept in a cookie that no script can read.

The cookie holds an ordinary token of a device of its own (`auth.COOKIE`), so whatever ends a token
ends the session. Whoever is let in by it must show `Guard.csrf` with everything that changes
something: another site may make a browser send the cookie, but cannot read this.
"""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from everfold.errors import EverfoldError, Kind
from nameserver.routes.auth import COOKIE, Guard, is_secure, set_cookie
from nameserver.routes.files import truth
from nameserver.routes.forms import Json, fields
from nameserver.routes.people import log_in
from nameserver.service import Service


def blueprint(service: Service, guard: Guard) -> Blueprint:
    """Return the routes of a browser's session."""
    routes = Blueprint("session", __name__, url_prefix="/api/auth")

    @routes.post("/session")
    def begin() -> Response:
        if not request.is_json:  # a form of another site cannot send this, so nor log anyone in
            raise EverfoldError(Kind.INVALID, "a session begins with application/json")
        stays = truth(fields(), "remember")
        told = log_in(service)
        token = told["token"]
        answer = jsonify(user=told["user"], device=told["device"], csrf=guard.csrf(token))
        set_cookie(answer, token, int(service.policy.token_ttl_s) if stays else None)
        return answer

    @routes.get("/session")
    def tell() -> Response:
        token = request.cookies.get(COOKIE, "")
        told: Json = {"user": None, "csrf": None, "registration": service.policy.registration}
        if not token:
            return jsonify(told)
        try:
            who = service.gate.by_token(token)
        except EverfoldError as err:
            if err.kind is not Kind.UNAUTHENTICATED:
                raise
            return _forget(jsonify(told))
        user = service.accounts.get(who.name).to_json()
        return jsonify({**told, "user": user, "csrf": guard.csrf(token), "device_id": who.device})

    @routes.delete("/session")
    @guard.login
    def end() -> Response:
        who = guard.who
        if who.device:
            service.devices.revoke(who.user, who.device, who.name)
        return _forget(jsonify(ended=True))

    return routes


def _forget(answer: Response) -> Response:
    answer.delete_cookie(COOKIE, secure=is_secure(), httponly=True, samesite="Strict")
    return answer
