"""Packs in tests: batches of small blocks, what a store must still hold, and crashes."""

from __future__ import annotations

from pathlib import Path

from everfold.model import BlockId, SpaceId
from everfold.stores.packs import PackStore
from tests.contracts.blockstore import HOME, block_of


def never(space: SpaceId, block: BlockId) -> None:
    raise AssertionError(f"{block.hex()} is not rotten")


def batch(count: int, size: int = 500, seed: int = 0) -> list[tuple[BlockId, bytes]]:
    return [block_of(size + n, seed) for n in range(count)]


def holds(store: PackStore, blocks: list[tuple[BlockId, bytes]], space: SpaceId = HOME) -> bool:
    return store.get_many(space, [b for b, _ in blocks]) == dict(blocks)


def reopened(store: PackStore, folder: Path, pack_size: int = 1 << 20) -> PackStore:
    """Return the store as the next process finds it after a crash of this one."""
    store.abandon()
    return PackStore(folder, pack_size=pack_size)


def packs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pack"))
