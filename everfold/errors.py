"""The one table of failures.

A failure is a *kind* plus words for people. The kind alone decides the HTTP status, the
errno that a program sees through the mount, and whether trying again may help. The error
that a server raises is the error that its client catches: it travels as
``{"kind", "message", "subject"}``. Nobody matches text, and nobody adds a kind elsewhere.
"""

from __future__ import annotations

import enum
import errno
from typing import NamedTuple


class _Row(NamedTuple):
    http: int
    errno: int
    retry: bool


class Kind(enum.Enum):
    """A kind of failure; the value is its name on the wire."""

    NOT_FOUND = "not_found"
    EXISTS = "exists"
    NOT_DIR = "not_dir"
    IS_DIR = "is_dir"
    NOT_EMPTY = "not_empty"
    INVALID = "invalid"  # malformed or meaningless argument
    NAME_TOO_LONG = "name_too_long"
    TOO_LARGE = "too_large"  # beyond the largest size or offset
    UNAUTHENTICATED = "unauthenticated"  # no token, or one that is not good
    FORBIDDEN = "forbidden"  # known, but may not
    NOT_PERMITTED = "not_permitted"  # nobody may (immutable, history)
    READ_ONLY = "read_only"
    CONFLICT = "conflict"  # the version that the operation replaces is not the current one
    STALE = "stale"  # the inode, session or token generation is gone
    QUOTA = "quota"  # the user's share is used up
    NO_SPACE = "no_space"  # the cluster or a node is full
    CROSS_SPACE = "cross_space"
    TOO_MANY_LINKS = "too_many_links"
    LOOP = "loop"
    NO_ATTR = "no_attr"  # no such extended attribute
    RANGE = "range"  # the buffer is too small, or a byte range that cannot be served
    NO_DATA = "no_data"  # nothing but holes from there on (lseek)
    UNSUPPORTED = "unsupported"
    BUSY = "busy"
    WOULD_BLOCK = "would_block"  # a lock is held by another
    DEADLOCK = "deadlock"
    INTERRUPTED = "interrupted"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"  # cannot be reached, or not enough nodes
    TIMEOUT = "timeout"
    CORRUPT = "corrupt"  # bytes do not match their name
    MISSING = "missing"  # the cluster knows the block and no node can give it
    INTERNAL = "internal"  # a defect; logged with its traceback where it happened

    @property
    def http_status(self) -> int:
        """Return the HTTP status that carries this kind."""
        return _TABLE[self].http

    @property
    def errno(self) -> int:
        """Return the errno that a program behind the mount sees."""
        return _TABLE[self].errno

    @property
    def may_retry(self) -> bool:
        """Tell whether the same call may succeed later, unchanged."""
        return _TABLE[self].retry


_TABLE: dict[Kind, _Row] = {
    Kind.NOT_FOUND: _Row(404, errno.ENOENT, False),
    Kind.EXISTS: _Row(409, errno.EEXIST, False),
    Kind.NOT_DIR: _Row(409, errno.ENOTDIR, False),
    Kind.IS_DIR: _Row(409, errno.EISDIR, False),
    Kind.NOT_EMPTY: _Row(409, errno.ENOTEMPTY, False),
    Kind.INVALID: _Row(400, errno.EINVAL, False),
    Kind.NAME_TOO_LONG: _Row(400, errno.ENAMETOOLONG, False),
    Kind.TOO_LARGE: _Row(413, errno.EFBIG, False),
    Kind.UNAUTHENTICATED: _Row(401, errno.EACCES, False),
    Kind.FORBIDDEN: _Row(403, errno.EACCES, False),
    Kind.NOT_PERMITTED: _Row(403, errno.EPERM, False),
    Kind.READ_ONLY: _Row(403, errno.EROFS, False),
    Kind.CONFLICT: _Row(409, errno.ESTALE, False),
    Kind.STALE: _Row(410, errno.ESTALE, False),
    Kind.QUOTA: _Row(413, errno.EDQUOT, False),
    Kind.NO_SPACE: _Row(507, errno.ENOSPC, False),
    Kind.CROSS_SPACE: _Row(409, errno.EXDEV, False),
    Kind.TOO_MANY_LINKS: _Row(409, errno.EMLINK, False),
    Kind.LOOP: _Row(409, errno.ELOOP, False),
    Kind.NO_ATTR: _Row(404, errno.ENODATA, False),
    Kind.RANGE: _Row(416, errno.ERANGE, False),
    Kind.NO_DATA: _Row(416, errno.ENXIO, False),
    Kind.UNSUPPORTED: _Row(501, errno.EOPNOTSUPP, False),
    Kind.BUSY: _Row(409, errno.EBUSY, True),
    Kind.WOULD_BLOCK: _Row(409, errno.EAGAIN, True),
    Kind.DEADLOCK: _Row(409, errno.EDEADLK, False),
    Kind.INTERRUPTED: _Row(409, errno.EINTR, True),
    Kind.RATE_LIMITED: _Row(429, errno.EAGAIN, True),
    Kind.UNAVAILABLE: _Row(503, errno.EIO, True),
    Kind.TIMEOUT: _Row(504, errno.EIO, True),
    Kind.CORRUPT: _Row(422, errno.EIO, False),
    Kind.MISSING: _Row(503, errno.EIO, True),
    Kind.INTERNAL: _Row(500, errno.EIO, False),
}


class EverfoldError(Exception):
    """A failure of a known kind.

    `message` is for people and names what was attempted; `subject` is the thing it was
    about (a path, an id), when there is one.
    """

    def __init__(self, kind: Kind, message: str = "", subject: str = "") -> None:
        super().__init__(kind, message, subject)
        self.kind = kind
        self.message = message or kind.value.replace("_", " ")
        self.subject = subject

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}" if self.subject else self.message

    def to_wire(self) -> dict[str, str]:
        """Return the form that travels; `from_wire` is its inverse."""
        return {"kind": self.kind.value, "message": self.message, "subject": self.subject}

    @classmethod
    def from_wire(cls, form: object) -> EverfoldError:
        """Rebuild the error that a server sent; a form nobody knows becomes INTERNAL."""
        if isinstance(form, dict) and form.get("kind") in _BY_NAME:
            kind = _BY_NAME[form["kind"]]
            return cls(kind, str(form.get("message", "")), str(form.get("subject", "")))
        return cls(Kind.INTERNAL, f"unreadable error from the server: {form!r:.200}")


_BY_NAME = {kind.value: kind for kind in Kind}
