"""The short routes: ``/upload``, ``/files``, ``/download``, ``/storage``, ``/login``.

The same service as under ``/api``; a file's description has its replica map here.
"""

from __future__ import annotations

from flask import Blueprint, Response

from nameserver.files.service import FileService
from nameserver.routes.auth import Guard
from nameserver.routes.files import asked, page_json, receive, send_current, told, visitor
from nameserver.routes.forms import Json
from nameserver.routes.people import log_in
from nameserver.service import Service


def blueprint(service: Service, guard: Guard) -> Blueprint:
    """Return the routes at the top."""
    routes = Blueprint("storage", __name__)
    files: FileService = service.files

    @routes.post("/login")
    def login() -> Json:
        return log_in(service)

    @routes.post("/upload")
    @guard.login
    def upload() -> tuple[Json, int]:
        return told(receive(files, visitor(files, guard))), 201

    @routes.get("/files")
    @guard.login
    def listing() -> Json:
        ask = asked()._replace(is_recursive=True)
        return page_json(files.listing(visitor(files, guard), ask, files_only=True), ask)

    @routes.get("/files/<file>")
    @guard.login
    def info(file: str) -> Json:
        me = visitor(files, guard)
        item = files.info(me, file)
        return {**told(item), "replicas": files.replicas(me, file) if item.is_file else None}

    @routes.delete("/files/<file>")
    @guard.login
    def purge(file: str) -> Json:
        gone = files.purge(visitor(files, guard), file)
        return {"message": "deleted with all its versions", **told(gone)}

    @routes.get("/download/<file>")
    @guard.login
    def download(file: str) -> Response:
        return send_current(files, visitor(files, guard), file)

    @routes.get("/storage")
    @guard.login
    def storage() -> Json:
        used = files.figures.usage(visitor(files, guard).space)
        return {
            "used": used["quota_used"],
            "limit": used["quota"],
            "available": used["quota_left"],
            **used,
        }

    return routes
