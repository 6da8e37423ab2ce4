"""`everfold ready`: does a server answer? For scripts, containers and whoever waits for a start."""

from __future__ import annotations

import argparse
import os
import time

from everfold.api import Api
from everfold.config import CA_FILE
from everfold.errors import EverfoldError, Kind
from tools import command

ASK_S = 3.0
POLL_S = 0.2


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "ready",
        run,
        summary="tell whether a server answers",
        description="Ask a nameserver or a datanode whether it can do its work (/readyz).\n"
        "With --wait, ask until it can. Needs no login.",
        example="everfold ready http://127.0.0.1:5000 --wait 30",
        status={command.FAILED: "it is not ready; why is one line on stderr"},
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--wait", type=float, default=0.0, metavar="S", help="seconds")
    parser.add_argument("--ca-file", metavar="F", default=os.environ.get(CA_FILE, ""),
                        help=f"authorities to trust ({CA_FILE})")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Ask."""
    ends = time.monotonic() + args.wait
    with Api(args.url, ca_file=args.ca_file) as api:
        while True:
            try:
                api.call("GET", "/readyz", timeout_s=ASK_S)
            except EverfoldError as err:
                if not err.kind.may_retry or time.monotonic() > ends:
                    raise EverfoldError(Kind.UNAVAILABLE, str(err)) from err
                time.sleep(POLL_S)
                continue
            return command.DONE
