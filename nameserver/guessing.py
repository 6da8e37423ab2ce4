"""How often somebody may be wrong: failed logins of a while, counted in the audit log.

So it holds for all processes together, and survives a restart. Who guesses one name from one place
is stopped first; then a name that is guessed from anywhere, and a place that guesses any names.
"""

from __future__ import annotations

from typing import Final

from everfold.errors import EverfoldError, Kind
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.policy import Policy

LOGIN_FAILED: Final = "login.failed"
_SINCE: Final = "SELECT at_ns FROM audit WHERE at_ns > ? AND action = ?"
_LATEST: Final = " ORDER BY at_ns DESC LIMIT 1 OFFSET ?"


class Guessing:
    """Refuses who has failed too often. Thread-safe; keeps nothing in memory."""

    def __init__(self, db: Database, clock: Clock, policy: Policy) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy

    def check(self, name: str, address: str) -> None:
        """Raise RATE_LIMITED after too many failures; its subject is the seconds to wait."""
        policy = self._policy
        with self._db.read() as cx:
            waits = [
                self._wait(cx, policy.login_failures, " AND author = ? AND detail = ?",
                           name[:255], address),
                self._wait(cx, policy.login_failures_name, " AND author = ?", name[:255]),
                self._wait(cx, policy.login_failures_address, " AND detail = ?", address)
                if address else 0,
            ]  # fmt: skip
        if max(waits) > 0:
            raise EverfoldError(
                Kind.RATE_LIMITED, "too many failed logins; try again later", str(max(waits))
            )

    def _wait(self, cx: Cx, allowed: int, which: str, *values: object) -> int:
        """Return the seconds until fewer than `allowed` of these failures are in the window."""
        window = int(self._policy.login_window_s * 1e9)
        now = self._clock.time_ns()
        sql = _SINCE + which + _LATEST
        row = cx.one(sql, now - window, LOGIN_FAILED, *values, allowed - 1)
        return 0 if row is None else int((row[0] + window - now) // 1_000_000_000) + 1
