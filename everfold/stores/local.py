"""All the blocks of one machine: small ones packed, large ones as files, under one root.

    <root>/<space>/aa/<hash>      blocks of SMALL_BLOCK bytes and more
    <root>/packs/                 smaller ones
    <root>/quarantine/            what did not match its name, kept as evidence
    <root>/tmp/                   what was being written; swept at start

Invariant: `get` never returns bytes that do not match, and what was found rotten is not kept
any more: it is put aside and told to `on_bad`, and the next put of it writes it anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.files import Files, translated
from everfold.model import SMALL_BLOCK, BlockId, SpaceId
from everfold.stores.disk import DiskStore
from everfold.stores.packs import PACK_SIZE, PackStore

_EVIDENCE_MAX = 64  # files kept in quarantine; older ones go
_FLOOR_MIN = 64 * 1024 * 1024
_NEAR = 1024 * 1024 * 1024
_ROOM_TTL_S = 1.0


class Room(NamedTuple):
    """The filesystem's figures, in bytes, as statvfs tells them."""

    total: int
    free: int


def room_of(path: Path) -> Room:
    """Ask the filesystem under `path`."""
    with translated(str(path)):
        told = os.statvfs(path)
    return Room(told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize)


class LocalStore:
    """One root. Threads may share it; processes may not. `close` it in the end.

    `floor`: bytes that stay free on the filesystem (None: 1 %, at least 64 MiB). `on_bad` is
    called once for each block that is found rotten, after it was put aside.
    """

    def __init__(
        self,
        root: Path,
        files: Files | None = None,
        floor: int | None = None,
        pack_size: int = PACK_SIZE,
        room: Callable[[Path], Room] = room_of,
        on_bad: Callable[[wire.Held], None] | None = None,
    ) -> None:
        self.root = root
        self._files = files or Files()
        self._room = room
        self.on_bad = on_bad or (lambda held: None)
        self._quarantine = root / "quarantine"
        with translated(str(root)):
            self._files.make_folder("local.mkdir", root)
            self._files.make_folder("local.mkdir", self._quarantine)
        self.floor = max(_FLOOR_MIN, room(root).total // 100) if floor is None else floor
        self._spare, self._asked_at = 0, -_ROOM_TTL_S  # bytes above the floor, when that was so
        self._large = DiskStore(root, self._files, root / "tmp")
        self._small = PackStore(root / "packs", self._files, pack_size)

    def close(self) -> None:
        """End in order."""
        self._small.close()

    def abandon(self) -> None:
        """Let go without any tidying, as a crash would."""
        self._small.abandon()

    # ------------------------------------------------------------ the block store

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """See `services.BlockStore.put`."""
        self.add(space, block, data)

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """See `services.BlockStore.put_many`."""
        self.add_many(space, blocks)

    def add(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> bool:
        """Put a block; tell whether it is new."""
        self._require_room(len(data))
        if len(data) < SMALL_BLOCK:
            return self._small.add_many(space, [(block, data)])[0]
        return self._large.add(space, block, data)

    def add_many(
        self,
        space: SpaceId,
        blocks: Sequence[tuple[BlockId, bytes | memoryview]],
        is_checked: bool = False,
    ) -> list[bool]:
        """Put blocks; tell which are new. All the small ones share one sync.

        `is_checked`: the caller has compared the bytes with the names.
        """
        self._require_room(sum([len(data) for _, data in blocks]))
        small = [pair for pair in blocks if len(pair[1]) < SMALL_BLOCK]
        news = self._small.add_many(space, small, is_checked) if small else []
        if len(small) == len(blocks):
            return news
        of_small = iter(news)
        return [
            next(of_small)
            if len(data) < SMALL_BLOCK
            else self._large.add(space, block, data, is_checked)
            for block, data in blocks
        ]

    def _require_room(self, size: int) -> None:
        """Refuse what would go below the floor.

        The filesystem is asked once a second (it costs 5 us), and always near the floor.
        """
        self._spare -= size
        if self._spare < _NEAR or time.monotonic() > self._asked_at + _ROOM_TTL_S:
            self._asked_at = time.monotonic()
            self._spare = self._room(self.root).free - size - self.floor
        if self._spare < 0:
            raise EverfoldError(Kind.NO_SPACE, "the disk is filled to its floor", str(self.root))

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """See `services.BlockStore.get`. Rotten bytes are put aside before CORRUPT is raised."""
        try:
            try:
                return self._small.get(space, block)
            except EverfoldError as err:
                if err.kind is not Kind.NOT_FOUND:
                    raise
            return self._large.get(space, block)
        except EverfoldError as err:
            if err.kind is Kind.CORRUPT:
                self.put_aside(space, block)
            raise

    def verify(self, space: SpaceId, block: BlockId) -> None:
        """Read and check a block as `get` does, without keeping its bytes in memory."""
        if self._small.size_of(space, block) is not None:
            self.get(space, block)
            return
        try:
            self._large.verify(space, block)
        except EverfoldError as err:
            if err.kind is Kind.CORRUPT:
                self.put_aside(space, block)
            raise

    def unproven(self, space: SpaceId, blocks: Sequence[BlockId]) -> list[BlockId]:
        """Return those of these blocks that are not small and sound: `verify` tells of them."""
        sound = self._small.get_sound(space, self._small.find_many(space, blocks))
        return [block for block in blocks if block not in sound]

    def get_many(
        self, space: SpaceId, blocks: Sequence[BlockId], limit: int | None = None
    ) -> dict[BlockId, bytes]:
        """See `services.BlockStore.get_many`; TOO_LARGE before more than `limit` bytes are read."""
        places = self._small.find_many(space, blocks)
        if limit is not None:
            size = sum([place.size for place in places.values()])
            if len(places) < len(blocks):
                large = (self._large.size_of(space, b) or 0 for b in blocks if b not in places)
                size += sum(large)
            if size > limit:
                raise EverfoldError(Kind.TOO_LARGE, f"more than {limit} bytes in one answer")
        found = self._small.get_sound(space, places)
        for block in blocks:
            if block not in found:  # large, moved, rotten or not here
                with contextlib.suppress(EverfoldError):
                    found[block] = self.get(space, block)
        return found

    def open_file(self, space: SpaceId, block: BlockId) -> io.FileIO | None:
        """Open the file that holds exactly this block, when it has one of its own."""
        return self._large.open(space, block)

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """See `services.BlockStore.size_of`."""
        size = self._small.size_of(space, block)
        return size if size is not None else self._large.size_of(space, block)

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """See `services.BlockStore.delete`."""
        return self._small.delete(space, block) or self._large.delete(space, block)

    def blocks(self) -> Iterator[wire.Held]:
        """See `services.BlockStore.blocks`."""
        yield from self._small.blocks()
        yield from self._large.blocks()

    def under(self, prefix: int) -> Iterator[wire.Held]:
        """Yield the blocks whose name starts with the byte `prefix`."""
        yield from self._small.under(prefix)
        yield from self._large.under(prefix)

    # ------------------------------------------------------------ room and rot

    def free(self) -> int:
        """Return how many bytes may still be put before the floor is reached."""
        return max(0, self._room(self.root).free - self.floor)

    def put_aside(self, space: SpaceId, block: BlockId) -> bool:
        """Move a rotten block to quarantine and tell `on_bad`; False when it is gone already."""
        size = self.size_of(space, block)
        if size is None:
            return False
        self._drop_old_evidence()
        evidence = self._quarantine / f"{space}-{block.hex()}-{time.time_ns()}"
        if self._small.size_of(space, block) is not None:
            with translated(block.hex()), contextlib.suppress(EverfoldError):
                # the bytes are evidence, no more: losing them must not keep the block alive
                evidence.write_bytes(self._small.read(space, block))
            was_there = self._small.delete(space, block, if_rotten=True)
        else:
            was_there = self._large.move_out(space, block, evidence)
        if was_there:
            self.on_bad(wire.Held(space, block, size))
        return was_there

    def _drop_old_evidence(self) -> None:
        with translated(str(self._quarantine)):
            kept = sorted(self._quarantine.iterdir(), key=lambda p: p.name.rsplit("-", 1)[-1])
            for path in kept[: max(0, len(kept) - _EVIDENCE_MAX + 1)]:
                path.unlink(missing_ok=True)

    def tidy(self) -> bool:
        """Compact one pack that is mostly garbage; False when there is none."""
        return self._small.compact_one(self.put_aside)
