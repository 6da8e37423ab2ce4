"""Compiled twins: found when they are of these very sources, and the same filesystem."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from everfold import native
from tools.compile import MODULES

WHERE = "import mount.vfs; print(mount.vfs.__file__)"

LISTED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name, module in sys.modules.items():
    if "everfold.native" in (getattr(module, "__file__", None) or ""):
        print(name)
"""


def run(
    *command: str, top: Path = native.TOP, limit_s: float = 100.0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run Python over the packages in `top`."""
    inherited = {k: v for k, v in os.environ.items() if k != "EVERFOLD_NATIVE"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=top,
        env={**inherited, "PYTHONPATH": str(top), **environ},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def imported(top: Path = native.TOP, **environ: str) -> Path:
    """Return the file that `mount.vfs` is imported from."""
    return Path(run("-c", WHERE, top=top, **environ).stdout.strip())


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """The packages with another character in one of them."""
    for package in (*native.SOURCES, "tools"):
        shutil.copytree(native.TOP / package, tmp_path / package)
    with (tmp_path / "mount" / "names.py").open("a") as source:
        source.write("#\n")
    return tmp_path


@pytest.mark.native
def test_every_twin_is_found_and_only_they_are() -> None:
    found = run("-c", LISTED, *MODULES).stdout.split()

    assert {name for name in found if not name.endswith("__mypyc")} == set(MODULES)
    assert imported().is_relative_to(native.folder())


@pytest.mark.native
def test_whoever_says_so_gets_the_sources() -> None:
    assert imported(EVERFOLD_NATIVE="0") == native.TOP / "mount" / "vfs.py"


@pytest.mark.native
def test_after_an_edit_the_sources_run(edited: Path) -> None:
    assert imported(edited) == edited / "mount" / "vfs.py"


def test_without_a_compiler_it_says_so_and_lets_things_be(edited: Path) -> None:
    ran = run("-m", "tools.compile", top=edited, CC="no-such-compiler")

    assert ran.returncode == 0
    assert "no C compiler (no-such-compiler)" in ran.stderr
    assert imported(edited) == edited / "mount" / "vfs.py"


@pytest.mark.native
def test_a_compiler_that_fails_leaves_nothing_behind(edited: Path) -> None:
    before = sorted(native.shelf().iterdir())
    failing = "import sys, tools.compile as c; c.MODULES = ('mount.room',); sys.exit(c.main())"
    ran = run("-c", failing, top=edited, CC="false")

    assert ran.returncode == 1
    assert "It could not be compiled." in ran.stderr
    assert sorted(native.shelf().iterdir()) == before
    assert imported(edited) == edited / "mount" / "vfs.py"


@pytest.mark.native
@pytest.mark.timeout(300)  # 36 to 50 s on a machine of its own
def test_the_compiled_filesystem_is_what_dictionaries_would_be_too() -> None:
    tests = ["tests/t3_vfs.py", "tests/t3_vfs_model.py", "-m", "not soak"]
    ran = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, limit_s=280, EVERFOLD_NATIVE="1"
    )

    assert ran.returncode == 0, ran.stdout[-4000:]
