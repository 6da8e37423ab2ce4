"""Compile the modules in which a mount spends its time: ``python -m tools.compile``.

`make` runs it before whatever mounts; it does nothing when the twins of these sources are there
(`everfold.native`), and says so and lets things be when this machine has no C compiler: all
works without. A twin comes to its place only after a fresh interpreter could import all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from everfold import native

# What requests of the kernel run through, from the loop to the journal and back, and what takes
# the bytes from there to the nodes. No module with msgspec's records: those are classes of C.
MODULES: Final = (
    "everfold.extents",
    "mount.blockcache",
    "mount.cachepacks",
    "mount.content",
    "mount.core",
    "mount.diskcache",
    "mount.files",
    "mount.handles",
    "mount.journal",
    "mount.kernel.encode",
    "mount.kernel.requests",
    "mount.kernel.session",
    "mount.knowledge",
    "mount.listings",
    "mount.names",
    "mount.neighbours",
    "mount.reading",
    "mount.room",
    "mount.shipper",
    "mount.staging",
    "mount.storing",
    "mount.tree",
    "mount.vfs",
    "mount.walking",
)
_BUILD_S: Final = 900.0
# Each module by itself, so that two compilers can be at work: 45 s on two cores, and 73 s with
# -O2, which gains nothing that can be measured.
_BUILD: Final = """
import sys
from mypyc.build import mypycify
from setuptools import setup
work, *files = sys.argv[1:]
extensions = mypycify(
    ["--cache-dir", work + "/cache", *files],
    opt_level="1", debug_level="0", separate=True, target_dir=work + "/c",
)
setup(
    name="everfold-native", packages=[], ext_modules=extensions,
    script_args=["-q", "build_ext", "-j2", "--build-lib", work + "/lib", "--build-temp", work],
)
"""
_TRY: Final = """
import importlib, pathlib, sys
from everfold import native
where, *names = sys.argv[1:]
native.prefer(pathlib.Path(where))
for name in names:
    module = importlib.import_module(name)
    if module.__file__.endswith(".py"):
        sys.exit(f"{name} was not found compiled")
"""


def main() -> int:
    """Compile what is to be compiled; 1 only when a compiler is there and it fails."""
    place = native.folder()
    if place.is_dir():
        return 0
    missing = _missing()
    if missing:
        print(
            f"Not compiled, for there is no {missing}: everything works, but a mount needs about"
            " a quarter more of the processor.",
            file=sys.stderr,
        )
        return 0
    print("Compiling what a mount spends its time in (once, about a minute)...", file=sys.stderr)
    native.shelf().mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=native.shelf()) as work:
        try:
            _build(Path(work), place)
        except subprocess.CalledProcessError as err:
            print(f"{err.stdout}\nIt could not be compiled.", file=sys.stderr)
            return 1
    return 0


def _missing() -> str:
    """Return what this machine lacks for compiling, if anything."""
    compiler = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"C compiler ({compiler})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h (python3-dev)"
    try:
        import mypyc.build  # noqa: F401 - only whether it can be
        import setuptools  # noqa: F401
    except ImportError as err:
        return f"{err.name}"
    return ""


def _build(work: Path, place: Path) -> None:
    """Compile in `work`, try the result, and bring it to `place`, which is these sources'."""
    files = [name.replace(".", "/") + ".py" for name in MODULES]
    made = work / "lib"
    _run([sys.executable, "-c", _BUILD, str(work), *files])
    _run([sys.executable, "-c", _TRY, str(made), *MODULES])
    if native.folder() != place:
        print("A source changed meanwhile: nothing is kept, run it again.", file=sys.stderr)
        return
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():  # else another was faster
            raise
    for each in native.shelf().iterdir():
        if each != place and not each.name.startswith(".new-"):
            shutil.rmtree(each, ignore_errors=True)


def _run(command: list[str]) -> None:
    subprocess.run(
        command,
        cwd=native.TOP,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_S,
    )


if __name__ == "__main__":
    sys.exit(main())
