"""The journal: what was acknowledged to programs and is not in the cluster yet.

Records are bytes to it, numbered 1, 2, 3, … over the directory's whole life. Once `append`
returns, its records survive a crash of the process; once `mark_durable` returns, those that
it covers survive a power cut. Numbers are never given twice, so they can name operations
towards the nameserver.

After damage, and after a power cut, numbers go on behind everything that may have been given
out, as far as this disk can tell: there may be a hole before the first new number. Only the
nameserver knows which operations of a lost tail it has seen: `skip_to(last_op + 1)` before
the first append.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from everfold.errors import EverfoldError, Kind
from mount.disk import disk_error, sync_directory
from mount.journalfile import FrameKind, pack_frame, pack_header, path_of, settle, survey

FILE_BYTES: Final = 8 * 1024 * 1024
TRIM_BYTES: Final = 256 * 1024  # a wholly trimmed file of this size is replaced by a fresh one
_RECORD: Final = FrameKind.RECORD  # looked up in its class at every append it costs 0.1 µs
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Full:
    """A file that takes no more records; `fd` is -1 once it is on the disk."""

    path: Path
    last: int
    fd: int = -1


class Journal:
    """The journal directory of one mount. Thread-safe; one process at a time (else BUSY)."""

    def __init__(
        self, directory: Path, *, file_bytes: int = FILE_BYTES, boot_id: str | None = None
    ) -> None:
        """Open (or make) the directory, cut what was torn, set aside what is damaged."""
        self._directory = directory
        self._file_bytes = file_bytes
        self._boot = boot_id if boot_id is not None else _BOOT_ID.read_text().strip()
        self._lock = threading.Lock()  # guards all below; held over the write, not over a sync
        self._full: list[_Full] = []
        self._path = directory
        self._fd = -1
        self._size = 0
        self._amendments: list[bytes] = []  # frames that go before the next ones
        self._failed = ""  # why nothing may be appended any more
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as err:
            raise disk_error(err, directory) from err
        try:
            self._take_directory()
            self._recover()
        except BaseException as err:
            os.close(self._lock_fd)
            if isinstance(err, OSError):
                raise disk_error(err, directory) from err
            raise

    def _take_directory(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise EverfoldError(
                Kind.BUSY, "another process uses this journal", str(self._directory)
            ) from err

    def _recover(self) -> None:
        found = survey(self._directory, self._boot)
        self.after_power_cut = found.after_power_cut  # at open: the tail was lost, or may be
        self._run = settle(self._directory, found, self._boot)
        self._next = self._run.next_number
        self._trimmed = self._run.trimmed
        self._index = self._run.index
        for kept in self._run.kept:
            self._full.append(_Full(kept.path, kept.last, os.open(kept.path, os.O_RDONLY)))
        self._start_file()
        self._drop_trimmed()

    # ------------------------------------------------------------------ what is there

    def replay(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number, record) of what was there at open, from after the trim point.

        What is trimmed meanwhile may be left out. Numbers rise by one.
        """
        try:
            yield from self._run.records()
        except OSError as err:
            raise disk_error(err, self._directory) from err

    @property
    def next_number(self) -> int:
        """Return the number that the next record gets."""
        return self._next

    @property
    def trimmed(self) -> int:
        """Return the remembered trim point."""
        return self._trimmed

    # ------------------------------------------------------------------ adding

    def append(self, records: Sequence[bytes]) -> int:
        """Keep `records`, in order; return the number of the first.

        They get consecutive numbers and one write(2). On return they survive a crash of the
        process. NO_SPACE or UNAVAILABLE when the disk refuses: then none of them is kept and
        no number is used.
        """
        with self._lock:
            self._make_room()
            first = number = self._next
            frames: list[bytes] = []
            for body in records:
                frames.append(pack_frame(_RECORD, number, body))
                number += 1
            self._write_on(frames)
            self._next = number
            return first

    def amend(self, number: int, record: bytes) -> None:
        """Let the record `number`, appended before, read as `record` from now on.

        It is written with what is appended next, and not before: a crash until then leaves
        the record as it was.
        """
        with self._lock:
            self._amendments.append(pack_frame(FrameKind.AMEND, number, record))

    def skip_to(self, number: int) -> None:
        """Make `number` the next one, unless that is behind already."""
        with self._lock:
            if number > self._next:
                self._make_room()
                self._write(pack_frame(FrameKind.SKIP, number - 1))
                self._next = number

    def mark_durable(self, number: int | None = None) -> None:
        """Make the records up to `number` (default: all) survive a power cut.

        The caller has synced what those records name in staging, and took `number` before it
        started to: a record appended meanwhile is not covered. UNAVAILABLE when the disk
        fails to.
        """
        with self._lock:
            self._make_room()
            last = self._next - 1 if number is None else min(number, self._next - 1)
            self._write_on([pack_frame(FrameKind.MARK, last)])
            unsynced = [full for full in self._full if full.fd >= 0]
            fds = [os.dup(full.fd) for full in unsynced] + [os.dup(self._fd)]
        try:
            for fd in fds:
                os.fdatasync(fd)
            sync_directory(self._directory)
        except OSError as err:
            raise disk_error(err, self._directory) from err
        finally:
            for fd in fds:
                os.close(fd)
        with self._lock:
            for full in unsynced:
                _close(full)

    # ------------------------------------------------------------------ dropping

    def trim(self, number: int) -> None:
        """Forget the records up to and including `number`: they are in the cluster."""
        with self._lock:
            number = min(number, self._next - 1)
            if number <= self._trimmed:
                return
            self._trimmed = number
            try:
                self._make_room()
                self._write(pack_frame(FrameKind.TRIM, number))
                if number == self._next - 1 and self._size >= TRIM_BYTES:
                    self._start_file()
            except EverfoldError as err:  # then more is replayed after a crash: harmless
                _log.warning("journal: the trim point was not written: %s", err)
            self._drop_trimmed()

    def close(self) -> None:
        """Close the files and let go of the directory; nothing is lost. Idempotent."""
        with self._lock:
            if self._lock_fd < 0:
                return
            try:
                if self._amendments and not self._failed:
                    self._write_on([])
            except EverfoldError as err:  # then it replays as before the amendments
                _log.warning("journal: not all was written: %s", err)
            self._failed = "the journal is closed"
            for full in self._full:
                _close(full)
            os.close(self._fd)
            os.close(self._lock_fd)
            self._lock_fd = -1

    # ------------------------------------------------------------------ inside, lock held

    def _make_room(self) -> None:
        if self._failed:
            raise EverfoldError(Kind.UNAVAILABLE, self._failed, str(self._directory))
        if self._size >= self._file_bytes:
            self._start_file()

    def _start_file(self) -> None:
        path = path_of(self._directory, self._index + 1)
        header = pack_header(self._next, self._boot)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as err:
            raise disk_error(err, path) from err
        try:
            _write_all(fd, header)
        except OSError as err:
            os.close(fd)
            path.unlink()
            raise disk_error(err, path) from err
        if self._fd >= 0:
            self._full.append(_Full(self._path, self._next - 1, self._fd))
        self._index, self._path, self._fd, self._size = self._index + 1, path, fd, len(header)

    def _write_on(self, frames: list[bytes]) -> None:
        """Append whole frames after the amendments that wait, or nothing."""
        if self._amendments:
            frames = self._amendments + frames
        self._write(b"".join(frames))
        self._amendments.clear()

    def _write(self, frames: bytes) -> None:
        """Append whole frames, or nothing."""
        try:
            _write_all(self._fd, frames)
        except OSError as err:
            self._undo_write()
            raise disk_error(err, self._path) from err
        self._size += len(frames)

    def _undo_write(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as err:
            _log.error("journal %s: cannot cut a failed write: %s", self._path, err)
            self._failed = "the journal's disk failed"  # nothing may follow a torn frame

    def _drop_trimmed(self) -> None:
        """Unlink full files that hold nothing after the trim point, oldest first."""
        while self._full and self._full[0].last <= self._trimmed:
            full = self._full.pop(0)
            _close(full)
            try:
                full.path.unlink(missing_ok=True)
            except OSError as err:
                _log.warning("journal: cannot remove %s: %s", full.path, err)
                break


def _close(full: _Full) -> None:
    if full.fd >= 0:
        os.close(full.fd)
        full.fd = -1


def _write_all(fd: int, data: bytes) -> None:
    done = os.write(fd, data)
    while done < len(data):  # a signal or a full disk cut it short
        done += os.write(fd, memoryview(data)[done:])
