"""Every hot statement is answered by an index, however large the tables become."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from nameserver import beats, blocks, feed, tasks
from nameserver.db import Database
from nameserver.tree import (
    ahead,
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

MODULES = [
    ahead, attributes, batch, beats, blocks, commit, extents, history, late, pending, reads,
    tree,
]  # fmt: skip


def statements(module: ModuleType) -> list[tuple[str, str]]:
    """Return the SQL constants of a module by name."""
    return [
        (name, value.replace("{}", "?, ?"))
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
            sql = sql.removesuffix(" FOR NO KEY UPDATE")  # PostgreSQL's alone
            for row in cx.all(f"EXPLAIN QUERY PLAN {sql}", *[1] * sql.count("?")):
                if "replica_bad" in row[3]:
                    continue  # an index of the bad copies alone, asked for the first
                if row[3].startswith("SCAN") or row[3].endswith("(space_id=?)"):
                    slow.append(f"{name}: {row[3]}")
    db.close()

    assert found
    assert slow == []


INLINE = [
    "SELECT block, node, is_bad FROM replica WHERE space_id = ? AND block IN (?, ?)",
    "SELECT block FROM block WHERE space_id = ? AND kept_ns < ? AND block IN (?, ?)",
    "SELECT block, node FROM task WHERE space_id = ? AND kind = 'drop' AND block IN (?, ?)",
    "SELECT seq, at_ns, author, device, mount, changes FROM commit_log"
    " WHERE space_id = ? AND seq > ? ORDER BY seq LIMIT ?",
    "SELECT 1 FROM task WHERE node = ? LIMIT 1",
]
"""Statements that stand within a function of `blocks`, `feed`, `tasks`."""


def test_the_inline_statements_are_those_of_the_code() -> None:
    code = "".join(Path(m.__file__ or "").read_text() for m in (blocks, feed, tasks))
    words = re.sub(r'"\s+"|\s+', " ", code).replace("{}", "?, ?")

    assert [sql for sql in INLINE if sql not in re.sub(r" +", " ", words)] == []


@pytest.mark.parametrize("sql", INLINE)
def test_no_inline_statement_reads_more_of_a_table_than_it_must(sql: str, tmp_path: Path) -> None:
    db = Database(f"{tmp_path}/everfold.db")
    with db.read() as cx:
        plan = [row[3] for row in cx.all(f"EXPLAIN QUERY PLAN {sql}", *[1] * sql.count("?"))]
    db.close()

    assert plan
    assert [step for step in plan if step.startswith("SCAN") or step.endswith("(space_id=?)")] == []


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
