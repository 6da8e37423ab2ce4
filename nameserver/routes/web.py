"""The web page: ``/``, ``/s/TOKEN`` of a share link, and the files that both are made of.

Nothing is built: what lies in `nameserver/web` is what browsers get. The page names its files below
``/static/DIGEST/``, where they are good for ever; a new version of any has another digest.
The page's policy lets it run its own scripts and nobody else's, and make no markup from text.
"""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3
from flask import Blueprint, Response, request

from everfold.errors import EverfoldError, Kind

FOLDER: Final = Path(__file__).resolve().parent.parent / "web"
PAGE: Final = "index.html"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " media-src 'self'; connect-src 'self'; frame-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_ASK_AGAIN: Final = "no-cache"


class Asset(NamedTuple):
    """A file as it is sent."""

    kind: str
    etag: str
    plain: bytes
    packed: bytes


class Assets(NamedTuple):
    """All files, by name, and what stands for this state of them."""

    digest: str
    files: dict[str, Asset]


@functools.cache
def assets(folder: Path = FOLDER) -> Assets:
    """Read all files of the page."""
    texts = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in _TYPES}
    digest = _digest(b"\0".join(name.encode() + texts[name] for name in sorted(texts)))
    texts[PAGE] = texts[PAGE].replace(b"/static/", f"/static/{digest}/".encode())
    files = {
        name: Asset(_TYPES[Path(name).suffix], _digest(text), text, gzip.compress(text, 9, mtime=0))
        for name, text in texts.items()
    }
    return Assets(digest, files)


def blueprint() -> Blueprint:
    """Return the routes of the page."""
    routes = Blueprint("web", __name__)
    known = assets()

    @routes.get("/")
    @routes.get("/s/<token>")
    def page(token: str = "") -> Response:
        answer = _send(known.files[PAGE], _ASK_AGAIN)
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["X-Frame-Options"] = "DENY"
        answer.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        return answer

    @routes.get("/static/<name>")
    @routes.get("/static/<digest>/<name>")
    def static(name: str, digest: str = "") -> Response:
        found = known.files.get(name)
        if found is None or name == PAGE:
            raise EverfoldError(Kind.NOT_FOUND, "the page has no such file", name[:80])
        return _send(found, _FOR_EVER if digest == known.digest else _ASK_AGAIN)

    @routes.after_app_request
    def harden(answer: Response) -> Response:
        answer.headers.setdefault("X-Content-Type-Options", "nosniff")
        answer.headers.setdefault("Referrer-Policy", "no-referrer")
        if answer.mimetype == "application/json":
            answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    return routes


def _send(found: Asset, caching: str) -> Response:
    is_packed = request.accept_encodings.quality("gzip") > 0
    answer = Response(found.packed if is_packed else found.plain)
    answer.headers["Content-Type"] = found.kind
    if is_packed:
        answer.headers["Content-Encoding"] = "gzip"
    answer.headers["Vary"] = "Accept-Encoding"
    answer.headers["Cache-Control"] = caching
    answer.set_etag(found.etag + ("-gz" if is_packed else ""))
    answer.make_conditional(request)
    return answer


def _digest(data: bytes) -> str:
    return blake3(data).hexdigest()[:16]
