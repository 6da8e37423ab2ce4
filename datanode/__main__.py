"""Start a datanode: read the command line, put the parts together, serve, end in order."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
from pathlib import Path

from datanode.app import create_app
from datanode.auth import Doorkeeper
from datanode.beat import Beat
from datanode.commands import Commands
from datanode.copying import Copier, Peers
from datanode.node import Identity, Node
from datanode.scrub import Scrub
from everfold import config, log, memory, readiness, serving, tls, tuning
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.files import Files
from everfold.http import HttpTransport
from everfold.model import NodeId

GRACE_S = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="everfold-datanode",
        description="Keep blocks for an Everfold cluster.",
        epilog="example: everfold-datanode --id dn1 --root /srv/dn1 --nameserver http://ns:5000\n"
        "exit status: 0 stopped in order, 2 bad configuration, 1 anything else",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--id", required=True, help="this node's name in the cluster: dn1")
    parser.add_argument("--root", required=True, type=Path, help="folder of the blocks")
    parser.add_argument("--nameserver", required=True, help="URL that heartbeats go to")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--url", help="how others reach this node (default: host and port)")
    parser.add_argument("--zone", default="", help="replicas are spread over zones")
    parser.add_argument("--capacity", type=int, default=0, help="bytes it may use (0: all)")
    parser.add_argument("--floor", type=int, help="bytes to leave free on the filesystem")
    parser.add_argument("--scrub-rate", type=float, help="bytes a second")
    parser.add_argument("--scrub-pause", type=float, default=0.2, help="seconds between prefixes")
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("--log-level", default="INFO")
    config.add_flags(parser, "cluster_secret", "tls_cert", "tls_key", "ca_file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    args = _parser().parse_args(argv)
    log.set_up(args.log_level, args.log_file)
    try:
        settings = config.from_args(args, os.environ)
        if not settings.cluster_secret:
            raise EverfoldError(Kind.INVALID, "is not set", "CLUSTER_SECRET")
        certificate = tls.certificate(settings.tls_cert, settings.tls_key)
        nameserver = HttpTransport(args.nameserver, ca_file=settings.ca_file)
    except EverfoldError as err:
        print(f"everfold-datanode: {err}", file=sys.stderr)
        return 2
    try:
        _run(args, settings, nameserver, certificate)
    except (EverfoldError, OSError) as err:
        print(f"everfold-datanode: {err}", file=sys.stderr)
        return 1
    return 0


def _run(
    args: argparse.Namespace,
    settings: config.Settings,
    nameserver: HttpTransport,
    certificate: tls.Certificate | None,
) -> None:
    _raise_file_limit()
    clock = SystemClock()
    listener = serving.listen(args.host, args.port)
    port = listener.getsockname()[1]
    scheme = "https" if certificate else "http"
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = args.url or f"{scheme}://{host}:{port}"
    with contextlib.ExitStack() as stack:
        node = Node(
            Identity(NodeId(args.id), url, args.zone, args.capacity), args.root, floor=args.floor
        )
        stack.callback(node.close)
        copier = Copier(node, Peers(settings.ca_file))
        commands = Commands(node, copier)
        stack.callback(commands.close)
        beat = Beat(node, commands, nameserver, settings.cluster_secret, clock)
        stack.callback(beat.close)
        scrub = Scrub(node, args.scrub_rate, args.scrub_pause)
        stack.callback(scrub.close)

        def ready() -> None:
            beat.start()
            scrub.start()
            memory.give_back_at_rest()
            tuning.settle()
            readiness.tell()
            if args.ready_file:
                _tell(args.ready_file, {"id": args.id, "url": url, "root": str(args.root)})

        serving.serve(
            create_app(node, Doorkeeper(settings.cluster_secret, clock), copier),
            listener,
            grace_s=GRACE_S,
            on_ready=ready,
            tls=certificate,
        )


def _tell(path: Path, facts: dict[str, str]) -> None:
    form = json.dumps({**facts, "pid": os.getpid()})
    Files().keep("ready", path.resolve(), [form.encode()], path.resolve().parent)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
