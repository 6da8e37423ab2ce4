"""The repair planner: a pure function from copies and nodes to copies, looks and drops."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from everfold.blockid import name_of
from everfold.model import NodeId, SpaceId
from nameserver.repair import BlockView, NodeView, plan

SPACE = SpaceId(1)


def node(name: str, state: str = "up", zone: str = "", **more: int) -> NodeView:
    return NodeView(
        NodeId(name), zone, more.pop("free", 1 << 40),
        counts=state in ("up", "suspect"), reads=state in ("up", "suspect", "draining"),
        writes=state == "up", is_up=state == "up", **more,
    )  # fmt: skip


def block(number: int, held: dict[str, int], wanted: int = 2, size: int = 100) -> BlockView:
    names = {NodeId(name): bad for name, bad in held.items()}
    return BlockView(SPACE, name_of(b"%d" % number), size, wanted, names)


def nodes_of(*views: NodeView) -> dict[NodeId, NodeView]:
    return {view.id: view for view in views}


def test_a_missing_copy_goes_to_a_node_that_has_none() -> None:
    nodes = nodes_of(node("a"), node("b", "down"), node("c"))

    decision = plan([block(1, {"a": 0, "b": 0})], nodes, random.Random(1))

    assert [(t.node, t.kind) for t in decision.copies] == [("c", "copy")]
    assert not decision.drops


def test_the_block_with_fewest_readable_copies_comes_first() -> None:
    nodes = nodes_of(node("a"), node("b"), node("c"), node("d", room_blocks=1))
    safe, endangered = block(1, {"a": 0, "b": 0}, wanted=4), block(2, {"c": 0}, wanted=2)
    nodes[NodeId("a")].room_blocks = nodes[NodeId("b")].room_blocks = 0
    nodes[NodeId("c")].room_blocks = 0

    decision = plan([safe, endangered], nodes, random.Random(1))

    assert [t.block for t in decision.copies] == [endangered.block]


def test_nothing_is_copied_when_nobody_can_give_it() -> None:
    nodes = nodes_of(node("a", "down"), node("b"), node("c"))

    decision = plan([block(1, {"a": 0})], nodes, random.Random(1))

    assert not decision.copies


def test_a_copy_that_is_on_its_way_is_not_ordered_again() -> None:
    nodes = nodes_of(node("a"), node("b"), node("c"))
    view = block(1, {"a": 0})._replace(coming=frozenset({NodeId("b")}))

    assert not plan([view], nodes, random.Random(1)).copies


def test_a_doubted_copy_is_looked_at_and_another_one_is_made() -> None:
    nodes = nodes_of(node("a"), node("b"), node("c"))

    decision = plan([block(1, {"a": 0, "b": 1})], nodes, random.Random(1))

    assert [t.node for t in decision.verifies] == ["b"]
    assert [t.node for t in decision.copies] == ["c"]


def test_a_known_bad_copy_is_forgotten_only_once_it_is_replaced() -> None:
    nodes = nodes_of(node("a"), node("b"), node("c"))

    before = plan([block(1, {"a": 0, "b": 2})], nodes, random.Random(1))
    after = plan([block(1, {"a": 0, "b": 2, "c": 0})], nodes, random.Random(1))

    assert not before.forget
    assert [gone[2] for gone in after.forget] == ["b"]


def test_a_node_that_is_emptied_loses_its_copy_after_it_was_made_elsewhere() -> None:
    nodes = nodes_of(node("a", "draining"), node("b"), node("c"))

    before = plan([block(1, {"a": 0, "b": 0})], nodes, random.Random(1), may_drop=True)
    nodes = nodes_of(node("a", "draining"), node("b"), node("c"))
    after = plan([block(1, {"a": 0, "b": 0, "c": 0})], nodes, random.Random(1), may_drop=True)

    assert [t.node for t in before.copies] == ["c"]
    assert not before.drops
    assert [t.node for t in after.drops] == ["a"]


def test_of_too_many_copies_the_one_that_shares_its_zone_goes() -> None:
    nodes = nodes_of(node("a", zone="east"), node("b", zone="east"), node("c", zone="west"))

    decision = plan([block(1, {"a": 0, "b": 0, "c": 0})], nodes, random.Random(1), may_drop=True)

    assert len(decision.drops) == 1
    assert decision.drops[0].node in ("a", "b")


STATES = st.sampled_from(["up", "suspect", "down", "draining"])
NAMES = ["a", "b", "c", "d", "e"]
CLUSTERS = st.tuples(*(STATES for _ in NAMES))
BLOCKS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 0, 0, 1, 2])),
        st.integers(1, 3),
    ),
    max_size=12,
)


@given(CLUSTERS, BLOCKS, st.booleans(), st.integers(0, 99))
def test_no_decision_ever_lessens_the_safety_of_a_block(
    states: tuple[str, ...], blocks: list[tuple[dict[str, int], int]], may_drop: bool, seed: int
) -> None:
    nodes = nodes_of(*(node(n, s, room_blocks=5) for n, s in zip(NAMES, states, strict=True)))
    views = [block(i, held, wanted) for i, (held, wanted) in enumerate(blocks)]

    decision = plan(views, nodes, random.Random(seed), may_drop)

    up = {n for n, s in zip(NAMES, states, strict=True) if s == "up"}
    for view in views:
        dropped = {t.node for t in decision.drops if t.block == view.block}
        copied = {t.node for t in decision.copies if t.block == view.block}
        good_up = {n for n, bad in view.held.items() if not bad and n in up}
        assert not dropped or len(good_up - dropped) >= view.wanted
        assert copied <= up
        assert not {n for n in copied if view.held.get(n) == 0}
    for name in NAMES:
        assert sum(t.node == name for t in decision.copies) <= 5
