"""Heartbeats: nothing is told once only, orders are obeyed, and the node outlives silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datanode.beat import Beat
from datanode.node import Identity, Node
from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import SMALL_BLOCK, BlockId, NodeId, NodeState, SpaceId
from tests.contracts.blockstore import block_of
from tests.harness import nodes
from tests.harness.machine import wait_until

HOME = SpaceId(1)
LARGE = block_of(SMALL_BLOCK * 2)
SMALL = block_of(700)


@pytest.fixture
def peers() -> nodes.InProcessPeers:
    return nodes.InProcessPeers()


@pytest.fixture
def node(tmp_path: Path, peers: nodes.InProcessPeers) -> Iterator[nodes.InProcessNode]:
    node = nodes.InProcessNode(tmp_path / "dn1", peers=peers)
    yield node
    node.close()


@pytest.fixture
def nameserver() -> nodes.ScriptedNameserver:
    return nodes.ScriptedNameserver()


@pytest.fixture
def beat(node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver) -> Iterator[Beat]:
    beat = node.beat(nameserver.transport)
    yield beat
    beat.close()


def held(pair: tuple[BlockId, bytes]) -> wire.Held:
    return wire.Held(HOME, pair[0], len(pair[1]))


def rot(node: nodes.InProcessNode, block: BlockId) -> None:
    path = next(node.node.store.root.rglob(block.hex()))
    path.write_bytes(b"\0" * path.stat().st_size)


class TestTelling:
    def test_the_first_beat_says_who_it_is_and_all_that_it_holds(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat
    ) -> None:
        node.client().put(*LARGE)

        assert beat.beat()

        told = nameserver.beats[0]
        assert (told.node, told.url, told.zone) == ("dn1", "http://dn1.test", "z1")
        assert (told.blocks, told.used) == (1, len(LARGE[1]))
        assert told.capacity >= told.used + told.free > 0
        assert [digest.prefix for digest in told.digests] == list(range(256))
        mine = told.digests[LARGE[0][0]]
        assert (mine.count, mine.xor) == (1, wire.held_digest(HOME, LARGE[0]))

    def test_what_came_and_went_is_told_until_it_is_answered(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        beat.beat()
        node.client().put(*LARGE)
        node.client().put_many([SMALL])
        nameserver.is_deaf = True
        assert not beat.beat()
        node.client().delete(SMALL[0])
        nameserver.is_deaf = False
        assert beat.beat()
        assert beat.beat()

        assert [set(told.added) for told in nameserver.beats[1:]] == [
            {held(LARGE), held(SMALL)},
            {held(LARGE)},
            set(),
        ]
        assert [told.removed for told in nameserver.beats[1:]] == [[], [held(SMALL)], []]
        assert "no heartbeat" in caplog.text
        caplog.clear()

    def test_a_restart_has_a_new_boot_number_and_all_digests(
        self, tmp_path: Path, nameserver: nodes.ScriptedNameserver
    ) -> None:
        for _ in range(2):
            node = nodes.InProcessNode(tmp_path / "dn1")
            node.client().put(*SMALL)
            assert node.beat(nameserver.transport).beat()
            node.node.abandon()

        first, second = nameserver.beats
        assert first.boot != second.boot
        assert second.added == []
        assert second.blocks == 1
        assert first.digests == second.digests

    def test_a_node_with_a_capacity_tells_that(
        self, tmp_path: Path, nameserver: nodes.ScriptedNameserver
    ) -> None:
        node = nodes.InProcessNode(tmp_path / "small", capacity=10_000)
        node.client().put(*SMALL)

        node.beat(nameserver.transport).beat()

        assert (nameserver.beats[0].capacity, nameserver.beats[0].free) == (10_000, 9_300)
        node.close()

    def test_rot_is_told_at_once(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        nameserver.beat_s = 60.0
        node.client().put(*LARGE)
        beat.start()
        wait_until(lambda: nameserver.told("added") == {held(LARGE)}, 5, "the first beat")
        rot(node, LARGE[0])

        with pytest.raises(EverfoldError):
            node.node.get(HOME, LARGE[0])

        wait_until(lambda: nameserver.told("bad") == {held(LARGE)}, 5, "the urgent beat")
        assert nameserver.told("removed") == {held(LARGE)}
        caplog.clear()


class TestOrders:
    def order(
        self, nameserver: nodes.ScriptedNameserver, beat: Beat, *commands: wire.Command
    ) -> None:
        nameserver.beat_s = 60.0  # what is told after this is told because it is urgent
        nameserver.commands = list(commands)
        beat.start()

    def test_a_copy_is_pulled_and_told(
        self, tmp_path: Path, peers: nodes.InProcessPeers, node: nodes.InProcessNode,
        nameserver: nodes.ScriptedNameserver, beat: Beat,
    ) -> None:  # fmt: skip
        source = nodes.InProcessNode(tmp_path / "dn2", "dn2", peers=peers)
        source.client().put(*LARGE)
        token = nodes.token(1, "r")

        self.order(nameserver, beat, wire.Copy(HOME, LARGE[0], len(LARGE[1]), [source.url], token))

        wait_until(lambda: nameserver.told("added") == {held(LARGE)}, 5, "the copy")
        assert node.client().get(LARGE[0]) == LARGE[1]
        source.close()

    def test_a_copy_of_what_is_here_is_told_again(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat
    ) -> None:
        node.client().put(*LARGE)
        beat.beat()
        nameserver.beats.clear()

        self.order(nameserver, beat, wire.Copy(HOME, LARGE[0], len(LARGE[1]), [], "token"))

        wait_until(lambda: nameserver.told("added") == {held(LARGE)}, 5, "the answer")

    def test_a_copy_that_fails_is_logged_and_may_be_ordered_again(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        command = wire.Copy(HOME, LARGE[0], len(LARGE[1]), ["http://127.0.0.1:9"], "token")

        self.order(nameserver, beat, command)

        wait_until(lambda: "was not done" in caplog.text, 5, "the failure")
        wait_until(lambda: len(nameserver.beats) >= 2, 5, "the beat after it")
        caplog.clear()
        nameserver.commands = [command]
        beat.poke()
        wait_until(lambda: "was not done" in caplog.text, 5, "the second failure")
        caplog.clear()

    def test_a_drop_is_done_and_told_also_when_there_is_nothing_to_drop(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat
    ) -> None:
        node.client().put(*LARGE)

        self.order(nameserver, beat, wire.Drop(HOME, LARGE[0]), wire.Drop(HOME, SMALL[0]))

        wanted = {held(LARGE), wire.Held(HOME, SMALL[0], 0)}
        wait_until(lambda: nameserver.told("removed") == wanted, 5, "the drops")
        assert node.client().size_of(LARGE[0]) is None

    def test_a_verify_tells_held_missing_or_bad(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        node.client().put_many([SMALL, LARGE])
        beat.beat()
        nameserver.beats.clear()
        rot(node, LARGE[0])
        absent = block_of(5)[0]

        self.order(nameserver, beat, *(wire.Verify(HOME, b) for b in (SMALL[0], LARGE[0], absent)))

        wait_until(
            lambda: (
                nameserver.told("added") == {held(SMALL)}
                and nameserver.told("bad") == {held(LARGE)}
                and nameserver.told("removed") == {held(LARGE), wire.Held(HOME, absent, 0)}
            ),
            5,
            "the three answers",
        )
        caplog.clear()

    def test_a_list_tells_what_is_really_there_and_corrects_the_digest(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        node.client().put(*LARGE)
        next(node.node.store.root.rglob(LARGE[0].hex())).unlink()

        self.order(nameserver, beat, wire.ListPrefix(LARGE[0][0]))

        def lists() -> list[wire.PrefixList]:
            return [told for one in nameserver.beats for told in one.lists]

        wait_until(lambda: bool(lists()), 5, "the list")
        assert lists() == [wire.PrefixList(LARGE[0][0], [])]
        assert node.node.ledger.totals() == (0, 0)
        assert "was not what was noted" in caplog.text
        caplog.clear()

    def test_a_failed_node_refuses_until_told_otherwise_also_after_a_restart(
        self, tmp_path: Path, nameserver: nodes.ScriptedNameserver,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        node = nodes.InProcessNode(tmp_path / "dn1")
        node.client().put(*SMALL)
        nameserver.state = NodeState.FAILED
        assert node.beat(nameserver.transport).beat()
        node.node.abandon()

        node = nodes.InProcessNode(tmp_path / "dn1")
        with pytest.raises(EverfoldError) as caught:
            node.client().get(SMALL[0])
        assert caught.value.kind is Kind.UNAVAILABLE

        nameserver.state = NodeState.UP
        assert node.beat(nameserver.transport).beat()
        assert node.client().get(SMALL[0]) == SMALL[1]
        node.close()
        caplog.clear()

    def test_only_what_outlasts_a_restart_is_written_down(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat,
        tmp_path: Path, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        facts = next(tmp_path.rglob("node.json"))  # replaced whole, so its number tells
        before = facts.stat().st_ino
        for state in (NodeState.SUSPECT, NodeState.DOWN, NodeState.DRAINING, NodeState.UP):
            nameserver.state = state
            assert beat.beat()
            assert node.node.state is state
            assert facts.stat().st_ino == before

        nameserver.state = NodeState.FAILED
        assert beat.beat()
        assert facts.stat().st_ino != before
        caplog.clear()


class TestSilence:
    def test_without_a_nameserver_it_serves_and_comes_back_by_itself(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        nameserver.is_away = True
        beat.start()
        wait_until(lambda: "no heartbeat" in caplog.text, 5, "the first failure")
        node.client().put(*SMALL)
        assert node.client().get(SMALL[0]) == SMALL[1]

        nameserver.is_away = False

        wait_until(lambda: held(SMALL) in nameserver.told("added"), 3, "the news")
        caplog.clear()

    def test_the_interval_is_the_nameservers(
        self, nameserver: nodes.ScriptedNameserver, beat: Beat
    ) -> None:
        nameserver.beat_s = 0.01
        beat.start()

        wait_until(lambda: len(nameserver.beats) >= 20, 5, "twenty beats")

    def test_ordinary_puts_are_not_urgent(
        self, node: nodes.InProcessNode, nameserver: nodes.ScriptedNameserver, beat: Beat
    ) -> None:
        nameserver.beat_s = 60.0
        beat.start()
        wait_until(lambda: len(nameserver.beats) == 1, 5, "the first beat")
        node.client().put(*SMALL)
        node.client().put_many([LARGE])
        beat.poke()

        wait_until(lambda: len(nameserver.beats) == 2, 5, "the beat")
        assert set(nameserver.beats[1].added) == {held(SMALL), held(LARGE)}


class TestIdentity:
    def test_two_processes_may_not_serve_one_folder(self, tmp_path: Path) -> None:
        node = Node(Identity(NodeId("dn1"), "http://a"), tmp_path, floor=0)

        with pytest.raises(EverfoldError) as caught:
            Node(Identity(NodeId("dn1"), "http://b"), tmp_path, floor=0, lock_wait_s=0.1)

        assert caught.value.kind is Kind.BUSY
        node.close()

    def test_a_folder_belongs_to_one_node(self, tmp_path: Path) -> None:
        Node(Identity(NodeId("dn1"), "http://a"), tmp_path, floor=0).close()

        with pytest.raises(EverfoldError) as caught:
            Node(Identity(NodeId("dn2"), "http://a"), tmp_path, floor=0)

        assert caught.value.kind is Kind.CONFLICT
        Node(Identity(NodeId("dn1"), "http://a"), tmp_path, floor=0).close()
