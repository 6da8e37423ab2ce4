"""The commit: once, in order, each operation for itself; and what it tells the feed."""

from __future__ import annotations

import stat
import threading

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Extent, Ino, SpaceId
from everfold.wire import Change
from nameserver.db import Database
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage, Writer


@pytest.fixture
def stage(database: Database) -> Stage:  # noqa: F811
    return Stage(database)


@pytest.fixture
def w(stage: Stage) -> Writer:
    return stage.writer()


def changes(stage: Stage, after: int) -> list[Change]:
    return [change for event in stage.events(after) for change in event.changes]


# ---------------------------------------------------------------- once


def test_a_retry_is_answered_as_the_first_time_and_applies_nothing(stage: Stage, w: Writer) -> None:
    make = w.making("f")
    ask = w.ask(make, make, wire.Unlink(ROOT, b"nothing", Ino(0), False, 1))
    first = stage.tree.commit(ask, w.author)
    again = stage.tree.commit(ask, w.author)

    assert (again.seq, again.results) == (first.seq, first.results)
    assert [r.kind for r in first.results] == ["", "exists", "not_found"]
    assert stage.seq == 1


def test_a_retry_is_numbered_as_the_first_time_whatever_others_did_since(stage: Stage) -> None:
    one, other = stage.writer(), stage.writer("other")
    ask = one.ask(one.making("f"))
    first = stage.tree.commit(ask, one.author)
    stage.tree.commit(other.ask(other.unlinking("f")), other.author)
    again = stage.tree.commit(ask, one.author)

    assert (again.seq, again.results) == (first.seq, first.results)
    assert stage.seq == first.seq + 1


def test_a_retry_of_a_batch_that_an_older_version_applied_is_answered(stage: Stage) -> None:
    one = stage.writer()
    ask = one.ask(one.making("f"))
    first = stage.tree.commit(ask, one.author)
    with stage.db.write() as cx:
        kept = wire.encode((ask.first_op, first.results))
        cx.run("UPDATE mount SET results = ? WHERE id = ?", kept, one.mount)

    assert stage.tree.commit(ask, one.author).results == first.results


def test_a_retry_in_another_grouping_applies_only_what_is_new(stage: Stage, w: Writer) -> None:
    makes = [w.making(name) for name in "abcd"]

    def send(first_op: int, *ops: wire.AnyOp) -> list[wire.Result]:
        ask = wire.Commit(stage.space, w.mount, first_op, list(ops))
        return stage.tree.commit(ask, w.author).results

    send(1, *makes[:2])
    results = send(2, *makes[1:])
    assert [r.kind for r in results] == ["", "", ""]
    assert [r.ino for r in results] == [m.ino for m in makes[1:]]
    assert send(1, *makes) == [wire.Result(), *results]
    assert stage.names() == [b"a", b"b", b"c", b"d"]


def test_each_mount_counts_its_own_operations(stage: Stage, w: Writer) -> None:
    w.make("a")
    stage.writer("m2").make("b")
    w.make("c")

    assert stage.names() == [b"a", b"b", b"c"]
    with stage.db.read() as cx:
        found = cx.all("SELECT id, author, last_op FROM mount ORDER BY id")
    assert found == [("m1", "ann", 2), ("m2", "ann", 1)]


def test_what_a_session_wrote_of_a_mount_stays(stage: Stage, w: Writer) -> None:
    with stage.db.write() as cx:
        cx.run(
            "INSERT INTO mount (space_id, id, author, device, device_id, label, last_op, results,"
            " seen_ns, is_read_only)"
            " VALUES (?, 'm1', 'ann', 'laptop', 'd7', 'host:/x', 4, ?, 1, 0)",
            stage.space,
            b"",
        )
    w.next_op = 4
    results = w.commit(w.making("seen before"), w.making("new"))

    assert [r.ino > 0 for r in results] == [False, True]
    assert stage.names() == [b"new"]
    with stage.db.read() as cx:
        assert cx.all("SELECT label, device_id, last_op FROM mount") == [("host:/x", "d7", 5)]


def test_a_refused_operation_counts_and_leaves_the_others_alone(stage: Stage, w: Writer) -> None:
    a, b = w.making("a"), w.making("b")
    results = w.commit(a, wire.Unlink(ROOT, b"x", Ino(0), False, 1), b)

    assert [r.kind for r in results] == ["", "not_found", ""]
    assert stage.names() == [b"a", b"b"]
    retry = wire.Commit(stage.space, w.mount, 2, [w.unlinking("a")])
    assert stage.tree.commit(retry, w.author).results == [results[1]]
    assert stage.names() == [b"a", b"b"]


def test_a_batch_of_refusals_is_remembered_but_is_no_commit(stage: Stage, w: Writer) -> None:
    op = wire.Unlink(ROOT, b"x", Ino(0), False, 1)
    w.commit(op, op)

    assert stage.seq == 0
    assert stage.events() == []
    stage.writer("m2").make("x")
    retry = wire.Commit(stage.space, w.mount, 1, [op, op])
    assert [r.kind for r in stage.tree.commit(retry, w.author).results] == ["not_found"] * 2


def test_nonsense_around_the_operations_is_refused(stage: Stage, w: Writer) -> None:
    make = w.making("f")
    for ask in (
        wire.Commit(stage.space, w.mount, 0, [make]),
        wire.Commit(stage.space, w.mount, -3, [make]),
        wire.Commit(stage.space, w.mount, 1 << 63, [make]),
        wire.Commit(stage.space, "", 1, [make]),  # type: ignore[arg-type]
        wire.Commit(stage.space, w.mount, 1, [make] * 50_001),
    ):
        with pytest.raises(EverfoldError) as refused:
            stage.tree.commit(ask, w.author)
        assert refused.value.kind is Kind.INVALID
    with pytest.raises(EverfoldError) as refused:
        stage.tree.commit(wire.Commit(SpaceId(99), w.mount, 1, [make]), w.author)
    assert refused.value.kind is Kind.NOT_FOUND


def test_blocks_that_were_stored_are_recorded_even_with_a_retry(stage: Stage, w: Writer) -> None:
    stored = stage.put(b"bytes")
    stage.tree.commit(w.ask(stored=[stored]), w.author)

    assert stage.ledger.short(None, stage.space, {stored.block}, 2) == set()  # type: ignore[arg-type]


# ---------------------------------------------------------------- numbers


def test_a_batch_is_one_commit_when_nothing_would_be_lost(stage: Stage, w: Writer) -> None:
    ops = [w.making(f"f{n}") for n in range(20)]
    w.do(*ops, *(wire.SetAttr(op.ino, 1, mode=0o600) for op in ops))

    assert stage.seq == 1
    with stage.db.read() as cx:
        assert cx.one("SELECT COUNT(*) FROM inode WHERE space_id = ?", stage.space) == (21,)


def test_two_saves_in_a_batch_are_two_commits(stage: Stage, w: Writer) -> None:
    make = w.making("f")
    one, stored = w.writing(make.ino, b"one")
    two, more = w.writing(make.ino, b"two")
    w.do(make, one, two, stored=stored + more)

    assert stage.seq == 2
    assert stage.content("f", stage.seq) == b"two"
    assert stage.content("f", stage.events()[0].seq) == b"one"


def test_commit_times_rise_even_when_the_clock_does_not(stage: Stage, w: Writer) -> None:
    w.make("a")
    stage.clock.move(-3600)
    w.make("b")
    w.make("c")

    times = [event.at_ns for event in stage.events()]
    assert times == sorted(set(times))


def test_reserved_numbers_are_handed_out_once(stage: Stage) -> None:
    first = stage.tree.reserve(wire.Reserve(stage.space, 10))
    second = stage.tree.reserve(wire.Reserve(stage.space, 1))

    assert (first.first, first.count) == (2, 10)
    assert second.first == 12
    for count in (0, -1, 10**9):
        with pytest.raises(EverfoldError):
            stage.tree.reserve(wire.Reserve(stage.space, count))


def test_two_writers_at_once_never_lose_or_share_a_number(stage: Stage) -> None:
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            w = stage.writer(name)
            for n in range(15):
                w.make(f"{name}-{n}")
        except BaseException as err:
            failed.append(err)
            raise
        finally:
            stage.db.close()

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not failed
    assert len(stage.names()) == 45
    assert [e.seq for e in stage.events()] == list(range(1, 46))


def test_a_name_raced_for_is_made_exactly_once(stage: Stage) -> None:
    won: list[str] = []

    def race(name: str) -> None:
        w = stage.writer(name)
        for n in range(15):
            ino = w.fresh()
            op = wire.Make(ROOT, b"lock%d" % n, ino, stat.S_IFREG | 0o600, 0, 0, 1)
            if not w.commit(op)[0].kind:
                won.append(f"{n}")
        stage.db.close()

    threads = [threading.Thread(target=race, args=(f"t{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(won, key=int) == [str(n) for n in range(15)]


# ---------------------------------------------------------------- what the feed tells


def test_every_commit_tells_who_made_it_and_what_it_changed(stage: Stage, w: Writer) -> None:
    ino = w.make("f")

    [event] = stage.events()
    assert (event.user, event.device, event.mount) == ("ann", "laptop", "m1")
    assert event.changes == [Change("entry", ino, ROOT, b"f")]


def test_a_rename_tells_both_ends_and_what_was_replaced(stage: Stage, w: Writer) -> None:
    directory = w.mkdir("d")
    a, b = w.make("a"), w.make("d/b")
    before = stage.seq
    w.rename("a", "d/b")

    assert changes(stage, before) == [
        Change("gone", b),
        Change("entry", Ino(0), ROOT, b"a"),
        Change("entry", a, directory, b"b"),
        Change("attr", a),
    ]


def test_of_several_changes_of_a_name_the_feed_tells_the_last(stage: Stage, w: Writer) -> None:
    make = w.making("a", stat.S_IFDIR | 0o755)
    w.do(make, wire.Rename(ROOT, b"a", ROOT, b"b", 1), wire.Rename(ROOT, b"b", ROOT, b"a", 1))

    told = {(c.parent, c.name): c.ino for c in changes(stage, 0) if c.what == "entry"}
    assert told == {(ROOT, b"a"): make.ino, (ROOT, b"b"): 0}


def test_links_and_unlinks_tell_that_attributes_changed(stage: Stage, w: Writer) -> None:
    ino = w.make("a")
    before = stage.seq
    w.link("a", "b")
    w.unlink("a")
    w.unlink("b")

    assert changes(stage, before) == [
        Change("entry", ino, ROOT, b"b"),
        Change("attr", ino),
        Change("entry", Ino(0), ROOT, b"a"),
        Change("attr", ino),
        Change("entry", Ino(0), ROOT, b"b"),
        Change("gone", ino),
    ]


def test_a_write_tells_its_ranges_and_a_cut_tells_all_behind_it(stage: Stage, w: Writer) -> None:
    ino = w.save("f", b"0123456789" * 10)
    stored = stage.put(b"xy")

    def told(**values: object) -> list[tuple[str, int, int]]:
        before = stage.seq
        form: dict[str, object] = {"size": 100, "extents": [], **values}
        w.do(wire.Write(ino, 9, mtime_ns=1, time_ns=1, **form), stored=[stored])  # type: ignore[arg-type]
        return [(c.what, c.offset, c.length) for c in changes(stage, before)]

    pieces = [Extent(20, 2, stored.block), Extent(50, 2, stored.block)]
    assert told(extents=pieces, holes=[(30, 5)]) == [
        ("data", 20, 2), ("data", 50, 2), ("data", 30, 5)
    ]  # fmt: skip
    many = [Extent(n * 3, 2, stored.block) for n in range(20)]
    assert told(extents=many) == [("data", 0, 59)]
    assert told(size=40) == [("data", 40, 0)]
    assert told(size=60, cut=35, extents=[Extent(10, 2, stored.block)]) == [("data", 10, 0)]
    assert told(size=80) == [("attr", 0, 0)]


def test_attributes_and_extended_ones_are_told_alike(stage: Stage, w: Writer) -> None:
    ino = w.make("f")
    before = stage.seq
    w.do(wire.SetAttr(ino, 1, mode=0o600), wire.SetXattr(ino, b"user.a", b"", 0, 1))

    assert changes(stage, before) == [Change("attr", ino)]
