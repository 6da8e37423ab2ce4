"""Memory goes back to the system when a process has come to rest, or has had none for long."""

from __future__ import annotations

import platform

from everfold.memory import Giver, trim


def test_it_is_given_back_once_after_each_rush() -> None:
    given: list[int] = []
    giver = Giver(lambda: given.append(len(given)))
    used = 0.0
    counts = []
    for spent in (0.01, 1.9, 2.0, 0.2, 0.01, 0.0, 0.5, 0.01):
        used += spent
        giver.tick(used, 2.0)
        counts.append(len(given))

    assert counts == [0, 0, 0, 1, 1, 1, 1, 2]


def test_who_has_no_rest_gives_it_back_every_half_a_minute() -> None:
    given: list[int] = []
    giver = Giver(lambda: given.append(tick))
    for tick in range(1, 41):
        giver.tick(2.0 * tick, 2.0)

    assert given == [15, 30]


def test_this_system_takes_it() -> None:
    assert trim() is (platform.libc_ver()[0] == "glibc")
