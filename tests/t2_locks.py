"""Advisory locks: ranges, owners, kinds, circles of waiters, and mounts that fall silent."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.locks import Span, laid
from everfold.model import SIZE_MAX, Ino, Lock, LockKind, LockType, MountId, Seq, SpaceId
from nameserver.db import Database
from nameserver.leases import Leases
from nameserver.locks import Locks
from nameserver.policy import Policy
from tests.harness.databases import database, database_url, postgres_server  # noqa: F401
from tests.harness.trees import Stage

READ, WRITE, UNLOCK = LockType.READ, LockType.WRITE, LockType.UNLOCK
FLOCK, POSIX = LockKind.FLOCK, LockKind.POSIX
FILE = Ino(7)


class Table:
    """The lock table of a stage, in short sentences."""

    def __init__(self, db: Database) -> None:
        self.stage = Stage(db)
        policy = Policy(session_ttl_s=30.0)
        self.locks = Locks(db, self.stage.clock, self.stage.bell, policy)
        self.leases = Leases(db, self.stage.clock, policy, self.stage.bell)

    def seen(self, *mounts: str) -> None:
        """Let mounts be heard of now."""
        with self.stage.db.write() as cx:
            for mount in mounts:
                cx.run(
                    "INSERT INTO mount (space_id, id, author, device, device_id, label, last_op,"
                    " results, seen_ns, is_read_only) VALUES (?, ?, '', '', '', '', 0, ?, ?, 0)"
                    " ON CONFLICT (space_id, id) DO UPDATE SET seen_ns = excluded.seen_ns",
                    self.stage.space,
                    mount,
                    b"",
                    self.stage.clock.time_ns(),
                )

    def set(
        self,
        who: tuple[str, int],
        type: LockType,  # noqa: A002
        start: int = 0,
        end: int = SIZE_MAX,
        *,
        kind: LockKind = POSIX,
        ino: Ino = FILE,
        is_waiting: bool = False,
    ) -> str:
        """Ask for a lock; return "" or the kind of the refusal."""
        lock = Lock(ino, kind, type, who[1], start, end, pid=who[1] % 1000 * 100)
        try:
            ask = wire.SetLock(self.stage.space, MountId(who[0]), lock, is_waiting)
            self.locks.set_lock(ask)
        except EverfoldError as err:
            return err.kind.value
        return ""

    def held(self, who: tuple[str, int], ino: Ino = FILE) -> list[tuple[str, int, int]]:
        with self.stage.db.read() as cx:
            return cx.all(
                "SELECT type, start, stop FROM file_lock WHERE mount = ? AND owner = ? AND ino = ?"
                " ORDER BY start",
                who[0],
                f"{who[1]:x}",
                ino,
            )

    def drop(self, mount: str, owner: int | None = None, ino: int = 0) -> None:
        self.locks.drop_locks(wire.DropLocks(self.stage.space, MountId(mount), owner, Ino(ino)))

    @property
    def generation(self) -> int:
        with self.stage.db.read() as cx:
            row = cx.one("SELECT locks_gen FROM space WHERE id = ?", self.stage.space)
        assert row is not None
        return int(row[0])


A, B, C = ("m1", 1), ("m2", 1), ("m1", 2)
BLOCKED, DEADLOCK = Kind.WOULD_BLOCK.value, Kind.DEADLOCK.value


@pytest.fixture
def table(database: Database) -> Table:  # noqa: F811
    made = Table(database)
    made.seen("m1", "m2", "m3")
    return made


def test_readers_share_and_a_writer_is_alone(table: Table) -> None:
    assert table.set(A, READ) == table.set(B, READ) == ""
    assert table.set(C, WRITE) == BLOCKED
    assert table.set(A, WRITE) == BLOCKED
    table.set(B, UNLOCK)
    assert table.set(A, WRITE) == ""
    assert table.set(B, READ) == BLOCKED


def test_ranges_that_do_not_touch_are_free(table: Table) -> None:
    assert table.set(A, WRITE, 0, 10) == table.set(B, WRITE, 10, 20) == ""
    assert table.set(B, WRITE, 9, 10) == BLOCKED
    assert table.set(B, READ, 5, SIZE_MAX) == BLOCKED
    assert table.set(A, WRITE, 0, 10, ino=Ino(8)) == ""


def test_unlocking_the_middle_splits_and_locking_it_again_joins(table: Table) -> None:
    table.set(A, WRITE, 0, 30)
    table.set(A, UNLOCK, 10, 20)
    assert table.held(A) == [("write", 0, 10), ("write", 20, 30)]
    assert table.set(B, WRITE, 10, 20) == ""
    table.set(B, UNLOCK)
    table.set(A, WRITE, 10, 20)
    assert table.held(A) == [("write", 0, 30)]


def test_upgrade_and_downgrade_change_only_their_range(table: Table) -> None:
    table.set(A, READ, 0, 30)
    table.set(A, WRITE, 10, 20)
    assert table.held(A) == [("read", 0, 10), ("write", 10, 20), ("read", 20, 30)]
    assert table.set(B, READ, 0, 10) == ""
    assert table.set(B, READ, 10, 11) == BLOCKED
    table.set(A, READ, 0, SIZE_MAX)
    assert table.held(A) == [("read", 0, SIZE_MAX)]


def test_owners_of_one_mount_exclude_each_other(table: Table) -> None:
    assert table.set(A, WRITE) == ""
    assert table.set(C, WRITE) == BLOCKED


def test_flock_and_fcntl_never_see_each_other(table: Table) -> None:
    assert table.set(A, WRITE, kind=FLOCK) == table.set(B, WRITE, kind=POSIX) == ""
    assert table.set(B, READ, kind=FLOCK) == BLOCKED


def test_flock_is_of_the_whole_file_and_converts(table: Table) -> None:
    table.set(A, WRITE, 5, 6, kind=FLOCK)
    assert table.held(A) == [("write", 0, SIZE_MAX)]
    table.set(A, READ, 5, 5, kind=FLOCK)
    assert table.held(A) == [("read", 0, SIZE_MAX)]
    table.set(A, UNLOCK, kind=FLOCK)
    assert table.held(A) == []


def test_owners_of_64_bits_are_told_apart(table: Table) -> None:
    high, low = ("m1", (1 << 64) - 1), ("m1", 0)
    assert table.set(high, WRITE) == ""
    assert table.set(low, READ) == BLOCKED
    assert table.set(("m1", 1 << 64), READ) == Kind.INVALID.value


def test_the_lock_in_the_way_is_told_with_its_owner(table: Table) -> None:
    table.set(A, WRITE, 5, 10)

    def ask(start: int, end: int) -> wire.Blocking:
        lock = Lock(FILE, POSIX, READ, 1, start, end, pid=1)
        return table.locks.test_lock(wire.TestLock(table.stage.space, MountId("m2"), lock))

    assert ask(0, 5) == wire.Blocking(None)
    assert ask(0, 6) == wire.Blocking(Lock(FILE, POSIX, WRITE, 1, 5, 10, pid=100), MountId("m1"))


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 5), (6, 5), (0, SIZE_MAX + 1)])
def test_a_range_that_cannot_be_is_refused(table: Table, start: int, end: int) -> None:
    assert table.set(A, WRITE, start, end) == Kind.INVALID.value


def test_a_space_that_is_not_there_is_not_found(table: Table) -> None:
    lock = Lock(FILE, POSIX, READ, 1, 0, 1, pid=1)
    with pytest.raises(EverfoldError) as refused:
        table.locks.set_lock(wire.SetLock(SpaceId(99), MountId("m1"), lock))
    assert refused.value.kind is Kind.NOT_FOUND


def test_a_granted_lock_tells_the_commit_number(table: Table) -> None:
    table.stage.writer().make("f")
    lock = Lock(FILE, POSIX, READ, 1, 0, 1, pid=1)
    granted = table.locks.set_lock(wire.SetLock(table.stage.space, MountId("m1"), lock))

    assert granted.seq == table.stage.seq == 1


# ---------------------------------------------------------------- falling


def test_the_generation_moves_on_when_locks_fall_and_only_then(table: Table) -> None:
    table.set(A, READ, 0, 10)
    table.set(B, UNLOCK)
    table.drop("m3")
    assert table.generation == 0
    table.set(A, UNLOCK, 0, 5)
    assert table.generation == 1
    table.set(A, WRITE, 5, 10)
    table.set(A, READ, 5, 10)
    assert table.generation == 2
    table.drop("m1", 1, FILE)
    assert table.generation == 3


def test_closing_drops_the_owner_s_locks_on_that_file_alone(table: Table) -> None:
    for who in (A, C):
        table.set(who, READ)
        table.set(who, READ, ino=Ino(8))
    table.drop("m1", 1, FILE)

    assert table.held(A) == []
    assert table.held(A, Ino(8)) and table.held(C) and table.held(C, Ino(8))


def test_a_mount_that_ends_drops_everything_of_it(table: Table) -> None:
    for who in (A, B, C):
        table.set(who, READ)
    table.drop("m1")

    assert (table.held(A), table.held(C)) == ([], [])
    assert table.held(B)


def test_locks_of_a_mount_that_fell_silent_give_way(table: Table) -> None:
    table.set(A, WRITE)
    table.stage.clock.move(20)
    table.seen("m2")
    assert table.set(B, WRITE) == BLOCKED
    table.stage.clock.move(11)
    before = table.generation

    assert table.set(B, WRITE) == ""
    assert table.held(A) == []
    assert table.generation == before + 1


def test_a_silent_mount_s_lock_is_not_in_the_way_of_a_question(table: Table) -> None:
    table.set(A, WRITE)
    table.stage.clock.move(31)
    lock = Lock(FILE, POSIX, WRITE, 1, 0, 5, pid=1)

    answer = table.locks.test_lock(wire.TestLock(table.stage.space, MountId("m2"), lock))
    assert answer.lock is None


# ---------------------------------------------------------------- circles


def test_two_that_wait_for_each_other_are_a_deadlock(table: Table) -> None:
    table.set(A, WRITE, 0, 1)
    table.set(B, WRITE, 1, 2)
    assert table.set(A, WRITE, 1, 2, is_waiting=True) == BLOCKED
    assert table.set(B, WRITE, 0, 1, is_waiting=True) == DEADLOCK


def test_a_longer_circle_is_found_too(table: Table) -> None:
    for n, who in enumerate((A, B, C)):
        table.set(who, WRITE, n, n + 1)
    assert table.set(A, WRITE, 1, 2, is_waiting=True) == BLOCKED
    assert table.set(B, WRITE, 2, 3, is_waiting=True) == BLOCKED
    assert table.set(C, WRITE, 0, 1, is_waiting=True) == DEADLOCK


def test_who_does_not_wait_is_part_of_no_circle(table: Table) -> None:
    table.set(A, WRITE, 0, 1)
    table.set(B, WRITE, 1, 2)
    table.set(A, WRITE, 1, 2)
    assert table.set(B, WRITE, 0, 1, is_waiting=True) == BLOCKED


def test_a_deadlock_leaves_no_wait_behind(table: Table) -> None:
    table.set(A, WRITE, 0, 1)
    table.set(B, WRITE, 1, 2)
    table.set(A, WRITE, 1, 2, is_waiting=True)
    table.set(B, WRITE, 0, 1, is_waiting=True)
    table.set(B, UNLOCK)

    assert table.set(A, WRITE, 1, 2, is_waiting=True) == ""
    with table.stage.db.read() as cx:
        assert cx.all("SELECT mount FROM lock_wait") == []


@pytest.mark.parametrize("how", ["it closes", "its note grows old", "it does something else"])
def test_a_waiter_that_gave_up_is_part_of_no_circle(table: Table, how: str) -> None:
    table.set(A, WRITE, 0, 1)
    table.set(B, WRITE, 1, 2)
    table.set(A, WRITE, 1, 2, is_waiting=True)
    if how == "it closes":
        table.drop("m1", 1, 9)
    elif how == "its note grows old":
        table.stage.clock.move(16)
    else:
        table.set(A, READ, 5, 6)

    assert table.set(B, WRITE, 0, 1, is_waiting=True) == BLOCKED


def test_flock_knows_no_deadlock(table: Table) -> None:
    other = Ino(8)
    table.set(A, WRITE, kind=FLOCK)
    table.set(B, WRITE, kind=FLOCK, ino=other)
    assert table.set(A, WRITE, kind=FLOCK, ino=other, is_waiting=True) == BLOCKED
    assert table.set(B, WRITE, kind=FLOCK, is_waiting=True) == BLOCKED


# ---------------------------------------------------------------- the algebra


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([READ, WRITE, UNLOCK]), st.integers(0, 20), st.integers(1, 10)),
        max_size=12,
    )
)
def test_an_owner_s_locks_are_what_a_row_of_bytes_would_be(
    steps: Sequence[tuple[LockType, int, int]],
) -> None:
    cells = ["unlock"] * 40
    spans: list[Span] = []
    for type_, start, length in steps:
        spans = laid(spans, Lock(FILE, POSIX, type_, 1, start, start + length, 1))
        cells[start : start + length] = [type_.value] * length

        shown = ["unlock"] * 40
        for span in spans:
            shown[span.start : span.stop] = [span.type.value] * (span.stop - span.start)
        assert shown == cells
        joints = itertools.pairwise(spans)
        assert all(a.stop < b.start or a.type is not b.type for a, b in joints)


# ---------------------------------------------------------------- one mount grants


def grant(table: Table, mount: str) -> wire.LockLease:
    """Let a mount have the write lease, and ask to grant locks."""
    epoch = table.leases.take(wire.TakeLease(table.stage.space, MountId(mount))).epoch
    return take(table, mount, epoch)


def take(table: Table, mount: str, epoch: int) -> wire.LockLease:
    return table.locks.leases.take(wire.TakeLocks(table.stage.space, MountId(mount), epoch))


def give(table: Table, mount: str, *locks: Lock) -> list[Lock]:
    ask = wire.GiveLocks(table.stage.space, MountId(mount), list(locks))
    return table.locks.take_back(ask).lost


def test_only_the_holder_of_the_write_lease_may_grant_locks(table: Table) -> None:
    assert not take(table, "m1", 1).is_granted
    assert grant(table, "m1").is_granted
    assert not take(table, "m1", 2).is_granted
    assert not take(table, "m2", 1).is_granted


def test_the_right_to_grant_is_not_given_while_others_want_locks(table: Table) -> None:
    table.set(B, WRITE)
    assert not grant(table, "m1").is_granted
    table.stage.clock.move(2)

    assert take(table, "m1", 1) == wire.LockLease(True, [FILE])


def test_while_a_mount_grants_others_wait_for_what_it_says(table: Table) -> None:
    grant(table, "m1")
    held = Lock(FILE, POSIX, WRITE, 1, 0, 10, 100)
    asked = threading.Thread(target=lambda: answers.append(table.set(B, WRITE, 0, 5)))
    answers: list[str] = []
    asked.start()
    poll = wire.FeedPoll(table.stage.space, MountId("m1"), Seq(0), 0.0)
    while not recalled(table, poll):
        pass
    assert give(table, "m1", held) == []
    asked.join()

    assert answers == [BLOCKED]
    assert table.held(A) == [("write", 0, 10)]
    assert not recalled(table, poll)
    assert table.set(B, WRITE, 10, 20) == ""


def recalled(table: Table, poll: wire.FeedPoll) -> bool:
    with table.stage.db.read() as cx:
        return table.locks.leases.is_recalled(cx, poll)


def test_a_silent_mount_that_grants_may_hold_any_lock_until_its_session_is_over(
    table: Table,
) -> None:
    grant(table, "m1")
    question = wire.TestLock(table.stage.space, MountId("m2"), Lock(FILE, POSIX, READ, 1, 0, 5, 1))
    table.stage.clock.move(20)
    table.seen("m2")
    assert table.set(B, WRITE) == BLOCKED
    with pytest.raises(EverfoldError) as unknown:
        table.locks.test_lock(question)
    assert unknown.value.kind is Kind.WOULD_BLOCK
    table.stage.clock.move(11)

    assert table.locks.test_lock(question).lock is None
    assert table.set(B, WRITE) == ""
    poll = wire.FeedPoll(table.stage.space, MountId("m1"), Seq(0), 0.0, grants_locks=True)
    assert recalled(table, poll)


def test_locks_that_were_granted_to_others_meanwhile_stay_theirs(table: Table) -> None:
    grant(table, "m1")
    table.drop("m1")
    table.set(B, WRITE, 0, 5)
    mine, lost = (Lock(FILE, POSIX, WRITE, 1, start, start + 5, 100) for start in (5, 0))

    assert give(table, "m1", mine, lost) == [lost]
    assert table.held(A) == [("write", 5, 10)]
    assert table.held(B) == [("write", 0, 5)]
    assert give(table, "m1", mine) == []


def test_a_lock_is_let_go_without_asking_who_grants(table: Table) -> None:
    table.set(B, WRITE)
    table.stage.clock.move(2)
    assert grant(table, "m1").remote == [FILE]
    assert table.set(A, WRITE) == BLOCKED
    table.set(B, UNLOCK)

    assert table.set(A, WRITE) == ""


def test_a_mount_that_begins_anew_grants_no_more(table: Table) -> None:
    grant(table, "m1")
    table.drop("m1")

    assert table.set(B, WRITE) == ""


def test_who_waited_and_was_granted_a_lock_by_its_mount_is_part_of_no_circle(table: Table) -> None:
    table.set(A, WRITE)
    table.set(C, WRITE, is_waiting=True)
    assert grant(table, "m1").is_granted
    give(table, "m1", Lock(FILE, POSIX, WRITE, C[1], 0, 10, 1))

    assert table.set(A, WRITE, is_waiting=True) == BLOCKED
