"""One question for the names in many directories."""

from __future__ import annotations

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Ino
from nameserver.db import Database
from nameserver.tree import reads
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


def test_it_answers_what_each_would_be_answered_alone(stage: Stage) -> None:
    w = stage.writer()
    directories = [w.mkdir(f"d{i}") for i in range(3)]
    for i in range(7):
        w.save(f"d{i % 2}/f{i}", b"%d" % i)

    answer = stage.tree.list_many(wire.ListMany(stage.space, [*directories, ROOT]))

    alone = [stage.tree.listdir(wire.ListDir(stage.space, ino)) for ino in (*directories, ROOT)]
    assert answer.found == alone
    assert [len(page.entries) for page in answer.found] == [4, 3, 0, 3]
    assert answer.seq == stage.seq


def test_what_is_gone_or_no_directory_or_too_large_is_left_out(stage: Stage) -> None:
    w = stage.writer()
    gone, small, large = w.mkdir("gone"), w.mkdir("small"), w.mkdir("large")
    file = w.save("file", b"x")
    for i in range(4):
        w.save(f"large/f{i}", b"%d" % i)
    w.do(wire.Unlink(ROOT, b"gone", gone, True, w.now))

    def found(limit: int) -> list[Ino]:
        ask = wire.ListMany(stage.space, [gone, large, file, small, Ino(987_654)], limit)
        return [page.attr.ino for page in stage.tree.list_many(ask).found]

    assert found(limit=4) == [large, small]
    assert found(limit=3) == [small]


def test_an_answer_has_so_many_names(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_LIST_MANY_NAMES", 5)
    w = stage.writer()
    directories = [w.mkdir(f"d{i}") for i in range(4)]
    for i, ino in enumerate(directories):
        for k in range(6 if i == 1 else 3):
            w.save(f"d{i}/f{k}", b"%d" % k)
        assert ino

    answer = stage.tree.list_many(wire.ListMany(stage.space, directories, 1_000_000))

    assert [page.attr.ino for page in answer.found] == [directories[0], directories[2]]


@pytest.mark.parametrize(
    "inos, limit", [([ROOT] * (reads.LIST_MANY_MAX + 1), 10), ([ROOT], 0), ([ROOT], -1)]
)
def test_a_question_that_cannot_be_is_refused(stage: Stage, inos: list[Ino], limit: int) -> None:
    with pytest.raises(EverfoldError) as caught:
        stage.tree.list_many(wire.ListMany(stage.space, inos, limit))

    assert caught.value.kind is Kind.INVALID
