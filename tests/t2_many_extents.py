"""One question for the extents of many small files."""

from __future__ import annotations

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Extent, Ino
from nameserver.db import Database
from nameserver.tree import reads
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


def test_it_answers_what_each_would_be_answered_alone(stage: Stage) -> None:
    w = stage.writer()
    inos = [w.save(f"f{i}", b"text %d" % i) for i in range(150)]
    w.save("f7", b"saved again")

    answer = stage.tree.many_extents(wire.GetManyExtents(stage.space, inos))

    assert set(answer.files) == set(inos)
    for ino in inos:
        alone = stage.tree.extents(wire.GetExtents(stage.space, ino))
        assert answer.files[ino] == alone.extents
        assert alone.where.items() <= answer.where.items()
    assert answer.seq == stage.seq


def test_what_has_no_bytes_or_no_name_is_left_out(stage: Stage) -> None:
    w = stage.writer()
    gone, kept = w.save("gone", b"x"), w.save("kept", b"y")
    w.do(wire.Unlink(ROOT, b"gone", gone, False, w.now))

    asked = [ROOT, gone, kept, Ino(987_654)]

    assert set(stage.tree.many_extents(wire.GetManyExtents(stage.space, asked)).files) == {kept}


def test_no_file_is_told_in_part(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_MANY_ROWS", 10)
    w = stage.writer()
    inos = [w.save(f"f{i}", b"start") for i in range(4)]
    for i, ino in enumerate(inos):
        stored = [stage.put(b"%d-%d" % (i, k)) for k in range(4)]
        laid = [Extent(100 * k, 3, each.block) for k, each in enumerate(stored, 1)]
        w.do(wire.Write(ino, 1, 500, w.now, w.now, laid), stored=stored)

    files = stage.tree.many_extents(wire.GetManyExtents(stage.space, inos)).files

    assert {ino: len(found) for ino, found in files.items()} == {inos[0]: 5, inos[1]: 5}


def test_too_many_files_in_one_question_are_refused(stage: Stage) -> None:
    ask = wire.GetManyExtents(stage.space, [Ino(n) for n in range(reads.MANY_MAX + 1)])

    with pytest.raises(EverfoldError) as caught:
        stage.tree.many_extents(ask)

    assert caught.value.kind is Kind.INVALID
