"""Workloads of many small files and of names: where network filesystems are slow."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

from tools.benchground import (
    SMALL,
    Ground,
    Measure,
    Workload,
    check,
    content,
    make_empty,
    make_small,
    read_file,
    write_file,
)

WRITERS = 4


def small_create(ground: Ground) -> Measure:
    """Create files of 4 KiB in 50 directories."""
    spent = make_small(ground)
    return Measure(len(ground.small_files), spent)


def small_create_fsync(ground: Ground) -> Measure:
    """The same, each synced before it is closed."""
    top, count = ground.path("synced"), max(1, ground.scale.files // 10)
    top.mkdir()
    began = time.perf_counter()
    for number in range(count):
        write_file(top / str(number), content(number, SMALL), is_synced=True)
    spent = time.perf_counter() - began
    for number in range(count):
        data = read_file(top / str(number), 2 * SMALL)
        check(data == content(number, SMALL), f"synced file {number}")
    shutil.rmtree(top)
    return Measure(count, spent)


def par_small_create(ground: Ground) -> Measure:
    """Create files of 4 KiB from four processes."""
    top, each = ground.path("parallel"), max(1, ground.scale.files // WRITERS)
    top.mkdir()
    jobs = [(str(top / f"p{number}"), number * each, each) for number in range(WRITERS)]
    with multiprocessing.get_context("fork").Pool(WRITERS) as pool:
        began = time.perf_counter()
        pool.map(_make, jobs, chunksize=1)
        spent = time.perf_counter() - began
    for folder, first, count in jobs:
        for number in range(first, first + count):
            data = read_file(f"{folder}/{number}", 2 * SMALL)
            check(data == content(number, SMALL), f"file {number} of a parallel writer")
    shutil.rmtree(top)
    return Measure(WRITERS * each, spent)


def _make(job: tuple[str, int, int]) -> None:
    folder, first, count = job
    os.mkdir(folder)
    for number in range(first, first + count):
        write_file(f"{folder}/{number}", content(number, SMALL))


def _stat(paths: list[Path]) -> Measure:
    began = time.perf_counter()
    for path in paths:
        check(os.stat(path).st_size == SMALL, f"the size of {path}")
    return Measure(len(paths), time.perf_counter() - began)


def small_stat_cold(ground: Ground) -> Measure:
    """stat each small file, nothing cached."""
    paths = ground.small()
    ground.cool()
    return _stat(paths)


def small_stat_warm(ground: Ground) -> Measure:
    """stat each again."""
    paths = ground.small()
    _stat(paths)
    return _stat(paths)


def _read(paths: list[Path]) -> Measure:
    began = time.perf_counter()
    for number, path in enumerate(paths):
        check(read_file(path, 2 * SMALL) == content(number, SMALL), f"the bytes of {path}")
    return Measure(len(paths), time.perf_counter() - began)


def small_read_cold(ground: Ground) -> Measure:
    """Open, read and close each small file, nothing cached."""
    paths = ground.small()
    ground.cool()
    return _read(paths)


def small_read_warm(ground: Ground) -> Measure:
    """Read each again."""
    paths = ground.small()
    _read(paths)
    return _read(paths)


def small_rmtree(ground: Ground) -> Measure:
    """Remove the tree of small files."""
    count = len(ground.small())
    top = ground.path("small")
    began = time.perf_counter()
    shutil.rmtree(top)
    spent = time.perf_counter() - began
    check(not top.exists(), "the tree is still there")
    ground.small_files = []
    return Measure(count, spent)


def create_empty(ground: Ground) -> Measure:
    """Create empty files in one directory."""
    spent = make_empty(ground)
    return Measure(len(ground.empty_files), spent)


def _list(ground: Ground, count: int) -> Measure:
    began = time.perf_counter()
    found = sum(entry.stat().st_size == 0 for entry in os.scandir(ground.path("empty")))
    spent = time.perf_counter() - began
    check(found == count, f"{found} of {count} names listed")
    return Measure(count, spent)


def readdir_cold(ground: Ground) -> Measure:
    """List that directory and stat each file, nothing cached."""
    count = len(ground.empty())
    ground.cool()
    return _list(ground, count)


def readdir_warm(ground: Ground) -> Measure:
    """List it again."""
    count = len(ground.empty())
    _list(ground, count)
    return _list(ground, count)


def rename(ground: Ground) -> Measure:
    """Rename files into another directory, and back."""
    paths = ground.empty()
    aside = ground.path("renamed")
    aside.mkdir()
    moves = [(path, aside / path.name) for path in paths]
    began = time.perf_counter()
    for old, new in moves:
        os.rename(old, new)
    for old, new in moves:
        os.rename(new, old)
    spent = time.perf_counter() - began
    check(os.listdir(aside) == [] and len(os.listdir(paths[0].parent)) == len(paths), "names lost")
    aside.rmdir()
    return Measure(2 * len(paths), spent)


def unlink(ground: Ground) -> Measure:
    """Remove the empty files."""
    paths = ground.empty()
    began = time.perf_counter()
    for path in paths:
        os.unlink(path)
    spent = time.perf_counter() - began
    check(os.listdir(paths[0].parent) == [], "names left")
    paths[0].parent.rmdir()
    ground.empty_files = []
    return Measure(len(paths), spent)


WORKLOADS = tuple(
    Workload(run.__name__, run)
    for run in (
        small_create,
        par_small_create,
        small_create_fsync,
        small_stat_cold,
        small_stat_warm,
        small_read_cold,
        small_read_warm,
        small_rmtree,
        create_empty,
        readdir_cold,
        readdir_warm,
        rename,
        unlink,
    )
)
