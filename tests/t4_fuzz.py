"""schemathesis asks for what nobody thought of: no 5xx, no answer or acceptance that the API's
document does not have.

A few requests of each kind in the ordinary run; `make fuzz` asks for thousands and prints the
summary. Left out is the check that all that a schema allows is accepted: which names and paths
may be is a matter of bytes and of what is there, which a schema cannot say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from everfold.serving import Server, listen
from nameserver.accounts import ADMIN
from tests.harness.browser import Browser
from tests.harness.cluster import ROOT, environment
from tests.harness.inprocess import CALM, PASSWORD, InProcessCluster

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1"))
pytestmark = pytest.mark.timeout(600 + 60 * EXAMPLES)
SEED = os.environ.get("FUZZ_SEED", "20261122")
OPEN = replace(
    CALM,
    registration="open",
    login_failures=10**9,
    login_failures_name=10**9,
    login_failures_address=10**9,
)
_ADMINS = "^/(api/)?admin|^/register$|^/status$"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[InProcessCluster, str]]:
    """A cluster, and the URL where it is served."""
    with InProcessCluster(tmp_path_factory.mktemp("fuzz"), policy=OPEN) as cluster:
        listener = listen("127.0.0.1", 0)
        server = Server(cluster.app, listener)
        server.start()
        yield cluster, f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.refuse()
        cluster.service.bell.stop()
        server.stop(5.0)


def known(me: Browser, other: str) -> dict[str, list[str]]:
    """Make some of everything; return what sound requests may name, by parameter."""
    files = [me.upload(f"d{k % 3}/f{k}.txt", b"content %d" % k) for k in range(30)]
    for file in files[:10]:
        me.upload(file["path"], b"a second version")
    for file in files[10:15]:
        me.good("DELETE", "/api/files/" + file["id"])
    shares: list[Any] = [
        me.good("POST", f"/api/files/{file['id']}/share", {"permission": may})
        for file in files[:9]
        for may in ("read", "write", "admin")
    ]
    uploads = [
        me.good("POST", "/api/files/uploads", {"path": f"up/{k}", "size": 10})["upload"]["id"]
        for k in range(9)
    ]
    form = {"path": "Team", "members": [{"username": other, "permission": "read"}]}
    team = me.good("POST", "/api/teams", form)["team"]["id"]
    return {
        "file": [file["id"] for file in files],
        "file_id": [file["id"] for file in files],
        "path": [file["path"] for file in files] + ["new", "d0/new", "Team/new", "d1"],
        "to": ["moved", "d2/", "deep/er", "Team/moved"],
        "wanted": ["1", "2", "3"],
        "token": [share["share_token"] for share in shares],
        "key": [share["id"] for share in shares[:9]],
        "upload": uploads,
        "Upload-Offset": ["0", "3"],
        "team": [str(team)],
        "name": [other],
        "event": ["1-1", "2-1"],
    }


def run(url: str, name: str, names: dict[str, list[str]], where: Path, *args: str) -> str:
    """Let schemathesis ask as somebody; return its summary. Fails when it found something.

    It logs in anew with every request: tokens are ended by some of them.
    """
    checks = "positive_data_acceptance"
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/api/openapi.json",
            "--auth", f"{name}:{PASSWORD}", "--checks", "all",
            "--exclude-checks", checks, "--max-examples", str(EXAMPLES), "--seed", SEED,
            "--warnings", "off", "--no-color",
            "--continue-on-failure", *args,
        ],
        env=environment(
            SCHEMATHESIS_HOOKS="tests.harness.fuzzhooks", FUZZ_KNOWN=json.dumps(names),
            FUZZ_SELF=name,
            PYTHONPATH=str(ROOT),
        ),
        cwd=where, capture_output=True, text=True, errors="replace", timeout=10_000,
    )  # fmt: skip
    summary = ran.stdout[ran.stdout.find("= SUMMARY") :]
    print(summary)
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
    return summary


def test_a_user_finds_nothing_that_the_document_does_not_say(served, tmp_path):
    cluster, url = served
    cluster.user("ben")
    me = Browser(cluster.app, cluster.token)

    summary = run(url, "ann", known(me, "ben"), tmp_path, "--exclude-path-regex", _ADMINS)

    assert "No issues found" in summary
    assert cluster.service.gate.by_password("ann", PASSWORD, "").name == "ann"  # not for nothing


def test_an_admin_finds_nothing_that_the_document_does_not_say(served, tmp_path):
    cluster, url = served
    cluster.service.accounts.create("root", PASSWORD, role=ADMIN)
    names = {"name": ["ann", "nobody"], "username": [f"new{k}" for k in range(500)]}

    summary = run(url, "root", names, tmp_path, "--include-path-regex", _ADMINS)

    assert "No issues found" in summary
    assert cluster.service.gate.by_password("root", PASSWORD, "").role == ADMIN
