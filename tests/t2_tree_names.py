"""Names: make, link, unlink, rename, and what they refuse."""

from __future__ import annotations

import stat

import pytest

from everfold import wire
from everfold.errors import Kind
from everfold.model import LINK_MAX, ROOT, Ino
from nameserver.db import Database
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage, Writer

DIR = stat.S_IFDIR | 0o755


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


@pytest.fixture
def w(stage: Stage) -> Writer:
    return stage.writer()


def refused(w: Writer, op: wire.AnyOp, kind: Kind) -> None:
    """Commit an operation that must be refused, and must have changed nothing."""
    before = w.stage.seq
    assert w.commit(op)[0].kind == kind.value
    assert w.stage.seq == before


def test_every_type_of_inode_can_be_made_and_tells_what_it_is(stage: Stage, w: Writer) -> None:
    w.do(wire.Make(ROOT, b"link", w.fresh(), stat.S_IFLNK | 0o777, 1, 2, 5, target=b"../x"))
    w.do(wire.Make(ROOT, b"dev", w.fresh(), stat.S_IFBLK | 0o600, 1, 2, 5, rdev=0x801))
    for name, kind in ((b"fifo", stat.S_IFIFO), (b"sock", stat.S_IFSOCK), (b"tty", stat.S_IFCHR)):
        w.do(wire.Make(ROOT, name, w.fresh(), kind | 0o640, 1, 2, 5))

    link, dev = stage.attr("link"), stage.attr("dev")
    assert (link.target, link.size, link.mode) == (b"../x", 4, stat.S_IFLNK | 0o777)
    assert (dev.rdev, dev.uid, dev.gid, dev.mtime_ns) == (0x801, 1, 2, 5)
    assert stat.S_ISFIFO(stage.attr("fifo").mode)
    assert stage.names() == [b"dev", b"fifo", b"link", b"sock", b"tty"]


def test_a_new_directory_has_two_links_and_gives_its_parent_one(stage: Stage, w: Writer) -> None:
    w.mkdir("d")
    w.mkdir("d/e")
    w.make("d/f")

    assert stage.attr("d").nlink == 3
    assert stage.attr("d/e").nlink == 2
    assert stage.tree.attrs(wire.GetAttrs(stage.space, [ROOT])).attrs[0].nlink == 3
    w.rmdir("d/e")
    assert stage.attr("d").nlink == 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"", Kind.INVALID),
        (b".", Kind.INVALID),
        (b"..", Kind.INVALID),
        (b"a/b", Kind.INVALID),
        (b"a\0b", Kind.INVALID),
        (b"n" * 256, Kind.NAME_TOO_LONG),
        (b".versions", Kind.NOT_PERMITTED),
    ],
)
def test_a_name_that_cannot_be_is_refused_by_every_operation(
    w: Writer, name: bytes, kind: Kind
) -> None:
    ino = w.make("there")
    fresh = w.fresh()
    refused(w, wire.Make(ROOT, name, fresh, DIR, 0, 0, 1), kind)
    refused(w, wire.Link(ino, ROOT, name, 1), kind)
    refused(w, wire.Rename(ROOT, b"there", ROOT, name, 1), kind)
    refused(w, wire.Restore(ROOT, name, 1, fresh, 1), kind)


def test_names_of_any_other_bytes_up_to_255_are_fine(stage: Stage, w: Writer) -> None:
    odd = [bytes([n]) * 255 for n in (1, 10, 0x80, 0xFF)] + ["Grüße 🐘".encode(), b"-rf *"]
    for name in odd:
        w.do(wire.Make(ROOT, name, w.fresh(), DIR, 0, 0, 1))

    assert stage.names() == sorted(odd)


def test_making_over_a_name_that_is_taken_is_refused(w: Writer) -> None:
    w.make("f")

    refused(w, wire.Make(ROOT, b"f", w.fresh(), DIR, 0, 0, 1), Kind.EXISTS)


def test_making_in_what_is_no_directory_or_is_gone_is_refused(w: Writer) -> None:
    file = w.make("f")
    gone = w.mkdir("d")
    w.rmdir("d")

    refused(w, wire.Make(file, b"x", w.fresh(), DIR, 0, 0, 1), Kind.NOT_DIR)
    refused(w, wire.Make(gone, b"x", w.fresh(), DIR, 0, 0, 1), Kind.NOT_FOUND)
    refused(w, wire.Make(Ino(1 << 63), b"x", w.fresh(), DIR, 0, 0, 1), Kind.NOT_FOUND)


def test_an_inode_number_must_be_reserved_and_is_good_once(w: Writer) -> None:
    used = w.make("f")
    dead = w.make("g")
    w.unlink("g")

    for ino in (used, dead, ROOT, Ino(0), Ino(-5), Ino(10**6), Ino(1 << 63)):
        refused(w, wire.Make(ROOT, b"x", ino, DIR, 0, 0, 1), Kind.INVALID)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": 0o644},
        {"mode": stat.S_IFREG | 0o200000},
        {"uid": -1},
        {"gid": 1 << 32},
        {"rdev": -1},
        {"time_ns": 1 << 63},
        {"target": b"only symlinks have one"},
    ],
)
def test_an_inode_that_cannot_be_is_refused(w: Writer, wrong: dict[str, object]) -> None:
    values = {"mode": stat.S_IFREG, "uid": 0, "gid": 0, "time_ns": 1, **wrong}

    refused(w, wire.Make(ROOT, b"x", w.fresh(), **values), Kind.INVALID)  # type: ignore[arg-type]


def test_a_symlink_needs_a_target_of_bearable_length(w: Writer) -> None:
    mode = stat.S_IFLNK | 0o777
    refused(w, wire.Make(ROOT, b"x", w.fresh(), mode, 0, 0, 1), Kind.INVALID)
    long = b"t" * 4096
    refused(w, wire.Make(ROOT, b"x", w.fresh(), mode, 0, 0, 1, target=long), Kind.NAME_TOO_LONG)


def test_a_hard_link_is_the_same_inode_under_both_names(stage: Stage, w: Writer) -> None:
    w.save("a", b"text")
    w.mkdir("d")
    w.link("a", "d/b")
    w.save("d/b", b"changed")

    assert stage.attr("a") == stage.attr("d/b")
    assert stage.attr("a").nlink == 2
    assert stage.content("a") == b"changed"
    w.unlink("a")
    assert stage.attr("d/b").nlink == 1
    assert stage.content("d/b") == b"changed"


def test_links_are_refused_to_directories_over_names_and_beyond_the_limit(
    stage: Stage, w: Writer
) -> None:
    directory, ino = w.mkdir("d"), w.make("f")
    refused(w, wire.Link(directory, ROOT, b"x", 1), Kind.NOT_PERMITTED)
    refused(w, wire.Link(ino, ROOT, b"d", 1), Kind.EXISTS)
    refused(w, wire.Link(Ino(999), ROOT, b"x", 1), Kind.NOT_FOUND)
    with stage.db.write() as cx:
        cx.run("UPDATE inode SET nlink = ? WHERE ino = ?", LINK_MAX, ino)
    refused(w, wire.Link(ino, ROOT, b"x", 1), Kind.TOO_MANY_LINKS)


def test_unlink_and_rmdir_each_take_only_their_own(w: Writer) -> None:
    w.mkdir("d")
    w.make("d/x")
    ino = w.make("f")

    refused(w, w.unlinking("d"), Kind.IS_DIR)
    refused(w, w.unlinking("f", is_rmdir=True), Kind.NOT_DIR)
    refused(w, w.unlinking("d", is_rmdir=True), Kind.NOT_EMPTY)
    refused(w, w.unlinking("nothing"), Kind.NOT_FOUND)
    refused(w, wire.Unlink(ROOT, b"f", Ino(ino + 1), False, 1), Kind.CONFLICT)
    w.do(wire.Unlink(ROOT, b"f", ino, False, 1))


def test_a_directory_just_emptied_in_the_same_batch_can_go(stage: Stage, w: Writer) -> None:
    w.mkdir("d")
    w.save("d/x", b"1")
    w.do(w.unlinking("d/x"), w.unlinking("d", is_rmdir=True))

    assert stage.names() == []


def test_rename_moves_and_replaces_as_rename_does(stage: Stage, w: Writer) -> None:
    w.mkdir("d")
    w.mkdir("e")
    a = w.save("a", b"a")
    b = w.save("d/b", b"b")
    w.rename("a", "d/b")

    assert stage.attr("d/b").ino == a
    assert stage.names() == [b"d", b"e"]
    assert not stage.tree.attrs(wire.GetAttrs(stage.space, [b])).attrs
    w.rename("d", "e")
    assert stage.names() == [b"e"]
    assert stage.content("e/b") == b"a"
    assert stage.tree.attrs(wire.GetAttrs(stage.space, [ROOT])).attrs[0].nlink == 3


def test_rename_refuses_what_rename_refuses(w: Writer) -> None:
    w.mkdir("d")
    w.mkdir("d/sub")
    w.mkdir("full")
    w.make("full/x")
    ino = w.make("f")
    gone = w.mkdir("gone")
    w.rmdir("gone")

    refused(w, w.renaming("nothing", "x"), Kind.NOT_FOUND)
    refused(w, w.renaming("f", "d"), Kind.IS_DIR)
    refused(w, w.renaming("d", "f"), Kind.NOT_DIR)
    refused(w, w.renaming("d", "full"), Kind.NOT_EMPTY)
    refused(w, w.renaming("d", "d/sub/x"), Kind.INVALID)
    refused(w, w.renaming("d", "d/x"), Kind.INVALID)
    refused(w, w.renaming("d/sub", "d"), Kind.NOT_EMPTY)
    refused(w, w.renaming("f", "d/x", flags=8), Kind.INVALID)
    refused(w, w.renaming("f", "d/x", flags=3), Kind.INVALID)
    refused(w, wire.Rename(ROOT, b"f", gone, b"x", 1), Kind.NOT_FOUND)
    refused(w, wire.Rename(ROOT, b"f", ino, b"x", 1), Kind.NOT_DIR)


def test_noreplace_replaces_nothing(stage: Stage, w: Writer) -> None:
    w.make("a")
    w.make("b")
    refused(w, w.renaming("a", "b", wire.RENAME_NOREPLACE), Kind.EXISTS)
    w.rename("a", "c", wire.RENAME_NOREPLACE)

    assert stage.names() == [b"b", b"c"]


def test_rename_checks_what_the_client_saw_at_both_ends(w: Writer) -> None:
    a, b = w.make("a"), w.make("b")
    refused(w, wire.Rename(ROOT, b"a", ROOT, b"b", 1, ino=b), Kind.CONFLICT)
    refused(w, wire.Rename(ROOT, b"a", ROOT, b"b", 1, ino=a, replaced=Ino(0)), Kind.CONFLICT)
    refused(w, wire.Rename(ROOT, b"a", ROOT, b"c", 1, ino=a, replaced=b), Kind.CONFLICT)
    w.do(wire.Rename(ROOT, b"a", ROOT, b"b", 1, ino=a, replaced=b))


def test_exchange_swaps_files_and_directories(stage: Stage, w: Writer) -> None:
    w.mkdir("d")
    w.mkdir("d/sub")
    file = w.save("f", b"text")
    w.rename("f", "d/sub", wire.RENAME_EXCHANGE)

    assert stage.attr("d/sub").ino == file
    assert stage.attr("f").is_dir
    assert stage.attr("d").nlink == 2
    assert stage.tree.attrs(wire.GetAttrs(stage.space, [ROOT])).attrs[0].nlink == 4
    refused(w, w.renaming("f", "nothing", wire.RENAME_EXCHANGE), Kind.NOT_FOUND)
    refused(w, w.renaming("d/sub", "d", wire.RENAME_EXCHANGE), Kind.INVALID)


def test_renaming_a_name_to_another_of_the_same_file_does_nothing(stage: Stage, w: Writer) -> None:
    w.save("a", b"x")
    w.link("a", "b")
    before = stage.seq
    w.rename("a", "b")
    w.rename("a", "a")

    assert stage.seq == before
    assert stage.names() == [b"a", b"b"]


def test_times_of_directories_and_files_follow_the_changes(stage: Stage, w: Writer) -> None:
    w.mkdir("d")
    w.save("f", b"x")
    stage.clock.move(1)
    w.rename("f", "d/f")
    moved = w.now

    d, f = stage.attr("d"), stage.attr("d/f")
    root = stage.tree.attrs(wire.GetAttrs(stage.space, [ROOT])).attrs[0]
    assert d.mtime_ns == d.ctime_ns == root.mtime_ns == f.ctime_ns == moved
    assert f.mtime_ns == moved - 10**9
    assert d.btime_ns == moved - 10**9


def test_attributes_are_set_one_by_one(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    w.do(wire.SetAttr(ino, 7, mode=0o4750))
    w.do(wire.SetAttr(ino, 8, uid=5))
    w.do(wire.SetAttr(ino, 9, gid=6, atime_ns=-1, mtime_ns=12_345_678_901))

    a = stage.attr("f")
    assert (a.mode, a.uid, a.gid) == (stat.S_IFREG | 0o4750, 5, 6)
    assert (a.atime_ns, a.mtime_ns, a.ctime_ns) == (-1, 12_345_678_901, 9)
    for wrong in ({"mode": 0o10000}, {"uid": -2}, {"gid": 1 << 32}, {"mtime_ns": 1 << 63}):
        refused(w, wire.SetAttr(ino, 1, **wrong), Kind.INVALID)  # type: ignore[arg-type]
    refused(w, wire.SetAttr(Ino(99), 1, uid=1), Kind.NOT_FOUND)


def test_extended_attributes_are_set_replaced_and_removed(stage: Stage, w: Writer) -> None:
    ino = w.make("f")

    def values() -> dict[bytes, bytes]:
        return stage.tree.xattrs(wire.GetXattrs(stage.space, ino)).values

    refused(w, wire.SetXattr(ino, b"user.a", b"1", 2, 1), Kind.NO_ATTR)
    w.do(wire.SetXattr(ino, b"user.a", b"1", 1, 1), wire.SetXattr(ino, b"user.b", b"", 0, 1))
    refused(w, wire.SetXattr(ino, b"user.a", b"2", 1, 1), Kind.EXISTS)
    w.do(wire.SetXattr(ino, b"user.a", b"2", 2, 1))
    assert values() == {b"user.a": b"2", b"user.b": b""}
    assert stage.attr("f").has_xattrs

    w.do(wire.RemoveXattr(ino, b"user.a", 1))
    refused(w, wire.RemoveXattr(ino, b"user.a", 1), Kind.NO_ATTR)
    w.do(wire.RemoveXattr(ino, b"user.b", 1))
    assert values() == {}
    assert not stage.attr("f").has_xattrs


def test_extended_attributes_have_limits(w: Writer) -> None:
    ino = w.make("f")
    w.do(wire.SetXattr(ino, b"n" * 255, b"v" * 65_536, 0, 1))

    refused(w, wire.SetXattr(ino, b"n" * 256, b"", 0, 1), Kind.RANGE)
    refused(w, wire.SetXattr(ino, b"", b"", 0, 1), Kind.RANGE)
    refused(w, wire.SetXattr(ino, b"n", b"v" * 65_537, 0, 1), Kind.TOO_LARGE)
    refused(w, wire.SetXattr(ino, b"n", b"", 3, 1), Kind.INVALID)
    refused(w, wire.SetXattr(Ino(77), b"n", b"", 0, 1), Kind.NOT_FOUND)
