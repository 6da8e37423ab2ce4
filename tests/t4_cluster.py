"""A whole cluster through the real routes of both servers, within the test's process."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, SpaceId
from tests.harness import machine, world
from tests.harness.inprocess import CALM, InProcessCluster
from tests.harness.world import load, names

LARGE = 9 * 1024 * 1024 + 17


@pytest.fixture
def cluster(tmp_path):
    with InProcessCluster(tmp_path) as started:
        yield started


@pytest.fixture
def calm(tmp_path):
    """A cluster whose nodes are never taken for dead, however busy the machine is."""
    with InProcessCluster(tmp_path, policy=CALM) as started:
        yield started


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """A cluster whose routes are only knocked at."""
    with InProcessCluster(tmp_path_factory.mktemp("door"), nodes=1, policy=CALM) as started:
        yield started


def save(client, path, data) -> None:
    """Write a whole file and wait until it is in the cluster."""
    world.save(client, path, data)
    assert client.drain()


def blocks_of(cluster, client, path) -> list[BlockId]:
    space = client.session.space
    found = cluster.names().resolve(
        wire.ResolvePath(space, [os.fsencode(name) for name in path.split("/")])
    )
    extents = cluster.names().extents(wire.GetExtents(space, found.entry.attr.ino)).extents
    return [extent.block for extent in extents]


def replicas(cluster, client, path) -> list[set[str]]:
    space = client.session.space
    return [cluster.holders(space, block) for block in blocks_of(cluster, client, path)]


def figures(cluster) -> dict:
    return cluster.service.status.figures()


@pytest.mark.parametrize("size", [0, 1, 5000, LARGE])
def test_what_one_mount_saves_another_reads(calm, size):
    data = os.urandom(size)
    save(calm.mount("a"), "file", data)

    assert load(calm.mount("b"), "file") == data


def test_every_block_is_on_two_nodes_when_the_save_is_answered(calm):
    client = calm.mount()
    save(client, "file", os.urandom(LARGE))

    assert all(len(where) >= 2 for where in replicas(calm, client, "file"))
    assert figures(calm)["under_replicated"] == 0


@pytest.mark.expects_warnings
def test_a_node_that_is_lost_costs_nothing_and_its_copies_are_made_again(cluster):
    data = os.urandom(LARGE)
    client = cluster.mount("a")
    save(client, "before", data)

    cluster.cut("dn1")
    save(client, "after", data[::-1])

    assert load(cluster.mount("b"), "before") == data
    assert load(cluster.mount("c"), "after") == data[::-1]
    machine.wait_until(
        lambda: all(
            {"dn2", "dn3"} <= where
            for name in ("before", "after")
            for where in replicas(cluster, client, name)
        ),
        20,
        "two copies of everything on the nodes that are left",
    )
    # Not at once where a starved machine lets one of these beat late, too.
    machine.wait_until(lambda: figures(cluster)["missing"] == 0, 20, "each block on a live node")


@pytest.mark.expects_warnings
def test_a_node_that_an_admin_failed_behaves_as_dead_and_comes_back_with_what_it_has(cluster):
    data = os.urandom(LARGE)
    client = cluster.mount("a")
    save(client, "file", data)
    for k in itertools.count():  # by chance all of it may lie elsewhere
        held = cluster.nodes["dn2"].node.ledger.totals()[0]
        if held:
            break
        save(client, f"more{k}", os.urandom(LARGE))

    cluster.service.fail_node("dn2", "test")
    machine.wait_until(lambda: cluster.nodes["dn2"].node.state.value == "failed", 5, "told")
    with pytest.raises(EverfoldError) as caught:
        cluster.nodes["dn2"].client(client.session.space).get(BlockId(bytes(32)))
    assert caught.value.kind is Kind.UNAVAILABLE
    assert load(cluster.mount("b"), "file") == data

    cluster.service.repair_node("dn2", "test")
    machine.wait_until(lambda: cluster.nodes["dn2"].node.state.value == "up", 5, "back")
    machine.wait_until(lambda: figures(cluster)["under_replicated"] == 0, 10, "whole")
    assert cluster.nodes["dn2"].node.ledger.totals()[0] >= held


@pytest.mark.expects_warnings
def test_bytes_that_rot_on_a_disk_are_never_taken_for_good_and_are_healed_once_reported(cluster):
    data = os.urandom(200_000)
    client = cluster.mount("a")
    save(client, "file", data)
    (block,) = blocks_of(cluster, client, "file")
    space = client.session.space
    victim = sorted(cluster.holders(space, block))[0]
    path = next((cluster.folder / victim).rglob(block.hex()))
    rotten = bytearray(path.read_bytes())
    rotten[len(rotten) // 2] ^= 1
    path.write_bytes(rotten)

    with pytest.raises(EverfoldError) as caught:
        cluster.nodes[victim].client(space).get(block)
    assert caught.value.kind in (Kind.CORRUPT, Kind.NOT_FOUND)
    cluster.names().report_bad(wire.ReportBad(space, block, victim, "corrupt"))
    assert load(cluster.mount("b"), "file") == data
    machine.wait_until(lambda: _sound(cluster, space, block) >= 2, 20, "two sound copies")


def _sound(cluster, space: SpaceId, block: BlockId) -> int:
    count = 0
    for node in cluster.nodes.values():
        try:
            blockid.check(block, node.client(space).get(block))
        except EverfoldError:
            continue
        count += 1
    return count


def test_one_users_space_is_not_there_for_another(calm):
    client = calm.mount("a")
    save(client, "secret", b"secret" * 1000)
    (block,) = blocks_of(calm, client, "secret")
    other = calm.user("eve")

    with pytest.raises(EverfoldError) as caught:
        calm.names(other).resolve(wire.ResolvePath(client.session.space, [b"secret"]))
    assert caught.value.kind is Kind.NOT_FOUND

    theirs = calm.mount("eve", other)
    assert names(theirs, "") == []
    for node in calm.nodes.values():
        with pytest.raises(EverfoldError) as caught:
            node.client(theirs.session.space).get(block)
        assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.parametrize(
    "token", ["", "nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOjF9.", "\x00", "x" * 5000]
)
@pytest.mark.parametrize("path", ["/v1/session", "/v1/heartbeat", "/admin/system", "/status"])
def test_no_route_answers_without_a_good_token(door, token, path):
    method = "POST" if path.startswith("/v1") else "GET"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": wire.MSGPACK}

    status, _, body = door.nameserver.request(
        method, path, headers=headers, body=b"\x90", timeout_s=5
    )

    assert status == 401
    assert json.loads(body)["error"]["kind"] == "unauthenticated"


@pytest.mark.parametrize("body", [b"", b"{", b"\xc1", b"\x90", b"\xff" * 100, b"[]", b"\x93\x01"])
@pytest.mark.parametrize("verb", sorted(set(wire.CALLS) - {"heartbeat"}))
def test_no_body_makes_a_call_fail_in_another_way_than_invalid(door, verb, body):
    headers = {"Authorization": f"Bearer {door.token}", "Content-Type": wire.MSGPACK}

    status, _, answer = door.nameserver.request(
        "POST", f"/v1/{verb}", headers=headers, body=body, timeout_s=5
    )

    assert (status, json.loads(answer)["error"]["kind"]) == (400, "invalid")
