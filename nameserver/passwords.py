"""Passwords: bcrypt over a SHA-256 of the password, so that none is cut at 72 bytes."""

from __future__ import annotations

import base64
import hashlib

import bcrypt

from everfold.errors import EverfoldError, Kind

PASSWORD_MIN = 8
PASSWORD_MAX = 4096


def check_choice(password: str) -> None:
    """Raise INVALID for a password that nobody may choose."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise EverfoldError(
            Kind.INVALID, f"a password has {PASSWORD_MIN} to {PASSWORD_MAX} characters"
        )


def hashed(password: str, rounds: int) -> str:
    """Return what is stored of a password."""
    return bcrypt.hashpw(_digest(password), bcrypt.gensalt(rounds)).decode()


def matches(password: str, stored: str) -> bool:
    """Tell whether this is the password; takes as long when it is not."""
    return bcrypt.checkpw(_digest(password), stored.encode())


def _digest(password: str) -> bytes:
    # base64: bcrypt stops at a NUL byte, which a raw digest may contain
    raw = password.encode("utf-8", "surrogatepass")
    return base64.b64encode(hashlib.sha256(raw).digest())
