"""Transfers share budgets of memory: none starves, and all that was taken comes back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX
from nameserver.files.budget import Budget
from nameserver.files.intake import Intake
from tests.harness.browser import Browser, form, noise
from tests.harness.inprocess import CALM, InProcessCluster

PIECE = 256 * 1024


@pytest.fixture
def cluster(tmp_path) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path, policy=CALM) as started:
        yield started


def test_many_uploads_get_through_a_budget_that_is_less_than_one_block_each(cluster):
    budget = cluster.service.files.room_in = Budget(BLOCK_MAX)
    contents = [noise(BLOCK_MAX + 1000 * k) for k in range(6)]

    def send(k: int) -> bytes:
        me = Browser(cluster.app, cluster.token)
        return me.load(me.upload(f"f{k}", contents[k])["id"])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(send, range(6))) == contents
    assert budget.take(BLOCK_MAX, 5.0)  # all of it came back


def test_an_upload_that_breaks_off_gives_its_memory_back(cluster):
    budget = cluster.service.files.room_in = Budget(2 * BLOCK_MAX)
    me = Browser(cluster.app, cluster.token)

    for _ in range(3):
        assert me.post("/api/files/upload", form(noise(BLOCK_MAX + PIECE))[:-20])[0] == 400

    assert budget.take(2 * BLOCK_MAX, 5.0)


def test_a_block_that_cannot_be_stored_fails_the_upload_and_gives_its_memory_back():
    class Refusing:
        def put(self, space, block, data):
            raise EverfoldError(Kind.NO_SPACE, "full")

    budget = Budget(4 * BLOCK_MAX)
    with ThreadPoolExecutor(2) as pool:
        intake = Intake(Refusing(), pool, budget, 1, 1 << 40, None)
        with pytest.raises(EverfoldError) as caught:
            for _ in range(100):
                intake.write(bytes(PIECE))
        intake.cancel()

    assert caught.value.kind is Kind.NO_SPACE
    assert budget.take(4 * BLOCK_MAX, 5.0)


def test_downloads_go_on_without_a_budget_and_give_back_what_they_took(cluster):
    me = Browser(cluster.app, cluster.token)
    data = noise(3 * BLOCK_MAX + 5)
    file = me.upload("f", data)["id"]

    for size in (0, 2 * BLOCK_MAX, 8 * BLOCK_MAX):
        budget = cluster.service.files.room_out = Budget(size)
        assert me.load(file) == data
        assert me.load(file, Range="bytes=5-9") == data[5:10]
        assert budget.take(size, 5.0)
