"""Logging: one line an event, with the id of the request it belongs to.

The id is born where a request enters the system (the mount, or a server that got none),
travels in ``X-Request-Id`` and stands in every line about it on every machine.
"""

from __future__ import annotations

import contextvars
import logging
import secrets
import sys
from pathlib import Path

_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


def new_request_id() -> str:
    """Start a request on this thread: make an id, remember it, return it."""
    fresh = secrets.token_hex(6)
    _request_id.set(fresh)
    return fresh


def adopt_request_id(given: str | None) -> str:
    """Go on with the id that came with a request, or start one when none (or nonsense) came."""
    if given and len(given) <= 64 and given.isascii() and given.isprintable():
        _request_id.set(given)
        return given
    return new_request_id()


def request_id() -> str:
    """Return the id of the request that this thread works for, "-" for none."""
    return _request_id.get()


class _AddRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = _request_id.get()
        return True


def set_up(level: str = "INFO", path: Path | None = None) -> None:
    """Send this process's log to a file, or to stderr."""
    handler: logging.Handler
    handler = logging.FileHandler(path) if path else logging.StreamHandler(sys.stderr)
    handler.addFilter(_AddRequestId())
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("urllib3").setLevel("ERROR")
