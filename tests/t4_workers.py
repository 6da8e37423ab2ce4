"""Several nameserver processes on one database: as one, and when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from everfold import wire
from everfold.api import Api
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport
from everfold.model import ROOT, Ino, Lock, LockKind, LockType, MountId, NodeId, NodeState, Seq
from everfold.nameclient import NameClient
from everfold.tokens import Signer
from nameserver.db import Database
from nameserver.planning import planning
from nameserver.policy import Policy
from tests.harness import machine
from tests.harness.nameservers import Nameserver, running, with_nodes
from tests.harness.nodes import SECRET

COUNT = 3


@pytest.fixture(scope="module")
def servers(bare_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Nameserver]]:
    """Three processes that were started at once on an empty database, and two datanodes."""
    with with_nodes(tmp_path_factory.mktemp("servers"), COUNT, bare_url) as found:
        yield found


def client(server: Nameserver, token: str) -> NameClient:
    return NameClient(HttpTransport(server.url), token)


@pytest.fixture
def clients(servers: list[Nameserver]) -> list[NameClient]:
    """One login, known to every process."""
    with servers[0].api() as api:
        return [client(server, api.token) for server in servers]


def begin(name_client: NameClient, mount: str) -> wire.Session:
    return name_client.session(wire.Hello(MountId(mount), mount))


def making(parent: Ino, ino: Ino, name: bytes) -> wire.Make:
    return wire.Make(parent, name, ino, stat.S_IFDIR | 0o755, 0, 0, time.time_ns())


def test_of_many_first_starts_one_makes_the_admin(servers: list[Nameserver]) -> None:
    made = [server.told["admin"] for server in servers]

    assert sum(each is not None for each in made) == 1
    for server in servers:
        with server.api() as api:
            assert api.profile()["username"] == "admin"


def test_numbers_are_given_once_whoever_is_asked(clients: list[NameClient]) -> None:
    space = begin(clients[0], "numbers").space

    def reserve(k: int) -> list[int]:
        return [clients[k % COUNT].reserve(wire.Reserve(space, 1)).first for _ in range(10)]

    with ThreadPoolExecutor(6) as pool:
        given = [number for some in pool.map(reserve, range(6)) for number in some]

    assert len(set(given)) == 60


def test_of_many_who_make_the_same_name_one_does(clients: list[NameClient]) -> None:
    count = 6
    space = {begin(clients[k % COUNT], f"racer{k}").space for k in range(count)}.pop()

    def race(k: int) -> list[bool]:
        mine, mount = clients[k % COUNT], MountId(f"racer{k}")
        done = []
        for turn in range(8):
            ino = mine.reserve(wire.Reserve(space, 1)).first
            ops: list[wire.AnyOp] = [making(ROOT, ino, b"race%d" % turn)]
            answer = mine.commit(wire.Commit(space, mount, turn + 1, ops))
            done.append(answer.results[0].kind == "")
        return done

    with ThreadPoolExecutor(count) as pool:
        told = list(pool.map(race, range(count)))

    assert [sum(turn) for turn in zip(*told, strict=True)] == [1] * 8


def test_a_lock_that_one_process_gave_the_others_refuse(clients: list[NameClient]) -> None:
    space = {begin(clients[k], f"locker{k}").space for k in range(COUNT)}.pop()

    def ask(k: int, type_: LockType = LockType.WRITE) -> bool:
        lock = Lock(ROOT, LockKind.POSIX, type_, k + 1, 0, 100, os.getpid())
        try:
            clients[k].set_lock(wire.SetLock(space, MountId(f"locker{k}"), lock))
        except EverfoldError as err:
            assert err.kind is Kind.WOULD_BLOCK
            return False
        return True

    assert [ask(0), ask(1), ask(2)] == [True, False, False]
    assert ask(0, LockType.UNLOCK)
    assert ask(2)


def test_what_one_process_took_another_tells_and_sends(
    servers: list[Nameserver], clients: list[NameClient]
) -> None:
    listener = begin(clients[1], "listener")
    now = clients[1].feed(wire.FeedPoll(listener.space, MountId("listener"), Seq(0), 0.0))
    poll = wire.FeedPoll(
        listener.space, MountId("listener"), now.seq, 20.0, now.locks, now.nodes, teams=now.teams
    )

    with ThreadPoolExecutor(1) as pool, servers[0].api() as one, servers[2].api() as three:
        heard = pool.submit(clients[1].feed, poll)
        head = {"Authorization": f"Bearer {one.token}"}
        kept = requests.post(
            f"{servers[0].url}/api/files/upload",
            files={"file": ("told.txt", b"by one, read by another")}, headers=head, timeout=20,
        )  # fmt: skip
        news = heard.result(20)
        listed = three.call("GET", "/api/files/list?search=told.txt")["files"]
        path = f"{servers[2].url}/api/files/{listed[0]['file_id']}/download"
        sent = requests.get(path, headers=head, timeout=20)

    assert kept.status_code == 201, kept.text
    assert b"told.txt" in {change.name for event in news.events for change in event.changes}
    assert sent.content == b"by one, read by another"


def test_failed_logins_are_counted_together(servers: list[Nameserver]) -> None:
    def guess(k: int) -> Kind:
        with Api(servers[k % COUNT].url) as api, pytest.raises(EverfoldError) as caught:
            api.login("nobody-here", f"guess {k}")
        return caught.value.kind

    kinds = [guess(k) for k in range(11)]

    assert kinds == [Kind.UNAUTHENTICATED] * 10 + [Kind.RATE_LIMITED]


def test_whoever_is_left_looks_after_the_cluster(servers: list[Nameserver], bare_url: str) -> None:
    """Of three, the one that plans and another are killed; then a datanode falls silent."""
    for server in servers[:2]:
        server.kill()
    beat = wire.Heartbeat(NodeId("dn9"), "http://127.0.0.1:1", "", "boot", 1, 0, 1, 0)
    token = Signer(SECRET, SystemClock()).mint("node", 60, sub="dn9")
    status, _, answer = HttpTransport(servers[2].url).request(
        "POST", "/v1/heartbeat", headers={"Authorization": f"Bearer {token}"},
        body=wire.encode(beat), timeout_s=10,
    )  # fmt: skip
    assert status == 200, answer

    db = Database(bare_url)

    def meta(key: str) -> Any:
        with db.read() as cx:
            row = cx.one("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(row[0]) if row else None

    machine.wait_until(
        lambda: meta("node_states").get("dn9", [""])[0] == NodeState.DOWN.value, 20,
        "it is written down that dn9 is silent",
    )  # fmt: skip

    def is_ours() -> bool:
        right = planning(db, SystemClock(), Policy())
        try:
            return right.is_ours()
        finally:
            right.give_back()

    machine.wait_until(lambda: not is_ours(), 20, "the last one has the right to plan")
    db.close()


# ---------------------------------------------------------------- --workers


def children(pid: int) -> set[int]:
    """Return the processes that this one started and that run."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(word) for word in told if machine.is_alive(int(word))}


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Nameserver]:
    """A nameserver of three workers."""
    with running(tmp_path, 1, "--workers", "3") as (found,):
        yield found


def pid_of(server: Nameserver) -> int:
    assert server.process is not None
    return server.process.pid


def test_workers_that_end_are_started_again_and_nobody_is_refused(crew: Nameserver) -> None:
    parent = pid_of(crew)
    first = children(parent)
    killed, ended = sorted(first)[:2]

    os.kill(killed, signal.SIGKILL)
    os.kill(ended, signal.SIGTERM)
    machine.wait_until(
        lambda: len(children(parent)) == 3 and not {killed, ended} & children(parent), 20, "three"
    )
    for _ in range(12):
        with crew.api() as api:
            assert api.profile()["username"] == "admin"

    assert set(crew.told["workers"]) == first
    assert crew.told["pid"] == parent
    assert crew.stop() == 0


def test_workers_end_when_their_parent_is_killed(crew: Nameserver) -> None:
    workers = children(pid_of(crew))
    crew.kill()

    machine.wait_until(lambda: not any(map(machine.is_alive, workers)), 20, "they ended")
