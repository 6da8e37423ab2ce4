"""``/api/auth``: routes/people.py and routes/session.py."""

from __future__ import annotations

from typing import Final

from nameserver.openapi.schemas import DEVICE_FIELDS, PLACE_FIELDS
from nameserver.openapi.terms import (
    COUNT,
    GIVEN,
    NAME,
    NEEDED,
    OPEN,
    PASSWORD,
    TEXT,
    TRUTH,
    Body,
    Json,
    Route,
    maybe,
    obj,
    of,
    one_of,
    ref,
)

_USER: Final = obj(user=ref("User"))
CREDENTIALS: Final[Json] = {
    **obj(
        {
            "email": {**GIVEN, "description": "instead of username"},
            "device_name": GIVEN,
            "device": GIVEN,
            "device_type": GIVEN,
            "device_id": GIVEN,
            "username": GIVEN,
        },
        password=NEEDED,
    ),
    "anyOf": [{"required": [name], "properties": {name: NEEDED}} for name in ("username", "email")],
}
LOGGED_IN: Final = obj(
    token=TEXT,
    token_type=one_of("Bearer"),
    expires_in=COUNT,
    user=ref("User"),
    device=ref("Device"),
)
_SESSION: Final = obj(
    {"device_id": TEXT}, user=maybe(ref("User")), csrf=maybe(TEXT), registration=TEXT
)

_ENDED: Final = obj(ended=TRUTH)

ROUTES: Final = (
    Route(
        "post", "/api/auth/register", "Make an account, where registration is open",
        {201: _USER},
        Body(obj({"email": GIVEN, "invitation": GIVEN}, username=NAME, password=PASSWORD)),
        errors=(403, 409, 429), access=OPEN,
    ),
    Route(
        "post", "/api/auth/login", "Get a token",
        {200: LOGGED_IN}, Body(CREDENTIALS), errors=(401, 429), access=OPEN,
    ),
    Route("get", "/api/auth/profile", "Tell who one is", {200: _USER}),
    Route(
        "put", "/api/auth/profile", "Change e-mail address or password; that ends other tokens",
        {200: obj({"token": TEXT, "csrf": TEXT}, user=ref("User"))},
        Body(obj({
            "email": GIVEN, "password": GIVEN, "new_password": GIVEN, "current_password": GIVEN,
        })),
        errors=(409,),
    ),
    Route(
        "get", "/api/auth/devices", "List one's devices, mounts too, and how far each followed",
        {200: obj(devices=of(obj(PLACE_FIELDS, **DEVICE_FIELDS)))},
    ),
    Route("post", "/api/auth/logout", "End the token that this comes with", {200: _ENDED}),
    Route("post", "/api/auth/revoke-all", "End all tokens of one's own", {200: _ENDED}),
    Route(
        "post", "/api/auth/devices", "Let a device in, and get a token for it",
        {201: obj(device=ref("Device"), token=TEXT)},
        Body(obj({
            "device_id": GIVEN, "device_name": GIVEN, "name": GIVEN, "device_type": GIVEN,
            "type": GIVEN,
        })),
        errors=(409,),
    ),
    Route("delete", "/api/auth/devices/{device}", "Shut a device out", {200: obj(revoked=TEXT)}),
    Route(
        "post", "/api/auth/session", "Log a browser in: its token is in a cookie",
        {200: obj(user=ref("User"), device=ref("Device"), csrf=TEXT)},
        Body({**CREDENTIALS, "properties": {**CREDENTIALS["properties"], "remember": TRUTH}}),
        errors=(401, 429), access=OPEN,
    ),
    Route(
        "get", "/api/auth/session", "Tell whose cookie this is",
        {200: _SESSION}, errors=(404,), access=OPEN,
    ),
    Route(
        "delete", "/api/auth/session", "Log a browser out", {200: obj(ended=TRUTH)}, errors=(404,)
    ),
)  # fmt: skip
