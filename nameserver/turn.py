"""Whose turn it is to write to an SQLite database: one thread's, of one process.

SQLite's own way is to try again after pauses that grow to 0.1 s: of two processes that wrote all
the time, one waited 6.2 s for a single commit. Here whoever waits is next: he holds one lock while
he waits for the other, and who has just written must take the first again (the longest wait was
62 ms). Both are on bytes of a file beside the database, and end with the process. Threads of a
process wait for a lock of its own, which is fair.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from types import TracebackType
from typing import Final

from everfold.errors import EverfoldError, Kind

_NEXT: Final = 0  # the byte that whoever is next has locked
_TURN: Final = 1  # the byte that whoever writes has locked
_PAUSE_S: Final = 0.0005
_STARTING_WAIT_S: Final = 60.0  # others start too, and a slow disk makes each take long
_SERVING_WAIT_S: Final = 10.0  # then a client may ask another
_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock


class Turn:
    """A lock for `with`, among threads and processes. Not to be taken twice by one thread."""

    def __init__(self, database: str, wait_s: float = _STARTING_WAIT_S) -> None:
        self._path = database + "-turn"
        self._wait_s = wait_s
        self._own = threading.Lock()  # guards _file
        self._file = -1

    def hasten(self) -> None:
        """Wait less from now on: this process has started, and clients wait for it."""
        self._wait_s = min(self._wait_s, _SERVING_WAIT_S)

    def acquire(self) -> None:
        """Wait for it. UNAVAILABLE when another process keeps it for too long."""
        self._own.acquire()
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            ends = time.monotonic() + self._wait_s
            self._take(_NEXT, ends)
            try:
                self._take(_TURN, ends)
            finally:
                self._set(fcntl.F_UNLCK, _NEXT)
        except BaseException:
            self._own.release()
            raise

    def release(self) -> None:
        """Let the next one write."""
        try:
            self._set(fcntl.F_UNLCK, _TURN)
        finally:
            self._own.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._own:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _take(self, byte: int, ends: float) -> None:
        while True:
            try:
                self._set(fcntl.F_WRLCK, byte)
                return
            except (BlockingIOError, PermissionError) as err:
                if time.monotonic() > ends:
                    raise EverfoldError(
                        Kind.UNAVAILABLE, "another process writes to the database for too long"
                    ) from err
            time.sleep(_PAUSE_S)

    def _set(self, kind: int, byte: int) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
