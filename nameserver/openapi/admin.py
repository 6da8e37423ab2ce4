"""What admins may do: routes/admin.py."""

from __future__ import annotations

from typing import Final

from nameserver.openapi.schemas import PAGE_FIELDS, STATUS_FIELDS, USER_FIELDS
from nameserver.openapi.terms import (
    ADMIN,
    ANY,
    COUNT,
    FLAG,
    GIVEN,
    MOMENT,
    NAME,
    PASSWORD,
    TEXT,
    TRUTH,
    Body,
    Json,
    Param,
    Route,
    maybe,
    obj,
    of,
    one_of,
    ref,
)

_QUOTA: Final[Json] = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}
_USER: Final = obj(user=ref("User"))
_NEW_USER: Final = Body(
    obj(
        {"email": GIVEN, "role": maybe(one_of("user", "admin", "")), "quota": _QUOTA},
        username=NAME,
        password=PASSWORD,
    )
)
_SYSTEM: Final = obj(
    **STATUS_FIELDS, users=COUNT, spaces=COUNT, inodes=COUNT, live_bytes=COUNT,
    history_bytes=COUNT, commits=COUNT,    mounts=COUNT,
)  # fmt: skip
_FSCK: Final = obj(
    errors=of(ref("Finding")), warnings=of(ref("Finding")), repaired=of(ref("Finding")),
    spaces=COUNT, inodes=COUNT, entries=COUNT, extents=COUNT, blocks=COUNT, replicas=COUNT,
)  # fmt: skip


_PER_S: Final[Json] = {"type": "number", "minimum": 0}
_LOAD: Final = obj(
    step_s=COUNT,
    series=of(
        obj(
            at=MOMENT, requests_per_s=_PER_S, bytes_in_per_s=_PER_S, bytes_out_per_s=_PER_S,
            http_bytes_in_per_s=_PER_S, http_bytes_out_per_s=_PER_S, p50_ms=_PER_S, p99_ms=_PER_S,
        )
    ),
)  # fmt: skip
_AUDIT: Final = obj(
    audit=of(
        obj(
            id=COUNT, at=MOMENT, author=TEXT, action=TEXT, subject=TEXT, detail=TEXT, address=TEXT
        )
    ),
    **PAGE_FIELDS,
)  # fmt: skip
_INVITED: Final[Json] = {
    "id": TEXT, "invited_by": TEXT, "email": maybe(TEXT), "role": USER_FIELDS["role"],
    "quota": COUNT, "created_at": MOMENT, "expires_at": MOMENT, "used_at": MOMENT,
    "used_by": maybe(TEXT),
}  # fmt: skip


def _admin(
    method: str,
    path: str,
    about: str,
    told: Json,
    body: Body | None = None,
    params: tuple[Param, ...] = (),
    status: int = 200,
    errors: tuple[int, ...] = (),
) -> Route:
    return Route(method, path, about, {status: told}, body, params, errors, ADMIN)


_NODES: Final = (
    Route("get", "/status", "Tell how the cluster is", {200: obj(**STATUS_FIELDS)}),
    _admin("get", "/admin/system", "Tell how all of it is", _SYSTEM),
    _admin("get", "/admin/system/nodes", "List the datanodes", of(ref("Node"))),
    _admin("post", "/admin/system/fail-node/{node}", "Declare a node dead", ref("Node")),
    _admin("post", "/admin/system/repair-node/{node}", "Take a node back", ref("Node")),
    _admin(
        "post", "/admin/system/drain-node/{node}", "Copy what a node has to the others",
        ref("Node"), errors=(409,),
    ),
    _admin(
        "post", "/admin/system/remove-node/{node}", "Take a node out of the cluster",
        obj(removed=TEXT, lacking=COUNT, lost=COUNT),
        Body(obj({"force": TRUTH}), is_required=False), (Param("force", FLAG),), errors=(409,),
    ),
    _admin(
        "get", "/admin/system/load", "Tell how busy the cluster was", _LOAD, None,
        (Param("minutes", {"type": "integer", "minimum": 1, "maximum": 24 * 60}),),
    ),
    _admin(
        "get", "/admin/audit", "Tell who did what", _AUDIT, None,
        (
            Param("page", {"type": "integer", "minimum": 1, "maximum": 1 << 31}),
            Param("per_page", {"type": "integer", "minimum": 1, "maximum": 1000}),
            Param("author", ANY), Param("action", ANY),
        ),
    ),
    _admin(
        "post", "/admin/fsck", "Check everything", _FSCK,
        Body(obj({"repair": TRUTH}), is_required=False), (Param("repair", FLAG),),
    ),
)  # fmt: skip
_USERS: Final = (
    _admin("post", "/register", "Make a user", _USER, _NEW_USER, (), 201, (409,)),
    _admin("post", "/admin/users", "Make a user", _USER, _NEW_USER, (), 201, (409,)),
    *(
        _admin("get", f"{top}/admin/users", "List the users", obj(users=of(ref("User"))))
        for top in ("", "/api")
    ),
    _admin("get", "/admin/users/{name}", "Tell of a user", _USER),
    _admin(
        "put", "/admin/users/{name}", "Change quota or role, or keep a user out", _USER,
        Body({
            **obj({"quota": _QUOTA, "role": USER_FIELDS["role"], "disabled": TRUTH}),
            "anyOf": [{"required": [name]} for name in ("quota", "role", "disabled")],
        }),
    ),
    *(
        _admin(
            "put", f"{top}/admin/users/{{name}}/password", "Give a user another password", _USER,
            Body(obj(password=PASSWORD)),
        )
        for top in ("", "/api")
    ),
    _admin(
        "put", "/api/admin/users/{name}/disabled", "Keep a user out, or let one in again", _USER,
        Body(obj({"disabled": TRUTH})),
    ),
    _admin(
        "post", "/admin/invitations", "Let one person register",
        obj(invitation=obj(**_INVITED, token=TEXT)),
        Body(
            obj({
                "email": GIVEN, "role": maybe(one_of("user", "admin", "")), "quota": _QUOTA,
                "expires_in_days": {"type": "integer", "minimum": 0, "maximum": 366},
            }),
            is_required=False,
        ),
        (), 201, (409,),
    ),
    _admin(
        "get", "/admin/invitations", "List the invitations",
        obj(invitations=of(obj(**_INVITED))),
    ),
    _admin(
        "delete", "/admin/invitations/{invitation}", "Withdraw an invitation",
        obj(withdrawn=TEXT),
    ),
)  # fmt: skip
ROUTES: Final = (*_NODES, *_USERS)
