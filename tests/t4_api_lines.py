"""The lines of docs/API.md, run in order against a real cluster: all routes, as a new user."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from urllib.parse import urlsplit

import pytest

from tests.harness.apidoc import operations, template
from tests.harness.cluster import PASSWORD, ROOT, environment, running

_WITH_VALUE = {"-H", "-d", "-F", "-o", "-X", "-u", "-b", "-c", "--data-binary"}
_POSTS = {"-d", "-F", "--data-binary"}


def asked(command: str) -> tuple[str, str]:
    """Return (method, path in the document) of a curl line, as the shell traced it."""
    words = iter(shlex.split(command)[1:])
    method, url = "", ""
    for word in words:
        if word in _WITH_VALUE:
            value = next(words)
            method = value.lower() if word == "-X" else method or ("post" if word in _POSTS else "")
        elif not word.startswith("-"):
            url = word
    return method or "get", template(urlsplit(url).path) or url


def test_the_lines_of_the_api_document_call_every_route_and_all_work(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (ROOT / "docs" / "API.md").read_text()
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    with running(tmp_path / "cluster", REGISTRATION="invite") as cluster:
        ran = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", lines],
            env=environment(URL=cluster.url, PASSWORD=PASSWORD),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=100,
        )
    print(ran.stdout)  # each line and what was answered: pytest -s shows it
    calls = re.findall(r"\+ (curl -sf .*)$", ran.stdout, re.MULTILINE)

    assert ran.returncode == 0, ran.stdout[-3000:]
    assert (tmp_path / "notes.txt").read_text() == "two"
    assert lines.count("curl -sf") == len(calls) > 80
    every = {(method, path) for method, path, _ in operations()}
    assert every - {asked(call) for call in calls} == set()
    assert {asked(call) for call in calls} - every == set()
