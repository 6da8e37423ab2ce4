"""``/api/auth``: registration, login, profile, devices."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from everfold.errors import EverfoldError, Kind
from nameserver import passwords
from nameserver.gate import Identity
from nameserver.routes.auth import Guard, set_cookie
from nameserver.routes.forms import Json, fields, first, text
from nameserver.service import Service


def blueprint(service: Service, guard: Guard) -> Blueprint:
    """Return the routes of accounts and devices."""
    people = Blueprint("people", __name__, url_prefix="/api/auth")

    @people.post("/register")
    def register() -> tuple[Json, int]:
        form = fields()
        user = service.register(
            text(form, "username"),
            text(form, "password"),
            text(form, "email", ""),
            text(form, "invitation", ""),
        )
        return {"user": user.to_json()}, 201

    @people.post("/login")
    def login() -> Json:
        return log_in(service)

    @people.get("/profile")
    @guard.login
    def profile() -> Json:
        return {"user": service.accounts.get(guard.who.name).to_json()}

    @people.put("/profile")
    @guard.login
    def update() -> Response:
        form = fields()
        who, email = guard.who, text(form, "email", "")
        old, new = text(form, "current_password", ""), first(form, "new_password", "password")
        user = service.accounts.get(who.name)
        if form.keys() & {"password", "new_password"}:  # looked at before anything is changed
            passwords.check_choice(new)
            service.accounts.login(
                user.name, old or text(form, "current_password"), request.remote_addr or ""
            )
        if "email" in form:
            user = service.accounts.set_email(user, email)
        if not new:
            return jsonify(user=user.to_json())
        service.accounts.set_password(user.name, new, user.name)
        return _go_on(service, guard, who)

    @people.post("/logout")
    @guard.login
    def logout() -> Json:
        if not guard.token:
            raise EverfoldError(Kind.INVALID, "log in with a token, to end it")
        service.gate.end(guard.token, guard.who.name)
        return {"ended": True}

    @people.post("/revoke-all")
    @guard.login
    def revoke_all() -> Json:
        service.accounts.end_tokens(service.accounts.get(guard.who.name))
        return {"ended": True}

    @people.get("/devices")
    @guard.login
    def devices() -> Json:
        return {"devices": service.devices.with_places(guard.who.user)}

    @people.post("/devices")
    @guard.login
    def register_device() -> tuple[Json, int]:
        form = fields()
        device = service.devices.register(
            guard.who.user,
            text(form, "device_id", ""),
            first(form, "device_name", "name"),
            first(form, "device_type", "type"),
        )
        user = service.accounts.get(guard.who.name)
        return {"device": device.to_json(), "token": service.gate.admit(user, device)}, 201

    @people.delete("/devices/<device>")
    @guard.login
    def revoke(device: str) -> Json:
        service.devices.revoke(guard.who.user, device, guard.who.name)
        return {"revoked": device}

    return people


def _go_on(service: Service, guard: Guard, who: Identity) -> Response:
    """Give whoever changed the password a token again, where the old one was: all have ended."""
    user = service.accounts.get(who.name)
    device = service.devices.get(who.user, who.device) if who.device else None
    if device is None:  # name and password came with the request
        return jsonify(user=user.to_json())
    token = service.gate.admit(user, device)
    if request.headers.get("Authorization"):
        return jsonify(user=user.to_json(), token=token)
    answer = jsonify(user=user.to_json(), csrf=guard.csrf(token))  # no script gets the token
    set_cookie(answer, token, None)
    return answer


def log_in(service: Service) -> Json:
    """Answer a login: a token for the user at the device that the form names, perhaps new."""
    form = fields()
    name = first(form, "username", "email") or text(form, "username")
    user = service.accounts.login(name, text(form, "password"), request.remote_addr or "")
    label = first(form, "device_name", "device")
    device = service.devices.at_login(
        user.id, text(form, "device_id", ""), label, text(form, "device_type", "")
    )
    return {
        "token": service.gate.admit(user, device),
        "token_type": "Bearer",
        "expires_in": int(service.policy.token_ttl_s),
        "user": user.to_json(),
        "device": device.to_json(),
    }
