"""``/api/sync``: what happened, from where a program left off; how far its devices are."""

from __future__ import annotations

from functools import partial

from flask import Blueprint, request

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId
from nameserver.files.events import LIMIT_MAX, WAIT_MAX_S, Events
from nameserver.files.items import iso
from nameserver.files.positions import Sights, told
from nameserver.files.service import FileService, Visitor
from nameserver.routes.auth import Guard
from nameserver.routes.files import number, visitor, word
from nameserver.routes.forms import Json
from nameserver.service import Service

_LIMIT = 100


def blueprint(service: Service, guard: Guard) -> Blueprint:
    """Return the routes of events and devices' positions."""
    routes = Blueprint("sync", __name__, url_prefix="/api/sync")
    files: FileService = service.files
    events = files.events

    @routes.get("/events")
    @guard.login
    def listing() -> Json:
        me = visitor(files, guard)
        since, device = word("since"), _device(files, me, word("device_id"))
        limit = number("limit", _LIMIT, 1, LIMIT_MAX)
        wait_s = number("wait", 0, 0, int(WAIT_MAX_S))
        sights = events.sights(me.who.user)
        position = events.place(sights, since) if since else events.followed(sights, device)
        see = partial(_seen_still, guard, events, me)
        found, position = events.after(sights, position, limit, wait_s, see)
        return {
            "events": found,
            "count": len(found),
            "next_since": told(position, sights),
            "has_more": len(found) == limit,
            "server_time": iso(service.clock.time_ns()),
        }

    @routes.put("/events/<event>/processed")
    @guard.login
    def processed(event: str) -> Json:
        me = visitor(files, guard)
        device = _device(files, me, word("device_id"))
        if not device:
            raise EverfoldError(Kind.INVALID, "say which device, by X-Device-ID or device_id")
        sights = events.sights(me.who.user)
        position = events.follow(sights, device, event)
        return {"event_id": event, "device_id": device, "position": told(position, sights)}

    @routes.get("/status")
    @guard.login
    def status() -> Json:
        me = visitor(files, guard)
        sights = events.sights(me.who.user)
        devices = []
        for device in service.devices.of(me.who.user):
            position = events.followed(sights, device.id)
            behind = events.pending(position)
            at = told(position, sights)
            devices.append({**device.to_json(), "position": at, "pending": behind})
        now = events.now(sights)
        return {
            "seq": now[me.space].seq,
            "position": told(now, sights),
            "device_id": _device(files, me, "") or None,
            "devices": devices,
            "server_time": iso(service.clock.time_ns()),
        }

    @routes.post("/ping")
    @guard.login
    def ping() -> Json:
        me = visitor(files, guard)
        device = _device(files, me, "")
        if device:
            service.devices.seen(device)
        sights = events.sights(me.who.user)
        position = events.followed(sights, device)
        return {
            "status": "ok",
            "device_id": device or None,
            "position": told(position, sights),
            "pending": events.pending(position),
            "server_time": iso(service.clock.time_ns()),
        }

    return routes


def _seen_still(guard: Guard, events: Events, me: Visitor) -> Sights:
    """Return what somebody may see by now; UNAUTHENTICATED when they are let in no more."""
    guard.check()
    return events.sights(me.who.user)


def _device(files: FileService, me: Visitor, named: str) -> DeviceId:
    """Return the device that is meant: `named`, by header, or the token's; "" for none."""
    device = named or request.headers.get("X-Device-ID", "")
    if device:
        files.visitor(me.who, device)  # NOT_FOUND unless it is one of theirs
        return DeviceId(device)
    return me.who.device
