"""How soon does one mount see what another did? `python -m tools.freshness DIR1 DIR2`

DIR1 and DIR2 are two mounts of one space. Content, size, new name, rename and delete are made
in one and waited for in the other, 50 times each (median and p95 in milliseconds); `O_EXCL`
creation is raced from both for 1,000 rounds; `flock` must exclude across them. Each change is
looked for with plain system calls, and looked at before it is made, so that stale answers of
the kernel's caches would be seen.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tools import command

TRIALS = 50
ROUNDS = 1000
DEADLINE_S = 10.0

Trial = Callable[[Path, Path, int], float]


class Unfresh(Exception):
    """A change did not appear, or two won where one may."""


def _until(is_seen: Callable[[], bool], what: str) -> float:
    """Return the milliseconds until `is_seen()`."""
    began = time.perf_counter()
    while not is_seen():
        if time.perf_counter() - began > DEADLINE_S:
            raise Unfresh(f"{what}: not seen in {DEADLINE_S:g} s")
        time.sleep(0.0002)
    return (time.perf_counter() - began) * 1000


def content(here: Path, there: Path, trial: int) -> float:
    """Overwrite bytes of the same length; wait for them in the other mount."""
    fresh = f"{trial:016d}".encode()
    (there / "content").read_bytes()
    handle = os.open(here / "content", os.O_WRONLY)
    try:
        os.pwrite(handle, fresh, 0)
    finally:
        os.close(handle)
    return _until(lambda: (there / "content").read_bytes() == fresh, "content")


def size(here: Path, there: Path, trial: int) -> float:
    """Append; wait for the size in the other mount."""
    wanted = os.stat(there / "size").st_size + 1
    with (here / "size").open("ab") as file:
        file.write(b"x")
    return _until(lambda: os.stat(there / "size").st_size == wanted, "size")


def new_name(here: Path, there: Path, trial: int) -> float:
    """Create a file whose absence the other mount has just been told of."""
    name = f"new-{trial}"
    if (there / name).exists():
        raise Unfresh(f"{name} is there before it is made")
    (here / name).touch()
    return _until(lambda: (there / name).exists(), "new name")


def rename(here: Path, there: Path, trial: int) -> float:
    """Rename a file; wait until the other mount has the new name and not the old."""
    old, new = f"new-{trial}", f"renamed-{trial}"
    os.stat(there / old)
    os.rename(here / old, here / new)
    return _until(lambda: (there / new).exists() and not (there / old).exists(), "rename")


def delete(here: Path, there: Path, trial: int) -> float:
    """Delete a file; wait until it is gone from the other mount's listing and lookups."""
    name = f"renamed-{trial}"
    os.stat(there / name)
    (here / name).unlink()
    return _until(lambda: not (there / name).exists() and name not in os.listdir(there), "delete")


TRIED: tuple[tuple[str, Trial], ...] = (
    ("content", content),
    ("size", size),
    ("new name", new_name),
    ("rename", rename),
    ("delete", delete),
)

_RACER = """
import os, sys
folder = sys.argv[1]
for line in sys.stdin:
    try:
        os.close(os.open(f"{folder}/race-{line.strip()}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        print("won", flush=True)
    except FileExistsError:
        print("lost", flush=True)
"""


@contextlib.contextmanager
def _racer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that tries to create the files that it is told of."""
    pipe = subprocess.PIPE
    line = [sys.executable, "-c", _RACER, str(folder)]
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def race(here: Path, there: Path, rounds: int) -> tuple[int, int]:
    """Race O_EXCL from both mounts; return how often each won. Unfresh unless one did."""
    wins = [0, 0]
    with _racer(here) as first, _racer(there) as second:
        for number in range(rounds):
            racers = (first, second) if number % 2 else (second, first)
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{number}\n")
                racer.stdin.flush()
            said = [racer.stdout.readline().strip() for racer in (first, second) if racer.stdout]
            if sorted(said) != ["lost", "won"]:
                raise Unfresh(f"O_EXCL round {number}: {said[0]!r} and {said[1]!r}")
            wins[said.index("won")] += 1
    return wins[0], wins[1]


def exclude(here: Path, there: Path) -> None:
    """Check that flock excludes across the mounts: held, shared, given back."""
    (here / "lock").touch()
    _until(lambda: (there / "lock").exists(), "the file to lock")
    with (here / "lock").open("rb") as ours, (there / "lock").open("rb") as theirs:
        fcntl.flock(ours, fcntl.LOCK_EX)
        if _try_lock(theirs.fileno(), fcntl.LOCK_EX) or _try_lock(theirs.fileno(), fcntl.LOCK_SH):
            raise Unfresh("flock: got in both mounts")
        fcntl.flock(ours, fcntl.LOCK_SH)
        if not _try_lock(theirs.fileno(), fcntl.LOCK_SH):
            raise Unfresh("flock: two readers exclude each other")
        fcntl.flock(theirs, fcntl.LOCK_UN)
        fcntl.flock(ours, fcntl.LOCK_UN)
        _until(lambda: _try_lock(theirs.fileno(), fcntl.LOCK_EX), "flock given back")


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def measure(first: Path, second: Path, trials: int) -> list[tuple[str, float, float]]:
    """Return (what, median, p95) in milliseconds; the mounts take turns at changing."""
    for name, seed in (("content", b"as it was before"), ("size", b"")):
        (first / name).write_bytes(seed)
        path = second / name
        _until(lambda path=path: path.exists(), name)  # type: ignore[misc]
    rows = []
    for what, trial in TRIED:
        times = [
            trial(*((first, second) if number % 2 else (second, first)), number)
            for number in range(trials)
        ]
        p95 = sorted(times)[max(0, round(0.95 * len(times)) - 1)]
        rows.append((what, statistics.median(times), p95))
    return rows


def run(args: argparse.Namespace) -> int:
    """Measure and print; FAILED when something is not as it must be."""
    try:
        with tempfile.TemporaryDirectory(prefix="freshness-", dir=args.first) as made:
            here, there = Path(made), Path(args.second) / Path(made).name
            _until(there.exists, "the folder to work in (are these two mounts of one space?)")
            rows = measure(here, there, args.trials)
            command.print_table(
                ("CHANGE", "MEDIAN ms", "P95 ms"),
                [(what, round(median, 2), round(p95, 2)) for what, median, p95 in rows],
            )
            wins = race(here, there, args.rounds)
            print(f"O_EXCL: {args.rounds} rounds, exactly one won each ({wins[0]} : {wins[1]})")
            exclude(here, there)
            print("flock: excludes across the mounts")
    except Unfresh as wrong:
        command.say(f"freshness: {wrong}")
        return command.FAILED
    except OSError as err:
        command.say(f"freshness: {err.filename or ''}: {err.strerror}")
        return command.FAILED
    return command.DONE


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.freshness", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument("first", metavar="DIR1")
    parser.add_argument("second", metavar="DIR2")
    parser.add_argument("--trials", type=int, default=TRIALS, metavar="N")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="of O_EXCL")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
