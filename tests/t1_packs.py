"""Packs: what was acknowledged is there after any end, and what rots is noticed."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everfold.errors import EverfoldError, Kind
from everfold.files import Files
from everfold.model import BlockId, SpaceId
from everfold.stores import packformat
from everfold.stores.packfile import PackFile
from everfold.stores.packs import PackStore
from tests.contracts.blockstore import HOME, OTHER, block_of
from tests.harness.faults import BreakingFiles, Died, TearingFiles, die_at, fail_at
from tests.harness.packs import batch, holds, never, packs, reopened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "packs"


class TestEnds:
    def test_blocks_are_there_after_an_orderly_end_without_reading_the_packs(
        self, folder: Path
    ) -> None:
        store = PackStore(folder)
        store.put_many(HOME, batch(20))
        store.close()

        files = BreakingFiles()
        store = PackStore(folder, files)

        assert holds(store, batch(20))
        assert "pack.recover" not in files.labels
        store.close()

    def test_blocks_are_there_after_a_crash(self, folder: Path) -> None:
        store = PackStore(folder)
        store.put_many(HOME, batch(20))
        store.put_many(OTHER, batch(5))
        store.delete(HOME, batch(20)[3][0])

        store = reopened(store, folder)

        assert holds(store, batch(20)[:3] + batch(20)[4:])
        assert store.size_of(HOME, batch(20)[3][0]) is None
        assert holds(store, batch(5), OTHER)
        store.close()

    def test_an_index_that_belongs_to_other_packs_is_not_believed(self, folder: Path) -> None:
        store = PackStore(folder)
        store.put_many(HOME, batch(5))
        store.close()
        with packs(folder)[0].open("ab") as pack:  # a copy was restored beside the index
            block, data = block_of(333)
            pack.write(packformat.head(packformat.BLOCK, HOME, block, len(data)) + data)

        store = PackStore(folder)

        assert holds(store, [*batch(5), block_of(333)])
        store.close()

    @pytest.mark.parametrize("kept", [1, 30, packformat.HEAD_SIZE, packformat.HEAD_SIZE + 10])
    def test_a_torn_tail_is_cut_off_and_written_over(self, folder: Path, kept: int) -> None:
        PackStore(folder).abandon()
        store = PackStore(folder)
        store.put_many(HOME, batch(5))
        whole = store.size_on_disk()
        store.abandon()
        store = PackStore(folder, TearingFiles("pack.write", kept))
        with pytest.raises(Died):
            store.put(HOME, *block_of(4000))

        store = reopened(store, folder)

        assert packs(folder)[0].stat().st_size == whole
        assert store.size_of(HOME, block_of(4000)[0]) is None
        store.put(HOME, *block_of(4000))
        assert holds(store, [*batch(5), block_of(4000)])
        store.close()

    def test_zeros_where_a_record_should_have_been_are_cut_off(self, folder: Path) -> None:
        store = PackStore(folder)
        store.put_many(HOME, batch(5))
        whole = store.size_on_disk()
        store.abandon()
        os.truncate(packs(folder)[0], whole + 400_000)

        store = PackStore(folder)

        assert holds(store, batch(5))
        assert packs(folder)[0].stat().st_size == whole
        store.close()

    def test_a_rotten_head_hides_one_block_and_not_those_after_it(self, folder: Path) -> None:
        store = PackStore(folder)
        for block, data in batch(5):
            store.put(HOME, block, data)
        store.abandon()
        second = packformat.HEAD_SIZE + 500
        with packs(folder)[0].open("r+b") as pack:
            pack.seek(second + 5)
            pack.write(b"\xff\xff")

        store = PackStore(folder)

        assert store.size_of(HOME, batch(5)[1][0]) is None
        assert holds(store, batch(5)[:1] + batch(5)[2:])
        store.close()

    @pytest.mark.parametrize("label", ["pack.create", "pack.create.folder", "pack.write"])
    def test_a_crash_while_putting_loses_nothing_acknowledged(
        self, folder: Path, label: str
    ) -> None:
        store = PackStore(folder, BreakingFiles(die_at(label, nth=2)), pack_size=2000)
        kept = []
        with pytest.raises(Died):
            for block, data in batch(50):
                store.put(HOME, block, data)
                kept.append((block, data))

        store = reopened(store, folder)

        assert kept
        assert holds(store, kept)
        store.close()

    @pytest.mark.parametrize("label", ["index.close", "index.close.sync", "index.close.rename"])
    def test_a_crash_while_closing_loses_nothing(self, folder: Path, label: str) -> None:
        store = PackStore(folder, BreakingFiles(die_at(label)))
        store.put_many(HOME, batch(9))
        with pytest.raises(Died):
            store.close()

        store = PackStore(folder)

        assert holds(store, batch(9))
        store.close()


class TestFailingDisk:
    def test_a_full_disk_refuses_and_leaves_nothing_half_written(self, folder: Path) -> None:
        store = PackStore(folder, BreakingFiles(fail_at("pack.write", errno.ENOSPC, nth=2)))
        store.put_many(HOME, batch(5))
        size = store.size_on_disk()

        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, *block_of(4000))

        assert caught.value.kind is Kind.NO_SPACE
        assert packs(folder)[0].stat().st_size == store.size_on_disk() == size
        store.put(HOME, *block_of(4000))
        assert holds(store, [*batch(5), block_of(4000)])
        store.close()

    def test_a_failed_sync_is_no_acknowledgement_and_its_pack_is_left(self, folder: Path) -> None:
        store = PackStore(folder, BreakingFiles(fail_at("pack.sync", errno.EIO, nth=2)))
        store.put_many(HOME, batch(5))

        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, *block_of(4000))

        assert caught.value.kind is Kind.UNAVAILABLE
        assert store.size_of(HOME, block_of(4000)[0]) is None
        store.put(HOME, *block_of(4000))
        assert len(packs(folder)) == 2
        assert holds(store, [*batch(5), block_of(4000)])
        store.close()

    def test_a_pack_that_cannot_be_cut_is_left(self, folder: Path) -> None:
        def fault(label: str, nth: int) -> None:
            if (label, nth) == ("pack.write", 2) or label == "pack.truncate":
                raise OSError(errno.EIO, "injected")

        store = PackStore(folder, BreakingFiles(fault))
        store.put_many(HOME, batch(5))
        with pytest.raises(EverfoldError):
            store.put(HOME, *block_of(4000))

        store.put(HOME, *block_of(4000))

        assert len(packs(folder)) == 2
        store = reopened(store, folder)
        assert holds(store, [*batch(5), block_of(4000)])
        store.close()


class TestRot:
    def flip(self, path: Path, offset: int) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0x40]))

    @pytest.mark.parametrize("offset", [0, 20, packformat.HEAD_SIZE, packformat.HEAD_SIZE + 99])
    def test_a_flipped_bit_is_corrupt_and_a_new_put_heals_it(
        self, folder: Path, offset: int
    ) -> None:
        store = PackStore(folder)
        store.put(HOME, *block_of(1000))
        self.flip(packs(folder)[0], offset)

        with pytest.raises(EverfoldError) as caught:
            store.get(HOME, block_of(1000)[0])

        assert caught.value.kind is Kind.CORRUPT
        assert store.get_many(HOME, [block_of(1000)[0]]) == {}
        store.put(HOME, *block_of(1000))
        assert holds(store, [block_of(1000)])
        store = reopened(store, folder)
        assert holds(store, [block_of(1000)])
        store.close()

    def test_a_block_that_is_sound_is_not_deleted_as_rotten(self, folder: Path) -> None:
        store = PackStore(folder)
        store.put(HOME, *block_of(1000))

        assert store.delete(HOME, block_of(1000)[0], if_rotten=True) is False
        assert holds(store, [block_of(1000)])
        store.close()


class TestCompaction:
    @pytest.fixture
    def wasteful(self, folder: Path) -> tuple[Path, list[tuple[BlockId, bytes]]]:
        """A folder where the first pack is mostly garbage, and what must survive."""
        store = PackStore(folder, pack_size=20_000)
        everything = batch(60, 1000)
        for block, data in everything:
            store.put(HOME, block, data)
        gone = [pair for n, pair in enumerate(everything[:40]) if n % 5]
        for block, _ in gone:
            store.delete(HOME, block)
        store.close()
        return folder, [pair for pair in everything if pair not in gone]

    def test_garbage_goes_and_what_lives_stays(
        self, wasteful: tuple[Path, list[tuple[BlockId, bytes]]]
    ) -> None:
        folder, kept = wasteful
        store = PackStore(folder, pack_size=20_000)
        before = store.size_on_disk()

        rounds = 0
        while store.compact_one(never):
            rounds += 1

        assert rounds >= 2
        assert store.size_on_disk() < before * 2 / 3
        assert holds(store, kept)
        assert len(list(store.blocks())) == len(kept)
        store = reopened(store, folder, 20_000)
        assert holds(store, kept)
        assert len(list(store.blocks())) == len(kept)
        store.close()

    @pytest.mark.parametrize(
        "label",
        [
            "pack.compact.copy",
            "pack.write",
            "pack.sync",
            "pack.compact.remove",
            "pack.compact.folder",
        ],
    )
    @pytest.mark.parametrize("nth", [1, 2])
    def test_a_crash_at_any_step_loses_nothing(
        self, wasteful: tuple[Path, list[tuple[BlockId, bytes]]], label: str, nth: int
    ) -> None:
        folder, kept = wasteful
        store = PackStore(folder, BreakingFiles(die_at(label, nth)), pack_size=20_000)
        with pytest.raises(Died):
            while store.compact_one(never):
                pass

        store = reopened(store, folder, 20_000)

        assert holds(store, kept)
        while store.compact_one(never):
            pass
        assert holds(store, kept)
        assert len(list(store.blocks())) == len(kept)
        store.close()

    @pytest.mark.parametrize("kept_bytes", [3, 900, 1500])
    def test_a_torn_copy_loses_nothing(
        self, wasteful: tuple[Path, list[tuple[BlockId, bytes]]], kept_bytes: int
    ) -> None:
        folder, kept = wasteful
        store = PackStore(folder, TearingFiles("pack.write", kept_bytes), pack_size=20_000)
        with pytest.raises(Died):
            store.compact_one(never)

        store = reopened(store, folder, 20_000)

        assert holds(store, kept)
        store.close()

    @pytest.mark.parametrize("label", ["pack.write", "pack.sync", "pack.compact.remove"])
    def test_a_failing_disk_stops_it_and_loses_nothing(
        self, wasteful: tuple[Path, list[tuple[BlockId, bytes]]], label: str
    ) -> None:
        folder, kept = wasteful
        store = PackStore(folder, BreakingFiles(fail_at(label, errno.EIO)), pack_size=20_000)
        with pytest.raises(EverfoldError):
            while store.compact_one(never):
                pass

        assert holds(store, kept)
        while store.compact_one(never):
            pass
        assert holds(store, kept)
        store = reopened(store, folder, 20_000)
        assert holds(store, kept)
        store.close()

    def test_a_rotten_block_is_told_and_not_copied(
        self, wasteful: tuple[Path, list[tuple[BlockId, bytes]]]
    ) -> None:
        folder, kept = wasteful
        with packs(folder)[0].open("r+b") as pack:
            pack.seek(packformat.HEAD_SIZE + 3)  # in the first block, which lives
            pack.write(b"\xff\xfe")
        store = PackStore(folder, pack_size=20_000)
        told: list[BlockId] = []

        def on_rotten(space: SpaceId, block: BlockId) -> None:
            told.append(block)
            store.delete(space, block)

        while store.compact_one(on_rotten):
            pass

        assert told == [kept[0][0]]
        assert holds(store, kept[1:])
        store.close()

    def test_a_deleted_block_does_not_come_back_when_its_tombstone_moved(
        self, folder: Path
    ) -> None:
        store = PackStore(folder, pack_size=5000)
        first = batch(4, 1200)
        for block, data in first:  # pack 1; stays because most of it lives
            store.put(HOME, block, data)
        store.put(HOME, *block_of(4999, 7))
        store.delete(HOME, first[0][0])
        store.delete(HOME, block_of(4999, 7)[0])
        store.put_many(HOME, batch(8, 1200, seed=9))
        while store.compact_one(never):
            pass

        store = reopened(store, folder, 5000)

        assert store.size_of(HOME, first[0][0]) is None
        assert holds(store, first[1:])
        store.close()

    def test_readers_are_not_disturbed(
        self, wasteful: tuple[Path, list[tuple[BlockId, bytes]]]
    ) -> None:
        folder, kept = wasteful
        store = PackStore(folder, pack_size=20_000)
        done = threading.Event()

        def read() -> bool:
            rng = random.Random(1)
            while not done.is_set():
                block, data = rng.choice(kept)
                if store.get(HOME, block) != data:
                    return False
            return True

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            while store.compact_one(never):
                pass
            done.set()
            assert all(reader.result() for reader in readers)
        store.close()


class TestModel:
    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["put", "put", "put", "delete", "compact", "crash", "close"]),
                st.integers(0, 12),
            ),
            max_size=40,
        ),
        number=st.integers(0, 1 << 60),
    )
    def test_any_history_leaves_what_a_dictionary_would(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        steps: list[tuple[str, int]],
        number: int,
    ) -> None:
        folder = tmp_path_factory.mktemp("model") / "packs"
        store, model = PackStore(folder, pack_size=2500), dict[BlockId, bytes]()
        for what, n in steps:
            block, data = block_of(400 + n)
            if what == "put":
                store.put(HOME, block, data)
                model[block] = data
            elif what == "delete":
                assert store.delete(HOME, block) is (model.pop(block, None) is not None)
            elif what == "compact":
                store.compact_one(never)
            else:
                store.close() if what == "close" else store.abandon()
                store = PackStore(folder, pack_size=2500)
            assert {held.block for held in store.blocks()} == set(model)
        assert store.get_many(HOME, list(model)) == model
        store.close()


class TestOneSync:
    def test_a_batch_is_one_write_and_one_sync(self, folder: Path) -> None:
        files = BreakingFiles()
        store = PackStore(folder, files)
        files.labels.clear()

        store.put_many(HOME, batch(100))

        assert files.labels.count("pack.write") == 1
        assert files.labels.count("pack.sync") == 1
        store.close()

    def test_a_pack_that_is_synced_is_not_synced_again(self, folder: Path) -> None:
        files = BreakingFiles()
        store = PackStore(folder, files)
        store.put(HOME, *block_of(50))
        files.labels.clear()

        store.put(HOME, *block_of(50))

        assert files.labels == []
        store.close()

    def test_a_second_putter_of_a_block_waits_until_it_is_durable(self, folder: Path) -> None:
        entered, go_on = threading.Event(), threading.Event()

        def fault(label: str, nth: int) -> None:
            if label == "pack.sync" and nth == 1:
                entered.set()
                go_on.wait(10)

        store = PackStore(folder, BreakingFiles(fault))
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(store.put, HOME, *block_of(50))
            entered.wait(10)
            second = pool.submit(store.put, HOME, *block_of(50))
            with pytest.raises(futures.TimeoutError):
                second.result(timeout=0.2)
            go_on.set()
            first.result(10)
            second.result(10)
        store.close()


def test_a_poisoned_pack_never_says_again_that_it_is_synced(tmp_path: Path) -> None:
    pack = PackFile(tmp_path, 1, BreakingFiles(fail_at("pack.sync", errno.EIO)))
    pack.append("w", [b"bytes"])
    with pytest.raises(EverfoldError):
        pack.sync(5)

    with pytest.raises(EverfoldError):
        pack.sync(5)


@pytest.fixture(autouse=True)
def _no_open_files_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_scanning_reads_what_was_written(tmp_path: Path) -> None:
    pack = PackFile(tmp_path, 1, Files())
    block, data = block_of(100)
    pack.append("w", [packformat.head(packformat.BLOCK, HOME, block, 100), data])
    pack.append("w", [packformat.head(packformat.TOMBSTONE, OTHER, block, 0)])

    found = list(packformat.scan(pack.fd, pack.size, is_verified=True))

    assert [(r.kind, r.space, r.block, r.size) for r in found] == [
        (packformat.BLOCK, HOME, block, 100),
        (packformat.TOMBSTONE, OTHER, block, 0),
    ]
