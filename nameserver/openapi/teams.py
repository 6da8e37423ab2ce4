"""``/api/teams``: routes/teams.py."""

from __future__ import annotations

from typing import Final

from nameserver.openapi.files import DEVICE
from nameserver.openapi.terms import NEEDED, TEXT, Body, Route, maybe, obj, of, one_of, ref

_PERMISSION: Final = maybe(one_of("read", "write", ""))
_TEAM: Final = obj(team=ref("Team"))
_MEMBERS: Final = of(obj({"permission": _PERMISSION}, username=NEEDED))

ROUTES: Final = (
    Route(
        "get", "/api/teams", "List the team folders that one is in",
        {200: obj(teams=of(ref("Team")))}, None, (DEVICE,), (404,),
    ),
    Route(
        "post", "/api/teams", "Make a folder that several people use",
        {201: _TEAM}, Body(obj({"members": _MEMBERS}, path=NEEDED)), (DEVICE,), (404, 409, 507),
    ),
    Route("get", "/api/teams/{team}", "Tell of a team folder", {200: _TEAM}, None, (DEVICE,)),
    Route(
        "delete", "/api/teams/{team}", "End a team folder",
        {200: obj(deleted=TEXT)}, None, (DEVICE,), (409,),
    ),
    Route(
        "put", "/api/teams/{team}/members/{name}", "Let somebody in, or change what they may do",
        {200: _TEAM}, Body(obj({"permission": _PERMISSION})), (DEVICE,), (409, 507),
    ),
    Route(
        "delete", "/api/teams/{team}/members/{name}", "Remove a member; oneself: leave",
        {200: obj(removed=TEXT)}, None, (DEVICE,), (409,),
    ),
)  # fmt: skip
