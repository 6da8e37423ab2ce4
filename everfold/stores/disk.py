"""Large blocks, one file each: ``<root>/<space>/aa/<hash>``.

The folder tree is the only index. Invariant: a file that bears a block's name was written,
synced and checked before it got that name; what is not so lies in `temp` and is swept at
start by the owner of the root.

One level of folders, all made when a space is met: with two, almost every block of the first
200 GB made one and synced two more: 0.4 ms of CPU and a commit of the filesystem's log each.
A TB has 1,000 files a folder.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from blake3 import blake3

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.files import Files, error_of, translated
from everfold.model import BlockId, SpaceId

_STRIPES = 64
_PIECE = 256 * 1024


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
        self._folders = threading.Lock()  # guards _ready; after a stripe
        self._ready: set[SpaceId] = set()  # spaces whose folders are there, durably
        with translated(str(root)):
            self._flatten()

    def _flatten(self) -> None:
        """Move what earlier versions kept a level deeper (aa/bb/<hash>) to its place.

        A cut leaves each block under the one name or the other; the next start goes on.
        """
        moved = False
        for space in self._spaces():
            for top in _entries(self._root / str(space)):
                if top.stat().st_nlink == 2:  # it has no folders, says the filesystem
                    continue
                for folder in _entries(Path(top.path)):
                    if len(folder.name) != 2:
                        continue
                    for file in _entries(Path(folder.path)):
                        self._files.rename("disk.flatten", Path(file.path), Path(top) / file.name)
                        moved = True
                    if folder.is_dir():
                        os.rmdir(folder)
        if moved:
            self._files.sync_all("disk.flatten", self._root)

    def path_of(self, space: SpaceId, block: BlockId) -> Path:
        """Return where the block's file is, or would be."""
        return Path(self._name_of(space, block))

    def _name_of(self, space: SpaceId, block: BlockId) -> str:
        name = block.hex()
        return f"{self._root}/{space}/{name[:2]}/{name}"

    def add(
        self,
        space: SpaceId,
        block: BlockId,
        data: bytes | memoryview,
        is_checked: bool = False,
    ) -> bool:
        """Put a block; tell whether it is new. What is kept but rotten is written anew.

        `is_checked`: the caller has compared the bytes with the name. Otherwise that is done
        while the disk writes.
        """
        check = None
        if not is_checked:
            blockid.check_size(data)
            check = partial(blockid.check, block, data)
        path = self.path_of(space, block)
        with translated(block.hex()), self._stripes[block[-1] % _STRIPES]:
            is_new = not path.exists()
            if not is_new and self._is_sound(path, block):
                if check:
                    check()
                return False
            if space not in self._ready:
                self._make_folders(space)
            try:
                self._files.keep("disk", path, [data], self._temp, check)
            except OSError:  # visible, perhaps, but not durable: must not be found by the next put
                path.unlink(missing_ok=True)
                raise
        return is_new

    def _make_folders(self, space: SpaceId) -> None:
        """Make the folders of a space, durably; those that a process that died made, too."""
        with self._folders:
            if space in self._ready:
                return
            top = self._root / str(space)
            self._files.make_folder("disk.mkdir", top)
            for prefix in range(256):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(top / f"{prefix:02x}", 0o700)
            self._files.sync_folder("disk.mkdir", top)
            self._ready.add(space)

    def _is_sound(self, path: Path, block: BlockId) -> bool:
        try:
            return _name_of_file(path) == block
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
            raise _error_of_reading(err, block) from err

    def open(self, space: SpaceId, block: BlockId) -> io.FileIO | None:
        """Open the block's file; None when there is none."""
        try:
            return io.FileIO(self._name_of(space, block))
        except FileNotFoundError:
            return None
        except OSError as err:
            raise error_of(err, block.hex()) from err

    def verify(self, space: SpaceId, block: BlockId) -> None:
        """Read a block and let go of it, a piece at a time; raise what `get` would."""
        try:
            found = _name_of_file(self.path_of(space, block))
        except OSError as err:
            raise _error_of_reading(err, block) from err
        if found != block:
            raise EverfoldError(Kind.CORRUPT, "the bytes on disk have rotted", block.hex())

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
            return os.stat(self._name_of(space, block)).st_size
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
            for file in _entries(self._root / str(space) / f"{prefix:02x}"):
                with contextlib.suppress(EverfoldError, FileNotFoundError):
                    block = blockid.parse(file.name)
                    yield wire.Held(space, block, file.stat().st_size)

    def _spaces(self) -> list[SpaceId]:
        return [SpaceId(int(e.name)) for e in _entries(self._root) if e.name.isdecimal()]


def _name_of_file(path: Path) -> BlockId:
    """Return the name of a block with a file's bytes."""
    hasher = blake3()
    piece = memoryview(bytearray(_PIECE))
    with io.FileIO(path) as file:
        while size := file.readinto(piece):
            hasher.update(piece[:size])
    return BlockId(hasher.digest())


def _error_of_reading(err: OSError, block: BlockId) -> EverfoldError:
    if err.errno == errno.EIO:
        return EverfoldError(Kind.CORRUPT, "cannot be read", block.hex())
    return error_of(err, block.hex())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise error_of(err, str(folder)) from err
