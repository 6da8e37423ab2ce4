"""``/api/auth``: registration, login, profile, devices."""

from __future__ import annotations

from flask import Blueprint, request

from nameserver.routes.auth import Guard
from nameserver.routes.forms import Json, fields, text
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
    def update() -> Json:
        form = fields()
        user = service.accounts.get(guard.who.name)
        if "email" in form:
            user = service.accounts.set_email(user, text(form, "email", ""))
        if "password" in form or "new_password" in form:
            name = "new_password" if "new_password" in form else "password"
            old = text(form, "current_password")
            service.accounts.login(user.name, old, request.remote_addr or "")
            service.accounts.set_password(user.name, text(form, name), user.name)
        return {"user": user.to_json()}

    @people.get("/devices")
    @guard.login
    def devices() -> Json:
        found = service.devices.of(guard.who.user)
        return {"devices": [device.to_json() for device in found]}

    @people.post("/devices")
    @guard.login
    def register_device() -> tuple[Json, int]:
        form = fields()
        device = service.devices.register(
            guard.who.user,
            text(form, "device_id", ""),
            text(form, "device_name", "") or text(form, "name", ""),
            text(form, "device_type", "") or text(form, "type", ""),
        )
        user = service.accounts.get(guard.who.name)
        return {"device": device.to_json(), "token": service.gate.admit(user, device)}, 201

    @people.delete("/devices/<device>")
    @guard.login
    def revoke(device: str) -> Json:
        service.devices.revoke(guard.who.user, device, guard.who.name)
        return {"revoked": device}

    return people


def log_in(service: Service) -> Json:
    """Answer a login: a token for the user at the device that the form names, perhaps new."""
    form = fields()
    name = text(form, "username", "") or text(form, "email")
    user = service.accounts.login(name, text(form, "password"), request.remote_addr or "")
    label = text(form, "device_name", "") or text(form, "device", "")
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
