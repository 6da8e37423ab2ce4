"""The audit log: who did what, from where, kept in the database, shown to admins."""

from __future__ import annotations

import contextvars
from typing import Any

from nameserver.db import Cx
from nameserver.files.items import iso

Json = dict[str, Any]

_address: contextvars.ContextVar[str] = contextvars.ContextVar("address", default="")


def came_from(address: str) -> None:
    """Let the lines that this thread adds tell this address; "": it works for no request."""
    _address.set(address[:64])


def note(
    cx: Cx, now_ns: int, author: str, action: str, subject: str = "", detail: str = ""
) -> None:
    """Add a line, in the transaction of what it tells of."""
    cx.run(
        "INSERT INTO audit (at_ns, author, action, subject, detail, address)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        now_ns,
        author[:255],
        action,
        subject[:255],
        detail[:500],
        _address.get(),
    )


def page(
    cx: Cx, number: int, size: int, author: str = "", action: str = ""
) -> tuple[int, list[Json]]:
    """Return how many lines there are, and a page of them, the latest first.

    `author` and `action` narrow it; "login" finds "login.failed", too.
    """
    where, values = "1 = 1", []
    if author:
        where += " AND author = ?"
        values.append(author)
    if action:
        where += " AND (action = ? OR action LIKE ?)"
        values += [action, _kinds_of(action)]
    total = cx.one(f"SELECT count(*) FROM audit WHERE {where}", *values)
    rows = cx.all(
        "SELECT id, at_ns, author, action, subject, detail, address FROM audit"
        f" WHERE {where} ORDER BY id DESC LIMIT ? OFFSET ?",
        *values,
        size,
        (number - 1) * size,
    )
    return int(total[0]) if total else 0, [_told(*row) for row in rows]


def _kinds_of(action: str) -> str:
    """Return the pattern of what is a kind of `action`; a sign that means more is left out."""
    return action.replace("%", "").replace("_", "") + ".%"


def _told(
    id_: int, at_ns: int, author: str, action: str, subject: str, detail: str, address: str
) -> Json:
    return {
        "id": id_,
        "at": iso(at_ns),
        "author": author,
        "action": action,
        "subject": subject,
        "detail": detail,
        "address": address,
    }
