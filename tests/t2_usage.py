"""What a space uses: added up commit by commit, it is what counting all rows gives."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from everfold import wire
from everfold.errors import EverfoldError
from everfold.model import Extent, Ino, SpaceId
from nameserver import usage
from nameserver.db import Database
from nameserver.files import purge
from nameserver.tree import make_space
from tests.harness.service import Desk
from tests.harness.trees import T0, Stage, Writer

BATCHES = 700
NAMES = [f"{folder}{name}" for folder in ("", "d/", "e/") for name in ("a", "b", "c", "f")]
UNIT = 1000


@pytest.fixture
def stage(database: Database) -> Stage:
    return Stage(database)


def drift(stage: Stage) -> dict[SpaceId, tuple[usage.Usage, usage.Usage]]:
    with stage.db.read() as cx:
        return usage.drifted(cx)


class Worker:
    """A mount that does anything at all, several operations to a commit."""

    def __init__(self, stage: Stage, name: str, rng: random.Random) -> None:
        self.stage, self.rng = stage, rng
        self.writer: Writer = stage.writer(name)
        self.stored: list[wire.Stored] = []
        self.done: Counter[str] = Counter()  # operations that were not refused
        self.acts: list[Callable[[], wire.AnyOp]] = [
            self.make, self.write, self.write, self.write, self.overwrite, self.overwrite,
            self.overwrite, self.punch, self.truncate, self.copy, self.copy, self.link,
            self.unlink, self.rename, self.rename, self.restore, self.seal, self.late,
        ]  # fmt: skip

    def batch(self) -> None:
        """Commit a few operations on one file, or on any; some are refused."""
        self.stored, ops = [], []
        focus = self.rng.choice(NAMES) if self.rng.random() < 0.6 else ""
        for _ in range(self.rng.randint(1, 6)):
            self.path = focus or self.rng.choice(NAMES)
            try:
                ops.append(self.rng.choice(self.acts)())
            except EverfoldError:
                continue  # there is nothing of that name, or no directory
        if ops:
            results = self.writer.commit(*ops, stored=self.stored)
            self.done.update(type(op).__name__ for op, r in zip(ops, results, strict=True)
                             if not r.kind)  # fmt: skip

    @property
    def ino(self) -> Ino:
        entry = self.stage.entry(self.path)
        return entry.attr.ino if entry else Ino(1)

    def block(self, units: int) -> tuple[bytes, int]:
        data = self.rng.randbytes(4) * (UNIT // 4 * units)
        self.stored.append(self.stage.put(data))
        return self.stored[-1].block, len(data)

    def writing(self, extents: list[Extent], size: int, **more: object) -> wire.Write:
        now = self.writer.now
        base = self.rng.choice([0, 1, 2, 3, 1000])
        form = {"is_sealed": self.rng.random() < 0.4, "holes": [], "cut": None, **more}
        return wire.Write(self.ino, base, size, now, now, extents, **form)  # type: ignore[arg-type]

    def size(self) -> int:
        entry = self.stage.entry(self.path)
        return entry.attr.size if entry else 0

    # ------------------------------------------------------------ acts

    def make(self) -> wire.AnyOp:
        return self.writer.making(self.path)

    def write(self) -> wire.AnyOp:
        block, size = self.block(self.rng.randint(1, 6))
        return self.writing([Extent(0, size, block)], size, cut=0)  # type: ignore[arg-type]

    def overwrite(self) -> wire.AnyOp:
        block, size = self.block(self.rng.randint(1, 3))
        at = self.rng.randrange(8) * UNIT // 2
        return self.writing([Extent(at, size, block)], max(self.size(), at + size))  # type: ignore[arg-type]

    def punch(self) -> wire.AnyOp:
        hole = (self.rng.randrange(6) * UNIT // 2, self.rng.randint(1, 3) * UNIT // 2)
        return self.writing([], self.size(), holes=[hole])

    def truncate(self) -> wire.AnyOp:
        size = self.rng.randrange(8) * UNIT
        return self.writing([], size, cut=min(size, self.rng.randrange(8) * UNIT))

    def copy(self) -> wire.AnyOp:
        """Share bytes of any file (this one, too), at another place or the same."""
        source = self.stage.entry(self.rng.choice([self.path, *NAMES]))
        found = source and self.stage.tree.extents(
            wire.GetExtents(self.stage.space, source.attr.ino)
        )
        if not found or not found.extents:
            return self.punch()
        shift = self.rng.choice([0, 0, UNIT // 2, UNIT])
        extents = [Extent(e.offset + shift, e.length, e.block, e.block_offset)
                   for e in found.extents]  # fmt: skip
        return self.writing(extents, max(self.size(), extents[-1].end))

    def link(self) -> wire.AnyOp:
        parent, name = self.stage.parent(self.rng.choice(NAMES))
        return wire.Link(self.ino, parent, name, self.writer.now)

    def unlink(self) -> wire.AnyOp:
        return self.writer.unlinking(self.path)

    def rename(self) -> wire.AnyOp:
        flags = self.rng.choice([0, 0, 0, wire.RENAME_EXCHANGE, wire.RENAME_NOREPLACE])
        return self.writer.renaming(self.path, self.rng.choice(NAMES), flags)

    def restore(self) -> wire.AnyOp:
        parent, name = self.stage.parent(self.path)
        number = self.rng.randint(1, 4)
        return wire.Restore(parent, name, number, self.writer.fresh(), self.writer.now)

    def seal(self) -> wire.AnyOp:
        return wire.Seal(self.ino, self.writer.now)

    def late(self) -> wire.AnyOp:
        block, size = self.block(2)
        return self.writing([Extent(0, size, block)], size, is_late=True)  # type: ignore[arg-type]

    def purge(self) -> None:
        """Forget a name that leads nowhere now, for good."""
        if self.stage.entry(self.path) is None:
            parent, name = self.stage.parent(self.path)
            with self.stage.db.write() as cx:
                purge.forget(cx, self.stage.space, parent, name)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_any_work_the_sums_are_what_counting_gives(stage: Stage, seed: int) -> None:
    rng = random.Random(seed)
    first = stage.writer("m0")
    for folder in ("d", "e"):
        first.mkdir(folder)
    workers = [Worker(stage, name, rng) for name in ("m1", "m2")]
    for number in range(BATCHES // (3 if stage.db.is_postgres else 1)):
        worker = rng.choice(workers)
        worker.batch()
        stage.clock.move(0.01)
        if number % 40 == 39:
            worker.path = rng.choice(NAMES)
            worker.purge()
        if number % 20 == 19:
            assert drift(stage) == {}, f"after {number + 1} batches of seed {seed}"

    with stage.db.read() as cx:
        (found,) = usage.stored(cx).values()
    assert drift(stage) == {}
    assert found.history_bytes > 0 < found.live_bytes
    done = sum((worker.done for worker in workers), Counter())
    assert min(done[op] for op in ("Make", "Write", "Rename", "Unlink", "Link", "Restore")) > 5


def test_spaces_of_one_owner_that_are_written_at_once_share_the_quota(database: Database) -> None:
    stage = Stage(database, quota=20 * UNIT)
    with database.write() as cx:
        owner = cx.one("SELECT owner_id FROM space WHERE id = ?", stage.space)
        assert owner is not None
        other = make_space(cx, owner[0], "team", T0)
    writers = [stage.writer("m1"), stage.writer("m2")]
    makes = [(w, w.making("f")) for w in writers]
    start = threading.Barrier(2)

    def fill(writer: Writer, make: wire.Make, space: SpaceId) -> int:
        def commit(*ops: wire.AnyOp, stored: list[wire.Stored]) -> str:
            ask = wire.Commit(space, writer.mount, writer.next_op, list(ops), stored)
            writer.next_op += len(ops)
            return stage.tree.commit(ask, writer.author).results[0].kind

        start.wait()
        assert commit(make, stored=[]) == ""
        size = 0
        while True:
            op, stored = writer.writing(make.ino, b"x" * (size + UNIT))
            if commit(op, stored=stored):
                database.close()
                return size
            size += UNIT

    stage.tree.reserve(wire.Reserve(other, 5))
    with ThreadPoolExecutor(2) as pool:
        sizes = list(pool.map(fill, writers, [make for _, make in makes], [stage.space, other]))

    assert sum(sizes) == 20 * UNIT


# ------------------------------------------------------------ fsck, and what people are told


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(database)
    yield desk
    desk.service.stop()


def test_a_sum_that_is_wrong_is_found_and_repaired_on_demand(desk: Desk) -> None:
    with desk.service.db.write() as cx:
        cx.run("UPDATE space SET live_bytes = 5, history_bytes = 7 WHERE name = 'ann'")

    found = desk.run_fsck()
    repaired = desk.run_fsck(is_repairing=True)
    after = desk.run_fsck()

    assert [error["kind"] for error in found["errors"]] == ["usage"]
    assert "live_bytes is noted as 5, counted 0" in found["errors"][0]["message"]
    assert repaired["errors"] == [] and len(repaired["repaired"]) == 1
    assert after["errors"] == after["repaired"] == []
    assert desk.service.accounts.get("ann").used == 0
