"""The scrubber: rot is found before anyone reads it, and garbage is tidied away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datanode.scrub import Scrub
from everfold import wire
from everfold.model import SMALL_BLOCK, SpaceId
from tests.contracts.blockstore import block_of
from tests.harness import nodes
from tests.harness.machine import wait_until

HOME = SpaceId(1)
PAIRS = [block_of(size, seed) for seed in range(4) for size in (900, SMALL_BLOCK + 5)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[nodes.InProcessNode]:
    node = nodes.InProcessNode(tmp_path / "dn1")
    node.client().put_many(PAIRS)
    yield node
    node.close()


def test_a_round_verifies_everything_and_finds_each_rotten_block(
    node: nodes.InProcessNode, caplog: pytest.LogCaptureFixture
) -> None:
    small, large = PAIRS[0], PAIRS[1]
    pack = next(node.node.store.root.glob("packs/*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[raw.index(small[1]) + 3] ^= 1
    pack.write_bytes(raw)
    next(node.node.store.root.rglob(large[0].hex())).write_bytes(b"x" * len(large[1]))
    scrub = Scrub(node.node, pause_s=0.0, rate=1e9)
    scrub.start()

    wait_until(lambda: scrub.passes >= 1, 20, "a whole round")

    scrub.close()
    news = node.node.ledger.news(node.node.store.size_of)
    assert {held.block for held in news.bad} == {small[0], large[0]}
    assert node.client().get_many([b for b, _ in PAIRS]) == dict(PAIRS[2:])
    assert node.node.counters["scrubbed"] >= len(PAIRS)
    assert "had rotted" in caplog.text
    caplog.clear()


def test_a_file_that_vanished_is_noticed(
    node: nodes.InProcessNode, caplog: pytest.LogCaptureFixture
) -> None:
    large = PAIRS[1]
    next(node.node.store.root.rglob(large[0].hex())).unlink()

    Scrub(node.node, rate=1e9).scrub(large[0][0])

    assert node.node.ledger.totals()[0] == len(PAIRS) - 1
    news = node.node.ledger.news(node.node.store.size_of)
    mine = news.digests[large[0][0]]
    assert mine.xor ^ wire.held_digest(HOME, large[0]) != mine.xor
    assert "was not what was noted" in caplog.text
    caplog.clear()


def test_the_position_is_remembered(node: nodes.InProcessNode) -> None:
    scrub = Scrub(node.node, pause_s=0.0, rate=1e9)
    scrub.start()
    wait_until(lambda: (node.node.store.root / "scrub.position").exists(), 5, "a step")
    scrub.close()
    stopped_at = int((node.node.store.root / "scrub.position").read_text())
    seen: list[int] = []

    class Watching(Scrub):
        def scrub(self, prefix: int) -> None:
            seen.append(prefix)

    again = Watching(node.node, pause_s=0.0)
    again.start()
    wait_until(lambda: bool(seen), 5, "a step")
    again.close()

    assert seen[0] == stopped_at


def test_it_keeps_to_its_rate_and_can_be_stopped_meanwhile(node: nodes.InProcessNode) -> None:
    scrub = Scrub(node.node, pause_s=0.0, rate=1.0)  # hours for these blocks
    scrub.start()
    wait_until(lambda: node.node.counters["scrubbed"] >= 1, 20, "a first block")

    scrub.close()

    assert not scrub.is_alive()
    assert node.node.counters["scrubbed"] <= 2


def test_a_node_that_is_asked_for_blocks_is_scrubbed_at_the_least_rate_for_a_while(
    node: nodes.InProcessNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.node.ledger, "totals", lambda: (1, 1 << 40))
    free = [prefix for prefix in range(256) if prefix not in {block[0] for block, _ in PAIRS}]
    scrub = Scrub(node.node)
    rates = []
    for prefix in free[:60]:
        scrub.scrub(prefix)
        rates.append(scrub.rate)
    node.client().get(PAIRS[0][0])
    scrub.scrub(free[0])

    assert rates == [scrub.rate] * 50 + [rates[-1]] * 10
    assert rates[0] < rates[-1]


def test_small_blocks_are_read_many_at_once_and_each_is_counted(
    node: nodes.InProcessNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PAIRS[0][0][0]
    many = [pair for pair in (block_of(50, seed) for seed in range(5000)) if pair[0][0] == first]
    node.client().put_many(many)
    waits: list[int] = []
    scrub = Scrub(node.node)
    monkeypatch.setattr(scrub._pace, "delay", lambda size: waits.append(size) or 0.0)

    scrub.scrub(first)

    here = [data for block, data in [*many, *PAIRS] if block[0] == first]
    assert len(many) > 5
    assert len(waits) == 1
    assert node.node.counters["scrubbed"] == len(here)
    assert node.node.counters["scrubbed_bytes"] == sum(map(len, here))
