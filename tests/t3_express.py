"""Small stores that ask nobody first: when they are taken, and what becomes of them in trouble."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.blockid import name_of
from everfold.errors import EverfoldError, Kind
from everfold.model import SMALL_BLOCK, BlockId
from everfold.stores.memory import MemoryStore
from mount.blockcache import BlockCache
from mount.blockio import BlockIO
from mount.storing import StoreTiming
from tests.harness.blocknodes import SPACE, MemoryNames, MemoryNode


class Shop:
    """Three nodes, a nameserver that tells places beforehand, and one mount's block I/O."""

    def __init__(self, directory: Path) -> None:
        self.nodes = [MemoryNode(f"dn{i}") for i in (1, 2, 3)]
        self.names = MemoryNames(self.nodes, replicas=2)
        self.names.spares_s = 1e6
        self.io = BlockIO(
            SPACE,
            self.names,  # type: ignore[arg-type]  # the part that is asked for
            BlockCache(directory, 1 << 24, 1 << 24),
            self.names.client,
            2,
            store_timing=StoreTiming(attempt_s=0.3, grace_s=0.1, deadline_s=0.5),
        )
        self._made = 0

    def block(self, size: int = 100) -> tuple[BlockId, bytes]:
        self._made += 1
        data = self._made.to_bytes(4, "big") * (size // 4)
        return name_of(data), data

    def store(self, *blocks: tuple[BlockId, bytes]) -> list[list[str]]:
        """Store, check the promise, and return the nodes of each block."""
        stored = self.io.store(blocks)
        for each in stored:
            assert len(self.holders(each.block)) >= 2
        return [list(map(str, each.nodes)) for each in stored]

    def holders(self, block: BlockId) -> list[str]:
        return [node.id for node in self.nodes if node.has(block)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    for node in shop.nodes:
        if node.gate is not None:
            node.gate.set()
    shop.io.close()


def test_only_the_first_small_store_asks_where_to(shop: Shop) -> None:
    for _ in range(5):
        (nodes,) = shop.store(shop.block())
        assert len(nodes) == 2

    assert shop.names.calls == ["plan"]


def test_a_block_given_twice_is_answered_twice_and_sent_once(shop: Shop) -> None:
    shop.store(shop.block())
    block = shop.block()
    before = sum(node.received for node in shop.nodes)

    first, second = shop.store(block, block)

    assert first == second
    assert sum(node.received for node in shop.nodes) == before + 2


def test_large_blocks_and_many_blocks_are_planned(shop: Shop) -> None:
    shop.store(shop.block())

    shop.store(shop.block(SMALL_BLOCK))
    shop.store(*(shop.block() for _ in range(65)))

    assert shop.names.calls == ["plan"] * 3


def test_places_that_have_grown_old_are_not_used(shop: Shop) -> None:
    shop.names.spares_s = 0.0
    shop.store(shop.block())
    shop.store(shop.block())

    assert shop.names.calls == ["plan"] * 2


@pytest.mark.expects_warnings
def test_a_node_of_the_place_that_is_down_is_replaced(shop: Shop) -> None:
    ((first, _),) = shop.store(shop.block())
    next(node for node in shop.nodes if node.id == first).is_down = True

    (nodes,) = shop.store(shop.block())

    assert first not in nodes


@pytest.mark.expects_warnings
def test_a_node_of_the_place_that_hangs_costs_one_attempt(shop: Shop) -> None:
    ((first, _),) = shop.store(shop.block())
    next(node for node in shop.nodes if node.id == first).gate = threading.Event()

    for _ in range(3):
        (nodes,) = shop.store(shop.block())
        assert first not in nodes

    hung = next(node for node in shop.nodes if node.id == first)
    assert hung.calls.count("put_many") <= 2  # once by itself, and as a last resort at most


def test_a_token_that_has_run_out_is_renewed(shop: Shop) -> None:
    shop.store(shop.block())
    shop.names.token = "t2"
    for node in shop.nodes:
        node.good_tokens = {"t2"}

    shop.store(shop.block())
    shop.store(shop.block())

    assert shop.nodes[0].token == "t2"


@pytest.mark.expects_warnings
def test_a_node_that_is_full_is_replaced(shop: Shop) -> None:
    ((first, _),) = shop.store(shop.block())
    next(node for node in shop.nodes if node.id == first).store = MemoryStore(capacity=0)

    (nodes,) = shop.store(shop.block())

    assert first not in nodes


def test_without_enough_nodes_it_is_unavailable(shop: Shop) -> None:
    shop.store(shop.block())
    shop.nodes[0].is_down = shop.nodes[1].is_down = True

    with pytest.raises(EverfoldError) as caught:
        shop.io.store([shop.block()])

    assert caught.value.kind is Kind.UNAVAILABLE
