"""Who listens is told from the log, in order, once, as fast as they take it; on both databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId, SpaceId
from nameserver.db import Database
from nameserver.files import positions
from nameserver.files.positions import START, Place, Sight, after_all
from nameserver.gate import Identity
from nameserver.live import stream
from nameserver.live.hub import Hub
from tests.harness.machine import wait_until
from tests.harness.service import Desk

WAIT_S = 20.0
NOBODY = DeviceId("")


class Line:
    """A client that takes as much as the test lets it."""

    def __init__(self, capacity: int = 1000) -> None:
        self.capacity = capacity
        self.told: list[tuple[str, Any]] = []
        self.has_ended = threading.Event()

    @property
    def room(self) -> int:
        return self.capacity - len(self.told)

    @property
    def is_empty(self) -> bool:
        return not self.told

    def tell(self, packet: str) -> None:
        name, form = json.loads(packet)
        self.told.append((name, form))

    def end(self) -> None:
        self.has_ended.set()

    @property
    def names(self) -> list[str]:
        """Return the names of the files it was told of."""
        found = []
        for name, form in list(self.told):
            found += [e["name"] for e in (form["events"] if name == "sync_events" else [form])]
        return found


class Nameserver:
    """A nameserver with its hub, and somebody who makes folders."""

    def __init__(self, desk: Desk) -> None:
        self.desk, service = desk, desk.service
        self.hub = Hub(
            service.clock, service.bell, service.files.events, service.gate,
            lambda name, form: json.dumps([name, form]),
        )  # fmt: skip

    def make(self, *names: str) -> None:
        files = self.desk.service.files
        me = files.visitor(self.who)
        for name in names:
            files.make_folder(me, name)

    @property
    def who(self) -> Identity:
        return self.desk.identity()

    def token(self) -> str:
        service = self.desk.service
        return service.gate.admit(
            self.desk.ann, service.devices.at_login(self.desk.ann.id, "", "d", "")
        )

    def joined(self, line: Line, since: str = "") -> Any:
        guest = self.hub.enter(line, self.token())
        self.hub.join(guest, since, NOBODY)
        return guest


@pytest.fixture
def here(database: Database) -> Iterator[Nameserver]:
    made = Nameserver(Desk(database))
    yield made
    made.hub.stop()
    made.desk.service.stop()


@pytest.fixture
def there(here: Nameserver, database: Database) -> Iterator[Nameserver]:
    """Another process on the same database."""
    db = Database(database.url)
    made = Nameserver(Desk.resume(here.desk, db))
    yield made
    made.hub.stop()
    made.desk.service.stop()
    db.close()


def test_a_commit_is_heard_in_every_process(here, there):
    near, far = Line(), Line()
    here.joined(near), there.joined(far)

    here.make("a")
    wait_until(lambda: near.names == far.names == ["a"], WAIT_S, "both heard it")
    there.make("b")

    wait_until(lambda: near.names == far.names == ["a", "b"], WAIT_S, "both heard that")


def test_an_ear_hears_of_its_spaces_once(here, there):
    space = here.desk.mount().space
    with there.desk.service.bell.ear([space]) as ear:
        wait_until(lambda: not ear.wait(0.2), WAIT_S, "all before is over")

        here.make("a")
        heard: set[SpaceId] = set()
        wait_until(lambda: bool(heard.update(ear.wait(1.0)) or heard), WAIT_S, "the commit")

        assert heard == {space}
        ear.wake()
        assert ear.wait(WAIT_S) == set()
        ear.listen([])
        ear.tell(space)
        assert ear.wait(0.0) == set()


def test_a_slow_client_is_told_as_it_takes_and_holds_up_nobody(here, monkeypatch):
    monkeypatch.setattr(stream, "KEPT", 5)
    slow, quick = Line(capacity=3), Line()
    here.joined(slow), here.joined(quick)
    names = [f"d{k:02}" for k in range(30)]

    here.make(*names)
    wait_until(lambda: quick.names == names, WAIT_S, "the quick one heard all")
    assert slow.names == names[:3]
    got: list[str] = []
    while len(got) < 30:  # a multiple of what it takes at once
        wait_until(lambda: slow.room == 0, WAIT_S, "more")
        got += slow.names
        slow.told.clear()
        here.hub.wake()

    assert got == names


def test_what_was_missed_comes_in_pages_and_then_what_happens(here, monkeypatch):
    monkeypatch.setattr("nameserver.live.follower.PAGE", 4)
    here.make(*"abcdefghij")
    line = Line(capacity=2)
    here.joined(line, since="0")

    pages: list[Any] = []
    while not pages or pages[-1]["has_more"]:
        wait_until(lambda: bool(line.told), WAIT_S, "a page")
        name, form = line.told[0]
        assert name == "sync_events"
        pages.append(form)
        del line.told[0]
        here.hub.wake()
    here.make("k")
    wait_until(lambda: line.names == ["k"], WAIT_S, "the news")

    assert [page["count"] for page in pages] == [4, 4, 2]
    assert [e["name"] for page in pages for e in page["events"]] == list("abcdefghij")


def test_the_thread_ends_with_the_last_guest(here):
    before = set(threading.enumerate())
    guest = here.joined(Line())
    (thread,) = [t for t in set(threading.enumerate()) - before if t.name == "live"]

    here.hub.leave(guest)
    thread.join(WAIT_S)

    assert not thread.is_alive()
    line = Line()
    here.joined(line)
    here.make("a")
    wait_until(lambda: line.names == ["a"], WAIT_S, "another began")


@pytest.mark.expects_warnings
def test_a_database_that_fails_makes_events_late_and_loses_none(here, monkeypatch):
    line = Line()
    here.joined(line)
    here.make("a")
    wait_until(lambda: line.names == ["a"], WAIT_S, "the first")
    real, failures = here.desk.service.files.events.news, []

    def fail(*asked: Any) -> Any:
        if len(failures) < 2:
            failures.append(1)
            raise EverfoldError(Kind.UNAVAILABLE, "the database failed")
        return real(*asked)

    monkeypatch.setattr(here.desk.service.files.events, "news", fail)
    here.make("b", "c")

    wait_until(lambda: line.names == ["a", "b", "c"], WAIT_S, "all")
    assert failures


def test_a_guest_whose_token_is_not_good_any_more_is_ended(here):
    service, line, other = here.desk.service, Line(), Line()
    token = here.token()
    device = service.gate.by_token(token).device
    guest = here.hub.enter(line, token)
    here.joined(other)
    service.devices.revoke(here.desk.ann.id, device, "ann")

    here.desk.clock.move(10.0)
    here.hub.wake()

    assert line.has_ended.wait(WAIT_S) and not other.has_ended.is_set()
    here.hub.leave(guest)
    with pytest.raises(EverfoldError) as err:
        here.hub.enter(Line(), token)
    assert err.value.kind is Kind.UNAUTHENTICATED


# ---------------------------------------------------------------- positions

HOME, TEAM = SpaceId(1), SpaceId(7)
SIGHTS = (Sight(HOME), Sight(TEAM, "/Plans"))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0", {HOME: Place(0, (1 << 31) - 1)}),
        ("12-3", {HOME: Place(12, 3)}),
        ("12", {HOME: after_all(12)}),
        ("12,7:5-2", {HOME: after_all(12), TEAM: Place(5, 2)}),
        ("7:5-2", {TEAM: Place(5, 2)}),
    ],
)
def test_a_position_is_read_as_it_was_told(text, position):
    assert positions.read(text, HOME) == position
    assert positions.told(position, SIGHTS) == text


@pytest.mark.parametrize("text", ["", ",", "1,", "x", "-1", "1-", "0:1", "1:1:1", "9" * 19, "1-x"])
def test_what_is_no_position_is_none(text):
    assert positions.read(text, HOME) is None


def test_places_are_in_order():
    assert START < Place(1, 0) < Place(1, 1) < after_all(1) < Place(2, 0)
