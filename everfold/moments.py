"""Moments as people type them: ``-15m``, ``yesterday``, ``2026-11-01``, ``2026-11-01T14.30``.

A day stands for its end: what was last saved on it. Times of day are local time; a colon may
stand for the dot. What lies in the future is the present.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta

_AGO = re.compile(r"^-(\d{1,6})([smhdw])$")
_DAY = re.compile(r"^(\d{4})-(\d\d)-(\d\d)$")
_TIME = re.compile(r"^(\d{4})-(\d\d)-(\d\d)T(\d\d)[.:](\d\d)(?:[.:](\d\d))?(Z?)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse(text: str, now_ns: int) -> int | None:
    """Return the moment in nanoseconds since the epoch, None when `text` names none."""
    ago = _AGO.match(text)
    if ago is not None:
        return now_ns - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000_000
    today = datetime.fromtimestamp(now_ns / 1e9).date()
    if text == "yesterday":
        return min(now_ns, _end_of(today - timedelta(days=1)))
    try:
        if day := _DAY.match(text):
            return min(now_ns, _end_of(date(*(int(part) for part in day.groups()))))
        if at := _TIME.match(text):
            return min(now_ns, _at(at))
    except (ValueError, OverflowError):  # a 13th month, a 25th hour
        return None
    return None


def _end_of(day: date) -> int:
    midnight = datetime.combine(day + timedelta(days=1), time()).astimezone()
    return int(midnight.timestamp()) * 1_000_000_000 - 1


def _at(found: re.Match[str]) -> int:
    year, month, day, hour, minute = (int(found[i]) for i in range(1, 6))
    local = datetime(year, month, day, hour, minute, int(found[6] or 0))
    at = datetime.fromisoformat(local.isoformat() + "+00:00") if found[7] else local.astimezone()
    return int(at.timestamp()) * 1_000_000_000
