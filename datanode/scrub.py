"""Reading everything that is kept, slowly and for ever, to find rot before anyone needs it.

One thread goes round the 256 prefixes: it recounts what is there, then reads and verifies
each block at a bounded rate. Where it stands is remembered over restarts. Between prefixes
it tidies packs that are mostly garbage. Whoever wants blocks goes first: while they do it
takes 0.25 % of a core (10,000 blocks of 4 KiB; one by one, with a wait for each, 2.1).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from datanode.copying import Pace
from datanode.node import Node
from everfold import wire
from everfold.errors import EverfoldError

log = logging.getLogger("datanode.scrub")
_RATE_MIN = 4 * 1024 * 1024
_RATE_MAX = 32 * 1024 * 1024  # 2 % of a core, and a fifth of a slow disk
_PASS_S = 60.0  # a full pass takes so long, as far as these rates allow
_PAUSE_S = 0.2
_PREFIXES = 256
_QUIET = 50  # prefixes in a row without anybody asking: 10 s after a burst, not between two
_BUSY_PAUSES = 5  # as long between prefixes while somebody asks
_EACH = 16 * 1024  # bytes that stand for what a block of any size costs: 20 to 30 us
_BATCH = 512 * 1024  # bytes of small blocks that are read at once


class Scrub(threading.Thread):
    """Scrubs until `close`.

    `rate` in bytes a second; None: a pass a minute, as far as 4 to 32 MiB/s allow, and the
    least of it while the node is asked for blocks, and for ten seconds after.
    """

    def __init__(self, node: Node, rate: float | None = None, pause_s: float = _PAUSE_S) -> None:
        super().__init__(name="scrub", daemon=True)
        self._node = node
        self._rate = rate
        self._pause_s = pause_s  # between prefixes
        self._pace = Pace(_RATE_MIN)
        self._asked = 0  # blocks put and got until the last prefix
        self._quiet = _QUIET  # prefixes since somebody asked
        self._ended = threading.Event()
        self._place = node.store.root / "scrub.position"
        self.passes = 0  # full rounds since the start

    @property
    def rate(self) -> float:
        """Return the bytes a second that the last prefix was read at, at most."""
        return self._pace.rate

    def close(self) -> None:
        """Stop."""
        self._ended.set()
        if self.is_alive():
            self.join(10)

    def run(self) -> None:
        """Go round and round."""
        prefix = self._read_place()
        while not self._ended.wait(self._pause_s * (_BUSY_PAUSES if self._is_busy else 1)):
            try:
                self.scrub(prefix)
                while not self._ended.is_set() and self._node.store.tidy():
                    self._node.count("compactions")
            except EverfoldError as err:
                log.warning("scrubbing %02x: %s", prefix, err)
            except Exception:  # a defect must be seen, and must not end the scrubbing
                log.exception("scrubbing %02x", prefix)
            prefix = (prefix + 1) % _PREFIXES
            self.passes += prefix == 0
            self._write_place(prefix)

    def scrub(self, prefix: int) -> None:
        """Verify all that is kept under a prefix."""
        self._pace.rate = self._rate or self._own_rate()
        for some in _batches(self._node.recount(prefix)):
            size = sum([held.size for held in some])
            if self._ended.wait(self._pace.delay(size + _EACH * len(some))):
                return
            self._node.verify_all(some)
            self._node.count("scrubbed", len(some))
            self._node.count("scrubbed_bytes", size)

    def _own_rate(self) -> float:
        """Return how fast to read the next prefix."""
        asked = self._node.counters["gets"] + self._node.counters["puts"]
        self._quiet = 0 if asked != self._asked else self._quiet + 1
        self._asked = asked
        if self._is_busy:
            return _RATE_MIN
        return min(_RATE_MAX, max(_RATE_MIN, self._node.ledger.totals()[1] / _PASS_S))

    @property
    def _is_busy(self) -> bool:
        return self._quiet < _QUIET

    def _read_place(self) -> int:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(Path(self._place).read_text()) % _PREFIXES
        return 0

    def _write_place(self, prefix: int) -> None:
        """Not durable on purpose: a lost position means that a few blocks are read twice."""
        with contextlib.suppress(OSError):
            self._place.write_text(f"{prefix}\n")


def _batches(held: Sequence[wire.Held]) -> Iterator[list[wire.Held]]:
    batch: list[wire.Held] = []
    size = 0
    for one in held:
        if batch and size + one.size > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.size
    if batch:
        yield batch
