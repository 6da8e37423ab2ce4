"""`everfold user`: who may use the cluster."""

from __future__ import annotations

import argparse
import platform

from everfold import config
from everfold.errors import EverfoldError, Kind
from tools import command
from tools.home import Home, api_of
from tools.login import log_in, read_password


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "user",
        run_list,
        summary="add, list, invite and change users",
        description="Administer users; needs an admin's login.",
        example="everfold user list --json",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    adding = command.verb(
        actions,
        "add",
        run_add,
        summary="make a user",
        description="Make a user with a space of their own.",
        example="echo $PASSWORD | everfold user add ann --quota 50G --password-stdin",
    )
    adding.add_argument("username")
    adding.add_argument("--role", choices=("user", "admin"), default="user")
    adding.add_argument("--quota", default="0", help="bytes, or 50G; 0: no limit")

    listing = command.verb(
        actions,
        "list",
        run_list,
        summary="list users",
        description="List all users.",
        example="everfold user list --json",
    )
    listing.add_argument("--json", action="store_true", help="for programs")

    passwd = command.verb(
        actions,
        "passwd",
        run_passwd,
        summary="set a password",
        description="Set a user's password; tokens given for the old one are dead.",
        example="echo $PASSWORD | everfold user passwd ann --password-stdin",
    )
    passwd.add_argument("username")
    for action in (adding, passwd):
        action.add_argument("--password-stdin", action="store_true", help="read it from stdin")
    for action in (adding, listing, passwd, _add_set(actions), _add_invite(actions)):
        action.add_argument("--server", metavar="URL", help="instead of the one logged in at")


def _add_set(actions: command.Verbs) -> argparse.ArgumentParser:
    parser = command.verb(
        actions,
        "set",
        run_set,
        summary="change quota, role or access",
        description="Change what an admin decides of a user. Who is disabled is shut out at once,\n"
        "everywhere. The last admin stays one.",
        example="everfold user set ann --quota 100G\neverfold user set bob --disable",
    )
    parser.add_argument("username")
    parser.add_argument("--quota", help="bytes, or 50G; 0: no limit")
    parser.add_argument("--role", choices=("user", "admin"))
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--disable", dest="disabled", action="store_true", default=None)
    access.add_argument("--enable", dest="disabled", action="store_false")
    return parser


def _add_invite(actions: command.Verbs) -> argparse.ArgumentParser:
    parser = command.verb(
        actions,
        "invite",
        run_invite,
        summary="let somebody register",
        description="Print an invitation, with which one person may register, once.",
        example="everfold user invite --days 7 --email ann@example.org",
    )
    parser.add_argument("--email", default="", help="whose it is; default: whoever has it")
    parser.add_argument("--days", type=int, default=7, help="how long it is good")
    parser.add_argument("--quota", default="0", help="bytes, or 50G; 0: no limit")
    return parser


def run_add(args: argparse.Namespace) -> int:
    """Make a user."""
    quota = _size(args.quota)
    password = read_password(args.password_stdin, f"Password for {args.username}: ")
    with api_of(args) as api:
        api.add_user(args.username, password, args.role, quota)
    command.say(f"Added {args.username}.")
    return command.DONE


def _size(text: str) -> int:
    try:
        return config.parse_size(text)
    except ValueError as err:
        raise EverfoldError(Kind.INVALID, str(err), "--quota") from err


def run_set(args: argparse.Namespace) -> int:
    """Change a user."""
    wanted = {"role": args.role, "disabled": args.disabled}
    wanted["quota"] = None if args.quota is None else _size(args.quota)
    with api_of(args) as api:
        api.change_user(args.username, **{k: v for k, v in wanted.items() if v is not None})
    command.say(f"Changed {args.username}.")
    return command.DONE


def run_invite(args: argparse.Namespace) -> int:
    """Print an invitation."""
    form = {"email": args.email, "expires_in_days": args.days, "quota": _size(args.quota)}
    with api_of(args) as api:
        made = api.call("POST", "/admin/invitations", form)["invitation"]
    print(made["token"])
    return command.DONE


def run_list(args: argparse.Namespace) -> int:
    """List users."""
    with api_of(args) as api:
        users = api.users()
    if args.json:
        command.print_json(users)
        return command.DONE
    rows = [
        (
            user["username"],
            "disabled" if user["disabled"] else user["role"],
            command.size_text(user["used_bytes"]),
            command.size_text(user["quota"]) if user["quota"] else "-",
            command.size_text(user["history_bytes"]),
        )
        for user in users
    ]
    command.print_table(("USER", "ROLE", "USED", "QUOTA", "HISTORY"), rows)
    return command.DONE


def run_passwd(args: argparse.Namespace) -> int:
    """Set a password."""
    password = read_password(args.password_stdin, f"New password of {args.username}: ")
    home = Home()
    login = home.login(args.server)
    with login.api() as api:
        api.set_password(args.username, password)
        if login.username == args.username:  # our own token is dead now
            log_in(home, api, args.username, password, platform.node())
    command.say(f"The password of {args.username} is changed.")
    return command.DONE
