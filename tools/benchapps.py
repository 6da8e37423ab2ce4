"""Workloads that programs make: an archive unpacked, a repository, a database, two machines."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import statistics
import subprocess
import sysconfig
import tarfile
import time
from pathlib import Path

from tools import freshness
from tools.benchground import Absent, Ground, Measure, Workload, check

_LEFT_OUT = ("__pycache__", "site-packages", "dist-packages", "lib-dynload")


def tree_hash(folder: Path) -> tuple[int, str]:
    """Return the number of files of a tree, and a hash over names, types and contents."""
    total, count = hashlib.sha256(), 0
    for path in sorted(folder.rglob("*")):
        if ".git" in path.parts:
            continue
        total.update(os.fsencode(path.relative_to(folder)) + b"\0")
        if path.is_symlink():
            total.update(os.fsencode(os.readlink(path)))
        elif path.is_file():
            total.update(hashlib.sha256(path.read_bytes()).digest())
            count += 1
    return count, total.hexdigest()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Absent(f"{name} is not installed")
    return found


def _archive(ground: Ground) -> tuple[Path, tuple[int, str]]:
    """Return an archive of Python's standard library on local disk, and what is in it."""
    path, unpacked = ground.scratch / "library.tar", ground.scratch / "library"
    if not path.exists():

        def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            name = os.path.basename(member.name)
            return None if name in _LEFT_OUT or name.startswith("config-") else member

        with tarfile.open(path, "w") as archive:
            archive.add(sysconfig.get_path("stdlib"), ".", filter=wanted)
        unpacked.mkdir()
        _unpack(path, unpacked)
    return path, tree_hash(unpacked)


def _unpack(archive: Path, folder: Path) -> None:
    line = [_program("tar"), "-xf", str(archive), "--no-same-owner", "-C", str(folder)]
    subprocess.run(line, check=True)


def _source(ground: Ground) -> Path:
    """Return the unpacked library, unpacked unless it is there."""
    folder = ground.path("source")
    if not folder.exists():
        tar_extract(ground)
    return folder


def tar_extract(ground: Ground) -> Measure:
    """Unpack an archive of a few thousand files."""
    archive, wanted = _archive(ground)
    folder = ground.path("source")
    folder.mkdir()
    began = time.perf_counter()
    _unpack(archive, folder)
    spent = time.perf_counter() - began
    check(tree_hash(folder) == wanted, "the unpacked tree is another")
    return Measure(wanted[0], spent, "s")


def tree_read_cold(ground: Ground) -> Measure:
    """Read that tree through, nothing cached."""
    wanted = _archive(ground)[1]
    folder = _source(ground)
    ground.cool()
    began = time.perf_counter()
    found = tree_hash(folder)
    spent = time.perf_counter() - began
    check(found == wanted, "the tree is another")
    return Measure(wanted[0], spent, "s")


# ---------------------------------------------------------------- git


def _git(folder: Path, *words: str) -> tuple[float, bytes]:
    """Run git as on a machine where nobody has configured anything."""
    settings = ("safe.directory=*", "gc.auto=0", "user.name=b", "user.email=b@localhost")
    line = [_program("git"), *(word for each in settings for word in ("-c", each)), *words]
    nothing = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    began = time.perf_counter()
    done = subprocess.run(
        line, cwd=folder, env={**os.environ, **nothing}, check=True, capture_output=True
    )
    return time.perf_counter() - began, done.stdout


def _repository(ground: Ground) -> Path:
    folder = _source(ground)
    if not (folder / ".git").exists():
        git_commit(ground)
    return folder


def git_commit(ground: Ground) -> Measure:
    """git init, add, commit of that tree."""
    folder = _source(ground)
    steps = (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "all"))
    return Measure(1, sum(_git(folder, *words)[0] for words in steps), "s")


def git_status_cold(ground: Ground) -> Measure:
    """git status, nothing cached."""
    folder = _repository(ground)
    _git(folder, "status", "--porcelain")  # writes the index anew
    ground.cool()
    spent, said = _git(folder, "status", "--porcelain")
    check(said == b"", "git sees changes that nobody made")
    return Measure(1, spent, "s")


def git_status_warm(ground: Ground) -> Measure:
    """git status again."""
    folder = _repository(ground)
    _git(folder, "status", "--porcelain")
    spent, said = _git(folder, "status", "--porcelain")
    check(said == b"", "git sees changes that nobody made")
    return Measure(1, spent, "s")


# ---------------------------------------------------------------- a database, two machines


def sqlite(ground: Ground) -> Measure:
    """Transactions of one row, each durable."""
    path, count = ground.path("database"), ground.scale.transactions
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("PRAGMA synchronous = FULL")
    base.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    began = time.perf_counter()
    for number in range(count):
        base.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 100))
    spent = time.perf_counter() - began
    base.close()
    again = sqlite3.connect(path)
    check(again.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged")
    check(again.execute("SELECT count(*) FROM t").fetchone() == (count,), "rows are lost")
    again.close()
    path.unlink()
    return Measure(count, spent)


def fresh(ground: Ground) -> Measure:
    """What one mount does the other sees: the worst p95 of content, size, new and gone names."""
    if ground.second is None:
        raise Absent("needs --second")
    try:
        rows = freshness.measure(ground.top, ground.second, ground.scale.trials)
    except freshness.Unfresh as err:
        check(False, str(err))
    note = ", ".join(f"{what} {p95:.1f}" for what, _, p95 in rows)
    worst = max(p95 for _, _, p95 in rows)
    median = statistics.median(median for _, median, _ in rows)
    return Measure(1, worst / 1000, "s", f"p95 ms: {note}; median {median:.1f}")


WORKLOADS = tuple(
    Workload(run.__name__, run)
    for run in (
        tar_extract,
        tree_read_cold,
        git_commit,
        git_status_cold,
        git_status_warm,
        sqlite,
        fresh,
    )
)
