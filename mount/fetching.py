"""Getting blocks from the datanodes: one fetch for all, the first good answer wins.

A fetch asks the best replica; after `hedge_s` without an answer it asks another one as well,
after an error at once. A replica that gives wrong bytes, or none, is reported. What is returned
was checked against the block's name; what cannot be had is an error, never zeros.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Final

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId, NodeId, SpaceId
from everfold.services import NameService
from mount.blockcache import BlockCache
from mount.nodes import Nodes

BATCH_BLOCKS: Final = 128
_AHEAD_MAX: Final = 512  # blocks that may be on their way without anybody waiting for them
_AHEAD_THREADS: Final = 8
_NOT_THERE: Final = frozenset({Kind.NOT_FOUND, Kind.CORRUPT})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchTiming:
    """Seconds."""

    hedge_s: float = 0.15  # a replica that is silent for so long is not waited for alone
    attempt_s: float = 1.0  # of one call, besides what its bytes need
    deadline_s: float = 10.0  # of a whole fetch
    pause_s: float = 0.05  # before all replicas are tried again; doubles up to ten times it


class _Abandoned(Exception):
    """A fetch that somebody else had begun came to nothing; try it yourself."""


class Fetcher:
    """Fetches blocks of one space into the cache. Thread-safe."""

    def __init__(
        self,
        space: SpaceId,
        names: NameService,
        cache: BlockCache,
        nodes: Nodes,
        timing: FetchTiming,
        threads: int,
    ) -> None:
        self._space, self._names, self._cache, self._nodes = space, names, cache, nodes
        self._timing = timing
        self._calls = ThreadPoolExecutor(threads, "block-get")
        self._ahead = ThreadPoolExecutor(_AHEAD_THREADS, "block-ahead")
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards the three below
        self._flying: dict[BlockId, Future[bytes]] = {}
        self._coming: dict[BlockId, Future[bytes]] = {}  # small ones, prefetched many at a time
        self._queued: set[BlockId] = set()  # large ones, for prefetch

    def close(self) -> None:
        """Give up what is queued; calls under way end by their own deadlines."""
        self._closing.set()
        self._ahead.shutdown(wait=False, cancel_futures=True)
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._give_up(list(self._coming))

    # ------------------------------------------------------------------ one block

    def fetch(self, block: BlockId, is_passing: bool = False) -> bytes:
        """Return a block's bytes, checked, and put them into the cache (passing: in memory only).

        MISSING when no node has it, UNAVAILABLE when those that may have it cannot be reached.
        """
        ends = time.monotonic() + self._timing.deadline_s
        coming = self._coming.get(block)
        if coming is not None:
            try:
                return coming.result(self._timing.hedge_s)
            except (_Abandoned, FutureTimeout):
                pass  # then alone
        while True:
            with self._lock:
                flying = self._flying.get(block)
                mine = None if flying else self._take_off(block)
            if mine is not None:
                return self._fly(block, mine, ends, is_passing)
            assert flying is not None
            try:
                return flying.result(max(0.0, ends - time.monotonic()))
            except _Abandoned:
                continue
            except FutureTimeout as err:
                raise EverfoldError(
                    Kind.UNAVAILABLE, "no node answered in time", block.hex()
                ) from err

    def _take_off(self, block: BlockId) -> Future[bytes]:
        """Announce a fetch. Lock held."""
        future: Future[bytes] = Future()
        self._flying[block] = future
        return future

    def _land(self, block: BlockId, future: Future[bytes], outcome: bytes | BaseException) -> None:
        with self._lock:
            del self._flying[block]
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _fly(self, block: BlockId, mine: Future[bytes], ends: float, is_passing: bool) -> bytes:
        is_new = is_kept = False
        try:
            data = None
            if self._cache.has(self._space, block):  # another fetch may just have landed
                data = self._cache.get(self._space, block)
            if data is None:
                data, is_new = self._race(block, ends), True
                is_kept = self._cache.remember(self._space, block, data, is_passing)
        except BaseException as err:
            self._land(block, mine, err)
            raise
        self._land(block, mine, data)  # who waits need not wait for this machine's disk
        if is_new and not (is_passing and is_kept):
            self._cache.put(self._space, block, data)
        return data

    def _race(self, block: BlockId, ends: float) -> bytes:
        """Ask replica after replica until one gives the block or time is up."""
        pause = self._timing.pause_s
        failures: dict[NodeId, Kind] = {}
        candidates = self._nodes.holders(block)
        is_fresh = False
        while True:
            data = self._heat(block, candidates, failures, ends)
            if data is not None:
                return data
            if self._closing.is_set():
                raise EverfoldError(Kind.UNAVAILABLE, "the mount is ending", block.hex())
            if is_fresh and all(failures.get(node) in _NOT_THERE for node in candidates):
                raise EverfoldError(Kind.MISSING, "no node has the block", block.hex())
            if time.monotonic() + pause >= ends:
                raise EverfoldError(Kind.UNAVAILABLE, _told(failures), block.hex())
            if is_fresh:
                self._closing.wait(pause)
                pause = min(2 * pause, 10 * self._timing.pause_s)
            candidates = self._located(block, ends)
            is_fresh = True

    def _located(self, block: BlockId, ends: float) -> list[NodeId]:
        """Ask the nameserver which nodes have the block, until it answers or time is up."""
        pause = self._timing.pause_s
        while True:
            try:
                self._nodes.locate([block])
            except EverfoldError as err:
                if not err.kind.may_retry:
                    raise
                if time.monotonic() + pause >= ends:
                    raise EverfoldError(
                        Kind.UNAVAILABLE, f"cannot be located: {err}", block.hex()
                    ) from err
                self._closing.wait(pause)
                pause = min(2 * pause, 10 * self._timing.pause_s)
            else:
                return self._nodes.holders(block)

    def _heat(
        self, block: BlockId, candidates: list[NodeId], failures: dict[NodeId, Kind], ends: float
    ) -> bytes | None:
        """Ask each candidate once, the next one when the last was silent or failed."""
        waiting = list(candidates)
        running: dict[Future[bytes], NodeId] = {}
        while waiting or running:
            if waiting:
                node = waiting.pop(0)
                running[self._start(node, block)] = node
            left = ends - time.monotonic()
            patience_s = min(left, self._timing.hedge_s) if waiting else left
            done, _ = wait(running, max(0.0, patience_s), FIRST_COMPLETED)
            for future in done:
                node = running.pop(future)
                try:
                    return future.result()
                except EverfoldError as err:
                    failures[node] = err.kind
            if not done:
                if left <= 0:
                    return None
                for node in running.values():  # silent: others go first from now on
                    self._nodes.took(node, self._timing.hedge_s)
        return None

    def _start(self, node: NodeId, block: BlockId) -> Future[bytes]:
        try:
            return self._calls.submit(self._get, node, block)
        except RuntimeError as err:
            raise EverfoldError(Kind.UNAVAILABLE, "the mount is ending", block.hex()) from err

    def _get(self, node: NodeId, block: BlockId) -> bytes:
        """Get a block from one node, checked; report the node when it fails the check."""
        try:
            data = self._nodes.call(
                node, BLOCK_MAX // 8, lambda client: client.get(block, self._timing.attempt_s)
            )
            blockid.check(block, data)
        except EverfoldError as err:
            if err.kind in (Kind.CORRUPT, Kind.INVALID):
                self._report(node, block, "corrupt")
                raise EverfoldError(Kind.CORRUPT, err.message, block.hex()) from err
            if err.kind is Kind.NOT_FOUND:
                self._report(node, block, "missing")
            raise
        return data

    def _report(self, node: NodeId, block: BlockId, reason: str) -> None:
        """Tell the nameserver of a bad replica; nobody waits for it."""
        _log.warning("node %s, block %s: %s", node, block.hex(), reason)
        self._nodes.forget_place(block, node)
        ask = wire.ReportBad(self._space, block, node, reason)

        def tell() -> None:
            try:
                self._names.report_bad(ask)
            except EverfoldError as err:  # the scrubber finds it too
                _log.info("a bad replica could not be reported: %s", err)

        try:
            self._ahead.submit(tell)
        except RuntimeError:
            _log.info("a bad replica was not reported: the mount is ending")

    # ------------------------------------------------------------------ many blocks

    def prefetch(self, blocks: Iterable[tuple[BlockId, int]], is_passing: bool = False) -> None:
        """Start fetching what is not here, or reading it from this machine's disk.

        Sizes are hints, 0 means unknown.

        Returns at once. What is too much is left out, what fails is left to the reader.
        """
        small: list[BlockId] = []
        large: list[BlockId] = []
        near: list[BlockId] = []
        with self._lock:
            for block, size in blocks:
                if len(self._queued) + len(self._coming) >= _AHEAD_MAX:
                    break
                if block in self._queued or block in self._coming or block in self._flying:
                    continue
                if not self._cache.has(self._space, block):
                    if 0 < size < SMALL_BLOCK:
                        self._coming[block] = Future()
                        small.append(block)
                    else:
                        self._queued.add(block)
                        large.append(block)
                elif size >= SMALL_BLOCK:
                    near.append(block)
        try:
            if small:
                self._ahead.submit(self._spread, small)
            if large:
                self._ahead.submit(self._spread_large, large, is_passing)
            if near:
                self._ahead.submit(self._cache.will_need, self._space, near)
        except RuntimeError:
            _log.info("nothing is prefetched any more: the mount is ending")
            self._give_up(small)

    def _spread_large(self, blocks: list[BlockId], is_passing: bool) -> None:
        """Locate large blocks that have no known place, then fetch each for itself."""
        try:
            self._locate_unknown(blocks)
        finally:
            for block in blocks:
                try:
                    self._ahead.submit(self._fetch_ahead, block, is_passing)
                except RuntimeError:  # the mount is ending
                    self._queued.discard(block)

    def _locate_unknown(self, blocks: list[BlockId]) -> None:
        homeless = [block for block in blocks if not self._nodes.holders(block)]
        if homeless:
            try:
                self._nodes.locate(homeless)
            except EverfoldError as err:
                _log.info("prefetch: %s", err)

    def _fetch_ahead(self, block: BlockId, is_passing: bool) -> None:
        try:
            if not self._cache.has(self._space, block):
                self.fetch(block, is_passing)
        except EverfoldError as err:
            _log.info("prefetch: %s", err)
        finally:
            with self._lock:
                self._queued.discard(block)

    def _spread(self, blocks: list[BlockId]) -> None:
        """Locate small blocks that have no known place, then get them, many from each node."""
        try:
            self._locate_unknown(blocks)
            batches: dict[NodeId, list[BlockId]] = {}
            for block in blocks:
                for node in self._nodes.holders(block)[:1]:
                    batches.setdefault(node, []).append(block)
            for node, batch in batches.items():
                for first in range(0, len(batch), BATCH_BLOCKS):
                    self._fetch_together(node, batch[first : first + BATCH_BLOCKS])
        except EverfoldError as err:
            _log.info("prefetch: %s", err)
        finally:
            self._give_up(blocks)

    def _fetch_together(self, node: NodeId, blocks: Sequence[BlockId]) -> None:
        """Get many small blocks from one node; readers who want one meanwhile wait for it."""
        found = self._nodes.call(
            node,
            len(blocks) * SMALL_BLOCK // 4,
            lambda client: client.get_many(list(blocks), self._timing.attempt_s),
        )
        for block, data in found.items():
            if blockid.name_of(data) == block:
                self._cache.put(self._space, block, data)
                with self._lock:
                    coming = self._coming.pop(block, None)
                if coming is not None:
                    coming.set_result(data)

    def _give_up(self, blocks: Iterable[BlockId]) -> None:
        """Let readers who wait for what did not come fetch it themselves."""
        with self._lock:
            left = [self._coming.pop(block, None) for block in blocks]
        for coming in left:
            if coming is not None:
                coming.set_exception(_Abandoned())


def _told(failures: dict[NodeId, Kind]) -> str:
    told = ", ".join(f"{node}: {kind.value}" for node, kind in failures.items())
    return f"no node gave the block ({told or 'none is known'})"
