"""How busy the cluster is and was: a row of the database for each process and ten seconds.

Steps begin at the same moments everywhere, and counts of durations add up, so any process answers
for all of them, also after a restart. The rows of a day are kept. A process that answered nobody in
a step writes nothing; one whose database is away keeps its rows until it is back.

Requests that wait by their nature (feeds, events) and those of the cluster itself (beats, health)
are not in these figures, so that a cluster at rest writes nothing; `metrics` has them.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from typing import Any, Final, NamedTuple

from everfold import durations, wire
from everfold.durations import BUCKETS, Durations
from everfold.errors import EverfoldError
from everfold.exchange import Request
from everfold.services import Clock
from everfold.traffic import Traffic
from nameserver.db import Database
from nameserver.files.items import iso

STEP_S: Final = 10
POINTS_MAX: Final = 720  # in one answer; of a longer time, several steps are one point
_KEPT_S: Final = 24 * 3600
_PRUNE_S: Final = 600
_UNWRITTEN: Final = 360  # steps: an hour without a database
_APART: Final = frozenset({"feed", "events", "beat", "health"})
_KINDS: Final = {
    "/v1/feed": "feed",
    "/v1/heartbeat": "beat",
    "/v1/commit": "commit",
    "/v1/session": "session",
    "/v1/bye": "session",
    "/v1/lease": "lease",
    **dict.fromkeys(("/v1/plan", "/v1/locate", "/v1/report-bad"), "blocks"),
    **dict.fromkeys((f"/v1/{verb}-lock" for verb in ("set", "test")), "locks"),
    **dict.fromkeys((f"/v1/{verb}-locks" for verb in ("drop", "take", "give")), "locks"),
    **dict.fromkeys(("/healthz", "/readyz", "/metrics"), "health"),
    **dict.fromkeys(("/login", "/register"), "accounts"),
    "/api/sync/events": "events",
    "/": "page",
}
_UNDER: Final = (
    ("/v1/", "names"),
    ("/api/files", "files"),
    ("/api/auth", "accounts"),
    ("/api/teams", "teams"),
    ("/api/sync", "sync"),
    ("/socket.io", "events"),
    ("/static", "page"),
    ("/s/", "page"),
    ("/admin", "admin"),
    ("/api/admin", "admin"),
    ("/status", "admin"),
    ("/upload", "files"),
    ("/download", "files"),
    ("/files", "files"),
    ("/storage", "files"),
)
_CALLS: Final = {f"/v1/{v}": _KINDS.get(f"/v1/{v}", _UNDER[0][1]) for v in wire.CALLS}
Json = dict[str, Any]

_log = logging.getLogger(__name__)


def direct_kind(request: Request) -> str | None:
    """Return what kind of call of a mount or a node this is; None for all else."""
    path = request.path
    return _CALLS.get(path) or (_UNDER[0][1] if path.startswith(_UNDER[0][0]) else None)


def kind_of(method: str, path: str) -> str:
    """Return what kind of request this is; one of a few."""
    kind = _KINDS.get(path)
    return kind or next((kind for prefix, kind in _UNDER if path.startswith(prefix)), "other")


class _Counts(NamedTuple):
    requests: int
    bytes_in: int
    bytes_out: int
    stored: int
    fetched: int
    buckets: list[int]


class Load:
    """Counts, writes and answers. `start` runs it on a thread of its own; tests call `tick`."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self.traffic = Traffic(kind_of)
        self._db = db
        self._clock = clock
        self.process = secrets.token_hex(6)
        self._lock = threading.Lock()  # guards _stored, _fetched
        self._stored = self._fetched = 0  # bytes, as datanodes tell
        self._before = _Counts(0, 0, 0, 0, 0, [0] * BUCKETS)
        self._unwritten: deque[tuple[Any, ...]] = deque(maxlen=_UNWRITTEN)
        self._pruned_s = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None

    def moved(self, stored: int, fetched: int) -> None:
        """Add bytes that a datanode took and gave since its last beat."""
        with self._lock:
            self._stored += stored
            self._fetched += fetched

    def _run(self) -> None:
        while not self._ended.wait(STEP_S - self._clock.time_ns() / 1e9 % STEP_S):
            try:
                self.tick()
            except EverfoldError as err:
                _log.warning("the load is not written down yet: %s", err)
            except Exception:  # noqa: BLE001  # a defect must not end it; it is logged
                _log.exception("counting the load failed")
        self._db.close()

    def tick(self) -> None:
        """End the step that is nearly over, or just was: write what it counted."""
        now_s = self._clock.time_ns() // 1_000_000_000
        at_s = (now_s + STEP_S // 2) // STEP_S * STEP_S - STEP_S
        counts = self._counts()
        step = _less(counts, self._before)
        self._before = counts
        if any(step[:5]):
            packed = durations.pack(step.buckets)
            self._unwritten.append((at_s, self.process, *step[:5], packed))
        if not self._unwritten and now_s - self._pruned_s < _PRUNE_S:
            return
        with self._db.write(is_durable=False) as cx:
            cx.many(
                "INSERT INTO load (at_s, process, requests, bytes_in, bytes_out, stored, fetched,"
                " durations) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                list(self._unwritten),
            )
            if now_s - self._pruned_s >= _PRUNE_S:
                cx.run("DELETE FROM load WHERE at_s < ?", now_s - _KEPT_S)
                self._pruned_s = now_s
        self._unwritten.clear()

    def _counts(self) -> _Counts:
        buckets = [0] * BUCKETS
        bytes_in = bytes_out = 0
        for kind, course in list(self.traffic.courses.items()):
            if kind in _APART:
                continue
            buckets = [a + b for a, b in zip(buckets, course.durations.buckets, strict=True)]
            bytes_in += course.bytes_in
            bytes_out += course.bytes_out
        with self._lock:
            stored, fetched = self._stored, self._fetched
        return _Counts(sum(buckets), bytes_in, bytes_out, stored, fetched, buckets)

    # ------------------------------------------------------------ answering

    def series(self, minutes: int) -> Json:
        """Return the load of the last minutes, step by step, up to the last whole step.

        `bytes_in_per_s` and `bytes_out_per_s` are what datanodes took and gave, whoever asked
        and every copy counted; `http_…` what passed through the nameservers.
        """
        steps = minutes * 60 // STEP_S
        joined = -(-steps // POINTS_MAX)  # steps in a point
        width = joined * STEP_S
        ends = (self._clock.time_ns() // 1_000_000_000) // width * width
        begins = ends - steps // joined * width
        points: dict[int, _Counts] = {}
        with self._db.read() as cx:
            rows = cx.all(
                "SELECT at_s, requests, bytes_in, bytes_out, stored, fetched, durations FROM load"
                " WHERE at_s >= ? AND at_s < ? ORDER BY at_s",
                begins,
                ends,
            )
        for at_s, *figures, packed in rows:
            at = at_s // width * width
            known = points.get(at) or _Counts(0, 0, 0, 0, 0, [0] * BUCKETS)
            durations.unpack_into(known.buckets, bytes(packed))
            points[at] = _joined(known, figures)
        told = [_point(at, points.get(at), width) for at in range(begins, ends, width)]
        return {"step_s": width, "series": told}


def _less(after: _Counts, before: _Counts) -> _Counts:
    return _Counts(
        after.requests - before.requests,
        after.bytes_in - before.bytes_in,
        after.bytes_out - before.bytes_out,
        after.stored - before.stored,
        after.fetched - before.fetched,
        [a - b for a, b in zip(after.buckets, before.buckets, strict=True)],
    )


def _joined(known: _Counts, row: list[int]) -> _Counts:
    requests, bytes_in, bytes_out, stored, fetched = row
    return _Counts(
        known.requests + requests,
        known.bytes_in + bytes_in,
        known.bytes_out + bytes_out,
        known.stored + stored,
        known.fetched + fetched,
        known.buckets,
    )


def _point(at_s: int, counts: _Counts | None, width: int) -> Json:
    told: Json = {"at": iso(at_s * 1_000_000_000)}
    if counts is None:
        counts = _Counts(0, 0, 0, 0, 0, [])
    spent = Durations(counts.buckets)
    for name, count in (
        ("requests", counts.requests),
        ("bytes_in", counts.stored),
        ("bytes_out", counts.fetched),
        ("http_bytes_in", counts.bytes_in),
        ("http_bytes_out", counts.bytes_out),
    ):
        told[f"{name}_per_s"] = round(count / width, 2)
    told["p50_ms"] = round(spent.percentile_ns(0.5) / 1e6, 3)
    told["p99_ms"] = round(spent.percentile_ns(0.99) / 1e6, 3)
    return told
