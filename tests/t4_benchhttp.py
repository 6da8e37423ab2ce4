"""`make bench-http` measures a running server, and says what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness.cluster import RealCluster
from tools import benchhttp
from tools.benchhttp import Load, Server


def test_a_running_server_is_measured_and_nothing_of_the_file_stays(
    live_cluster: RealCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with live_cluster.api() as api:
        words = ["--url", live_cluster.url, "--token", api.token, "--size", "2M",
                 "--rate", "40", "--seconds", "0.5"]  # fmt: skip
        monkeypatch.setattr(benchhttp, "FILES", 3)
        monkeypatch.setattr(sys, "argv", ["benchhttp", *words])
        status = benchhttp.main()
        left = api.call("GET", "/api/files/list?search=bench-http-")["files"]
    rows = capsys.readouterr().out.splitlines()

    assert status == 0
    assert rows[0].startswith("one file of 2.0 MiB")
    assert "0 failed" in rows[1]
    assert not [each for each in left if each["name"].endswith(".bin")]


def test_a_request_that_waits_for_its_turn_counts_from_the_moment_it_was_planned_for(
    live_cluster: RealCluster,
) -> None:
    with live_cluster.api() as api:
        server = Server(live_cluster.url, api.token)
    load = benchhttp.ask(server, ["/healthz"], rate=100_000, seconds=0.002)

    assert len(load.times_ms) == 200
    assert load.failed == 0
    assert load.quantile(1.0) == max(load.times_ms) >= load.quantile(0.5)


def test_a_server_that_is_not_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchhttp", "--url", "http://127.0.0.1:1", "--size", "1"])
    assert benchhttp.main() == 1
    assert capsys.readouterr().err.startswith("bench-http: ")


def test_the_archive_is_like_a_source_tree(tmp_path: Path) -> None:
    benchhttp.make_archive(tmp_path / "tree.tar")

    assert 5e6 < (tmp_path / "tree.tar").stat().st_size < 40e6
    assert Load([1.0, 2.0, 3.0]).quantile(0.5) == 2.0
