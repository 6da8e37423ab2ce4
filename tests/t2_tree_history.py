"""History follows the name, whichever way an editor saves."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from everfold import wire
from everfold.errors import Kind
from everfold.model import ROOT, Extent, Ino
from nameserver.db import Database
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage, Writer

SAVES = [b"one", b"two two", b"three", b"four four"]
STORY = list(enumerate(SAVES, 1))


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


@pytest.fixture
def w(stage: Stage) -> Writer:
    return stage.writer()


def in_place(w: Writer, text: bytes) -> None:
    w.save("f", text)


def by_a_temporary_file(w: Writer, text: bytes) -> None:
    w.save(".f.tmp", text)
    w.rename(".f.tmp", "f")


def by_a_backup_as_vim_does(w: Writer, text: bytes) -> None:
    if w.stage.entry("f"):
        w.rename("f", "f~")
    w.save("f", text)
    if w.stage.entry("f~"):
        w.unlink("f~")


def by_a_backup_that_stays(w: Writer, text: bytes) -> None:
    if w.stage.entry("f"):
        w.rename("f", "f~")
    w.save("f", text)


def by_a_linked_backup(w: Writer, text: bytes) -> None:
    if w.stage.entry("f"):
        if w.stage.entry("f.bak"):
            w.unlink("f.bak")
        w.link("f", "f.bak")
    w.save("f.new", text)
    w.rename("f.new", "f")


def by_deleting_first(w: Writer, text: bytes) -> None:
    if w.stage.entry("f"):
        w.unlink("f")
    w.save("f", text)


def by_exchange(w: Writer, text: bytes) -> None:
    if w.stage.entry("f") is None:
        w.save("f", text)
        return
    w.save("g", text)
    w.rename("g", "f", wire.RENAME_EXCHANGE)
    w.unlink("g")


def by_moving_away_and_back(w: Writer, text: bytes) -> None:
    w.save("f", text)
    w.rename("f", "away")
    w.rename("away", "f")


STYLES = [
    in_place, by_a_temporary_file, by_a_backup_as_vim_does, by_a_backup_that_stays,
    by_a_linked_backup, by_deleting_first, by_exchange, by_moving_away_and_back,
]  # fmt: skip


@pytest.mark.parametrize("save", STYLES)
def test_each_save_is_one_version_of_the_name(
    stage: Stage, w: Writer, save: Callable[[Writer, bytes], None]
) -> None:
    for text in SAVES:
        stage.clock.move(60)
        save(w, text)

    versions = stage.versions("f")
    assert stage.story("f") == STORY
    assert [v.current for v in versions] == [False, False, False, True]
    assert [v.at_ns for v in versions] == sorted({v.at_ns for v in versions})
    assert {(v.author, v.device, v.sealed, v.conflict) for v in versions} == {
        ("ann", "laptop", True, False)
    }


@pytest.mark.parametrize("first", STYLES)
@pytest.mark.parametrize("then", STYLES)
def test_styles_mix_at_one_name(
    stage: Stage,
    w: Writer,
    first: Callable[[Writer, bytes], None],
    then: Callable[[Writer, bytes], None],
) -> None:
    for save, text in zip((first, then, first, then), SAVES, strict=True):
        save(w, text)

    assert stage.story("f") == STORY


def test_saves_of_one_batch_are_versions_each(stage: Stage, w: Writer) -> None:
    make = w.making("f")
    ops: list[wire.AnyOp] = [make]
    stored = []
    for text in SAVES:
        op, blocks = w.writing(make.ino, text)
        ops.append(op)
        stored += blocks
    w.do(*ops, stored=stored)

    assert stage.story("f") == STORY


def test_a_save_through_a_temporary_name_in_one_batch_keeps_both_names(
    stage: Stage, w: Writer
) -> None:
    w.save("f", b"old")
    make = w.making("tmp")
    op, stored = w.writing(make.ino, b"new")
    rename = wire.Rename(ROOT, b"tmp", ROOT, b"f", w.now)
    w.do(make, op, rename, stored=stored)

    assert stage.story("f") == [(1, b"old"), (2, b"new")]
    assert stage.story("tmp") == [(1, b"new")]
    assert stage.names() == [b"f"]


def test_an_emptiness_that_a_name_showed_stays_when_the_same_batch_fills_it(
    stage: Stage, w: Writer
) -> None:
    ino = w.make("draft")
    w.do(wire.Seal(ino, w.now))
    op, stored = w.writing(ino, b"full")
    w.do(wire.Rename(ROOT, b"draft", ROOT, b"f", w.now), op, stored=stored)

    assert stage.story("f") == [(1, b""), (2, b"full")]


def test_a_file_made_and_deleted_in_one_batch_can_be_read_in_its_history(
    stage: Stage, w: Writer
) -> None:
    make = w.making("f")
    op, stored = w.writing(make.ino, b"short life")
    w.do(make, op, wire.Unlink(ROOT, b"f", make.ino, False, w.now), stored=stored)

    assert stage.story("f") == [(1, b"short life")]
    assert stage.names() == []


def test_a_never_written_file_that_goes_in_its_batch_leaves_no_trace(
    stage: Stage, w: Writer
) -> None:
    make = w.making("f")
    w.do(make, wire.Unlink(ROOT, b"f", make.ino, False, w.now))
    directory = w.making("d", stat.S_IFDIR | 0o755)
    w.do(directory, wire.Unlink(ROOT, b"d", directory.ino, True, w.now))

    with stage.db.read() as cx:
        assert cx.one("SELECT COUNT(*) FROM entry WHERE space_id = ?", stage.space) == (0,)
        assert cx.one("SELECT COUNT(*) FROM inode WHERE space_id = ?", stage.space) == (1,)


def test_a_file_brings_its_earlier_life_to_its_new_name(stage: Stage, w: Writer) -> None:
    w.save("g", b"g was here")
    w.unlink("g")
    w.save("f", b"first")
    w.save("f", b"second")
    w.rename("f", "g")
    w.save("g", b"third")

    assert stage.story("g") == [(1, b"g was here"), (2, b"first"), (3, b"second"), (4, b"third")]
    assert stage.story("f") == [(1, b"first"), (2, b"second")]


def test_what_a_file_became_elsewhere_is_not_the_history_of_the_name_it_left(
    stage: Stage, w: Writer
) -> None:
    w.save("log", b"day 1")
    w.rename("log", "log.1")
    w.save("log.1", b"day 1, amended")
    w.save("log", b"day 2")

    assert stage.story("log") == [(1, b"day 1"), (2, b"day 2")]
    assert stage.story("log.1") == [(1, b"day 1"), (2, b"day 1, amended")]


def test_a_file_still_open_leaves_its_old_name_with_what_it_showed_there(
    stage: Stage, w: Writer
) -> None:
    ino = w.make("log")
    w.write(ino, b"so far", is_sealed=False)
    w.rename("log", "log.1")
    w.write(ino, b"so far, and on", is_sealed=False)

    assert stage.story("log") == [(1, b"so far")]
    assert stage.story("log.1") == [(1, b"so far"), (2, b"so far, and on")]
    assert [v.sealed for v in stage.versions("log.1")] == [True, False]


def test_a_replaced_file_stays_a_version_of_the_name(stage: Stage, w: Writer) -> None:
    w.save("a", b"mine")
    w.save("b", b"theirs 1")
    w.save("b", b"theirs 2")
    w.rename("a", "b")

    assert stage.story("b") == [(1, b"theirs 1"), (2, b"theirs 2"), (3, b"mine")]


def test_old_versions_that_come_back_to_a_name_keep_their_numbers(stage: Stage, w: Writer) -> None:
    w.save("f", b"a1")
    w.save("f", b"a2")
    w.rename("f", "away")
    w.save("f", b"b1")
    w.save("away", b"a3")
    w.rename("away", "f")
    w.save("f", b"a4")

    assert stage.story("f") == [(1, b"a1"), (2, b"a2"), (3, b"b1"), (4, b"a3"), (5, b"a4")]


def test_the_name_shows_an_old_version_as_current_when_its_file_came_back_unchanged(
    stage: Stage, w: Writer
) -> None:
    w.save("f", b"a")
    w.rename("f", "away")
    w.save("f", b"b")
    w.rename("away", "f")

    assert stage.story("f") == [(1, b"a"), (2, b"b")]
    assert [v.number for v in stage.versions("f") if v.current] == [1]
    w.save("f", b"c")
    assert stage.story("f") == [(1, b"a"), (2, b"b"), (3, b"c")]


def test_equal_neighbours_are_listed_once_under_the_lower_number(stage: Stage, w: Writer) -> None:
    w.save("f", b"same")
    w.save("tmp", b"same")
    w.rename("tmp", "f")
    w.save("f", b"other")

    versions = stage.versions("f")
    assert stage.story("f") == [(1, b"same"), (3, b"other")]
    assert versions[0].digest != versions[1].digest


def test_contents_that_are_cut_differently_into_extents_have_one_digest(
    stage: Stage, w: Writer
) -> None:
    stored = stage.put(b"0123456789")
    whole = w.make("whole")
    halves = w.make("halves")
    at = w.now
    left, right = (
        Extent(0, 5, stored.block, 0),
        Extent(5, 5, stored.block, 5),
    )
    w.do(wire.Write(whole, 0, 10, at, at, [Extent(0, 10, stored.block)]), stored=[stored])
    w.do(wire.Write(halves, 0, 10, at, at, [left]), wire.Write(halves, 1, 10, at, at, [right]))

    assert stage.versions("whole")[0].digest == stage.versions("halves")[-1].digest


def test_deleted_names_are_listed_with_their_time(stage: Stage, w: Writer) -> None:
    w.save("live", b"1")
    w.save("dead", b"2")
    w.make("never written")
    w.mkdir("live directory")
    w.mkdir("dead directory")
    w.rmdir("dead directory")
    stage.clock.move(100)
    w.unlink("dead")

    ask = wire.GetHistoryNames(stage.space, ROOT)
    listed = stage.tree.history_names(ask).names
    assert [(n.name, n.is_live) for n in listed] == [
        (b"dead", False),
        (b"dead directory", False),
        (b"live", True),
    ]
    assert listed[0].died_ns == stage.clock.now_ns
    assert stat.S_ISDIR(listed[1].mode) and stat.S_ISREG(listed[2].mode)
    assert listed[2].died_ns == 0


def test_the_history_of_a_deleted_directory_can_still_be_asked(stage: Stage, w: Writer) -> None:
    ino = w.mkdir("d")
    w.save("d/f", b"text")
    w.unlink("d/f")
    w.rmdir("d")

    names = stage.tree.history_names(wire.GetHistoryNames(stage.space, ino)).names
    assert [n.name for n in names] == [b"f"]
    [version] = stage.tree.history(wire.GetHistory(stage.space, ino, b"f")).versions
    assert stage.read(version.ino, version.seq) == b"text"


def test_a_name_that_never_was_has_an_empty_history(stage: Stage) -> None:
    assert stage.tree.history(wire.GetHistory(stage.space, ROOT, b"f")).versions == []
    assert stage.tree.history(wire.GetHistory(stage.space, Ino(77), b"f")).versions == []


def test_versions_tell_who_saved_when_and_how_large(stage: Stage, w: Writer) -> None:
    w.save("f", b"first")
    stage.clock.move(60)
    stage.writer("m2", "bob", "desktop").save("f", b"the second")

    first, second = stage.versions("f")
    assert (first.author, first.device, first.size) == ("ann", "laptop", 5)
    assert (second.author, second.device, second.size) == ("bob", "desktop", 10)
    assert second.at_ns == second.mtime_ns == stage.clock.now_ns
    events = {event.seq: event.at_ns for event in stage.events()}
    assert [v.at_ns for v in (first, second)] == [events[v.seq] for v in (first, second)]


def test_a_time_set_after_the_last_write_is_the_version_s_time(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"unpacked")
    w.do(wire.SetAttr(ino, w.now, mtime_ns=1_000))

    assert stage.versions("f")[0].mtime_ns == 1_000


# ---------------------------------------------------------------- restore


def restore(w: Writer, path: str, number: int, **more: object) -> wire.Result:
    parent, name = w.stage.parent(path)
    op = wire.Restore(parent, name, number, w.fresh(), w.now, **more)  # type: ignore[arg-type]
    return w.commit(op)[0]


def test_an_old_version_becomes_current_again_as_a_new_version(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"good")
    w.save("f", b"bad, and longer")
    stage.clock.move(5)
    result = restore(w, "f", 1)

    assert result == wire.Result(ino=ino, version=3)
    assert stage.content("f") == b"good"
    assert stage.attr("f").mtime_ns == w.now
    assert stage.story("f") == [(1, b"good"), (2, b"bad, and longer"), (3, b"good")]


def test_restoring_keeps_an_open_version_that_it_replaces(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"good")
    w.write(ino, b"being written", is_sealed=False)
    restore(w, "f", 1)

    assert stage.story("f") == [(1, b"good"), (2, b"being written"), (3, b"good")]


def test_restoring_what_is_there_already_adds_no_version(stage: Stage, w: Writer) -> None:
    w.save("f", b"text")

    assert restore(w, "f", 1).version == 1
    assert stage.story("f") == [(1, b"text")]


def test_a_deleted_file_is_restored_with_mode_owner_and_time(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"precious")
    w.do(wire.SetAttr(ino, w.now, mode=0o600, uid=7, gid=8))
    w.unlink("f")
    stage.clock.move(60)
    made = restore(w, "f", 1).ino

    attr = stage.attr("f")
    assert attr.ino == made != ino
    assert (attr.mode, attr.uid, attr.gid) == (stat.S_IFREG | 0o600, 7, 8)
    assert attr.mtime_ns == w.now - 60 * 10**9
    assert stage.content("f") == b"precious"
    w.save("f", b"more")
    assert stage.story("f") == [(1, b"precious"), (3, b"more")]


def test_a_version_is_restored_from_the_history_of_another_name(stage: Stage, w: Writer) -> None:
    directory = w.mkdir("d")
    w.save("d/source", b"v1")
    w.save("d/source", b"v2")
    w.unlink("d/source")
    w.save("f", b"mine")
    restore(w, "f", 1, from_parent=directory, from_name=b"source")
    restore(w, "new", 2, from_parent=directory, from_name=b"source")

    assert stage.story("f") == [(1, b"mine"), (2, b"v1")]
    assert stage.content("new") == b"v2"


def test_a_restore_shares_blocks_and_needs_none_stored_again(stage: Stage, w: Writer) -> None:
    w.save("f", b"old")
    w.save("f", b"new")
    stage.ledger.nodes.clear()

    restore(w, "f", 1).check()
    assert stage.content("f") == b"old"


def test_a_restore_that_cannot_be_is_refused(stage: Stage, w: Writer) -> None:
    w.save("f", b"x")
    w.mkdir("d")
    assert restore(w, "f", 9).kind == Kind.NOT_FOUND.value
    assert restore(w, "nothing", 1).kind == Kind.NOT_FOUND.value
    ask = {"from_parent": ROOT, "from_name": b"f"}
    assert restore(w, "d", 1, **ask).kind == Kind.IS_DIR.value
    assert w.commit(wire.Restore(Ino(99), b"f", 1, w.fresh(), 1))[0].kind == Kind.NOT_FOUND.value
    used = stage.attr("f").ino
    op = wire.Restore(ROOT, b"new", 1, used, 1, ROOT, b"f")
    assert w.commit(op)[0].kind == Kind.INVALID.value
