"""`everfold status`: is everything safe?"""

from __future__ import annotations

import argparse

from everfold.api import Api
from tools import command
from tools.home import Home


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "status",
        run,
        summary="show the cluster's state",
        description="Show how many blocks there are, how many lack copies, and the datanodes.",
        example="everfold status --json",
    )
    parser.add_argument("--server", metavar="URL", help="instead of the one logged in at")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print the state."""
    login = Home().login(args.server)
    with Api(login.server, login.token) as api:
        status = api.status()
    if args.json:
        command.print_json(status)
        return command.DONE
    for name in ("blocks", "under_replicated", "missing", "corrupt"):
        print(f"{name.replace('_', ' '):17} {status[name]}")
    print(f"{'space used':17} {command.size_text(status['space_used'])}")
    print_nodes(status["nodes"])
    return command.DONE


def print_nodes(nodes: list[dict[str, object]]) -> None:
    """Print datanodes for people."""
    rows = [
        (
            node["id"],
            node["state"],
            command.size_text(int(str(node["used"]))),
            command.size_text(int(str(node["capacity"]))),
            node["blocks"],
            node["url"],
        )
        for node in nodes
    ]
    command.print_table(("NODE", "STATE", "USED", "CAPACITY", "BLOCKS", "URL"), rows)
