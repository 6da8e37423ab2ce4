"""What a user may still store: the quota of the account, less the live bytes of all its spaces."""

from __future__ import annotations

from typing import Final

from everfold.model import SpaceId
from nameserver.db import Cx

_OWNED: Final = "SELECT CAST(SUM(live_bytes) AS BIGINT) FROM space WHERE owner_id = ?"
_OWNER: Final = (
    "SELECT a.quota, s.owner_id FROM space s JOIN account a ON a.id = s.owner_id WHERE s.id = ?"
)


def left(cx: Cx, quota: int, owner: int) -> int | None:
    """Return the bytes that an owner with this quota may still store, None without a quota.

    Negative where the quota was made smaller than what is there.
    """
    if not quota:
        return None
    owned = cx.one(_OWNED, owner)
    return quota - (owned[0] or 0 if owned else 0)


def left_in(cx: Cx, space: SpaceId) -> int | None:
    """Return what may still be stored in a space, None without a quota (or such a space)."""
    row = cx.one(_OWNER, space)
    return None if row is None else left(cx, *row)
