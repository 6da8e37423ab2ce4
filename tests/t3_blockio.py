"""Reading and storing blocks while nodes are down, slow, lying or full."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everfold.blockid import name_of
from everfold.errors import EverfoldError, Kind
from everfold.model import SMALL_BLOCK, BlockId, NodeState
from mount import patience
from mount.blockcache import BlockCache
from mount.blockio import BlockIO
from mount.fetching import FetchTiming
from mount.storing import StoreTiming
from tests.harness.blocknodes import SPACE, MemoryNames, MemoryNode
from tests.harness.machine import wait_until

FETCH = FetchTiming(hedge_s=0.2, attempt_s=0.5, deadline_s=1.0, pause_s=0.01)
STORE = StoreTiming(attempt_s=0.5, grace_s=0.1, deadline_s=0.5)
PATIENT = StoreTiming(attempt_s=20, grace_s=20)


class World:
    """Three nodes, a nameserver and the block I/O of one mount."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes = [MemoryNode(f"dn{i}") for i in (1, 2, 3)]
        self.names = MemoryNames(self.nodes, replicas=2)
        self.opened: list[BlockIO] = []
        self.io = self.open()

    def open(self, min_replicas: int = 2, store_timing: StoreTiming = STORE) -> BlockIO:
        cache = BlockCache(self.directory / f"cache{len(self.opened)}", 1 << 24, 1 << 24)
        io = BlockIO(
            SPACE,
            self.names,  # type: ignore[arg-type]  # the part that is asked for
            cache,
            self.names.client,
            min_replicas,
            fetch_timing=FETCH,
            store_timing=store_timing,
        )
        self.opened.append(io)
        return io

    def keep(self, mark: int, size: int, on: list[int]) -> tuple[BlockId, bytes]:
        """Put a block on some nodes, behind the mount's back."""
        block, data = block_of(mark, size)
        for i in on:
            self.nodes[i].store.put(SPACE, block, data)
        return block, data

    def holders(self, block: BlockId) -> list[str]:
        return [node.id for node in self.nodes if node.has(block)]


def block_of(mark: int, size: int) -> tuple[BlockId, bytes]:
    data = (mark.to_bytes(4, "big") * (size // 4 + 1))[:size]
    return name_of(data), data


def took(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for node in world.nodes:
        if node.gate is not None:
            node.gate.set()
    for io in world.opened:
        io.close()


# ---------------------------------------------------------------------- reading


def test_a_part_of_a_block_is_read_and_the_next_read_asks_nobody(world: World) -> None:
    block, data = world.keep(1, 1000, [0])

    assert world.io.read(block, 10, 20) == data[10:30]
    asked = sum(len(node.calls) for node in world.nodes)
    assert world.io.read(block, 500, 500) == data[500:]

    assert sum(len(node.calls) for node in world.nodes) == asked == 1
    assert world.names.calls == ["locate"]


def test_what_the_extents_told_need_not_be_located(world: World) -> None:
    block, data = world.keep(1, 1000, [1])
    world.io.learn({block: [world.nodes[1].id]}, [node.node for node in world.nodes])
    world.io.learn_token("t1", 4e9)

    assert world.io.read(block, 0, 1000) == data
    assert world.names.calls == []


def test_a_read_beyond_the_block_is_an_error_and_never_short(world: World) -> None:
    block, _ = world.keep(1, 1000, [0])

    for _ in range(2):  # from the node, then from the cache
        with pytest.raises(EverfoldError) as caught:
            world.io.read(block, 990, 11)
        assert caught.value.kind is Kind.CORRUPT


def test_many_readers_of_one_block_share_one_fetch(world: World) -> None:
    block, data = world.keep(1, 100_000, [0])
    gate = world.nodes[0].gate = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(world.io.read, block, i, 100) for i in range(8)]
        assert world.nodes[0].arrived.acquire(timeout=5)
        gate.set()

        assert [read.result() for read in reads] == [data[i : i + 100] for i in range(8)]

    assert world.nodes[0].calls.count("get") == 1


def test_a_node_that_is_down_is_passed_over_at_once(world: World) -> None:
    world.nodes[0].is_down = world.nodes[1].is_down = True
    block, data = world.keep(1, 1000, [0, 1, 2])

    assert world.io.read(block, 0, 1000) == data


def test_a_node_that_hangs_costs_a_hedge_and_then_nothing(world: World) -> None:
    world.nodes[0].gate = threading.Event()  # never set: as if stopped
    blocks = [world.keep(i, 1000, [0, 1]) for i in range(20)]

    def read_all() -> None:
        for block, data in blocks:
            assert world.io.read(block, 0, 1000) == data

    assert took(read_all) < 10 * FETCH.hedge_s + 1
    assert world.nodes[0].calls.count("get") < 10


def test_when_both_are_slow_the_first_good_answer_wins(world: World) -> None:
    gates = [threading.Event(), threading.Event()]
    world.nodes[0].gate, world.nodes[1].gate = gates
    block, data = world.keep(1, 1000, [0, 1])
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(world.io.read, block, 0, 1000)
        for node in world.nodes[:2]:
            assert node.arrived.acquire(timeout=5)
        gates[1].set()

        assert read.result() == data


@pytest.mark.expects_warnings
def test_a_lying_node_is_seen_through_and_reported(world: World) -> None:
    world.nodes[0].is_lying = True
    blocks = [world.keep(i, 1000, [0, 1]) for i in range(12)]

    for block, data in blocks:
        assert world.io.read(block, 0, 1000) == data

    assert world.names.reported.acquire(timeout=5)
    assert {(node, reason) for node, _, reason in world.names.reports} == {("dn1", "corrupt")}


@pytest.mark.expects_warnings
def test_a_node_without_the_block_is_reported_and_another_asked(world: World) -> None:
    block, data = world.keep(1, 1000, [1])
    world.io.learn({block: [world.nodes[0].id]}, [node.node for node in world.nodes])

    assert world.io.read(block, 0, 1000) == data

    assert world.names.reported.acquire(timeout=5)
    assert world.names.reports == [("dn1", block, "missing")]


@pytest.mark.expects_warnings
def test_a_block_whose_every_copy_is_bad_is_missing_and_not_zeros(world: World) -> None:
    for node in world.nodes:
        node.is_lying = True
    block, _ = world.keep(1, 1000, [0, 1, 2])

    with pytest.raises(EverfoldError) as caught:
        world.io.read(block, 0, 1000)

    assert caught.value.kind is Kind.MISSING


def test_a_block_that_no_node_has_is_missing(world: World) -> None:
    block, _ = block_of(1, 100)

    with pytest.raises(EverfoldError) as caught:
        world.io.read(block, 0, 100)

    assert caught.value.kind is Kind.MISSING


@pytest.mark.parametrize("how", ["down", "hung"])
def test_nodes_that_cannot_be_reached_are_unavailable_within_the_deadline(
    world: World, how: str
) -> None:
    for node in world.nodes:
        node.is_down = how == "down"
        node.gate = threading.Event() if how == "hung" else None
    block, _ = world.keep(1, 100, [0, 1])

    def read() -> None:
        with pytest.raises(EverfoldError) as caught:
            world.io.read(block, 0, 100)
        assert caught.value.kind is Kind.UNAVAILABLE

    assert took(read) < FETCH.deadline_s + 1


def test_a_node_that_comes_back_within_the_deadline_serves_the_read(world: World) -> None:
    block, data = world.keep(1, 100, [0])
    world.nodes[0].is_down = True
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(world.io.read, block, 0, 100)
        assert world.nodes[0].arrived.acquire(timeout=5)
        world.nodes[0].is_down = False

        assert read.result() == data


def test_without_the_nameserver_known_places_are_read_and_others_unavailable(
    world: World,
) -> None:
    known, data = world.keep(1, 100, [0])
    unknown, _ = world.keep(2, 100, [0])
    world.io.learn({known: [world.nodes[0].id]}, [node.node for node in world.nodes])
    world.io.learn_token("t1", 4e9)
    world.names.is_down = True

    assert world.io.read(known, 0, 100) == data
    with pytest.raises(EverfoldError) as caught:
        world.io.read(unknown, 0, 100)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_failed_node_is_never_asked(world: World) -> None:
    world.nodes[0].state = NodeState.FAILED
    block, data = world.keep(1, 100, [0, 1])

    assert world.io.read(block, 0, 100) == data
    assert world.nodes[0].calls == []


def test_a_suspect_node_is_asked_last(world: World) -> None:
    world.nodes[0].state = NodeState.SUSPECT
    blocks = [world.keep(i, 100, [0, 1]) for i in range(10)]

    for block, data in blocks:
        assert world.io.read(block, 0, 100) == data

    assert world.nodes[0].calls == []


def test_an_expired_token_is_renewed_and_the_call_made_again(world: World) -> None:
    block, data = world.keep(1, 100, [0])
    world.io.learn_token("old", 4e9)  # this clock thinks that it is good

    assert world.io.read(block, 0, 100) == data
    assert world.nodes[0].token == "t1"


def test_an_impatient_thread_reads_the_cache_and_never_the_network(world: World) -> None:
    cached, data = world.keep(1, 100, [0])
    other, _ = world.keep(2, 100, [0])
    world.io.read(cached, 0, 100)
    asked = len(world.nodes[0].calls)
    seen: list[object] = []

    def impatient() -> None:
        patience.never_wait()
        seen.append(world.io.read(cached, 0, 100))
        try:
            world.io.read(other, 0, 100)
        except patience.MustWait as must:
            seen.append(must)

    thread = threading.Thread(target=impatient)
    thread.start()
    thread.join()

    assert seen[0] == data
    assert isinstance(seen[1], patience.MustWait)
    assert len(world.nodes[0].calls) == asked


# ---------------------------------------------------------------------- ahead


def test_small_blocks_are_prefetched_many_to_a_request(world: World) -> None:
    blocks = [world.keep(i, 100, [0]) for i in range(300)]

    world.io.prefetch([(block, 100) for block, _ in blocks])
    cache = world.io.cache
    wait_until(lambda: all(cache.has(SPACE, b) for b, _ in blocks), 5, "the blocks are here")

    assert world.nodes[0].calls == ["get_many"] * 3
    assert world.names.calls.count("locate") == 1
    assert all(world.io.read(block, 0, 100) == data for block, data in blocks)


def test_blocks_of_unknown_size_are_prefetched_one_by_one(world: World) -> None:
    blocks = [world.keep(i, SMALL_BLOCK, [0, 1]) for i in range(10)]

    world.io.prefetch([block for block, _ in blocks])
    cache = world.io.cache
    wait_until(lambda: all(cache.has(SPACE, b) for b, _ in blocks), 5, "the blocks are here")

    assert sum(node.calls.count("get") for node in world.nodes) == 10


def test_a_reader_waits_for_a_prefetch_that_is_under_way(world: World) -> None:
    blocks = [world.keep(i, 100, [0]) for i in range(10)]
    gate = world.nodes[0].gate = threading.Event()
    world.io.prefetch([(block, 100) for block, _ in blocks])
    assert world.nodes[0].arrived.acquire(timeout=5)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(world.io.read, blocks[3][0], 0, 100)
        gate.set()

        assert read.result() == blocks[3][1]

    assert world.nodes[0].calls == ["get_many"]


def test_a_reader_does_not_wait_for_a_prefetch_from_a_node_that_hangs(world: World) -> None:
    blocks = [world.keep(i, 100, [0, 1]) for i in range(10)]
    world.io.learn(
        {block: [world.nodes[0].id, world.nodes[1].id] for block, _ in blocks},
        [n.node for n in world.nodes],
    )
    world.nodes[0].gate = threading.Event()  # never set
    world.nodes[1].gate = threading.Event()
    world.io.prefetch([(block, 100) for block, _ in blocks])
    hanging = next(n for n in world.nodes[:2] if n.arrived.acquire(timeout=2.5))
    other = next(n for n in world.nodes[:2] if n is not hanging)
    assert other.gate is not None
    other.gate.set()

    assert world.io.read(blocks[3][0], 0, 100) == blocks[3][1]
    assert "get" in other.calls


def test_a_prefetch_that_the_end_of_the_mount_stops_keeps_no_reader(world: World) -> None:
    blocks = [world.keep(i, 100, [0]) for i in range(10)]
    world.nodes[0].gate = threading.Event()  # never set
    world.io.prefetch([(block, 100) for block, _ in blocks])
    assert world.nodes[0].arrived.acquire(timeout=5)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(world.io.read, blocks[3][0], 0, 100)
        world.io.close()
        with pytest.raises(EverfoldError) as refused:
            read.result(5)

    assert refused.value.kind is Kind.UNAVAILABLE


@pytest.mark.expects_warnings
def test_a_prefetch_that_fails_harms_no_reader(world: World) -> None:
    world.nodes[0].is_lying = True
    blocks = [world.keep(i, 100, [0, 1]) for i in range(10)]
    world.io.learn(
        {block: [world.nodes[0].id] for block, _ in blocks}, [n.node for n in world.nodes]
    )
    world.io.prefetch([(block, 100) for block, _ in blocks])
    assert world.nodes[0].arrived.acquire(timeout=5)

    assert all(world.io.read(block, 0, 100) == data for block, data in blocks)


# ---------------------------------------------------------------------- storing


def test_stored_blocks_are_on_enough_nodes_and_in_the_cache(world: World) -> None:
    blocks = [block_of(1, 100), block_of(2, SMALL_BLOCK), block_of(3, 200)]

    stored = world.io.store([(block, memoryview(data)) for block, data in blocks])

    assert [each.block for each in stored] == [block for block, _ in blocks]
    assert [each.size for each in stored] == [100, SMALL_BLOCK, 200]
    for each in stored:
        assert each.nodes == world.holders(each.block)
        assert len(each.nodes) == 2
    world.names.is_down = True
    assert all(world.io.read(block, 0, len(data)) == data for block, data in blocks)


def test_small_blocks_go_many_to_a_request_and_large_ones_alone(world: World) -> None:
    small = [block_of(i, 100) for i in range(100)]
    large = [block_of(i, SMALL_BLOCK) for i in range(100, 103)]

    world.io.store(small + large)

    for node in world.nodes[:2]:
        assert sorted(node.calls) == ["put"] * 3 + ["put_many"]


def test_what_the_cluster_has_is_not_sent_again(world: World) -> None:
    here = world.keep(1, 1000, [0, 1])
    fresh = block_of(2, 1000)

    stored = world.io.store([here, fresh])

    assert [len(each.nodes) for each in stored] == [0, 2]
    assert world.names.calls.count("plan") == 1


def test_a_block_given_twice_is_answered_twice_and_sent_once(world: World) -> None:
    block, data = block_of(1, SMALL_BLOCK)

    stored = world.io.store([(block, data), (block, data)])

    assert stored[0] == stored[1]
    assert [node.calls.count("put") for node in world.nodes] == [1, 1, 0]


def test_storing_nothing_asks_nobody(world: World) -> None:
    assert world.io.store([]) == []
    assert world.names.calls == []


def test_a_block_with_too_few_copies_gets_the_ones_it_lacks(world: World) -> None:
    block, data = world.keep(1, 1000, [0])

    (stored,) = world.io.store([(block, data)])

    assert world.holders(block) == ["dn1", "dn2"]
    assert stored.nodes == ["dn2"]


@pytest.mark.parametrize("size", [100, SMALL_BLOCK])
def test_a_node_that_is_down_is_replaced_by_another(world: World, size: int) -> None:
    world.nodes[0].is_down = True
    blocks = [block_of(i, size) for i in range(5)]

    stored = world.io.store(blocks)

    assert all(each.nodes == ["dn2", "dn3"] for each in stored)
    assert world.names.avoided[-1] == ["dn1"]


@pytest.mark.parametrize("size", [100, SMALL_BLOCK])
def test_a_node_that_hangs_holds_nobody_up_for_long(world: World, size: int) -> None:
    world.nodes[0].gate = threading.Event()
    blocks = [block_of(i, size) for i in range(40)]
    stored = []

    assert took(lambda: stored.extend(world.io.store(blocks))) < STORE.attempt_s + 1
    assert all(each.nodes == ["dn2", "dn3"] for each in stored)
    assert took(lambda: world.io.store([block_of(99, size)])) < STORE.attempt_s


@pytest.mark.parametrize("size", [100, SMALL_BLOCK])
def test_where_all_nodes_are_slow_more_patience_is_had_with_them(world: World, size: int) -> None:
    for node in world.nodes:
        node.needs_s = 5 * STORE.attempt_s

    (stored,) = world.io.store([block_of(1, size)], 30.0)

    assert len(stored.nodes) == 2
    had = sorted(each for node in world.nodes for each in node.patience)
    assert had == [times * STORE.attempt_s for times in (1, 1, 2, 2, 4, 4, 8, 8)]


def test_while_the_nameserver_is_away_no_more_patience_is_had_with_nodes(world: World) -> None:
    world.names.fails = [Kind.TIMEOUT] * 3

    world.io.store([block_of(1, 100)], 30.0)

    assert [node.patience for node in world.nodes[:2]] == [[STORE.attempt_s]] * 2


def test_a_straggler_is_not_waited_for_when_enough_have_answered(world: World) -> None:
    world.names.replicas = 3
    gate = world.nodes[2].gate = threading.Event()
    block, data = block_of(1, 1000)

    (stored,) = world.io.store([(block, data)])

    assert stored.nodes == ["dn1", "dn2"]
    gate.set()
    wait_until(lambda: world.nodes[2].has(block), 5, "the straggler has it after all")


def test_all_targets_are_waited_for_when_all_are_quick(world: World) -> None:
    world.names.replicas = 3
    io = world.open(1, PATIENT)
    gate = world.nodes[2].gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        store = pool.submit(io.store, [block_of(1, 1000)])
        assert world.nodes[2].arrived.acquire(timeout=5)
        gate.set()

        assert store.result()[0].nodes == ["dn1", "dn2", "dn3"]


def test_a_full_node_is_replaced_by_another(world: World) -> None:
    world.nodes[0] = world.names.nodes[0] = MemoryNode("dn1", capacity=300)
    blocks = [block_of(i, 100) for i in range(10)]

    stored = world.io.store(blocks)

    assert all(len(set(each.nodes)) >= 2 for each in stored)
    assert all(len(world.holders(block)) >= 2 for block, _ in blocks)


def test_when_all_nodes_are_full_it_is_no_space(world: World) -> None:
    for i in range(3):
        world.nodes[i] = world.names.nodes[i] = MemoryNode(f"dn{i + 1}", capacity=50)

    with pytest.raises(EverfoldError) as caught:
        world.io.store([block_of(1, 100)])

    assert caught.value.kind is Kind.NO_SPACE


def test_with_too_few_nodes_it_is_unavailable_within_the_deadline(world: World) -> None:
    for node in world.nodes[1:]:
        node.is_down = True

    def store() -> None:
        with pytest.raises(EverfoldError) as caught:
            world.io.store([block_of(1, 100)])
        assert caught.value.kind is Kind.UNAVAILABLE

    assert took(store) < STORE.deadline_s + 1.5


def test_a_store_goes_on_when_nodes_come_back(world: World) -> None:
    for node in world.nodes[1:]:
        node.is_down = True
    with ThreadPoolExecutor(1) as pool:
        store = pool.submit(world.io.store, [block_of(1, 100)], 10.0)
        assert world.nodes[1].arrived.acquire(timeout=5)
        for node in world.nodes[1:]:
            node.is_down = False

        assert len(store.result()[0].nodes) >= 2


def test_a_nameserver_that_is_away_for_a_moment_is_asked_again(world: World) -> None:
    world.names.fails = [Kind.UNAVAILABLE, Kind.TIMEOUT]

    (stored,) = world.io.store([block_of(1, 100)])

    assert len(stored.nodes) == 2


@pytest.mark.parametrize("kind", [Kind.QUOTA, Kind.FORBIDDEN, Kind.NO_SPACE])
def test_what_waiting_cannot_mend_is_told_at_once(world: World, kind: Kind) -> None:
    world.names.fails = [kind]

    with pytest.raises(EverfoldError) as caught:
        world.io.store([block_of(1, 100)])

    assert caught.value.kind is kind
    assert world.names.calls == ["plan"]


def test_after_close_calls_fail_and_do_not_hang(world: World) -> None:
    block, _ = world.keep(1, 100, [0])
    world.io.close()
    world.io.close()

    with pytest.raises(EverfoldError) as caught:
        world.io.read(block, 0, 100)
    assert caught.value.kind is Kind.UNAVAILABLE
    with pytest.raises(EverfoldError) as caught:
        world.io.store([block_of(2, 100)])
    assert caught.value.kind is Kind.UNAVAILABLE
