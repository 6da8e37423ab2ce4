"""`everfold team`: folders that several people use."""

from __future__ import annotations

import argparse

from everfold.api import Api, Json
from everfold.errors import EverfoldError, Kind
from tools import command
from tools.home import api_of

_READ, _WRITE = "read", "write"


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "team",
        run_list,
        summary="share a folder with other people",
        description="Folders that several people use. A team folder appears in the folder of\n"
        "everybody who is in it, and in their mounts, within seconds.",
        example="everfold team create Plans bob=write eve=read",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = command.verb(
        actions,
        "list",
        run_list,
        summary="list your team folders",
        description="List the team folders that you are in, and who else is.",
        example="everfold team list --json",
    )
    listing.add_argument("--json", action="store_true", help="for programs")
    creating = command.verb(
        actions,
        "create",
        run_create,
        summary="make a team folder, or share one of yours",
        description="Share a folder of yours with others. One that is there keeps its files with\n"
        "all their versions; its bytes are copied to a space of its own, which takes a while.",
        example="everfold team create Plans bob=write eve=read",
    )
    creating.add_argument("path", help="in your folder, such as work/Plans")
    creating.add_argument("members", nargs="*", metavar="USER=read|write")
    joining = command.verb(
        actions,
        "add",
        run_add,
        summary="let people in, or change what they may do",
        description="Let people into a team folder of yours, or give them another permission.",
        example="everfold team add Plans bob=write",
    )
    joining.add_argument("team", help="its number, name or path")
    joining.add_argument("members", nargs="+", metavar="USER=read|write")
    leaving = command.verb(
        actions,
        "remove",
        run_remove,
        summary="shut people out, leave, or delete a team folder",
        description="With users: shut them out of a team folder of yours. Without: leave it, or,\n"
        "when it is yours, delete it: it goes to your trash as it is.",
        example="everfold team remove Plans bob",
    )
    leaving.add_argument("team", help="its number, name or path")
    leaving.add_argument("users", nargs="*", metavar="USER")
    for action in (listing, creating, joining, leaving):
        action.add_argument("--server", metavar="URL", help="instead of the one logged in at")


def _members(words: list[str]) -> list[tuple[str, str]]:
    """Read ``USER=read|write``; a name alone may read."""
    found = []
    for word in words:
        name, _, permission = word.partition("=")
        if not name or permission not in ("", _READ, _WRITE):
            raise EverfoldError(Kind.INVALID, "say USER=read or USER=write", word)
        found.append((name, permission or _READ))
    return found


def _find(api: Api, named: str) -> Json:
    """Return one's team folder by its number, path or name; NOT_FOUND."""
    teams = api.teams()
    for key in ("id", "path", "name"):
        for team in teams:
            if str(team[key]).strip("/") == named.strip("/"):
                return team
    raise EverfoldError(Kind.NOT_FOUND, "you are in no such team folder", named)


def run_list(args: argparse.Namespace) -> int:
    """List team folders."""
    with api_of(args) as api:
        teams = api.teams()
    if args.json:
        command.print_json(teams)
        return command.DONE
    rows = [
        (
            team["id"],
            team["path"],
            team["owner"],
            team["permission"],
            " ".join(f"{each['username']}={each['permission']}" for each in team["members"]),
        )
        for team in teams
    ]
    command.print_table(("ID", "PATH", "OWNER", "YOU MAY", "MEMBERS"), rows)
    return command.DONE


def run_create(args: argparse.Namespace) -> int:
    """Make a team folder."""
    members = _members(args.members)
    with api_of(args) as api:
        team = api.create_team(args.path, members)
    command.say(f"{team['path']} is team folder {team['id']}.")
    return command.DONE


def run_add(args: argparse.Namespace) -> int:
    """Let people in."""
    members = _members(args.members)
    with api_of(args) as api:
        team = _find(api, args.team)
        for name, permission in members:
            api.set_team_member(team["id"], name, permission)
            command.say(f"{name} may {permission} {team['name']}.")
    return command.DONE


def run_remove(args: argparse.Namespace) -> int:
    """Shut people out, leave or delete."""
    with api_of(args) as api:
        team = _find(api, args.team)
        for name in args.users:
            api.remove_team_member(team["id"], name)
            command.say(f"{name} is out of {team['name']}.")
        if args.users:
            return command.DONE
        if team["permission"] == "owner":
            api.delete_team(team["id"])
            command.say(f"{team['name']} is deleted; it lies in your trash.")
        else:
            api.remove_team_member(team["id"], str(api.profile()["username"]))
            command.say(f"You left {team['name']}.")
    return command.DONE
