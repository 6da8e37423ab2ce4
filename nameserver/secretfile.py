"""The secrets of this installation: given by configuration, or made once and kept.

``<data>/secrets.json``, mode 0600, written whole (temporary file, fsync, rename). What the
configuration gives is never written here, and always wins.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from everfold.errors import EverfoldError, Kind


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
            _write(path, kept)
        values[name] = value or kept[name]
    return Secrets(**values)


def _read(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        raise EverfoldError(Kind.INVALID, f"cannot be read: {err}", str(path)) from err
    if not isinstance(kept, dict):
        raise EverfoldError(Kind.INVALID, "does not hold secrets", str(path))
    return {str(name): str(value) for name, value in kept.items()}


def _write(path: Path, kept: dict[str, str]) -> None:
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(kept, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
