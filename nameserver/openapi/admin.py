"""What admins may do: routes/admin.py."""

from __future__ import annotations

from typing import Final

from nameserver.openapi.schemas import STATUS_FIELDS
from nameserver.openapi.terms import (
    ADMIN,
    COUNT,
    TRUTH,
    Body,
    Json,
    Route,
    maybe,
    obj,
    of,
    one_of,
    ref,
)  # fmt: skip

_GIVEN: Final[Json] = {"type": ["string", "null"], "pattern": "^[^\\u0000]*$"}
_NEEDED: Final[Json] = {"type": "string", "minLength": 1, "pattern": "^[^\\u0000]+$"}
_QUOTA: Final[Json] = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}
_USER: Final = obj(user=ref("User"))
_NEW_USER: Final = Body(
    obj(
        {"email": _GIVEN, "role": maybe(one_of("user", "admin", "")), "quota": _QUOTA},
        username=_NEEDED,
        password=_NEEDED,
    )
)
_SYSTEM: Final = obj(
    **STATUS_FIELDS, users=COUNT, spaces=COUNT, inodes=COUNT, live_bytes=COUNT, commits=COUNT,
    mounts=COUNT,
)  # fmt: skip
_FSCK: Final = obj(
    errors=of(ref("Finding")), warnings=of(ref("Finding")), spaces=COUNT, inodes=COUNT,
    entries=COUNT, extents=COUNT, blocks=COUNT, replicas=COUNT,
)  # fmt: skip


def _admin(method: str, path: str, about: str, status: int, told: Json, body: Body | None = None,
           *errors: int) -> Route:  # fmt: skip
    return Route(method, path, about, {status: told}, body, (), errors, ADMIN)


ROUTES: Final = (
    Route("get", "/status", "Tell how the cluster is", {200: obj(**STATUS_FIELDS)}),
    _admin("get", "/admin/system", "Tell how all of it is", 200, _SYSTEM),
    _admin("get", "/admin/system/nodes", "List the datanodes", 200, of(ref("Node"))),
    _admin("post", "/admin/system/fail-node/{node}", "Declare a node dead", 200, ref("Node")),
    _admin("post", "/admin/system/repair-node/{node}", "Take a node back", 200, ref("Node")),
    _admin("post", "/admin/fsck", "Check everything", 200, _FSCK),
    _admin("post", "/register", "Make a user", 201, _USER, _NEW_USER, 409),
    _admin("post", "/admin/users", "Make a user", 201, _USER, _NEW_USER, 409),
    _admin("get", "/admin/users", "List the users", 200, obj(users=of(ref("User")))),
    _admin("get", "/api/admin/users", "List the users", 200, obj(users=of(ref("User")))),
    *(
        _admin("put", f"{top}/admin/users/{{name}}/password", "Give a user another password", 200,
               _USER, Body(obj(password=_NEEDED)))
        for top in ("", "/api")
    ),
    _admin("put", "/api/admin/users/{name}/disabled", "Keep a user out, or let one in again", 200,
           _USER, Body(obj({"disabled": TRUTH}))),
)  # fmt: skip
