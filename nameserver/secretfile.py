"""The secrets of this installation: given by configuration, or made once and kept.

``<data>/secrets.json``, mode 0600, written whole (temporary file, fsync, rename). What the
configuration gives is never written here, and always wins.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.statefile import read_json, write_private


class Secrets(NamedTuple):
    """What signs: web sessions, users' tokens, the tokens among servers."""

    secret_key: str
    jwt_secret_key: str
    cluster_secret: str


def load(data: Path, given: Secrets) -> Secrets:
    """Return the secrets; those not given ("") are read from `data`, or made and kept there."""
    path = data / "secrets.json"
    kept = _read(path)
    values = {}
    for name, value in given._asdict().items():
        if not value and not kept.get(name):
            kept[name] = secrets.token_urlsafe(32)
            write_private(path, json.dumps(kept, indent=1))
        values[name] = value or kept[name]
    return Secrets(**values)


def _read(path: Path) -> dict[str, str]:
    kept = read_json(path)
    if kept is None:
        return {}
    if not isinstance(kept, dict):
        raise EverfoldError(Kind.INVALID, "does not hold secrets", str(path))
    return {str(name): str(value) for name, value in kept.items()}
