"""The audit log: who did what, kept in the database, shown to admins."""

from __future__ import annotations

from nameserver.db import Cx


def note(
    cx: Cx, now_ns: int, author: str, action: str, subject: str = "", detail: str = ""
) -> None:
    """Add a line, in the transaction of what it tells of."""
    cx.run(
        "INSERT INTO audit (at_ns, author, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
        now_ns,
        author[:255],
        action,
        subject[:255],
        detail[:500],
    )
