"""How a version is called in the folder: ``2026-11-21T18.54.07.123Z_v7_laptop.txt``.

Sortable by time, unique by number, with the extension kept so that programs open it. The
mount shows these names, the tools and the web page print them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone

from everfold import moments
from everfold.model import NAME_MAX, Version

_DEVICE_MAX = 40
_NUMBER = re.compile(rb"^\d{4}-\d\d-\d\dT\d\d\.\d\d\.\d\d\.\d{3}Z_v(\d{1,18})_")
_TYPED = re.compile(rb"^(?P<name>.+)@(?P<which>[^@]+)$", re.DOTALL)
_TYPED_NUMBER = re.compile(r"^v([1-9]\d{0,17})$")


def format_name(name: bytes, version: Version) -> bytes:
    """Return the file name under which a version of `name` is listed."""
    at = datetime.fromtimestamp(version.at_ns // 1_000_000_000, timezone.utc)
    stamp = f"{at:%Y-%m-%dT%H.%M.%S}.{version.at_ns // 1_000_000 % 1000:03d}Z"
    device = re.sub(r"[^\w.+-]", "-", version.device)[:_DEVICE_MAX] or "unknown"
    mark = "-conflict" if version.conflict else ""
    head = f"{stamp}_v{version.number}_{device}{mark}".encode()
    return head + _extension(name, NAME_MAX - len(head))


def _extension(name: bytes, room: int) -> bytes:
    stem, dot, extension = name.rpartition(b".")
    if not dot or not stem.strip(b".") or len(extension) + 1 > room:
        return b""
    return dot + extension


def number_in(listed: bytes) -> int | None:
    """Return the version number that a listed name carries, None when it is not one."""
    found = _NUMBER.match(listed)
    return int(found.group(1)) if found else None


def parse_typed(typed: bytes) -> tuple[bytes, str] | None:
    """Split ``NAME@which`` into (name, which); None when there is no such part."""
    found = _TYPED.match(typed)
    if found is None:
        return None
    return found["name"], found["which"].decode("utf-8", "replace")


def pick(versions: Sequence[Version], which: str, now_ns: int) -> Version | None:
    """Return the version that ``v7``, ``first`` or a moment (`moments.parse`) means.

    `versions` are oldest first; a moment means what the name showed then. None when there is
    no such version, or `which` is none of these.
    """
    if which == "first":
        return versions[0] if versions else None
    number = _TYPED_NUMBER.match(which)
    if number is not None:
        return next((v for v in versions if v.number == int(number[1])), None)
    at_ns = moments.parse(which, now_ns)
    if at_ns is None:
        return None
    before = [version for version in versions if version.at_ns <= at_ns]
    return before[-1] if before else None
