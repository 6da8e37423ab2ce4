"""The datanodes as the nameserver knows them, and where each of them stands.

A node's state is never stored as a truth: it follows from the admin's word (`wanted`) and
from how long it has been silent. What is stored is the state that was last *told*
(`node_states`), so that somebody notices the change, moves `nodes_gen` on and wakes the feeds.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from everfold.errors import EverfoldError, Kind
from everfold.model import Node, NodeId, NodeState
from everfold.services import Clock
from nameserver.db import Cx, Database, Row
from nameserver.policy import Policy
from nameserver.presence import presence

_ANEW_S = 5.0  # a node gives up a beat after so long (`datanode.beat`)
_FRESH_S = 0.1  # how old a process's picture of the nodes may be
_WORDS = {"failed": NodeState.FAILED, "removed": NodeState.REMOVED}
LIVE = frozenset({NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING})
"""States in which a node's copies can be read."""
HEARD = frozenset({NodeState.UP, NodeState.DRAINING})
"""Those of them in which it is heard of in time."""


@dataclass(frozen=True, slots=True)
class Member:
    """A row of `node` with the state that follows from it."""

    id: NodeId
    url: str
    zone: str
    wanted: str
    boot: str
    capacity: int
    used: int
    free: int
    blocks: int
    silent_s: float
    state: NodeState

    @property
    def public(self) -> Node:
        """Return what mounts and tools are told."""
        return Node(self.id, self.url, self.state, self.zone, self.used, self.capacity, self.blocks)


def state_of(wanted: str, silent_s: float, policy: Policy) -> NodeState:
    """Return where a node stands that has been silent for so long."""
    if wanted in _WORDS:
        return _WORDS[wanted]
    if silent_s >= policy.down_s:
        return NodeState.DOWN
    if silent_s >= policy.suspect_s:
        return NodeState.SUSPECT
    return NodeState.DRAINING if wanted == "draining" else NodeState.UP


class NodeBook:
    """Who the nodes are. Thread-safe; the picture is at most 0.1 s old."""

    def __init__(
        self, db: Database, clock: Clock, policy: Policy, ring: Callable[[], None]
    ) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._ring = ring
        self._presence = presence(db)
        self._lock = threading.Lock()  # guards the two below
        self._members: dict[NodeId, Member] = {}
        self._as_of = float("-inf")

    def members(self, cx: Cx | None = None) -> dict[NodeId, Member]:
        """Return all nodes; `cx` is the caller's open transaction, if it has one."""
        with self._lock:
            if self._clock.monotonic() - self._as_of < _FRESH_S:
                return self._members
        if cx is None:
            with self._db.read() as own:
                found = self.read(own)
        else:
            found = self.read(cx)
        with self._lock:
            self._members, self._as_of = found, self._clock.monotonic()
        return found

    def read(self, cx: Cx) -> dict[NodeId, Member]:
        """Return all nodes as this transaction sees them."""
        now = self._clock.time_ns()
        rows = cx.all(
            "SELECT id, url, zone, wanted, boot, capacity, used, free, blocks, seen_ns"
            " FROM node ORDER BY id"
        )
        return {row[0]: self._member(row, now) for row in rows}

    def _member(self, row: Row, now_ns: int) -> Member:
        silent_s = max(0.0, (now_ns - max(row[9], self._presence.last(row[0]))) / 1e9)
        state = state_of(row[3], silent_s, self._policy)
        return Member(*(*row[:9], silent_s, state))

    def forget_picture(self) -> None:
        """Make the next question read the database."""
        with self._lock:
            self._as_of = float("-inf")

    def nodes(self, cx: Cx | None = None) -> list[Node]:
        """Return all nodes but the removed ones, as mounts see them."""
        return [m.public for m in self.members(cx).values() if m.state is not NodeState.REMOVED]

    def fresh(self) -> list[Node]:
        """Return what `nodes` does, as of now."""
        self.forget_picture()
        return self.nodes()

    def named(self, ids: set[NodeId]) -> list[Node]:
        """Return those nodes, as mounts see them."""
        return [m.public for m in self.members().values() if m.id in ids]

    def get(self, node: NodeId) -> Member:
        """Return one node; NOT_FOUND when there is none of that name."""
        self.forget_picture()
        member = self.members().get(node)
        if member is None or member.state is NodeState.REMOVED:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such node", node[:80])
        return member

    # ------------------------------------------------------------ telling

    def heard(self, node: NodeId, now_ns: int) -> bool:
        """Note that a node has beaten; False when that must be written down."""
        return self._presence.note(node, now_ns)

    @contextlib.contextmanager
    def kept_waiting(self, node: NodeId) -> Iterator[None]:
        """While what a node told is written down, it is not silent: we are slow.

        A commit that somebody waits for may have the disk for seconds, and a node whose beat was
        not answered sends no other before `_ANEW_S` are over.
        """
        self._presence.presume(node, self._clock.time_ns() + int(_ANEW_S * 1e9))
        try:
            yield
        finally:
            self._presence.presume(node, self._clock.time_ns())

    def tell(self, cx: Cx) -> bool:
        """Write down the states if they changed since they were last told; tell whether.

        The caller calls `ring` once its transaction is over.
        """
        states = _told(self.read(cx))
        row = cx.one("SELECT value FROM meta WHERE key = 'node_states'")
        if row is not None and json.loads(row[0]) == states:
            return False
        _put_meta(cx, "node_states", json.dumps(states))
        moved = cx.run(
            "UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT)"
            " WHERE key = 'nodes_gen'"
        )
        if not moved:
            _put_meta(cx, "nodes_gen", "1")
        return True

    def is_told(self) -> bool:
        """Tell whether the states are those that were last told; only reads."""
        with self._db.read() as cx:
            states = _told(self.read(cx))
            row = cx.one("SELECT value FROM meta WHERE key = 'node_states'")
        return row is not None and bool(json.loads(row[0]) == states)

    def tell_now(self) -> None:
        """Notice nodes that fell silent (nobody else will) and wake whoever wants to know."""
        if self.is_told():
            return
        with self._db.write() as cx:
            changed = self.tell(cx)
        if changed:
            self.changed()

    def changed(self) -> None:
        """Take a new picture and wake the feeds."""
        self.forget_picture()
        self._ring()

    def say(self, node: NodeId, wanted: str, even_removed: bool = False) -> None:
        """Write down the admin's word about a node ("" takes it back).

        Of a removed node nobody knows any more, unless `even_removed`: NOT_FOUND.
        """
        if not even_removed or node not in self.members():
            self.get(node)
        with self._db.write() as cx:
            cx.run("UPDATE node SET wanted = ? WHERE id = ?", wanted, node)
            self.tell(cx)
        self.changed()


def _told(members: dict[NodeId, Member]) -> dict[str, list[str]]:
    """Return what feeds tell of the nodes: a node that comes back at another URL is news too."""
    return {m.id: [m.state.value, m.url, m.zone] for m in members.values()}


def _put_meta(cx: Cx, key: str, value: str) -> None:
    cx.run(
        "INSERT INTO meta (key, value) VALUES (?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        key,
        value,
    )
