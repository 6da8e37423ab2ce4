"""FUSE passthrough: the kernel reads a local file itself, and we hear of the open and close only.

For files of the past alone (`Opened.backing`): those never change. While an inode is open in
this mode the kernel holds it to one local file, for every open of it, and an open file cannot
be moved to another: what other machines save would not be seen in files that are open here,
and a writer would write into that local file (see docs/adr/0005-passthrough.md).

The kernel refuses (EIO) to open an inode in two modes at a time, so the mode of the first open
is that of all others until the last is closed. We hear of that later than the kernel: our
count is never too small. Where it is not permitted (root, Linux 6.9) files are read through us.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from dataclasses import dataclass

from everfold.model import Ino
from mount.filesystem import VIRTUAL_INO, Filesystem, Opened
from mount.kernel import abi, encode
from mount.kernel.abi import BODY_AT, Opcode
from mount.kernel.requests import Handler, Payload

MAX_STACK_DEPTH = 1  # the local file lies in a filesystem that is stacked on no other
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Inode:
    """An inode of the past that is open; `backing` is the kernel's number of its local file."""

    backing: int
    opens: int = 0


class Passthrough:
    """See the module's docstring. Takes the place of the OPEN and RELEASE of a table."""

    def __init__(self, fd: int, filesystem: Filesystem, table: list[Handler | None]) -> None:
        self._fd, self._fs = fd, filesystem
        self._lock = threading.Lock()  # guards _inodes; held while the kernel is asked
        self._inodes: dict[int, _Inode] = {}
        self._is_refused = False
        open_, release = table[Opcode.OPEN], table[Opcode.RELEASE]
        assert open_ is not None and release is not None
        self._plain_open, self._plain_release = open_, release
        table[Opcode.OPEN], table[Opcode.RELEASE] = self._open, self._release

    def _open(self, nodeid: int, request: memoryview, end: int) -> Payload:
        if nodeid < VIRTUAL_INO:
            return self._plain_open(nodeid, request, end)
        flags, _ = abi.OPEN_IN.unpack_from(request, BODY_AT)
        opened = self._fs.open(Ino(nodeid), flags)
        with self._lock:
            inode = self._inodes.get(nodeid)
            if inode is None:
                inode = self._inodes[nodeid] = _Inode(self._begin(opened))
            inode.opens += 1
            if not inode.backing:
                return encode.opened(opened)
        flags = abi.FOPEN_PASSTHROUGH | abi.FOPEN_NOFLUSH
        return abi.OPEN_OUT.pack(opened.fh, flags, inode.backing)

    def _release(self, nodeid: int, request: memoryview, end: int) -> Payload:
        answer = self._plain_release(nodeid, request, end)
        if nodeid >= VIRTUAL_INO:
            with self._lock:
                inode = self._inodes[nodeid]
                inode.opens -= 1
                if not inode.opens:
                    del self._inodes[nodeid]
                    self._end(inode.backing)
        return answer

    def _begin(self, opened: Opened) -> int:
        """Return the kernel's number for a local file, 0 when it is read through us."""
        if not opened.backing or self._is_refused:
            return 0
        try:
            local = os.open(opened.backing, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:  # just pushed out of the cache
            _log.debug("no passthrough: %s", err)
            return 0
        try:
            form = bytearray(abi.BACKING_MAP.pack(local, 0, 0))
            backing: int = fcntl.ioctl(self._fd, abi.IOC_BACKING_OPEN, form)
            return backing
        except OSError as err:
            _log.info("no passthrough here: %s", err)
            self._is_refused = True
            return 0
        finally:
            os.close(local)

    def _end(self, backing: int) -> None:
        if backing:
            form = bytearray(abi.BACKING_ID.pack(backing))
            fcntl.ioctl(self._fd, abi.IOC_BACKING_CLOSE, form)
