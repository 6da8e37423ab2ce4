"""The database seam: transactions and prepared SQL, the same on SQLite and PostgreSQL.

peewee owns the schema; hot statements are plain SQL with ``?`` marks, run through `Cx` (a lookup
through the ORM was measured at 270-310 us, the same statement prepared at 6-9 us). SQLite: WAL,
synchronous=FULL (a commit that was answered survives a power cut), one connection that writes, a
few that read. PostgreSQL: a few (`nameserver.pool`), reads run REPEATABLE READ, so that an answer
and its `seq` are of one moment; writers lock their space's row.

SQLite's planner, without statistics, takes a primary key's short prefix for better than a
partial index: hot statements say ``INDEXED BY``, which is taken out for PostgreSQL. That, on
tables that grew since it last looked, joins by the space's number alone (5,000 entries: 2.3 s);
``a.space_id = b.space_id + 0`` hides from it that this is a constant.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import peewee as pw

from everfold.durations import Durations
from everfold.errors import EverfoldError, Kind
from nameserver import models
from nameserver.checkpoints import Checkpointer
from nameserver.pool import Pool
from nameserver.turn import Turn

Row = tuple[Any, ...]
_BUSY_TIMEOUT_MS = 10_000
_OPENING_MS = 60_000  # for the first connection: another process may just be closing the last
_LOG_PAGES = 4000  # of SQLite's log, of 4 KiB; then its pages go to their places
_PRAGMAS = {
    "busy_timeout": _BUSY_TIMEOUT_MS,  # the first: the next one may have to wait
    "journal_mode": "wal",
    "synchronous": "full",
    "wal_autocheckpoint": _LOG_PAGES,
    "temp_store": "memory",
    "foreign_keys": 1,
}
_SYNCHRONOUS = {True: "PRAGMA synchronous = full", False: "PRAGMA synchronous = normal"}
_BEGIN_LIGHTLY = "BEGIN; SET LOCAL synchronous_commit TO OFF"
_WRITER_KIB = 16_384  # pages that a connection keeps in memory
_READER_KIB = 1_024
_READERS = 8  # kept open while nobody reads
_STATEMENTS = 256  # prepared, of each connection
_CHUNKS = (1, 16, 128, 512)  # lengths of an IN list: few, so that few statements are prepared
_SCHEMA_LOCK = 0x65766572666F6C64  # of PostgreSQL's advisory ones: "everfold"


class Cx:
    """An open transaction. Not to be kept after its `with` block, nor shared by threads."""

    __slots__ = ("_cursor", "is_postgres")

    def __init__(self, cursor: Any, is_postgres: bool) -> None:
        self._cursor = cursor
        self.is_postgres = is_postgres

    def run(self, sql: str, *values: Any) -> int:
        """Execute a statement; return how many rows it touched."""
        self._cursor.execute(_marks(sql) if self.is_postgres else sql, values)
        count: int = self._cursor.rowcount
        return count

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Execute a statement once for each row of values; return how many rows it touched."""
        if not rows:
            return 0
        self._cursor.executemany(_marks(sql) if self.is_postgres else sql, rows)
        count: int = self._cursor.rowcount
        return count

    def all(self, sql: str, *values: Any) -> list[Row]:
        """Return all rows of a query."""
        self._cursor.execute(_marks(sql) if self.is_postgres else sql, values)
        rows: list[Row] = self._cursor.fetchall()
        return rows

    def one(self, sql: str, *values: Any) -> Row | None:
        """Return the first row of a query, or None."""
        self._cursor.execute(_marks(sql) if self.is_postgres else sql, values)
        row: Row | None = self._cursor.fetchone()
        return row

    def lock_space(self, space: int) -> Row | None:
        """Return (seq, next_ino) of a space and keep other writers of it out until the end."""
        tail = " FOR UPDATE" if self.is_postgres else ""
        return self.one(f"SELECT seq, next_ino FROM space WHERE id = ?{tail}", space)


def select_in(
    cx: Cx, sql: str, values: Sequence[object], things: Iterable[object]
) -> Iterator[Row]:
    """Run `sql`, whose ``{}`` becomes the marks of an IN list, for all of `things`."""
    left = list(things)
    at = 0
    while at < len(left):
        width = next((n for n in _CHUNKS if n >= len(left) - at), _CHUNKS[-1])
        part = left[at : at + width]
        at += len(part)
        part += [part[-1]] * (width - len(part))
        yield from cx.all(sql.format(",".join("?" * width)), *values, *part)


@functools.lru_cache(maxsize=1024)
def _marks(sql: str) -> str:
    return _INDEXED_BY.sub("", sql).replace("%", "%%").replace("?", "%s")


_INDEXED_BY = re.compile(r" INDEXED BY \w+")


class Database:
    """One database with its schema in place. Threads may share it.

    `url` is ``sqlite:///path`` (or a path) or ``postgresql://user:pass@host:port/name``;
    ``?host=/dir`` names a socket directory.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_postgres = url.startswith(("postgresql://", "postgres://"))
        self.peewee = _open_postgres(url) if self.is_postgres else _open_sqlite(url)
        self.tables: SimpleNamespace = models.tables(self.peewee)
        self._lines = None if self.is_postgres else _Lines(self.peewee.database)
        self._pool = Pool(url) if self.is_postgres else None
        with self._alone():
            models.create(self.peewee, self.tables)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Open a connection and keep other processes from making the same tables meanwhile."""
        if self.is_postgres:
            with self.peewee.connection_context():
                sql = "SELECT pg_advisory_lock(%s)"  # until the connection is closed
                self.peewee.execute_sql(sql, (_SCHEMA_LOCK,))  # type: ignore[no-untyped-call]
                yield
            return
        folder = os.open(Path(self.peewee.database).parent, os.O_RDONLY)
        try:
            # Before the connection: the first one turns a new file into one with a log.
            fcntl.flock(folder, fcntl.LOCK_EX)
            with self.peewee.connection_context():
                yield
        finally:
            os.close(folder)

    @property
    def waited(self) -> Durations:
        """Return how long this process's writers waited for their turn; PostgreSQL's know none."""
        return Durations() if self._lines is None else self._lines.waited

    def write(self, is_durable: bool = True) -> AbstractContextManager[Cx]:
        """Run a transaction that writes; committed (durably) on leaving, rolled back on error.

        One that need not be durable may be lost in a power cut, unless a later one was durable;
        it waits for no disk.
        """
        if self._lines is not None:
            return _Writing(self._lines, is_durable)
        assert self._pool is not None
        return self._postgres(self._pool, "BEGIN" if is_durable else _BEGIN_LIGHTLY)

    def read(self) -> AbstractContextManager[Cx]:
        """Run queries that all see one moment."""
        if self._lines is not None:
            return _Reading(self._lines)
        assert self._pool is not None
        return self._postgres(self._pool, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    @contextlib.contextmanager
    def _postgres(self, pool: Pool, begin: str) -> Iterator[Cx]:
        """Run a transaction on a connection that no other thread uses meanwhile."""
        try:
            connection = pool.begin(begin)
            try:
                yield Cx(connection.cursor(), is_postgres=True)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(*_LOST):  # then it is not used again
                    connection.execute("ROLLBACK")
                raise
            finally:
                pool.give_back(connection)
        except (*_LOST, *_IMPOSSIBLE) as err:
            _raise_translated(err)
            raise

    def prepare_to_serve(self) -> None:
        """Spare the commits of a server what SQLite's log costs by itself; until `close`.

        The log has its full length from the start, since a commit that makes the file longer
        waits for the filesystem's own log too, and so for what other programs write (1.4 ms
        instead of 0.8 ms beside three busy datanodes); and no commit empties it.
        """
        if self._lines is not None:
            self._lines.prepare_to_serve()

    def close(self) -> None:
        """Close the connections that nobody uses; others may be opened again."""
        if self._lines is not None:
            self._lines.close()
        if self._pool is not None:
            self._pool.close()
        if not self.peewee.is_closed():
            self.peewee.close()


class _Line(NamedTuple):
    """An SQLite connection; one thread has it at a time."""

    connection: sqlite3.Connection
    cursor: sqlite3.Cursor
    cx: Cx


class _Lines:
    """The SQLite connections of a process: one that writes, and a few that read.

    They belong to no thread. A thread's own would be as many as there are threads (128), each
    with a schema, statements and pages of its own (1 MiB and more), and whoever writes would
    find its pages outdated by the writer before it. As it is, all that a commit needs is in the
    one writer's memory, and the reader that was used last is used again.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._turn = Turn(path)  # guards _writer and _is_durable
        self._writer: _Line | None = None
        self._is_durable = True  # its commits are
        self._checkpointer: Checkpointer | None = None
        self.waited = Durations()  # for the turn
        self._idle: list[_Line] = []  # readers; append and pop are atomic

    def begin_writing(self, is_durable: bool = True) -> _Line:
        """Wait for the turn and return the connection that writes, in a transaction."""
        began = perf_counter_ns()
        self._turn.acquire()
        self.waited.note(perf_counter_ns() - began)
        try:
            if self._writer is None:
                self._writer, self._is_durable = self._open(_WRITER_KIB), True
            if is_durable is not self._is_durable:
                self._writer.cursor.execute(_SYNCHRONOUS[is_durable])
                self._is_durable = is_durable
            self._writer.cursor.execute("BEGIN IMMEDIATE")
        except BaseException as err:
            self.undo_writing(err)
            raise
        return self._writer

    def end_writing(self, line: _Line) -> None:
        """Make the transaction durable and let the next one write."""
        try:
            line.cursor.execute("COMMIT")
        except BaseException as err:
            self.undo_writing(err)
            raise
        self._turn.release()
        if self._checkpointer is not None:
            self._checkpointer.committed()

    def undo_writing(self, err: BaseException) -> None:
        """Roll back and let the next one write; raise what `err` is to our callers."""
        line = self._writer
        try:
            if line is not None and (isinstance(err, _LOST) or not _is_rolled_back(line)):
                self._drop_writer()
        finally:
            self._turn.release()
        _raise_translated(err)

    def prepare_to_serve(self) -> None:
        """Write as many pages as the log may have, and take it back: the file keeps its length."""
        line = self.begin_writing()
        try:
            line.cursor.execute("PRAGMA cache_size = 10")  # they reach the log before a commit
            line.cursor.execute("CREATE TABLE log_room (bytes)")
            line.cursor.execute("INSERT INTO log_room VALUES (zeroblob(?))", (_LOG_PAGES * 4096,))
            line.cursor.execute("ROLLBACK")
            line.cursor.execute(f"PRAGMA cache_size = -{_WRITER_KIB}")
            line.cursor.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException as err:
            self.undo_writing(err)
            raise
        self._turn.release()
        self._turn.hasten()
        self._checkpointer = Checkpointer(self._path, self._turn)
        self._checkpointer.start()

    def take(self) -> _Line:
        """Return a connection to read from, the caller's until it is given back."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._open(_READER_KIB)

    def give_back(self, line: _Line) -> None:
        """Let others read from this connection; it is in no transaction."""
        if len(self._idle) < _READERS:
            self._idle.append(line)
        else:
            line.connection.close()

    def _drop_writer(self) -> None:
        line, self._writer = self._writer, None
        if line is not None:
            line.connection.close()

    def close(self) -> None:
        """Close every connection that is not in use; others may be opened again."""
        if self._checkpointer is not None:
            self._checkpointer.stop()
            self._checkpointer = None
        with self._turn:
            self._drop_writer()
        self._turn.close()
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took the last one
                self._idle.pop().connection.close()

    def _open(self, cache_kib: int) -> _Line:
        connection = sqlite3.connect(
            self._path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_STATEMENTS,
        )
        for pragma, value in {**_PRAGMAS, "cache_size": -cache_kib}.items():
            connection.execute(f"PRAGMA {pragma} = {value}")
        cursor = connection.cursor()
        return _Line(connection, cursor, Cx(cursor, is_postgres=False))


class _Writing:
    """A transaction that writes. A class: generators would cost a third of a lookup."""

    __slots__ = ("_is_durable", "_line", "_lines")

    def __init__(self, lines: _Lines, is_durable: bool) -> None:
        self._lines, self._is_durable = lines, is_durable

    def __enter__(self) -> Cx:
        self._line = self._lines.begin_writing(self._is_durable)
        return self._line.cx

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if err is None:
            self._lines.end_writing(self._line)
        else:
            self._lines.undo_writing(err)


class _Reading:
    """A transaction that reads."""

    __slots__ = ("_line", "_lines")

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def __enter__(self) -> Cx:
        try:
            self._line = self._lines.take()
            self._line.cursor.execute("BEGIN")
        except _LOST as err:
            _raise_translated(err)
            raise
        return self._line.cx

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        line = self._line
        if isinstance(err, _LOST) or not _is_rolled_back(line):
            line.connection.close()
        else:
            self._lines.give_back(line)
        if err is not None:
            _raise_translated(err)


def _is_rolled_back(line: _Line) -> bool:
    """End a connection's transaction; False when it is in an unknown state."""
    try:
        if line.connection.in_transaction:
            line.cursor.execute("ROLLBACK")
    except _LOST:
        return False
    return True


def _raise_translated(err: BaseException) -> None:
    """Raise a failure of the database as ours; return when `err` is something else."""
    if isinstance(err, _LOST):
        raise EverfoldError(Kind.UNAVAILABLE, f"the database failed: {err}") from err
    if isinstance(err, _IMPOSSIBLE):
        raise EverfoldError(Kind.INVALID, f"a value that cannot be: {err}") from err


def _operational_errors() -> tuple[type[Exception], ...]:
    import psycopg

    return (pw.OperationalError, pw.InterfaceError, sqlite3.OperationalError,
            psycopg.OperationalError, psycopg.InterfaceError)  # fmt: skip


def _value_errors() -> tuple[type[Exception], ...]:
    import psycopg

    return (OverflowError, pw.DataError, psycopg.DataError)  # beyond 64 bits; NUL in a text


_LOST = _operational_errors()
_IMPOSSIBLE = _value_errors()


def _open_sqlite(url: str) -> pw.Database:
    path = url.removeprefix("sqlite:///") if url.startswith("sqlite:///") else url
    if "://" in path or not path:
        raise EverfoldError(Kind.INVALID, "not a database URL", url)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return pw.SqliteDatabase(path, pragmas={**_PRAGMAS, "busy_timeout": _OPENING_MS})


def _open_postgres(url: str) -> pw.Database:
    parts = urlsplit(url)
    extra: dict[str, Any] = dict(parse_qsl(parts.query))
    return pw.PostgresqlDatabase(
        unquote(parts.path.lstrip("/")),
        user=unquote(parts.username) if parts.username else extra.pop("user", None),
        password=unquote(parts.password) if parts.password else None,
        host=extra.pop("host", None) or parts.hostname,
        port=parts.port or (int(extra.pop("port")) if "port" in extra else None),
        prefer_psycopg3=True,
        autoconnect=True,
        **extra,
    )
