"""Commands for the nodes: transactions that change them never wait for each other in a circle."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from everfold import wire
from everfold.blockid import name_of
from everfold.model import BlockId, NodeId, SpaceId
from nameserver import tasks
from nameserver.db import Cx, Database
from tests.harness.databases import PostgresServer
from tests.harness.machine import wait_until

SPACE = SpaceId(1)
BLOCKS = sorted(name_of(b"%d" % number) for number in range(8))
NODES = [NodeId("dn1"), NodeId("dn2")]
LONG_AGO = 1

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    """A database with two nodes, each of which was told long ago to verify eight blocks."""
    url = postgres_server.new_database()
    db = Database(url)
    with db.write() as cx:
        for node in NODES:
            cx.run(
                "INSERT INTO node (id, url, zone, wanted, boot, capacity, used, free, blocks,"
                " seen_ns, created_ns) VALUES (?, 'http://x', '', '', '', 0, 0, 0, 0, 1, 1)",
                node,
            )
        # the last one first: whoever walks over the table finds them in this order
        told = [tasks.Task(n, tasks.VERIFY, SPACE, b) for n in NODES for b in reversed(BLOCKS)]
        tasks.queue(cx, told, LONG_AGO)
        cx.run("UPDATE task SET sent_ns = 1")
    db.close()
    return url


def is_waiting(db: Database) -> bool:
    """Tell whether a transaction of this database waits for another's row."""
    with db.read() as cx:
        sql = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        row = cx.one(sql)
    return bool(row and row[0])


def held(block: BlockId) -> wire.Held:
    return wire.Held(SPACE, block, 1)


@pytest.mark.parametrize(
    "other",
    [
        lambda cx: tasks.expire(cx, 10**18, 1.0, 1.0),
        lambda cx: tasks.discard(cx, NODES[0]),
        lambda cx: tasks.queue(
            cx, [tasks.Task(n, tasks.VERIFY, SPACE, b) for n in NODES for b in BLOCKS], LONG_AGO
        ),
    ],
    ids=["expire", "discard", "queue"],
)
def test_a_beat_and_whoever_else_changes_commands_take_turns(
    url: str, other: Callable[[Cx], object]
) -> None:
    db, own, watching = Database(url), Database(url), Database(url)
    failed: list[Exception] = []

    def meanwhile() -> None:
        try:
            with own.write() as cx:
                other(cx)
        except Exception as err:  # noqa: BLE001  # the test tells
            failed.append(err)
        finally:
            own.close()

    thread = threading.Thread(target=meanwhile)
    with db.write() as cx:
        cx.run("UPDATE node SET seen_ns = 2 WHERE id = ?", NODES[0])  # as each beat begins
        tasks.clear(cx, NODES[0], (tasks.VERIFY,), [held(BLOCKS[0])])
        thread.start()
        wait_until(lambda: is_waiting(watching), 20, "the other one waits")
        for block in BLOCKS[1:]:
            tasks.clear(cx, NODES[0], (tasks.VERIFY,), [held(block)])
        again = [tasks.Task(NODES[0], tasks.COPY, SPACE, block) for block in BLOCKS]
        tasks.queue(cx, again, LONG_AGO)
    thread.join(20)
    db.close()
    watching.close()

    assert not thread.is_alive()
    assert failed == []


def test_two_who_queue_for_the_same_nodes_in_opposite_order_take_turns(url: str) -> None:
    asked = [tasks.Task(node, tasks.COPY, SPACE, block) for node in NODES for block in BLOCKS]
    start, failed = threading.Barrier(2), []

    def queue(order: int) -> None:
        own = Database(url)
        try:
            start.wait(10)
            for _ in range(20):
                with own.write() as cx:
                    tasks.queue(cx, asked[::order], LONG_AGO)
                    cx.run("DELETE FROM task WHERE kind = 'copy'")
        except Exception as err:  # noqa: BLE001  # the test tells
            failed.append(err)
        finally:
            own.close()

    threads = [threading.Thread(target=queue, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failed == []
