"""Who listens for commits in several spaces at once, and how one hears of other processes'.

A poll of a mount waits in a room of its own space (`feed.Bell`). An `Ear` is for those who follow
many spaces with one thread. On PostgreSQL other processes' commits come as notifications. SQLite
has nothing of the kind, so `Neighbours` looks at the counter that SQLite keeps of commits by other
connections: 4.5 us a look, under 1 % of a core, and only while somebody has an ear.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection
from typing import Final

from everfold.model import SpaceId

_log = logging.getLogger(__name__)

_LOOK_S: Final = 0.02
_AGAIN_S: Final = 1.0


class Ear:
    """Hears of commits in the spaces that it listens for. Any thread tells, one waits."""

    def __init__(self, spaces: Collection[SpaceId] = ()) -> None:
        self._changed = threading.Condition()  # guards all below
        self._spaces = set(spaces)
        self._heard: set[SpaceId] = set()
        self._is_awake = False

    def listen(self, spaces: Collection[SpaceId]) -> None:
        """Listen for these spaces from now on, and for no others."""
        with self._changed:
            self._spaces = set(spaces)
            self._heard &= self._spaces

    def tell(self, space: SpaceId | None) -> None:
        """There was a commit in this space; None: in any of them."""
        if space is not None and space not in self._spaces:
            return  # most are: looked at without the lock, which costs a commit 50 ns
        with self._changed:
            self._heard |= self._spaces if space is None else {space} & self._spaces
            self._wake()

    def wake(self) -> None:
        """End the present wait, or the next."""
        with self._changed:
            self._wake()

    def wait(self, timeout_s: float) -> set[SpaceId]:
        """Return what was heard of since the last call; waits for something, or to be woken."""
        with self._changed:
            if not self._is_awake and timeout_s > 0:
                self._changed.wait(timeout_s)
            self._is_awake = False
            heard, self._heard = self._heard, set()
        return heard

    def _wake(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            self._changed.notify_all()


class Neighbours:
    """Tells when another connection to an SQLite database, of whatever process, has committed."""

    def __init__(self, path: str, tell: Callable[[], None]) -> None:
        self._path, self._tell = path, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="neighbours", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join(5.0)

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                connection = sqlite3.connect(self._path, isolation_level=None)
                try:
                    self._look(connection)
                finally:
                    connection.close()
            except sqlite3.Error as err:
                _log.warning("other processes' commits are heard of late: %s", err)
                self._ended.wait(_AGAIN_S)

    def _look(self, connection: sqlite3.Connection) -> None:
        cursor = connection.cursor()
        known = -1  # what came before the first look is told, too
        while not self._ended.wait(_LOOK_S):
            count = cursor.execute("PRAGMA data_version").fetchone()[0]
            if count != known:
                known = count
                self._tell()
