"""Block files and the store of one machine: crashes, full disks, rot and quarantine."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import SMALL_BLOCK
from everfold.stores.disk import DiskStore
from everfold.stores.local import LocalStore, Room
from tests.contracts.blockstore import HOME, OTHER, block_of
from tests.harness.faults import BreakingFiles, Died, TearingFiles, die_at, fail_at

LARGE = block_of(SMALL_BLOCK * 3)
SMALL = block_of(1000)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def flip(path: Path, offset: int = 50) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


class TestBlockFiles:
    def test_a_block_has_its_own_file_under_its_first_digits(self, tmp_path: Path) -> None:
        store = DiskStore(tmp_path)

        store.put(HOME, *LARGE)

        name = LARGE[0].hex()
        assert (tmp_path / "1" / name[:2] / name).read_bytes() == LARGE[1]

    @pytest.mark.parametrize(
        "label", ["disk.mkdir", "disk.write", "disk.sync", "disk.rename", "disk.folder"]
    )
    def test_a_crash_while_putting_leaves_the_block_or_nothing(
        self, tmp_path: Path, label: str
    ) -> None:
        DiskStore(tmp_path)
        store = DiskStore(tmp_path, BreakingFiles(die_at(label)))
        with pytest.raises(Died):
            store.put(HOME, *LARGE)

        store = DiskStore(tmp_path)

        found = store.get_many(HOME, [LARGE[0]])
        assert found in ({}, dict([LARGE]))
        assert files_below(tmp_path / "tmp") == []
        store.put(HOME, *LARGE)
        assert store.get(HOME, LARGE[0]) == LARGE[1]

    def test_a_torn_write_is_never_seen(self, tmp_path: Path) -> None:
        store = DiskStore(tmp_path, TearingFiles("disk.write", 7000))
        with pytest.raises(Died):
            store.put(HOME, *LARGE)

        store = DiskStore(tmp_path)

        assert list(store.blocks()) == []
        assert files_below(tmp_path) == []

    @pytest.mark.parametrize(
        ("label", "code", "kind"),
        [
            ("disk.write", errno.ENOSPC, Kind.NO_SPACE),
            ("disk.sync", errno.EIO, Kind.UNAVAILABLE),
            ("disk.rename", errno.EROFS, Kind.UNAVAILABLE),
            ("disk.folder", errno.EIO, Kind.UNAVAILABLE),
        ],
    )
    def test_a_failing_disk_is_no_acknowledgement_and_leaves_nothing(
        self, tmp_path: Path, label: str, code: int, kind: Kind
    ) -> None:
        store = DiskStore(tmp_path, BreakingFiles(fail_at(label, code)))

        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, *LARGE)

        assert caught.value.kind is kind
        assert files_below(tmp_path) == []

    def test_a_second_putter_of_a_block_waits_until_it_is_durable(self, tmp_path: Path) -> None:
        entered, go_on = threading.Event(), threading.Event()

        def fault(label: str, nth: int) -> None:
            if label == "disk.folder" and nth == 1:
                entered.set()
                go_on.wait(10)

        store = DiskStore(tmp_path, BreakingFiles(fault))
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(store.put, HOME, *LARGE)
            entered.wait(10)
            second = pool.submit(store.put, HOME, *LARGE)
            with pytest.raises(futures.TimeoutError):
                second.result(timeout=0.2)
            go_on.set()
            first.result(10)
            second.result(10)

    def test_wrong_bytes_are_found_out_while_they_are_written_and_leave_nothing(
        self, tmp_path: Path
    ) -> None:
        files = BreakingFiles()
        store = DiskStore(tmp_path, files)

        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, LARGE[0], LARGE[1][:-1] + b"?")

        assert caught.value.kind is Kind.CORRUPT
        assert "disk.rename" not in files.labels
        assert files_below(tmp_path) == []

    def test_a_spaces_folders_are_made_once(self, tmp_path: Path) -> None:
        files = BreakingFiles()
        store = DiskStore(tmp_path, files)
        store.put(HOME, *LARGE)
        made = files.labels.count("disk.mkdir")

        store.put(HOME, *block_of(SMALL_BLOCK, 1))

        assert files.labels.count("disk.mkdir") == made
        assert len([path for path in (tmp_path / "1").iterdir() if path.is_dir()]) == 256

    @pytest.mark.parametrize("nth", [None, 1, 3, 5])
    def test_what_lay_a_level_deeper_is_moved_at_the_start_whatever_cuts_it_short(
        self, tmp_path: Path, nth: int | None
    ) -> None:
        pairs = [block_of(SMALL_BLOCK, seed) for seed in range(4)]
        for space in (HOME, OTHER):
            for block, data in pairs:
                name = block.hex()
                path = tmp_path / str(space) / name[:2] / name[2:4] / name
                path.parent.mkdir(parents=True)
                path.write_bytes(data)
        (tmp_path / "1" / "ff").mkdir(exist_ok=True)
        if nth is not None:
            with pytest.raises(Died):
                DiskStore(tmp_path, BreakingFiles(die_at("disk.flatten", nth)))

        store = DiskStore(tmp_path)

        for space in (HOME, OTHER):
            assert store.get_many(space, [b for b, _ in pairs]) == dict(pairs)
        assert len(list(store.blocks())) == 8
        assert not [path for path in tmp_path.glob("?/??/??") if path.is_dir()]
        files = BreakingFiles()
        DiskStore(tmp_path, files)
        assert "disk.flatten" not in files.labels

    def test_other_files_in_the_folders_are_not_taken_for_blocks(self, tmp_path: Path) -> None:
        store = DiskStore(tmp_path)
        store.put(HOME, *LARGE)
        path = store.path_of(HOME, LARGE[0])
        (path.parent / "notes.txt").write_text("mine")
        (tmp_path / "lost+found").mkdir()

        assert [held.block for held in store.blocks()] == [LARGE[0]]


class TestLocalStore:
    @pytest.fixture
    def bad(self) -> list[wire.Held]:
        return []

    @pytest.fixture
    def store(self, tmp_path: Path, bad: list[wire.Held]) -> Iterator[LocalStore]:
        store = LocalStore(tmp_path / "root", floor=0, on_bad=bad.append)
        yield store
        store.close()

    def rot(self, store: LocalStore, block: bytes) -> None:
        own = [path for path in files_below(store.root) if path.name == block.hex()]
        flip(own[0] if own else next(store.root.glob("packs/*.pack")), 100)

    def test_small_blocks_are_packed_and_large_ones_are_files(self, store: LocalStore) -> None:
        store.put_many(HOME, [SMALL, LARGE])

        names = {path.name for path in files_below(store.root)}
        assert LARGE[0].hex() in names
        assert SMALL[0].hex() not in names

    @pytest.mark.parametrize("pair", [SMALL, LARGE], ids=["small", "large"])
    def test_what_rots_is_put_aside_told_once_and_healed_by_a_put(
        self, store: LocalStore, bad: list[wire.Held], pair: tuple[bytes, bytes]
    ) -> None:
        block, data = pair
        store.put(HOME, block, data)
        self.rot(store, block)

        for kind in (Kind.CORRUPT, Kind.NOT_FOUND):
            with pytest.raises(EverfoldError) as caught:
                store.get(HOME, block)
            assert caught.value.kind is kind

        assert bad == [wire.Held(HOME, block, len(data))]
        assert [path.name.startswith(f"1-{block.hex()}") for path in
                files_below(store.root / "quarantine")] == [True]  # fmt: skip
        store.put(HOME, block, data)
        assert store.get(HOME, block) == data

    @pytest.mark.parametrize("pair", [SMALL, LARGE], ids=["small", "large"])
    def test_putting_what_is_kept_but_rotten_heals_it(
        self, store: LocalStore, pair: tuple[bytes, bytes]
    ) -> None:
        store.put(HOME, *pair)
        self.rot(store, pair[0])

        store.put(HOME, *pair)

        assert store.get(HOME, pair[0]) == pair[1]

    @pytest.mark.parametrize("pair", [SMALL, LARGE], ids=["small", "large"])
    def test_what_is_sound_is_not_put_aside(
        self, store: LocalStore, bad: list[wire.Held], pair: tuple[bytes, bytes]
    ) -> None:
        store.put(HOME, *pair)

        assert store.put_aside(HOME, pair[0]) is False
        assert store.get(HOME, pair[0]) == pair[1]
        assert bad == []

    def test_a_file_cut_to_nothing_is_rotten(self, store: LocalStore, bad: list[wire.Held]) -> None:
        store.put(HOME, *LARGE)
        next(p for p in files_below(store.root) if p.name == LARGE[0].hex()).write_bytes(b"")

        assert store.get_many(HOME, [LARGE[0]]) == {}
        assert [held.block for held in bad] == [LARGE[0]]

    def test_evidence_is_bounded(self, store: LocalStore) -> None:
        for seed in range(70):
            block, data = block_of(SMALL_BLOCK, seed)
            store.put(HOME, block, data)
            self.rot(store, block)
            store.get_many(HOME, [block])

        assert len(files_below(store.root / "quarantine")) == 64

    def test_below_the_floor_nothing_is_taken_and_nothing_is_left(self, tmp_path: Path) -> None:
        room = [Room(total=10**9, free=10**6)]
        store = LocalStore(tmp_path / "root", floor=900_000, room=lambda path: room[0])
        store.put(HOME, *SMALL)

        for pairs in ([LARGE], [SMALL, LARGE]):
            with pytest.raises(EverfoldError) as caught:
                store.put_many(OTHER, pairs)
            assert caught.value.kind is Kind.NO_SPACE

        assert [(held.space, held.block) for held in store.blocks()] == [(HOME, SMALL[0])]
        assert store.get(HOME, SMALL[0]) == SMALL[1]
        assert store.free() == 100_000
        room[0] = Room(10**9, 10**8)
        store.put(OTHER, *LARGE)
        store.close()

    def test_a_batch_of_both_kinds_tells_which_are_new(self, store: LocalStore) -> None:
        store.put(HOME, *SMALL)
        other, large = block_of(2000), block_of(SMALL_BLOCK, 5)

        news = store.add_many(HOME, [other, SMALL, LARGE, other, large, LARGE])

        assert news == [True, False, True, False, True, False]

    def test_an_answer_may_not_be_larger_than_asked_for(self, store: LocalStore) -> None:
        store.put_many(HOME, [SMALL, LARGE])
        size = len(SMALL[1]) + len(LARGE[1])

        with pytest.raises(EverfoldError) as caught:
            store.get_many(HOME, [SMALL[0], LARGE[0]], limit=size - 1)

        assert caught.value.kind is Kind.TOO_LARGE
        assert store.get_many(HOME, [SMALL[0], LARGE[0]], limit=size) == dict([SMALL, LARGE])

    def test_the_floor_is_one_percent_but_at_least_64_mib(self, tmp_path: Path) -> None:
        big = LocalStore(tmp_path / "a", room=lambda path: Room(10**12, 10**12))
        small = LocalStore(tmp_path / "b", room=lambda path: Room(10**9, 10**9))

        assert big.floor == 10**10
        assert small.floor == 64 * 1024 * 1024
        big.close()
        small.close()

    def test_a_prefix_lists_what_starts_with_it(self, store: LocalStore) -> None:
        pairs = [block_of(size, seed) for seed in range(40) for size in (100, SMALL_BLOCK)]
        store.put_many(HOME, pairs)
        store.put(OTHER, *pairs[0])

        for prefix in range(256):
            wanted = {(HOME, b) for b, _ in pairs if b[0] == prefix}
            wanted |= {(OTHER, pairs[0][0])} if pairs[0][0][0] == prefix else set()
            assert {(held.space, held.block) for held in store.under(prefix)} == wanted
