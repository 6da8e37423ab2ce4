"""`everfold status`: is everything safe, and what are the folders on this machine doing?"""

from __future__ import annotations

import argparse
import os
import threading
from typing import Any, Final

from everfold.errors import EverfoldError, Kind
from tools import command, mountpoint
from tools.home import Home

ANSWER_S: Final = 3.0  # a folder whose driver hangs must not hang the tool
SHOWN: Final = 8  # kinds of requests of a folder, the most frequent first


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "status",
        run,
        summary="show the cluster's state",
        description="Show how many blocks there are, how many lack copies, the datanodes, and\n"
        "of each folder of that cluster on this machine: what it has not sent yet, how often\n"
        "its caches had the answer, how long requests take, its lease, its feed, its nodes.",
        example="everfold status --json",
    )
    parser.add_argument("dirs", metavar="DIR", nargs="*", help="show these folders only")
    parser.add_argument("--server", metavar="URL", help="instead of the one logged in at")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print the state."""
    login = Home().login(args.server)
    with login.api() as api:
        status = api.status()
    mounts = [of_folder(path) for path in args.dirs] or on_this_machine(login.server)
    if args.json:
        command.print_json({**status, "mounts": mounts})
        return command.DONE
    for name in ("blocks", "under_replicated", "missing", "corrupt"):
        print(f"{name.replace('_', ' '):17} {status[name]}")
    print(f"{'space used':17} {command.size_text(status['space_used'])}")
    print_nodes(status["nodes"])
    for mount in mounts:
        print_mount(mount)
    return command.DONE


# ---------------------------------------------------------------- folders


def of_folder(path: str) -> dict[str, Any]:
    """Return the figures of a folder, with `path` and `server`; UNAVAILABLE when it has none."""
    found: list[dict[str, Any]] = []
    failed: list[EverfoldError] = []

    def ask() -> None:
        try:
            root = os.path.realpath(path)  # asks the driver, too
            server, figures = mountpoint.statistics(root)
            found.append({"path": root, "server": server, **figures})
        except EverfoldError as err:
            failed.append(err)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(ANSWER_S)
    if found:
        return found[0]
    raise failed[0] if failed else EverfoldError(Kind.TIMEOUT, "the folder does not answer", path)


def on_this_machine(server: str) -> list[dict[str, Any]]:
    """Return the figures of each folder of a cluster; of one that does not answer, why."""
    told = []
    for path in mountpoint.ours():
        try:
            told.append(of_folder(path))
        except EverfoldError as err:  # another's, dead, or hanging
            told.append({"path": path, "server": "", "trouble": str(err)})
    return [mount for mount in told if mount["server"] == server]


def print_mount(mount: dict[str, Any]) -> None:
    """Print a folder's figures for people."""
    backlog, feed, lease = mount["backlog"], mount["feed"], mount["lease"]
    print(f"\n{mount['path']}  (space {mount['space']})")
    unsent = f"{backlog['records']} changes, {command.size_text(backlog['bytes'])}"
    shipped = f"{mount['shipped']['operations']} in {mount['shipped']['batches']} commits"
    print(f"  {'not sent yet':15} {unsent}; sent {shipped}")
    state = "held" if lease["held"] else "not held"
    print(f"  {'write lease':15} {state}; recalled {lease['recalls']} times")
    heard = f"{feed['behind']} commits behind, heard {feed['silent_s']} s ago"
    print(f"  {'feed':15} at {feed['seq']}, {heard}")
    for name, row in mount["hits"].items():
        print(f"  {name:15} {_share(row['asked'] - row['missed'], row['asked'])} from memory")
    cache = mount["cache"]
    reads = cache["memory_hits"] + cache["disk_hits"] + cache["misses"]
    shares = [_share(cache[name], reads) for name in ("memory_hits", "disk_hits")]
    print(f"  {'blocks':15} {shares[0]} from memory, {shares[1]} from disk")
    if mount["trouble"]:
        print(f"  {'trouble':15} {mount['trouble']}")
    busiest = sorted(mount["requests"].items(), key=lambda item: -item[1]["count"])[:SHOWN]
    rows = [(n, c["count"], c["p50_us"], c["p95_us"], c["p99_us"]) for n, c in busiest]
    if rows:
        command.print_table(("REQUEST", "COUNT", "P50 µs", "P95 µs", "P99 µs"), rows)
    nodes = [(n["id"], n["state"], n["latency_ms"], n["avoided_s"]) for n in mount["nodes"]]
    command.print_table(("NODE", "STATE", "LATENCY ms", "AVOIDED s"), nodes)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} % of {whole}" if whole else "nothing asked"


def print_nodes(nodes: list[dict[str, object]]) -> None:
    """Print datanodes for people."""
    rows = [
        (
            node["id"],
            node["state"],
            command.size_text(int(str(node["used"]))),
            command.size_text(int(str(node["capacity"]))),
            node["blocks"],
            node.get("to_copy", 0),
            node["url"],
        )
        for node in nodes
    ]
    command.print_table(("NODE", "STATE", "USED", "CAPACITY", "BLOCKS", "TO-COPY", "URL"), rows)
