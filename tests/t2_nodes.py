"""Datanodes come, fall silent, come back, drift: what the map says afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import NodeId, NodeState, SpaceId
from everfold.tokens import Signer
from nameserver import tasks
from nameserver.db import Cx, Database
from nameserver.presence import WRITTEN_S, presence
from nameserver.service import Service
from tests.harness.machine import wait_until
from tests.harness.service import KEYS, Desk, ObedientNode

SPACE = SpaceId(2)  # ann's home


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(database)
    yield desk
    desk.service.stop()


def fails(kind: Kind) -> pytest.RaisesExc[EverfoldError]:
    return pytest.RaisesExc(EverfoldError, check=lambda err: err.kind is kind)


def located(desk: Desk, block: bytes) -> list[str]:
    answer = desk.service.ledger.locate(wire.Locate(SPACE, [block]))  # type: ignore[list-item]
    return list(next(iter(answer.where.values()), []))


def test_a_silent_node_is_suspect_then_down_and_up_again_with_its_next_beat(desk: Desk) -> None:
    desk.silent = {"dn1"}

    states = []
    for _ in range(7):
        desk.pass_time(0.5)
        states.append(desk.state("dn1"))
    desk.beat("dn1")

    assert states == [NodeState.UP] * 2 + [NodeState.SUSPECT] * 3 + [NodeState.DOWN] * 2
    assert desk.state("dn1") is NodeState.UP


def test_mounts_are_told_when_a_node_falls_silent_or_moves(desk: Desk) -> None:
    session = desk.mount()
    desk.pass_time(0.5)
    poll = wire.FeedPoll(session.space, "m1", session.seq, 0.0)  # type: ignore[arg-type]
    first = desk.caller().feed(poll)

    desk.silent = {"dn1"}
    desk.pass_time(2.0)
    second = desk.caller().feed(poll)
    desk.silent = set()
    desk.nodes["dn1"].url = "http://elsewhere.test"
    desk.beat()
    third = desk.caller().feed(poll)

    assert first.nodes < second.nodes < third.nodes
    assert {n.id: n.state for n in second.node_list}["dn1"] is NodeState.SUSPECT
    assert {n.id: n.url for n in third.node_list}["dn1"] == "http://elsewhere.test"


def test_what_a_node_tells_is_in_the_map_and_what_it_lost_is_not(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    assert sorted(located(desk, block)) == ["dn1", "dn2"]

    desk.nodes["dn1"].obey(wire.Drop(SPACE, block))
    desk.beat("dn1")

    assert located(desk, block) == ["dn2"]


def test_a_lost_report_is_found_by_the_digests(desk: Desk) -> None:
    block = desk.block()
    desk.nodes["dn1"].put(SPACE, block)
    desk.nodes["dn1"].report()  # this beat never arrives

    for _ in range(3):
        desk.beat("dn1", digests=True)

    assert located(desk, block) == ["dn1"]


def test_a_node_that_comes_back_with_everything_is_counted_not_refilled(desk: Desk) -> None:
    block = desk.store(SPACE, ["dn1", "dn2"])
    desk.silent = {"dn1"}
    desk.pass_time(4.0)  # down, but within the grace

    desk.silent = set()
    desk.nodes["dn1"].restart("2")
    desk.pass_time(10.0)

    assert desk.holders(SPACE, block) == {"dn1", "dn2"}
    assert not [c for n in desk.nodes.values() for c in n.obeyed if isinstance(c, wire.Copy)]


def test_a_node_with_a_swapped_disk_is_found_out_and_filled_again(desk: Desk) -> None:
    blocks = [desk.store(SPACE, ["dn1", "dn2"]) for _ in range(20)]
    desk.clock.move(60)  # the blocks are not news any more
    desk.beat()

    desk.nodes["dn1"].lose_disk()
    desk.nodes["dn1"].restart("2")
    desk.pass_time(15.0)

    assert all(len(desk.holders(SPACE, block)) == 2 for block in blocks)
    assert desk.service.status.figures()["under_replicated"] == 0


def test_a_fresh_block_survives_a_list_that_was_written_before_it_came(desk: Desk) -> None:
    block = desk.block()
    stale = wire.PrefixList(block[0], [])
    desk.nodes["dn1"].put(SPACE, block)
    desk.beat("dn1")

    beat = desk.nodes["dn1"].report()
    desk.service.beats.beat(msgspec.structs.replace(beat, lists=[stale]))

    assert located(desk, block) == ["dn1"]


@pytest.mark.parametrize(
    "bad",
    [
        ObedientNode("../etc"),
        ObedientNode("dn 1"),
        ObedientNode("n" * 65),
    ],
)
def test_a_beat_with_an_impossible_name_is_refused(desk: Desk, bad: ObedientNode) -> None:
    with fails(Kind.INVALID):
        desk.service.beats.beat(bad.report())


def test_a_beat_with_an_impossible_block_changes_nothing(desk: Desk) -> None:
    node = desk.nodes["dn1"]
    good = desk.block()
    node.put(SPACE, good)
    node.put(SPACE, b"short")  # type: ignore[arg-type]

    with fails(Kind.INVALID):
        desk.service.beats.beat(node.report())

    assert located(desk, good) == []


def test_an_unknown_node_cannot_be_failed(desk: Desk) -> None:
    with fails(Kind.NOT_FOUND):
        desk.service.fail_node(NodeId("dn9"), "root")
    with fails(Kind.NOT_FOUND):
        desk.service.repair_node(NodeId("dn9"), "root")


def test_a_failed_node_hears_it_and_gets_no_commands(desk: Desk) -> None:
    desk.service.fail_node(NodeId("dn1"), "root")

    reply = desk.service.beats.beat(desk.nodes["dn1"].report())

    assert (reply.state, reply.commands) == (NodeState.FAILED, [])


def test_states_survive_a_restart_of_the_nameserver(desk: Desk, database: Database) -> None:
    desk.service.fail_node(NodeId("dn2"), "root")

    again = Service(database, desk.clock, desk.policy, KEYS)

    assert again.nodes.get(NodeId("dn2")).state is NodeState.FAILED
    assert again.nodes.get(NodeId("dn1")).state is NodeState.UP


def test_beats_without_news_are_heard_by_every_process_and_are_no_commits(
    desk: Desk, database: Database
) -> None:
    desk.pass_time(1.0)
    written, before = seen(database), desk.clock.time_ns()
    desk.pass_time(10.0)
    elsewhere = Service(database, desk.clock, desk.policy, KEYS).nodes

    assert {m.state for m in elsewhere.members().values()} == {NodeState.UP}
    if not database.is_postgres:
        assert seen(database) == written
    desk.pass_time(WRITTEN_S)
    assert min(seen(database)) > before

    desk.silent = {"dn1"}
    desk.pass_time(desk.policy.down_s)
    assert elsewhere.fresh()[0].state is NodeState.DOWN
    desk.silent = set()
    desk.pass_time(0.5)
    assert elsewhere.fresh()[0].state is NodeState.UP


@pytest.fixture
def asked(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each transaction that is made from now on waits for the disk."""
    write, asked = database.write, []

    def watched(is_durable: bool = True) -> AbstractContextManager[Cx]:
        asked.append(is_durable)
        return write(is_durable)

    monkeypatch.setattr(database, "write", watched)
    return asked


def test_only_news_that_must_not_be_lost_waits_for_the_disk(desk: Desk, asked: list[bool]) -> None:
    desk.pass_time(1.0)
    node, block = desk.nodes["dn1"], desk.block()
    asked.clear()

    node.put(SPACE, block)
    desk.beat("dn1")
    assert True not in asked
    assert located(desk, block) == ["dn1"]
    del node.held[SPACE, block]
    gone = msgspec.structs.replace(node.report(), removed=[wire.Held(SPACE, block, 1000)])
    desk.service.beats.beat(gone)
    assert True in asked
    assert located(desk, block) == []


def test_a_drop_that_rests_makes_no_beat_an_order(desk: Desk, asked: list[bool]) -> None:
    desk.pass_time(1.0)
    block, now = desk.store(SPACE, ["dn1"]), desk.clock.time_ns()
    with desk.service.db.write() as cx:
        tasks.queue(cx, [tasks.Task(NodeId("dn1"), tasks.DROP, SPACE, block)], now)
    asked.clear()

    desk.beat("dn1")
    assert True not in asked
    desk.clock.move(desk.policy.drop_rest_s)
    desk.beat("dn1")
    assert block not in {key[1] for key in desk.nodes["dn1"].held}


def test_a_node_whose_beat_waits_for_our_disk_is_not_silent(tmp_path: Path) -> None:
    desk = Desk(Database(f"{tmp_path}/everfold.db"))
    heard = presence(desk.service.db)
    desk.pass_time(1.0)
    node = desk.nodes["dn1"]
    node.put(SPACE, desk.block())
    with ThreadPoolExecutor(1) as pool:
        with desk.service.db.write():
            waits = pool.submit(desk.beat, "dn1")
            wait_until(lambda: heard.last(node.id) > desk.clock.time_ns(), 5, "it waits")
            desk.clock.move(desk.policy.down_s + 1.0)
            meanwhile = {each.id: each.state for each in desk.service.nodes.fresh()}
        waits.result()

    assert meanwhile == {"dn1": NodeState.UP, "dn2": NodeState.DOWN, "dn3": NodeState.DOWN}
    desk.clock.move(desk.policy.suspect_s)
    assert desk.state("dn1") is NodeState.SUSPECT
    desk.service.stop()


def seen(database: Database) -> list[int]:
    with database.read() as cx:
        return [row[0] for row in cx.all("SELECT seen_ns FROM node ORDER BY id")]


def test_what_a_quiet_node_says_of_itself_is_in_the_table_once_it_changes(desk: Desk) -> None:
    desk.pass_time(1.0)
    node = desk.nodes["dn1"]

    node.free //= 2
    desk.beat("dn1")
    assert desk.service.nodes.get(node.id).free == node.free
    node.restart("another boot")
    desk.beat("dn1")
    assert desk.service.nodes.get(node.id).boot == "another boot"


def test_more_nodes_than_can_be_noted_are_heard_all_the_same(database: Database) -> None:
    noted = presence(database)
    if database.is_postgres:
        assert not noted.note(NodeId("unknown"), 1)
        return
    names = [NodeId(f"n{k}") for k in range(3000)]
    kept = [name for name in names if noted.note(name, 7)]

    assert 2000 < len(kept) < 3000
    assert {noted.last(name) for name in kept} == {7}
    assert {presence(database).last(name) for name in names} == {7, 0}


def test_a_nodes_token_is_good_until_it_expires_however_often_it_was_used(desk: Desk) -> None:
    token = Signer(KEYS.cluster_secret, desk.clock).mint("node", 60, sub="dn1")

    used = [desk.service.gate.node(token) for _ in range(2)]
    desk.clock.move(59.0)
    used.append(desk.service.gate.node(token))
    desk.clock.move(2.0)

    assert used == ["dn1"] * 3
    with pytest.raises(EverfoldError) as err:
        desk.service.gate.node(token)
    assert err.value.kind is Kind.UNAUTHENTICATED
