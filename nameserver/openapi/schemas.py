"""What the API tells of each kind of thing, and the error that every failure is."""

from __future__ import annotations

from typing import Final

from everfold.errors import Kind
from nameserver.openapi.terms import (
    COUNT,
    MOMENT,
    NUMBER,
    SECONDS,
    SHARE_OF,
    TEXT,
    TRUTH,
    Json,
    maybe,
    obj,
    of,
    one_of,
    ref,
)

FILE_FIELDS: Final[Json] = {
    "id": TEXT,
    "file_id": TEXT,
    "name": TEXT,
    "filename": TEXT,
    "type": one_of("file", "directory", "symlink", "other"),
    "size": COUNT,
    "mime_type": maybe(TEXT),
    "version": COUNT,
    "etag": maybe(TEXT),
    "created_at": MOMENT,
    "modified_at": MOMENT,
    "deleted_at": MOMENT,
}
_MAY_HAVE: Final[Json] = {
    "raw_name": {**TEXT, "description": "the name, percent-encoded, when it is not UTF-8"},
    "team_id": {**NUMBER, "description": "of what is in a team folder"},
    "permission": one_of("owner", "write", "read"),
}
PAGE_FIELDS: Final[Json] = {
    "total": COUNT,
    "page": COUNT,
    "pages": COUNT,
    "per_page": COUNT,
    "has_next": TRUTH,
    "has_prev": TRUTH,
}
USAGE_FIELDS: Final[Json] = {
    "total_bytes": COUNT,
    "history_bytes": COUNT,
    "history_share": SHARE_OF,
    "quota": {**COUNT, "description": "0: none"},
    "quota_used": COUNT,
    "quota_left": maybe(COUNT),
    "as_of": COUNT,
}
USER_FIELDS: Final[Json] = {
    "id": COUNT,
    "username": TEXT,
    "email": maybe(TEXT),
    "role": one_of("user", "admin"),
    "quota": {**COUNT, "description": "0: none"},
    "used_bytes": COUNT,
    "history_bytes": COUNT,
    "created_at": SECONDS,
    "disabled": TRUTH,
}
NODE_FIELDS: Final[Json] = {
    "id": TEXT,
    "url": TEXT,
    "state": one_of("up", "suspect", "down", "draining", "failed", "removed"),
    "used": COUNT,
    "capacity": COUNT,
    "blocks": COUNT,
    "zone": TEXT,
    "free": COUNT,
    "silent_s": {"type": "number"},
    "to_copy": {**COUNT, "description": "copies that it still gets, or that others need of it"},
}
STATUS_FIELDS: Final[Json] = {
    "blocks": COUNT,
    "replicas": COUNT,
    "min_replicas": COUNT,
    "under_replicated": COUNT,
    "missing": COUNT,
    "corrupt": COUNT,
    "repairing": COUNT,
    "nodes": of(ref("Node")),
    "nodes_up": COUNT,
    "space_used": COUNT,
    "space_free": COUNT,
    "space_capacity": COUNT,
}
SHARE_FIELDS: Final[Json] = {
    "id": TEXT,
    "share_token": TEXT,
    "share_url": TEXT,
    "file_id": TEXT,
    "permission": one_of("read", "write", "admin"),
    "created_at": MOMENT,
    "expires_at": MOMENT,
    "has_password": TRUTH,
    "downloads": COUNT,
}
DEVICE_FIELDS: Final[Json] = {
    "id": TEXT,
    "device_id": TEXT,
    "name": TEXT,
    "type": TEXT,
    "created_at": SECONDS,
    "last_seen": SECONDS,
    "revoked": TRUTH,
    "parent_id": {**maybe(TEXT), "description": "the device that it came of, and ends with"},
}
PLACE_FIELDS: Final[Json] = {
    "mount_id": TEXT,
    "active": TRUTH,
    "position": COUNT,
    "behind": COUNT,
    "space_id": COUNT,
}
_REPLICAS: Final = obj(
    block_count=COUNT,
    nodes=of(TEXT),
    blocks=of(
        obj(
            block=TEXT,
            offset=COUNT,
            length=COUNT,
            copies=COUNT,
            replicas=of(obj(node=TEXT, state=NODE_FIELDS["state"], bad=TRUTH)),
        )
    ),
)
_IN_TEAM: Final = obj(
    team_id=NUMBER,
    path=TEXT,
    total_bytes=COUNT,
    history_bytes=COUNT,
    total_files=COUNT,
    total_versions=COUNT,
)
_STATS: Final = obj(
    {"teams": of(_IN_TEAM)},
    **USAGE_FIELDS,
    total_files=COUNT,
    total_folders=COUNT,
    total_others=COUNT,
    total_versions=COUNT,
    by_type=of(obj(mime_type=TEXT, count=COUNT, bytes=COUNT)),
    largest=of(obj(file_id=TEXT, size=COUNT)),
    over_time=of(obj(day=TEXT, versions=COUNT, bytes=COUNT)),
    dedup=obj(
        named_bytes=COUNT,
        stored_bytes=COUNT,
        saved_bytes=COUNT,
        saved_share=SHARE_OF,
        blocks=COUNT,
    ),
)
_EVENT: Final = obj(
    {"mime_type": maybe(TEXT), "old_path": maybe(TEXT)},
    id=TEXT,
    seq=COUNT,
    timestamp=MOMENT,
    user=TEXT,
    device=TEXT,
    mount=TEXT,
    event_type=one_of(
        *(
            f"{what}_{happened}"
            for what in ("file", "folder")
            for happened in ("uploaded", "created", "moved", "deleted", "changed")
        )
    ),
    file_id=TEXT,
    type=one_of("file", "directory"),
    name=maybe(TEXT),
    path=maybe(TEXT),
    size=COUNT,
)
_VERSION: Final = obj(
    version=COUNT,
    size=COUNT,
    created_at=MOMENT,
    modified_at=MOMENT,
    author=TEXT,
    device=TEXT,
    current=TRUTH,
    open=TRUTH,
    conflict=TRUTH,
)
_UPLOAD: Final = obj(
    id=TEXT,
    path=TEXT,
    size=COUNT,
    offset=COUNT,
    complete=TRUTH,
    created_at=MOMENT,
    expires_at=MOMENT,
)
_FINDING: Final = obj(kind=TEXT, message=TEXT, subject=TEXT)

_TEAM: Final = obj(
    id=NUMBER,
    name=TEXT,
    owner=TEXT,
    permission=one_of("owner", "write", "read"),
    path={**maybe(TEXT), "description": "where it is in one's folder"},
    file_id=TEXT,
    members=of(obj(username=TEXT, permission=one_of("owner", "write", "read"))),
)

SCHEMAS: Final[Json] = {
    "Error": obj(
        error=obj(kind=one_of(*sorted(kind.value for kind in Kind)), message=TEXT, subject=TEXT)
    ),
    "File": obj(_MAY_HAVE, **FILE_FIELDS, path=TEXT, parent_id=TEXT),
    "SharedFile": obj(_MAY_HAVE, **FILE_FIELDS),
    "User": obj(**USER_FIELDS),
    "Device": obj(**DEVICE_FIELDS),
    "Version": _VERSION,
    "Share": obj(**SHARE_FIELDS),
    "Upload": _UPLOAD,
    "Stats": _STATS,
    "Event": _EVENT,
    "Node": obj(**NODE_FIELDS),
    "Team": _TEAM,
    "Replicas": _REPLICAS,
    "Finding": _FINDING,
}
