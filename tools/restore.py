"""`everfold restore`: make an earlier content the present one, by reference, in one commit."""

from __future__ import annotations

import argparse
import os
import time

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import Attr
from tools import command
from tools.history import Asked, asking
from tools.mountpoint import Place, locate

SHOWN_S = 2.0


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "restore",
        run,
        summary="make an earlier version the present one",
        description="Give PATH the content that it had as version N, as a new version; what it\n"
        "has now stays a version too. A deleted file comes back.",
        example="everfold versions ~/Everfold/report.odt\n"
        "everfold restore ~/Everfold/report.odt --version 3",
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--version", type=int, metavar="N", required=True)


def run(args: argparse.Namespace) -> int:
    """Restore."""
    if args.version < 1:
        raise EverfoldError(Kind.INVALID, "versions count from 1", "--version")
    place = locate(args.path)
    with asking(place, read_only=False) as asked:
        shown = _restore(asked, place, args.version)
        number = asked.versions()[-1].number
    _wait_shown(args.path, shown)
    command.say(f"{args.path}: version {args.version} is back, as version {number}.")
    return command.DONE


def _restore(asked: Asked, place: Place, number: int) -> Attr:
    space, names = asked.session.space, asked.names
    fresh = names.reserve(wire.Reserve(space, 1)).first
    op = wire.Restore(asked.parent, asked.name, number, fresh, time.time_ns())
    first = asked.session.last_op + 1
    names.commit(wire.Commit(space, asked.mount, first, [op])).results[0].check()
    entry = names.resolve(wire.ResolvePath(space, place.names)).entry
    if entry is None:
        raise EverfoldError(Kind.CONFLICT, "was deleted again meanwhile", os.fspath(place.root))
    return entry.attr


def _wait_shown(path: str, attr: Attr) -> None:
    """Give the mount its moment to hear of it, so that the next command sees the file."""
    ends = time.monotonic() + SHOWN_S
    while time.monotonic() < ends:
        try:
            seen = os.lstat(path)
        except FileNotFoundError:
            seen = None
        if seen is not None and (seen.st_size, seen.st_mtime_ns) == (attr.size, attr.mtime_ns):
            return
        time.sleep(0.01)
