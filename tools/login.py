"""`everfold login`: prove who you are once; the other verbs use the token."""

from __future__ import annotations

import argparse
import getpass
import os
import platform
import sys

from everfold.api import Api
from everfold.config import CA_FILE
from everfold.errors import EverfoldError, Kind
from tools import command
from tools.home import Home


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "login",
        run,
        summary="log in at a nameserver",
        description="Log in and keep a token (mode 0600) under $EVERFOLD_HOME.",
        example="echo $PASSWORD | everfold login --server http://127.0.0.1:5000 "
        "--username ann --password-stdin",
    )
    parser.add_argument("--server", metavar="URL", required=True)
    parser.add_argument("--username", metavar="U", required=True, help="name or e-mail address")
    parser.add_argument("--password-stdin", action="store_true", help="read it from stdin")
    trusted = f"authorities to trust there, from now on ({CA_FILE})"
    ca_file = os.environ.get(CA_FILE, "")
    parser.add_argument("--ca-file", default=ca_file, metavar="F", help=trusted)
    parser.add_argument("--device", default=platform.node(), help="this machine's name")


def run(args: argparse.Namespace) -> int:
    """Log in."""
    password = read_password(args.password_stdin, f"Password of {args.username}: ")
    ca_file = os.path.abspath(args.ca_file) if args.ca_file else ""
    with Api(args.server, ca_file=ca_file) as api:
        log_in(Home(), api, args.username, password, args.device)
    command.say(f"Logged in at {api.server}.")
    return command.DONE


def log_in(home: Home, api: Api, username: str, password: str, device: str) -> None:
    """Log in and remember it; this machine stays the device that it was."""
    answer = api.login(username, password, device, home.device_id(api.server, username))
    home.save_login(api.server, username, answer["device"]["id"], api.token, api.ca_file)


def read_password(from_stdin: bool, prompt: str) -> str:
    """Return a password: the first line of stdin, or asked for on the terminal."""
    if not from_stdin and not sys.stdin.isatty():
        raise EverfoldError(Kind.INVALID, "no terminal to ask on; use --password-stdin")
    password = sys.stdin.readline().rstrip("\r\n") if from_stdin else getpass.getpass(prompt)
    if not password:
        raise EverfoldError(Kind.INVALID, "the password is empty")
    return password
