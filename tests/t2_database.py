"""The database seam: whoever asks gets a connection, nobody keeps one, nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peewee as pw
import pytest

from everfold.errors import EverfoldError, Kind
from nameserver import checkpoints, models
from nameserver import db as seam
from nameserver.db import Database
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.machine import wait_until

PUT = "INSERT INTO meta (key, value) VALUES (?, ?)"
GET = "SELECT value FROM meta WHERE key = ?"


def value(db: Database, key: str) -> str | None:
    with db.read() as cx:
        row = cx.one(GET, key)
    return row[0] if row else None


def test_what_was_written_is_read_by_every_thread(database: Database) -> None:  # noqa: F811
    def write_and_read(number: int) -> str | None:
        with database.write() as cx:
            cx.run(PUT, f"k{number}", f"v{number}")
        found = value(database, f"k{number}")
        if database.is_postgres:
            database.close()  # this thread's own
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write_and_read, range(40)))

    assert found == [f"v{number}" for number in range(40)]


def test_a_transaction_that_fails_leaves_nothing_and_harms_nobody(
    database: Database,  # noqa: F811
) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as cx:
        cx.run(PUT, "k", "lost")
        raise ZeroDivisionError
    with pytest.raises(EverfoldError) as refused, database.write() as cx:
        cx.run(PUT, "k", "lost too")
        cx.run("UPDATE account SET created_ns = ?", 1 << 70)

    assert refused.value.kind is Kind.INVALID
    assert value(database, "k") is None
    with database.write() as cx:
        cx.run(PUT, "k", "kept")
    assert value(database, "k") == "kept"


def test_only_a_commit_that_must_be_durable_waits_for_the_disk(
    database: Database,  # noqa: F811
) -> None:
    asked = "SHOW synchronous_commit" if database.is_postgres else "PRAGMA synchronous"
    light, durable = ("off", "on") if database.is_postgres else (1, 2)
    with database.write() as cx:
        usual = cx.one(asked)
    found = []
    for is_durable in (False, True, False):
        with database.write(is_durable) as cx:
            found.append(cx.one(asked))
            cx.run(PUT, f"k{len(found)}", "kept")
    with pytest.raises(ZeroDivisionError), database.write(is_durable=False) as cx:
        cx.run(PUT, "k4", "lost")
        raise ZeroDivisionError

    assert usual in {(durable,), ("off",)}  # a test's server may sync nothing
    assert found == [(light,), usual, (light,)]
    assert [value(database, f"k{number}") for number in (1, 2, 3, 4)] == ["kept"] * 3 + [None]


def test_a_statement_that_the_database_refuses_is_unavailable_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    db = Database(f"{tmp_path}/everfold.db")
    for begin in (db.read, db.write):
        with pytest.raises(EverfoldError) as refused, begin() as cx:
            cx.one("SELECT 1 FROM nowhere")
        assert refused.value.kind is Kind.UNAVAILABLE

    assert value(db, "k") is None
    db.close()


def test_a_reader_sees_one_moment_while_another_thread_writes(
    database: Database,  # noqa: F811
) -> None:
    def write() -> None:
        with database.write() as cx:
            cx.run(PUT, "k", "new")
        if database.is_postgres:
            database.close()

    with database.read() as cx:
        before = cx.one(GET, "k")
        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        after = cx.one(GET, "k")

    assert (before, after) == (None, None)
    assert value(database, "k") == "new"


def test_many_threads_leave_few_connections(tmp_path: Path) -> None:
    db = Database(f"{tmp_path}/everfold.db")
    together = threading.Barrier(64)

    def read() -> None:
        with db.read() as cx:
            cx.one(GET, "k")
            together.wait(30)

    threads = [threading.Thread(target=read) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = db._lines

    assert lines is not None
    assert 1 <= len(lines._idle) <= seam._READERS
    db.close()
    assert lines._idle == []


def test_who_starts_while_another_makes_the_tables_touches_nothing_before(tmp_path: Path) -> None:
    # An open connection would wait 5 s at most for another's syncs: "database is locked".
    path = tmp_path / "everfold.db"
    another = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(another, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        try:
            starting = pool.submit(Database, str(path))
            wait_until(lambda: is_awaited(tmp_path), 10, "it waits for its turn")
            assert not path.exists()
        finally:
            os.close(another)
        db = starting.result(20)

    assert value(db, "nothing") is None
    db.close()


def is_awaited(folder: Path) -> bool:
    """Return whether somebody waits for the lock of a folder."""
    inode = f":{folder.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and inode in line for line in lines)


def test_a_first_start_that_ends_half_way_leaves_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/everfold.db"
    with monkeypatch.context() as broken:
        broken.setattr(models, "PARTIAL_INDEXES", ["CREATE INDEX of nothing"])
        with pytest.raises(pw.OperationalError):
            Database(path)
    with sqlite3.connect(path) as left:
        assert left.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    left.close()
    db = Database(path)

    assert value(db, "nothing") is None
    db.close()


def test_tables_of_an_earlier_version_lose_what_nobody_reads(tmp_path: Path) -> None:
    path = f"{tmp_path}/everfold.db"
    Database(path).close()
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE replica ADD COLUMN prefix INTEGER NOT NULL DEFAULT 0")
        old.execute("CREATE INDEX replica_node_prefix ON replica (node, prefix)")
        old.execute("INSERT INTO replica VALUES (1, x'00', 'dn1', 0, 0)")
    old.close()
    db = Database(path)
    with db.read() as cx:
        columns = [row[1] for row in cx.all("PRAGMA table_info(replica)")]
        rows = cx.all("SELECT * FROM replica")
        left = cx.one("SELECT 1 FROM sqlite_master WHERE name = 'replica_node_prefix'")
    db.close()

    assert columns == ["space_id", "block", "node", "is_bad"]
    assert (rows, left) == ([(1, b"\0", "dn1", 0)], None)


def test_a_log_of_full_length_is_kept_and_holds_nothing(tmp_path: Path) -> None:
    db = Database(f"{tmp_path}/everfold.db")
    with db.write() as cx:
        cx.run(PUT, "before", "kept")
    log = tmp_path / "everfold.db-wal"

    db.prepare_to_serve()
    length = log.stat().st_size
    with db.write() as cx:
        cx.run(PUT, "after", "kept too")

    assert length == log.stat().st_size >= 4000 * 4096
    assert (value(db, "before"), value(db, "after")) == ("kept", "kept too")
    with db.read() as cx:
        assert cx.one("SELECT 1 FROM sqlite_master WHERE name = 'log_room'") is None
    db.close()


def test_what_is_committed_reaches_the_database_itself_beside_the_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_EVERY_S", 0.01)
    monkeypatch.setattr(checkpoints, "_LONG", 20)
    db = Database(f"{tmp_path}/everfold.db")
    db.prepare_to_serve()
    length = (tmp_path / "everfold.db-wal").stat().st_size

    for number in range(400):
        with db.write() as cx:
            cx.run(PUT, f"k{number}", "v" * 50_000)  # 20 MB in all: longer than the log

    def has_arrived() -> bool:
        alone = sqlite3.connect(f"file:{tmp_path}/everfold.db?immutable=1", uri=True)
        try:
            return bool(alone.execute(GET, ("k399",)).fetchone())
        except sqlite3.DatabaseError:
            return False  # some pages are there and others are not yet
        finally:
            alone.close()

    wait_until(has_arrived, 10, "the last commit is in the database without its log")
    assert (tmp_path / "everfold.db-wal").stat().st_size < 3 * length
    assert value(db, "k0") == value(db, "k399") == "v" * 50_000
    db.close()
