"""Small files that hold state: read whole, written whole, for their owner's eyes only."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from everfold.errors import EverfoldError, Kind


def write_private(path: Path, text: str) -> None:
    """Replace a file, mode 0600; a reader sees the old or the new content, never a part.

    On return it survives a power cut.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path) -> Any:
    """Return what a state file holds, None when there is none; INVALID when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise EverfoldError(Kind.INVALID, f"cannot read it: {err}", str(path)) from err
