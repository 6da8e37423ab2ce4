"""What a datanode's beat changes, and what it is answered.

A beat is believed about what the node holds. It carries news (came, went, rotted) and, in
turns, digests; where a digest differs from the map, the node is asked for that prefix's list,
and the list sets the map right in both directions. So whatever was lost on the way, a node
that was away, a disk that was swapped: the map converges to what is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from everfold import wire
from everfold.blockid import BLOCK_ID_SIZE
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, BlockId, NodeId, NodeState, SpaceId
from everfold.services import Clock
from nameserver import tasks
from nameserver.audit import note
from nameserver.blocks import BlockTokens
from nameserver.db import Cx, Database, Row, select_in
from nameserver.nodes import HEARD, LIVE, Member, NodeBook
from nameserver.policy import Policy
from nameserver.presence import WRITTEN_S

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_YOUNG_NS = 10_000_000_000  # a block this fresh may have been put after the list was written
_RANGE = "r.space_id = ? AND r.block >= ? AND r.block <= ? AND r.node = ?"
_HELD = f"SELECT r.space_id, r.block FROM replica r WHERE {_RANGE} AND r.is_bad < 2"
_COUNTED = (
    "SELECT r.space_id, r.block, r.is_bad, b.kept_ns FROM replica r LEFT JOIN block b"
    f" ON b.space_id = r.space_id AND b.block = r.block WHERE {_RANGE}"
)
_KNOWN = (
    "SELECT r.block FROM replica r JOIN block b ON b.space_id = r.space_id AND b.block = r.block"
    " WHERE r.space_id = ? AND r.node = ? AND r.is_bad = 0 AND r.block IN ({})"
)
_NEXT_SPACE = "SELECT space_id FROM replica WHERE space_id > ? ORDER BY space_id LIMIT 1"
DRIFT = "drift"  # the audit's word for copies that a node should have had and has not

Key = tuple[SpaceId, BlockId]


class Beats:
    """Receives the beats of all nodes."""

    def __init__(
        self, db: Database, clock: Clock, policy: Policy, nodes: NodeBook, tokens: BlockTokens
    ) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._nodes = nodes
        self._tokens = tokens
        self._written: dict[NodeId, float] = {}  # monotonic: when its beat was last a commit

    def beat(self, ask: wire.Heartbeat) -> wire.BeatReply:
        """Take a node's report and hand out its commands. A new node is let in."""
        _check(ask)
        now = self._clock.time_ns()
        # Before anything that may wait: a node does not fall silent because our disk is slow.
        known = self._nodes.members().get(ask.node)
        is_noted = known is not None and self._nodes.heard(ask.node, now)
        added = self._unknown(ask)
        if known is None or not is_noted or not self._is_harmless(ask, known, now):
            return self._take(ask, added, now)
        if added or self._is_due(ask, known):
            with self._nodes.kept_waiting(ask.node), self._db.write(is_durable=False) as cx:
                _seen(cx, ask, now)
                _added(cx, ask.node, added, now)
            self._written[ask.node] = self._clock.monotonic()
            self._nodes.forget_picture()
        self._compare(known, ask.digests, now)
        return wire.BeatReply(known.state, self._policy.beat_s, [])

    def _take(self, ask: wire.Heartbeat, added: Sequence[wire.Held], now: int) -> wire.BeatReply:
        """Take a report that is not harmless: durably, and its answer may give orders."""
        with self._nodes.kept_waiting(ask.node), self._db.write() as cx:
            _seen(cx, ask, now)
            rotted = {(h.space, h.block) for h in ask.bad}
            _removed(cx, ask.node, [h for h in ask.removed if (h.space, h.block) not in rotted])
            _rotted(cx, ask.node, ask.bad)
            _added(cx, ask.node, added, now)
            for one in sorted(ask.lists, key=lambda told: told.prefix):
                self._reconcile(cx, ask.node, one, now)
            is_news = self._nodes.tell(cx)
            member = self._nodes.read(cx)[ask.node]
            commands = self._commands(cx, member, now) if member.state in LIVE else []
            is_busy = bool(commands) and self._is_ordered(cx, ask.node, now)
        if is_news:
            self._nodes.changed()
        else:
            self._nodes.forget_picture()
        self._written[ask.node] = self._clock.monotonic()
        self._compare(member, ask.digests, now)
        beat_s = self._policy.busy_beat_s if is_busy else self._policy.beat_s
        return wire.BeatReply(member.state, beat_s, commands)

    def _is_harmless(self, ask: wire.Heartbeat, known: Member, now_ns: int) -> bool:
        """Tell whether this beat may be lost in a power cut, and its answer orders nothing.

        Nearly all are such. A copy that the map has not will be found by its digest; one that it
        has too many might cost the last that there is. A beat of a node that counts as silent,
        or that is elsewhere now, is news for everyone.
        """
        if ask.removed or ask.bad or ask.lists or known.state not in HEARD:
            return False
        if self._written.get(ask.node) is None:  # our first of it
            return False
        there = (ask.url.rstrip("/"), ask.zone[:64], ask.boot[:64])
        if there != (known.url, known.zone, known.boot):
            return False
        with self._db.read() as cx:
            return not self._is_ordered(cx, ask.node, now_ns)

    def _is_ordered(self, cx: Cx, node: NodeId, now_ns: int) -> bool:
        return tasks.any_ready(cx, node, now_ns, self._policy.drop_rest_s)

    def _is_due(self, ask: wire.Heartbeat, known: Member) -> bool:
        """Tell whether a beat without news is a commit all the same; see `presence`."""
        if self._clock.monotonic() - self._written[ask.node] > WRITTEN_S:
            return True
        figures = (ask.capacity, ask.used, ask.blocks)
        if figures != (known.capacity, known.used, known.blocks):
            return True
        # What is free moves by itself where others use the disk, too.
        return abs(ask.free - known.free) > known.free // 64

    def _unknown(self, ask: wire.Heartbeat) -> Sequence[wire.Held]:
        """Return those of the blocks that came which the map has not on this node.

        Nearly all were told by the commit that names them: they are looked up before the
        writer's turn (2 us each; to write them again would be 7 us of it). While the node has
        anything to do, which its news may answer, all are taken.
        """
        if not ask.added:
            return ask.added
        blocks: dict[SpaceId, list[BlockId]] = {}
        for held in ask.added:
            blocks.setdefault(held.space, []).append(held.block)
        with self._db.read() as cx:
            if tasks.any_for(cx, ask.node):
                return ask.added
            known = {
                (space, block)
                for space, named in blocks.items()
                for (block,) in select_in(cx, _KNOWN, (space, ask.node), named)
            }
        return [h for h in ask.added if (h.space, h.block) not in known]

    # ------------------------------------------------------------ commands

    def _commands(self, cx: Cx, member: Member, now_ns: int) -> list[wire.Command]:
        policy = self._policy
        taken = tasks.take(
            cx,
            member.id,
            policy.commands_per_beat,
            policy.lists_per_beat,
            now_ns,
            policy.drop_rest_s,
        )
        commands: list[wire.Command] = []
        for task in taken:
            if task.kind == tasks.COPY:
                sources = self._sources(cx, task)
                if sources:
                    token, _ = self._tokens.give(task.space, "r")
                    commands.append(wire.Copy(task.space, task.block, task.size, sources, token))
            elif task.kind == tasks.DROP:
                commands.append(wire.Drop(task.space, task.block))
            elif task.kind == tasks.VERIFY:
                commands.append(wire.Verify(task.space, task.block))
            else:
                commands.append(wire.ListPrefix(task.block[0]))
        return commands

    def _sources(self, cx: Cx, task: tasks.Task) -> list[str]:
        members = self._nodes.members(cx)
        rows = cx.all(
            "SELECT node FROM replica"
            " WHERE space_id = ? AND block = ? AND is_bad = 0 AND node <> ?",
            task.space,
            task.block,
            task.node,
        )
        holders = [members[row[0]] for row in rows if row[0] in members]
        live = [m for m in holders if m.state in LIVE]
        return [m.url for m in sorted(live, key=lambda m: m.state is NodeState.SUSPECT)]

    # ------------------------------------------------------------ drift

    def _compare(self, member: Member, digests: Sequence[wire.PrefixDigest], now_ns: int) -> None:
        """Have a node list what it has where that is not what the map has."""
        if not digests or member.state not in LIVE:
            return
        node = member.id
        with self._db.read() as cx:
            differ = [d.prefix for d in digests if _digest(cx, node, d.prefix) != (d.count, d.xor)]
        if differ:
            with self._db.write(is_durable=False) as cx:  # it will be found again
                tasks.list_prefixes(cx, node, differ, now_ns)

    def _reconcile(self, cx: Cx, node: NodeId, told: wire.PrefixList, now_ns: int) -> None:
        """Set the map right for one prefix of one node."""
        held: dict[Key, wire.Held] = {(h.space, h.block): h for h in told.held}
        known: dict[Key, tuple[int, int]] = {
            (space, block): (is_bad, kept_ns or 0)
            for space, block, is_bad, kept_ns in _under(cx, _COUNTED, node, told.prefix)
        }
        _added(cx, node, [h for key, h in held.items() if key not in known], now_ns)
        absent = [key for key, (is_bad, _) in known.items() if key not in held and is_bad < 2]
        # put after the list was written, perhaps: the node is asked about each of these
        young = [key for key in absent if known[key][1] >= now_ns - _YOUNG_NS]
        gone = sorted(set(absent) - set(young))
        _forget(cx, node, gone)
        doubted = young + [key for key, (is_bad, _) in known.items() if key in held and is_bad]
        tasks.queue(cx, [tasks.Task(node, tasks.VERIFY, *key) for key in doubted], now_ns)
        tasks.clear_list(cx, node, told.prefix)
        if gone:
            what = f"{len(gone)} blocks under {told.prefix:02x} that the map had here are not"
            note(cx, now_ns, node, DRIFT, node, what)


def _check(ask: wire.Heartbeat) -> None:
    if not _ID.fullmatch(ask.node):
        raise EverfoldError(Kind.INVALID, "not a node's name", ask.node[:80])
    if not ask.url.startswith(("http://", "https://")) or len(ask.url) > 500:
        raise EverfoldError(Kind.INVALID, "not a node's URL", ask.url[:80])
    for held in (*ask.added, *ask.removed, *ask.bad, *(h for one in ask.lists for h in one.held)):
        if len(held.block) != BLOCK_ID_SIZE or not 0 <= held.size <= BLOCK_MAX:
            raise EverfoldError(Kind.INVALID, "not a block", held.block[:32].hex())
    prefixes = [d.prefix for d in ask.digests] + [one.prefix for one in ask.lists]
    if any(not 0 <= prefix <= 255 for prefix in prefixes):
        raise EverfoldError(Kind.INVALID, "a prefix is one byte")


def _seen(cx: Cx, ask: wire.Heartbeat, now_ns: int) -> None:
    cx.run(
        "INSERT INTO node (id, url, zone, wanted, boot, capacity, used, free, blocks, seen_ns,"
        " created_ns) VALUES (?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        " url = excluded.url, zone = excluded.zone, boot = excluded.boot,"
        " capacity = excluded.capacity, used = excluded.used, free = excluded.free,"
        " blocks = excluded.blocks, seen_ns = excluded.seen_ns",
        ask.node,
        ask.url.rstrip("/"),
        ask.zone[:64],
        ask.boot[:64],
        ask.capacity,
        ask.used,
        ask.free,
        ask.blocks,
        now_ns,
        now_ns,
    )


def _added(cx: Cx, node: NodeId, held: Sequence[wire.Held], now_ns: int) -> None:
    """Count what a node has stored, verified; what it is about to drop is left out."""
    if not held:
        return
    if tasks.any_for(cx, node):
        leaving = set(
            cx.all("SELECT space_id, block FROM task WHERE node = ? AND kind = 'drop'", node)
        )
        held = [h for h in held if (h.space, h.block) not in leaving]
        tasks.clear(cx, node, (tasks.COPY, tasks.VERIFY), held)
    held = sorted(held, key=lambda h: (h.space, h.block))  # one order: no deadlock of two nodes
    cx.many(
        "INSERT INTO block (space_id, block, size, kept_ns) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [(h.space, h.block, h.size, now_ns) for h in held],
    )
    cx.many(
        "INSERT INTO replica (space_id, block, node, is_bad) VALUES (?, ?, ?, 0)"
        " ON CONFLICT (space_id, block, node) DO UPDATE SET is_bad = 0"
        # a doubt stands until the node, asked about it, has looked
        " WHERE NOT EXISTS (SELECT 1 FROM task t WHERE t.node = excluded.node"
        " AND t.kind = 'verify' AND t.space_id = excluded.space_id AND t.block = excluded.block)",
        [(h.space, h.block, node) for h in held],
    )


def _removed(cx: Cx, node: NodeId, held: Sequence[wire.Held]) -> None:
    if not held:
        return
    _forget(cx, node, [(h.space, h.block) for h in held])
    tasks.clear(cx, node, (tasks.DROP, tasks.VERIFY), held)


def _rotted(cx: Cx, node: NodeId, held: Sequence[wire.Held]) -> None:
    if not held:
        return
    cx.many(
        "UPDATE replica SET is_bad = 2 WHERE space_id = ? AND block = ? AND node = ?",
        sorted((h.space, h.block, node) for h in held),
    )
    tasks.clear(cx, node, (tasks.VERIFY, tasks.COPY), held)


def _forget(cx: Cx, node: NodeId, keys: Iterable[Key]) -> None:
    cx.many(
        "DELETE FROM replica WHERE space_id = ? AND block = ? AND node = ?",
        sorted((space, block, node) for space, block in keys),
    )


def _digest(cx: Cx, node: NodeId, prefix: int) -> tuple[int, int]:
    """Return (count, xor) of what the map says a node holds under a prefix."""
    count = xor = 0
    for space, block in _under(cx, _HELD, node, prefix):
        xor ^= wire.held_digest(space, block)
        count += 1
    return count, xor


def _under(cx: Cx, sql: str, node: NodeId, prefix: int) -> Iterator[Row]:
    """Run `sql` over the copies that a node has under a prefix, one space after the other.

    Spaces too that this database does not know: the node tells of their blocks all the same.
    """
    least = bytes([prefix])
    space = cx.one(_NEXT_SPACE, -1)
    while space is not None:
        yield from cx.all(sql, space[0], least, least + b"\xff" * BLOCK_ID_SIZE, node)
        space = cx.one(_NEXT_SPACE, space[0])
