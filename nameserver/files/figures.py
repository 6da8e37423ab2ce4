"""What somebody's files amount to: counts, bytes, types, days, what is saved by sharing blocks.

Read from the rows of the space, in one transaction; nothing is counted along that could drift.
Looking through all names is what costs (3 us each), so the last answer of a space is kept for as
long as nothing is committed there.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from everfold.model import Seq, SpaceId
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.files.browse import View
from nameserver.files.items import iso

Json = dict[str, Any]
DAYS_MAX: Final = 366
_DAY_NS: Final = 86_400_000_000_000
_KEPT: Final = 64  # spaces
_TYPES_SHOWN: Final = 50
_DEDUP: Final = ("named_bytes", "stored_bytes", "saved_bytes", "blocks")
_SUMS: Final = (
    "total_bytes", "history_bytes", "total_files", "total_folders", "total_others",
    "total_versions",
)  # fmt: skip

_SPACE: Final = (
    "SELECT s.live_bytes, s.history_bytes, a.quota, s.seq,"
    " (SELECT CAST(SUM(o.live_bytes) AS BIGINT) FROM space o WHERE o.owner_id = a.id)"
    " FROM space s JOIN account a ON a.id = s.owner_id WHERE s.id = ?"
)
_VERSIONS: Final = "SELECT count(*) FROM version WHERE space_id = ?"
_SAVED: Final = (
    "SELECT at_ns / 86400000000000, count(*), CAST(SUM(size) AS BIGINT) FROM version"
    " WHERE space_id = ? AND at_ns >= ? GROUP BY 1 ORDER BY 1"
)
_NAMED: Final = "SELECT CAST(COALESCE(SUM(length), 0) AS BIGINT) FROM extent WHERE space_id = ?"
_STORED: Final = (
    "SELECT count(*), CAST(COALESCE(SUM(b.size), 0) AS BIGINT) FROM block b WHERE b.space_id = ?"
    " AND EXISTS (SELECT 1 FROM extent e WHERE e.space_id = b.space_id AND e.block = b.block)"
)


class Figures:
    """Answers of all spaces. Thread-safe."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()  # guards _known
        self._known: OrderedDict[SpaceId, tuple[Seq, int, int, Json]] = OrderedDict()

    def usage(self, space: SpaceId) -> Json:
        """Return what a space and its owner use, without a look at single files."""
        with self._db.read() as cx:
            return _usage(cx, space)

    def of(self, space: SpaceId, days: int) -> Json:
        """Return the figures of a space, its last `days` days one by one."""
        today = self._clock.time_ns() // _DAY_NS
        with self._db.read() as cx:
            view = View(cx, space)
            with self._lock:
                known = self._known.get(space)
            if known is not None and known[:3] == (view.seq, days, today):
                return known[3]
            found = {**_usage(cx, space), **_contents(view), **_history(cx, space, today, days)}
        with self._lock:
            self._known[space] = (view.seq, days, today, found)
            self._known.move_to_end(space)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found


def together(home: Json, teams: Sequence[Json]) -> Json:
    """Return the figures of a home and of the team folders that are seen from it, as one.

    The quota stays the home's owner's; `as_of` the home's commit.
    """
    every = [home, *teams]
    types: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    days: dict[str, Json] = {}
    for each in every:
        for kind in each["by_type"]:
            types[kind["mime_type"]] += kind["count"]
            sizes[kind["mime_type"]] += kind["bytes"]
        for day in each["over_time"]:
            known = days.setdefault(day["day"], {"day": day["day"], "versions": 0, "bytes": 0})
            known["versions"] += day["versions"]
            known["bytes"] += day["bytes"]
    largest = [file for each in every for file in each["largest"]]
    dedup = {key: sum(each["dedup"][key] for each in every) for key in _DEDUP}
    sums = {key: sum(each[key] for each in every) for key in _SUMS}
    return {
        **home,
        **sums,
        "history_share": _share(sums["history_bytes"], sums["history_bytes"] + sums["total_bytes"]),
        "by_type": [
            {"mime_type": kind, "count": types[kind], "bytes": size}
            for kind, size in sizes.most_common(_TYPES_SHOWN)
        ],
        "largest": sorted(largest, key=lambda file: file["size"], reverse=True)[:10],
        "over_time": list(days.values()),
        "dedup": {**dedup, "saved_share": _share(dedup["saved_bytes"], dedup["named_bytes"])},
    }


def _usage(cx: Cx, space: SpaceId) -> Json:
    row = cx.one(_SPACE, space) or (0, 0, 0, 0, 0)
    live, history, quota, seq, owned = (int(value or 0) for value in row)
    return {
        "total_bytes": live,
        "history_bytes": history,
        "history_share": _share(history, live + history),
        "quota": quota,
        "quota_used": owned,
        "quota_left": max(0, quota - owned) if quota else None,
        "as_of": seq,
    }


def _contents(view: View) -> Json:
    """Look through all names; a file with several names counts once."""
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    largest: list[tuple[int, str]] = []
    for item in view.everything():
        if item.ino in seen:
            continue
        seen.add(item.ino)
        kinds[item.type] += 1
        if item.is_file:
            kind = item.media_type or ""
            counts[kind] += 1
            sizes[kind] += item.size
            largest.append((item.size, str(item.id)))
            if len(largest) > 1000:
                largest = sorted(largest, reverse=True)[:10]
    return {
        "total_files": kinds["file"],
        "total_folders": kinds["directory"],
        "total_others": kinds["symlink"] + kinds["other"],
        "by_type": [
            {"mime_type": kind, "count": counts[kind], "bytes": size}
            for kind, size in sizes.most_common(_TYPES_SHOWN)
        ],
        "largest": [
            {"file_id": file, "size": size} for size, file in sorted(largest, reverse=True)[:10]
        ],
    }


def _history(cx: Cx, space: SpaceId, today: int, days: int) -> Json:
    first = today - days + 1
    saved = {row[0]: row[1:] for row in cx.all(_SAVED, space, first * _DAY_NS)}
    named = _number(cx, _NAMED, space)
    blocks, stored = cx.one(_STORED, space) or (0, 0)
    return {
        "total_versions": _number(cx, _VERSIONS, space),
        "over_time": [
            {
                "day": (iso(day * _DAY_NS) or "")[:10],
                "versions": int(saved.get(day, (0, 0))[0]),
                "bytes": int(saved.get(day, (0, 0))[1] or 0),
            }
            for day in range(first, today + 1)
        ],
        "dedup": {
            "named_bytes": named,  # by files and their versions
            "stored_bytes": int(stored),  # in blocks, before replication
            "saved_bytes": max(0, named - int(stored)),
            "saved_share": _share(max(0, named - int(stored)), named),
            "blocks": int(blocks),
        },
    }


def _number(cx: Cx, sql: str, space: SpaceId) -> int:
    row = cx.one(sql, space)
    return int(row[0]) if row else 0


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
