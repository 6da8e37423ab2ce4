"""The table of a mount's own locks agrees with the nameserver's, whatever is asked of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everfold import wire
from everfold.errors import EverfoldError
from everfold.model import SIZE_MAX, Ino, Lock, LockKind, LockType, MountId
from mount.locktable import LockTable
from nameserver.db import Database
from nameserver.locks import Locks
from nameserver.policy import Policy
from tests.harness.trees import Stage

READ, WRITE, UNLOCK = LockType.READ, LockType.WRITE, LockType.UNLOCK
FLOCK, POSIX = LockKind.FLOCK, LockKind.POSIX
ME = MountId("m1")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder: Path = tmp_path_factory.mktemp("locks")
    made = Stage(Database(f"sqlite:///{folder}/nameserver.db"))
    with made.db.write() as cx:
        cx.run(
            "INSERT INTO mount (space_id, id, author, device, device_id, label, last_op, results,"
            " seen_ns, is_read_only) VALUES (?, ?, '', '', '', '', 0, ?, ?, 0)",
            made.space, ME, b"", made.clock.time_ns(),
        )  # fmt: skip
    return made


@st.composite
def asks(draw: st.DrawFn) -> Lock:
    kind = draw(st.sampled_from([POSIX, POSIX, FLOCK]))
    start, length = draw(st.integers(0, 20)), draw(st.integers(1, 10))
    if kind is FLOCK:
        start, length = 0, SIZE_MAX
    type_ = draw(st.sampled_from([READ, WRITE, UNLOCK]))
    ino, owner = Ino(draw(st.integers(2, 3))), draw(st.integers(1, 3))
    return Lock(ino, kind, type_, owner, start, start + length, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(asks(), max_size=20))
def test_both_tables_grant_and_refuse_the_same(stage: Stage, steps: Sequence[Lock]) -> None:
    there = Locks(stage.db, stage.clock, stage.bell, Policy())
    there.drop_locks(wire.DropLocks(stage.space, ME))
    here = LockTable()
    for lock in steps:
        if lock.type is UNLOCK or not here.against(lock):
            here.lay(lock)
            there.set_lock(wire.SetLock(stage.space, ME, lock))
            continue
        with pytest.raises(EverfoldError):
            there.set_lock(wire.SetLock(stage.space, ME, lock))

    with stage.db.read() as cx:
        rows = cx.all(
            "SELECT ino, kind, type, owner, start, stop FROM file_lock WHERE space_id = ?",
            stage.space,
        )
    assert sorted(rows) == sorted(
        (lock.ino, lock.kind.value, lock.type.value, f"{lock.owner:x}", lock.start, lock.end)
        for lock in here.all()
    )


def test_what_is_let_go_leaves_nothing_behind() -> None:
    table = LockTable()
    lock = Lock(Ino(7), POSIX, WRITE, 1, 0, 10, 5)

    assert not table.lay(lock)
    assert table.holds(Ino(7), POSIX, 1) and not table.holds(Ino(7), FLOCK, 1)
    assert table.lay(Lock(Ino(7), POSIX, UNLOCK, 1, 0, SIZE_MAX, 0))
    assert not table
    assert table.all() == []


def test_a_downgrade_tells_that_something_fell() -> None:
    table = LockTable()
    table.lay(Lock(Ino(7), POSIX, WRITE, 1, 0, 10, 5))

    assert table.lay(Lock(Ino(7), POSIX, READ, 1, 0, 10, 5))
    assert not table.lay(Lock(Ino(7), POSIX, WRITE, 1, 0, 10, 5))


def test_who_is_in_the_way_is_told_with_range_and_process() -> None:
    table = LockTable()
    table.lay(Lock(Ino(7), POSIX, WRITE, 1, 3, 9, 5))

    assert table.against(Lock(Ino(7), POSIX, READ, 2, 0, 4, 6)) == [
        Lock(Ino(7), POSIX, WRITE, 1, 3, 9, 5)
    ]
    assert table.against(Lock(Ino(7), POSIX, READ, 2, 9, 12, 6)) == []
    assert table.against(Lock(Ino(7), POSIX, READ, 1, 0, 4, 5)) == []


def test_a_circle_of_waiters_is_refused_and_flock_knows_none() -> None:
    table = LockTable()
    first, second = (Lock(Ino(7), POSIX, WRITE, owner, 0, 1, 0) for owner in (1, 2))

    assert table.wait(first, {2})
    assert not table.wait(second, {1})
    table.end_wait(first)
    assert table.wait(second, {1})
    flocks = [Lock(Ino(7), FLOCK, WRITE, owner, 0, SIZE_MAX, 0) for owner in (1, 2)]
    assert table.wait(flocks[0], {2}) and table.wait(flocks[1], {1})
