"""Small blocks, packed: many records in one append-only file, one sync for many puts.

Invariants: a block that was acknowledged lies before `PackFile.synced`; the index names only
whole records; a pack is removed only when everything alive in it has been synced elsewhere.
So a crash at any moment leaves packs from which the index can be made again, and the worst
that comes back is a deleted block.

Lock order: `_lock` (index and appends), then a pack's own, then the index's own.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.files import Files, Piece, error_of, translated
from everfold.model import BlockId, SpaceId
from everfold.stores import packformat
from everfold.stores.packfile import SUFFIX, PackFile
from everfold.stores.packformat import BLOCK, HEAD_SIZE, TOMBSTONE, Record
from everfold.stores.packindex import PackIndex, Place, Row

PACK_SIZE = 64 * 1024 * 1024
_BATCH = 5_000
_COPY_BYTES = 1024 * 1024
_READ_BYTES = 1024 * 1024  # at once: 8.3 us a block of 4 KiB, 12.7 one by one, 7.8 with 4 MiB
Key = tuple[SpaceId, BlockId]


class PackStore:
    """A folder of packs. Threads may share it; processes may not. `close` it in the end."""

    def __init__(
        self, folder: Path, files: Files | None = None, pack_size: int = PACK_SIZE
    ) -> None:
        self._folder = folder
        self._files = files or Files()
        self._pack_size = pack_size
        self._lock = (
            threading.Lock()
        )  # guards _packs, _active, _is_closed, appends and index changes
        self._packs: dict[int, PackFile] = {}
        self._is_closed = False
        with translated(str(folder)):
            self._files.make_folder("pack.mkdir", folder)
            self._index = PackIndex(folder, self._files)
            self._open()

    # ------------------------------------------------------------ start and end

    def _open(self) -> None:
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            number = int(path.stem)
            self._packs[number] = PackFile(self._folder, number, self._files)
        sizes = {number: pack.size for number, pack in self._packs.items()}
        if not self._index.was_complete:
            self._rebuild()
        elif sizes != self._index.sizes():
            self._index.abandon()
            self._index = PackIndex(self._folder, self._files)
            self._rebuild()
        for number, (count, size) in self._index.live_bytes().items():
            self._packs[number].live = size + count * HEAD_SIZE
        self._active = max(self._packs, default=0)

    def _rebuild(self) -> None:
        """Make the index from the packs; cut the last one where it is torn."""
        self._files.sync_all("pack.recover", self._folder)
        last = max(self._packs, default=0)
        for number in sorted(self._packs):
            pack, end = self._packs[number], 0
            words: dict[Key, Row | None] = {}
            for record in packformat.scan(pack.fd, pack.size, is_verified=number == last):
                key, end = (record.space, record.block), record.end
                words[key] = _row(record, number) if record.kind == BLOCK else None
                if len(words) >= _BATCH:
                    self._note(words)
            self._note(words)
            if number == last and end < pack.size:
                pack.cut(end)

    def _note(self, words: dict[Key, Row | None]) -> None:
        self._index.insert([row for row in words.values() if row is not None])
        self._index.remove([key for key, row in words.items() if row is None])
        words.clear()

    def close(self) -> None:
        """End in order, so that the next start need not read the packs."""
        with self._lock, translated(str(self._folder)):
            for pack in self._packs.values():
                if not pack.is_poisoned:
                    pack.sync(pack.size)
                    pack.trim()
            self._is_closed = True
            self._index.close({number: pack.size for number, pack in self._packs.items()})
            self._packs.clear()

    def abandon(self) -> None:
        """Let go without any tidying, as a crash would."""
        with self._lock:
            self._is_closed = True
            self._index.abandon()
            self._packs.clear()

    # ------------------------------------------------------------ the block store

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """See `services.BlockStore.put`."""
        self.add_many(space, [(block, data)])

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """See `services.BlockStore.put_many`: one append, one sync."""
        self.add_many(space, blocks)

    def add(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> bool:
        """Put a block; tell whether it is new."""
        return self.add_many(space, [(block, data)])[0]

    def add_many(
        self,
        space: SpaceId,
        blocks: Sequence[tuple[BlockId, bytes | memoryview]],
        is_checked: bool = False,
    ) -> list[bool]:
        """Put blocks, all or none; tell which are new. Rotten ones are written anew.

        `is_checked`: the caller has compared the bytes with the names.
        """
        if not is_checked:
            for block, data in blocks:
                blockid.check(block, data)
        fresh = dict(blocks)
        waits: dict[PackFile, int] = {}  # -> up to where it must be durable
        with self._lock:
            try:
                places = self._index.find_many(space, fresh)
                for block, place in sorted(places.items(), key=lambda pair: pair[1]):
                    if self._is_sound(block, place):
                        waits[self._packs[place.pack]] = place.at + HEAD_SIZE + place.size
                        del fresh[block]
                if fresh:
                    pack = self._append_blocks(space, fresh, places)
                    waits[pack] = pack.size
            except OSError as err:  # plainly, not `translated`: that costs 1.5 us
                raise error_of(err, "packs") from err
        try:
            for pack, end in waits.items():
                pack.sync(end)
        except EverfoldError:
            self._forget(space, fresh)
            raise
        if not places and len(fresh) == len(blocks):
            return [True] * len(blocks)
        new = fresh.keys() - places.keys()
        firsts = {b: i for i, (b, _) in reversed(list(enumerate(blocks)))}
        return [b in new and firsts[b] == i for i, (b, _) in enumerate(blocks)]

    def _append_blocks(
        self,
        space: SpaceId,
        fresh: dict[BlockId, bytes | memoryview],
        olds: dict[BlockId, Place],
    ) -> PackFile:
        pack = self._writable()
        pieces: list[Piece] = []
        rows: list[Row] = []
        number, at, head = pack.number, pack.size, packformat.head
        for block, data in fresh.items():
            size = len(data)
            pieces.append(head(BLOCK, space, block, size))
            pieces.append(data)
            rows.append(Row(block, space, number, at, size))
            at += HEAD_SIZE + size
        self._append(pack, pieces, rows, [olds[b] for b in fresh if b in olds] if olds else ())
        return pack

    def _append(
        self, pack: PackFile, pieces: list[Piece], rows: list[Row], olds: Sequence[Place]
    ) -> None:
        """Append records and index the blocks among them, all or nothing.

        `olds`: the places that they had before, which become garbage.
        """
        start = pack.append("pack.write", pieces)
        try:
            self._index.insert(rows)
        except EverfoldError:
            pack.cut(start)
            raise
        for old in olds:
            self._packs[old.pack].live -= HEAD_SIZE + old.size
        pack.live += HEAD_SIZE * len(rows) + sum([row.size for row in rows])

    def _is_sound(self, block: BlockId, place: Place) -> bool:
        try:
            raw = self._packs[place.pack].read(place.at, HEAD_SIZE + place.size)
        except OSError:  # the medium lost it: as good as rotten
            return False
        record = packformat.read_head(raw[:HEAD_SIZE], place.at)
        return record is not None and blockid.name_of(raw[HEAD_SIZE:]) == block

    def _writable(self) -> PackFile:
        """Return the pack that is being filled; start another when it is full or poisoned."""
        if self._is_closed:
            raise EverfoldError(Kind.UNAVAILABLE, "the store is closed", str(self._folder))
        pack = self._packs.get(self._active)
        if pack is None or pack.is_poisoned or pack.size >= self._pack_size:
            if pack is not None and not pack.is_poisoned:
                pack.sync(pack.size)  # so that no pack but the last may be torn
            number = max(self._packs, default=0) + 1
            self._files.at("pack.create")
            pack = PackFile(self._folder, number, self._files)
            self._files.sync_folder("pack.create.folder", self._folder)
            self._packs[number] = pack
            self._active = number
        return pack

    def _forget(self, space: SpaceId, fresh: dict[BlockId, bytes | memoryview]) -> None:
        """Take back what could not be made durable."""
        with self._lock:
            for block in fresh:
                place = self._index.find(space, block)
                if place is not None and self._packs[place.pack].is_poisoned:
                    self._index.remove([(space, block)])
                    self._packs[place.pack].live -= HEAD_SIZE + place.size

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """See `services.BlockStore.get`."""
        data = self.read(space, block)
        if blockid.name_of(data) != block:
            raise EverfoldError(Kind.CORRUPT, "the bytes on disk have rotted", block.hex())
        return data

    def read(self, space: SpaceId, block: BlockId) -> bytes:
        """Return the bytes as they are on disk; only the record's head is checked."""
        place = self._index.find(space, block)
        pack = self._packs.get(place.pack) if place else None
        if place and pack is None:  # compacted in between: the index knows where to
            place = self._index.find(space, block)
            pack = self._packs.get(place.pack) if place else None
        if place is None or pack is None:
            raise EverfoldError(Kind.NOT_FOUND, "not kept here", block.hex())
        try:
            raw = pack.read(place.at, HEAD_SIZE + place.size)
        except OSError as err:
            if err.errno == errno.EIO:
                raise EverfoldError(Kind.CORRUPT, "cannot be read", block.hex()) from err
            raise error_of(err, block.hex()) from err
        if raw[:HEAD_SIZE] != packformat.head(BLOCK, space, block, place.size):
            raise EverfoldError(Kind.CORRUPT, "the record's head has rotted", block.hex())
        return raw[HEAD_SIZE:]

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """See `services.BlockStore.get_many`."""
        found = self.get_sound(space, self._index.find_many(space, blocks))
        for block in blocks:
            if block not in found:  # moved, rotten or not here: the careful way tells
                with contextlib.suppress(EverfoldError):
                    found[block] = self.get(space, block)
        return found

    def find_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, Place]:
        """Return where those of these blocks are that are packed, for `get_sound`."""
        return self._index.find_many(space, blocks)

    def get_sound(self, space: SpaceId, places: dict[BlockId, Place]) -> dict[BlockId, bytes]:
        """Return those blocks that are sound and still at these places.

        Neighbours are read at once: blocks that came together are mostly asked for together.
        """
        found = {}
        name_of, head = blockid.name_of, packformat.head
        for number, start, end, some in _stretches(places):
            pack = self._packs.get(number)
            if pack is None:
                continue
            try:
                raw = pack.read(start, end - start)
            except OSError:
                continue
            for block, (_, at, size) in some:
                at -= start
                data = raw[at + HEAD_SIZE : at + HEAD_SIZE + size]
                is_its = raw.startswith(head(BLOCK, space, block, size), at)
                if is_its and name_of(data) == block:
                    found[block] = data
        return found

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """See `services.BlockStore.size_of`."""
        place = self._index.find(space, block)
        return None if place is None else place.size

    def delete(self, space: SpaceId, block: BlockId, if_rotten: bool = False) -> bool:
        """See `services.BlockStore.delete`. Not synced: a lost delete is only told again.

        `if_rotten`: leave it when its bytes are right (another may just have written it anew).
        """
        with self._lock, translated(block.hex()):
            place = self._index.find(space, block)
            if place is None or (if_rotten and self._is_sound(block, place)):
                return False
            self._writable().append("pack.delete", [packformat.head(TOMBSTONE, space, block, 0)])
            self._index.remove([(space, block)])
            self._packs[place.pack].live -= HEAD_SIZE + place.size
        return True

    def blocks(self) -> Iterator[wire.Held]:
        """See `services.BlockStore.blocks`."""
        return self._index.held()

    def under(self, prefix: int) -> Iterator[wire.Held]:
        """Yield the blocks whose name starts with the byte `prefix`."""
        return self._index.held(prefix)

    # ------------------------------------------------------------ compaction

    def size_on_disk(self) -> int:
        """Return the bytes of all packs, garbage included."""
        with self._lock:
            return sum(pack.size for pack in self._packs.values())

    def compact_one(self, on_rotten: Callable[[SpaceId, BlockId], object]) -> bool:
        """Move what lives out of one pack that is more than half garbage, and remove it.

        Return False when there is no such pack. A rotten block stops the work: it is told to
        `on_rotten` (which forgets it) rather than copied, and the next call goes on.
        """
        with self._lock:
            wasteful = [
                pack
                for pack in self._packs.values()
                if pack.number != self._active and pack.size and pack.live * 2 < pack.size
            ]
        if not wasteful:
            return False
        with translated("packs"):
            self._compact(min(wasteful, key=lambda pack: pack.number), on_rotten)
        return True

    def _compact(self, pack: PackFile, on_rotten: Callable[[SpaceId, BlockId], object]) -> None:
        moved: dict[Key, Row] = {}
        targets: dict[PackFile, int] = {}
        rotten: Key | None = None
        for batch in _batches(packformat.scan(pack.fd, pack.size, is_verified=False)):
            with self._lock:
                rotten = self._move(pack, batch, moved, targets)
            if rotten is not None:
                break
        try:
            for target, end in targets.items():
                target.sync(end)
        except EverfoldError:
            self._move_back(moved)
            raise
        if rotten is not None:
            on_rotten(*rotten)
            return
        with self._lock:
            del self._packs[pack.number]
            self._files.remove("pack.compact.remove", pack.path)
        self._files.sync_folder("pack.compact.folder", self._folder)

    def _move(
        self,
        pack: PackFile,
        batch: list[Record],
        moved: dict[Key, Row],
        targets: dict[PackFile, int],
    ) -> Key | None:
        """Append what still holds of these records elsewhere; return a rotten one, if any."""
        target = self._writable()
        pieces: list[Piece] = []
        rows, at = [], target.size
        olds: list[Place] = []
        is_oldest = pack.number == min(self._packs)
        for record in batch:
            place = self._index.find(record.space, record.block)
            raw = b""
            if record.kind == BLOCK and place == (pack.number, record.at, record.size):
                raw = pack.read(record.at, HEAD_SIZE + record.size)
                if blockid.name_of(raw[HEAD_SIZE:]) != record.block:
                    return record.space, record.block
                rows.append(Row(record.block, record.space, target.number, at, record.size))
                moved[record.space, record.block] = _row(record, pack.number)
                olds.append(place)
            elif record.kind == TOMBSTONE and place is None and not is_oldest:
                raw = packformat.head(TOMBSTONE, record.space, record.block, 0)
            if raw:
                pieces.append(raw)
                at += len(raw)
        if pieces:
            self._files.at("pack.compact.copy")
            self._append(target, pieces, rows, olds)
            targets[target] = target.size
        return None

    def _move_back(self, moved: dict[Key, Row]) -> None:
        """Let the index name the old records again: the new ones may not be durable."""
        with self._lock:
            for (space, block), row in moved.items():
                place = self._index.find(space, block)
                if place is not None and self._packs[place.pack].is_poisoned:
                    self._index.insert([row])
                    self._packs[place.pack].live -= HEAD_SIZE + row.size
                    self._packs[row.pack].live += HEAD_SIZE + row.size


def _stretches(
    places: dict[BlockId, Place],
) -> Iterator[tuple[int, int, int, list[tuple[BlockId, Place]]]]:
    """Yield (pack, start, end, blocks there) for records that follow each other."""
    some: list[tuple[BlockId, Place]] = []
    number = start = end = -1
    for pair in sorted(places.items(), key=itemgetter(1)):
        pack, at, size = pair[1]
        if at != end or pack != number or end - start >= _READ_BYTES:
            if some:
                yield number, start, end, some
            some, number, start = [], pack, at
        some.append(pair)
        end = at + HEAD_SIZE + size
    if some:
        yield number, start, end, some


def _row(record: Record, pack: int) -> Row:
    return Row(record.block, record.space, pack, record.at, record.size)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += HEAD_SIZE + record.size
        if size >= _COPY_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
