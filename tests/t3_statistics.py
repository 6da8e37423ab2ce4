"""Figures of a mount: percentiles from powers of two, hits and misses, what travels."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from everfold.model import ROOT
from mount.statistics import Asked, Cost, Durations, hits, packed
from tests.harness.world import ME, World, find, save


def noted(*times_ns: int) -> Durations:
    durations = Durations()
    for each in times_ns:
        durations.count += 1
        durations.note(each)
    return durations


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_a_percentile_is_right_to_within_its_power_of_two(share: float) -> None:
    chance = random.Random(7)
    times = [int(chance.lognormvariate(10, 1.5)) for _ in range(5000)]
    exact = statistics.quantiles(times, n=100)[round(share * 100) - 1]

    assert exact / 2 <= noted(*times).percentile_ns(share) <= exact * 2


def test_of_nothing_and_of_one_there_are_percentiles_too() -> None:
    assert noted().percentile_ns(0.99) == 0
    assert 1024 <= noted(1500).percentile_ns(0.99) <= 1500
    assert Cost.of(noted(3_000, 5_000)).max_us == 5


def test_calls_of_the_nameserver_are_timed_and_nothing_else_changes(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        client = world.mount()
        client.vfs.mkdir(ROOT, b"d", 0o755, ME)
        save(client, "d/f", b"text")
        client.vfs.syncfs()
        figures = client.statistics()

    calls = figures["calls"]
    assert isinstance(calls, dict)
    assert calls["session"].count == 1
    assert 0 < calls["commit"].p50_us <= calls["commit"].max_us + 1
    assert figures["backlog"] == {"records": 0, "waiting": 0, "bytes": 0, "staged_bytes": 0}


def test_a_node_that_is_avoided_is_told(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        client = world.mount()
        save(client, "f", b"text")
        client.vfs.syncfs()
        client.core.blocks._nodes.avoid("dn1")
        nodes = {node["id"]: node for node in client.statistics()["nodes"]}

        assert nodes["dn1"]["avoided_s"] > 0
        assert nodes["dn2"]["avoided_s"] == 0
        assert find(client, "f").size == 4


def test_what_a_call_raises_gets_through_and_is_timed() -> None:
    class Away:
        url = "nowhere"

        def lookup(self, ask: object) -> None:
            raise KeyError(ask)

    asked = Asked(Away())  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(KeyError):
            asked.lookup(1)

    assert asked.costs()["lookup"].count == 2
    assert asked.url == "nowhere"


def test_what_was_not_known_is_counted_against_what_was_asked() -> None:
    requests = {"LOOKUP": Cost.of(noted(*range(10))), "GETATTR": Cost.of(noted(5))}
    calls = {"lookup": Cost.of(noted(1, 2)), "attrs": Cost.of(noted(1, 2, 3))}

    assert hits(requests, calls) == {
        "names": {"asked": 10, "missed": 2},
        "attributes": {"asked": 1, "missed": 1},
    }


def test_figures_that_grow_by_a_digit_keep_their_length() -> None:
    few, more = packed({"n": 9, "cost": Cost.of(noted(1))}), packed({"n": 10**9})

    assert len(few) == len(more) == 4096
    assert json.loads(few)["cost"]["count"] == 1
