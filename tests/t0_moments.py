"""Moments as people type them, and the versions that they mean."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from everfold import moments
from everfold.model import Ino, Seq, Version
from everfold.versionname import format_name, number_in, parse_typed, pick

NOW = int(datetime(2026, 11, 21, 18, 54, 7).astimezone().timestamp()) * 10**9


def at(*when: int) -> int:
    return int(datetime(*when).astimezone().timestamp()) * 10**9  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("-15m", NOW - 15 * 60 * 10**9),
        ("-2h", NOW - 7200 * 10**9),
        ("-1w", NOW - 7 * 86_400 * 10**9),
        ("yesterday", at(2026, 11, 21) - 1),
        ("2026-11-01", at(2026, 11, 2) - 1),
        ("2026-11-01T14.30", at(2026, 11, 1, 14, 30)),
        ("2026-11-01T14:30:15", at(2026, 11, 1, 14, 30, 15)),
        ("2026-12-31", NOW),
    ],
)
def test_a_typed_moment_is_understood(text: str, moment: int) -> None:
    assert moments.parse(text, NOW) == moment


def test_a_time_with_z_is_utc() -> None:
    utc = datetime(2026, 11, 1, 14, 30, tzinfo=timezone.utc)

    assert moments.parse("2026-11-01T14.30Z", NOW) == int(utc.timestamp()) * 10**9


@pytest.mark.parametrize("text", ["", "v", "-", "-1x", "2026-13-01", "2026-11-01T25.00", "soon"])
def test_what_is_no_moment_is_none(text: str) -> None:
    assert moments.parse(text, NOW) is None


def version(number: int, days_ago: float) -> Version:
    at_ns = NOW - int(timedelta(days=days_ago).total_seconds()) * 10**9
    return Version(number, Ino(5), Seq(number), at_ns, 1, at_ns, 0o644, "ann", "lap top/1")


def test_a_moment_means_what_the_name_showed_then() -> None:
    saved = [version(1, 9), version(2, 2), version(3, 0.01)]

    assert pick(saved, "first", NOW) is saved[0]
    assert pick(saved, "v2", NOW) is saved[1]
    assert pick(saved, "yesterday", NOW) is saved[1]
    assert pick(saved, "-1s", NOW) is saved[2]
    assert pick(saved, "-3w", NOW) is None
    assert pick(saved, "v9", NOW) is None
    assert pick(saved, "nonsense", NOW) is None


def test_a_typed_name_may_hold_an_at_sign() -> None:
    assert parse_typed(b"a@b.txt@v7") == (b"a@b.txt", "v7")
    assert parse_typed(b"plain") is None


def test_a_listed_name_sorts_by_time_and_keeps_the_extension() -> None:
    old, new = (format_name(b"report.odt", version(n, d)) for n, d in ((9, 3), (10, 1)))

    assert old < new
    assert new.endswith(b"_v10_lap-top-1.odt")
    assert number_in(new) == 10
    assert number_in(b"report.odt") is None
