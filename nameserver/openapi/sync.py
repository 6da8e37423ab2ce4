"""``/api/sync``: routes/sync.py."""

from __future__ import annotations

from typing import Final

from nameserver.files.events import LIMIT_MAX, WAIT_MAX_S
from nameserver.openapi.files import DEVICE
from nameserver.openapi.schemas import DEVICE_FIELDS
from nameserver.openapi.terms import (
    ANY,
    COUNT,
    MOMENT,
    TEXT,
    TRUTH,
    Param,
    Route,
    maybe,
    obj,
    of,
    one_of,
    ref,
)

_DEVICE_ID: Final = Param("device_id", ANY, "which of one's devices, if not the token's")

ROUTES: Final = (
    Route(
        "get", "/api/sync/events", "Tell what happened since",
        {200: obj(
            events=of(ref("Event")), count=COUNT, next_since=TEXT, has_more=TRUTH,
            server_time=MOMENT,
        )},
        None,
        (
            DEVICE, _DEVICE_ID,
            Param("since", ANY, "an event's id, a commit number, a position or an ISO time"),
            Param("limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}),
            Param(
                "wait", {"type": "integer", "minimum": 0, "maximum": int(WAIT_MAX_S)},
                "seconds to wait for the next event",
            ),
        ),
        (404,),
    ),
    Route(
        "put", "/api/sync/events/{event}/processed", "Note how far a device has followed",
        {200: obj(event_id=TEXT, device_id=TEXT, position=TEXT)}, None, (DEVICE, _DEVICE_ID),
    ),
    Route(
        "get", "/api/sync/status", "Tell how far one's devices are",
        {200: obj(
            {"position": TEXT}, seq=COUNT, device_id=maybe(TEXT), server_time=MOMENT,
            devices=of(obj(**DEVICE_FIELDS, position=TEXT, pending=COUNT)),
        )},
        None, (DEVICE,), (404,),
    ),
    Route(
        "post", "/api/sync/ping", "Tell that a device is there",
        {200: obj(
            status=one_of("ok"), device_id=maybe(TEXT), position=TEXT, pending=COUNT,
            server_time=MOMENT,
        )},
        None, (DEVICE,), (404,),
    ),
)  # fmt: skip
