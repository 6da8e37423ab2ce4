"""The portable adapter: a `Filesystem` mounted through libfuse, by fusepy's API (mfusepy).

It is for systems whose kernel does not speak Linux's FUSE protocol; elsewhere `mount.kernel`
is faster and exacter.

Known limits, all of them libfuse's or the binding's:
 - Nothing can be told to the kernel, so it is told to remember nothing: names and attributes
   expire at once, pages when the file's mtime or size is seen to change. A `stat` always
   reaches Python.
 - fstat of a file that was deleted while open fails once its directory is gone too.
 - A rename over a file that is open deletes that first: the name is absent for a moment.
 - rename EXCHANGE is refused (EINVAL); NOREPLACE works. No O_TMPFILE.
 - The birth time of a file is not shown.
 - At most `fusepy_operations.WAITING_LOCKS` programs can wait for a lock, one more gets ENOLCK.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from everfold.errors import EverfoldError, Kind
from everfold.model import Ino
from mount.filesystem import Changes, Filesystem, KernelCache
from mount.fusepy_operations import Operations
from mount.kernel import mounting
from mount.kernel.mounting import MountOptions
from mount.statistics import Cost

_log = logging.getLogger(__name__)

THREADS = 64  # libfuse's; half of them may wait for locks
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def _fuse_class(library: Any) -> Any:
    """Return the binding's `FUSE` with what it leaves out: rename flags, UTIME_OMIT, lseek, …"""

    class Fuse(library.FUSE):  # type: ignore[misc]
        def _path(self, path: bytes) -> str:
            return path.decode(self.encoding, self.errors)

        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> Any:
            return self.operations.rename(self._path(old), self._path(new), flags)

        def utimens_fuse_3(self, path: bytes, times: Any, fip: Any) -> Any:
            a, m = times.contents.actime, times.contents.modtime
            changes = Changes(
                atime_ns=_time_ns(a),
                mtime_ns=_time_ns(m),
                atime_now=a.tv_nsec == _UTIME_NOW,
                mtime_now=m.tv_nsec == _UTIME_NOW,
            )
            return self.operations.set_times(self._path(path), changes)

        def truncate_fuse_3(self, path: bytes, length: int, fip: Any) -> Any:
            return self.operations.truncate(self._path(path), length, fip.contents if fip else None)

        def lseek(self, path: bytes, offset: int, whence: int, fip: Any) -> Any:
            return self.operations.lseek(path, offset, whence, fip.contents)

        def copy_file_range(
            self,
            path_in: bytes,
            fip_in: Any,
            at_in: int,
            path_out: bytes,
            fip_out: Any,
            at_out: int,
            count: int,
            flags: int,
        ) -> Any:
            return self.operations.copy_file_range(
                fip_in.contents, at_in, fip_out.contents, at_out, count
            )

    return Fuse


def _time_ns(time: Any) -> int | None:
    if time.tv_nsec in (_UTIME_NOW, _UTIME_OMIT):
        return None
    return int(time.tv_sec * 1_000_000_000 + time.tv_nsec)


class NoCache:
    """The `KernelCache` of a kernel that was told to remember nothing."""

    def forget_entry(self, parent: Ino, name: bytes) -> None:
        """What a name leads to is asked at each use."""

    def forget_attr(self, ino: Ino) -> None:
        """Attributes expire at once."""

    def forget_data(self, ino: Ino, offset: int, length: int) -> None:
        """Pages fall when the changed mtime is seen."""

    def entry_deleted(self, parent: Ino, ino: Ino, name: bytes) -> None:
        """Names expire at once."""

    def store(self, ino: Ino, offset: int, data: bytes | memoryview) -> None:
        """It reads what it wants."""

    def tell_again(self) -> bool:
        """Nothing was to be heeded."""
        return False


class FusepyMount:
    """One mount of `filesystem` through libfuse; the same interface as `KernelMount`.

    libfuse attaches and serves in one go, so `mount()` only prepares, and what the kernel
    refuses is raised by `run()`.
    """

    def __init__(
        self, filesystem: Filesystem, mountpoint: str, *, options: MountOptions | None = None
    ) -> None:
        self._fs = filesystem
        self.mountpoint = os.path.abspath(mountpoint)
        self._options = options or MountOptions(read_only=filesystem.is_read_only)
        self._operations: Operations | None = None
        self._library: Any = None
        self._is_running = False
        self.cache: KernelCache = NoCache()

    def mount(self) -> None:
        """Get ready, taking over a dead mount; NOT_FOUND, NOT_DIR, UNSUPPORTED (no libfuse)."""
        try:
            import mfusepy  # loads libfuse, which a machine with the other driver need not have
        except (ImportError, OSError) as err:
            raise EverfoldError(Kind.UNSUPPORTED, f"no libfuse here: {err}") from err
        mounting.check_mountpoint(self.mountpoint)
        self._library = mfusepy
        self._operations = Operations(self._fs, mfusepy)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the kernel and `run` (on another thread) know each other."""
        return self._prepared().is_ready.wait(timeout_s)

    def run(self) -> None:
        """Serve until unmounted, by whomever. Raises FORBIDDEN when libfuse could not mount.

        libfuse blocks its thread in C, where no signal handler of Python's would run: so it
        gets a thread of its own, and the caller's stays open to signals.
        """
        operations, failures = self._prepared(), []

        def serve() -> None:
            try:
                _fuse_class(self._library)(
                    operations, self.mountpoint, raw_fi=True, foreground=True, **self._words()
                )
            except Exception as err:  # noqa: BLE001 - raised again on the caller's thread
                failures.append(err)

        self._is_running = True
        thread = threading.Thread(target=serve, name="libfuse", daemon=True)
        thread.start()
        thread.join()
        self._is_running = False
        if not failures:
            return
        if operations.is_ready.is_set() and mounting.device_of(self.mountpoint) is None:
            # Served until the end: when the last user of a mount that was lazily detached goes,
            # libfuse sometimes calls that a failure of its loop.
            _log.info("%s: libfuse ended with %s", self.mountpoint, failures[0])
        else:
            mounting.take_over(self.mountpoint)  # nobody will answer any more
            message = f"libfuse could not mount or serve: {failures[0]}"
            raise EverfoldError(Kind.FORBIDDEN, message, self.mountpoint) from failures[0]

    def _words(self) -> dict[str, Any]:
        words: dict[str, Any] = {
            "fsname": self._options.fsname,
            "subtype": mounting.SUBTYPE,
            "use_ino": True,
            "entry_timeout": 0,  # a name that another machine removed could not be created anew
            "negative_timeout": 0,
            "attr_timeout": 0,
        }
        if (self._library.fuse_version_major, self._library.fuse_version_minor) >= (3, 12):
            words |= {"max_threads": THREADS, "max_idle_threads": THREADS}
        if self._options.read_only:
            words["ro"] = True
        for word in (*self._options.words(), *self._options.flag_words()):
            key, equals, value = word.partition("=")
            words[key] = value if equals else True
        return words

    def unmount(self, lazy: bool = False) -> None:
        """Unmount; not being mounted is success. Raises BUSY while in use, unless `lazy`."""
        if self._is_running:
            mounting.detach_if_mounted(self.mountpoint, lazy)

    def statistics(self) -> dict[str, Cost]:
        """Return what each operation has cost."""
        costs = self._operations.costs if self._operations else {}
        return {name: Cost.of(durations) for name, durations in sorted(costs.items())}

    def _prepared(self) -> Operations:
        if self._operations is None:
            raise EverfoldError(Kind.INVALID, "not mounted", self.mountpoint)
        return self._operations
