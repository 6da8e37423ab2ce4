"""The lines of docs/API.md, run in their order against a real cluster."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.harness.cluster import PASSWORD, ROOT, environment, running


def test_every_line_of_the_api_document_works(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (ROOT / "docs" / "API.md").read_text()
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    with running(tmp_path / "cluster") as cluster:
        ran = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", lines],
            env=environment(URL=cluster.url, PASSWORD=PASSWORD),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=100,
        )

    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "notes.txt").read_text() == "two"
    assert lines.count("curl ") == ran.stderr.count("curl -sf") > 30
