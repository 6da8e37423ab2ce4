"""What every block store must do, whatever is behind it. Subclass and give `store`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everfold import blockid
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId, SpaceId
from everfold.services import BlockStore

HOME = SpaceId(1)
OTHER = SpaceId(2)
SIZES = [1, 100, 4096, SMALL_BLOCK - 1, SMALL_BLOCK, 300_000, BLOCK_MAX]


def block_of(size: int, seed: int = 0) -> tuple[BlockId, bytes]:
    """Return a block with bytes of its own."""
    data = (seed.to_bytes(8, "little") + size.to_bytes(8, "little") + bytes(range(256))) * (
        size // 272 + 1
    )
    data = data[:size]
    return blockid.name_of(data), data


class BlockStoreContract:
    """The contract; `store` is a fixture of the subclass."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> BlockStore:
        pytest.fail("each class of this contract has a store fixture of its own")

    @pytest.mark.parametrize("size", SIZES)
    def test_what_was_put_is_got_back(self, store: BlockStore, size: int) -> None:
        block, data = block_of(size)

        store.put(HOME, block, data)

        assert store.get(HOME, block) == data
        assert store.size_of(HOME, block) == size

    def test_putting_twice_changes_nothing(self, store: BlockStore) -> None:
        block, data = block_of(5000)

        store.put(HOME, block, data)
        store.put(HOME, block, memoryview(data))

        assert store.get(HOME, block) == data
        assert [held.block for held in store.blocks()] == [block]

    def test_a_block_that_was_never_put_is_not_found(self, store: BlockStore) -> None:
        block, _ = block_of(10)

        with pytest.raises(EverfoldError) as caught:
            store.get(HOME, block)

        assert caught.value.kind is Kind.NOT_FOUND
        assert store.size_of(HOME, block) is None
        assert store.delete(HOME, block) is False
        assert store.get_many(HOME, [block]) == {}

    @pytest.mark.parametrize("size", [10, SMALL_BLOCK * 2])
    def test_bytes_that_do_not_match_their_name_are_refused(
        self, store: BlockStore, size: int
    ) -> None:
        block, data = block_of(size)
        wrong = data[:-1] + bytes([data[-1] ^ 1])

        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, block, wrong)

        assert caught.value.kind is Kind.CORRUPT
        assert store.size_of(HOME, block) is None

    def test_a_batch_with_a_wrong_block_is_refused(self, store: BlockStore) -> None:
        good, data = block_of(10)

        with pytest.raises(EverfoldError) as caught:
            store.put_many(HOME, [(good, data), (block_of(11)[0], data)])

        assert caught.value.kind is Kind.CORRUPT
        assert store.size_of(HOME, block_of(11)[0]) is None

    @pytest.mark.parametrize("data", [b"", bytes(BLOCK_MAX + 1)], ids=["empty", "too large"])
    def test_impossible_sizes_are_refused(self, store: BlockStore, data: bytes) -> None:
        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, blockid.name_of(data), data)

        assert caught.value.kind in (Kind.INVALID, Kind.TOO_LARGE)

    def test_spaces_never_meet(self, store: BlockStore) -> None:
        block, data = block_of(5000)

        store.put(HOME, block, data)

        assert store.size_of(OTHER, block) is None
        store.put(OTHER, block, data)
        assert store.delete(HOME, block) is True
        assert store.get(OTHER, block) == data

    @pytest.mark.parametrize("size", [4096, SMALL_BLOCK + 1])
    def test_what_was_deleted_is_gone_and_may_come_again(
        self, store: BlockStore, size: int
    ) -> None:
        block, data = block_of(size)
        store.put(HOME, block, data)

        assert store.delete(HOME, block) is True
        assert store.size_of(HOME, block) is None
        assert store.delete(HOME, block) is False

        store.put(HOME, block, data)
        assert store.get(HOME, block) == data

    def test_a_batch_of_all_sizes_is_kept(self, store: BlockStore) -> None:
        batch = [block_of(size, seed) for seed in range(3) for size in SIZES if size > 16]

        store.put_many(HOME, [*batch, batch[0]])

        wanted = dict(batch)
        missing = block_of(77)[0]
        assert store.get_many(HOME, [*wanted, missing]) == wanted
        assert {held.block: held.size for held in store.blocks()} == {
            block: len(data) for block, data in wanted.items()
        }

    def test_an_empty_batch_is_no_error(self, store: BlockStore) -> None:
        store.put_many(HOME, [])

        assert store.get_many(HOME, []) == {}
        assert list(store.blocks()) == []

    def test_threads_may_share_it(self, store: BlockStore) -> None:
        mine = [[block_of(500 + i, seed) for i in range(15)] for seed in range(4)]
        common = block_of(9999)

        def work(batch: list[tuple[BlockId, bytes]]) -> bool:
            store.put(HOME, *common)
            for block, data in batch:
                store.put(HOME, block, data)
            return all(store.get(HOME, block) == data for block, data in batch)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, mine))
        assert len(list(store.blocks())) == 4 * 15 + 1


def random_block(size: int) -> tuple[BlockId, bytes]:
    """Return a block that no other call returns."""
    data = os.urandom(size)
    return blockid.name_of(data), data
