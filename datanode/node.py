"""A datanode without HTTP: the store, what must be told of it, and whether it may serve.

Invariants: what `put` acknowledged is durable and in the ledger; a node that an admin marked
failed (or removed) answers no block call, also after a restart, and never wipes anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datanode.ledger import Ledger, News
from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.files import Files, translated
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId, NodeId, NodeState, SpaceId
from everfold.nodeclient import FRAMES_MAX
from everfold.stores.local import LocalStore

log = logging.getLogger("datanode")
_SHUT = (NodeState.FAILED, NodeState.REMOVED)
_LOCK_WAIT_S = 5.0
FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """Who the node is, as its heartbeats say."""

    id: NodeId
    url: str
    zone: str = ""
    capacity: int = 0  # bytes it may use; 0: what the filesystem has


class Node:
    """One root folder, served. Threads may share it; `close` it in the end."""

    def __init__(
        self,
        identity: Identity,
        root: Path,
        files: Files | None = None,
        floor: int | None = None,
        lock_wait_s: float = _LOCK_WAIT_S,
    ) -> None:
        self.identity = identity
        self.ledger = Ledger()
        self.counters: Counter[str] = Counter()
        self.on_urgent: Callable[[], None] = lambda: None  # something to tell at once
        self._moved_told = 0, 0  # bytes in and out, of beats that were answered
        self._counter_lock = threading.Lock()  # guards counters; a leaf
        self._files = files or Files()
        with translated(str(root)):
            root.mkdir(parents=True, exist_ok=True)
        self._lock_fd = _only_process(root, lock_wait_s)
        self._facts = root / "node.json"
        try:
            self.state = self._written = self._read_facts()
            self.store = LocalStore(root, self._files, floor, on_bad=self._on_bad)
            self.ledger.load(self.store.blocks())
        except BaseException:
            os.close(self._lock_fd)
            raise
        count, size = self.ledger.totals()
        state = self.state.value
        log.info("%s holds %d blocks, %d bytes, state %s", identity.id, count, size, state)

    def close(self) -> None:
        """End in order."""
        self.store.close()
        os.close(self._lock_fd)

    def abandon(self) -> None:
        """Let go without any tidying, as a crash would."""
        self.store.abandon()
        os.close(self._lock_fd)

    # ------------------------------------------------------------ blocks

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> bool:
        """Keep a block durably; tell whether it is new."""
        self._require_serving()
        size = len(data)
        self._require_capacity(size)
        with self.ledger:
            is_new = self.store.add(space, block, data)
            if is_new:
                self.ledger.came_all(space, ((block, size),))
        self._count_puts(1, size)
        return is_new

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, memoryview]]
    ) -> list[Kind | None]:
        """Keep many blocks durably; tell for each None or why not. The small share one sync."""
        self._require_serving()
        answer: list[Kind | None] = [_flaw(block, data) for block, data in blocks]
        good = blocks
        if any(answer):
            good = [pair for pair, flaw in zip(blocks, answer, strict=True) if flaw is None]
        small = [pair for pair in good if len(pair[1]) < SMALL_BLOCK]
        parts = [small] if small else []
        if len(small) < len(good):
            parts += [[pair] for pair in good if len(pair[1]) >= SMALL_BLOCK]
        failed: dict[BlockId, Kind] = {}
        for part in parts:
            try:
                self._keep(space, part)
            except EverfoldError as err:
                log.warning("%d blocks were not kept: %s", len(part), err)
                failed.update((block, err.kind) for block, _ in part)
        if not failed:
            return answer
        return [flaw or failed.get(block) for (block, _), flaw in zip(blocks, answer, strict=True)]

    def _keep(self, space: SpaceId, blocks: Sequence[tuple[BlockId, memoryview]]) -> None:
        sizes = [(block, len(data)) for block, data in blocks]
        size = sum([size for _, size in sizes])
        self._require_capacity(size)
        with self.ledger:
            news = self.store.add_many(space, blocks, is_checked=True)
            self.ledger.came_all(space, itertools.compress(sizes, news))
        self._count_puts(len(blocks), size)

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """Return a block, verified; what is found rotten is put aside and told at once."""
        self._require_serving()
        data = self.store.get(space, block)
        self._count_gets(1, len(data))
        return data

    def open_file(self, space: SpaceId, block: BlockId) -> io.FileIO | None:
        """Open the file that is exactly this block, for sendfile, when it has its own."""
        self._require_serving()
        file = self.store.open_file(space, block)
        if file is not None:
            self._count_gets(1, os.fstat(file.fileno()).st_size)
        return file

    def get_many(
        self, space: SpaceId, blocks: Sequence[BlockId]
    ) -> Iterable[tuple[BlockId, bytes]]:
        """Return each block with its bytes, or with none when it is not here or not sound."""
        self._require_serving()
        found = self.store.get_many(space, list(dict.fromkeys(blocks)), FRAMES_MAX)
        self._count_gets(len(found), sum(map(len, found.values())))
        answer = [(block, found.get(block, b"")) for block in blocks]
        if len(found) < len(blocks) and sum([len(data) for _, data in answer]) > FRAMES_MAX:
            raise EverfoldError(Kind.TOO_LARGE, f"more than {FRAMES_MAX} bytes in one answer")
        return answer

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """Return a block's size, None when it is not here."""
        self._require_serving()
        return self.store.size_of(space, block)

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """Forget a block; tell whether it was there."""
        self._require_serving()
        return self.drop(space, block)

    def drop(self, space: SpaceId, block: BlockId) -> bool:
        """Forget a block, as the nameserver orders, in any state."""
        with self.ledger:
            size = self.store.size_of(space, block) or 0
            was_there = self.store.delete(space, block)
            if was_there:
                self.ledger.went(wire.Held(space, block, size))
                self.count("deletes")
        return was_there

    def under(self, prefix: int, space: SpaceId | None = None) -> list[wire.Held]:
        """Return what is held under a prefix, of one space or all."""
        return [held for held in self.store.under(prefix) if space in (None, held.space)]

    # ------------------------------------------------------------ truth and rot

    def verify(self, space: SpaceId, block: BlockId) -> bool:
        """Read a block and check it; False when it is not here, or was and had rotted."""
        try:
            self.store.verify(space, block)
        except EverfoldError as err:
            if err.kind in (Kind.NOT_FOUND, Kind.CORRUPT):
                return False
            raise
        return True

    def verify_all(self, some: Sequence[wire.Held]) -> None:
        """Read blocks and check them; what has rotted is put aside and told."""
        for space in {held.space for held in some}:
            blocks = [held.block for held in some if held.space == space]
            for block in self.store.unproven(space, blocks):
                self.verify(space, block)

    def recount(self, prefix: int) -> list[wire.Held]:
        """Look at what is really there under a prefix, correct the ledger, return the list."""
        version = self.ledger.version(prefix)
        held = self.under(prefix)
        if self.ledger.recount(prefix, version, held):
            log.warning("what is kept under %02x was not what was noted", prefix)
            self.count("recounts_wrong")
        return held

    def _on_bad(self, held: wire.Held) -> None:
        log.error("space %d: block %s had rotted", held.space, held.block.hex())
        with self.ledger:
            self.ledger.went(held, is_bad=True)
        self.count("bad")
        self.on_urgent()

    # ------------------------------------------------------------ standing

    @property
    def is_serving(self) -> bool:
        """Tell whether block calls are answered."""
        return self.state not in _SHUT

    def set_state(self, state: NodeState) -> None:
        """Obey what the nameserver says of this node; survives a restart."""
        if state is not self.state:
            log.warning("state is %s now, was %s", state.value, self.state.value)
        self.state = state  # obeyed at once, also when it cannot be written down yet
        lasting = state if state in _SHUT else NodeState.UP
        if lasting is not self._written:  # three syncs of a disk that may be why we were late
            self._write_facts(lasting)

    def heartbeat(self, boot: str) -> tuple[wire.Heartbeat, News]:
        """Return the beat of this moment, and what to confirm when it was answered."""
        news = self.ledger.news(self.store.size_of)
        blocks, used = self.ledger.totals()
        me = self.identity
        free = self.store.free()
        if me.capacity:
            free = max(0, min(free, me.capacity - used))
        beat = wire.Heartbeat(
            node=me.id,
            url=me.url,
            zone=me.zone,
            boot=boot,
            capacity=me.capacity or used + free,
            used=used,
            free=free,
            blocks=blocks,
            added=news.added,
            removed=news.removed,
            bad=news.bad,
            digests=news.digests,
            lists=news.lists,
            took=self.counters["bytes_in"] - self._moved_told[0],
            gave=self.counters["bytes_out"] - self._moved_told[1],
        )
        return beat, news

    def was_told(self, beat: wire.Heartbeat, news: News) -> None:
        """Note that a beat was answered."""
        self.ledger.confirm(news)
        took, gave = self._moved_told
        self._moved_told = took + beat.took, gave + beat.gave

    def count(self, what: str, by: int = 1) -> None:
        """Add to a counter of /metrics."""
        with self._counter_lock:
            self.counters[what] += by

    def _count_puts(self, blocks: int, size: int) -> None:
        with self._counter_lock:
            self.counters["puts"] += blocks
            self.counters["bytes_in"] += size

    def _count_gets(self, blocks: int, size: int) -> None:
        with self._counter_lock:
            self.counters["gets"] += blocks
            self.counters["bytes_out"] += size

    def _require_serving(self) -> None:
        if self.state in _SHUT:
            raise EverfoldError(
                Kind.UNAVAILABLE, f"this node is marked {self.state.value}", self.identity.id
            )

    def _require_capacity(self, size: int) -> None:
        capacity = self.identity.capacity
        if capacity and self.ledger.totals()[1] + size > capacity:
            raise EverfoldError(Kind.NO_SPACE, "the node is full", self.identity.id)

    def _read_facts(self) -> NodeState:
        try:
            facts = json.loads(self._facts.read_bytes())
        except FileNotFoundError:
            self._write_facts(NodeState.UP)
            return NodeState.UP
        except ValueError as err:
            raise EverfoldError(Kind.INVALID, "cannot be read", str(self._facts)) from err
        if facts["id"] != self.identity.id or facts["format"] != FORMAT:
            raise EverfoldError(
                Kind.CONFLICT,
                f"belongs to node {facts['id']!r} (format {facts['format']})",
                str(self._facts.parent),
            )
        return NodeState(facts["state"])

    def _write_facts(self, state: NodeState) -> None:
        facts = {"id": self.identity.id, "state": state.value, "format": FORMAT}
        temp = self._facts.parent / "tmp"
        with translated(str(self._facts)):
            self._files.make_folder("node.mkdir", temp)
            self._files.keep("node.facts", self._facts, [json.dumps(facts).encode()], temp)
        self._written = state


def _flaw(block: BlockId, data: memoryview) -> Kind | None:
    if not 1 <= len(data) <= BLOCK_MAX:
        return Kind.INVALID
    return None if blockid.name_of(data) == block else Kind.CORRUPT


def _only_process(root: Path, wait_s: float) -> int:
    """Lock the root; a predecessor that is being killed gets a moment to be gone."""
    with translated(str(root)):
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ends = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        if time.monotonic() > ends:
            os.close(fd)
            raise EverfoldError(Kind.BUSY, "another datanode serves this folder", str(root))
        time.sleep(0.05)
