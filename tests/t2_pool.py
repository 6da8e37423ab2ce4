"""The connections of a process to PostgreSQL: few, shared, and none of them for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from everfold import config
from everfold.errors import EverfoldError, Kind
from everfold.http import WsgiTransport
from nameserver.__main__ import make_service
from nameserver.app import create_app
from nameserver.db import Database
from nameserver.pool import SIZE, Pool
from tests.harness.databases import PostgresServer

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.new_database()


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    found = Database(url)
    yield found
    found.close()


def connections(url: str) -> int:
    """Return how many connections the server has on this database, but this one."""
    with psycopg.connect(url, autocommit=True) as own:
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )
        row = own.execute(sql).fetchone()
    assert row is not None
    return int(row[0])


def test_many_threads_need_few_connections(db: Database, url: str) -> None:
    seen, parked = [], threading.Barrier(61)

    def work() -> None:
        for _ in range(3):
            with db.read() as cx:
                seen.append(cx.one("SELECT 1"))
        parked.wait(30)  # as a thread in a long poll does
        parked.wait(30)

    threads = [threading.Thread(target=work) for _ in range(60)]
    for thread in threads:
        thread.start()
    parked.wait(30)
    count = connections(url)
    parked.wait(30)
    for thread in threads:
        thread.join()

    assert len(seen) == 180
    assert count <= SIZE


def test_connections_that_the_server_closed_are_passed_over(db: Database, url: str) -> None:
    with db.read(), psycopg.connect(url, autocommit=True) as own:
        pass
    with psycopg.connect(url, autocommit=True) as own:
        own.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    with db.write() as cx:
        cx.run("INSERT INTO meta (key, value) VALUES ('after', 'it')")
    with db.read() as cx:
        assert cx.one("SELECT value FROM meta WHERE key = 'after'") == ("it",)


def test_a_transaction_whose_connection_dies_fails_and_the_next_one_does_not(
    db: Database, url: str
) -> None:
    with pytest.raises(EverfoldError) as caught, db.write() as cx:
        row = cx.one("SELECT pg_backend_pid()")
        assert row is not None
        with psycopg.connect(url, autocommit=True) as own:
            own.execute(f"SELECT pg_terminate_backend({row[0]}, 5000)".encode())
        cx.run("INSERT INTO meta (key, value) VALUES ('lost', 'it')")

    with db.read() as cx:
        assert cx.one("SELECT value FROM meta WHERE key = 'lost'") is None
    assert caught.value.kind is Kind.UNAVAILABLE


def test_what_failed_is_undone_before_the_connection_is_used_again(db: Database) -> None:
    for _ in range(SIZE + 1):
        with pytest.raises(ZeroDivisionError), db.write() as cx:
            cx.run("INSERT INTO meta (key, value) VALUES ('half', 'done')")
            _ = 1 // 0

    with db.read() as cx:
        assert cx.one("SELECT value FROM meta WHERE key = 'half'") is None


def test_whoever_waits_too_long_for_a_connection_is_told(url: str) -> None:
    pool = Pool(url, size=1, wait_s=0.05)
    first = pool.begin("BEGIN")

    with pytest.raises(EverfoldError) as caught:
        pool.begin("BEGIN")
    first.execute("ROLLBACK")
    pool.give_back(first)
    again = pool.begin("BEGIN")
    again.execute("ROLLBACK")
    pool.give_back(again)
    pool.close()

    assert caught.value.kind is Kind.UNAVAILABLE
    assert again is first


@pytest.mark.expects_warnings
def test_a_nameserver_without_its_database_is_healthy_and_not_ready(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.new_database()
    service = make_service(tmp_path, config.load({"DATABASE_URL": url}, {}))
    transport = WsgiTransport(create_app(service))

    def status(path: str) -> int:
        return transport.request("GET", path, headers={}, timeout_s=10)[0]

    before = status("/readyz")
    name = urlsplit(url).path.lstrip("/")
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as own:
        own.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    after = status("/readyz"), status("/healthz")
    service.stop()
    service.db.close()

    assert before == 200
    assert after == (503, 200)
