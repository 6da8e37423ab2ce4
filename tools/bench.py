"""`everfold bench`: how fast is a folder, and how fast beside another?

Runs workloads in a folder of its own below DIR (and below the one to compare with, turn by
turn, so that both have the same noise), verifies what it reads back, and prints medians.
`cold` means that the kernel has forgotten everything (as root), not that a client's or a
server's own cache has: `--cold-command` may empty those. Without DIR, as `make bench` runs it,
an embedded cluster is started and compared with the local disk under it.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from everfold.errors import EverfoldError, Kind
from tools import benchapps, benchlarge, benchsmall, command
from tools.benchground import (
    QUICK,
    Absent,
    Ground,
    Measure,
    Scale,
    Workload,
    Wrong,
    empty_caches,
)
from tools.supervisor import python

WORKLOADS: Final = (*benchsmall.WORKLOADS, *benchlarge.WORKLOADS, *benchapps.WORKLOADS)
NAMES: Final = tuple(workload.name for workload in WORKLOADS)
START_S: Final = 120.0
SEEN_S: Final = 30.0  # until the second mount must have a directory


@dataclass
class Row:
    """What one workload measured, in each folder, once a round; `said` is why it could not."""

    name: str
    unit: str = ""
    values: list[list[float]] = field(default_factory=list)  # of DIR, of the other
    note: str = ""
    said: str = ""
    is_wrong: bool = False

    def medians(self) -> list[float]:
        """Return the median of each folder that has one."""
        return [statistics.median(values) for values in self.values if values]

    @property
    def remark(self) -> str:
        """Return what is to be said beside the figures."""
        return self.said if self.is_wrong or not self.note else self.note

    @property
    def ratio(self) -> float | None:
        """Return how many times faster DIR is than the other."""
        medians = self.medians()
        if len(medians) < 2 or not all(medians):
            return None
        here, other = medians
        return here / other if self.unit.endswith("/s") else other / here


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "bench",
        run,
        summary="measure how fast a folder is",
        description=(__doc__ or "").split("\n\n", 1)[1] + f"\nWorkloads: {', '.join(NAMES)}",
        example="everfold bench ~/Everfold --compare /var/tmp --quick",
    )
    parser.add_argument("dir", metavar="DIR", nargs="?", help="default: an embedded cluster")
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--second", metavar="DIR", help="another mount of DIR's space: freshness")
    parser.add_argument("--compare", metavar="DIR", help="run the same there, turn by turn")
    parser.add_argument("--only", metavar="NAME,...", type=_names, default=NAMES)
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="medians of N")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--cold-command", metavar="SHELL", default="", help="empties more caches")
    parser.add_argument("--driver", choices=("kernel", "fusepy"), default="kernel")
    parser.add_argument("--json", action="store_true", help="for programs")


def _names(text: str) -> tuple[str, ...]:
    wanted = text.split(",")
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no workload {unknown[0]!r}; there are {', '.join(NAMES)}"
        )
    return tuple(name for name in NAMES if name in wanted)


# ---------------------------------------------------------------- measuring


def measure(
    tops: Sequence[Path],
    second: Path | None,
    wanted: Sequence[Workload],
    scale: Scale,
    rounds: int,
    cool: Callable[[], None] = empty_caches,
) -> list[Row]:
    """Run workloads in each of `tops`, turn by turn; a row each, also of those that failed."""
    rows = {workload.name: Row(workload.name, values=[[] for _ in tops]) for workload in wanted}
    progress = command.Progress()
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            grounds = [
                stack.enter_context(_ground(top, second if top is tops[0] else None, scale))
                for top in tops
            ]
            for ground in grounds:
                ground.scratch, ground.cool = scratch, cool
            for workload in wanted:
                progress.show(f"round {number + 1} of {rounds}: {workload.name}")
                _measure_one(rows[workload.name], workload, grounds, number)
    progress.clear()
    return list(rows.values())


def _measure_one(row: Row, workload: Workload, grounds: list[Ground], number: int) -> None:
    order = list(enumerate(grounds))
    for at, ground in order if number % 2 == 0 else reversed(order):
        try:
            measured: Measure = workload.run(ground)
        except Absent as err:
            row.said = row.said or str(err)
        except Wrong as err:
            row.said, row.is_wrong = f"WRONG in {ground.top}: {err}", True
        except (OSError, subprocess.SubprocessError, sqlite3.Error) as err:
            row.said, row.is_wrong = f"FAILED in {ground.top}: {err}", True
        else:
            row.unit = measured.unit
            row.note = measured.note or row.note
            row.values[at].append(measured.value)


@contextlib.contextmanager
def _ground(top: Path, second: Path | None, scale: Scale) -> Iterator[Ground]:
    made = Path(tempfile.mkdtemp(prefix="everfold-bench-", dir=top))
    try:
        there = None
        if second is not None:
            there = second / made.name
            _wait(there.exists, SEEN_S, f"{there} does not appear: is it the same space?")
        yield Ground(made, scale, there)
    finally:
        shutil.rmtree(made)


def _wait(is_so: Callable[[], bool], deadline_s: float, what: str) -> None:
    ends = time.monotonic() + deadline_s
    while not is_so():
        if time.monotonic() > ends:
            raise EverfoldError(Kind.TIMEOUT, what)
        time.sleep(0.05)


# ---------------------------------------------------------------- telling


def told(rows: Sequence[Row], labels: Sequence[str]) -> list[dict[str, object]]:
    """Return rows for programs."""
    return [
        {
            "workload": row.name,
            "unit": row.unit,
            **{
                label: round(statistics.median(values), 6)
                for label, values in zip(labels, row.values, strict=True)
                if values
            },
            "ratio": round(row.ratio, 3) if row.ratio else None,
            "note": row.remark,
            "failed": row.is_wrong,
        }
        for row in rows
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Print rows for people; a ratio above 1 means that the first folder is faster."""
    cells = []
    for row in rows:
        figures = [_figure(statistics.median(v)) if v else "-" for v in row.values]
        ratio = [f"{row.ratio:.2f}x" if row.ratio else ""] if len(labels) > 1 else []
        cells.append((row.name, row.unit, *figures, *ratio, row.remark))
    heads = ("WORKLOAD", "UNIT", *labels, *(["RATIO"] if len(labels) > 1 else []), "")
    command.print_table(heads, cells)


# ---------------------------------------------------------------- the verb


def run(args: argparse.Namespace) -> int:
    """Measure and print; FAILED when anything that was read is not what was written."""
    if args.rounds < 1:
        raise EverfoldError(Kind.INVALID, "at least one round")
    with contextlib.ExitStack() as stack:
        if args.dir is None:
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="everfold-bench-")))
            here = stack.enter_context(cluster(made, args.driver))
            other: Path | None = Path(args.compare) if args.compare else made
        else:
            here, other = Path(args.dir), Path(args.compare) if args.compare else None
        tops = [here] if other is None else [here, other]
        second = Path(args.second) if args.second else None
        wanted = [workload for workload in WORKLOADS if workload.name in args.only]
        scale = QUICK if args.quick else Scale()
        rows = measure(
            tops, second, wanted, scale, args.rounds, lambda: empty_caches(args.cold_command)
        )
    labels = ["here", "compared"][: len(tops)]
    if args.json:
        command.print_json(told(rows, labels))
    else:
        show(rows, [label.upper() for label in labels])
    return command.FAILED if any(row.is_wrong for row in rows) else command.DONE


@contextlib.contextmanager
def cluster(folder: Path, driver: str) -> Iterator[Path]:
    """Run an embedded cluster in `folder`; yields the mountpoint."""
    ready, mount = folder / "ready.json", folder / "mnt"
    line = python(
        "tools", "up", "--data", str(folder / "data"), "--port", "0", "--mount", str(mount),
        "--driver", driver, "--ready-file", str(ready),
    )  # fmt: skip
    said = folder / "up.log"
    with said.open("wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait(lambda: ready.exists() or process.poll() is not None, START_S, "no cluster comes up")
        if process.poll() is not None:
            words = said.read_text(errors="replace").strip()
            raise EverfoldError(Kind.UNAVAILABLE, f"the cluster does not start:\n{words}")
        yield mount
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_S)


def main() -> int:
    """Measure an embedded cluster, or a folder, without the rest of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument("dir", metavar="DIR", nargs="?", help="default: an embedded cluster")
    _add_options(parser)
    try:
        return run(parser.parse_args())
    except (EverfoldError, OSError) as err:
        command.say(f"bench: {err}")
        return command.FAILED


if __name__ == "__main__":
    sys.exit(main())
