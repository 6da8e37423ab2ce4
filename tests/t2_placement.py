"""Placement: a pure choice among nodes."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from everfold.model import NodeId
from nameserver.placement import Candidate, choose

candidates = st.lists(
    st.builds(
        Candidate,
        st.text("abcdef", min_size=1, max_size=4).map(NodeId),
        st.sampled_from(["", "east", "west", "north"]),
        st.integers(0, 1 << 45),
    ),
    max_size=8,
    unique_by=lambda c: c.id,
)


@given(candidates, st.integers(0, 4), st.integers(1, 1 << 22), st.integers(0, 1000))
def test_chosen_nodes_are_different_ones_with_room_and_as_many_as_can_be(
    nodes: list[Candidate], count: int, size: int, seed: int
) -> None:
    chosen = choose(nodes, count, size, random.Random(seed))

    able = {c.id for c in nodes if c.free >= size}
    assert len(chosen) == len(set(chosen)) == min(count, len(able))
    assert set(chosen) <= able


@given(candidates, st.integers(0, 1000))
def test_two_copies_are_in_two_zones_when_there_are_two(nodes: list[Candidate], seed: int) -> None:
    chosen = choose(nodes, 2, 1, random.Random(seed))

    zone_of = {c.id: c.zone for c in nodes}
    zones = {c.zone for c in nodes if c.free >= 1}
    if len(chosen) == 2 and len(zones) > 1:
        first, second = (zone_of[node] for node in chosen)
        assert first != second or first == ""


def test_a_zone_that_holds_a_copy_comes_last() -> None:
    nodes = [Candidate(NodeId("a"), "east", 1 << 40), Candidate(NodeId("b"), "west", 1 << 10)]

    picks = {choose(nodes, 1, 100, random.Random(seed), {"east"})[0] for seed in range(50)}

    assert picks == {"b"}


def test_nodes_are_filled_in_proportion_to_their_free_space() -> None:
    rng = random.Random(7)
    nodes = [Candidate(NodeId("big"), "", 3 << 30), Candidate(NodeId("small"), "", 1 << 30)]

    picks = Counter(choose(nodes, 1, 100, rng)[0] for _ in range(4000))

    assert 0.70 < picks[NodeId("big")] / 4000 < 0.80
