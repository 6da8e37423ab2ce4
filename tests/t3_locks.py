"""Locks that a mount grants by itself under the write lease: quick, and nobody can tell."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, SIZE_MAX, Ino, Lock, LockKind, LockType, Seq, SpaceId
from mount import patience
from mount.client import Client
from mount.policy import Policy
from tests.harness.world import ME, World, eventually, find, load, save

READ, WRITE, UNLOCK = LockType.READ, LockType.WRITE, LockType.UNLOCK
FLOCK, POSIX = LockKind.FLOCK, LockKind.POSIX
KINDS = pytest.mark.parametrize("kind", [FLOCK, POSIX])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


class Program:
    """A process with one file open through a mount."""

    numbers = iter(range(100, 1 << 30))

    def __init__(self, client: Client, path: str, flags: int = os.O_RDWR) -> None:
        self.client, self.ino = client, find(client, path).ino
        self.fh = client.vfs.open(self.ino, flags).fh
        self.owner = next(self.numbers)

    def lock(
        self,
        type: LockType,  # noqa: A002
        start: int = 0,
        end: int = SIZE_MAX,
        kind: LockKind = POSIX,
        cancel: threading.Event | None = None,
    ) -> str:
        """Ask for a lock; return "" or the kind of the refusal."""
        lock = Lock(self.ino, kind, type, self.owner, start, end, pid=self.owner)
        try:
            self.client.vfs.setlk(self.fh, lock, cancel)
        except EverfoldError as err:
            return err.kind.value
        return ""

    def wait(self, kind: LockKind = POSIX, start: int = 0, end: int = SIZE_MAX) -> Waiting:
        """Wait for a lock to write, as F_SETLKW does."""
        return Waiting(lambda cancel: self.lock(WRITE, start, end, kind, cancel))

    def in_the_way(self, type: LockType = WRITE) -> Lock | None:  # noqa: A002
        return self.client.vfs.getlk(
            self.fh, Lock(self.ino, POSIX, type, self.owner, 0, SIZE_MAX, self.owner)
        )

    def read(self, size: int = 100) -> bytes:
        return bytes(self.client.vfs.read(self.fh, 0, size))

    def write(self, data: bytes) -> None:
        self.client.vfs.write(self.fh, 0, data, False)

    def close(self) -> None:
        self.client.vfs.flush(self.fh, self.owner)
        self.client.vfs.release(self.fh, self.owner, True)


class Waiting:
    """A call that waits for a lock, on a thread of its own."""

    def __init__(self, call: Callable[[threading.Event], str]) -> None:
        self.cancel = threading.Event()
        self.answers: list[str] = []
        self._thread = threading.Thread(target=lambda: self.answers.append(call(self.cancel)))
        self._thread.start()

    def answer(self) -> str:
        self._thread.join(20)
        return self.answers[0]


def granting(world: World, name: str = "a", path: str = "f") -> Client:
    """Open a mount that has a file, and let it write and lock until it grants locks itself."""
    client = world.mount(name)
    save(client, path, b"0")
    become_granting(client, path)
    return client


def become_granting(client: Client, path: str = "f") -> None:
    program = Program(client, path)

    def is_granting() -> bool:
        client.vfs.mkdir(ROOT, b"again", 0o777, ME)
        client.vfs.rmdir(ROOT, b"again")
        program.lock(READ)
        program.lock(UNLOCK)
        return bool(client.core.lease.held and client.core.lease.grants_locks)

    assert eventually(is_granting)
    program.close()


def lock_once(*programs: Program) -> None:
    """Let the first locks on their files be over, for which the kernel is told to look anew."""
    for program in programs:
        for kind in (FLOCK, POSIX):
            program.lock(READ, kind=kind)
            program.lock(UNLOCK, kind=kind)


def refuse_calls(world: World, name: str) -> None:
    """Let every call about a lock fail: what works now works without one."""

    def fail(ask: object) -> object:
        raise EverfoldError(Kind.INTERNAL, f"nobody should ask {ask}")

    line = world.lines[name]
    line.set_lock = line.test_lock = line.drop_locks = fail  # type: ignore[attr-defined]


@KINDS
def test_a_mount_that_writes_alone_grants_without_a_call_or_a_wait(
    world: World, kind: LockKind
) -> None:
    client = granting(world)
    one, two = Program(client, "f"), Program(client, "f")
    lock_once(one)
    refuse_calls(world, "a")
    said: list[object] = []

    def impatient() -> None:
        patience.never_wait()
        said.extend([one.lock(WRITE, kind=kind), two.lock(WRITE, kind=kind)])
        one.write(b"text")
        said.extend([one.lock(UNLOCK, kind=kind), two.lock(READ, kind=kind), two.in_the_way()])
        said.append(one.lock(READ, kind=kind))

    thread = threading.Thread(target=impatient)
    thread.start()
    thread.join()

    assert said == ["", Kind.WOULD_BLOCK.value, "", "", None, ""]


@KINDS
def test_another_mount_is_excluded_and_then_sees_what_was_written(
    world: World, kind: LockKind
) -> None:
    a, b = granting(world), world.mount("b")
    here, there = Program(a, "f"), Program(b, "f")
    here.lock(WRITE, kind=kind)
    here.write(b"under the lock")

    assert there.lock(WRITE, kind=kind) == Kind.WOULD_BLOCK.value
    assert here.lock(UNLOCK, kind=kind) == ""
    assert there.lock(WRITE, kind=kind) == ""
    assert there.read() == b"under the lock"
    assert here.lock(READ, kind=kind) == Kind.WOULD_BLOCK.value


def test_bytes_of_a_lock_let_go_before_are_there_when_another_mount_gets_it(world: World) -> None:
    a, b = granting(world), world.mount("b")
    here, there = Program(a, "f"), Program(b, "f")
    here.lock(WRITE)
    here.write(b"written, and not yet sent")
    here.lock(UNLOCK)
    assert here.client.core.contents[here.ino].is_changed

    assert there.lock(READ) == ""
    assert there.read() == b"written, and not yet sent"


def test_a_question_about_a_lock_is_answered_by_who_grants_it(world: World) -> None:
    a, b = granting(world), world.mount("b")
    here, other, there = Program(a, "f"), Program(a, "f"), Program(b, "f")
    here.lock(WRITE, 3, 9)
    near = other.in_the_way()
    far = there.in_the_way(READ)

    assert near == Lock(here.ino, POSIX, WRITE, here.owner, 3, 9, here.owner)
    assert far is not None and (far.start, far.end, far.pid) == (3, 9, 0)


def test_a_mount_that_only_reads_gets_its_locks_too(world: World) -> None:
    a = granting(world)
    b = world.mount("b", Policy(is_read_only=True, poll_s=0.1))
    here, there = Program(a, "f"), Program(b, "f", os.O_RDONLY)
    here.lock(READ)

    assert there.lock(READ) == ""
    assert here.lock(WRITE) == Kind.WOULD_BLOCK.value
    assert there.lock(UNLOCK) == ""
    assert here.lock(WRITE) == ""


def test_the_write_lease_stays_when_only_locks_are_asked_for(world: World) -> None:
    a, b = granting(world), world.mount("b")

    assert Program(b, "f").lock(READ) == ""
    assert a.core.lease.held
    assert not a.core.lease.grants_locks
    become_granting(a)


def test_what_others_hold_when_it_begins_is_theirs(world: World) -> None:
    a = world.mount("a")
    save(a, "f", b"0")
    save(a, "g", b"0")
    a.vfs.syncfs()
    b = world.mount("b")
    there = Program(b, "g")
    assert there.lock(WRITE) == ""
    become_granting(a)

    here = Program(a, "g")
    assert here.lock(READ) == Kind.WOULD_BLOCK.value
    there.lock(UNLOCK)
    assert here.lock(WRITE) == ""
    assert a.core.lease.grants_locks
    assert there.lock(READ) == Kind.WOULD_BLOCK.value


@KINDS
def test_a_waiter_here_is_woken_by_who_lets_go(world: World, kind: LockKind) -> None:
    client = granting(world)
    one, two = Program(client, "f"), Program(client, "f")
    one.lock(WRITE, kind=kind)
    refuse_calls(world, "a")
    waiting = two.wait(kind)
    one.write(b"text")
    one.lock(UNLOCK, kind=kind)

    assert waiting.answer() == ""
    assert two.read() == b"text"


def test_a_waiter_can_be_interrupted(world: World) -> None:
    client = granting(world)
    one, two = Program(client, "f"), Program(client, "f")
    one.lock(WRITE)
    waiting = two.wait()
    waiting.cancel.set()

    assert waiting.answer() == Kind.INTERRUPTED.value
    one.lock(UNLOCK)
    assert one.lock(WRITE) == ""


def test_waiting_for_each_other_here_is_a_deadlock(world: World) -> None:
    client = granting(world)
    one, two = Program(client, "f"), Program(client, "f")
    one.lock(WRITE, 0, 1)
    two.lock(WRITE, 1, 2)
    waiting = one.wait(start=1, end=2)
    assert eventually(lambda: two.lock(WRITE, 0, 1, cancel=threading.Event()) != "")
    assert waiting.answers == []
    two.lock(UNLOCK)

    assert waiting.answer() == ""


def test_waiting_for_each_other_across_a_hand_over_is_a_deadlock(world: World) -> None:
    a, b = granting(world), world.mount("b")
    one, two, there = Program(a, "f"), Program(a, "f"), Program(b, "f")
    one.lock(WRITE, 0, 1)
    two.lock(WRITE, 1, 2)
    waiting = one.wait(start=1, end=2)
    assert there.lock(WRITE, 2, 3) == ""
    far = there.wait(start=0, end=1)
    assert eventually(lambda: len(waits(world)) == 2)

    assert two.lock(WRITE, 2, 3, cancel=threading.Event()) == Kind.DEADLOCK.value
    two.lock(UNLOCK)
    assert waiting.answer() == ""
    one.lock(UNLOCK)
    assert far.answer() == ""


def waits(world: World) -> list[tuple[object, ...]]:
    """Return who waits at the nameserver."""
    with world.db.read() as cx:
        return cx.all("SELECT mount FROM lock_wait")


@KINDS
def test_who_waits_when_locks_change_hands_is_not_forgotten(world: World, kind: LockKind) -> None:
    a, b = granting(world), world.mount("b")
    one, two, there = Program(a, "f"), Program(a, "f"), Program(b, "f")
    one.lock(WRITE, kind=kind)
    near, far = two.wait(kind), there.wait(kind)
    assert eventually(lambda: not a.core.lease.grants_locks)
    one.close()
    first = eventually(lambda: bool(near.answers or far.answers))
    (two if near.answers else there).lock(UNLOCK, kind=kind)

    assert first
    assert near.answer() == far.answer() == ""


def test_closing_lets_go_of_locks(world: World) -> None:
    client = granting(world)
    other = Program(client, "f")
    for kind, flags in ((FLOCK, os.O_RDWR), (POSIX, os.O_RDWR), (POSIX, os.O_RDONLY)):
        one = Program(client, "f", flags)
        one.lock(READ, kind=kind)
        assert other.lock(WRITE, kind=kind) == Kind.WOULD_BLOCK.value
        one.client.vfs.release(one.fh, one.owner, True)
        assert other.lock(WRITE, kind=kind) == ""
        other.lock(UNLOCK, kind=kind)


def test_a_locked_file_may_lose_its_name(world: World) -> None:
    client = granting(world)
    one, two = Program(client, "f"), Program(client, "f")
    one.lock(WRITE)
    client.vfs.unlink(ROOT, b"f")

    assert two.lock(WRITE) == Kind.WOULD_BLOCK.value
    one.close()
    assert two.lock(WRITE) == ""


@KINDS
def test_no_update_under_a_lock_is_lost_while_leases_change_hands(
    world: World, kind: LockKind
) -> None:
    a, b = granting(world), world.mount("b")
    rounds = 260
    calm = threading.Event()

    def count(client: Client) -> None:
        for i in range(rounds):
            program = Program(client, "f")
            assert program.lock(WRITE, kind=kind, cancel=threading.Event()) == ""
            program.write(b"%d" % (int(program.read()) + 1))
            if i % 2:
                program.lock(UNLOCK, kind=kind)
            program.close()
            if i % 20 == 10:
                calm.wait(0.3)  # so that the other one is alone for a while

    threads = [threading.Thread(target=count, args=(client,)) for client in (a, b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    reader = Program(b, "f")
    assert reader.lock(READ) == ""
    assert reader.read() == b"%d" % (2 * rounds)
    here = sum(client.core.lease.locks_granted for client in (a, b))
    assert 0 < here < 4 * rounds + 100


def test_nothing_is_granted_past_the_end_of_the_lease(tmp_path: Path) -> None:
    with World(tmp_path, write_lease_s=1.2) as world:
        a, b = granting(world), world.mount("b")
        here, there = Program(a, "f"), Program(b, "f")
        here.lock(WRITE)
        a.vfs.feed.close()  # no news: neither renewals nor recalls
        assert eventually(lambda: not a.core.lease.held, 3.0)
        said: list[str] = []

        def impatient() -> None:
            patience.never_wait()
            try:
                said.append(Program(a, "f").lock(WRITE, kind=FLOCK))
            except patience.MustWait:
                said.append("not at once")

        thread = threading.Thread(target=impatient)
        thread.start()
        thread.join()

        assert said == ["not at once"]
        assert there.lock(READ) == Kind.WOULD_BLOCK.value
        assert here.lock(UNLOCK) == ""  # it may always be let go


@pytest.mark.expects_warnings
def test_locks_of_a_session_that_was_lost_are_declared_anew(world: World) -> None:
    a, b = granting(world), world.mount("b")
    save(b, "g", b"0")
    become_granting(a)
    kept, lost = Program(a, "f"), Program(a, "g")
    kept.lock(WRITE)
    lost.lock(WRITE)
    a.vfs.feed.close()
    world.service.sessions.end(SpaceId(1), a.mount_id)
    taken = Program(b, "g")
    assert taken.lock(WRITE) == ""
    a.vfs.feed.poll_once(0.0)  # it is heard of again

    assert eventually(lambda: not a.core.lease.grants_locks)
    assert Program(b, "f").lock(WRITE) == Kind.WOULD_BLOCK.value
    assert taken.lock(READ) == ""
    assert Program(a, "g").lock(WRITE) == Kind.WOULD_BLOCK.value
    assert Program(a, "g").lock(READ) == ""


@pytest.mark.parametrize("leases", [True, False])
def test_a_file_that_another_wrote_before_its_maker_had_it_open_is_whole_for_both(
    world: World, leases: bool
) -> None:
    a = world.mount("a", Policy(leases=leases, change_deadline_s=20.0, poll_s=0.1))
    b = world.mount("b")
    make = a.core.change

    def make_slowly(*args: Any) -> Seq:
        seq = make(*args)
        there = Program(b, "f")
        there.lock(WRITE)
        there.write(b"of b ")
        there.lock(UNLOCK)
        assert eventually(lambda: a.core.feed_seq >= b.core.feed_seq)
        return seq

    a.core.change = make_slowly  # type: ignore[assignment,method-assign]
    _, opened = a.vfs.create(ROOT, b"f", 0o666, os.O_CREAT | os.O_RDWR | os.O_APPEND, ME)
    here = Program(a, "f", os.O_RDWR | os.O_APPEND)
    here.lock(WRITE)
    seen = here.read()
    here.write(b"of a")
    here.lock(UNLOCK)

    assert seen == b"of b "
    assert a.vfs.read(opened.fh, 0, 100) == b"of b of a"
    assert eventually(lambda: load(b, "f") == b"of b of a")  # it asks without the lock


class Kernel:
    """A `KernelCache` that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def tell_again(self) -> bool:
        return False

    def __getattr__(self, what: str) -> Callable[..., None]:
        return lambda *values: self.told.append((what, *values))


def test_many_that_wait_for_one_lock_are_no_circle(world: World) -> None:
    a, b = granting(world), world.mount("b")
    refused: list[str] = []

    def count(client: Client) -> None:
        for _ in range(40):
            program = Program(client, "f")
            refused.append(program.lock(WRITE, cancel=threading.Event()))
            program.write(b"%d" % (int(program.read()) + 1))
            program.close()

    threads = [threading.Thread(target=count, args=(client,)) for client in (a, a, a, b, b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    reader = Program(b, "f")
    assert set(refused) == {""} == {reader.lock(READ)}
    assert reader.read() == b"200"


def test_the_kernel_asks_for_a_size_anew_once_a_lock_is_granted(world: World) -> None:
    a, b, kernel = granting(world), world.mount("b"), Kernel()
    b.core.notifier.attach(kernel)
    there = Program(b, "f")
    assert there.lock(READ) == ""

    assert ("forget_attr", there.ino) in kernel.told
    near = Kernel()
    a.core.notifier.attach(near)
    become_granting(a)
    assert ("forget_attr", there.ino) in near.told


def test_an_append_at_an_older_size_does_not_stay_in_the_kernel(world: World) -> None:
    client, kernel = granting(world), Kernel()
    client.core.notifier.attach(kernel)
    program = Program(client, "f", os.O_RDWR | os.O_APPEND)
    client.vfs.write(program.fh, 1, b"at the size that is", False)
    assert client.core.notifier.wait_told(5.0)
    assert kernel.told == []
    client.vfs.write(program.fh, 1, b"at an older one", False)
    assert client.core.notifier.wait_told(5.0)

    assert kernel.told == [("forget_data", program.ino, 1, 15)]


def test_an_answer_that_is_lost_leaves_nobody_in_doubt(world: World) -> None:
    a = world.mount("a")
    save(a, "f", b"0")
    line = world.lines["a"]
    lost: list[wire.TakeLocks] = []

    def lose(ask: wire.TakeLocks) -> wire.LockLease:
        answer: wire.LockLease = a_real(ask)
        if not lost:
            lost.append(ask)
            raise EverfoldError(Kind.TIMEOUT, "no answer came")
        return answer

    a_real = line.take_locks
    line.take_locks = lose  # type: ignore[attr-defined]
    become_granting(a)

    assert lost
    there = Program(world.mount("b"), "f")
    assert there.lock(WRITE) == ""
    assert Program(a, "f").lock(READ) == Kind.WOULD_BLOCK.value
    assert load(a, "f") == b"0"


def test_locks_that_nobody_uses_are_the_nameserver_s_again(world: World) -> None:
    client = granting(world)
    assert Ino(0) not in client.core.contents

    assert eventually(lambda: not client.core.lease.grants_locks, 15.0)
    assert Program(client, "f").lock(WRITE) == ""
