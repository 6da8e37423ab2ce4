"""The benchmark of growing tables measures every operation at every size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import benchscale


def test_each_size_is_filled_and_each_operation_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchscale, "SIZES", (2_002,))
    monkeypatch.setattr(benchscale, "PAIRS", 20)
    monkeypatch.setattr(benchscale, "SINGLES", 5)
    status = benchscale.main(["--inodes", "4004", "--dir", str(tmp_path), "--json"])
    measured = json.loads(capsys.readouterr().out)

    assert status == 0
    assert list(measured) == ["2002", "4004"]
    assert all(len(row) == 8 and min(row.values()) > 0 for row in measured.values())
    assert list(tmp_path.iterdir()) == []
