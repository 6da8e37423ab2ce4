"""Which of the processes on a database looks after the cluster: one at a time.

On SQLite it is the one that has locked a file beside the database; the lock ends with the process
and costs nothing to keep. On PostgreSQL, where processes may be on other machines, it is a row
that is good for `Policy.lease_s`, and written again when half of that is over.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from typing import Protocol

from everfold.errors import EverfoldError, Kind
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.policy import Policy

_READ = "SELECT value FROM meta WHERE key = 'planner'"


class Planning(Protocol):
    """The right to plan. For one thread."""

    def is_ours(self) -> bool:
        """Tell whether this process plans; become the one that does when there is none.

        UNAVAILABLE when that cannot be told.
        """
        ...

    def give_back(self) -> None:
        """Let another process do it at once."""
        ...


def planning(db: Database, clock: Clock, policy: Policy) -> Planning:
    """Return what fits a database."""
    return _Row(db, clock, policy) if db.is_postgres else _File(f"{db.peewee.database}-planner")


class _File:
    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def is_ours(self) -> bool:
        if self._fd >= 0:
            return True
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise EverfoldError(Kind.UNAVAILABLE, f"cannot be locked: {err}", self._path) from err
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            os.close(fd)
            if isinstance(err, BlockingIOError):
                return False
            raise EverfoldError(Kind.UNAVAILABLE, f"cannot be locked: {err}", self._path) from err
        self._fd = fd
        return True

    def give_back(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Row:
    def __init__(self, db: Database, clock: Clock, policy: Policy) -> None:
        self._db, self._clock = db, clock
        self._ttl_ns = int(policy.lease_s * 1e9)
        self._who = secrets.token_hex(8)
        self._until_ns = 0

    def is_ours(self) -> bool:
        now = self._clock.time_ns()
        if self._until_ns - now > self._ttl_ns // 2:
            return True
        with self._db.read() as cx:
            if self._is_anothers(cx, now):
                return False
        with self._db.write() as cx:
            if self._is_anothers(cx, now):
                return False
            row = cx.one(_READ)
            fresh = json.dumps({"who": self._who, "until": now + self._ttl_ns})
            if row is None:
                got = cx.run(
                    "INSERT INTO meta (key, value) VALUES ('planner', ?) ON CONFLICT DO NOTHING",
                    fresh,
                )
            else:
                got = cx.run(
                    "UPDATE meta SET value = ? WHERE key = 'planner' AND value = ?", fresh, row[0]
                )
        if got:
            self._until_ns = now + self._ttl_ns
        return bool(got)

    def _is_anothers(self, cx: Cx, now_ns: int) -> bool:
        """Tell whether another process has the right; there may be many that wait for it."""
        row = cx.one(_READ)
        held = json.loads(row[0]) if row else None
        return held is not None and held["who"] != self._who and held["until"] > now_ns

    def give_back(self) -> None:
        if self._until_ns:
            self._until_ns = 0
            with self._db.write() as cx:
                cx.run(
                    "DELETE FROM meta WHERE key = 'planner' AND value LIKE ?", f'%"{self._who}"%'
                )
