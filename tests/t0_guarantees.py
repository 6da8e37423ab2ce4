"""Every promise names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "GUARANTEES.md"
NAMED = re.findall(r"`(t\d_\w+)(?:::(test_\w+))?`", PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{f}::{t}" for f, t in NAMED])
def test_a_promise_is_proven_by_a_test_that_exists(file: str, test: str) -> None:
    source = (TESTS / f"{file}.py").read_text(encoding="utf-8")

    assert f"def {test or 'test_'}" in source or "StateMachine" in source


def test_every_line_of_promises_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise", "|---"))]

    assert promises
    assert all(re.search(r"`t\d_", row) for row in promises)
