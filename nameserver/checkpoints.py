"""Brings SQLite's log into the database, beside the commits instead of within one of them.

By itself SQLite does it in the commit that fills the log: every two hundredth commit then
waited 0.1 to 1.4 s for thousands of pages to reach their places and the disk. Here a thread
with a connection of its own does it every `_EVERY_S` while there are commits; only to let
the log begin anew, when it has grown long, commits wait, for what came in during the last turn.

Nothing depends on it but the log's length: what is in the log is as durable as what is not.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import Final

from everfold.errors import EverfoldError
from nameserver.turn import Turn

_EVERY_S: Final = 0.5
_LONG: Final = 8_000  # pages of log after which it is to begin anew
_log = logging.getLogger(__name__)


class Checkpointer:
    """One thread, from `start` to `stop`. `turn` is the lock of whoever writes."""

    def __init__(self, path: str, turn: Turn) -> None:
        self._path = path
        self._turn = turn
        self._has_news = threading.Event()
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def committed(self) -> None:
        """Note that the log has grown."""
        self._has_news.set()

    def stop(self) -> None:
        """End after the turn under way."""
        self._is_ended.set()
        self._has_news.set()
        self._thread.join()

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            while not self._is_ended.wait(_EVERY_S):
                self._has_news.wait()
                self._has_news.clear()
                try:
                    self._checkpoint(connection)
                except (
                    sqlite3.Error,
                    EverfoldError,
                ) as err:  # the log only grows until the next turn
                    _log.warning("the log could not be brought into the database: %s", err)
        finally:
            connection.close()

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > _LONG:
            with self._turn:
                connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
