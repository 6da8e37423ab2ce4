"""The ledger: what is planned, where blocks are, what readers complain of; repair and garbage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everfold import wire
from everfold.blockid import name_of
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, NodeId, NodeState, SpaceId
from everfold.tokens import Signer
from nameserver import gc, rounds
from nameserver.db import Database
from nameserver.policy import Policy
from tests.harness.service import KEYS, Desk, ObedientNode

SPACE = SpaceId(2)  # ann's home
POLICY = Policy(bcrypt_rounds=4, gc_grace_s=1000, surplus_s=5, drop_rest_s=0.5)


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(database, POLICY)
    yield desk
    desk.service.stop()


def fails(kind: Kind) -> pytest.RaisesExc[EverfoldError]:
    return pytest.RaisesExc(EverfoldError, check=lambda err: err.kind is kind)


def planned(
    desk: Desk, *blocks: BlockId, size: int = 1000, avoid: str = ""
) -> list[set[str] | None]:
    ask = wire.Plan(SPACE, [(b, size) for b in blocks], [NodeId(avoid)] if avoid else [])
    answer = desk.service.ledger.plan(ask)
    return [None if nodes is None else set(nodes) for nodes in answer.targets]


def where(desk: Desk, block: BlockId) -> list[NodeId]:
    return desk.service.ledger.locate(wire.Locate(SPACE, [block])).where.get(block, [])


def record(desk: Desk, database: Database, block: BlockId, nodes: list[str]) -> None:
    stored = wire.Stored(block, 1000, [NodeId(n) for n in nodes])
    with database.write() as cx:
        desk.service.ledger.record(cx, SPACE, [stored], desk.clock.time_ns(), 2)


def is_short(desk: Desk, database: Database, block: BlockId) -> bool:
    with database.read() as cx:
        return bool(desk.service.ledger.short(cx, SPACE, [block], 2))


# ---------------------------------------------------------------- placement of new blocks


def test_a_new_block_goes_to_as_many_nodes_as_copies_are_wanted(desk: Desk) -> None:
    targets = planned(desk, desk.block(), desk.block(), size=100_000)

    assert all(nodes is not None and len(nodes) == 2 for nodes in targets)


def test_a_block_that_is_safe_already_is_not_asked_for_again(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])

    assert planned(desk, block, desk.block())[0] is None


def test_the_same_bytes_in_another_space_are_another_block(desk: Desk) -> None:
    block = desk.store(SpaceId(1), ["dn1", "dn2"])

    assert planned(desk, block)[0] is not None
    assert where(desk, block) == []


def test_a_half_stored_block_goes_only_where_it_is_not(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1"])

    (targets,) = planned(desk, block)

    assert targets is not None
    assert len(targets) == 1
    assert not targets & {"dn1"}


def test_small_blocks_of_one_question_travel_together(desk: Desk) -> None:
    targets = planned(desk, *(desk.block() for _ in range(50)))

    assert len({frozenset(nodes or ()) for nodes in targets}) == 1


def spares(desk: Desk, count: int) -> list[set[str]]:
    answer = desk.service.ledger.plan(wire.Plan(SPACE, [], spares=count))
    assert {node for place in answer.spares for node in place} <= {n.id for n in answer.nodes}
    return [set(place) for place in answer.spares]


def test_places_told_beforehand_are_as_good_as_planned_ones(desk: Desk) -> None:
    desk.silent = {"dn1"}
    desk.pass_time(2.0)

    assert spares(desk, 3) == [{"dn2", "dn3"}] * 3


def test_no_places_are_told_beforehand_while_a_node_is_to_drop_something(
    desk: Desk, database: Database
) -> None:
    desk.store(SPACE, ["dn1", "dn2"])
    assert spares(desk, 1)
    desk.clock.move(1001)
    gc.collect(database, desk.clock, POLICY)
    desk.beat()

    assert spares(desk, 1) == []


def test_no_place_is_told_beforehand_when_too_few_nodes_are_there(desk: Desk) -> None:
    desk.silent = {"dn1", "dn2"}
    desk.pass_time(4.0)

    assert spares(desk, 2) == []


def test_a_node_hears_of_a_drop_only_after_a_rest(desk: Desk, database: Database) -> None:
    desk.store(SPACE, ["dn1"])
    desk.clock.move(1001)
    gc.collect(database, desk.clock, POLICY)

    assert desk.service.beats.beat(desk.nodes["dn1"].report()).commands == []
    desk.clock.move(1)
    (command,) = desk.service.beats.beat(desk.nodes["dn1"].report()).commands
    assert isinstance(command, wire.Drop)


def test_a_copy_put_unasked_on_a_node_that_is_to_drop_it_does_not_count(
    desk: Desk, database: Database
) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.clock.move(1001)
    gc.collect(database, desk.clock, POLICY)
    desk.beat()
    with database.write() as cx:
        stored = [wire.Stored(block, 1000, [NodeId("dn1"), NodeId("dn3")])]
        desk.service.ledger.record(cx, SPACE, stored, desk.clock.time_ns(), 2)

        assert desk.service.ledger.short(cx, SPACE, [block], 1) == set()
        assert desk.service.ledger.short(cx, SPACE, [block], 2) == {block}


def test_silent_full_and_failing_nodes_are_not_written_to(desk: Desk) -> None:
    desk.nodes["dn4"], desk.nodes["dn5"] = ObedientNode("dn4", free=10), ObedientNode("dn5")
    desk.silent = {"dn1"}
    desk.pass_time(2.0)

    for _ in range(10):
        assert planned(desk, desk.block(), avoid="dn2") == [{"dn3", "dn5"}]


def test_a_node_that_failed_the_client_is_used_when_nothing_else_is_left(desk: Desk) -> None:
    desk.silent = {"dn1"}
    desk.pass_time(2.0)

    assert planned(desk, desk.block(), avoid="dn2") == [{"dn2", "dn3"}]


def test_too_few_nodes_and_full_nodes_are_different_failures(desk: Desk) -> None:
    for node in desk.nodes.values():
        node.free = 100
    desk.beat()
    with fails(Kind.NO_SPACE):
        planned(desk, desk.block())

    desk.silent = {"dn1", "dn2"}
    desk.pass_time(2.0)
    with fails(Kind.UNAVAILABLE):
        planned(desk, desk.block())


@pytest.mark.parametrize(
    ("block", "size"), [(b"short", 10), (name_of(b"a"), 0), (name_of(b"a"), (4 << 20) + 1)]
)
def test_an_impossible_block_is_not_planned(desk: Desk, block: BlockId, size: int) -> None:
    with fails(Kind.INVALID):
        planned(desk, block, size=size)


def test_a_token_for_blocks_is_good_for_its_space_alone(desk: Desk) -> None:
    answer = desk.service.ledger.plan(wire.Plan(SPACE, [(desk.block(), 10)]))

    claims = Signer(KEYS.cluster_secret, desk.clock).verify(answer.block_token, "blocks")
    assert (claims["space"], claims["verbs"]) == (SPACE, "rw")
    assert claims["exp"] == answer.block_token_expires


# ---------------------------------------------------------------- what a commit may name


def test_a_block_counts_from_the_moment_a_client_says_who_has_it(
    desk: Desk, database: Database
) -> None:
    block = desk.block()
    assert is_short(desk, database, block)

    record(desk, database, block, ["dn1", "dn2"])

    assert not is_short(desk, database, block)


def test_a_client_s_word_is_enough_while_no_copy_of_the_space_is_bad(
    desk: Desk, database: Database
) -> None:
    def told(*nodes: str) -> set[BlockId]:
        stored = wire.Stored(desk.block(), 1000, [NodeId(n) for n in nodes])
        with database.write() as cx:
            safe = desk.service.ledger.record(cx, SPACE, [stored], desk.clock.time_ns(), 2)
        assert safe <= {stored.block}
        return safe

    before = [len(told(*nodes)) for nodes in (("dn1", "dn2"), ("dn1",), ("dn1", "nobody"))]
    doubted = desk.store(SPACE, ["dn1", "dn2"])
    desk.service.ledger.report_bad(wire.ReportBad(SPACE, doubted, NodeId("dn1"), "corrupt"))

    assert before == [1, 0, 0]
    assert told("dn1", "dn2") == set()


def test_a_beat_writes_only_what_no_commit_has_told(desk: Desk, database: Database) -> None:
    known, fresh = desk.block(), desk.block()
    record(desk, database, known, ["dn1", "dn2"])
    node = desk.nodes["dn1"]
    for block in (known, fresh):
        node.put(SPACE, block)
    report = node.report()

    assert {held.block for held in report.added} == {known, fresh}
    assert [held.block for held in desk.service.beats._unknown(report)] == [fresh]
    desk.service.beats.beat(report)
    assert where(desk, fresh) == ["dn1"]


def test_one_copy_or_unknown_nodes_are_not_enough(desk: Desk, database: Database) -> None:
    one, two = desk.block(), desk.block()
    record(desk, database, one, ["dn1"])
    record(desk, database, two, ["dn1", "dn9"])

    assert is_short(desk, database, one)
    assert is_short(desk, database, two)


def test_an_acknowledged_block_still_counts_when_one_of_its_nodes_just_died(
    desk: Desk, database: Database
) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.silent = {"dn1"}
    desk.pass_time(4.0)
    assert not is_short(desk, database, block)

    desk.silent = set(desk.nodes)
    desk.pass_time(4.0)
    assert is_short(desk, database, block)


# ---------------------------------------------------------------- reading


def test_the_best_node_to_read_from_comes_first(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2", "dn3"])
    desk.silent = {"dn2"}
    desk.pass_time(2.0)
    desk.service.ledger.report_bad(wire.ReportBad(SPACE, block, NodeId("dn1"), "corrupt"))

    assert where(desk, block) == ["dn3", "dn2", "dn1"]


def test_reads_are_spread_over_the_copies(desk: Desk) -> None:
    blocks = [desk.store(SPACE, ["dn1", "dn2"]) for _ in range(60)]

    first = [where(desk, block)[0] for block in blocks]

    assert 15 < first.count(NodeId("dn1")) < 45


def test_nobody_is_sent_to_a_node_that_an_admin_failed(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.service.fail_node(NodeId("dn1"), "root")

    assert where(desk, block) == ["dn2"]


# ---------------------------------------------------------------- repair


def test_the_copies_of_a_dead_node_are_made_again_elsewhere(desk: Desk) -> None:
    blocks = [desk.store(SPACE, ["dn1", "dn2"]) for _ in range(30)]
    desk.pass_time(6.0)
    desk.silent = {"dn1"}

    desk.pass_time(3.5)
    seen = desk.service.status.figures()["under_replicated"]
    desk.pass_time(5.0)

    assert seen == 30
    assert all(desk.holders(SPACE, block) == {"dn1", "dn2", "dn3"} for block in blocks)
    assert desk.service.status.figures()["under_replicated"] == 0


def test_a_blink_makes_no_copies(desk: Desk) -> None:
    desk.store(SPACE, ["dn1", "dn2"])
    desk.pass_time(6.0)
    desk.silent = {"dn1"}
    desk.pass_time(4.5)
    desk.silent = set()
    desk.pass_time(6.0)

    assert not [c for n in desk.nodes.values() for c in n.obeyed if isinstance(c, wire.Copy)]


def test_a_failed_node_is_replaced_at_once_and_its_copies_drop_after_its_repair(
    desk: Desk,
) -> None:
    blocks = [desk.store(SPACE, ["dn1", "dn2"]) for _ in range(10)]
    desk.pass_time(6.0)

    desk.service.fail_node(NodeId("dn1"), "root")
    desk.pass_time(2.0)
    assert desk.state("dn1") is NodeState.FAILED
    assert all("dn3" in desk.holders(SPACE, block) for block in blocks)

    desk.service.repair_node(NodeId("dn1"), "root")
    desk.pass_time(30.0)
    assert desk.state("dn1") is NodeState.UP
    assert all(len(desk.holders(SPACE, block)) == 2 for block in blocks)
    assert desk.service.status.figures()["under_replicated"] == 0
    listed = [c.prefix for c in desk.nodes["dn1"].obeyed if isinstance(c, wire.ListPrefix)]
    assert set(listed) == set(range(256))


def test_a_rotten_copy_is_confirmed_and_healed_within_three_seconds(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.pass_time(6.0)
    desk.nodes["dn1"].rotten.add((SPACE, block))

    desk.service.ledger.report_bad(wire.ReportBad(SPACE, block, NodeId("dn1"), "corrupt"))
    told = desk.service.status.figures()["corrupt"]
    desk.pass_time(3.0)

    assert told == 1
    assert len(desk.holders(SPACE, block)) == 2
    figures = desk.service.status.figures()
    assert (figures["corrupt"], figures["under_replicated"]) == (0, 0)


def test_with_no_third_node_a_rotten_copy_is_written_again_where_it_was(
    database: Database,
) -> None:
    desk = Desk(database, POLICY, nodes=2)
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.pass_time(6.0)
    desk.nodes["dn1"].rotten.add((SPACE, block))
    desk.service.ledger.report_bad(wire.ReportBad(SPACE, block, NodeId("dn1"), "corrupt"))

    desk.pass_time(4.0)

    assert desk.holders(SPACE, block) == {"dn1", "dn2"}
    assert desk.service.status.figures()["corrupt"] == 0


def test_a_false_complaint_costs_nothing(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.pass_time(6.0)

    desk.service.ledger.report_bad(wire.ReportBad(SPACE, block, NodeId("dn1"), "corrupt"))
    desk.pass_time(30.0)

    assert len(desk.holders(SPACE, block)) == 2
    assert desk.service.status.figures()["corrupt"] == 0


def test_a_copy_said_to_be_missing_is_replaced_when_its_node_agrees(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.pass_time(6.0)
    del desk.nodes["dn1"].held[SPACE, block]

    desk.service.ledger.report_bad(wire.ReportBad(SPACE, block, NodeId("dn1"), "missing"))
    desk.pass_time(4.0)

    assert len(desk.holders(SPACE, block)) == 2
    assert set(where(desk, block)) == desk.holders(SPACE, block)


def test_an_unknown_complaint_is_refused(desk: Desk) -> None:
    with fails(Kind.INVALID):
        desk.service.ledger.report_bad(
            wire.ReportBad(SPACE, desk.block(), NodeId("dn1"), "I do not like it")
        )


def test_after_a_start_nothing_is_copied_before_the_nodes_had_time_to_report(
    desk: Desk, database: Database
) -> None:
    desk.store(SPACE, ["dn1", "dn2"])
    desk.pass_time(6.0)
    desk.service.driver.stop()
    desk.clock.move(3600)  # the nameserver was away for an hour
    again = Desk.resume(desk, database)

    for name in ("dn1", "dn3", "dn2"):
        again.clock.move(1.0)
        again.beat(name)
        again.service.driver.tick()
    again.pass_time(10.0)

    assert not [c for n in again.nodes.values() for c in n.obeyed if isinstance(c, wire.Copy)]


def test_only_one_process_plans_and_another_takes_over(desk: Desk, database: Database) -> None:
    desk.pass_time(1.0)
    other = Desk.resume(desk, database)
    block = desk.store(SPACE, ["dn1"])

    other.clock.move(4.0 - POLICY.lease_s)
    other.service.driver.tick()
    assert other.service.status.figures()["repairing"] == 0
    if not database.is_postgres:  # there a lease runs out by itself; here a lock ends
        desk.service.driver.stop()
    other.pass_time(12.0)

    assert len(other.holders(SPACE, block)) == 2


# ---------------------------------------------------------------- garbage


def test_a_block_that_nothing_names_is_dropped_after_its_grace(
    desk: Desk, database: Database
) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])

    assert gc.collect(database, desk.clock, POLICY) == 0
    desk.clock.move(1001)
    assert gc.collect(database, desk.clock, POLICY) == 1
    desk.pass_time(1.5)

    assert desk.holders(SPACE, block) == set()
    assert desk.service.status.figures()["blocks"] == 0


def test_a_block_that_was_planned_lately_is_kept(desk: Desk, database: Database) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.clock.move(999)
    desk.beat()
    assert planned(desk, block) == [None]

    desk.clock.move(500)
    assert gc.collect(database, desk.clock, POLICY) == 0


def test_nothing_is_written_to_a_node_that_is_about_to_drop_it(
    desk: Desk, database: Database
) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.clock.move(1001)
    gc.collect(database, desk.clock, POLICY)
    desk.clock.move(1)
    desk.beat("dn3")
    desk.service.beats.beat(desk.nodes["dn1"].report())  # took its drop, has not done it yet
    desk.service.beats.beat(desk.nodes["dn2"].report())
    desk.nodes["dn4"] = ObedientNode("dn4")
    desk.beat("dn4")

    assert planned(desk, block) == [{"dn3", "dn4"}]


def test_a_drop_that_no_node_has_got_is_called_back_by_a_plan(
    desk: Desk, database: Database
) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.clock.move(1001)
    gc.collect(database, desk.clock, POLICY)

    desk.service.beats.beat(desk.nodes["dn3"].report())
    with database.write() as cx:  # the nodes live, but have not fetched their drops
        cx.run("UPDATE node SET seen_ns = ?", desk.clock.time_ns())
    desk.service.nodes.forget_picture()
    targets = planned(desk, block)
    desk.pass_time(1.0)

    assert targets[0] is not None
    assert desk.holders(SPACE, block) == {"dn1", "dn2"}


def test_blocks_that_nobody_can_give_do_not_stand_in_the_way_of_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_ROUND", 5)
    for _ in range(10):
        desk.store(SPACE, ["dn1"])
    desk.silent = {"dn1"}
    desk.pass_time(6.0)
    block = desk.store(SPACE, ["dn2"])

    desk.pass_time(8.0)

    assert desk.holders(SPACE, block) == {"dn2", "dn3"}
