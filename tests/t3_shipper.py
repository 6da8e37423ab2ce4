"""The shipper: order, holding back, batches, retries, refusals, and how bytes become blocks."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, BlockId, Extent, Ino, MountId, Seq, SpaceId
from mount import shipper as shipping
from mount.journal import Journal
from mount.records import Local, StagedWrite, encode, sealed
from mount.shipper import Item, Shipper
from mount.staging import Staging
from tests.harness.machine import wait_until
from tests.harness.world import eventually

SPACE, MOUNT = SpaceId(1), MountId("m1")


class Cluster:
    """The nameserver's commits and the nodes' blocks; `answer` decides what becomes of each."""

    def __init__(self) -> None:
        self.commits: list[wire.Commit] = []
        self.blocks: dict[BlockId, bytes] = {}
        self.failures: list[EverfoldError] = []  # of the next calls
        self.refused: dict[int, Kind] = {}  # operations by number
        self.gate = threading.Event()
        self.gate.set()

    def commit(self, ask: wire.Commit) -> wire.Committed:
        assert self.gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        self.commits.append(ask)
        results = []
        for number in range(ask.first_op, ask.first_op + len(ask.ops)):
            kind = self.refused.get(number)
            results.append(wire.Result(kind=kind.value) if kind else wire.Result())
        return wire.Committed(Seq(len(self.commits)), results)

    def store(self, blocks: list[tuple[BlockId, bytes]]) -> list[wire.Stored]:
        self.blocks.update(blocks)
        return [wire.Stored(block, len(data), ["dn1", "dn2"]) for block, data in blocks]  # type: ignore[list-item]

    @property
    def numbers(self) -> list[list[int]]:
        """Return the numbers of the operations, commit by commit."""
        return [list(range(c.first_op, c.first_op + len(c.ops))) for c in self.commits]


class Bench:
    """A shipper with a real journal and real staging."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster()
        self.journal = Journal(folder / "journal")
        self.staging = Staging.open(folder / "staging")
        self.shipper = Shipper(
            SPACE,
            MOUNT,
            self.cluster,
            self.cluster,
            self.staging,
            self.journal,  # type: ignore[arg-type]
        )
        self.outcomes: list[tuple[int, str]] = []

    def submit(self, *records: Local, hold_s: float = 0.0, epoch: int = 0) -> int:
        first = self.journal.append([encode(record) for record in records])
        until = time.monotonic() + hold_s if hold_s else 0.0
        self.shipper.submit(
            [
                Item(n, record, self._done, epoch=epoch, hold_until=until, is_glued=n > first)
                for n, record in enumerate(records, first)
            ]
        )
        return first

    def _done(self, item: Item, result: wire.Result, seq: Seq) -> None:
        self.outcomes.append((item.number, result.kind))

    def stage(self, ino: int, data: bytes, offset: int = 0) -> StagedWrite:
        place = self.staging.append(data)
        staged = [(offset, len(data), place.segment, place.offset)]
        return StagedWrite(Ino(ino), 0, offset + len(data), 0, 0, staged)

    def close(self) -> None:
        self.shipper.close()
        self.staging.close()
        self.journal.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def unlink(name: bytes = b"x") -> wire.Unlink:
    return wire.Unlink(Ino(1), name, Ino(0), False, 0)


# ---------------------------------------------------------------- order and batches


def test_what_gathered_goes_in_one_commit_in_order(bench: Bench) -> None:
    for i in range(10):
        bench.submit(unlink(b"%d" % i))
    bench.shipper.start()

    assert bench.shipper.drain(10)
    assert bench.cluster.numbers == [list(range(1, 11))]
    assert [op.name for op in bench.cluster.commits[0].ops] == [b"%d" % i for i in range(10)]  # type: ignore[union-attr]
    assert bench.outcomes == [(n, "") for n in range(1, 11)]
    assert bench.journal.trimmed == 10
    assert bench.shipper.committed_number == 10


def test_changes_of_two_leases_never_share_a_commit(bench: Bench) -> None:
    for epoch in (0, 7, 7, 8):
        bench.submit(unlink(), epoch=epoch)
    bench.shipper.start()

    assert bench.shipper.drain(10)
    assert bench.cluster.numbers == [[1], [2, 3], [4]]
    assert [commit.epoch for commit in bench.cluster.commits] == [0, 7, 8]


def test_records_that_belong_together_are_not_parted_by_a_full_batch(bench: Bench) -> None:
    half = shipping.BATCH_BYTES // 2
    bench.submit(bench.stage(2, bytes(half)))
    bench.submit(unlink(), bench.stage(3, bytes(half)), bench.stage(4, b"more"))
    bench.submit(unlink())
    bench.shipper.start()

    assert bench.shipper.drain(20)
    assert bench.cluster.numbers[0] == [1, 2, 3, 4]


def test_a_record_that_is_held_back_takes_what_comes_after_it_along(bench: Bench) -> None:
    bench.shipper.start()
    held = bench.submit(bench.stage(2, b"text"), hold_s=60.0)
    bench.submit(unlink())
    assert bench.shipper.queued == 2
    bench.shipper.release(held)

    assert bench.shipper.drain(10)
    assert bench.cluster.numbers == [[1, 2]]


def test_a_record_that_waits_can_be_amended_and_is_held_back_no_longer(bench: Bench) -> None:
    bench.shipper.start()
    record = bench.stage(2, b"text")
    item = Item(bench.journal.append([encode(record)]), record, hold_until=time.monotonic() + 60.0)
    bench.shipper.submit([item])
    assert bench.shipper.amend(item, sealed(record))

    assert bench.shipper.drain(10)
    assert not bench.shipper.amend(item, record)
    (write,) = bench.cluster.commits[0].ops
    assert isinstance(write, wire.Write)
    assert write.is_sealed


def test_what_follows_a_sync_rests_until_the_next_sync(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "LULL_S", 60.0)
    bench.shipper.start()
    first = bench.submit(unlink())
    bench.shipper.hurry(first)
    wait_until(lambda: bench.shipper.committed_number == first, 10, "the first sync is through")

    bench.submit(unlink(b"left behind"))
    second = bench.submit(unlink(b"synced"))
    assert bench.shipper.queued == 2
    bench.shipper.hurry(second)
    wait_until(lambda: bench.shipper.committed_number == second, 10, "so is the second")

    assert bench.cluster.numbers == [[1], [2, 3]]


def test_a_large_write_does_not_rest_after_a_sync(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "LULL_S", 60.0)
    bench.shipper.start()
    bench.shipper.hurry(bench.submit(unlink()))
    wait_until(lambda: bench.shipper.committed_number == 1, 10, "the first sync is through")

    bench.submit(bench.stage(2, bytes(1 << 20)))

    wait_until(lambda: bench.shipper.committed_number == 2, 10, "the write is through")


def test_a_crowd_of_changes_does_not_rest_after_a_sync(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "LULL_S", 60.0)
    bench.shipper.start()
    bench.shipper.hurry(bench.submit(unlink()))
    wait_until(lambda: bench.shipper.committed_number == 1, 10, "the first sync is through")

    for _ in range(300):
        last = bench.submit(unlink())

    wait_until(lambda: bench.shipper.committed_number >= 257, 10, "most of them are through")
    assert bench.shipper.drain(10)
    assert bench.shipper.committed_number == last


def test_a_hole_in_the_numbers_begins_a_new_commit(bench: Bench) -> None:
    bench.submit(unlink())
    bench.journal.skip_to(10)
    bench.submit(unlink())
    bench.shipper.start()

    assert bench.shipper.drain(10)
    assert bench.cluster.numbers == [[1], [10]]


# ---------------------------------------------------------------- trouble


@pytest.mark.expects_warnings
def test_a_commit_that_failed_for_now_is_sent_again_as_it_was(bench: Bench) -> None:
    bench.cluster.failures = [
        EverfoldError(kind) for kind in (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.NO_SPACE)
    ]
    bench.submit(bench.stage(2, b"text"))
    bench.shipper.start()

    assert bench.shipper.drain(10)
    assert bench.cluster.numbers == [[1]]
    assert bench.shipper.failure is None
    assert bench.outcomes == [(1, "")]


def test_an_operation_that_is_refused_does_not_stop_the_others(bench: Bench) -> None:
    bench.cluster.refused = {2: Kind.NOT_EMPTY}
    for _ in range(3):
        bench.submit(unlink())
    bench.shipper.start()

    assert bench.shipper.drain(10)
    assert bench.outcomes == [(1, ""), (2, "not_empty"), (3, "")]
    assert bench.journal.trimmed == 3


@pytest.mark.expects_warnings
def test_a_shipper_that_may_not_go_on_keeps_the_journal_and_says_so(bench: Bench) -> None:
    bench.cluster.failures = [EverfoldError(Kind.FORBIDDEN, "the mount is another user's")]
    bench.submit(bench.stage(2, b"text"))
    bench.shipper.start()
    assert eventually(lambda: bench.shipper.broken is not None)
    bench.submit(unlink())
    assert eventually(lambda: len(bench.outcomes) == 2)

    assert bench.outcomes == [(1, "forbidden"), (2, "forbidden")]
    assert bench.cluster.commits == []
    assert bench.journal.trimmed == 0
    assert not bench.shipper.drain(1)


@pytest.mark.expects_warnings
def test_what_is_not_taken_for_want_of_a_token_waits_for_one(bench: Bench) -> None:
    refusal = EverfoldError(Kind.UNAUTHENTICATED, "the token was revoked")
    bench.cluster.failures = [refusal] * 3
    bench.submit(bench.stage(2, b"text"))
    bench.shipper.start()

    assert bench.shipper.drain(10)
    assert bench.outcomes == [(1, "")]


@pytest.mark.expects_warnings
def test_closing_does_not_wait_for_a_cluster_that_is_away(bench: Bench) -> None:
    bench.cluster.failures = [EverfoldError(Kind.UNAVAILABLE)] * 10_000
    bench.submit(unlink())
    bench.shipper.start()
    assert eventually(lambda: bench.shipper.failure is not None)
    began = time.monotonic()
    bench.shipper.close()

    assert time.monotonic() - began < 5
    assert bench.journal.trimmed == 0


def test_who_drains_for_a_time_is_told_that_it_was_too_short(bench: Bench) -> None:
    bench.cluster.gate.clear()
    bench.submit(unlink())
    bench.shipper.start()

    assert not bench.shipper.drain(0.05)
    assert bench.shipper.backlog[0] == 1
    bench.cluster.gate.set()
    assert bench.shipper.drain(10)


# ---------------------------------------------------------------- bytes become blocks


def test_bytes_are_stored_before_the_commit_that_names_them(bench: Bench) -> None:
    data = bytes(range(256)) * 10
    bench.submit(bench.stage(2, data, offset=5))
    bench.shipper.start()
    assert bench.shipper.drain(10)

    commit = bench.cluster.commits[0]
    write = commit.ops[0]
    assert isinstance(write, wire.Write)
    assert [bench.cluster.blocks[e.block] for e in write.extents] == [data]
    assert [(e.offset, e.length) for e in write.extents] == [(5, len(data))]
    assert {each.block for each in commit.stored} == {e.block for e in write.extents}


def test_pieces_that_touch_in_the_file_are_one_extent_wherever_they_were_staged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "BATCH_BYTES", BLOCK_MAX)  # stored in more than one part
    size, rnd = 512 * 1024, random.Random(3)
    slots = [slot for slot in range(30) if slot % 10 != 7]
    content, staged = {}, []
    for slot in rnd.sample(slots, len(slots)):
        content[slot] = rnd.randbytes(size)
        place = bench.staging.append(content[slot])
        staged.append((slot * size, size, place.segment, place.offset))
    bench.submit(StagedWrite(Ino(2), 0, 30 * size, 0, 0, sorted(staged)))
    bench.shipper.start()
    assert bench.shipper.drain(10)

    write = bench.cluster.commits[0].ops[0]
    assert isinstance(write, wire.Write)
    assert len(write.extents) < len(slots) / 2
    shown = bytearray(30 * size)
    for e in write.extents:
        block = bench.cluster.blocks[e.block]
        shown[e.offset : e.end] = block[e.block_offset : e.block_offset + e.length]
    assert shown == b"".join(content.get(slot, bytes(size)) for slot in range(30))
    told = bench.cluster.commits[0].stored
    assert sorted(each.block for each in told) == sorted({e.block for e in write.extents})


PIECES = st.lists(
    st.tuples(
        st.integers(0, 3 * BLOCK_MAX),  # gap before it
        st.sampled_from([1, 100, 4096, BLOCK_MAX - 1, BLOCK_MAX, BLOCK_MAX + 1, 3 * BLOCK_MAX]),
    ),
    max_size=12,
)


@given(PIECES)
def test_blocks_hold_every_piece_once_in_order_and_are_not_too_large(
    pieces: list[tuple[int, int]],
) -> None:
    staged, end = [], 0
    for i, (gap, length) in enumerate(pieces):
        staged.append((end + gap, length, i, 1000 * i))
        end += gap + length
    runs = shipping._runs(staged)

    assert all(0 < sum(length for _, length, _, _ in run) <= BLOCK_MAX for run in runs)
    found: dict[int, list[tuple[int, int, int]]] = {}
    for offset, length, segment, at in (part for run in runs for part in run):
        found.setdefault(segment, []).append((offset, length, at))
    for offset, length, segment, at in staged:
        parts = found[segment]
        assert parts[0][0] == offset and parts[0][2] == at
        assert sum(part[1] for part in parts) == length
        for (o, n, a), (o2, _, a2) in itertools.pairwise(parts):
            assert (o + n, a + n) == (o2, a2)


@given(st.integers(0, 3), st.integers(0, 2 * BLOCK_MAX), st.integers(1, 3))
def test_a_long_stretch_is_cut_at_the_same_places_whatever_is_written_before_it(
    blocks: int, before: int, after: int
) -> None:
    start = blocks * BLOCK_MAX
    end = start + after * BLOCK_MAX
    alone = shipping._runs([(start, end - start, 1, 0)])
    begin = max(0, start - before)
    with_more = shipping._runs([(begin, end - begin, 1, 0)])

    def cuts(runs: list[list[tuple[int, int, int, int]]]) -> set[int]:
        return {run[0][0] for run in runs if run[0][0] >= start}

    assert cuts(with_more) == cuts(alone)


EXTENTS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 20), st.sampled_from([b"a" * 32, b"b" * 32])),
    max_size=10,
)


@given(EXTENTS)
def test_merged_extents_say_the_same_in_order_and_as_short_as_can_be(
    drawn: list[tuple[int, int, bytes]],
) -> None:
    extents, end = [], 0
    for gap, length, block in drawn:
        offset = end + gap // 25  # often adjacent
        extents.append(Extent(offset, length, BlockId(block), offset % 97))
        end = offset + length
    merged = shipping._merged(list(reversed(extents)))

    assert _each_byte(merged) == _each_byte(extents)
    for one, two in itertools.pairwise(merged):
        assert one.end <= two.offset
        assert not (
            one.end == two.offset
            and one.block == two.block
            and one.block_offset + one.length == two.block_offset
        )


def _each_byte(extents: list[Extent]) -> dict[int, tuple[bytes, int]]:
    return {
        e.offset + i: (bytes(e.block), e.block_offset + i) for e in extents for i in range(e.length)
    }
