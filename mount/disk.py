"""Errors of this machine's disk, as the kinds that the rest of the driver knows.

The one place where an `OSError` of the cache directory (staging, journal, block cache)
becomes an `EverfoldError`; its cause stays attached.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from everfold.errors import EverfoldError, Kind

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_error(err: OSError, path: Path) -> EverfoldError:
    """Return the failure that `err` is: NO_SPACE when the disk is full, else UNAVAILABLE."""
    kind = Kind.NO_SPACE if err.errno in _FULL else Kind.UNAVAILABLE
    return EverfoldError(kind, f"local disk: {err.strerror or err}", str(path))


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
