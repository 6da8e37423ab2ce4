"""Every hot statement of the tree is answered by an index, however large the tables become."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from nameserver.db import Database
from nameserver.tree import (
    attributes,
    batch,
    commit,
    extents,
    history,
    late,
    pending,
    reads,
    tree,
)
from tests.harness.databases import PostgresServer, postgres_server  # noqa: F401

MODULES = [attributes, batch, commit, extents, history, late, pending, reads, tree]


def statements(module: ModuleType) -> list[tuple[str, str]]:
    """Return the SQL constants of a module by name."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, str) and re.match(r"(SELECT|UPDATE|DELETE|INSERT) ", value)
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_no_statement_reads_more_of_a_table_than_it_must(
    module: ModuleType, tmp_path: Path
) -> None:
    db = Database(f"{tmp_path}/everfold.db")
    found = statements(module)
    slow = []
    with db.read() as cx:
        for name, sql in found:
            for row in cx.all(f"EXPLAIN QUERY PLAN {sql}", *[1] * sql.count("?")):
                if row[3].startswith("SCAN") or row[3].endswith("(space_id=?)"):
                    slow.append(f"{name}: {row[3]}")
    db.close()

    assert found
    assert slow == []


@pytest.mark.postgres
@pytest.mark.parametrize("name", ["_NAME_NOW", "_NAME_THEN", "_LIST_NOW", "_LIST_THEN"])
def test_postgresql_joins_by_inode_on_tables_that_it_has_not_analyzed(
    postgres_server: PostgresServer,  # noqa: F811
    name: str,
) -> None:
    db = Database(postgres_server.new_database())
    sql: str = vars(reads)[name]
    values = [
        b"x" if column == "name" else 1 for column in re.findall(r"(\w+|LIMIT) (?:[<>=]+ )?\?", sql)
    ]
    with db.read() as cx:
        plan = "\n".join(row[0] for row in cx.all(f"EXPLAIN {sql}", *values))
    db.close()

    assert "(ino = e.ino)" in plan
    assert "Join Filter" not in plan
