"""What every test run does: say what it can do, and let no test leave anything behind.

A process, a mount or a warning in the log that a test did not announce fails the test that
caused it, not the one after it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.harness import machine
from tests.harness.databases import bare_url, database, database_url, postgres_server
from tests.harness.folders import here, live, live_cluster, mount

# fixtures of every test module
__all__ = [
    "bare_url", "database", "database_url", "here", "live", "live_cluster", "mount",
    "postgres_server",
]  # fmt: skip

EXPECTS = "expects_warnings"
GRACE_S = 3.0  # for processes that a test ended without waiting for them


def pytest_configure(config: pytest.Config) -> None:
    machine.mark_run()


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what this run can do, so that a skip is never silent."""
    return [f"everfold: {name}: {said}" for name, said in machine.abilities().items()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot do, with the reason; in CI that is a failure instead."""
    lacking = {name: said for name, said in machine.abilities().items() if said != "yes"}
    for item in items:
        for name in ("fuse", "native", "postgres"):
            if item.get_closest_marker(name) and name in lacking:
                if os.environ.get("CI"):
                    raise pytest.UsageError(f"CI must be able to run {name}: {lacking[name]}")
                item.add_marker(pytest.mark.skip(reason=f"{name}: {lacking[name]}"))


@pytest.fixture(autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves a process or a mount; remove both, so that the next starts clean.

    What fixtures of a wider scope started was there before and may stay, also when it is
    restarted by its own supervisor. Mounts are looked for below pytest's temporary folder.
    """
    base = tmp_path_factory.getbasetemp()
    processes, mounts = machine.children(), machine.fuse_mounts(base)
    yield
    if not (machine.children() - processes or machine.fuse_mounts(base) - mounts):
        return

    def strays() -> set[int]:
        fresh = machine.children() - processes
        return {pid for pid in fresh if not machine.descends_from(pid, processes)}

    left = machine.wait_gone(strays, GRACE_S)
    named = {pid: machine.command_line(pid) for pid in left}
    machine.kill(left)
    stuck = machine.fuse_mounts(base) - mounts
    machine.detach(stuck)

    assert not named, f"the test left processes behind: {named}"
    assert not stuck, f"the test left mounts behind: {sorted(stuck)}"


@pytest.fixture(autouse=True)
def _quiet_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that made our own code log a warning or worse without announcing it."""
    yield
    if request.node.get_closest_marker(EXPECTS):
        return
    ours = ("everfold", "mount", "nameserver", "datanode", "tools")
    loud = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for when in ("setup", "call")
        for record in caplog.get_records(when)  # type: ignore[arg-type]
        if record.levelno >= logging.WARNING and record.name.split(".")[0] in ours
    ]

    assert not loud, "unexpected warnings in the log:\n" + "\n".join(loud)
