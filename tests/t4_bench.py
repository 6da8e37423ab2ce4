"""`everfold bench`: every workload runs, verifies, compares, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.cluster import environment, python
from tools import benchapps, benchlarge, benchsmall
from tools.bench import WORKLOADS, Row, measure, told
from tools.benchground import MIB, Absent, Ground, Measure, Scale, Workload, Wrong

TINY = Scale(60, 3 * MIB, MIB, 0.05, 100, 5, 2)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library to pack and unpack."""
    folder = tmp_path / "library"
    (folder / "package").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / "package" / "module.py").write_text("text")
    (folder / "link").symlink_to("package/module.py")
    monkeypatch.setattr(benchapps.sysconfig, "get_path", lambda name: str(folder))
    return folder


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "top").mkdir()
    return tmp_path / "top"


def run_tiny(tops: list[Path], *wanted: Workload, rounds: int = 1) -> list[Row]:
    return measure(tops, tops[0], wanted, TINY, rounds, cool=lambda: None)


def test_every_workload_measures_and_leaves_nothing_behind(top: Path, library: Path) -> None:
    rows = run_tiny([top], *WORKLOADS)

    assert {row.name: row.said for row in rows if row.said} == {}
    assert all(row.values[0][0] > 0 for row in rows)
    assert os.listdir(top) == []


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each.name)
def test_every_workload_runs_alone(top: Path, library: Path, workload: Workload) -> None:
    (row,) = run_tiny([top], workload)

    assert row.said == ""
    assert len(row.values[0]) == 1


def test_bytes_that_are_not_what_was_written_are_told_and_do_not_count(top: Path) -> None:
    def read_damaged(ground: Ground) -> Measure:
        ground.small()[3].write_bytes(b"other bytes")
        return benchsmall.small_read_warm(ground)

    (row,) = run_tiny([top], Workload("damaged", read_damaged))

    assert row.is_wrong
    assert "WRONG" in row.said
    assert row.values == [[]]
    assert told([row], ["here"])[0]["failed"]


def test_one_workload_that_fails_does_not_end_the_others(top: Path) -> None:
    def fail(ground: Ground) -> Measure:
        raise PermissionError("not allowed")

    def lack(ground: Ground) -> Measure:
        raise Absent("nothing here")

    good = Workload("rename", benchsmall.rename)
    rows = run_tiny([top], Workload("fail", fail), Workload("lack", lack), good)

    assert [row.is_wrong for row in rows] == [True, False, False]
    assert "not allowed" in rows[0].said
    assert rows[1].said == "nothing here"
    assert rows[2].values[0]


def test_folders_take_turns_and_medians_are_compared(top: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    turns: list[str] = []

    def work(ground: Ground) -> Measure:
        is_first = ground.top.parent == top
        turns.append("first" if is_first else "other")
        return Measure(100, 1.0 if is_first else 4.0)

    (row,) = run_tiny([top, tmp_path / "other"], Workload("work", work), rounds=3)

    assert turns == ["first", "other", "other", "first", "first", "other"]
    assert row.medians() == [100, 25]
    assert row.ratio == 4


def test_a_ratio_above_one_means_faster_for_times_too() -> None:
    assert Row("x", "s", [[2.0], [6.0]]).ratio == 3
    assert Row("x", "MB/s", [[2.0], [6.0]]).ratio == pytest.approx(1 / 3)
    assert Row("x", "s", [[2.0], []]).ratio is None


def test_what_a_check_finds_is_raised_as_wrong(top: Path) -> None:
    path = top / "log"
    path.write_bytes(b"something else")
    with pytest.raises(Wrong, match="lines that were appended"):
        benchlarge._check_lines(path, 1)


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python("tools", "bench", *words),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )


def test_the_command_prints_a_table_or_json(top: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    words = (str(top), "--compare", str(tmp_path / "other"), "--quick", "--only")
    table = tool(*words, "append_reopen,rename")
    form = tool(*words, "rename", "--json")

    assert table.returncode == 0, table.stderr
    assert [line.split()[0] for line in table.stdout.splitlines()] == [
        "WORKLOAD",
        "rename",
        "append_reopen",
    ]
    (row,) = json.loads(form.stdout)
    assert set(row) == {"workload", "unit", "here", "compared", "ratio", "note", "failed"}
    assert os.listdir(top) == os.listdir(tmp_path / "other") == []


def test_what_cannot_be_measured_is_said(top: Path) -> None:
    assert "no workload 'dance'" in tool(str(top), "--only", "dance").stderr
    gone = tool(str(top / "gone"), "--quick", "--only", "rename")

    assert gone.returncode == 1
    assert "gone" in gone.stderr
