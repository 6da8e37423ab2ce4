"""The journal against the simplest correct thing: a list."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mount.journal import Journal

pytestmark = pytest.mark.expects_warnings  # a power cut that took records says so


class JournalMachine(RuleBasedStateMachine):
    """Append, amend, trim, mark, crash, lose power; replay is always what the list says."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="everfold-journal-"))
        self.boot = 0
        self.records: list[tuple[int, bytes]] = []
        self.given = 0  # the highest number that was given out
        self.trimmed = 0
        self.durable = 0
        self.journal = self._open()

    def _open(self) -> Journal:
        return Journal(self.directory, file_bytes=300, boot_id=f"boot-{self.boot}")

    @rule(bodies=st.lists(st.binary(max_size=120), max_size=5))
    def append(self, bodies: list[bytes]) -> None:
        first = self.journal.append(bodies)
        assert first > self.given
        for number, body in enumerate(bodies, first):
            self.records.append((number, body))
            self.given = number

    @precondition(lambda self: self.records)
    @rule(data=st.data(), body=st.binary(max_size=120))
    def amend(self, data: st.DataObject, body: bytes) -> None:
        i = data.draw(st.integers(0, len(self.records) - 1))
        number, _ = self.records[i]
        self.journal.amend(number, body)
        self.records[i] = number, body

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.trimmed = data.draw(st.sampled_from([number for number, _ in self.records]))
        self.journal.trim(self.trimmed)
        self.records = [record for record in self.records if record[0] > self.trimmed]

    @rule()
    def mark(self) -> None:
        self.journal.mark_durable()
        self.durable = self.given

    @rule(by=st.integers(1, 50))
    def skip(self, by: int) -> None:
        self.journal.skip_to(self.journal.next_number + by)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = self._open()
        assert list(self.journal.replay()) == self.records

    @rule()
    def lose_power(self) -> None:
        self.journal.close()
        self.boot += 1
        self.journal = self._open()
        self.records = [record for record in self.records if record[0] <= self.durable]
        assert list(self.journal.replay()) == self.records

    @invariant()
    def no_number_comes_again(self) -> None:
        assert self.journal.next_number > self.given

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.directory)


JournalMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestJournalAgainstAList = JournalMachine.TestCase
