"""`everfold node`: the datanodes, and what an admin does with them."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everfold import config
from everfold.api import Api
from everfold.errors import EverfoldError, Kind
from tools import command
from tools.embedded import Embedded
from tools.home import Home, api_of
from tools.status import print_nodes
from tools.supervisor import python

POLL_S = 0.2
NEW_S = 30.0


def add(verbs: command.Verbs) -> None:
    """Describe the verb and its actions."""
    parser = command.verb(
        verbs,
        "node",
        run_list,
        summary="list, add, fail, repair, drain and remove datanodes",
        description="Look after the datanodes; needs an admin's login.",
        example="everfold node fail dn1\neverfold node repair dn1 --wait\n"
        "everfold node drain dn2 --wait && everfold node remove dn2",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_list(actions)
    _add_add(actions)
    _add_fail(actions)
    _add_repair(actions)
    _add_drain(actions)
    _add_remove(actions)


def _server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="URL", help="instead of the one logged in at")


def _add_list(actions: command.Verbs) -> None:
    parser = command.verb(
        actions,
        "list",
        run_list,
        summary="list datanodes",
        description="List the datanodes: up, suspect, down, draining, failed.",
        example="everfold node list --json",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    _server(parser)


def _add_add(actions: command.Verbs) -> None:
    parser = command.verb(
        actions,
        "add",
        run_add,
        summary="add a datanode",
        description="With --data: one more datanode in a running embedded cluster.\n"
        "With ID and --root: run a datanode here, in the foreground, that joins the cluster\n"
        "of --server; it needs the cluster's CLUSTER_SECRET in its environment.",
        example="everfold node add --data ./.everfold\n"
        "CLUSTER_SECRET=… everfold node add dn7 --root /srv/blocks --server http://ns:5000",
    )
    parser.add_argument("id", nargs="?", metavar="ID")
    parser.add_argument("--data", metavar="DIR", help="of the `everfold up` to add it to")
    parser.add_argument("--root", metavar="DIR", help="where its blocks lie")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, and be told")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--zone", default="", help="machines that fail together")
    parser.add_argument("--capacity", metavar="SIZE", help="bytes, or 500G; default: the disk")
    _server(parser)


def _add_fail(actions: command.Verbs) -> None:
    parser = command.verb(
        actions,
        "fail",
        run_fail,
        summary="declare a datanode dead",
        description="Behave as if the datanode were dead, at both ends, until `repair`.\n"
        "What it held is copied from the others to the others.",
        example="everfold node fail dn1",
    )
    parser.add_argument("id", metavar="ID")
    _server(parser)


def _add_repair(actions: command.Verbs) -> None:
    parser = command.verb(
        actions,
        "repair",
        run_repair,
        summary="take a datanode back",
        description="Count what the datanode still has, and bring all copies to their number.\n"
        "With --wait, return when every block has enough copies.",
        example="everfold node repair dn1 --wait",
    )
    parser.add_argument("id", metavar="ID")
    _waiting(parser, "until under_replicated is 0")
    _server(parser)


def _waiting(parser: argparse.ArgumentParser, until: str) -> None:
    parser.add_argument("--wait", action="store_true", help=until)
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="of --wait")


def _add_drain(actions: command.Verbs) -> None:
    parser = command.verb(
        actions,
        "drain",
        run_drain,
        summary="copy all that a datanode has to the others",
        description="Put nothing more on the datanode, and copy what it has to the others. It is\n"
        "read until then. With --wait, return when nothing needs it any more: it can be\n"
        "removed. `everfold node repair ID` takes it back instead.",
        example="everfold node drain dn2 --wait",
    )
    parser.add_argument("id", metavar="ID")
    _waiting(parser, "until nothing needs it")
    _server(parser)


def _add_remove(actions: command.Verbs) -> None:
    parser = command.verb(
        actions,
        "remove",
        run_remove,
        summary="take a datanode out of the cluster",
        description="Take a datanode out of the cluster: one that was drained, has failed or is\n"
        "down, and whose blocks have all their copies elsewhere. With --wait, it is drained\n"
        "first. With --force it goes at once, and what only it has is not there any more.\n"
        "Nothing on its disk is wiped: `everfold node repair ID` takes it back.",
        example="everfold node remove dn2 --wait",
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--force", action="store_true", help="though blocks lack copies then")
    _waiting(parser, "drain it, and until nothing needs it")
    _server(parser)


def run_list(args: argparse.Namespace) -> int:
    """List the datanodes."""
    with api_of(args) as api:
        nodes = api.nodes()
    if args.json:
        command.print_json(nodes)
    else:
        print_nodes(nodes)
    return command.DONE


def run_fail(args: argparse.Namespace) -> int:
    """Declare a datanode dead."""
    with api_of(args) as api:
        api.fail_node(args.id)
    command.say(f"{args.id} counts as failed.")
    return command.DONE


def run_repair(args: argparse.Namespace) -> int:
    """Take a datanode back; perhaps wait until all is as it should be."""
    with api_of(args) as api:
        api.repair_node(args.id)
        if args.wait:
            _wait_whole(api, args.id, args.timeout)
    command.say(f"{args.id} is back; every block has its copies." if args.wait
                else f"{args.id} is being taken back.")  # fmt: skip
    return command.DONE


def run_drain(args: argparse.Namespace) -> int:
    """Empty a datanode; perhaps wait until nothing needs it."""
    with api_of(args) as api:
        api.drain_node(args.id)
        if args.wait:
            _wait_unneeded(api, args.id, args.timeout)
    command.say(f"Nothing needs {args.id} any more." if args.wait
                else f"{args.id} is being drained.")  # fmt: skip
    return command.DONE


def run_remove(args: argparse.Namespace) -> int:
    """Take a datanode out; say what is lacking then."""
    with api_of(args) as api:
        if args.wait and not args.force:
            if _row(api, args.id)["state"] in ("up", "suspect"):
                api.drain_node(args.id)
            _wait_unneeded(api, args.id, args.timeout)
        done = api.remove_node(args.id, args.force)
    lacking = f"; {done['lacking']} blocks lack copies, {done['lost']} have none"
    command.say(f"{args.id} is removed{lacking if done['lacking'] else ''}.")
    return command.DONE


def _row(api: Api, node: str) -> dict[str, Any]:
    found = next((row for row in api.nodes() if row["id"] == node), None)
    if found is None:
        raise EverfoldError(Kind.NOT_FOUND, "there is no such node", node)
    return found


def _wait_unneeded(api: Api, node: str, timeout_s: float) -> None:
    """Wait until every block of a node has its copies elsewhere."""

    def look() -> tuple[bool, str]:
        row = _row(api, node)
        return not row["to_copy"], f"is {row['state']}, {row['to_copy']} blocks to copy"

    _wait_twice(look, node, timeout_s)


def _wait_whole(api: Api, node: str, timeout_s: float) -> None:
    """Wait until the node counts again and nothing lacks copies."""

    def look() -> tuple[bool, str]:
        status = api.status()
        state = next((n["state"] for n in status["nodes"] if n["id"] == node), "unknown")
        lacking = int(status["under_replicated"])
        is_whole = lacking == 0 and state in ("up", "draining")
        return is_whole, f"is {state}, {lacking} blocks lack copies"

    _wait_twice(look, node, timeout_s)


def _wait_twice(look: Callable[[], tuple[bool, str]], node: str, timeout_s: float) -> None:
    """Wait until what is looked at is well twice in a row; TIMEOUT, with how it was last."""
    ends = time.monotonic() + timeout_s
    progress = command.Progress()
    calm = 0
    try:
        while True:
            is_well, how = look()
            calm = calm + 1 if is_well else 0
            if calm == 2:
                return
            if time.monotonic() > ends:
                raise EverfoldError(Kind.TIMEOUT, f"after {timeout_s:g} s it {how}", node)
            progress.show(f"{node} {how}")
            time.sleep(POLL_S)
    finally:
        progress.clear()


def run_add(args: argparse.Namespace) -> int:
    """Add a datanode, to an embedded cluster or as a process of its own."""
    if args.data and not (args.id or args.root):
        _grow(Embedded(Path(args.data)))
        return command.DONE
    if args.data or not (args.id and args.root):
        raise EverfoldError(Kind.INVALID, "give either --data DIR, or ID and --root DIR")
    server = args.server or Home().login().server
    line = python(
        "datanode", "--id", args.id, "--root", args.root, "--nameserver", server,
        "--host", args.host, "--port", str(args.port), "--zone", args.zone,
    )  # fmt: skip
    if args.capacity:
        try:
            line += ["--capacity", str(config.parse_size(args.capacity))]
        except ValueError as err:
            raise EverfoldError(Kind.INVALID, str(err), "--capacity") from err
    return os.execv(line[0], line)


def _grow(embedded: Embedded) -> None:
    """Ask a running `up` for one more datanode, and wait until the cluster counts on it."""
    chosen, pid = embedded.chosen(), embedded.supervisor()
    if chosen is None or not pid:
        raise EverfoldError(Kind.UNAVAILABLE, "no `everfold up` runs on it", str(embedded.path))
    chosen.nodes += 1
    embedded.choose(chosen)
    os.kill(pid, signal.SIGHUP)
    name, ends = f"dn{chosen.nodes}", time.monotonic() + NEW_S
    token = embedded.token_file.read_text(encoding="ascii").strip()
    with Api(chosen.url, token, chosen.ca_file) as api:
        while not _is_up(api.nodes(), name):
            if time.monotonic() > ends:
                raise EverfoldError(Kind.TIMEOUT, f"not up after {NEW_S:g} s", name)
            time.sleep(POLL_S)
    print(name)


def _is_up(nodes: list[dict[str, Any]], name: str) -> bool:
    return any(node["id"] == name and node["state"] == "up" for node in nodes)
