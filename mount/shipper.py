"""Carries journal records to the cluster, in order: blocks first, then one commit for many.

There is one shipper thread. It takes what has gathered, turns `StagedWrite`s into blocks
(cut at multiples of BLOCK_MAX; small scattered pieces share a block), has them stored on
enough nodes, commits the batch, and tells each record's owner what became of it. While one
batch is committed the bytes of the next are already being stored; commits keep their order.
While the cluster is away it tries again for ever; the journal keeps the records meanwhile, and
whoever waits has a deadline of his own.

A record whose file is just being closed may be held back a moment (`hold`), so that the seal
of the last close travels with it instead of in a commit of its own. And what little nobody waits
for rests for a moment after a commit that somebody waited for, or that was one of a stream. A
program that syncs file after file (git, a database) would find the rename or unlink that followed
its last sync under way, and wait for two commits instead of one. And a batch costs the cluster
about 2 ms of processor time however small it is: while a tree is unpacked, those that gathered
during the last commit alone had 15 operations, 130 us each. What comes alone goes at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from everfold import wire
from everfold.blockid import name_of
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, NOW, SMALL_BLOCK, BlockId, Extent, MountId, Seq, SpaceId
from everfold.services import NameService
from mount.blockio import BlockIO
from mount.express import Bytes
from mount.journal import Journal
from mount.records import Local, StagedWrite
from mount.staging import Staged, Staging

log = logging.getLogger(__name__)

BATCH_OPS = 2000
BATCH_BYTES = 16 * 1024 * 1024
PIPELINE = 3  # batches whose bytes are being stored, or that wait for the commit before them
_PARTS = 2  # of one batch that are stored at a time, while the next one is read
HOLD_S = 0.02
LULL_S = 0.003  # after a sync, the next one comes within about 1 ms
STREAM_LULL_S = 0.005  # while many changes come
_STREAM_OPS = 12  # in one batch; fewer are what other machines may wait for
_LULL_OPS = 256  # so many need not wait for more
_LULL_BYTES = 256 * 1024
_INLINE_BYTES = 256 * 1024  # less is stored by the shipper itself: a thread's turn costs more
_FATAL = {Kind.FORBIDDEN, Kind.STALE, Kind.NOT_FOUND, Kind.READ_ONLY}


def _nobody(item: Item, result: wire.Result, seq: Seq) -> None:
    """Nobody wants to know."""


@dataclass(slots=True, eq=False)
class Item:
    """A record on its way; `done` is called once with its outcome, on the shipper's thread.

    `shipped` is the wire operation that was committed (a `StagedWrite` becomes a `Write`).
    """

    number: int
    record: Local
    done: Callable[[Item, wire.Result, Seq], None] = _nobody
    is_late: bool = False
    epoch: int = 0  # of the write lease under which it was answered before its commit
    first_seq: Seq = NOW  # the first commit of the batch that it went in, once it went
    hold_until: float = 0.0
    is_glued: bool = False  # goes in one commit with the record before it
    nbytes: int = -1  # `staged_bytes`, once asked: of 50,000 pieces the sum takes 3 ms
    is_taken: bool = False  # its batch has begun: the record is as it is
    shipped: wire.AnyOp | None = None
    stored: Sequence[wire.Stored] = ()

    @property
    def staged_bytes(self) -> int:
        """Return how many staged bytes the record carries."""
        if self.nbytes < 0:
            self.nbytes = self.record.staged_bytes if isinstance(self.record, StagedWrite) else 0
        return self.nbytes


def tell_each(items: Sequence[Item], results: Sequence[wire.Result], seq: Seq) -> None:
    """Tell the owner of each record what became of it."""
    for item, result in zip(items, results, strict=True):
        item.done(item, result, seq)


class Shipper:
    """See the module's docstring."""

    def __init__(
        self,
        space: SpaceId,
        mount: MountId,
        names: NameService,
        blocks: BlockIO,
        staging: Staging,
        journal: Journal,
    ) -> None:
        self._space, self._mount = space, mount
        self._names, self._blocks = names, blocks
        self._staging, self._journal = staging, journal
        self._lock = threading.Lock()  # guards all down to _awaited; taken last
        self._wake = threading.Condition(self._lock)
        self._queue: deque[Item] = deque()
        self._under_way: list[Item] = []
        self._released = 0  # records up to this number are not held back for their seal
        self._awaited = 0  # somebody waits for records up to this number
        self._lull_ends = 0.0  # monotonic; the shipper's thread alone
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(PIPELINE, "store")
        self._parts = ThreadPoolExecutor(_PARTS, "part")  # of batches that are large
        self._hashing = threading.Lock()  # guards _buffer
        self._buffer = bytearray(BLOCK_MAX)  # kept: taking and clearing 4 MiB costs 1 ms
        self.failure: EverfoldError | None = None  # why the cluster was not reached lately
        self.broken: EverfoldError | None = None  # why nothing is shipped any more
        self.barred: EverfoldError | None = None  # why the cluster lets this mount in no more
        self.quota_left: int | None = None  # as the last commit told
        self.committed_number = 0  # everything up to here is in the cluster
        self.batches = 0
        self.shipped_ops = 0
        self.tell = tell_each  # whoever has many records under way takes them a batch at a time
        self._worker = threading.Thread(target=self._run, name="shipper", daemon=True)

    def start(self) -> None:
        """Begin to ship."""
        self._worker.start()

    def submit(self, items: list[Item]) -> None:
        """Queue records that are in the journal; they come in order of their numbers."""
        with self._lock:
            queue = self._queue
            queue.extend(items)
            # Whoever waits behind a record that is held back is not woken for each new one.
            if len(queue) == len(items) or len(queue) - len(items) < _LULL_OPS <= len(queue):
                self._wake.notify_all()

    def amend(self, item: Item, record: Local) -> bool:
        """Let `record` take the place of an item's; False when its batch has begun already.

        True: it is not held back any longer.
        """
        with self._lock:
            if item.is_taken:
                return False
            item.record, item.hold_until = record, 0.0
            if self._queue[0] is item:
                self._wake.notify_all()
            return True

    def release(self, number: int) -> None:
        """Do not hold back records up to `number` for their seal any longer."""
        with self._lock:
            if number > self._released:
                self._released = number
                self._wake.notify_all()

    def hurry(self, number: int) -> None:
        """Somebody waits for the records up to `number`: nothing holds them back."""
        with self._lock:
            if number > self._awaited:
                self._awaited = number
                self._wake.notify_all()

    def make_durable(self) -> None:
        """Let what waits survive a power cut of this machine too."""
        number = self._journal.next_number - 1
        self._staging.sync()
        self._journal.mark_durable(number)

    @property
    def queued(self) -> int:
        """Return how many records wait for their turn."""
        return len(self._queue)

    @property
    def backlog(self) -> tuple[int, int]:
        """Return (records, staged bytes) not in the cluster yet."""
        with self._lock:
            waiting = [*self._under_way, *self._queue]
        return len(waiting), sum(item.staged_bytes for item in waiting)

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is left to ship; False when it took too long."""
        ends = time.monotonic() + timeout_s
        with self._lock:
            if self._queue:
                self._awaited = max(self._awaited, self._queue[-1].number)
            self._wake.notify_all()
            while self._queue or self._under_way:
                left = ends - time.monotonic()
                if left <= 0 or self.barred is not None or not self._worker.is_alive():
                    return False
                self._wake.wait(min(left, 1.0))
        return self.broken is None

    def close(self) -> None:
        """Stop after the batch under way; what is queued stays in the journal."""
        with self._lock:
            self._ended.set()
            self._wake.notify_all()
        if self._worker.is_alive():
            self._worker.join(timeout=35)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._parts.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        pipeline: deque[tuple[list[Item], Future[None]]] = deque()
        while True:
            while len(pipeline) < PIPELINE:
                batch = self._next_batch(is_waiting=not pipeline)
                if batch is None:
                    break
                pipeline.append((batch, self._begin(batch, is_alone=not pipeline)))
            if not pipeline:
                return
            self._end(*pipeline[0])
            pipeline.popleft()
            with self._lock:
                self._under_way = [item for batch, _ in pipeline for item in batch]
                self._wake.notify_all()

    def _begin(self, batch: list[Item], is_alone: bool) -> Future[None]:
        """Start to store a batch's bytes: beside what is under way, or at once if that is less."""
        if not (is_alone and sum(item.staged_bytes for item in batch) < _INLINE_BYTES):
            return self._pool.submit(self._store, batch)
        done: Future[None] = Future()
        try:
            self._store(batch)
            done.set_result(None)
        except Exception as err:  # noqa: BLE001  # raised again where the batch is committed
            done.set_exception(err)
        return done

    def _end(self, batch: list[Item], stored: Future[None]) -> None:
        """Commit a batch and tell its owners."""
        try:
            if self.broken is not None:
                raise self.broken
            self._ship(batch, stored)
        except EverfoldError as err:
            self._refuse(batch, err)
        except Exception as err:
            log.exception("a batch could not be shipped")
            self._refuse(batch, EverfoldError(Kind.INTERNAL, f"cannot be shipped: {err}"))

    def _next_batch(self, is_waiting: bool) -> list[Item] | None:
        """Return records that go together; None when there are none yet, or at the end."""
        with self._lock:
            while True:
                if self._ended.is_set():
                    return None
                pause = self._ready_in()
                if pause <= 0:
                    break
                if not is_waiting:
                    return None
                self._wake.wait(pause if pause < 1e9 else None)
            batch: list[Item] = []
            nbytes, now = 0, time.monotonic()
            while self._queue and not self._is_cut(batch, self._queue[0], nbytes, now):
                item = self._queue.popleft()
                item.is_taken = True
                batch.append(item)
                nbytes += item.staged_bytes
            self._under_way = [*self._under_way, *batch]
            return batch

    def _is_cut(self, batch: list[Item], item: Item, nbytes: int, now: float) -> bool:
        """Tell whether a batch ends before `item`."""
        if not batch:
            return False
        if item.epoch != batch[-1].epoch or item.number != batch[-1].number + 1:
            return True  # a commit has one epoch, and numbers its operations without holes
        is_full = len(batch) >= BATCH_OPS or nbytes + item.staged_bytes > BATCH_BYTES
        return not item.is_glued and (is_full or self._held(item, now))

    def _held(self, item: Item, now: float) -> bool:
        return item.hold_until > now and item.number > max(self._released, self._awaited)

    def _ready_in(self) -> float:
        if not self._queue:
            return 1e9
        head = self._queue[0]
        if head.number <= self._awaited:
            return 0.0
        now = time.monotonic()
        if self._held(head, now):
            return head.hold_until - now
        is_little = len(self._queue) < _LULL_OPS and head.staged_bytes < _LULL_BYTES
        return self._lull_ends - now if is_little else 0.0

    def _ship(self, batch: list[Item], stored: Future[None]) -> None:
        pause = 0.02
        is_first = True
        while True:
            try:
                if is_first:
                    stored.result()
                else:
                    self._store(batch)
                committed = self._commit(batch)
                break
            except EverfoldError as err:
                if err.kind in _FATAL or self._ended.is_set():
                    raise
                if self.failure is None or self.failure.kind is not err.kind:
                    log.warning("the cluster does not take changes, they wait: %s", err)
                self.failure = err
            is_first = False
            self._ended.wait(pause)
            pause = min(pause * 2, 0.5)
        if self.failure is not None:
            log.info("the cluster is back")
            self.failure = None
        self.batches += 1
        self.shipped_ops += len(batch)
        self._finish(batch, committed)

    def _finish(self, batch: list[Item], committed: wire.Committed) -> None:
        self._journal.trim(batch[-1].number)
        self.committed_number = batch[-1].number
        if len(batch) >= _STREAM_OPS:
            self._lull_ends = time.monotonic() + STREAM_LULL_S
        elif batch[0].number <= self._awaited:
            self._lull_ends = time.monotonic() + LULL_S
        for item in batch:
            item.first_seq = committed.first
        self.quota_left = committed.quota_left
        self.tell(batch, committed.results, committed.seq)

    def _refuse(self, batch: list[Item], err: EverfoldError) -> None:
        """The batch stays in the journal, and so must all that comes after it.

        Nothing more is shipped by this process; the next mount tries again.
        """
        if self.broken is None and not self._ended.is_set():
            log.error("nothing more is sent, changes stay in the journal: %s", err)
        self.broken = self.failure = err
        result = wire.Result(kind=err.kind.value, message=err.message)
        self.tell(batch, [result] * len(batch), Seq(0))

    def _commit(self, batch: list[Item]) -> wire.Committed:
        ops = [item.shipped for item in batch if item.shipped is not None]
        stored = [each for item in batch for each in item.stored if each.nodes]
        return self._names.commit(
            wire.Commit(self._space, self._mount, batch[0].number, ops, stored, batch[0].epoch)
        )

    # ------------------------------------------------------------ bytes become blocks

    def _store(self, batch: Iterable[Item]) -> None:
        writes = [item for item in batch if isinstance(item.record, StagedWrite)]
        parcel = _Parcel(self._blocks, self._parts)
        for item in batch:
            if isinstance(item.record, StagedWrite):
                item.shipped = self._cut(item.record, item.is_late, parcel)
            else:
                item.shipped = item.record
        if writes:
            writes[0].stored = parcel.stored()

    def _cut(self, record: StagedWrite, is_late: bool, parcel: _Parcel) -> wire.Write:
        """Read a record's bytes and lay them out in blocks, which go into the parcel."""
        extents: list[Extent] = []
        for run in _runs(record.staged):
            block, data = self._block(run)
            parcel.add(block, data)
            start, end, first = run[0][0], run[0][0], 0
            for offset, length, _, _ in run:
                if offset != end:
                    extents.append(Extent(start, end - start, block, first))
                    first += end - start
                    start = offset
                end = offset + length
            extents.append(Extent(start, end - start, block, first))
        if record.extents:
            extents = _merged(record.extents + extents)
        return self._write(record, is_late, extents)

    def _block(self, run: list[Staged]) -> tuple[BlockId, Bytes]:
        """Return the block that some pieces make: of one long piece, a slice of its segment."""
        _, length, segment, at = run[0]
        if len(run) == 1 and length >= SMALL_BLOCK:
            data = self._staging.slice(segment, at, length)
            with self._hashing:
                view = memoryview(self._buffer)[:length]
                data.read_into(view)
                return name_of(view), data
        is_one = len(run) == 1
        joined = self._staging.read_at(segment, at, length) if is_one else self._staging.gather(run)
        return name_of(joined), joined

    def _write(self, record: StagedWrite, is_late: bool, extents: list[Extent]) -> wire.Write:
        return wire.Write(
            ino=record.ino,
            base=record.base,
            size=record.size,
            mtime_ns=record.mtime_ns,
            time_ns=record.time_ns,
            extents=extents,
            holes=record.holes,
            cut=record.cut,
            is_sealed=record.is_sealed,
            is_late=is_late,
            mode=record.mode,
        )


class _Parcel:
    """The blocks of a batch on their way to the nodes, a part at a time.

    A file that was written here and there is one record of hundreds of MiB, whose short pieces
    must be read into memory to be sent together.
    """

    def __init__(self, blocks: BlockIO, pool: ThreadPoolExecutor) -> None:
        self._io, self._pool = blocks, pool
        self._under_way: deque[Future[list[wire.Stored]]] = deque()
        self._seen: set[BlockId] = set()
        self._blocks: dict[BlockId, Bytes] = {}
        self._nbytes = 0
        self._stored: list[wire.Stored] = []

    def add(self, block: BlockId, data: Bytes) -> None:
        """Have a block stored; perhaps only when others follow."""
        if block in self._seen:
            return
        self._seen.add(block)
        if self._blocks and self._nbytes + len(data) > BATCH_BYTES:
            if len(self._under_way) == _PARTS:
                self._stored += self._under_way.popleft().result()
            self._under_way.append(self._pool.submit(self._io.store, list(self._blocks.items())))
            self._blocks, self._nbytes = {}, 0
        self._blocks[block] = data
        self._nbytes += len(data)

    def stored(self) -> list[wire.Stored]:
        """Have the rest stored; return what the nodes said of all."""
        if self._blocks:
            self._stored += self._io.store(list(self._blocks.items()))
        while self._under_way:
            self._stored += self._under_way.popleft().result()
        return self._stored


def _runs(staged: list[Staged]) -> list[list[Staged]]:
    """Group pieces into blocks: at most BLOCK_MAX bytes each.

    A long stretch of a file is cut at multiples of BLOCK_MAX of its offset, so that the same
    bytes at the same place give the same blocks; short pieces share a block.
    """
    runs: list[list[Staged]] = []
    room, last_end = 0, -1
    for offset, length, segment, at in staged:
        while length:
            piece = min(length, BLOCK_MAX - offset % BLOCK_MAX)
            is_aligned = offset % BLOCK_MAX == 0 and offset == last_end
            if not runs or piece > room or is_aligned:
                runs.append([])
                room = BLOCK_MAX
            runs[-1].append((offset, piece, segment, at))
            room -= piece
            last_end = offset + piece
            offset, at, length = offset + piece, at + piece, length - piece
    return runs


def _merged(extents: list[Extent]) -> list[Extent]:
    """Return extents in order, neighbours that continue each other made one."""
    merged: list[Extent] = []
    for extent in sorted(extents, key=lambda e: e.offset):
        if merged:
            last = merged[-1]
            if (
                last.end == extent.offset
                and last.block == extent.block
                and last.block_offset + last.length == extent.block_offset
            ):
                merged[-1] = Extent(
                    last.offset, last.length + extent.length, last.block, last.block_offset
                )
                continue
        merged.append(extent)
    return merged
