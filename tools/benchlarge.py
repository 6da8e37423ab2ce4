"""Workloads inside one file: streams, appends, and single blocks here and there."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.benchground import MIB, SMALL, Ground, Measure, Workload, check, content

LINE = 100


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def _write_stream(path: Path, size: int) -> float:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as handle:
        began = time.perf_counter()
        for number in range(size // MIB):
            check(os.write(handle, content(number, MIB)) == MIB, "a write was cut short")
        os.fsync(handle)
        return time.perf_counter() - began


def _read_stream(path: Path, size: int) -> Measure:
    """Read all; compare a sample in the loop (a compare of 1 MiB takes 30 µs)."""
    piece = bytearray(MIB)
    number = 0
    began = time.perf_counter()
    with _opened(path, os.O_RDONLY) as handle:
        while got := os.readv(handle, [piece]):
            if number % 7 == 0:
                check(piece[:got] == content(number, MIB)[:got], f"MiB {number} of the large file")
            number += 1
    spent = time.perf_counter() - began
    check(number == size // MIB, "the large file has another length")
    return Measure(size / 1e6, spent, "MB/s")


def _large(ground: Ground) -> Path:
    path = ground.path("large")
    if not path.exists():
        _write_stream(path, ground.scale.large_bytes)
    return path


def seq_write(ground: Ground) -> Measure:
    """Write one large file, 1 MiB at a time, and sync it."""
    size = ground.scale.large_bytes
    return Measure(size / 1e6, _write_stream(ground.path("large"), size), "MB/s")


def seq_read_cold(ground: Ground) -> Measure:
    """Read it, nothing cached."""
    path = _large(ground)
    ground.cool()
    return _read_stream(path, ground.scale.large_bytes)


def seq_read_warm(ground: Ground) -> Measure:
    """Read it again."""
    path = _large(ground)
    _read_stream(path, ground.scale.large_bytes)
    return _read_stream(path, ground.scale.large_bytes)


# ---------------------------------------------------------------- single blocks


def _scattered(ground: Ground) -> tuple[Path, int]:
    """Return a file for access at random, and its number of blocks."""
    path, count = ground.path("random"), ground.scale.random_bytes // SMALL
    if not path.exists():
        with _opened(path, os.O_WRONLY | os.O_CREAT) as handle:
            for number in range(count):
                os.write(handle, content(number, SMALL))
            os.fsync(handle)
    return path, count


def rand_read_cold(ground: Ground) -> Measure:
    """Read 4 KiB here and there, nothing cached."""
    path, blocks = _scattered(ground)
    ground.cool()
    chance, count = random.Random(3), 0
    with _opened(path, os.O_RDONLY) as handle:
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < ground.scale.seconds:
            number = chance.randrange(blocks)
            data = os.pread(handle, SMALL, number * SMALL)
            check(data == content(number, SMALL), f"block {number}")
            count += 1
    return Measure(count, spent)


def _rand_write(ground: Ground, is_synced: bool) -> Measure:
    path, blocks = _scattered(ground)
    chance, count = random.Random(5 + is_synced), 0
    last: dict[int, int] = {}
    with _opened(path, os.O_RDWR) as handle:
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < ground.scale.seconds:
            number = chance.randrange(blocks)
            last[number] = blocks + count
            os.pwrite(handle, content(last[number], SMALL), number * SMALL)
            if is_synced:
                os.fdatasync(handle)
            count += 1
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        for number, written in last.items():
            data = os.pread(handle, SMALL, number * SMALL)
            check(data == content(written, SMALL), f"block {number} that was written over")
    path.unlink()
    return Measure(count, spent)


def rand_write(ground: Ground) -> Measure:
    """Write 4 KiB here and there."""
    return _rand_write(ground, is_synced=False)


def rand_write_fsync(ground: Ground) -> Measure:
    """The same, each synced."""
    return _rand_write(ground, is_synced=True)


# ---------------------------------------------------------------- appends


def _line(number: int) -> bytes:
    return b"%09d %s\n" % (number, b"x" * (LINE - 11))


def _check_lines(path: Path, count: int) -> None:
    check(path.read_bytes() == b"".join(map(_line, range(count))), "lines that were appended")
    path.unlink()


def append(ground: Ground) -> Measure:
    """Append 100 bytes at a time; sync once at the end."""
    path, count = ground.path("log"), ground.scale.appends
    began = time.perf_counter()
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as handle:
        for number in range(count):
            os.write(handle, _line(number))
        os.fsync(handle)
    spent = time.perf_counter() - began
    _check_lines(path, count)
    return Measure(count, spent)


def append_reopen(ground: Ground) -> Measure:
    """Open, append 100 bytes, close."""
    path, count = ground.path("reopened"), max(1, ground.scale.appends // 20)
    began = time.perf_counter()
    for number in range(count):
        with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as handle:
            os.write(handle, _line(number))
    spent = time.perf_counter() - began
    _check_lines(path, count)
    return Measure(count, spent)


WORKLOADS = tuple(
    Workload(run.__name__, run)
    for run in (
        seq_write,
        seq_read_cold,
        seq_read_warm,
        rand_read_cold,
        rand_write,
        rand_write_fsync,
        append,
        append_reopen,
    )
)
