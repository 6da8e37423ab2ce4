"""Where each packed block is: an SQLite table beside the packs.

It is a summary of the packs, never the truth: nothing in it is synced, and it is trusted
only after an orderly end (`close` leaves a mark, `open` takes it away). After any other end
it is thrown away and made again by reading the packs.

What was noted last waits in a dictionary and goes to the table a thousand at a time: a
transaction for a single row costs 14 us, a row among many 5. And of a block that is new, as
almost all that are put, a table of bits tells so without SQLite: 0.7 us, not 5.5 (much more when
a put comes alone, and finds the caches cold).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.files import Files
from everfold.model import BlockId, SpaceId

_PAGE = 2000
_RECENT_MAX = 1000  # 5 ms to write down
_BITS_MIN = 1 << 23  # 1 MiB: one bit in a hundred is set at 80,000 blocks, in nine at a million
_FIND = "SELECT pack, at, size FROM packed WHERE block = ? AND space = ?"
_INSERT = "INSERT OR REPLACE INTO packed VALUES (?, ?, ?, ?, ?)"
_REMOVE = "DELETE FROM packed WHERE block = ? AND space = ?"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS packed (
    block BLOB NOT NULL, space INTEGER NOT NULL,
    pack INTEGER NOT NULL, at INTEGER NOT NULL,  -- of the record's head
    size INTEGER NOT NULL,                       -- of the block
    PRIMARY KEY (block, space)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pack (id INTEGER PRIMARY KEY, size INTEGER NOT NULL);
"""


class Place(NamedTuple):
    """A record's place: pack number, offset of its head, size of the block."""

    pack: int
    at: int
    size: int


class Row(NamedTuple):
    """A row of the index."""

    block: BlockId
    space: SpaceId
    pack: int
    at: int
    size: int


Key = tuple[SpaceId, BlockId]


class PackIndex:
    """The table. Threads may share it."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder = folder
        self._files = files
        self._path = folder / "index.db"
        self._mark = folder / "index.complete"
        self._temp = folder / "tmp"
        self._lock = threading.Lock()  # guards the connection and _recent; a leaf
        self._recent: dict[Key, Place | None] = {}  # newer than the table; None: removed
        self._files.make_folder("index.open", self._temp)
        for leftover in self._temp.iterdir():
            leftover.unlink()
        self.was_complete = self._take_mark()
        if not self.was_complete:
            for leftover in folder.glob("index.db*"):
                leftover.unlink()
        self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=MEMORY", "synchronous=OFF", "locking_mode=EXCLUSIVE"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.executescript(_SCHEMA)
        self._finder = self._db.cursor()  # one for all: a cursor a question costs 1.4 us
        self._bits, self._mask = bytearray(), 0  # a bit a noted name, or several; guarded, too
        self._recall()

    def _recall(self) -> None:
        """Make the table of bits, eight for each block that is noted now."""
        with self._guarded() as db:
            (count,) = db.execute("SELECT COUNT(*) FROM packed").fetchone()
            size = max(_BITS_MIN, 1 << (8 * count).bit_length())
            self._bits, self._mask = bytearray(size // 8), size - 1
            for (block,) in db.execute("SELECT block FROM packed"):
                bit = int.from_bytes(block[16:20], "little") & self._mask
                self._bits[bit >> 3] |= 1 << (bit & 7)

    def _take_mark(self) -> bool:
        try:
            self._files.remove("index.open", self._mark)
        except FileNotFoundError:
            return False
        self._files.sync_folder("index.open", self._folder)
        return True

    def close(self, sizes: dict[int, int]) -> None:
        """End in order: note the packs' sizes, make the table durable and trusted."""
        with self._guarded() as db:
            self._write_down(db)
            db.execute("BEGIN")
            db.execute("DELETE FROM pack")
            db.executemany("INSERT INTO pack VALUES (?, ?)", sorted(sizes.items()))
            db.execute("COMMIT")
            db.close()
        self._files.sync_all("index.close", self._folder)
        self._files.keep("index.close", self._mark, [b"complete\n"], self._temp)

    def abandon(self) -> None:
        """Close without the mark: the next start reads the packs."""
        with self._lock:
            self._recent.clear()
            self._db.close()

    def sizes(self) -> dict[int, int]:
        """Return the packs' sizes as they were at the orderly end."""
        with self._guarded() as db:
            return dict(db.execute("SELECT id, size FROM pack").fetchall())

    def find(self, space: SpaceId, block: BlockId) -> Place | None:
        """Return where a block is, or None."""
        return self.find_many(space, (block,)).get(block)

    def find_many(self, space: SpaceId, blocks: Iterable[BlockId]) -> dict[BlockId, Place]:
        """Return where those of these blocks are that are packed."""
        found = {}
        finder, recent, bits, mask = self._finder, self._recent, self._bits, self._mask
        with self._lock:  # plainly, not `_guarded`: that costs as much as a question
            try:
                for block in blocks:
                    bit = int.from_bytes(block[16:20], "little") & mask
                    if not bits[bit >> 3] & 1 << (bit & 7):
                        continue
                    if (space, block) in recent:
                        place = recent[space, block]
                        if place is not None:
                            found[block] = place
                        continue
                    row = finder.execute(_FIND, (block, space)).fetchone()
                    if row:
                        found[block] = Place._make(row)
            except sqlite3.Error as err:
                raise _error_of(err) from err
        return found

    def insert(self, rows: Sequence[Row]) -> None:
        """Note places, replacing what was known; all or, when that fails, none."""
        with self._lock:
            self._make_room()
            recent, bits, mask = self._recent, self._bits, self._mask
            for block, space, pack, at, size in rows:
                recent[space, block] = Place(pack, at, size)
                bit = int.from_bytes(block[16:20], "little") & mask
                bits[bit >> 3] |= 1 << (bit & 7)

    def remove(self, keys: Iterable[Key]) -> None:
        """Forget blocks."""
        with self._lock:
            self._make_room()
            self._recent.update(dict.fromkeys(keys))

    def _make_room(self) -> None:
        if len(self._recent) >= _RECENT_MAX:
            with self._translated() as db:
                self._write_down(db)

    def _write_down(self, db: sqlite3.Connection) -> None:
        """Bring the table up to date; when that fails, nothing is forgotten."""
        if not self._recent:
            return
        rows = [(b, s, *place) for (s, b), place in self._recent.items() if place is not None]
        gone = [(b, s) for (s, b), place in self._recent.items() if place is None]
        db.execute("BEGIN")
        db.executemany(_INSERT, rows)
        db.executemany(_REMOVE, gone)
        db.execute("COMMIT")
        self._recent.clear()

    def live_bytes(self) -> dict[int, tuple[int, int]]:
        """Return pack -> (blocks, bytes of blocks) that are not garbage."""
        sql = "SELECT pack, COUNT(*), SUM(size) FROM packed GROUP BY pack"
        with self._guarded() as db:
            self._write_down(db)
            return {pack: (count, size) for pack, count, size in db.execute(sql).fetchall()}

    def rows(self, low: bytes = b"", high: bytes = b"\xff" * 33) -> Iterator[Row]:
        """Yield rows with ``low <= block < high`` in order, a page at a time."""
        after, space = low, -1
        while True:
            with self._guarded() as db:
                self._write_down(db)
                page = db.execute(
                    "SELECT block, space, pack, at, size FROM packed"
                    " WHERE (block, space) > (?, ?) AND block < ? ORDER BY block, space LIMIT ?",
                    (after, space, high, _PAGE),
                ).fetchall()
            yield from (Row(*row) for row in page)
            if len(page) < _PAGE:
                return
            after, space = page[-1][0], page[-1][1]

    def held(self, prefix: int | None = None) -> Iterator[wire.Held]:
        """Yield what is packed, all or that whose name starts with the byte `prefix`."""
        low, high = b"", b"\xff" * 33
        if prefix is not None:
            low = bytes([prefix])
            high = bytes([prefix + 1]) if prefix < 255 else high
        for row in self.rows(low, high):
            yield wire.Held(row.space, row.block, row.size)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated() as db:
            yield db

    @contextlib.contextmanager
    def _translated(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.Error as err:
            if self._is_in_transaction():
                self._db.execute("ROLLBACK")
            raise _error_of(err) from err

    def _is_in_transaction(self) -> bool:
        try:
            return self._db.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False


def _error_of(err: sqlite3.Error) -> EverfoldError:
    return EverfoldError(Kind.UNAVAILABLE, f"the index of packs failed: {err}")
