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

    def presume(self, node: NodeId, until_ns: int) -> None:
        """Take a node for one that is heard of until then: what it told waits for our disk."""
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
        with self._db.write(is_durable=False) as cx:
            return cx.run("UPDATE node SET seen_ns = ? WHERE id = ?", at_ns, node) > 0

    def presume(self, node: NodeId, until_ns: int) -> None:
        """Nothing: a beat waits for no other's commit there."""

    def last(self, node: NodeId) -> int:
        return 0  # the table is where the caller has just looked


class _InMemory:
    """The file is opened when it is first needed, and is this process's to the end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()  # guards the making of what follows
        self._words: memoryview | None = None
        self._at: dict[NodeId, int] = {}  # where a node's time is among the words

    def note(self, node: NodeId, at_ns: int) -> bool:
        try:
            at = self._find(node) or self._make(node)
        except OSError as err:
            _log.warning("beats become commits: %s cannot be used: %s", self._path, err)
            return False
        if at is None or self._words is None:
            return False
        self._words[at] = at_ns  # one store of eight bytes
        return True

    def presume(self, node: NodeId, until_ns: int) -> None:
        at = self._at.get(node)
        if at is not None and self._words is not None:
            self._words[at] = until_ns

    def last(self, node: NodeId) -> int:
        try:
            at = self._find(node)
        except OSError as err:
            _log.warning("not known when nodes were heard of: %s: %s", self._path, err)
            return 0
        return 0 if at is None or self._words is None else int(self._words[at])

    def _find(self, node: NodeId) -> int | None:
        """Return where a node's time is, which stays there; None while it has no place."""
        at = self._at.get(node)
        if at is None:
            at, is_taken = _place(self._mapped(), _named(node))
            if not is_taken:
                return None
            self._at[node] = at
        return at

    def _make(self, node: NodeId) -> int | None:
        """Return where a node's time is from now on; None when there is no room."""
        words, name = self._mapped(), _named(node)
        with self._lock, open(self._path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # among processes, until the file is closed
            at, is_taken = _place(words, name)
            if at < 0:
                return None
            if not is_taken:
                words[at], words[at - 2], words[at - 1] = 0, *name
        return at

    def _mapped(self) -> memoryview:
        if self._words is None:
            with self._lock:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    if os.fstat(fd).st_size < _SIZE:
                        os.posix_fallocate(fd, 0, _SIZE)  # a hole on a full disk: a SIGBUS
                    self._words = memoryview(mmap.mmap(fd, _SIZE)).cast("q")
                finally:
                    os.close(fd)
        return self._words


def _named(node: NodeId) -> tuple[int, int]:
    name = hashlib.blake2b(node.encode(), digest_size=16).digest()
    return int.from_bytes(name[:8], "big", signed=True), int.from_bytes(name[8:], "big") >> 1


def _place(words: memoryview, name: tuple[int, int]) -> tuple[int, bool]:
    """Return where the time of this name is, and True; else a free place, -1 if there is none."""
    for at in range(0, len(words), _WORDS):
        found = words[at], words[at + 1]
        if found in (name, (0, 0)):
            return at + 2, found == name
    return -1, False
