"""Compiled twins of the modules in which a mount spends its time (docs/adr/0009).

`tools.compile` makes them with mypyc, in a folder whose name is a digest of the sources and of
this Python. Twins of other sources are not found, and the modules run as they stand: an edit is
never ignored, it only runs slower until `make` compiles again. All are found or none, for
compiled modules reach into each other.

EVERFOLD_NATIVE=0 leaves them alone, for a profiler or a debugger that wants to see Python.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

TOP: Final = Path(__file__).resolve().parent.parent  # what the packages stand in
SOURCES: Final = ("everfold", "mount")  # packages that a twin may have taken something from
_SUFFIX: Final = EXTENSION_SUFFIXES[0]


def shelf() -> Path:
    """Return the folder of all twins of this environment, those of other sources too."""
    return Path(sysconfig.get_path("platlib")) / "everfold.native"


def folder() -> Path:
    """Return where the twins of the sources as they are now lie, or would."""
    digest = hashlib.blake2b(f"{sys.version} {_SUFFIX}".encode(), digest_size=16)
    for package in SOURCES:
        for source in sorted((TOP / package).rglob("*.py")):
            content = source.read_bytes()
            digest.update(f"{source.relative_to(TOP)} {len(content)}\n".encode())
            digest.update(content)
    return shelf() / digest.hexdigest()


def prefer(where: Path | None = None) -> None:
    """Have the twins imported from now on, if there are any of these sources (or in `where`)."""
    if os.environ.get("EVERFOLD_NATIVE") == "0" or not shelf().is_dir():
        return
    twins = dict(_twins(where or folder()))
    if twins:
        sys.meta_path.insert(0, _Finder(twins))


def is_used() -> bool:
    """Tell whether this process imports twins."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _twins(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in folder.rglob(f"*{_SUFFIX}"):
        inside = str(file.relative_to(folder)).removesuffix(_SUFFIX)
        yield inside.replace(os.sep, "."), file


class _Finder:
    """Finds modules in files that are known. No `MetaPathFinder`: importing that takes 17 ms."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None else importlib.util.spec_from_file_location(fullname, file)
