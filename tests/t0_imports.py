"""The shape of the project: which folders there are, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("everfold", "mount", "nameserver", "datanode", "tools", "tests")
MAY_IMPORT = {
    "everfold": {"everfold"},
    "mount": {"everfold", "mount"},
    "nameserver": {"everfold", "nameserver"},
    "datanode": {"everfold", "datanode"},
    "tools": {"everfold", "mount", "nameserver", "datanode", "tools"},
}
TOP_LEVEL = {
    "everfold", "mount", "nameserver", "datanode", "tools", "tests", "docs",
    "setup.py", "pyproject.toml", "constraints.txt", "Makefile", "README.md", "Dockerfile",
    "compose.yaml", ".ci", ".dockerignore", ".env.example", ".gitignore",
}  # fmt: skip


def imported(source: Path) -> set[str]:
    """Return the top-level names that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0] if node.level == 0 else "a relative one")
    return names


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_its_arrow_allows(folder):
    wrong = {
        str(source.relative_to(ROOT)): sorted(bad)
        for source in sources(folder)
        if (bad := imported(source) & {*OURS, "a relative one"} - MAY_IMPORT[folder])
    }

    assert wrong == {}


def test_the_filesystem_itself_knows_no_kernel():
    adapters = {"kernel", "fusepy_adapter", "mfusepy", "fuse"}
    for source in (ROOT / "mount").glob("vfs*.py"):
        text = ast.dump(ast.parse(source.read_text(encoding="utf-8")))

        assert not any(f"'mount.{name}'" in text or f"'{name}'" in text for name in adapters)


def test_the_service_under_the_json_routes_knows_no_http():
    for source in (ROOT / "nameserver" / "files").glob("*.py"):
        assert not imported(source) & {"flask", "werkzeug"}, source.name


@pytest.mark.parametrize("module", ["everfold.model", "everfold.wire", "tools.__main__"])
def test_importing_a_module_does_no_work(module, tmp_path):
    command = [sys.executable, "-c", f"import {module}"]
    ran = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, timeout=30
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    assert list(tmp_path.iterdir()) == []


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=30, check=False
    )
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    return listed.stdout.decode().rstrip("\0").split("\0")


def test_there_is_nothing_at_the_top_that_the_layout_does_not_name():
    assert {path.split("/")[0] for path in tracked()} <= TOP_LEVEL


def test_every_package_with_code_is_installed():
    listed = (ROOT / "setup.py").read_text()
    packages = {
        str(Path(path).parent).replace("/", ".")
        for path in tracked()
        if path.endswith(".py") and "/" in path and not path.startswith(("tests/", "docs/"))
    }

    assert {name for name in packages if f'"{name}"' not in listed} == set()


def test_no_file_of_ours_is_longer_than_600_lines():
    long = {
        str(source.relative_to(ROOT)): count
        for folder in MAY_IMPORT
        for source in sources(folder)
        if (count := len(source.read_text(encoding="utf-8").splitlines())) > 600
        and source != ROOT / "everfold" / "wire.py"  # the wire is one page by intent
    }

    assert long == {}
