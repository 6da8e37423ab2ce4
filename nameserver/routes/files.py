"""``/api/files``: the files of whoever asks, for programs and the page (docs/API.md)."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from flask import Blueprint, Response, request

from everfold.errors import EverfoldError, Kind
from everfold.model import Seq
from nameserver.files.browse import PAGE_MAX, Page
from nameserver.files.intake import Intake
from nameserver.files.items import Item
from nameserver.files.paths import FileId
from nameserver.files.service import Asked, FileService, Visitor
from nameserver.routes import multipart
from nameserver.routes.auth import Guard
from nameserver.routes.forms import Json, fields, text
from nameserver.routes.sending import Sent, send
from nameserver.spaces import WRITE

_PER_PAGE: Final = 50
_FRAME_MAX: Final = 256 * 1024  # of a form around its file
_NUMBER_MAX: Final = 1 << 53
_ORDERS: Final = ("name", "size", "modified")


def blueprint(files: FileService, guard: Guard) -> Blueprint:
    """Return the routes of files, folders, trash and bytes."""
    routes = Blueprint("files", __name__, url_prefix="/api/files")

    @routes.post("/upload")
    @guard.login
    def upload() -> tuple[Json, int]:
        return told(receive(files, visitor(files, guard))), 201

    @routes.get("/list")
    @guard.login
    def listing() -> Json:
        ask = asked()
        me = visitor(files, guard)
        if flag("deleted"):
            return page_json(files.trash(me, ask), ask)
        return page_json(files.listing(me, ask), ask)

    @routes.get("/<id:file>")
    @guard.login
    def info(file: str) -> Json:
        me, may_be_gone = visitor(files, guard), flag("deleted")
        try:
            return told(files.info(me, file))
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND or not may_be_gone:
                raise
            return told(files.lost(me, file))

    @routes.get("/<file>/download")
    @guard.login
    def download(file: str) -> Response:
        return send_current(files, visitor(files, guard), file)

    @routes.delete("/<id:file>")
    @guard.login
    def delete(file: str) -> Json:
        gone = files.delete(visitor(files, guard), file, flag("recursive"))
        return {"message": "deleted; it can be undeleted", **told(gone)}

    _names(routes, files, guard)
    return routes


def _names(routes: Blueprint, files: FileService, guard: Guard) -> None:
    @routes.post("/mkdir")
    @guard.login
    def mkdir() -> tuple[Json, int]:
        path = text(fields(), "path")
        return told(files.make_folder(visitor(files, guard), path)), 201

    @routes.post("/move")
    @guard.login
    def move() -> Json:
        form = fields()
        me = visitor(files, guard)
        file, path = _which(form)
        to, replaces = text(form, "to"), truth(form, "replace")
        return told(files.move(me, file or str(files.at(me, path).id), to, replaces))

    @routes.post("/undelete")
    @guard.login
    def undelete() -> tuple[Json, int]:
        form = fields()
        file, path = _which(form)
        item = files.undelete(visitor(files, guard), file, path, text(form, "to", ""))
        return told(item), 201


def _which(form: Json) -> tuple[str, str]:
    """Return (id, path) of what is meant, one of which is given."""
    file, path = text(form, "file_id", ""), text(form, "path", "")
    return file, path if file else text(form, "path")


# ---------------------------------------------------------------- shared by other blueprints


def visitor(files: FileService, guard: Guard) -> Visitor:
    """Return who asks, at the device that the token or ``X-Device-ID`` names."""
    return files.visitor(guard.who, request.headers.get("X-Device-ID", ""))


def told(item: Item) -> Json:
    """Return one file as every route tells it."""
    return {"file": item.to_json(), "file_id": str(item.id)}


def page_json(page: Page, ask: Asked) -> Json:
    """Return a part of a listing; `as_of` makes the next pages of the same moment."""
    pages = -(-page.total // ask.per_page)
    return {
        "files": [item.to_json() for item in page.items],
        "total": page.total,
        "page": ask.page,
        "per_page": ask.per_page,
        "pages": pages,
        "has_next": ask.page < pages,
        "has_prev": ask.page > 1,
        "as_of": page.seq,
        "truncated": page.is_cut,
    }


def asked() -> Asked:
    """Return what part of a listing the query string asks for; INVALID for nonsense."""
    order = request.args.get("sort", "name")
    turn = request.args.get("order", "asc")
    if order not in _ORDERS or turn not in ("asc", "desc"):
        raise EverfoldError(Kind.INVALID, "sort is name, size or modified; order is asc or desc")
    return Asked(
        path=word("path"),
        words=word("search"),
        is_recursive=flag("recursive"),
        page=number("page", 1, 1, 1_000_000_000),
        per_page=number("per_page", _PER_PAGE, 1, PAGE_MAX),
        seq=Seq(number("as_of", 0, 0, _NUMBER_MAX)),
        order=order,
        is_falling=turn == "desc",
    )


def word(name: str) -> str:
    """Return a text of the query string, "" without one."""
    value = request.args.get(name, "")
    if "\0" in value or (value and not _is_text(request.query_string)):
        raise EverfoldError(Kind.INVALID, f"{name!r} is not text")
    return value


def _is_text(query: bytes) -> bool:
    """Tell whether a query string is UTF-8; of what is not, werkzeug would make "%FF"."""
    try:
        unquote_to_bytes(query).decode()
    except UnicodeError:
        return False
    return True


def number(name: str, default: int, least: int, most: int) -> int:
    """Return a number of the query string; INVALID outside of ``[least, most]``."""
    value = request.args.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 19:
        raise EverfoldError(Kind.INVALID, f"{name!r} is not a number")
    if not least <= int(value) <= most:
        raise EverfoldError(Kind.INVALID, f"{name!r} is a number from {least} to {most}")
    return int(value)


def flag(name: str) -> bool:
    """Return a yes or no of the query string; INVALID for anything else."""
    value = request.args.get(name, "0").lower()
    if value not in ("0", "1", "false", "true"):
        raise EverfoldError(Kind.INVALID, f"{name!r} is true or false")
    return value in ("1", "true")


def truth(form: Json, name: str) -> bool:
    """Return a yes or no of a JSON body; INVALID for anything else."""
    value = form.get(name, False)
    if not isinstance(value, bool):
        raise EverfoldError(Kind.INVALID, f"the field {name!r} is not true or false")
    return value


def send_current(files: FileService, me: Visitor, file: str) -> Response:
    """Answer with a file's bytes as they are now."""
    item, content = files.content(me, file)
    return send(files, Sent(item.name, item.size, item.mtime_ns, item.etag, content))


def receive(files: FileService, me: Visitor, within: FileId | None = None) -> Item:
    """Take an upload: the form's `file`, to `path` (a field or in the query), streamed.

    `within`: a folder that all of it must be below, or the one file that it may be.
    """
    request.max_content_length = 1 << 62  # the limit of the file itself counts
    whole, path, filename = me, word("path"), None
    if within is None:
        me, path = files.aim(whole, path, WRITE)
    intake = _intake(files, me)
    try:
        for part in multipart.Form(_read, request.headers.get("Content-Type", "")):
            if part.name == "path":
                path = part.text()
                if within is None:
                    there, path = files.aim(whole, path, WRITE)
                    if there.space != me.space:
                        _check_nothing_came(filename)
                        me, intake = there, _intake(files, there)
            elif part.name == "file" and filename is None:
                filename = part.filename or ""
                if path or filename:  # else the path may still come
                    files.target(me, path, filename or "file", within)
                for chunk in part.chunks():
                    intake.write(chunk)
            elif part.name == "file":
                raise EverfoldError(Kind.INVALID, "one upload is one file")
        if filename is None:
            raise EverfoldError(Kind.INVALID, "the field 'file' is missing")
        target = files.target(me, path, filename, within)
        return files.keep(me, target, intake.end())
    except BaseException:
        intake.cancel()
        raise


def _intake(files: FileService, me: Visitor) -> Intake:
    length = request.content_length
    return files.intake(me, max(0, length - _FRAME_MAX) if length is not None else None)


def _check_nothing_came(filename: str | None) -> None:
    if filename is not None:
        raise EverfoldError(
            Kind.CROSS_SPACE, "into a team folder 'path' comes before 'file', or in the query"
        )


def _read(size: int) -> bytes:
    try:
        return request.stream.read(size)
    except OSError as err:
        raise EverfoldError(Kind.INVALID, f"the upload broke off: {err}") from err
