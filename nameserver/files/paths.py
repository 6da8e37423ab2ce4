"""Paths and ids as people's programs say them: text in, names in bytes out. Pure.

A path is read from the top of the space, with or without a leading slash. An id is
``SPACE-INODE``. An id stays good while its file lives under any name; what an editor's way of
saving replaced is found by the name (see `browse`).
"""

from __future__ import annotations

import functools
import mimetypes
import os
import re
from collections.abc import Collection
from typing import Final, NamedTuple
from urllib.parse import quote

from everfold.errors import EverfoldError, Kind
from everfold.model import Ino, SpaceId
from nameserver.tree import checks

PATH_MAX: Final = 32 * 1024  # bytes, of what may come from outside
DEPTH_MAX: Final = 1000
UNKNOWN_TYPE: Final = "application/octet-stream"
_ID: Final = re.compile(r"([1-9][0-9]{0,9})-([1-9][0-9]{0,18})")
_INO_END: Final = 1 << 63
_MORE_TYPES: Final = {  # what Python 3.10's table lacks
    ".md": "text/markdown", ".log": "text/plain", ".ini": "text/plain", ".toml": "text/plain",
    ".yaml": "text/plain", ".yml": "text/plain", ".webp": "image/webp", ".avif": "image/avif",
    ".flac": "audio/flac", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".m4a": "audio/mp4",
    ".mkv": "video/x-matroska", ".ogv": "video/ogg",
}  # fmt: skip


class FileId(NamedTuple):
    """Names a file of any space."""

    space: SpaceId
    ino: Ino

    def __str__(self) -> str:
        return f"{self.space}-{self.ino}"


def parse_id(text: str) -> FileId:
    """Read an id; NOT_FOUND for what cannot be one, since nothing has that id."""
    found = _ID.fullmatch(text)
    if found is None or int(found[2]) >= _INO_END or int(found[1]) >= 1 << 31:
        raise no_such_file(text)
    return FileId(SpaceId(int(found[1])), Ino(int(found[2])))


def no_such_file(subject: str) -> EverfoldError:
    """Return what is said of a file that is not there, or not yours to know of."""
    return EverfoldError(Kind.NOT_FOUND, "there is no such file", subject[:200])


def parse(text: str) -> list[bytes]:
    """Return the names of a path; none for the top.

    INVALID for ``.`` and ``..`` (nothing climbs), NUL, or what is no text; NAME_TOO_LONG.
    """
    try:
        raw = text.encode()
    except UnicodeError as err:
        raise EverfoldError(Kind.INVALID, "the path is not text") from err
    if len(raw) > PATH_MAX:
        raise EverfoldError(Kind.NAME_TOO_LONG, f"a path has at most {PATH_MAX} bytes")
    names = [name for name in raw.split(b"/") if name]
    if len(names) > DEPTH_MAX:
        raise EverfoldError(Kind.NAME_TOO_LONG, f"a path has at most {DEPTH_MAX} names")
    for name in names:
        checks.name(name)
    return names


def parse_new(text: str) -> list[bytes]:
    """Return the names of a path where something shall be made: at least one.

    Besides what `parse` refuses: NOT_PERMITTED for the name of the version folders.
    """
    names = parse(text)
    if not names:
        raise EverfoldError(Kind.INVALID, "the path names nothing")
    for name in names:
        checks.new_name(name)
    return names


def shown(names: Collection[bytes]) -> str:
    """Return a path as text, from the top; bytes that are no UTF-8 become U+FFFD."""
    return "/" + "/".join(text_of(name) for name in names)


def text_of(name: bytes) -> str:
    """Return a name as text; bytes that are no UTF-8 become U+FFFD."""
    return name.decode("utf-8", "replace")


def raw_of(name: bytes) -> str | None:
    """Return a name percent-encoded when `text_of` loses something of it, else None."""
    try:
        name.decode()
    except UnicodeError:
        return quote(name, safe="")
    return None


def type_of(name: bytes) -> str:
    """Return the media type that a name's ending suggests."""
    return _type_of_ending(os.path.splitext(name)[1])


@functools.lru_cache(maxsize=1024)
def _type_of_ending(ending: bytes) -> str:
    guessed, packed = _types().guess_type("/x" + text_of(ending).replace(":", "_"))
    return UNKNOWN_TYPE if guessed is None or packed else guessed


@functools.cache
def _types() -> mimetypes.MimeTypes:
    """Return the table: Python's own and ours, nothing of this machine's."""
    table = mimetypes.MimeTypes()
    for ending, kind in _MORE_TYPES.items():
        table.add_type(kind, ending)
    return table


def check_extension(name: bytes, allowed: Collection[str]) -> None:
    """Raise INVALID unless files may end so; an empty `allowed` allows everything."""
    stem, dot, ending = text_of(name).rpartition(".")
    extension = ending.lower() if dot and stem.strip(".") else ""
    if allowed and extension not in allowed:
        known = ", ".join(sorted(allowed))
        raise EverfoldError(
            Kind.INVALID, f"files of this type are not taken; allowed: {known}", text_of(name)[:80]
        )
