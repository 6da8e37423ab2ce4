"""The nameserver's side of the write lease where its machine loses power and comes back."""

from __future__ import annotations

import pytest

from everfold import wire
from everfold.model import MountId, Seq
from nameserver.db import Database
from nameserver.leases import Leases
from nameserver.policy import Policy
from tests.harness.trees import Stage

A, B = MountId("a"), MountId("b")


class Office:
    """Who grants the lease of one space."""

    def __init__(self, db: Database) -> None:
        self.stage = Stage(db)
        self.policy = Policy()
        self.leases = Leases(db, self.stage.clock, self.policy, self.stage.bell)

    def take(self, mount: MountId) -> int:
        return self.leases.take(wire.TakeLease(self.stage.space, mount)).epoch

    def renew(self, mount: MountId, epoch: int) -> None:
        self.leases.renew(wire.FeedPoll(self.stage.space, mount, Seq(0), 0.0, epoch=epoch))

    def give_back(self, mount: MountId, epoch: int) -> None:
        self.leases.take(wire.TakeLease(self.stage.space, mount, epoch))


@pytest.fixture
def office(database: Database) -> Office:
    return Office(database)


def test_who_was_told_that_his_lease_goes_on_has_it_although_a_power_cut_lost_that(
    office: Office,
) -> None:
    epoch = office.take(A)
    told_until = office.policy.write_lease_s
    office.stage.clock.move(told_until + 1.0)  # of what was renewed since, nothing came through

    office.leases.survive()

    assert epoch == 1
    office.stage.clock.move(told_until - 0.1)
    assert office.take(B) == 0
    office.stage.clock.move(0.2)
    assert office.take(B) == 2


def test_a_lease_that_was_given_back_comes_not_back_with_a_start(office: Office) -> None:
    office.give_back(A, office.take(A))
    office.stage.clock.move(office.policy.write_calm_s + 0.1)

    office.leases.survive()

    assert office.take(B) == 2


def test_a_renewal_waits_for_no_disk_where_it_can_be_made_up_for(
    office: Office, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch, write = office.take(A), database.write
    asked: list[bool] = []

    def watched(is_durable: bool = True):  # type: ignore[no-untyped-def]
        asked.append(is_durable)
        return write(is_durable)

    monkeypatch.setattr(database, "write", watched)
    office.stage.clock.move(office.policy.write_lease_s / 2)
    office.renew(A, epoch)

    assert asked == [database.is_postgres]
    office.stage.clock.move(office.policy.write_lease_s - 0.1)
    assert office.take(B) == 0
