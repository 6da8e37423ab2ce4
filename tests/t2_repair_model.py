"""Whatever happens to the nodes, one misfortune at a time: no block is ever lost, and when all
is calm again each has exactly as many sound copies as wanted."""

from __future__ import annotations

import shutil
import tempfile

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from everfold import wire
from everfold.model import BlockId, NodeId, SpaceId
from nameserver.db import Database
from nameserver.policy import Policy
from tests.harness.service import Desk

SPACE = SpaceId(2)
NODES = ["dn1", "dn2", "dn3", "dn4"]
CALM_S = 45.0


class Misfortunes(RuleBasedStateMachine):
    """Nodes fall silent, come back, lose their disk, rot, are failed and repaired by hand."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="everfold-repair-")
        self.db = Database(f"sqlite:///{self.folder}/ns.db")
        self.desk = Desk(self.db, Policy(bcrypt_rounds=4, surplus_s=3.0, drop_rest_s=0.5), nodes=4)
        self.blocks: list[BlockId] = []
        self.hurt = ""  # the node that something happened to, until all is calm again
        self.boots = 0

    def teardown(self) -> None:
        if hasattr(self, "desk"):
            self.desk.service.stop()
            self.db.close()
            shutil.rmtree(self.folder)

    @rule(count=st.integers(1, 5))
    def save(self, count: int) -> None:
        for _ in range(count):
            block = self.desk.block()
            answer = self.desk.service.ledger.plan(wire.Plan(SPACE, [(block, 1000)]))
            for node in answer.targets[0] or []:
                self.desk.nodes[node].put(SPACE, block)
            stored = wire.Stored(block, 1000, answer.targets[0] or [])
            with self.db.write() as cx:
                self.desk.service.ledger.record(cx, SPACE, [stored], self.desk.clock.time_ns(), 2)
            self.blocks.append(block)

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.desk.pass_time(seconds)

    @precondition(lambda self: not self.hurt)
    @rule(name=st.sampled_from(NODES), what=st.sampled_from(["silence", "fail", "swap", "rot"]))
    def hurt_one(self, name: str, what: str) -> None:
        self.hurt = name
        node = self.desk.nodes[name]
        if what == "silence":
            self.desk.silent = {name}
        elif what == "fail":
            self.desk.service.fail_node(NodeId(name), "root")
        elif what == "swap":
            node.lose_disk()
            self.boots += 1
            node.restart(f"boot {self.boots}")
        else:
            node.rotten |= set(node.held)
            for space, block in list(node.held):
                bad = wire.ReportBad(space, block, node.id, "corrupt")
                self.desk.service.ledger.report_bad(bad)

    @precondition(lambda self: self.hurt)
    @rule()
    def calm(self) -> None:
        self.desk.silent = set()
        self.desk.service.repair_node(NodeId(self.hurt), "root")
        self.desk.pass_time(CALM_S)
        self.hurt = ""

        figures = self.desk.service.status.figures()
        assert (figures["under_replicated"], figures["corrupt"], figures["missing"]) == (0, 0, 0)
        for block in self.blocks:
            assert len(self.desk.holders(SPACE, block)) == 2

    @invariant()
    def nothing_is_lost(self) -> None:
        for block in getattr(self, "blocks", []):
            assert self.desk.holders(SPACE, block), "no node has a sound copy"


TestMisfortunes = Misfortunes.TestCase
TestMisfortunes.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
