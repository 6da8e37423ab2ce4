"""Failure as an input: stores that are down, slow, full or lying, and files that break.

`FaultyStore` wraps any block store; its fields may be changed at any time. `BreakingFiles`
fails or dies at a labelled file call, as the disk or the machine would.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.files import Files, Piece
from everfold.model import BlockId, SpaceId
from everfold.services import BlockStore


class FaultyStore:
    """A block store that misbehaves as told."""

    def __init__(self, inner: BlockStore) -> None:
        self.inner = inner
        self.is_down = False
        self.is_full = False
        self.is_lying = False  # flips a bit of whatever it gives
        self.delay_s = 0.0
        self.calls = 0
        self._never = threading.Event()

    def _suffer(self, is_write: bool = False) -> None:
        self.calls += 1
        if self.delay_s:
            self._never.wait(self.delay_s)
        if self.is_down:
            raise EverfoldError(Kind.UNAVAILABLE, "the store is down")
        if is_write and self.is_full:
            raise EverfoldError(Kind.NO_SPACE, "the store is full")

    def _tell(self, data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:] if self.is_lying else data

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        self._suffer(is_write=True)
        self.inner.put(space, block, data)

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        self._suffer(is_write=True)
        self.inner.put_many(space, blocks)

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        self._suffer()
        return self._tell(self.inner.get(space, block))

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        self._suffer()
        found = self.inner.get_many(space, blocks)
        return {block: self._tell(data) for block, data in found.items()}

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        self._suffer()
        return self.inner.size_of(space, block)

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        self._suffer()
        return self.inner.delete(space, block)

    def blocks(self) -> Iterator[wire.Held]:
        self._suffer()
        return self.inner.blocks()


class Died(BaseException):
    """The process died here; nothing below may tidy up after it."""


class BreakingFiles(Files):
    """File calls that fail when `fault` says so, and that write down their labels.

    `fault(label, nth)` is asked before each call, `nth` counting the calls of that label from
    1; it raises OSError for a failing disk or `Died` for a crash.
    """

    def __init__(self, fault: Callable[[str, int], None] | None = None) -> None:
        self.fault = fault or (lambda label, nth: None)
        self.labels: list[str] = []
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def at(self, label: str) -> None:
        with self._lock:
            self._counts[label] = nth = self._counts.get(label, 0) + 1
            self.labels.append(label)
        self.fault(label, nth)


class TearingFiles(BreakingFiles):
    """Dies in the middle of a write: at `label`, `kept` bytes reach the file and no more."""

    def __init__(self, label: str, kept: int) -> None:
        super().__init__()
        self._label = label
        self._kept = kept

    def write(self, label: str, fd: int, pieces: Sequence[Piece], offset: int) -> int:
        if label != self._label:
            return super().write(label, fd, pieces, offset)
        whole = b"".join(pieces)
        super().write(label, fd, [whole[: self._kept]], offset)
        raise Died(label)


def fail_at(label: str, code: int, nth: int = 1) -> Callable[[str, int], None]:
    """Return a fault: the `nth` call under `label` fails with this errno."""

    def fault(at: str, count: int) -> None:
        if at == label and count == nth:
            raise OSError(code, "injected")

    return fault


def die_at(label: str, nth: int = 1) -> Callable[[str, int], None]:
    """Return a fault: the process dies before the `nth` call under `label`."""

    def fault(at: str, count: int) -> None:
        if at == label and count == nth:
            raise Died(label)

    return fault
