"""Databases for tests: SQLite in a folder, and a real PostgreSQL started once for the session.

The server listens on a unix socket in a temporary folder of its own and does not sync (a test's
database need not survive a power cut). It is not marked as a process of the test that happened to
need it first, since it stays for all of them. Each test gets a database that nobody else has.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from nameserver.db import Database
from tests.harness import machine

_TEMPLATE = "everfold_template"  # a copy of it is quicker than making all tables
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "listen_addresses": "''",
}


class PostgresServer:
    """A server process of this test run."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="everfold-pg-"))
        self._numbers = itertools.count(1)
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")

    def _run(self, *command: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        subprocess.run(
            [*user, str(self._programs / command[0]), *command[1:]],
            check=True,
            cwd=self._folder,
            env={name: value for name, value in os.environ.items() if name != machine.MARK},
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def start(self) -> None:
        """Make a cluster of databases and serve it; returns when it takes connections."""
        cluster = str(self._folder / "data")
        self._run("initdb", "-D", cluster, "-U", "postgres", "-A", "trust", "--no-sync")
        options = [f"-c {name}={value}" for name, value in _SETTINGS.items()]
        told = " ".join([f"-k {self._folder}", *options])
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", cluster, "-w", "-t", "30", "-s", "-l", log, "-o", told, "start")
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {_TEMPLATE}".encode())
        Database(self.url(_TEMPLATE)).close()

    def stop(self) -> None:
        """End it and forget everything."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "-s", "stop")
        shutil.rmtree(self._folder)

    def url(self, name: str) -> str:
        """Return the URL of one of its databases."""
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def new_database(self) -> str:
        """Create a database with the schema and nothing in it; return its URL."""
        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}".encode())
        return self.url(name)

    def bare_database(self) -> str:
        """Create a database without a schema; return its URL."""
        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the session."""
    programs = machine.postgres_bin()
    if programs is None:
        pytest.skip("postgres: no postgresql is installed")
    server = PostgresServer(programs)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/everfold.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def bare_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database without a schema, once of each kind, for a whole module."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('db')}/everfold.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.bare_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with its schema in place, once of each kind."""
    db = Database(database_url)
    yield db
    db.close()
