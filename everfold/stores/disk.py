"""Large blocks, one file each: ``<root>/<space>/aa/bb/<hash>``.

The folder tree is the only index. Invariant: a file that bears a block's name was written,
synced and checked before it got that name; what is not so lies in `temp` and is swept at
start by the owner of the root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.files import Files, error_of, translated
from everfold.model import BlockId, SpaceId

_STRIPES = 64


class DiskStore:
    """One folder of block files. Threads may share it; processes may not."""

    def __init__(self, root: Path, files: Files | None = None, temp: Path | None = None) -> None:
        self._root = root
        self._files = files or Files()
        self._temp = temp or root / "tmp"
        with translated(str(root)):
            self._files.make_folder("disk.mkdir", root)
            self._files.make_folder("disk.mkdir", self._temp)
            for leftover in self._temp.iterdir():
                leftover.unlink()
        # One lock a stripe of names: a put of a block that another thread is putting must
        # wait until it is durable before it may say "already kept".
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        self._folders = threading.Lock()  # a folder that others can see is durable; after a stripe

    def path_of(self, space: SpaceId, block: BlockId) -> Path:
        """Return where the block's file is, or would be."""
        name = block.hex()
        return self._root / str(space) / name[:2] / name[2:4] / name

    def add(
        self,
        space: SpaceId,
        block: BlockId,
        data: bytes | memoryview,
        is_checked: bool = False,
    ) -> bool:
        """Put a block; tell whether it is new. What is kept but rotten is written anew.

        `is_checked`: the caller has compared the bytes with the name.
        """
        if not is_checked:
            blockid.check(block, data)
        path = self.path_of(space, block)
        with translated(block.hex()), self._stripes[block[-1] % _STRIPES]:
            is_new = not path.exists()
            if not is_new and self._is_sound(path, block):
                return False
            if not path.parent.is_dir():
                with self._folders:
                    self._files.make_folder("disk.mkdir", path.parent)
            try:
                self._files.keep("disk", path, [data], self._temp)
            except OSError:  # visible, perhaps, but not durable: must not be found by the next put
                path.unlink(missing_ok=True)
                raise
        return is_new

    def _is_sound(self, path: Path, block: BlockId) -> bool:
        try:
            return blockid.name_of(path.read_bytes()) == block
        except OSError:
            return False

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """See `services.BlockStore.put`."""
        self.add(space, block, data)

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """See `services.BlockStore.put_many`; each file is synced by itself."""
        for block, data in blocks:
            self.add(space, block, data)

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """See `services.BlockStore.get`. A file that the medium cannot read is CORRUPT."""
        data = self.read(space, block)
        if blockid.name_of(data) != block:
            raise EverfoldError(Kind.CORRUPT, "the bytes on disk have rotted", block.hex())
        return data

    def read(self, space: SpaceId, block: BlockId) -> bytes:
        """Return the bytes as they are on disk, unverified."""
        try:
            return self.path_of(space, block).read_bytes()
        except OSError as err:
            if err.errno == errno.EIO:
                raise EverfoldError(Kind.CORRUPT, "cannot be read", block.hex()) from err
            raise error_of(err, block.hex()) from err

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """See `services.BlockStore.get_many`."""
        found = {}
        for block in blocks:
            with contextlib.suppress(EverfoldError):
                found[block] = self.get(space, block)
        return found

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """See `services.BlockStore.size_of`."""
        try:
            return os.stat(self.path_of(space, block)).st_size
        except FileNotFoundError:
            return None
        except OSError as err:
            raise error_of(err, block.hex()) from err

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """See `services.BlockStore.delete`. Not synced: a lost delete is only told again."""
        with self._stripes[block[-1] % _STRIPES]:
            try:
                self._files.remove("disk.delete", self.path_of(space, block))
            except FileNotFoundError:
                return False
            except OSError as err:
                raise error_of(err, block.hex()) from err
        return True

    def move_out(self, space: SpaceId, block: BlockId, target: Path) -> bool:
        """Rename a rotten block's file out of the store; False when it is gone or sound again."""
        path = self.path_of(space, block)
        with self._stripes[block[-1] % _STRIPES]:
            if self._is_sound(path, block):
                return False
            try:
                self._files.rename("disk.quarantine", path, target)
            except FileNotFoundError:
                return False
            except OSError as err:
                raise error_of(err, block.hex()) from err
        return True

    def blocks(self) -> Iterator[wire.Held]:
        """See `services.BlockStore.blocks`."""
        for prefix in range(256):
            yield from self.under(prefix)

    def under(self, prefix: int) -> Iterator[wire.Held]:
        """Yield the blocks whose name starts with the byte `prefix`."""
        for space in self._spaces():
            top = self._root / str(space) / f"{prefix:02x}"
            for folder in _entries(top):
                for file in _entries(Path(folder.path)):
                    with contextlib.suppress(EverfoldError, FileNotFoundError):
                        block = blockid.parse(file.name)
                        yield wire.Held(space, block, file.stat().st_size)

    def _spaces(self) -> list[SpaceId]:
        return [SpaceId(int(e.name)) for e in _entries(self._root) if e.name.isdecimal()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise error_of(err, str(folder)) from err
