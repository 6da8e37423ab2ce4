"""A process's connections to PostgreSQL: few, and shared by its threads.

Each client of a server has a thread, and a mount has several that are parked in long polls: a
connection for each thread would be hundreds, of the hundred that PostgreSQL allows by default. A
transaction has a connection for as long as it runs; the one that was used last is used again, since
its statements are prepared.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Final

import psycopg

from everfold.errors import EverfoldError, Kind

SIZE: Final = 16  # more would only wait for the interpreter
_WAIT_S: Final = 10.0
_CONNECT_S: Final = 5

Connection = psycopg.Connection[tuple[Any, ...]]


class Pool:
    """Threads may share it. `begin` and `give_back` belong together."""

    def __init__(self, url: str, size: int = SIZE, wait_s: float = _WAIT_S) -> None:
        self._url = url
        self._wait_s = wait_s
        self._room = threading.BoundedSemaphore(size)
        self._idle: list[Connection] = []  # append and pop are atomic

    def begin(self, sql: str) -> Connection:
        """Return a connection in a fresh transaction; UNAVAILABLE when all are in use for long.

        One that the server has closed meanwhile (it was restarted) is passed over, and all others
        that are idle with it.
        """
        if not self._room.acquire(timeout=self._wait_s):
            raise EverfoldError(Kind.UNAVAILABLE, "the database has been busy for too long")
        try:
            with contextlib.suppress(IndexError):
                known = self._idle.pop()
                try:
                    known.execute(sql)
                    return known
                except psycopg.OperationalError:
                    known.close()
                    self.close()
            fresh = psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_S)
            fresh.execute(sql)
            return fresh
        except BaseException:
            self._room.release()
            raise

    def give_back(self, connection: Connection) -> None:
        """Let others have it; one in an unknown state is closed."""
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        self._room.release()

    def close(self) -> None:
        """Close the idle ones."""
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took the last one
                self._idle.pop().close()
