"""How every verb is made: its place in the parser, its exit status, its way of speaking.

A verb's module has `add(verbs)`, which describes it, and a `run(args)` that returns the exit
status. A verb prints its answer on stdout, says what goes on on stderr, and lets an
`EverfoldError` out to `__main__`, where it becomes one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

DONE = 0
FAILED = 1
USAGE = 2
UNCHECKED = 3
INTERRUPTED = 130

EXIT_STATUS = {
    DONE: "done",
    FAILED: "could not be done; the reason is one line on stderr",
    USAGE: "the command line makes no sense",
}


class Verbs(Protocol):
    """What `argparse` gives for adding subcommands."""

    def add_parser(self, name: str, **kwargs: Any) -> argparse.ArgumentParser: ...


def verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    example: str,
    status: dict[int, str] | None = None,
) -> argparse.ArgumentParser:
    """Add a verb whose help ends with an example and its exit status."""
    table = {**EXIT_STATUS, **(status or {})}
    told = "\n".join(f"  {code}  {meaning}" for code, meaning in sorted(table.items()))
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n{_indented(example)}\n\nEXIT STATUS\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())


def say(text: str) -> None:
    """Tell the person what goes on; never part of the answer."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print an answer for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print an answer for people: columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in [list(heads), *cells]) for at in range(len(heads))]
    is_number = [
        bool(rows) and all(isinstance(row[at], (int, float)) for row in rows)
        for at in range(len(heads))
    ]
    for row in [list(heads), *cells]:
        line = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        print("  ".join(line).rstrip())


def size_text(size: int) -> str:
    """Return a size as people read it: 1536 -> "1.5 KiB"."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


class Progress:
    """One line on a terminal that is written over; silent when stderr is none."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._is_shown:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Take the line away."""
        if self._is_shown and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0
