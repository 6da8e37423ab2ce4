"""The tree answers what was committed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nameserver.db import Database
from tests.harness.databases import *  # noqa: F403
from tests.harness.trees import Stage


@pytest.fixture
def stage(database: Database) -> Iterator[Stage]:
    yield Stage(database)


def test_what_was_saved_is_read_back(stage: Stage) -> None:
    w = stage.writer()
    w.mkdir("d")
    w.save("d/f", b"hello")

    assert stage.content("d/f") == b"hello"
    assert stage.names("d") == [b"f"]
    w.rename("d/f", "g")
    w.save("g", b"two")
    assert stage.story("g") == [(1, b"hello"), (2, b"two")]
    w.unlink("g")
    assert stage.entry("g") is None
    assert stage.story("g") == [(1, b"hello"), (2, b"two")]
    w.rmdir("d")
    assert stage.names() == []
