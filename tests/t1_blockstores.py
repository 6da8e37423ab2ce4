"""Every block store keeps the one contract, alone and combined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.services import BlockStore
from everfold.stores.disk import DiskStore
from everfold.stores.local import LocalStore
from everfold.stores.memory import MemoryStore
from everfold.stores.packs import PackStore
from everfold.stores.remote import RemoteStore
from everfold.stores.replicated import ReplicatedStore
from everfold.stores.verified import VerifiedStore
from tests.contracts.blockstore import HOME, BlockStoreContract, block_of
from tests.harness import nodes
from tests.harness.faults import FaultyStore


class TestMemory(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlockStore:
        return MemoryStore()


class TestDisk(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlockStore:
        return DiskStore(tmp_path / "blocks")


class TestPacks(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        store = PackStore(tmp_path / "packs", pack_size=100_000)
        yield store
        store.close()


class TestLocal(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        store = LocalStore(tmp_path / "root", floor=0)
        yield store
        store.close()


class TestReplicated(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        store = ReplicatedStore([MemoryStore() for _ in range(3)], copies=2, min_acks=2)
        yield store
        store.close()


class TestReplicatedWithADeadStore(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        lame = FaultyStore(MemoryStore())
        lame.is_full = True
        store = ReplicatedStore([lame, MemoryStore(), MemoryStore()], copies=2, min_acks=2)
        yield store
        store.close()


class TestVerified(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlockStore:
        return VerifiedStore(MemoryStore())


class TestRemoteInProcess(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        node = nodes.InProcessNode(tmp_path / "dn1")
        yield RemoteStore(node.transport, nodes.token)
        node.close()


class TestRemoteProcess(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        with nodes.running(tmp_path) as node:
            store = RemoteStore(node.transport(), nodes.token, timeout_s=20)
            yield store
            store.close()


class TestFaults:
    """What the combinators make of stores that misbehave."""

    def test_a_lying_store_is_found_out_and_told(self) -> None:
        block, data = block_of(1000)
        liar = FaultyStore(MemoryStore())
        told: list[bytes] = []
        store = VerifiedStore(liar, on_bad=lambda space, bad: told.append(bad))
        store.put(HOME, block, data)
        liar.is_lying = True

        with pytest.raises(EverfoldError) as caught:
            store.get(HOME, block)

        assert caught.value.kind is Kind.CORRUPT
        assert store.get_many(HOME, [block]) == {}
        assert told == [block, block]

    def test_a_read_passes_over_stores_that_are_down_or_lie(self) -> None:
        block, data = block_of(1000)
        inner = [FaultyStore(MemoryStore()) for _ in range(3)]
        store = ReplicatedStore([VerifiedStore(one) for one in inner], copies=3, min_acks=3)
        store.put(HOME, block, data)
        inner[0].is_down = True
        inner[1].is_lying = True

        assert store.get(HOME, block) == data
        assert store.get_many(HOME, [block]) == {block: data}
        assert store.size_of(HOME, block) == 1000
        store.close()

    def test_an_outage_is_not_taken_for_absence(self) -> None:
        block, _ = block_of(1000)
        inner = [FaultyStore(MemoryStore()) for _ in range(2)]
        store = ReplicatedStore(inner, copies=2, min_acks=1)
        inner[1].is_down = True

        with pytest.raises(EverfoldError) as on_get:
            store.get(HOME, block)
        with pytest.raises(EverfoldError) as on_size:
            store.size_of(HOME, block)

        assert on_get.value.kind is Kind.UNAVAILABLE
        assert on_size.value.kind is Kind.UNAVAILABLE
        store.close()

    def test_a_put_with_too_few_acks_fails(self) -> None:
        block, data = block_of(1000)
        inner = [FaultyStore(MemoryStore()) for _ in range(3)]
        store = ReplicatedStore(inner, copies=2, min_acks=2)
        inner[0].is_down = inner[2].is_down = True

        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, block, data)

        assert caught.value.kind is Kind.UNAVAILABLE
        store.close()

    def test_a_put_goes_on_to_another_store_when_one_is_full(self) -> None:
        block, data = block_of(1000)
        inner = [FaultyStore(MemoryStore()) for _ in range(3)]
        store = ReplicatedStore(inner, copies=2, min_acks=2)
        inner[0].is_full = True

        store.put(HOME, block, data)

        assert [one.inner.size_of(HOME, block) for one in inner] == [None, 1000, 1000]
        store.close()

    def test_a_full_memory_store_says_so(self) -> None:
        store = MemoryStore(capacity=1500)
        store.put(HOME, *block_of(1000))

        with pytest.raises(EverfoldError) as caught:
            store.put(HOME, *block_of(1001))

        assert caught.value.kind is Kind.NO_SPACE

    def test_impossible_replication_is_refused(self) -> None:
        with pytest.raises(EverfoldError):
            ReplicatedStore([MemoryStore()], copies=2, min_acks=1)
