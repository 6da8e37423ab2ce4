"""`everfold versions`: every content that a name ever had."""

from __future__ import annotations

import argparse

from everfold.model import Version
from tools import command
from tools.history import asking, moment
from tools.mountpoint import locate


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "versions",
        run,
        summary="list the versions of a file",
        description="List every content that was ever visible at PATH, the newest last; PATH lies"
        "\nin a mounted folder and may have been deleted.",
        example="everfold versions ~/Everfold/report.odt",
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """List versions."""
    with asking(locate(args.path), read_only=True) as asked:
        versions = asked.versions()
    if args.json:
        command.print_json([_form(version) for version in versions])
        return command.DONE
    rows = [
        (v.number, moment(v.at_ns), command.size_text(v.size), v.author, v.device, _remark(v))
        for v in versions
    ]
    command.print_table(("VERSION", "AT", "SIZE", "AUTHOR", "DEVICE", ""), rows)
    return command.DONE


def _form(version: Version) -> dict[str, object]:
    return {
        "version": version.number,
        "at": moment(version.at_ns),
        "size": version.size,
        "author": version.author,
        "device": version.device,
        "current": version.current,
        "conflict": version.conflict,
    }


def _remark(version: Version) -> str:
    words = [
        word
        for word, holds in (
            ("current", version.current),
            ("conflict", version.conflict),
            ("still open", not version.sealed),
        )
        if holds
    ]
    return ", ".join(words)
