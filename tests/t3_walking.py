"""Whoever walks through a directory costs one question, not one a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT
from mount.client import Client
from tests.harness.world import ME, World, find, save


def counting(client: Client, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what a mount asks the nameserver about names."""
    asked: Counter[str] = Counter()

    def counted(verb: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def ask(form: Any) -> Any:
            asked[verb] += 1
            return call(form)

        return ask

    for verb in ("lookup", "listdir", "attrs"):
        call = getattr(client.core.names, verb)
        monkeypatch.setattr(client.core.names, verb, counted(verb, call))
    return asked


class Bench(NamedTuple):
    """A mount that knows nothing yet, what it asks, and another one."""

    reader: Client
    asked: Counter[str]
    writer: Client


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with World(tmp_path) as world:
        writer = world.mount("writer")
        writer.vfs.mkdir(ROOT, b"d", 0o755, ME)
        for number in range(100):
            save(writer, f"d/f{number}", b"%d" % number)
        writer.vfs.syncfs()
        client = world.mount("reader")
        yield Bench(client, counting(client, monkeypatch), writer)


def test_a_hundred_names_of_a_cold_directory_are_one_question(asked: Bench) -> None:
    client, count, _ = asked
    folder = find(client, "d").ino
    count.clear()
    sizes = [client.vfs.lookup(folder, b"f%d" % n).attr.size for n in range(100)]

    assert sizes == [1] * 10 + [2] * 90
    assert count == {"lookup": 1, "listdir": 1}


def test_afterwards_a_name_that_is_not_there_is_known_not_to_be(asked: Bench) -> None:
    client, count, _ = asked
    folder = find(client, "d").ino
    for name in (b"f1", b"f2"):
        client.vfs.lookup(folder, name)
    count.clear()
    for number in range(50):
        with pytest.raises(EverfoldError) as refused:
            client.vfs.lookup(folder, b"absent-%d" % number)
        assert refused.value.kind is Kind.NOT_FOUND

    assert not count


def test_one_name_of_a_directory_does_not_list_it(asked: Bench) -> None:
    client, count, _ = asked
    folder = find(client, "d").ino
    count.clear()
    client.vfs.lookup(folder, b"f7")

    assert count == {"lookup": 1}


def test_a_change_elsewhere_costs_a_question_for_its_name_only(asked: Bench) -> None:
    client, count, writer = asked
    folder = find(client, "d").ino
    for name in (b"f1", b"f2"):
        client.vfs.lookup(folder, name)
    count.clear()
    for number in range(5):
        save(writer, f"d/new-{number}", b"new")
        writer.vfs.syncfs()
        client.vfs.feed.poll_once(0.0)
        assert client.vfs.lookup(folder, b"new-%d" % number).attr.size == 3

    assert count["lookup"] == 5
    assert not count["listdir"]
