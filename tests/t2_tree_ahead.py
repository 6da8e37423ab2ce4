"""What a batch's operations ask for is read many rows at a time, and means the same."""

from __future__ import annotations

from typing import Any

import pytest

from everfold import wire
from everfold.model import ROOT, Ino
from nameserver.db import Cx, Database
from nameserver.tree import ahead
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage, Writer

COUNT = 100


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


def filled(stage: Stage) -> Writer:
    """Make files of three versions each in a directory, and return who did."""
    writer = stage.writer()
    writer.mkdir("d")
    inos = [writer.make(f"d/f{number:03}") for number in range(COUNT)]
    for base in range(3):
        for number, ino in enumerate(inos):
            writer.write(ino, b"%d of %d" % (base, number), base=base)
    return writer


def mixed(stage: Stage, writer: Writer) -> list[wire.AnyOp]:
    """Return operations that depend on those before them, and some that are refused."""
    d = stage.attr("d").ino
    ino = [stage.attr(f"d/f{number:03}").ino for number in range(COUNT)]
    fresh = writer.fresh()

    def unlink(number: int, seen: int = 0) -> wire.Unlink:
        return wire.Unlink(d, b"f%03d" % number, Ino(seen), False, 5)

    def rename(old: bytes, new: bytes) -> wire.Rename:
        return wire.Rename(d, old, d, new, 6)

    return [
        unlink(0),
        unlink(0),  # is not there any more
        wire.Make(d, b"f000", fresh, 0o100600, 1, 1, 5),
        wire.SetAttr(fresh, 7, mode=0o640),
        unlink(1, seen=ino[2]),  # leads elsewhere
        wire.Link(ino[3], ROOT, b"link", 5),
        unlink(3),
        wire.SetAttr(ino[3], 8, uid=4),
        rename(b"f004", b"f005"),
        unlink(5),
        rename(b"f004", b"again"),
        rename(b"f006", b"f004"),
        wire.Write(ino[7], 3, 3, 9, 9, [], cut=0),
        wire.Write(ino[8], 1, 0, 9, 9, [], cut=0),  # of an old version: a conflict
        unlink(8),
        wire.SetXattr(ino[9], b"user.x", b"1", 0, 9),
        *[unlink(number, seen=ino[number]) for number in range(10, COUNT)],
        wire.Unlink(ROOT, b"d", d, True, 9),  # is not empty
        wire.SetAttr(Ino(1 << 62), 7, mode=0o640),
        wire.Unlink(Ino(-5), b"f", Ino(0), False, 5),
    ]


def everything(stage: Stage) -> list[Any]:
    """Return the rows of the tree and its history."""
    with stage.db.read() as cx:
        return [
            cx.all(f"SELECT * FROM {table} ORDER BY {order}")
            for table, order in [
                ("inode", "ino, born"), ("entry", "parent, name, born"), ("version", "ino, k"),
                ("extent", "ino, off, born"), ("xattr", "ino, name, born"),
                ("commit_log", "seq"), ("space", "id"),
            ]
        ]  # fmt: skip


def test_a_batch_means_the_same_read_ahead_or_not(
    stage: Stage, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = stage.writer("m2").commit(*mixed(stage, filled(stage)))
    other = Stage(Database(f"{tmp_path}/other.db"))
    ops = mixed(other, filled(other))
    monkeypatch.setattr(ahead, "FEW", len(ops) + 1)

    assert other.writer("m2").commit(*ops) == results
    assert everything(other) == everything(stage)
    kinds = [result.kind for result in results]
    assert kinds[:5] == ["", "not_found", "", "", "conflict"]
    assert kinds[-3:] == ["not_empty", "not_found", "not_found"]
    other.db.close()


def test_a_tree_that_is_removed_is_read_in_a_few_questions(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = filled(stage)
    ops = [writer.unlinking(f"d/f{number:03}") for number in range(COUNT)]
    asked: list[str] = []
    for name in ("one", "all"):
        really = getattr(Cx, name)

        def counting(cx: Cx, sql: str, *values: Any, really: Any = really) -> Any:
            asked.append(sql)
            return really(cx, sql, *values)

        monkeypatch.setattr(Cx, name, counting)

    results = writer.commit(*ops)

    assert [result.kind for result in results] == [""] * COUNT
    assert len(asked) < COUNT // 4
    assert stage.names("d") == []


def test_versions_that_were_read_ahead_are_those_of_the_inode(stage: Stage) -> None:
    writer = filled(stage)
    inos = [stage.attr(f"d/f{number:03}").ino for number in range(COUNT)]

    results = writer.commit(*[wire.Write(ino, 3, 0, 9, 9, [], cut=0) for ino in inos])

    assert [result.kind for result in results] == [""] * COUNT
    for number in (0, COUNT - 1):
        story = stage.story(f"d/f{number:03}")
        assert [text for _, text in story] == [b"%d of %d" % (k, number) for k in range(3)] + [b""]
