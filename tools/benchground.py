"""Where a workload works, what it may rely on, and what it hands back.

A workload is a function from a `Ground` to a `Measure`. It leaves no trace that another one
would see except through the ground (`small_files`, `empty_files`), so each can be run alone.
What is written is read back and compared: a workload that finds other bytes than it wrote
raises `Wrong`, and its figure does not count.
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SMALL: Final = 4096
MIB: Final = 1 << 20
FOLDERS: Final = 50  # that small files are spread over
_POOL_BYTES: Final = 32 * MIB
_STRIDE: Final = 1_000_003  # a prime: no two windows begin at the same place of a block


class Wrong(Exception):
    """What was read is not what was written."""


class Absent(Exception):
    """The workload needs something that is not here."""


def check(is_right: bool, what: str) -> None:
    """Raise `Wrong` unless it is right."""
    if not is_right:
        raise Wrong(what)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much a run does."""

    files: int = 5000
    large_bytes: int = 1024 * MIB
    random_bytes: int = 256 * MIB
    seconds: float = 6.0  # of a workload that goes on until its time is over
    appends: int = 20_000
    transactions: int = 300
    trials: int = 60


QUICK: Final = Scale(400, 64 * MIB, 32 * MIB, 1.0, 1000, 30, 10)


@dataclass(frozen=True, slots=True)
class Measure:
    """So much was done in so many seconds; `unit` is that of `value`."""

    count: float
    seconds: float
    unit: str = "/s"
    note: str = ""

    @property
    def is_rate(self) -> bool:
        """Tell whether more is better."""
        return self.unit.endswith("/s")

    @property
    def value(self) -> float:
        """Return the figure to compare by."""
        return self.count / max(self.seconds, 1e-9) if self.is_rate else self.seconds


Run = Callable[["Ground"], Measure]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table; the function's docstring says what is done."""

    name: str
    run: Run


def empty_caches(command: str = "") -> None:
    """Write everything out and let the kernel forget it; `command` does so for a client's own."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    if command:
        subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)


@dataclass
class Ground:
    """A folder of its own to work in; `second` is the same folder through another mount."""

    top: Path
    scale: Scale
    second: Path | None = None
    scratch: Path = field(default_factory=Path)  # on local disk: archives to extract
    cool: Callable[[], None] = empty_caches
    small_files: list[Path] = field(default_factory=list)
    empty_files: list[Path] = field(default_factory=list)

    def path(self, *names: str) -> Path:
        """Return a path below the folder."""
        return self.top.joinpath(*names)

    def small(self) -> list[Path]:
        """Return the small files, made unless they are there."""
        if not self.small_files:
            make_small(self)
        return self.small_files

    def empty(self) -> list[Path]:
        """Return the empty files of one directory, made unless they are there."""
        if not self.empty_files:
            make_empty(self)
        return self.empty_files


@functools.cache
def _pool() -> memoryview:
    return memoryview(random.Random(11).randbytes(_POOL_BYTES))


def content(number: int, size: int) -> memoryview:
    """Return bytes that do not compress, and of no two numbers are the same."""
    at = (number * _STRIDE + 29) % (_POOL_BYTES - size)
    return _pool()[at : at + size]


def write_file(path: Path | str, data: bytes | memoryview, is_synced: bool = False) -> None:
    """Create a file with plain system calls."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        while data:
            data = data[os.write(handle, data) :]
        if is_synced:
            os.fsync(handle)
    finally:
        os.close(handle)


def read_file(path: Path | str, size: int) -> bytes:
    """Read a file with plain system calls."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, size)
    finally:
        os.close(handle)


def make_small(ground: Ground) -> float:
    """Make the small files; return the seconds it took."""
    top = ground.path("small")
    paths = [top / f"d{n % FOLDERS:02}" / f"f{n:05}" for n in range(ground.scale.files)]
    began = time.perf_counter()
    os.mkdir(top)
    for number in range(FOLDERS):
        os.mkdir(top / f"d{number:02}")
    for number, path in enumerate(paths):
        write_file(path, content(number, SMALL))
    spent = time.perf_counter() - began
    ground.small_files = paths
    return spent


def make_empty(ground: Ground) -> float:
    """Make the empty files; return the seconds it took."""
    top = ground.path("empty")
    paths = [top / f"e{number:05}" for number in range(ground.scale.files)]
    os.mkdir(top)
    began = time.perf_counter()
    for path in paths:
        write_file(path, b"")
    spent = time.perf_counter() - began
    ground.empty_files = paths
    return spent
