"""Under the packs: the index that summarizes them, the room in them, and how they are read."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.stores import packformat, packindex
from everfold.stores.packfile import PackFile
from everfold.stores.packindex import PackIndex
from everfold.stores.packs import PackStore
from tests.contracts.blockstore import HOME, block_of
from tests.harness.faults import BreakingFiles, Died, die_at
from tests.harness.packs import batch, holds, packs, reopened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "packs"


class TestIndex:
    def test_what_only_waits_for_the_table_is_there_after_either_end(self, folder: Path) -> None:
        store = PackStore(folder)
        many = [block_of(16 + n % 100, n) for n in range(1500)]  # the table gets the first 1,000
        for first in range(0, len(many), 100):
            store.put_many(HOME, many[first : first + 100])
        for block, _ in many[::100]:
            assert store.delete(HOME, block) is True
        kept = [pair for n, pair in enumerate(many) if n % 100]

        assert holds(store, kept)
        assert len(list(store.blocks())) == len(kept)
        store.close()
        store = PackStore(folder)
        assert holds(store, kept)
        store.delete(HOME, kept[0][0])
        store = reopened(store, folder)

        assert holds(store, kept[1:])
        assert {held.block for held in store.blocks()} == {b for b, _ in kept[1:]}
        store.close()

    def test_a_table_that_cannot_be_written_refuses_puts_and_forgets_nothing(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = PackStore(folder)
        kept = [block_of(20, n) for n in range(1000)]
        store.put_many(HOME, kept)
        size = store.size_on_disk()

        def broken(self: PackIndex, db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO nothing VALUES (1)")

        with monkeypatch.context() as patch:
            patch.setattr(PackIndex, "_write_down", broken)
            with pytest.raises(EverfoldError) as caught:
                store.put(HOME, *block_of(4000))

        assert caught.value.kind is Kind.UNAVAILABLE
        assert packs(folder)[0].stat().st_size == store.size_on_disk() == size
        assert holds(store, kept)
        store.put(HOME, *block_of(4000))
        assert holds(store, [*kept, block_of(4000)])
        store.close()

    def test_however_few_bits_there_are_every_block_is_found_and_no_other(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(packindex, "_BITS_MIN", 8)
        store = PackStore(folder)
        for _ in range(2):  # with a single byte of bits, then with eight bits a block
            store.put_many(HOME, batch(200))
            assert holds(store, batch(200))
            assert store.get_many(HOME, [block for block, _ in batch(200, seed=1)]) == {}
            store.close()
            store = PackStore(folder)

        assert len(store._index._bits) >= 200
        assert holds(store, batch(200))
        store.close()


class TestReading:
    def test_neighbours_are_read_at_once_and_each_is_verified(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = PackStore(folder)
        store.put_many(HOME, batch(50))
        third = 2 * packformat.HEAD_SIZE + 500 + 501 + 7
        with packs(folder)[0].open("r+b") as pack:
            pack.seek(third)
            pack.write(b"\xff\xfe")
        reads: list[int] = []
        read = PackFile.read

        def counting(self: PackFile, at: int, size: int) -> bytes:
            reads.append(size)
            return read(self, at, size)

        monkeypatch.setattr(PackFile, "read", counting)
        found = store.get_many(HOME, [b for b, _ in batch(50)])

        assert found == dict(batch(50)[:2] + batch(50)[3:])
        assert len(reads) == 2  # all of them, and the rotten one once more
        store.close()


class TestRoom:
    def test_a_small_put_takes_the_place_of_zeros_and_an_orderly_end_leaves_none(
        self, folder: Path
    ) -> None:
        store = PackStore(folder)
        store.put(HOME, *block_of(100))
        length = packs(folder)[0].stat().st_size
        for block, data in batch(20):
            store.put(HOME, block, data)

        assert packs(folder)[0].stat().st_size == length > store.size_on_disk()
        size = store.size_on_disk()
        store.close()
        assert packs(folder)[0].stat().st_size == size
        files = BreakingFiles()
        store = PackStore(folder, files)
        assert "pack.recover" not in files.labels
        assert holds(store, [block_of(100), *batch(20)])
        store.close()

    def test_large_batches_leave_no_room_behind_them(self, folder: Path) -> None:
        store = PackStore(folder)
        store.put_many(HOME, batch(100, 4000))

        assert packs(folder)[0].stat().st_size == store.size_on_disk()
        store.close()

    def test_records_that_the_disk_wrote_in_another_order_are_found_after_a_power_cut(
        self, folder: Path
    ) -> None:
        store = PackStore(folder)
        store.put_many(HOME, batch(5))
        lost = store.size_on_disk()
        store.put(HOME, *block_of(3000))
        torn = store.size_on_disk()
        store.put(HOME, *block_of(3001))
        after = store.size_on_disk()
        store.put(HOME, *block_of(3002))
        store.abandon()
        with packs(folder)[0].open("r+b") as pack:
            pack.seek(lost)
            pack.write(bytes(torn - lost))  # nothing of this one reached the disk
            pack.seek(torn + 600)
            pack.write(bytes(after - torn - 600))  # and of this one the beginning

        store = PackStore(folder)

        assert holds(store, [*batch(5), block_of(3002)])
        assert {held.block for held in store.blocks()} == {
            block for block, _ in [*batch(5), block_of(3002)]
        }
        store.put_many(HOME, [block_of(3000), block_of(3001)])
        store = reopened(store, folder)
        assert holds(store, [*batch(5), block_of(3000), block_of(3001), block_of(3002)])
        store.close()

    def test_a_pack_is_on_the_disk_before_another_is_begun(self, folder: Path) -> None:
        files = BreakingFiles()
        store = PackStore(folder, files, pack_size=5000)
        store.put_many(HOME, batch(9, 600))
        pack = store._packs[1]
        pack.synced = 0  # as while another thread's put still waits for the disk
        files.labels.clear()

        store.put(HOME, *block_of(50))

        assert pack.synced == pack.size
        assert files.labels[:3] == ["pack.sync", "pack.create", "pack.create.folder"]
        store.close()

    def test_what_takes_the_place_of_a_record_that_was_cut_off_is_synced_again(
        self, tmp_path: Path
    ) -> None:
        files = BreakingFiles()
        pack = PackFile(tmp_path, 1, files)
        pack.append("w", [b"bytes"])
        pack.sync(5)
        pack.cut(0)
        pack.append("w", [b"other"])
        files.labels.clear()

        pack.sync(5)

        assert files.labels == ["pack.sync"]

    @pytest.mark.parametrize("label", ["pack.trim", "index.close"])
    def test_a_crash_while_room_is_given_back_loses_nothing(self, folder: Path, label: str) -> None:
        store = PackStore(folder, BreakingFiles(die_at(label)))
        store.put(HOME, *block_of(100))
        with pytest.raises(Died):
            store.close()

        store = PackStore(folder)

        assert holds(store, [block_of(100)])
        store.close()
