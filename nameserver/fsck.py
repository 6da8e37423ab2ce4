"""Is everything as it must be? Walks tree, extents and replica map, and asks the nodes.

Reads only; what it makes the nodes do is to list what they have, and it is the ordinary
reconciliation of those lists that sets the map right. An answer is of one moment: everything
about the tree is read in one transaction. Told to repair, it writes down afterwards what
follows from other rows: the sums of what spaces use. Nothing else is ever changed.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from everfold.model import NodeId, NodeState, SpaceId
from everfold.services import Clock
from nameserver import tasks, usage
from nameserver.audit import note
from nameserver.beats import DRIFT
from nameserver.db import Cx, Database
from nameserver.nodes import LIVE, NodeBook
from nameserver.policy import Policy

Json = dict[str, Any]
SHOWN = 50  # errors of one kind that are told one by one
_PAUSE_S = 0.1


class _Check(NamedTuple):
    kind: str
    message: str
    sql: str  # its columns are shown


_LIVE_INODE = "JOIN inode i ON i.space_id = {0}.space_id AND i.ino = {0}.{1} AND i.died IS NULL"

CHECKS = (
    _Check(
        "dangling_entry",
        "a name leads to nothing (space, directory, name, inode)",
        "SELECT e.space_id, e.parent, e.name, e.ino FROM entry e"
        " LEFT " + _LIVE_INODE.format("e", "ino") + " WHERE e.died IS NULL AND i.ino IS NULL",
    ),
    _Check(
        "lost_parent",
        "a name is in something that is no directory (space, directory, name)",
        "SELECT e.space_id, e.parent, e.name FROM entry e LEFT "
        + _LIVE_INODE.format("e", "parent")
        + " WHERE e.died IS NULL AND (i.ino IS NULL OR (i.mode & 61440) <> 16384)",
    ),
    _Check(
        "orphan_inode",
        "an inode has no name (space, inode)",
        "SELECT i.space_id, i.ino FROM inode i WHERE i.died IS NULL AND i.ino <> 1"
        " AND NOT EXISTS (SELECT 1 FROM entry e INDEXED BY entry_ino WHERE e.space_id = i.space_id"
        " AND e.ino = i.ino AND e.died IS NULL)"
        # a conflict that never was current keeps its bytes in an inode that no name leads to
        " AND (i.space_id, i.ino) NOT IN"
        " (SELECT space_id, content_ino FROM version WHERE content_ino <> ino)",
    ),
    _Check(
        "wrong_nlink",
        "the number of names is not the link count (space, inode, count, names)",
        "SELECT i.space_id, i.ino, i.nlink, count(e.ino) FROM inode i"
        " JOIN entry e INDEXED BY entry_ino"
        " ON e.space_id = i.space_id AND e.ino = i.ino AND e.died IS NULL"
        " WHERE i.died IS NULL AND (i.mode & 61440) <> 16384"
        " GROUP BY i.space_id, i.ino, i.nlink HAVING count(e.ino) <> i.nlink",
    ),
    _Check(
        "many_parents",
        "a directory has several names (space, inode, names)",
        "SELECT i.space_id, i.ino, count(*) FROM inode i"
        " JOIN entry e INDEXED BY entry_ino"
        " ON e.space_id = i.space_id AND e.ino = i.ino AND e.died IS NULL"
        " WHERE i.died IS NULL AND (i.mode & 61440) = 16384"
        " GROUP BY i.space_id, i.ino HAVING count(*) > 1",
    ),
    _Check(
        "unreachable",
        "an inode cannot be reached from the root (space, inode)",
        "WITH RECURSIVE reach(space_id, ino) AS (SELECT id, CAST(1 AS BIGINT) FROM space"
        " UNION SELECT e.space_id, e.ino FROM entry e JOIN reach r"
        " ON e.space_id = r.space_id AND e.parent = r.ino WHERE e.died IS NULL)"
        " SELECT e.space_id, e.ino FROM entry e WHERE e.died IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM reach r WHERE r.space_id = e.space_id AND r.ino = e.ino)",
    ),
    _Check(
        "beyond_size",
        "a file has bytes behind its end (space, inode, size, end)",
        "SELECT x.space_id, x.ino, i.size, max(x.off + x.length) FROM extent x "
        + _LIVE_INODE.format("x", "ino")
        + " WHERE x.died IS NULL GROUP BY x.space_id, x.ino, i.size"
        " HAVING max(x.off + x.length) > i.size",
    ),
    _Check(
        "overlap",
        "two extents of a file overlap (space, inode, offset)",
        "SELECT space_id, ino, off FROM (SELECT space_id, ino, off,"
        " lag(off + length) OVER (PARTITION BY space_id, ino ORDER BY off) AS before"
        " FROM extent WHERE died IS NULL) y WHERE before > off",
    ),
    _Check(
        "unknown_block",
        "an extent names a block that nobody knows (space, inode, offset, block)",
        "SELECT x.space_id, x.ino, x.off, x.block FROM extent x LEFT JOIN block b"
        " ON b.space_id = x.space_id AND b.block = x.block WHERE b.block IS NULL",
    ),
    _Check(
        "beyond_block",
        "an extent reaches beyond its block (space, inode, offset, block)",
        "SELECT x.space_id, x.ino, x.off, x.block FROM extent x JOIN block b"
        " ON b.space_id = x.space_id AND b.block = x.block"
        " WHERE x.block_offset + x.length > b.size",
    ),
    _Check(
        "orphan_replica",
        "the map has a copy of an unknown block, or on an unknown node (space, block, node)",
        "SELECT r.space_id, r.block, r.node FROM replica r"
        " LEFT JOIN block b ON b.space_id = r.space_id AND b.block = r.block"
        " LEFT JOIN node n ON n.id = r.node WHERE b.block IS NULL OR n.id IS NULL",
    ),
    _Check(
        "corrupt",
        "a copy is bad (space, block, node)",
        "SELECT r.space_id, r.block, r.node FROM replica r JOIN node n ON n.id = r.node"
        " WHERE r.is_bad > 0 AND n.wanted = ''",
    ),
)


class Fsck:
    """Runs the checks. Several may run at once."""

    def __init__(self, db: Database, clock: Clock, policy: Policy, nodes: NodeBook) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._nodes = nodes
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let whoever waits for the nodes' answers go on without them."""
        self._stopped.set()

    def run(self, deadline_s: float = 60.0, is_repairing: bool = False) -> Json:
        """Return ``{"errors": [...], "warnings": [...], counts…}``; sound when errors is empty.

        Nodes that do not answer within `deadline_s` are told as an error; nodes that are
        known to be away are only a warning, since their copies count for nothing. What is
        repaired is told in `repaired`, and no error any more.
        """
        began = self._clock.time_ns()
        errors = self._ask_nodes(deadline_s)
        # Looked up before the walk: at its end the moment it reads is some time ago.
        live = [m.id for m in self._nodes.members().values() if m.state in LIVE]
        with self._db.read() as cx:
            for check in CHECKS:
                errors += _found(check, cx.all(f"{check.sql} LIMIT {SHOWN}"))
            errors += self._drift(cx, began)
            errors += self._too_few(cx, live)
            sums = usage.drifted(cx)
            counts = self._counts(cx)
        told = [_sums(space, *pair) for space, pair in sums.items()][:SHOWN]
        if is_repairing:
            self._repair(list(sums))
        else:
            errors += told
        away = [m.public for m in self._nodes.members().values() if m.state not in LIVE]
        warnings = [
            {"kind": "node_away", "message": f"the node is {n.state.value}", "subject": n.id}
            for n in away
            if n.state is not NodeState.REMOVED
        ]
        repaired = told if is_repairing else []
        return {"errors": errors, "warnings": warnings, "repaired": repaired, **counts}

    def _repair(self, spaces: list[SpaceId]) -> None:
        for space in spaces:
            with self._db.write() as cx:
                usage.repair(cx, space)
                note(cx, self._clock.time_ns(), "fsck", "usage.repair", str(space))

    # ------------------------------------------------------------ the nodes

    def _ask_nodes(self, deadline_s: float) -> list[Json]:
        """Make every live node list all it has, and wait until it has told."""
        asked = [m.id for m in self._nodes.members().values() if m.state in LIVE]
        with self._db.write() as cx:
            for node in asked:
                tasks.list_prefixes(cx, node, range(256), self._clock.time_ns())
        ends = self._clock.monotonic() + deadline_s
        silent = self._still_listing(asked)
        while silent and self._clock.monotonic() < ends and not self._stopped.wait(_PAUSE_S):
            silent = self._still_listing(silent)
        return [
            {"kind": "no_answer", "message": "the node did not tell what it has", "subject": node}
            for node in silent
            if self._nodes.get(node).state in LIVE
        ]

    def _still_listing(self, nodes: list[NodeId]) -> list[NodeId]:
        with self._db.read() as cx:
            rows = cx.all("SELECT DISTINCT node FROM task WHERE kind = 'list'")
        listing = {row[0] for row in rows}
        return [node for node in nodes if node in listing]

    def _drift(self, cx: Cx, since_ns: int) -> list[Json]:
        rows = cx.all(
            "SELECT subject, detail FROM audit WHERE at_ns >= ? AND action = ? ORDER BY id LIMIT ?",
            since_ns,
            DRIFT,
            SHOWN,
        )
        return [{"kind": DRIFT, "message": row[1], "subject": row[0]} for row in rows]

    # ------------------------------------------------------------ the copies

    def _too_few(self, cx: Cx, live: list[NodeId]) -> list[Json]:
        live = live or [NodeId("")]
        marks = ",".join("?" * len(live))
        rows = cx.all(
            "SELECT b.space_id, b.block, count(r.node), coalesce(nullif(s.replicas, 0), ?)"
            " FROM block b LEFT JOIN space s ON s.id = b.space_id"
            " LEFT JOIN replica r ON r.space_id = b.space_id AND r.block = b.block"
            f" AND r.is_bad = 0 AND r.node IN ({marks})"
            " WHERE EXISTS (SELECT 1 FROM extent e WHERE e.space_id = b.space_id"
            " AND e.block = b.block) GROUP BY b.space_id, b.block, s.replicas"
            " HAVING count(r.node) < coalesce(nullif(s.replicas, 0), ?)"
            " ORDER BY count(r.node) LIMIT ?",
            self._policy.replicas,
            *live,
            self._policy.replicas,
            SHOWN,
        )
        return [
            {
                "kind": "under_replicated" if copies else "missing",
                "message": f"{copies} good copies of {wanted} (space {space})",
                "subject": bytes(block).hex(),
            }
            for space, block, copies, wanted in rows
        ]

    def _counts(self, cx: Cx) -> Json:
        counted = {
            "spaces": "SELECT count(*) FROM space",
            "inodes": "SELECT count(*) FROM inode WHERE died IS NULL",
            "entries": "SELECT count(*) FROM entry WHERE died IS NULL",
            "extents": "SELECT count(*) FROM extent",
            "blocks": "SELECT count(*) FROM block",
            "replicas": "SELECT count(*) FROM replica",
        }
        rows = {name: cx.one(sql) for name, sql in counted.items()}
        return {name: int(row[0]) if row else 0 for name, row in rows.items()}


def _sums(space: SpaceId, known: usage.Usage, true: usage.Usage) -> Json:
    parts = [
        f"{name} is noted as {a}, counted {b}"
        for name, a, b in zip(known._fields, known, true, strict=True)
        if a != b
    ]
    return {"kind": "usage", "message": "; ".join(parts), "subject": f"space {space}"}


def _found(check: _Check, rows: list[tuple[Any, ...]]) -> list[Json]:
    return [
        {
            "kind": check.kind,
            "message": check.message,
            "subject": ", ".join(_shown(value) for value in row),
        }
        for row in rows
    ]


def _shown(value: Any) -> str:
    if isinstance(value, (bytes, memoryview)):
        raw = bytes(value)
        return raw.hex() if len(raw) == 32 else repr(raw)[1:]
    return str(value)
