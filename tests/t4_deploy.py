"""What docs/OPERATION.md hands out: compose file, image, units. Everything in them exists, and the
cluster of the compose file runs, as processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from datanode.__main__ import _parser as datanode_parser
from everfold import config, readiness
from nameserver.__main__ import parser as nameserver_parser
from tests.harness import machine
from tests.harness.cluster import ROOT
from tests.harness.databases import PostgresServer
from tools.__main__ import parser as tools_parser

UNITS = sorted((ROOT / "docs" / "deploy").glob("*.service"))
GIVEN = {
    "SECRET_KEY": "the secret key of tests",
    "JWT_SECRET_KEY": "the jwt secret key of tests",
    "CLUSTER_SECRET": "the cluster secret of tests",
    "EVERFOLD_ADMIN_PASSWORD": "correct horse battery",
    "POSTGRES_PASSWORD": "feedbeef",
    "EVERFOLD_HOST": "127.0.0.1",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
PARSERS = {
    "everfold-nameserver": ("nameserver", nameserver_parser),
    "everfold-datanode": ("datanode", datanode_parser),
    "everfold": ("tools", tools_parser),
}


def filled_in(text: str, given: dict[str, str]) -> str:
    """Put variables in, as compose does: ${NAME}, ${NAME:-default}, ${NAME:?message}."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name in given:
            return given[name]
        assert kind == "-", f"{name} is not given and has no default"
        return str(rest)

    return _VARIABLE.sub(value, text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (ROOT / "compose.yaml").read_text()
    form: dict[str, Any] = yaml.safe_load(filled_in(text, GIVEN))
    return form


def check(command: list[str]) -> None:
    """Let the program's own parser read a command line."""
    PARSERS[Path(command[0]).name][1]().parse_args(command[1:])


class TestCompose:
    def test_every_command_and_health_check_is_one_of_ours(self, compose: dict[str, Any]) -> None:
        ours = {k: v for k, v in compose["services"].items() if v["image"] == "everfold"}

        for service in ours.values():
            check(service["command"])
            check(service["healthcheck"]["test"][1:])
        assert len(ours) == 4

    def test_every_variable_is_a_setting_and_in_the_example(self, compose: dict[str, Any]) -> None:
        known = {setting.name for setting in config.SETTINGS}
        told = {
            name
            for service in compose["services"].values()
            if service["image"] == "everfold"
            for name in service["environment"]
        }
        example = (ROOT / ".env.example").read_text()
        asked = {match[0] for match in _VARIABLE.findall((ROOT / "compose.yaml").read_text())}

        assert told <= known
        assert [name for name in asked if f"#{name}=" not in example] == []

    def test_what_is_needed_and_not_given_is_refused(self) -> None:
        needed = {
            m[0] for m in _VARIABLE.findall((ROOT / "compose.yaml").read_text()) if m[1] == "?"
        }

        assert needed == set(GIVEN)

    def test_servers_have_no_rights_and_keep_their_data(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            volumes = {volume.partition(":")[0] for volume in service["volumes"]}
            assert volumes <= set(compose["volumes"])
            if service["image"] == "everfold":
                assert service["read_only"] is True
                assert service["cap_drop"] == ["ALL"]
                assert "user" not in service


class TestImage:
    def test_it_has_every_package_and_runs_as_nobody_special(self) -> None:
        text = (ROOT / "Dockerfile").read_text()
        setup = (ROOT / "setup.py").read_text()
        tops = {
            name.partition(".")[0] for name in re.findall(r'^        "([\w.]+)",$', setup, re.M)
        }
        tops &= {path.parent.name for path in ROOT.glob("*/__init__.py")}
        ignore = (ROOT / ".dockerignore").read_text().split()

        for name in tops - {"tests"}:
            assert f"COPY {name} {name}\n" in text
            assert f"!{name}" in ignore
        assert text.index("\nUSER everfold\n") < text.index("\nCMD ")
        for line in text.splitlines():
            if line.startswith("CMD "):
                check(json.loads(line[4:]))

    def test_every_package_is_installed(self) -> None:
        setup = (ROOT / "setup.py").read_text()
        listed = set(re.findall(r'^        "([\w.]+)",$', setup, re.M))
        tops = ("everfold", "mount", "nameserver", "datanode", "tools")
        there = {
            str(path.parent.relative_to(ROOT)).replace("/", ".")
            for top in tops
            for path in (ROOT / top).rglob("__init__.py")
        }

        assert there <= listed


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with programs that exist."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in PARSERS:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    made = []
    for unit in UNITS:
        text = unit.read_text().replace("/opt/everfold/bin", str(programs))
        made.append(tmp_path / unit.name)
        made[-1].write_text(text.replace("User=everfold", "User=root").replace(
            "Group=everfold", "Group=root"))  # fmt: skip
    return made


class TestUnits:
    def test_their_command_lines_are_understood(self) -> None:
        for unit in UNITS:
            lines = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.M)
            assert len(lines) == 1
            told = (
                lines[0].replace("${PORT}", "7001").replace(" $MOUNT_OPTIONS", " --uid 1000 -o ro")
            )
            check(shlex.split(told.replace("%i", "dn1").replace("%f", "/srv/shared")))

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
    def test_systemd_understands_them(self, units: list[Path]) -> None:
        instances = []
        for unit in units:
            instances.append(unit.with_name(unit.name.replace("@.", "@srv-x.")))
            if instances[-1] != unit:
                unit.rename(instances[-1])
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *map(str, instances)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        ours = [line for line in done.stderr.splitlines() if "everfold" in line]

        assert ours == []

    def test_whoever_started_it_hears_that_it_is_ready(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(tmp_path / "notify"))
            listener.settimeout(30)
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            process = subprocess.Popen(
                [sys.executable, "-m", "nameserver", "--data", str(tmp_path / "d"), "--port", "0"],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                heard = listener.recv(100)
            finally:
                process.terminate()
                status = process.wait(20)
            readiness.tell()

            assert (heard, status) == (b"READY=1", 0)
            assert listener.recv(100) == b"READY=1"

    @pytest.mark.expects_warnings
    def test_nobody_who_listens_is_no_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
        readiness.tell()

        assert "nobody could be told" in caplog.text


# ---------------------------------------------------------------- the cluster of the compose file


class Composed:
    """The services of the compose file as processes; only paths, ports and names are others."""

    def __init__(self, folder: Path, form: dict[str, Any], database: str) -> None:
        self._folder = folder
        self._form = form
        self._database = database
        numbers = sorted(set(re.findall(r"\b(5000|700[123])\b", json.dumps(form))))
        self._ports = {number: str(_free_port()) for number in numbers}
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['5000']}"

    def _here(self, text: str, name: str) -> str:
        for number, port in self._ports.items():
            text = re.sub(rf"\b{number}\b", port, text)
        text = text.replace("//nameserver:", "//127.0.0.1:").replace("0.0.0.0", "127.0.0.1")
        return text.replace("/var/lib/everfold", str(self._folder / name))

    def _line(self, words: list[str], name: str) -> list[str]:
        module = PARSERS[words[0]][0]
        return [sys.executable, "-m", module, *(self._here(word, name) for word in words[1:])]

    def environment(self, name: str) -> dict[str, str]:
        told = {k: str(v) for k, v in self._form["services"][name]["environment"].items()}
        if "DATABASE_URL" in told:
            told["DATABASE_URL"] = self._database
        base = ("PATH", "PYTHONPATH", machine.MARK, "HOME")
        return {
            **{k: os.environ[k] for k in base if k in os.environ},
            "PYTHONPATH": str(ROOT),
            **told,
        }

    def start(self, name: str) -> None:
        """Start a service and wait until its health check is content."""
        (self._folder / name).mkdir()
        service = self._form["services"][name]
        with (self._folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    self._line(service["command"], name),
                    env=self.environment(name),
                    stdout=log,
                    stderr=log,
                )
            )
        words = [*service["healthcheck"]["test"][1:], "--wait", "40"]
        done = subprocess.run(
            self._line(words, name), env=self.environment(name), capture_output=True, timeout=60
        )
        assert done.returncode == 0, (done.stderr, (self._folder / f"{name}.log").read_text())

    def stop(self) -> list[int]:
        """End everything as compose does, the last one first; return the statuses."""
        statuses = []
        for process in reversed(self.processes):
            process.terminate()
            statuses.append(process.wait(30))
        self.processes = []
        return statuses


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def composed(
    tmp_path: Path, compose: dict[str, Any], postgres_server: PostgresServer
) -> Iterator[Composed]:
    found = Composed(tmp_path, compose, postgres_server.bare_database())
    try:
        for name in ("nameserver", "dn1", "dn2", "dn3"):
            found.start(name)
        yield found
    finally:
        for process in found.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(20)


@pytest.mark.fuse
@pytest.mark.postgres
def test_the_cluster_of_the_compose_file_takes_keeps_and_mounts(
    composed: Composed, tmp_path: Path
) -> None:
    content, folder = os.urandom(700_000), tmp_path / "folder"
    env = {**composed.environment("dn1"), "EVERFOLD_HOME": str(tmp_path / "home")}

    def everfold(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tools", *words], env=env, input=stdin,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    password = GIVEN["EVERFOLD_ADMIN_PASSWORD"]
    login = ("login", "--server", composed.url, "--username", "admin", "--password-stdin")
    logged_in = everfold(*login, stdin=password + "\n")
    assert logged_in.returncode == 0, logged_in.stderr
    machine.wait_until(
        lambda: everfold("node", "list").stdout.count(" up ") == 3, 30, "three nodes are up"
    )
    kept = requests.post(
        f"{composed.url}/upload", files={"file": ("sent.bin", content)},
        auth=("admin", password), timeout=30,
    )  # fmt: skip
    mounted = everfold("mount", str(folder))
    assert mounted.returncode == 0, mounted.stderr
    try:
        read = (folder / "sent.bin").read_bytes()
        (folder / "answer.txt").write_text("the other way round")
    finally:
        unmounted = everfold("umount", str(folder))
    listed = requests.get(f"{composed.url}/files", auth=("admin", password), timeout=30)

    assert kept.status_code == 201, kept.text
    assert read == content
    assert unmounted.returncode == 0, unmounted.stderr
    assert "answer.txt" in listed.text
    assert composed.stop() == [0, 0, 0, 0]
