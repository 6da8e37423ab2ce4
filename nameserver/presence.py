"""When each datanode was last heard of, for those of its beats that bring no other news.

Nodes beat twice a second. While each beat was a commit, three nodes at rest made 13 syncs of the
disk a second and 6.7 GB of log a day, among the syncs that people wait for. So the time is a
number in a file beside the database, which every process of this machine has mapped, as SQLite
has its `-shm`: to write it is a store into memory. Nothing depends on the file: the table has
the times too, older by `WRITTEN_S` at most, and a node that is taken for silent will beat again.
PostgreSQL may have processes on other machines: there it is an update that no one waits for.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import threading
from typing import Final, Protocol

from everfold.model import NodeId
from nameserver.db import Database

_log = logging.getLogger(__name__)
WRITTEN_S: Final = 30.0  # so often a beat is a commit all the same
_WORDS: Final = 3  # of a slot: two of the name's hash, one of the time
_SLOTS: Final = 2048
_SIZE: Final = _SLOTS * _WORDS * 8


class Presence(Protocol):
    """What this process knows of the times."""

    def note(self, node: NodeId, at_ns: int) -> bool:
        """A node that the table has was heard of; False when this cannot be noted here."""
        ...

    def last(self, node: NodeId) -> int:
        """Return when a node was last heard of, as far as it was noted here; 0: never."""
        ...


def presence(db: Database) -> Presence:
    """Return what fits a database."""
    return _InTable(db) if db.is_postgres else _InMemory(f"{db.peewee.database}-seen")


class _InTable:
    def __init__(self, db: Database) -> None:
        self._db = db

    def note(self, node: NodeId, at_ns: int) -> bool:
        with self._db.write() as cx:
            cx.run("SET LOCAL synchronous_commit TO OFF")
            return cx.run("UPDATE node SET seen_ns = ? WHERE id = ?", at_ns, node) > 0

    def last(self, node: NodeId) -> int:
        return 0  # the table is where the caller has just looked


class _InMemory:
    """The file is opened when it is first needed, and is this process's to the end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()  # guards what follows, and the file among threads
        self._words: memoryview | None = None
        self._slots: dict[NodeId, int] = {}

    def note(self, node: NodeId, at_ns: int) -> bool:
        slot = self._slot(node, may_make=True)
        if slot is None:
            return False
        assert self._words is not None
        self._words[slot * _WORDS + 2] = at_ns  # one store of eight bytes
        return True

    def last(self, node: NodeId) -> int:
        slot = self._slot(node, may_make=False)
        if slot is None:
            return 0
        assert self._words is not None
        at_ns: int = self._words[slot * _WORDS + 2]
        return at_ns

    def _slot(self, node: NodeId, may_make: bool) -> int | None:
        """Return a node's slot, which stays its own; None while it has none, or all are taken."""
        known = self._slots.get(node)
        if known is not None:
            return known
        try:
            return self._find(node, may_make)
        except OSError as err:
            _log.warning("beats become commits: %s cannot be used: %s", self._path, err)
            return None

    def _find(self, node: NodeId, may_make: bool) -> int | None:
        with self._lock:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX)  # ends with the descriptor
                words = self._mapped(fd)
                slot = _find(words, node, may_make)
            finally:
                os.close(fd)
            if slot is not None:
                self._slots[node] = slot
            return slot

    def _mapped(self, fd: int) -> memoryview:
        if self._words is None:
            if os.fstat(fd).st_size < _SIZE:
                os.posix_fallocate(fd, 0, _SIZE)  # a hole on a full disk would be a SIGBUS
            self._words = memoryview(mmap.mmap(fd, _SIZE)).cast("q")
        return self._words


def _find(words: memoryview, node: NodeId, may_make: bool) -> int | None:
    name = hashlib.blake2b(node.encode(), digest_size=16).digest()
    wanted = (int.from_bytes(name[:8], "big", signed=True), int.from_bytes(name[8:], "big") >> 1)
    for slot in range(_SLOTS):
        at = slot * _WORDS
        found = words[at], words[at + 1]
        if found == wanted:
            return slot
        if found == (0, 0):
            if may_make:
                words[at + 2] = 0
                words[at], words[at + 1] = wanted
                return slot
            return None
    return None
