"""``/api/teams``: folders that several people use (docs/API.md)."""

from __future__ import annotations

from typing import Final

from flask import Blueprint

from everfold.errors import EverfoldError, Kind
from nameserver.routes.auth import Guard
from nameserver.routes.files import visitor
from nameserver.routes.forms import Json, fields, text
from nameserver.service import Service
from nameserver.spaces import READ

_WRONG: Final = "'members' is a list of {username, permission}"


def blueprint(service: Service, guard: Guard) -> Blueprint:
    """Return the routes of team folders."""
    routes = Blueprint("teams", __name__, url_prefix="/api/teams")
    files, teams = service.files, service.teams

    @routes.get("")
    @guard.login
    def listing() -> Json:
        return {"teams": teams.all(visitor(files, guard))}

    @routes.post("")
    @guard.login
    def create() -> tuple[Json, int]:
        form = fields()
        members = _members(form)
        return {"team": teams.create(visitor(files, guard), text(form, "path"), members)}, 201

    @routes.get("/<team>")
    @guard.login
    def info(team: str) -> Json:
        return {"team": teams.get(visitor(files, guard), team)}

    @routes.delete("/<team>")
    @guard.login
    def delete(team: str) -> Json:
        teams.delete(visitor(files, guard), team)
        return {"deleted": team}

    @routes.put("/<team>/members/<name>")
    @guard.login
    def set_member(team: str, name: str) -> Json:
        permission = text(fields(), "permission", READ)
        return {"team": teams.set_member(visitor(files, guard), team, name, permission)}

    @routes.delete("/<team>/members/<name>")
    @guard.login
    def remove_member(team: str, name: str) -> Json:
        teams.remove_member(visitor(files, guard), team, name)
        return {"removed": name}

    return routes


def _members(form: Json) -> list[tuple[str, str]]:
    listed = form.get("members", [])
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise EverfoldError(Kind.INVALID, _WRONG)
    return [(text(each, "username"), text(each, "permission", READ)) for each in listed]
