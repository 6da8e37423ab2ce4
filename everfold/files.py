"""The seam to the operating system's files, for everything that must survive a power cut.

Every call that matters passes through a `Files` object under a label. Tests hand in a
`Files` whose `at` fails or dies at a chosen label; production hands in this one. The
invariant of `keep`: a path holds all of the bytes or none of them, whatever happens when.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from everfold.errors import EverfoldError, Kind

Piece = bytes | bytearray | memoryview
_IOV_MAX = 1024
_PAGE = 4096
DIRECT_MIN = 1024 * 1024  # half the CPU; of 256 KiB it costs as much as the page cache
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)
_I64 = ctypes.c_int64
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Files:
    """The file calls that matter. Failures are OSErrors; `translated` turns them into ours."""

    def at(self, label: str) -> None:
        """Mark the moment before a call; tests override it to fail or to die here."""

    def write(self, label: str, fd: int, pieces: Sequence[Piece], offset: int) -> int:
        """Write all pieces at `offset`, whatever short writes come; return their total size."""
        self.at(label)
        start = offset
        for some in _batches(pieces):
            left, size = some, sum(map(len, some))
            while size:
                written = os.pwritev(fd, left, offset)
                offset += written
                size -= written
                if size:
                    left = _after(left, written)
        return offset - start

    def sync(self, label: str, fd: int) -> None:
        """Return when the file's bytes and size are on the medium."""
        self.at(label)
        os.fdatasync(fd)

    def begin_sync(self, fd: int) -> None:
        """Let the disk begin with what was written; a hint, `sync` is still needed."""
        _LIBC.sync_file_range(fd, _I64(0), _I64(0), _SYNC_FILE_RANGE_WRITE)

    def rename(self, label: str, source: Path, target: Path) -> None:
        """Give a file another name, replacing what bears it; durable after `sync_folder`."""
        self.at(label)
        os.rename(source, target)

    def remove(self, label: str, path: Path) -> None:
        """Remove a name; durable after `sync_folder`."""
        self.at(label)
        os.unlink(path)

    def truncate(self, label: str, fd: int, size: int) -> None:
        """Cut a file."""
        self.at(label)
        os.ftruncate(fd, size)

    def sync_folder(self, label: str, path: Path) -> None:
        """Return when the names in a folder are on the medium."""
        self.at(label)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_folder(self, label: str, path: Path) -> None:
        """Make a folder and those above it, durably; one that exists is taken as durable."""
        if path.is_dir():
            return
        self.make_folder(label, path.parent)
        self.at(label)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        self.sync_folder(label, path.parent)

    def sync_all(self, label: str, path: Path) -> None:
        """Return when everything on the filesystem of `path` is on the medium (syncfs).

        For starts: what a process that died had written, but not synced, is visible and
        must not be taken for kept before this.
        """
        self.at(label)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _LIBC.syncfs(fd) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        finally:
            os.close(fd)

    def keep(
        self,
        label: str,
        path: Path,
        pieces: Sequence[Piece],
        temp: Path,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Put a file in place durably: temp file in `temp`, fsync, rename, fsync of the folder.

        `temp` is a folder on the same filesystem, emptied by its owner at start. `check` looks
        at the pieces while the disk writes them, and raises what refuses them. On an OSError
        or a refusal nothing is left behind. Labels: `<label>.write .sync .rename .folder`.
        """
        scratch = temp / secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(scratch, flags, 0o600)
            try:
                is_on_disk = self._write_first(f"{label}.write", fd, pieces)
                if check is not None:
                    if not is_on_disk:
                        self.begin_sync(fd)
                    check()
                self.sync(f"{label}.sync", fd)
            finally:
                os.close(fd)
            self.rename(f"{label}.rename", scratch, path)
        except (OSError, EverfoldError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
            raise
        self.sync_folder(f"{label}.folder", path.parent)

    def _write_first(self, label: str, fd: int, pieces: Sequence[Piece]) -> bool:
        """Write a new file, past the page cache when memory and filesystem allow; tell which."""
        if not _is_aligned(pieces):
            self.write(label, fd, pieces, 0)
            return False
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            self.write(label, fd, pieces, 0)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            self.write(label, fd, pieces, 0)
            return False
        return True


def aligned(size: int) -> memoryview:
    """Return memory for what is large: it starts at a page and goes back to the system.

    `keep` lets the disk take it as it is, without the copy into the page cache: 1.1 of the 2.9
    ms that 4 MiB cost. (What is read back soon comes from the disk then; who wrote it has it
    in a cache of his own.) To receive 4 MiB costs 0.6 ms in huge pages and 1.5 in small ones;
    malloc would keep such pieces, one for each thread.
    """
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)


def _is_aligned(pieces: Sequence[Piece]) -> bool:
    piece = pieces[0] if len(pieces) == 1 else b""
    if not isinstance(piece, memoryview) or piece.readonly:
        return False
    size = len(piece)
    return size >= DIRECT_MIN and size % _PAGE == 0 and _address_of(piece) % _PAGE == 0


def _address_of(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _batches(pieces: Sequence[Piece]) -> Iterable[Sequence[Piece]]:
    if len(pieces) <= _IOV_MAX:
        return (pieces,)
    return (pieces[first : first + _IOV_MAX] for first in range(0, len(pieces), _IOV_MAX))


def _after(pieces: Sequence[Piece], written: int) -> Sequence[Piece]:
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn OSErrors into EverfoldErrors: NOT_FOUND, NO_SPACE, else UNAVAILABLE."""
    try:
        yield
    except OSError as err:
        raise error_of(err, what) from err


def error_of(err: OSError, what: str) -> EverfoldError:
    """Return our form of an error of the disk."""
    if err.errno == errno.ENOENT:
        return EverfoldError(Kind.NOT_FOUND, "not kept here", what)
    if err.errno in _FULL:
        return EverfoldError(Kind.NO_SPACE, f"the disk is full ({err.strerror})", what)
    return EverfoldError(Kind.UNAVAILABLE, f"the disk failed: {err}", what)
