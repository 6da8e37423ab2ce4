"""What must be copied, looked at and dropped: a pure function of replica map and node states.

The most endangered blocks come first. Nothing is dropped unless enough good copies *on other
nodes that are up* remain. How much is decided at once is bounded by each node's room, which
is the rate limit. `rounds` feeds it from the database and queues what it decides.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from everfold.model import BlockId, NodeId, SpaceId
from nameserver.placement import Candidate, choose
from nameserver.tasks import COPY, DROP, VERIFY, Task


@dataclass(slots=True)
class NodeView:
    """A node as the planner sees it; `room` shrinks as copies to it are decided."""

    id: NodeId
    zone: str
    free: int
    counts: bool  # its copies are as good as any (up, suspect, or down for a moment only)
    reads: bool  # copies can be read from it
    writes: bool  # copies can be made on it
    is_up: bool  # nothing at all is wrong with it
    room_blocks: int = 1 << 30
    room_bytes: int = 1 << 60


class BlockView(NamedTuple):
    """A block and its copies: `held` maps node -> is_bad (0 good, 1 doubted, 2 known bad).

    `coming`: nodes that have been told to copy it already.
    """

    space: SpaceId
    block: BlockId
    size: int
    wanted: int
    held: Mapping[NodeId, int]
    coming: frozenset[NodeId] = frozenset()


@dataclass(slots=True)
class Decision:
    """`drops` are also forgotten by the map at once; `forget` only by the map."""

    copies: list[Task] = field(default_factory=list)
    verifies: list[Task] = field(default_factory=list)
    drops: list[Task] = field(default_factory=list)
    forget: list[tuple[SpaceId, BlockId, NodeId]] = field(default_factory=list)


def plan(
    blocks: Iterable[BlockView],
    nodes: Mapping[NodeId, NodeView],
    rng: random.Random,
    may_drop: bool = False,
) -> Decision:
    """Decide for all of `blocks`; `nodes`' rooms are used up on the way."""
    decision = Decision()
    for view in sorted(blocks, key=lambda b: _readable(b, nodes)):
        _look(view, nodes, decision)
        _fill(view, nodes, rng, decision)
        _forget_bad(view, nodes, decision)
        if may_drop:
            _thin(view, nodes, decision)
    return decision


def _good(view: BlockView, nodes: Mapping[NodeId, NodeView]) -> list[NodeView]:
    return [nodes[n] for n, bad in view.held.items() if not bad and n in nodes]


def _readable(view: BlockView, nodes: Mapping[NodeId, NodeView]) -> int:
    return sum(node.reads for node in _good(view, nodes))


def _look(view: BlockView, nodes: Mapping[NodeId, NodeView], decision: Decision) -> None:
    """Make nodes look at the copies that a reader complained of."""
    for node, is_bad in view.held.items():
        if is_bad == 1 and node in nodes and nodes[node].reads:
            decision.verifies.append(Task(node, VERIFY, view.space, view.block, view.size))


def _fill(
    view: BlockView, nodes: Mapping[NodeId, NodeView], rng: random.Random, decision: Decision
) -> None:
    """Order the copies that are missing, as long as there is one to copy from."""
    good = _good(view, nodes)
    counting = [node for node in good if node.counts]
    missing = view.wanted - len(counting) - len(view.coming - {n.id for n in counting})
    if missing <= 0 or not any(node.reads for node in good):
        return
    barred = {node.id for node in good} | view.coming
    able = [
        node
        for node in nodes.values()
        if node.writes
        and node.id not in barred
        and node.room_blocks > 0
        and node.room_bytes >= view.size
    ]
    # a doubted copy stands in the way of a new one until its node has looked at it
    clean = [node for node in able if view.held.get(node.id, 0) != 1]
    zones = {node.zone for node in counting}
    chosen = _choose(clean, missing, view.size, rng, zones)
    if len(chosen) < missing:
        doubted = [node for node in able if node not in clean]
        chosen += _choose(doubted, missing - len(chosen), view.size, rng, zones)
    for target in chosen:
        nodes[target].room_blocks -= 1
        nodes[target].room_bytes -= view.size
        decision.copies.append(Task(target, COPY, view.space, view.block, view.size))


def _choose(
    able: list[NodeView], count: int, size: int, rng: random.Random, zones: set[str]
) -> list[NodeId]:
    return choose([Candidate(n.id, n.zone, n.free) for n in able], count, size, rng, zones)


def _forget_bad(view: BlockView, nodes: Mapping[NodeId, NodeView], decision: Decision) -> None:
    """Stop telling of a bad copy that its node has put aside, once it is replaced."""
    if len(_safe(view, nodes)) >= view.wanted:
        bad = (node for node, is_bad in view.held.items() if is_bad == 2)
        decision.forget.extend((view.space, view.block, node) for node in bad)


def _safe(view: BlockView, nodes: Mapping[NodeId, NodeView]) -> list[NodeView]:
    return [node for node in _good(view, nodes) if node.counts and node.is_up]


def _thin(view: BlockView, nodes: Mapping[NodeId, NodeView], decision: Decision) -> None:
    """Drop what is too much: copies on nodes being emptied, then those that matter least."""
    good, safe = _good(view, nodes), _safe(view, nodes)
    if len(safe) < view.wanted:
        return
    leaving = [node for node in good if not node.counts and node.reads]
    surplus = sorted(safe, key=lambda n: _worth(n, safe))[: len(safe) - view.wanted]
    for node in [*leaving, *surplus]:
        decision.drops.append(Task(node.id, DROP, view.space, view.block, view.size))


def _worth(node: NodeView, copies: list[NodeView]) -> tuple[bool, int, NodeId]:
    """Order copies by what is lost with them: one that shares its zone least, then full nodes."""
    shares = bool(node.zone) and sum(other.zone == node.zone for other in copies) > 1
    return (not shares, node.free, node.id)
