"""``/api/files``: routes/files.py, routes/versions.py, routes/uploads.py, routes/shares.py."""

from __future__ import annotations

from typing import Final

from everfold.model import SIZE_MAX
from nameserver.files.browse import PAGE_MAX
from nameserver.files.figures import DAYS_MAX
from nameserver.files.shares import DAYS_MAX as SHARE_DAYS_MAX
from nameserver.openapi.schemas import PAGE_FIELDS
from nameserver.openapi.terms import (
    ANY,
    BYTES,
    COUNT,
    FLAG,
    FORM,
    GIVEN,
    NEEDED,
    OPEN,
    TEXT,
    TRUTH,
    Body,
    Json,
    Param,
    Route,
    maybe,
    obj,
    of,
    one_of,
    ref,
)

_WHICH: Final[Json] = {
    "anyOf": [{"required": [name], "properties": {name: NEEDED}} for name in ("file_id", "path")]
}
DEVICE: Final = Param("X-Device-ID", TEXT, "at which of one's devices this is", "header")
PATH: Final = Param("path", ANY, "from the top of one's folder")
FILE: Final = obj(file=ref("File"), file_id=TEXT)
_SHARED_FILE: Final = obj(file=ref("SharedFile"), file_id=TEXT)
_SHARES: Final = obj(shares=of(ref("Share")))
_WRITING: Final = (404, 409, 410, 507)

LISTED: Final[tuple[Param, ...]] = (
    PATH,
    Param("search", ANY, "words that names must have"),
    Param("recursive", FLAG, "everything below"),
    Param("page", {"type": "integer", "minimum": 1, "maximum": 1_000_000_000}),
    Param("per_page", {"type": "integer", "minimum": 1, "maximum": PAGE_MAX}),
    Param("as_of", {"type": "integer", "minimum": 0, "maximum": 1 << 53}, "as page 1 told it"),
    Param("sort", one_of("name", "size", "modified")),
    Param("order", one_of("asc", "desc")),
)
PAGE: Final = obj(files=of(ref("File")), **PAGE_FIELDS, as_of=COUNT, truncated=TRUTH)
DOWNLOADED: Final[dict[int, Json | str | None]] = {200: BYTES, 206: BYTES, 304: None}
DOWNLOADING: Final[tuple[Param, ...]] = (
    Param("inline", TEXT, "1: shown by the browser where that is safe"),
    Param("Range", TEXT, "one range of bytes", "header"),
    Param("If-Range", TEXT, "", "header"),
    Param("If-None-Match", TEXT, "", "header"),
    Param("If-Match", TEXT, "", "header"),
    Param("If-Modified-Since", TEXT, "", "header"),
)
NOT_LOADED: Final = (404, 409, 412, 416, 504)
UPLOADED: Final = Body(obj({"path": ANY}, file={"contentMediaType": BYTES}), FORM)
UPLOADING: Final = (Param("path", ANY, "instead of the field"),)
NOT_TAKEN: Final = (*_WRITING, 504)

_FILES: Final = (
    Route(
        "post", "/api/files/upload", "Upload a file; the same path is a new version",
        {201: FILE}, UPLOADED, (DEVICE, *UPLOADING), NOT_TAKEN,
    ),
    Route(
        "get", "/api/files/list", "List a folder, what is below, or what was deleted there",
        {200: PAGE}, None, (DEVICE, *LISTED, Param("deleted", FLAG)), (404, 409),
    ),
    Route(
        "get", "/api/files/{file}", "Tell of a file or folder",
        {200: FILE}, None, (DEVICE, Param("deleted", FLAG, "also when it was deleted")),
    ),
    Route(
        "delete", "/api/files/{file}", "Delete to the trash",
        {200: obj(message=TEXT, file=ref("File"), file_id=TEXT)}, None,
        (DEVICE, Param("recursive", FLAG, "a folder with all that is in it")), _WRITING,
    ),
    Route(
        "get", "/api/files/{file}/download", "Download",
        DOWNLOADED, None, (DEVICE, *DOWNLOADING), NOT_LOADED,
    ),
    Route(
        "post", "/api/files/mkdir", "Make a folder, and those above it",
        {201: FILE}, Body(obj(path=NEEDED)), (DEVICE,), _WRITING,
    ),
    Route(
        "post", "/api/files/move", "Move or rename",
        {200: FILE},
        Body({
            **obj({"file_id": GIVEN, "path": GIVEN, "replace": TRUTH}, to=NEEDED), **_WHICH,
        }),
        (DEVICE,), _WRITING,
    ),
    Route(
        "post", "/api/files/undelete", "Bring back what was deleted",
        {201: FILE}, Body({**obj({"file_id": GIVEN, "path": GIVEN, "to": GIVEN}), **_WHICH}),
        (DEVICE,), _WRITING,
    ),
)  # fmt: skip

_VERSIONS: Final = (
    Route(
        "get", "/api/files/{file}/versions", "List the versions of a file, the latest first",
        {200: obj(file=ref("File"), file_id=TEXT, versions=of(ref("Version")), total=COUNT)},
        None, (DEVICE,),
    ),
    Route(
        "get", "/api/files/{file}/versions/{wanted}/download", "Download a version",
        DOWNLOADED, None, (DEVICE, *DOWNLOADING), NOT_LOADED,
    ),
    Route(
        "post", "/api/files/{file}/versions/{wanted}/restore", "Make a version the present one",
        {200: FILE}, None, (DEVICE,), (*_WRITING, 413),
    ),
    Route(
        "get", "/api/files/stats", "Counts and bytes, by type and by day",
        {200: ref("Stats")}, None,
        (DEVICE, Param("days", {"type": "integer", "minimum": 1, "maximum": DAYS_MAX})), (404,),
    ),
)  # fmt: skip

_GOING_ON: Final = obj({"file": maybe(ref("File")), "file_id": TEXT}, upload=ref("Upload"))
_UPLOADS: Final = (
    Route(
        "post", "/api/files/uploads", "Begin an upload that may take several requests",
        {201: _GOING_ON},
        Body(obj(path=NEEDED, size={"type": "integer", "minimum": 0, "maximum": SIZE_MAX})),
        (DEVICE,), NOT_TAKEN,
    ),
    Route(
        "get", "/api/files/uploads", "List one's uploads that are under way",
        {200: obj(uploads=of(ref("Upload")))}, None, (DEVICE,), (404,),
    ),
    Route(
        "get", "/api/files/uploads/{upload}", "Tell how far an upload is",
        {200: _GOING_ON}, None, (DEVICE,),
    ),
    Route(
        "patch", "/api/files/uploads/{upload}", "Add bytes; with the last one the file is kept",
        {200: _GOING_ON, 201: _GOING_ON}, Body({}, BYTES, is_required=False),
        (
            DEVICE,
            Param(
                "Upload-Offset", {"type": "string", "pattern": "^[0-9]{1,19}$"},
                "how many bytes came before", "header", is_required=True,
            ),
        ),
        NOT_TAKEN,
    ),
    Route(
        "delete", "/api/files/uploads/{upload}", "Give an upload up",
        {200: obj(upload=ref("Upload"))}, None, (DEVICE,),
    ),
)  # fmt: skip

_PASSWORD: Final = (
    Param("X-Share-Password", TEXT, "of the link, if it has one", "header"),
    Param("password", ANY, "instead of the header"),
)
_NO_LINK: Final = (401, 403, 404, 410, 429)
_SHARED_PAGE: Final[Json] = {
    "files": of(ref("SharedFile")), **PAGE_FIELDS, "as_of": COUNT, "truncated": TRUTH,
}  # fmt: skip
_LINKS: Final = (
    Route(
        "post", "/api/files/{file}/share", "Make a link for people without an account",
        {201: ref("Share")},
        Body(
            obj({
                "permission": maybe(one_of("read", "write", "admin", "")),
                "expires_in_days": {
                    "type": ["number", "null"], "exclusiveMinimum": 0, "maximum": SHARE_DAYS_MAX,
                },
                "password": GIVEN,
            }),
            is_required=False,
        ),
        (DEVICE,),
    ),
    Route(
        "get", "/api/files/{file}/shares", "List the links to a file", {200: _SHARES}, None,
        (DEVICE,),
    ),
    Route("get", "/api/files/shares", "List one's links", {200: _SHARES}, None, (DEVICE,), (404,)),
    Route(
        "delete", "/api/files/shares/{key}", "Revoke a link", {200: obj(revoked=TEXT)}, None,
        (DEVICE,),
    ),
    Route(
        "get", "/api/files/shared/{token}", "Tell what a link leads to",
        {200: obj(_SHARED_PAGE, file=ref("SharedFile"), file_id=TEXT, permission=TEXT)}, None,
        (*_PASSWORD, *LISTED), (*_NO_LINK, 409), OPEN,
    ),
    Route(
        "post", "/api/files/shared/{token}/open", "Give a link's password: a cookie keeps it",
        {200: obj(opened=TRUTH)}, Body(obj(password=NEEDED)), (), _NO_LINK, OPEN,
    ),
    Route(
        "get", "/api/files/shared/{token}/download", "Download what a link leads to",
        DOWNLOADED, None, (*_PASSWORD, PATH, *DOWNLOADING), (*_NO_LINK, *NOT_LOADED), OPEN,
    ),
    Route(
        "post", "/api/files/shared/{token}/upload", "Upload where a link with write leads to",
        {201: _SHARED_FILE}, UPLOADED, (*_PASSWORD, *UPLOADING), (*_NO_LINK, *NOT_TAKEN), OPEN,
    ),
    Route(
        "delete", "/api/files/shared/{token}", "End a link by itself",
        {200: obj(revoked=TEXT)}, None, _PASSWORD, _NO_LINK, OPEN,
    ),
)  # fmt: skip

ROUTES: Final = (*_FILES, *_VERSIONS, *_UPLOADS, *_LINKS)
