"""``/api/files/…/share`` and ``/api/files/shared/…``: links for people without an account."""

from __future__ import annotations

import math

from flask import Blueprint, Response, jsonify, request

from everfold.errors import EverfoldError, Kind
from nameserver.files.service import FileService
from nameserver.files.shares import DAYS_MAX
from nameserver.routes.auth import Guard, is_secure
from nameserver.routes.files import asked, flag, page_json, receive, told, visitor, word
from nameserver.routes.forms import Json, fields, text
from nameserver.routes.sending import Sent, send

_DAY_S = 86_400.0
_TICKET = "everfold_share"


def blueprint(files: FileService, guard: Guard) -> Blueprint:
    """Return the routes of share links."""
    routes = Blueprint("shares", __name__, url_prefix="/api/files")
    shares = files.shares

    @routes.post("/<file>/share")
    @guard.login
    def share(file: str) -> tuple[Json, int]:
        form = fields() if request.content_length else {}
        made = shares.make(
            visitor(files, guard), file, text(form, "permission", "read"), _seconds(form),
            text(form, "password", ""),
        )  # fmt: skip
        return made, 201

    @routes.get("/<file>/shares")
    @guard.login
    def of_one(file: str) -> Json:
        return {"shares": shares.of(visitor(files, guard), file)}

    @routes.get("/shares")
    @guard.login
    def of_all() -> Json:
        return {"shares": shares.of(visitor(files, guard))}

    @routes.delete("/shares/<key>")
    @guard.login
    def revoke(key: str) -> Json:
        shares.revoke(visitor(files, guard), key)
        return {"revoked": key}

    _shared(routes, files)
    return routes


def _shared(routes: Blueprint, files: FileService) -> None:
    shares = files.shares

    @routes.get("/shared/<token>")
    def info(token: str) -> Json:
        share, me = shares.open(token, _password(), request.remote_addr or "")
        ask = asked()
        item = files.within(me, share.file, ask.path)
        answer = {**told(item), "permission": share.permission}
        if item.is_dir:
            answer |= page_json(files.listing_of(me, item, ask), ask)
        return _without_path(answer)

    @routes.post("/shared/<token>/open")
    def unlock(token: str) -> Response:
        """Let a browser keep that it knew the password, for this link only."""
        share, _ = shares.open(token, text(fields(), "password"), request.remote_addr or "")
        answer = jsonify(opened=True)
        answer.set_cookie(
            _TICKET, shares.ticket(share), path=f"/api/files/shared/{token}",
            secure=is_secure(), httponly=True, samesite="Strict",
        )  # fmt: skip
        return answer

    @routes.get("/shared/<token>/download")
    def download(token: str) -> Response:
        share, me = shares.open(token, _password(), request.remote_addr or "")
        item = files.within(me, share.file, word("path"))
        item, content = files.content(me, str(item.id))
        answer = send(files, Sent(item.name, item.size, item.mtime_ns, item.etag, content))
        is_first = answer.headers.get("Content-Range", "bytes 0-").startswith("bytes 0-")
        is_load = request.method == "GET" and answer.status_code in (200, 206)
        if is_load and is_first and not flag("inline"):  # a look is no download
            try:
                shares.count(share)
            except BaseException:
                answer.close()
                raise
        return answer

    @routes.post("/shared/<token>/upload")
    def upload(token: str) -> tuple[Json, int]:
        share, me = shares.open(token, _password(), request.remote_addr or "", "write")
        return _without_path(told(receive(files, me, share.file))), 201

    @routes.delete("/shared/<token>")
    def end(token: str) -> Json:
        share, me = shares.open(token, _password(), request.remote_addr or "", "admin")
        shares.end(share, me)
        return {"revoked": share.key}


def _without_path(answer: Json) -> Json:
    """Leave out where in the owner's space things are; that was not shared."""
    for told_ in (answer["file"], *answer.get("files", ())):
        told_.pop("path")
        told_.pop("parent_id")
    return answer


def _password() -> str:
    given = request.headers.get("X-Share-Password", "") or word("password")
    return given or request.cookies.get(_TICKET, "")


def _seconds(form: Json) -> float | None:
    days = form.get("expires_in_days")
    if days is None:
        return None
    if isinstance(days, bool) or not isinstance(days, (int, float)) or not math.isfinite(days):
        raise EverfoldError(Kind.INVALID, "the field 'expires_in_days' is not a number")
    if not 0 < days <= DAYS_MAX:
        raise EverfoldError(Kind.INVALID, f"'expires_in_days' is above 0 and up to {DAYS_MAX}")
    return days * _DAY_S
