"""`everfold fsck`: does everything that the tree names exist, sound and often enough?"""

from __future__ import annotations

import argparse

from tools import command
from tools.home import Home


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "fsck",
        run,
        summary="check the whole cluster",
        description="Walk tree, extents and replica map, ask the datanodes, and list what is wrong."
        "\nNothing is changed; with --repair, sums of used space that are wrong are written anew.",
        example="everfold fsck && echo sound",
        status={
            command.DONE: "everything is sound",
            command.FAILED: "something is wrong; each error is a line",
            command.UNCHECKED: "it could not be checked; the reason is one line on stderr",
        },
    )
    parser.set_defaults(failed=command.UNCHECKED)
    parser.add_argument("--server", metavar="URL", help="instead of the one logged in at")
    parser.add_argument("--repair", action="store_true", help="count used space anew")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Check and print what is wrong."""
    login = Home().login(args.server)
    progress = command.Progress()
    progress.show("checking tree, extents, replica map and nodes ...")
    with login.api() as api:
        found = api.fsck(args.repair)
    progress.clear()
    if args.json:
        command.print_json(found)
    else:
        for error in found["errors"]:
            print(error)
        for repaired in found["repaired"]:
            print(f"repaired: {repaired}")
        print(f"{len(found['errors'])} errors" if found["errors"] else "sound")
    return command.FAILED if found["errors"] else command.DONE
