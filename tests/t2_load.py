"""How busy the cluster is: counted, written down, told by any process; and the metrics."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from everfold import durations, wire
from everfold.durations import BUCKETS, Durations
from everfold.errors import EverfoldError, Kind
from nameserver.db import Database
from nameserver.load import STEP_S, kind_of
from nameserver.service import Service
from tests.harness.service import KEYS, Desk
from tests.harness.web import Web


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(database)
    yield desk
    desk.service.stop()


def test_a_percentile_is_right_to_within_an_eighth() -> None:
    spent, rng = Durations(), random.Random(7)
    values = sorted(int(rng.lognormvariate(14, 2)) for _ in range(5000))
    for value in values:
        spent.note(value)

    for share in (0.05, 0.5, 0.95, 0.99):
        true = values[int(share * len(values)) - 1]
        assert abs(spent.percentile_ns(share) - true) <= true * 0.13


def test_durations_of_no_time_and_of_ages_are_counted() -> None:
    spent = Durations()
    for value in (0, 1, 2, 3, 1 << 60):
        spent.note(value)

    assert spent.count == sum(spent.buckets) == 5
    assert Durations().percentile_ns(0.5) == 0.0


def test_packed_counts_add_up() -> None:
    sums = [0] * BUCKETS
    one, two = Durations(), Durations()
    for at in range(40):
        one.note(1 << at)
        two.note(3 << at)
    for spent in (one, two):
        durations.unpack_into(sums, durations.pack(spent.buckets))

    assert sums == [a + b for a, b in zip(one.buckets, two.buckets, strict=True)]


@pytest.mark.parametrize("verb", sorted(wire.CALLS))
def test_every_call_of_mounts_and_nodes_is_of_a_kind(verb: str) -> None:
    assert kind_of("POST", f"/v1/{verb}") != "other"


def answer(service: Service, count: int, took_ns: int, kind: str = "names") -> None:
    course = service.load.traffic.course(kind)
    for _ in range(count):
        course.durations.note(took_ns)
    course.bytes_in += 100 * count


def step(desk: Desk, *services: Service) -> None:
    """Let the clock come to the end of a step, where every process writes what it counted."""
    now_s = desk.clock.time_ns() / 1e9
    desk.clock.move(STEP_S - now_s % STEP_S + 0.001)
    for service in services or (desk.service,):
        service.load.tick()


def test_a_step_is_told_with_its_requests_durations_and_bytes(desk: Desk) -> None:
    step(desk)
    answer(desk.service, 40, 2_000_000)
    answer(desk.service, 5, 9_000_000_000, "feed")  # waits by its nature
    desk.service.load.moved(stored=5000, fetched=1000)
    step(desk)
    step(desk)

    told = desk.service.load.series(1)
    busy, after = told["series"][-2:]
    assert (told["step_s"], len(told["series"])) == (10, 6)
    assert (busy["requests_per_s"], busy["bytes_in_per_s"], busy["bytes_out_per_s"]) == (
        4,
        500,
        100,
    )
    assert busy["http_bytes_in_per_s"] == 400
    assert 1.7 < busy["p50_ms"] < busy["p99_ms"] < 2.3
    assert (after["requests_per_s"], after["p99_ms"]) == (0, 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d0\.000000Z", busy["at"])


def test_several_processes_are_one_cluster_and_a_restart_forgets_nothing(desk: Desk) -> None:
    other = Service(desk.service.db, desk.clock, desk.policy, KEYS)
    step(desk, desk.service, other)
    answer(desk.service, 90, 1_000_000)
    answer(other, 10, 64_000_000)
    step(desk, desk.service, other)

    later = Service(desk.service.db, desk.clock, desk.policy, KEYS)
    for service in (desk.service, other, later):
        point = service.load.series(1)["series"][-1]
        assert point["requests_per_s"] == 10
        assert point["p50_ms"] < 1.2
        assert point["p99_ms"] > 48


def test_of_a_long_time_several_steps_are_one_point(desk: Desk) -> None:
    for _ in range(12):
        step(desk)
        answer(desk.service, 10, 1_000_000)
    step(desk)

    told = desk.service.load.series(24 * 60)

    assert (told["step_s"], len(told["series"])) == (120, 720)
    desk.clock.move(120)
    shown = desk.service.load.series(24 * 60)["series"]
    assert round(sum(point["requests_per_s"] for point in shown) * 120) == 120


def test_a_day_is_kept_and_no_more(desk: Desk) -> None:
    answer(desk.service, 1, 1)
    step(desk)
    desk.clock.move(86_400)
    answer(desk.service, 1, 1)
    step(desk)

    with desk.service.db.read() as cx:
        assert cx.one("SELECT count(*) FROM load") == (1,)


def test_while_the_database_is_away_nothing_is_forgotten(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(desk.service, 20, 1_000_000)
    with monkeypatch.context() as away:
        away.setattr(Database, "write", lambda self, is_durable: (_ for _ in ()).throw(_gone()))
        with pytest.raises(EverfoldError):
            step(desk)
    step(desk)

    assert sum(p["requests_per_s"] for p in desk.service.load.series(1)["series"]) == 2


def _gone() -> EverfoldError:
    return EverfoldError(Kind.UNAVAILABLE, "the database is away")


# ------------------------------------------------------------ what is counted


def test_what_is_answered_is_counted_by_kind_with_its_failures(desk: Desk) -> None:
    web = Web(desk)
    web.login("root")
    web.call("GET", "/admin/system/nodes")
    web.call("GET", "/admin/users/nobody")
    web.client().session(wire.Hello("m1", "test"))  # type: ignore[arg-type]

    courses = desk.service.load.traffic.courses
    assert courses["admin"].durations.count == courses["admin"].begun == 2
    assert dict(courses["admin"].failed) == {404: 1}
    assert courses["session"].durations.count == 1
    assert courses["session"].bytes_in > 5
    assert courses["accounts"].bytes_out > 100


def test_the_metrics_tell_of_requests_commits_nodes_and_deficits(desk: Desk) -> None:
    web = Web(desk)
    web.login("root")
    desk.mount()
    status, headers, raw = web.transport.request("GET", "/metrics", headers={}, timeout_s=5)
    lines = raw.decode().splitlines()

    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    told = (line.replace(f'process="{desk.service.load.process}"', "").replace("{,", "{")
            .replace("{}", "").rpartition(" ") for line in lines if line[0] != "#")  # fmt: skip
    figures = {name: float(value) for name, _, value in told}
    assert figures['everfold_nodes{state="up"}'] == 3
    assert figures["everfold_blocks_under_replicated"] == 0
    assert figures['everfold_nameserver_request_seconds_count{kind="accounts"}'] == 1
    assert figures['everfold_nameserver_request_seconds_bucket{kind="accounts",le="+Inf"}'] == 1
    assert figures['everfold_node_to_copy{node="dn1"}'] == 0
    assert figures["everfold_mounts"] == 1
    assert {"everfold_commits_total", "everfold_nameserver_operations_total",
            "everfold_nameserver_write_turn_seconds_count"} <= set(figures)  # fmt: skip
