"""``/api/files/…/versions`` and ``/api/files/stats``: the past of files, and figures."""

from __future__ import annotations

from flask import Blueprint, Response

from everfold.errors import EverfoldError, Kind
from everfold.model import SpaceId, Version
from nameserver.files.figures import DAYS_MAX
from nameserver.files.items import iso
from nameserver.files.service import FileService
from nameserver.routes.auth import Guard
from nameserver.routes.files import number, told, visitor
from nameserver.routes.forms import Json
from nameserver.routes.sending import Sent, send


def blueprint(files: FileService, guard: Guard) -> Blueprint:
    """Return the routes of versions and figures."""
    routes = Blueprint("versions", __name__, url_prefix="/api/files")

    @routes.get("/<file>/versions")
    @guard.login
    def versions(file: str) -> Json:
        item, known = files.versions(visitor(files, guard), file)
        listed = [_version(version) for version in reversed(known)]
        return {**told(item), "versions": listed, "total": len(listed)}

    @routes.get("/<file>/versions/<wanted>/download")
    @guard.login
    def download(file: str, wanted: str) -> Response:
        item, version = files.version(visitor(files, guard), file, _number(wanted))
        return send(files, _sent(item.name, item.space, version))

    @routes.post("/<file>/versions/<wanted>/restore")
    @guard.login
    def restore(file: str, wanted: str) -> Json:
        return told(files.restore(visitor(files, guard), file, _number(wanted)))

    @routes.get("/stats")
    @guard.login
    def stats() -> Json:
        return files.stats(visitor(files, guard), number("days", 30, 1, DAYS_MAX))

    return routes


def _version(version: Version) -> Json:
    return {
        "version": version.number,
        "size": version.size,
        "created_at": iso(version.at_ns),
        "modified_at": iso(version.mtime_ns),
        "author": version.author,
        "device": version.device,
        "current": version.current,
        "open": not version.sealed,
        "conflict": version.conflict,
    }


def _sent(name: bytes, space: SpaceId, version: Version) -> Sent:
    tag = f"{space}-{version.ino}-{version.seq}"
    content = (space, version.ino, version.seq)
    return Sent(name, version.size, version.mtime_ns, tag, content)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise EverfoldError(Kind.NOT_FOUND, "there is no such version", text[:40])
    return int(text)
