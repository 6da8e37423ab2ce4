"""The service as callers see it: who may what, sessions, figures, fsck."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Extent, Ino, Lock, LockKind, LockType, MountId, NodeId, Seq
from everfold.services import NameService
from everfold.tokens import Signer
from nameserver.db import Database
from tests.harness.service import KEYS, PASSWORD, Desk

M1 = MountId("m1")


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(database)
    yield desk
    desk.service.stop()


def fails(kind: Kind) -> pytest.RaisesExc[EverfoldError]:
    return pytest.RaisesExc(EverfoldError, check=lambda err: err.kind is kind)


def save(desk: Desk, name: bytes, on: tuple[str, ...] = ("dn1", "dn2")) -> tuple[Ino, Extent]:
    """Make a file of 1000 bytes as a mount would."""
    caller, session = desk.caller(), desk.mount()
    ino = caller.reserve(wire.Reserve(session.space, 1)).first
    extent = Extent(0, 1000, desk.store(session.space, on))
    stored = wire.Stored(extent.block, 1000, [NodeId(n) for n in on])
    now = desk.clock.time_ns()
    ops: list[wire.AnyOp] = [
        wire.Make(ROOT, name, ino, stat.S_IFREG | 0o644, 0, 0, now),
        wire.Write(ino, 0, 1000, now, now, [extent]),
    ]
    first = session.last_op + 1
    done = caller.commit(wire.Commit(session.space, M1, first, ops, [stored]))
    for result in done.results:
        result.check()
    return ino, extent


def lock(space: Any, mount: str = "m1") -> wire.SetLock:
    whole = Lock(ROOT, LockKind.FLOCK, LockType.WRITE, 1, 0, 100, 1)
    return wire.SetLock(space, MountId(mount), whole)


# ---------------------------------------------------------------- who may what


def asks(space: Any) -> dict[str, Any]:
    """Return a question of every verb about a space."""
    return {
        "lookup": wire.Lookup(space, ROOT, b"a"),
        "listdir": wire.ListDir(space, ROOT),
        "attrs": wire.GetAttrs(space, [ROOT]),
        "extents": wire.GetExtents(space, ROOT),
        "list-many": wire.ListMany(space, [ROOT]),
        "many-extents": wire.GetManyExtents(space, [ROOT]),
        "xattrs": wire.GetXattrs(space, ROOT),
        "commit": wire.Commit(space, M1, 1, []),
        "reserve": wire.Reserve(space, 1),
        "plan": wire.Plan(space, []),
        "locate": wire.Locate(space, []),
        "report-bad": wire.ReportBad(space, b"x" * 32, NodeId("dn1"), "corrupt"),  # type: ignore[arg-type]
        "feed": wire.FeedPoll(space, M1, Seq(0), 0.0),
        "set-lock": lock(space),
        "test-lock": wire.TestLock(space, M1, lock(space).lock),
        "drop-locks": wire.DropLocks(space, M1),
        "take-locks": wire.TakeLocks(space, M1, 1),
        "give-locks": wire.GiveLocks(space, M1, []),
        "teams": wire.GetTeams(space),
        "history": wire.GetHistory(space, ROOT, b"a"),
        "history-names": wire.GetHistoryNames(space, ROOT),
        "resolve": wire.ResolvePath(space, [b"a"]),
        "lease": wire.TakeLease(space, M1),
        "usage": wire.GetUsage(space),
        "bye": wire.Bye(space, M1),
    }


def test_every_verb_is_asked_here() -> None:
    assert set(asks(1)) | {"session", "heartbeat"} == set(wire.CALLS)


@pytest.mark.parametrize("verb", sorted(asks(1)))
def test_of_another_users_space_one_does_not_learn_that_it_exists(desk: Desk, verb: str) -> None:
    mine = desk.mount()
    stranger = desk.caller(desk.admin)
    method: Callable[[Any], Any] = getattr(stranger, verb.replace("-", "_"))

    said = []
    for space in (mine.space, 987_654):
        with fails(Kind.NOT_FOUND) as caught:
            method(asks(space)[verb])
        said.append(caught.value.message)

    assert said[0] == said[1]


def test_a_caller_is_a_name_service(desk: Desk) -> None:
    caller: NameService = desk.caller()

    assert caller.lookup(wire.Lookup(desk.mount().space, ROOT, b"a")).entry is None


def test_a_node_cannot_beat_for_another(desk: Desk) -> None:
    beat = desk.nodes["dn1"].report()
    signer = Signer(KEYS.cluster_secret, desk.clock)

    assert desk.service.heartbeat(signer.mint("node", 60, sub="dn1"), beat).beat_s > 0
    with fails(Kind.FORBIDDEN):
        desk.service.heartbeat(signer.mint("node", 60, sub="dn2"), beat)
    with fails(Kind.UNAUTHENTICATED):
        desk.service.heartbeat(signer.mint("blocks", 60, space=1), beat)
    with fails(Kind.UNAUTHENTICATED):
        desk.service.heartbeat(Signer("another", desk.clock).mint("node", 60, sub="dn1"), beat)


# ---------------------------------------------------------------- sessions


def test_a_mount_learns_where_it_stopped(desk: Desk) -> None:
    save(desk, b"a")

    session = desk.mount()

    assert (session.seq, session.last_op) == (1, 2)
    assert [node.id for node in session.nodes] == ["dn1", "dn2", "dn3"]
    claims = Signer(KEYS.cluster_secret, desk.clock).verify(session.block_token, "blocks")
    assert claims["space"] == session.space


def test_an_unknown_space_and_an_impossible_mount_are_refused(desk: Desk) -> None:
    with fails(Kind.NOT_FOUND):
        desk.caller().session(wire.Hello(M1, "test", space="root"))
    for mount in ("", "m" * 200, "a\0b"):
        with fails(Kind.INVALID):
            desk.caller().session(wire.Hello(MountId(mount), "test"))


def test_a_mount_that_never_said_hello_has_no_feed(desk: Desk) -> None:
    space = desk.mount().space

    with fails(Kind.STALE):
        desk.caller().feed(wire.FeedPoll(space, MountId("other"), Seq(0), 0.0))


def test_a_read_only_mount_commits_nothing(desk: Desk) -> None:
    caller = desk.caller()
    session = caller.session(wire.Hello(M1, "test", read_only=True))

    with fails(Kind.READ_ONLY):
        caller.commit(wire.Commit(session.space, M1, 1, []))


def test_the_locks_of_a_silent_mount_fall(desk: Desk) -> None:
    space = desk.mount(name="m1").space
    desk.mount(name="m2")
    desk.caller().set_lock(lock(space, "m1"))
    with fails(Kind.WOULD_BLOCK):
        desk.caller().set_lock(lock(space, "m2"))

    for _ in range(40):
        desk.clock.move(1.0)
        desk.caller().feed(wire.FeedPoll(space, MountId("m2"), Seq(0), 0.0))
        desk.service.driver.tick()

    desk.caller().set_lock(lock(space, "m2"))
    assert desk.service.status.system()["mounts"] == 1


def test_bye_lets_go_of_locks_at_once(desk: Desk) -> None:
    space = desk.mount(name="m1").space
    desk.mount(name="m2")
    desk.caller().set_lock(lock(space, "m1"))

    desk.caller().bye(wire.Bye(space, MountId("m1")))

    desk.caller().set_lock(lock(space, "m2"))


# ---------------------------------------------------------------- figures


def test_usage_counts_files_and_what_the_cluster_can_still_take(desk: Desk) -> None:
    save(desk, b"a")

    usage = desk.caller().usage(wire.GetUsage(desk.mount().space))

    assert (usage.live, usage.inodes) == (1000, 2)
    assert usage.free == 3 * (1 << 40) // 2


def test_the_first_start_makes_an_admin_whose_password_works(database: Database) -> None:
    service = Desk(database).service
    with database.write() as cx:
        cx.run("DELETE FROM inode")
        cx.run("DELETE FROM space")
        cx.run("DELETE FROM account")

    first = service.first_admin()

    assert first is not None
    assert service.accounts.login("admin", first.password).role == "admin"
    assert first.password != PASSWORD
    assert service.first_admin() is None


# ---------------------------------------------------------------- fsck


def test_a_sound_cluster_has_no_errors(desk: Desk) -> None:
    save(desk, b"a")

    found = desk.run_fsck()

    assert found["errors"] == []
    assert (found["entries"], found["inodes"], found["replicas"]) == (1, 3, 2)


PLANTED = {
    "dangling_entry": "DELETE FROM inode WHERE ino <> 1",
    "orphan_inode": "DELETE FROM entry",
    "wrong_nlink": "UPDATE inode SET nlink = 3 WHERE ino <> 1",
    "lost_parent": "UPDATE entry SET parent = 77",
    "unreachable": "UPDATE entry SET parent = ino",
    "beyond_size": "UPDATE inode SET size = 10 WHERE ino <> 1",
    "beyond_block": "UPDATE block SET size = 10",
    "unknown_block": "DELETE FROM block",
    "orphan_replica": "INSERT INTO replica (space_id, block, node, is_bad)"
    " VALUES (1, x'00', 'dn9', 0)",
    "corrupt": "UPDATE replica SET is_bad = 2",
    "missing": "UPDATE replica SET is_bad = 2",
    "overlap": "INSERT INTO extent (space_id, ino, off, born, length, block, block_offset)"
    " SELECT space_id, ino, 500, born, 100, block, 0 FROM extent",
}


@pytest.mark.parametrize("kind", sorted(PLANTED))
def test_fsck_finds(desk: Desk, database: Database, kind: str) -> None:
    save(desk, b"a")
    with database.write() as cx:
        sql = PLANTED[kind]
        cx.run(sql.replace("x'00'", "'\\x00'::bytea") if cx.is_postgres else sql)
    if kind in ("corrupt", "missing"):
        for node in desk.nodes.values():
            node.lose_disk()  # what is known to be bad was put aside

    found = desk.run_fsck()

    assert kind in {error["kind"] for error in found["errors"]}


def test_fsck_finds_a_block_that_a_node_has_lost_without_telling(desk: Desk) -> None:
    _, extent = save(desk, b"a")
    desk.clock.move(60)
    desk.beat()
    del desk.nodes["dn1"].held[desk.mount().space, extent.block]

    found = desk.run_fsck()

    assert {"drift", "under_replicated"} <= {error["kind"] for error in found["errors"]}


def test_fsck_does_not_wait_for_ever_for_a_node_that_hangs(desk: Desk) -> None:
    found = desk.service.fsck.run(deadline_s=0.0)

    assert {error["kind"] for error in found["errors"]} == {"no_answer"}


def test_a_dead_node_is_a_warning_once_its_copies_are_replaced(desk: Desk) -> None:
    save(desk, b"a")
    desk.pass_time(6.0)
    desk.silent = {"dn1"}
    desk.pass_time(12.0)

    found = desk.run_fsck()

    assert found["errors"] == []
    assert [(w["kind"], w["subject"]) for w in found["warnings"]] == [("node_away", "dn1")]
