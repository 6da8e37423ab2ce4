"""``/api/files/uploads``: a file in several requests, which go on where they were cut off."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected

from everfold.errors import EverfoldError, Kind
from everfold.model import SIZE_MAX
from nameserver.files.service import FileService, Visitor
from nameserver.files.uploads import Upload
from nameserver.routes.auth import Guard
from nameserver.routes.files import told, visitor
from nameserver.routes.forms import Json, fields, text

OFFSET = "Upload-Offset"


def blueprint(files: FileService, guard: Guard) -> Blueprint:
    """Return the routes of uploads."""
    routes = Blueprint("uploads", __name__, url_prefix="/api/files/uploads")
    uploads = files.uploads

    def answer(me: Visitor, upload: Upload, status: int) -> Response:
        form: Json = {"upload": uploads.told(me, upload)}
        if upload.is_kept:
            file, item = uploads.kept(me, upload)
            form |= told(item) if item is not None else {"file": None, "file_id": str(file)}
        made = jsonify(form)
        made.status_code = status
        made.headers[OFFSET] = str(upload.offset)
        return made

    @routes.post("")
    @guard.login
    def begin() -> Response:
        form = fields()
        size = form.get("size")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= SIZE_MAX:
            raise EverfoldError(Kind.INVALID, f"the field 'size' is a number up to {SIZE_MAX}")
        me = visitor(files, guard)
        return answer(me, uploads.begin(me, text(form, "path"), size), 201)

    @routes.get("")
    @guard.login
    def listing() -> Json:
        me = visitor(files, guard)
        return {"uploads": [uploads.told(me, each) for each in uploads.all(me)]}

    @routes.get("/<upload>")
    @guard.login
    def info(upload: str) -> Response:
        me = visitor(files, guard)
        return answer(me, uploads.get(me, upload), 200)

    @routes.patch("/<upload>")
    @guard.login
    def add(upload: str) -> Response:
        request.max_content_length = 1 << 62  # what was announced counts
        me = visitor(files, guard)
        after = uploads.add(me, upload, _offset(), request.content_length, _read)
        return answer(me, after, 201 if after.is_kept else 200)

    @routes.delete("/<upload>")
    @guard.login
    def drop(upload: str) -> Json:
        me = visitor(files, guard)
        return {"upload": uploads.told(me, uploads.drop(me, upload))}

    return routes


def _offset() -> int:
    value = request.headers.get(OFFSET, "")
    if not value.isascii() or not value.isdigit() or len(value) > 19:
        raise EverfoldError(Kind.INVALID, f"the header {OFFSET} is missing, or is not a number")
    return int(value)


def _read(size: int) -> bytes:
    try:
        return request.stream.read(size)
    except (OSError, ClientDisconnected) as err:
        raise EverfoldError(Kind.INVALID, f"the upload broke off: {err}") from err
