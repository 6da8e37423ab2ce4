"""Bytes and versions: what a write changes, when it is a version, and whose wins."""

from __future__ import annotations

import itertools
import random
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, ROOT, SIZE_MAX, BlockId, Extent, Ino
from nameserver.db import Database
from nameserver.tree import extents
from nameserver.tree.extents import Patch
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage, Writer

MIB = 1 << 20


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


@pytest.fixture
def w(stage: Stage) -> Writer:
    return stage.writer()


def write(
    w: Writer, ino: Ino, size: int, pieces: list[tuple[int, bytes]], **more: object
) -> wire.Result:
    """Commit a Write of some bytes at some offsets; return its result, failed or not."""
    stored = [w.stage.put(data) for _, data in pieces]
    laid = [Extent(at, len(data), s.block) for (at, data), s in zip(pieces, stored, strict=True)]
    values = {"base": w.stage.tree.attrs(wire.GetAttrs(w.stage.space, [ino])).attrs[0].version,
              **more}  # fmt: skip
    op = wire.Write(ino, values.pop("base"), size, w.now, w.now, laid, **values)  # type: ignore[arg-type]
    return w.commit(op, stored=stored)[0]


def rows(stage: Stage, where: str = "died IS NULL") -> list[tuple[int, int]]:
    with stage.db.read() as cx:
        found = cx.all(f"SELECT off, length FROM extent WHERE {where} ORDER BY off, born")
    return [(row[0], row[1]) for row in found]


# ---------------------------------------------------------------- bytes


def test_a_write_in_the_middle_splits_the_extent_and_the_past_keeps_it(
    stage: Stage, w: Writer
) -> None:
    ino = w.save("f", b"0123456789")
    then = stage.seq
    write(w, ino, 10, [(3, b"xyz")])

    assert stage.content("f") == b"012xyz6789"
    assert rows(stage) == [(0, 3), (3, 3), (6, 4)]
    assert stage.content("f", then) == b"0123456789"
    assert stage.attr("f").allocated == 10


def test_cut_holes_extents_and_size_apply_in_this_order(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"0123456789")
    write(w, ino, 9, [(4, b"ab"), (7, b"cdef")], cut=8, holes=[(1, 2), (4, 1)])

    assert stage.content("f") == b"0\0\x003ab6cd"
    assert stage.attr("f").allocated == 7


def test_growing_again_after_a_cut_shows_zeros_not_the_old_bytes(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"secret and more")
    write(w, ino, 10, [], cut=6)

    assert stage.content("f") == b"secret\0\0\0\0"
    write(w, ino, 3, [])
    write(w, ino, 6, [])
    assert stage.content("f") == b"sec\0\0\0"


def test_writes_far_apart_in_a_huge_sparse_file_touch_only_their_places(
    stage: Stage, w: Writer
) -> None:
    ino = w.make("f")
    far = 1 << 60
    write(w, ino, far + 4, [(0, b"head"), (far, b"tail")])
    write(w, ino, far + 4, [(2, b"__"), (100 * MIB, b"mid"), (far + 1, b"__")])

    asked = stage.tree.extents(wire.GetExtents(stage.space, ino))
    assert [(e.offset, e.length) for e in asked.extents] == [
        (0, 2), (2, 2), (100 * MIB, 3), (far, 1), (far + 1, 2), (far + 3, 1)
    ]  # fmt: skip
    near = stage.tree.extents(wire.GetExtents(stage.space, ino, 100 * MIB + 2, 1))
    assert [e.offset for e in near.extents] == [100 * MIB]
    assert near.size == far + 4


def test_many_scattered_pieces_in_one_write_are_what_they_are_in_many(
    stage: Stage, w: Writer
) -> None:
    rnd, size = random.Random(5), 4 * MIB
    content = bytearray(rnd.randbytes(size))
    ino = w.save("f", bytes(content))
    for round_ in range(4):
        places = rnd.sample(range(0, size, 8192), 60)
        pieces = [(at, rnd.randbytes(rnd.choice((100, 4096, 8192, 30_000)))) for at in places]
        holes = [(rnd.randrange(size), 50_000) for _ in range(round_)]
        for at, length in holes:
            content[at : at + length] = bytes(min(length, size - at))
        for at, data in pieces:
            content[at : at + len(data)] = data[: size - at]
        write(w, ino, size, [(at, data[: size - at]) for at, data in pieces], holes=holes)

        assert stage.content("f") == content
        live = rows(stage)
        assert stage.attr("f").allocated == sum(length for _, length in live)
        assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(live))


def test_extents_are_asked_by_range_and_tell_where_their_blocks_are(
    stage: Stage, w: Writer
) -> None:
    ino = w.make("f")
    write(w, ino, 2 * BLOCK_MAX + 5, [(n * BLOCK_MAX, bytes([n]) * 5) for n in range(3)])

    got = stage.tree.extents(wire.GetExtents(stage.space, ino, BLOCK_MAX + 4, BLOCK_MAX - 3))
    assert [e.offset for e in got.extents] == [BLOCK_MAX, 2 * BLOCK_MAX]
    assert set(got.where) == {e.block for e in got.extents}
    assert set(got.where.values().__iter__().__next__()) == {"dn1", "dn2"}
    assert not stage.tree.extents(wire.GetExtents(stage.space, ino, 10, 10)).extents


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=3),
            st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=2),
            st.none() | st.integers(0, 40),
            st.integers(0, 45),
        ),
        max_size=5,
    )
)
def test_a_patch_does_to_extents_what_it_does_to_bytes(
    patches: list[tuple[list[tuple[int, int]], list[tuple[int, int]], int | None, int]],
) -> None:
    content, pieces, counter = bytearray(), extents.patched((), Patch(0, [], [], None)), 0
    for spans, holes, cut, size in patches:
        laid = []
        for offset, length in spans:
            counter += 1
            laid.append(Extent(offset, length, BlockId(bytes([counter]) * 32)))
        extents.lay(pieces, Patch(size, laid, holes, cut))
        content = content[: len(content) if cut is None else cut].ljust(64, b"\0")
        for offset, length in holes:
            content[offset : offset + length] = bytes(length)
        for extent in laid:
            content[extent.offset : extent.end] = extent.block[:1] * extent.length
        content = content[:size]

        shown = bytearray(size)
        for piece in pieces:
            shown[piece.offset : piece.end] = piece.source[:1] * piece.length
        assert shown == content


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"size": -1}, Kind.INVALID),
        ({"size": SIZE_MAX + 1}, Kind.TOO_LARGE),
        ({"cut": -1}, Kind.INVALID),
        ({"holes": [(-1, 5)]}, Kind.INVALID),
        ({"holes": [(0, -5)]}, Kind.INVALID),
        ({"holes": [(SIZE_MAX, 5)]}, Kind.TOO_LARGE),
        ({"mode": 0o10000}, Kind.INVALID),
        ({"base": -1}, Kind.INVALID),
        ({"mtime_ns": 1 << 63}, Kind.INVALID),
        ({"extents": [Extent(-1, 1, BlockId(b"b" * 32))]}, Kind.INVALID),
        ({"extents": [Extent(0, 0, BlockId(b"b" * 32))]}, Kind.INVALID),
        ({"extents": [Extent(0, 5, BlockId(b"short"))]}, Kind.INVALID),
        ({"extents": [Extent(0, 5, BlockId(b"b" * 32), -1)]}, Kind.INVALID),
        ({"extents": [Extent(0, BLOCK_MAX, BlockId(b"b" * 32), 1)]}, Kind.INVALID),
        ({"extents": [Extent(SIZE_MAX, 1, BlockId(b"b" * 32))]}, Kind.TOO_LARGE),
    ],
)
def test_bytes_that_cannot_be_are_refused_and_change_nothing(
    stage: Stage, w: Writer, wrong: dict[str, object], kind: Kind
) -> None:
    ino = w.save("f", b"text")
    before = stage.seq
    values: dict[str, object] = {
        "ino": ino, "base": 1, "size": 4, "mtime_ns": 1, "time_ns": 1, "extents": [], **wrong
    }  # fmt: skip

    assert w.commit(wire.Write(**values))[0].kind == kind.value  # type: ignore[arg-type]
    assert (stage.seq, stage.content("f")) == (before, b"text")


def test_only_live_regular_files_are_written_sealed_and_read(stage: Stage, w: Writer) -> None:
    directory = w.mkdir("d")
    fifo = w.make("p", stat.S_IFIFO | 0o600)
    for ino, kind in ((directory, Kind.IS_DIR), (fifo, Kind.INVALID), (Ino(99), Kind.NOT_FOUND)):
        op = wire.Write(ino, 0, 0, 1, 1, [])
        assert [r.kind for r in w.commit(op, wire.Seal(ino, 1))] == [kind.value] * 2


def test_a_batch_with_a_block_that_is_not_on_enough_nodes_is_refused_whole(
    stage: Stage, w: Writer
) -> None:
    good, bad = w.make("good"), w.make("bad")
    unsafe, safe = stage.put(b"on one node", copies=1), stage.put(b"on two")
    ops = [
        wire.Write(ino, 0, stored.size, 1, 1, [Extent(0, stored.size, stored.block)])
        for ino, stored in ((bad, unsafe), (good, safe))
    ]
    with pytest.raises(EverfoldError) as err:
        w.commit(*ops, stored=[unsafe, safe])

    assert err.value.kind is Kind.UNAVAILABLE
    assert (stage.content("good"), stage.content("bad")) == (b"", b"")


def test_a_write_over_the_quota_is_refused_and_freeing_makes_room(
    database: Database,  # noqa: F811
) -> None:
    stage = Stage(database, quota=10)
    w = stage.writer()
    w.save("f", b"123456")
    g = w.make("g")

    assert write(w, g, 5, [(0, b"12345")]).kind == Kind.QUOTA.value
    w.save("f", b"1")
    assert not write(w, g, 5, [(0, b"12345")]).kind
    usage = stage.tree.usage(wire.GetUsage(stage.space), free=3, capacity=4)
    assert (usage.live, usage.quota, usage.free, usage.capacity) == (6, 10, 3, 4)


def test_what_only_history_names_is_counted(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"0123456789")
    write(w, ino, 10, [(3, b"xyz")])

    usage = stage.tree.usage(wire.GetUsage(stage.space))
    assert (usage.live, usage.history, usage.inodes) == (10, 3, 2)
    w.unlink("f")
    usage = stage.tree.usage(wire.GetUsage(stage.space))
    assert (usage.live, usage.history, usage.inodes) == (0, 13, 1)


# ---------------------------------------------------------------- versions


def test_an_open_version_is_replaced_by_the_next_write_of_its_mount(
    stage: Stage, w: Writer
) -> None:
    ino = w.make("db")
    for text in (b"one", b"two", b"three"):
        write(w, ino, len(text), [(0, text)], is_sealed=False)

    assert stage.story("db") == [(1, b"three")]
    assert [v.sealed for v in stage.versions("db")] == [False]
    w.do(wire.Seal(ino, w.now))
    assert [v.sealed for v in stage.versions("db")] == [True]
    write(w, ino, 4, [(0, b"four")])
    assert stage.story("db") == [(1, b"three"), (2, b"four")]


def test_a_sealed_write_completes_the_open_version(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    write(w, ino, 3, [(0, b"abc")], is_sealed=False)
    result = write(w, ino, 6, [(3, b"def")])

    assert result.version == 1
    assert stage.story("f") == [(1, b"abcdef")]
    assert stage.versions("f")[0].sealed


def test_the_open_version_of_another_mount_is_completed_first(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    write(w, ino, 3, [(0, b"one")], is_sealed=False)
    result = write(stage.writer("m2"), ino, 3, [(0, b"two")], is_sealed=False)

    assert result == wire.Result(ino=ino, version=2)
    assert [(v.number, v.sealed, v.conflict) for v in stage.versions("f")] == [
        (1, True, False), (2, False, False)
    ]  # fmt: skip


def test_a_seal_by_another_mount_leaves_the_version_open(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    write(w, ino, 3, [(0, b"one")], is_sealed=False)
    stage.writer("m2").do(wire.Seal(ino, w.now))

    assert not stage.versions("f")[0].sealed
    w.do(wire.Seal(ino, w.now), wire.Seal(ino, w.now))
    assert stage.versions("f")[0].sealed


def test_versions_that_a_mount_left_open_can_be_sealed_all_at_once(stage: Stage, w: Writer) -> None:
    for name in ("a", "b"):
        write(w, w.make(name), 1, [(0, b"x")], is_sealed=False)
    write(stage.writer("m2"), w.make("c"), 1, [(0, b"y")], is_sealed=False)
    with stage.db.write() as cx:
        sealed = stage.tree.seal_all(cx, stage.space, w.mount)

    assert sealed == 2
    assert [stage.versions(name)[0].sealed for name in "abc"] == [True, True, False]


def test_a_write_that_changes_no_byte_adds_no_version_but_sets_the_time(
    stage: Stage, w: Writer
) -> None:
    ino = w.save("f", b"text")
    stage.clock.move(9)
    result = write(w, ino, 4, [(0, b"text")])

    assert result.version == 1
    assert len(stage.versions("f")) == 1
    assert stage.attr("f").mtime_ns == stage.versions("f")[0].mtime_ns == w.now
    assert stage.attr("f").content < stage.seq


def test_a_file_closed_without_a_byte_has_an_empty_first_version(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    assert stage.versions("f") == []
    result = w.do(wire.Seal(ino, w.now))[0]

    assert result.version == 1
    assert stage.story("f") == [(1, b"")]
    assert stage.attr("f").version == 1


def test_a_write_takes_setuid_away_when_told(stage: Stage, w: Writer) -> None:
    ino = w.make("f", stat.S_IFREG | 0o4755)
    write(w, ino, 1, [(0, b"x")], mode=0o755)

    assert stage.attr("f").mode == stat.S_IFREG | 0o755


# ---------------------------------------------------------------- conflicts


def test_a_write_over_an_unseen_version_marks_that_as_a_conflict(stage: Stage, w: Writer) -> None:
    other = stage.writer("m2", "bob", "desktop")
    ino = w.save("f", b"base")
    write(other, ino, 6, [(0, b"theirs")], base=1)
    result = write(w, ino, 4, [(0, b"mine")], base=1, cut=0)

    assert result == wire.Result(ino=ino, version=3, conflict=True)
    assert [(v.number, v.conflict, v.current) for v in stage.versions("f")] == [
        (1, False, False), (2, True, False), (3, False, True)
    ]  # fmt: skip
    assert stage.story("f") == [(1, b"base"), (2, b"theirs"), (3, b"mine")]


def test_a_mount_is_never_in_conflict_with_itself(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"base")
    for text in (b"1", b"2"):
        assert not write(w, ino, 1, [(0, text)], base=0).conflict

    assert not any(v.conflict for v in stage.versions("f"))


def test_a_late_write_over_an_unseen_version_is_kept_beside_the_current_one(
    stage: Stage, w: Writer
) -> None:
    other = stage.writer("m2", "bob", "desktop")
    ino = w.save("f", b"0123456789")
    write(other, ino, 6, [(0, b"theirs")], base=1, cut=0)
    result = write(w, ino, 10, [(4, b"late")], base=1, is_late=True)

    assert (result.version, result.conflict) == (3, True)
    assert stage.content("f") == b"theirs"
    assert stage.story("f") == [(1, b"0123456789"), (2, b"theirs"), (3, b"0123late89")]
    assert [(v.conflict, v.current, v.author) for v in stage.versions("f")] == [
        (False, False, "ann"), (False, True, "bob"), (True, False, "ann")
    ]  # fmt: skip
    assert stage.attr("f").version == 2


def test_numbers_go_on_after_a_conflict_that_was_kept_aside(stage: Stage, w: Writer) -> None:
    other = stage.writer("m2")
    ino = w.save("f", b"base")
    write(other, ino, 6, [(0, b"theirs")], base=1)
    write(w, ino, 4, [(0, b"late")], base=1, is_late=True)
    write(other, ino, 6, [(0, b"newest")], base=2)
    w.unlink("f")
    w.save("f", b"another file")

    assert stage.story("f") == [
        (1, b"base"), (2, b"theirs"), (3, b"late"), (4, b"newest"), (5, b"another file")
    ]  # fmt: skip


def test_late_writes_over_one_base_build_one_conflict(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"base....")
    write(stage.writer("m2"), ino, 6, [(0, b"theirs")], base=1)
    write(w, ino, 8, [(4, b"AB")], base=1, is_late=True, is_sealed=False)
    write(w, ino, 8, [(6, b"CD")], base=1, is_late=True, is_sealed=False)
    w.do(wire.Seal(ino, w.now))
    write(w, ino, 10, [(8, b"EF")], base=1, is_late=True)

    conflicts = [v for v in stage.versions("f") if v.conflict]
    assert [stage.read(v.ino, v.seq) for v in conflicts] == [b"baseABCD", b"baseABCDEF"]
    assert all(v.sealed for v in conflicts)
    assert stage.content("f").startswith(b"theirs")


def test_a_late_write_whose_base_is_current_is_an_ordinary_one(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"base")
    result = write(stage.writer("m2"), ino, 4, [(0, b"late")], base=1, is_late=True)

    assert result == wire.Result(ino=ino, version=2)
    assert stage.content("f") == b"late"


def test_a_late_write_of_what_is_there_already_is_no_conflict(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"base")
    write(stage.writer("m2"), ino, 4, [(0, b"same")], base=1)
    result = write(w, ino, 4, [(0, b"same")], base=1, is_late=True)

    assert result == wire.Result(ino=ino, version=2)
    assert len(stage.versions("f")) == 2


def test_a_conflict_that_was_kept_aside_can_be_restored(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"base")
    write(stage.writer("m2"), ino, 4, [(0, b"them")], base=1)
    write(w, ino, 4, [(0, b"late")], base=1, is_late=True)
    w.do(wire.Restore(ROOT, b"f", 3, w.fresh(), w.now))
    w.unlink("f")
    w.do(wire.Restore(ROOT, b"f", 3, w.fresh(), w.now))

    assert stage.content("f") == b"late"


def test_no_question_about_now_finds_the_hidden_bytes_of_a_conflict(
    stage: Stage, w: Writer
) -> None:
    ino = w.save("f", b"base")
    write(stage.writer("m2"), ino, 4, [(0, b"them")], base=1)
    write(w, ino, 4, [(0, b"late")], base=1, is_late=True)
    hidden = stage.versions("f")[-1].ino
    w.save("g", b"the next commit")

    assert not stage.tree.attrs(wire.GetAttrs(stage.space, [hidden])).attrs
    assert stage.read(hidden, stage.versions("f")[-1].seq) == b"late"
    assert w.commit(wire.Write(hidden, 0, 0, 1, 1, []))[0].kind == Kind.NOT_FOUND.value


def test_a_late_write_goes_on_from_what_its_own_mount_wrote_over_the_same_base(
    stage: Stage, w: Writer
) -> None:
    ino = w.save("f", b"base....")
    other = stage.writer("m2")
    write(other, ino, 8, [(4, b"AB")], base=1)
    write(w, ino, 8, [(0, b"THEM")], base=2, cut=0)
    write(other, ino, 8, [(6, b"CD")], base=1, is_late=True)

    assert stage.story("f")[1:] == [(2, b"baseAB.."), (3, b"THEM\0\0\0\0"), (4, b"baseABCD")]
    assert stage.attr("f").version == 3


def late(w: Writer, ino: Ino, size: int, at: int, data: bytes, **more: object) -> wire.Result:
    """Commit a late write of a file that may be gone, over its first version."""
    stored = w.stage.put(data)
    laid = [Extent(at, len(data), stored.block)]
    op = wire.Write(ino, 1, size, w.now, w.now, laid, is_late=True, **more)  # type: ignore[arg-type]
    return w.commit(op, stored=[stored])[0]


def test_a_late_write_to_a_deleted_file_is_kept_in_the_history_of_its_name(
    stage: Stage, w: Writer
) -> None:
    other = stage.writer("m2", "bob", "desktop")
    ino = w.save("f", b"base....")
    w.rename("f", "g")
    w.unlink("g")
    result = late(other, ino, 8, 4, b"late")

    assert (result.kind, result.version, result.conflict) == ("", 2, True)
    assert stage.story("g") == [(1, b"base...."), (2, b"baselate")]
    assert [(v.author, v.conflict) for v in stage.versions("g")] == [("ann", False), ("bob", True)]
    assert stage.names() == []
    w.save("g", b"a new file")
    assert stage.story("g")[2] == (3, b"a new file")


def test_a_late_write_to_a_replaced_file_is_a_conflict_of_what_replaced_it(
    stage: Stage, w: Writer
) -> None:
    other = stage.writer("m2")
    ino = w.save("f", b"base....")
    w.save("tmp", b"theirs")
    w.rename("tmp", "f")
    late(other, ino, 8, 4, b"AB", is_sealed=False)
    late(other, ino, 8, 6, b"CD", is_sealed=False)
    assert [v.sealed for v in stage.versions("f")] == [True, True, False]
    other.do(wire.Seal(ino, other.now))
    late(other, ino, 9, 8, b"E")
    w.save("f", b"theirs again")

    assert stage.story("f") == [
        (1, b"base...."), (2, b"theirs"), (3, b"baseABCD"), (4, b"baseABCDE"), (5, b"theirs again")
    ]  # fmt: skip
    assert all(v.sealed for v in stage.versions("f"))


def test_a_late_write_beside_a_new_file_that_is_not_written_yet_is_kept(
    stage: Stage, w: Writer
) -> None:
    ino = w.save("f", b"base....")
    w.unlink("f")
    fresh = w.make("f")
    late(stage.writer("m2"), ino, 8, 4, b"late")
    assert stage.story("f") == [(1, b"base...."), (2, b"baselate")]
    assert not any(v.current for v in stage.versions("f"))
    result = write(w, fresh, 5, [(0, b"first")])

    assert not result.conflict
    assert stage.story("f") == [(1, b"base...."), (2, b"baselate"), (3, b"first")]
    w.unlink("f")
    w.save("f", b"next")
    assert stage.story("f")[3] == (4, b"next")


def test_a_late_write_that_fits_nowhere_is_refused(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"base....")
    w.unlink("f")
    w.mkdir("f")
    assert late(w, ino, 8, 4, b"late").kind == Kind.NOT_FOUND.value
    assert late(w, Ino(999), 8, 4, b"late").kind == Kind.NOT_FOUND.value
    w.rmdir("f")
    w.save("f", b"other")
    w.rename("f", "away")
    w.save("away", b"other, elsewhere")
    before = stage.seq
    assert late(w, ino, 8, 4, b"late").kind == Kind.NOT_FOUND.value
    assert stage.seq == before
