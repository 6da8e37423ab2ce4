"""Every question may be asked of any past moment, and is answered as of then."""

from __future__ import annotations

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Ino, Seq, SpaceId
from nameserver.db import Database
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage, Writer


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


@pytest.fixture
def w(stage: Stage) -> Writer:
    return stage.writer()


def test_a_deleted_tree_is_still_there_in_the_past(stage: Stage, w: Writer) -> None:
    directory = w.mkdir("d")
    ino = w.save("d/f", b"text")
    w.do(wire.SetXattr(ino, b"user.a", b"1", 0, w.now))
    then = stage.seq
    w.unlink("d/f")
    w.rmdir("d")

    assert stage.names() == []
    assert stage.names("d", then) == [b"f"]
    assert stage.content("d/f", then) == b"text"
    listing = stage.tree.listdir(wire.ListDir(stage.space, directory, seq=then))
    assert (listing.attr.ino, listing.parent, listing.seq) == (directory, ROOT, then)
    assert stage.tree.lookup(wire.Lookup(stage.space, directory, b"f", then)).entry is not None
    assert stage.tree.xattrs(wire.GetXattrs(stage.space, ino, then)).values == {b"user.a": b"1"}
    assert [a.ino for a in stage.tree.attrs(wire.GetAttrs(stage.space, [ino], then)).attrs] == [ino]


def test_what_is_gone_now_is_not_found_now(stage: Stage, w: Writer) -> None:
    directory = w.mkdir("d")
    ino = w.save("f", b"text")
    w.unlink("f")
    w.rmdir("d")

    for ask in (
        lambda: stage.tree.extents(wire.GetExtents(stage.space, ino)),
        lambda: stage.tree.xattrs(wire.GetXattrs(stage.space, ino)),
        lambda: stage.tree.listdir(wire.ListDir(stage.space, directory)),
        lambda: stage.tree.lookup(wire.Lookup(stage.space, directory, b"f")),
    ):
        with pytest.raises(EverfoldError) as refused:
            ask()
        assert refused.value.kind is Kind.NOT_FOUND


def test_mode_owner_and_size_are_those_of_then(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"small")
    then = stage.seq
    w.do(wire.SetAttr(ino, w.now, mode=0o600, uid=5))
    w.save("f", b"much larger")

    was, is_now = stage.attr("f", then), stage.attr("f")
    assert (was.mode & 0o777, was.uid, was.size, was.version) == (0o644, 1000, 5, 1)
    assert (is_now.mode & 0o777, is_now.uid, is_now.size, is_now.version) == (0o600, 5, 11, 2)
    assert was.content == then


def test_a_directory_that_moved_was_elsewhere_before(stage: Stage, w: Writer) -> None:
    w.mkdir("a")
    b = w.mkdir("b")
    moved = w.mkdir("a/sub")
    then = stage.seq
    w.rename("a/sub", "b/sub")

    def parent(seq: int) -> Ino:
        return stage.tree.listdir(wire.ListDir(stage.space, moved, seq=Seq(seq))).parent

    assert parent(0) == b
    assert parent(then) == stage.attr("a").ino
    assert stage.names("a/sub", then) == []


def test_a_moment_that_has_not_come_is_refused(stage: Stage, w: Writer) -> None:
    w.make("f")
    for seq in (2, -1, 1 << 63):
        with pytest.raises(EverfoldError) as refused:
            stage.tree.lookup(wire.Lookup(stage.space, ROOT, b"f", Seq(seq)))
        assert refused.value.kind is Kind.INVALID


def test_a_space_that_is_not_there_is_not_found(stage: Stage) -> None:
    nowhere = SpaceId(1234)
    for ask in (
        lambda: stage.tree.lookup(wire.Lookup(nowhere, ROOT, b"f")),
        lambda: stage.tree.history(wire.GetHistory(nowhere, ROOT, b"f")),
        lambda: stage.tree.usage(wire.GetUsage(nowhere)),
        lambda: stage.tree.reserve(wire.Reserve(nowhere, 1)),
    ):
        with pytest.raises(EverfoldError) as refused:
            ask()
        assert refused.value.kind is Kind.NOT_FOUND


def test_spaces_do_not_see_each_other(stage: Stage, w: Writer) -> None:
    w.save("f", b"mine")
    other = stage.new_space("other")

    assert stage.tree.listdir(wire.ListDir(other, ROOT)).entries == []
    assert stage.tree.history(wire.GetHistory(other, ROOT, b"f")).versions == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_a_listing_in_pages_gives_every_name_once_and_in_order(
    stage: Stage, w: Writer, limit: int
) -> None:
    expected = sorted(bytes([n]) * 3 for n in range(200, 207))
    w.do(*(wire.Make(ROOT, name, w.fresh(), 0o100644, 0, 0, 1) for name in expected))
    then = stage.seq
    w.do(*(wire.Unlink(ROOT, name, Ino(0), False, 1) for name in expected[::2]))

    for seq, names in ((0, expected[1::2]), (then, expected)):
        got, after, more = [], b"", True
        while more:
            page = stage.tree.listdir(wire.ListDir(stage.space, ROOT, after, limit, Seq(seq)))
            assert len(page.entries) <= limit
            got += [entry.name for entry in page.entries]
            after, more = got[-1], page.more
        assert got == names


def test_a_listing_of_nothing_or_of_a_file_is_refused(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    for ask, kind in (
        (wire.ListDir(stage.space, ino), Kind.NOT_DIR),
        (wire.ListDir(stage.space, ROOT, limit=0), Kind.INVALID),
        (wire.ListDir(stage.space, Ino(0)), Kind.NOT_FOUND),
    ):
        with pytest.raises(EverfoldError) as refused:
            stage.tree.listdir(ask)
        assert refused.value.kind is kind


def test_a_path_is_walked_without_following_symlinks(stage: Stage, w: Writer) -> None:
    w.mkdir("d")
    directory = w.mkdir("d/e")
    w.make("d/e/f")
    w.do(wire.Make(ROOT, b"link", w.fresh(), 0o120777, 0, 0, 1, target=b"d"))

    def walk(*names: bytes) -> wire.Resolved:
        return stage.tree.resolve(wire.ResolvePath(stage.space, list(names)))

    found = walk(b"d", b"e", b"f")
    assert (found.parent, found.entry and found.entry.name) == (directory, b"f")
    assert walk(b"d", b"e", b"nothing") == wire.Resolved(stage.seq, directory, None)
    root = walk()
    assert root.entry is not None and root.entry.attr.ino == root.parent == ROOT
    for names, kind in (
        ((b"nothing", b"f"), Kind.NOT_FOUND),
        ((b"link", b"e"), Kind.NOT_DIR),
        ((b"d", b"e", b"f", b"x"), Kind.NOT_DIR),
    ):
        with pytest.raises(EverfoldError) as refused:
            walk(*names)
        assert refused.value.kind is kind


def test_attributes_of_inodes_that_are_gone_are_left_out(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    answer = stage.tree.attrs(wire.GetAttrs(stage.space, [Ino(99), ino, Ino(-1), ROOT]))

    assert [attr.ino for attr in answer.attrs] == [ino, ROOT]
    assert answer.seq == stage.seq


def test_answers_survive_the_wire(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"text")
    w.do(wire.SetXattr(ino, b"user.a", b"\0\xff", 0, w.now))
    w.save("f", b"more")
    space = stage.space
    for answer in (
        stage.tree.lookup(wire.Lookup(space, ROOT, b"f")),
        stage.tree.listdir(wire.ListDir(space, ROOT)),
        stage.tree.attrs(wire.GetAttrs(space, [ino])),
        stage.tree.extents(wire.GetExtents(space, ino)),
        stage.tree.xattrs(wire.GetXattrs(space, ino)),
        stage.tree.history(wire.GetHistory(space, ROOT, b"f")),
        stage.tree.history_names(wire.GetHistoryNames(space, ROOT)),
        stage.tree.resolve(wire.ResolvePath(space, [b"f"])),
        stage.tree.usage(wire.GetUsage(space)),
    ):
        assert wire.decode(wire.encode(answer), type(answer)) == answer
