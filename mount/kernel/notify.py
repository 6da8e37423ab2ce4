"""Tell the kernel what to forget and what to remember: `KernelCache` over the session's descriptor.

A notification may wait for the kernel's own locks (an inode's, a directory's), which a request
that we have not answered yet may hold. So never call these from the thread that reads
requests, nor from one that serves a request.

An inode that the kernel does not know may be in an answer that is on its way there, written down
before the change: of inodes that it knows it counts the changes, of others it would believe the
answer for an hour. Such a notification is told again once the answer has arrived. (The kernel
lets a name's notification wait for lookups in its directory, so that names need no such care.)
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from everfold.model import Ino
from mount.kernel import abi
from mount.kernel.abi import Notify

_log = logging.getLogger(__name__)

# The kernel has no such inode or name (any more), or the mount is gone: nothing to forget.
_NOTHING_TO_FORGET = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
_ATTRIBUTES_ONLY = -1  # as offset of INVAL_INODE


class Notifier:
    """The `KernelCache` of one mount; while it is closed there is nothing to forget.

    One thread calls, but for `open` and `close`.
    """

    def __init__(self) -> None:
        self._open = threading.Lock()  # guards _fd: a closed descriptor's number comes back
        self._fd = -1
        self._introducing: Callable[[], frozenset[int]] = frozenset
        self._again: list[tuple[frozenset[int], bytes]] = []  # after which answers; what

    def open(self, fd: int, introducing: Callable[[], frozenset[int]]) -> None:
        """Begin to tell the kernel behind `fd`; `introducing`: see `Session.introducing`."""
        with self._open:
            self._fd = fd
        self._introducing = introducing

    def close(self) -> None:
        """Stop; afterwards the descriptor may be closed."""
        with self._open:
            self._fd = -1

    def forget_entry(self, parent: Ino, name: bytes) -> None:
        """Drop a name, a remembered absence too, and the listing of its directory."""
        body = abi.NOTIFY_ENTRY.pack(parent, len(name), 0)
        self._tell(Notify.INVAL_ENTRY, body + name + b"\0")
        self._forget_listing(parent)

    def _forget_listing(self, directory: Ino) -> None:
        # After the name: dropping that waits for a reader of the directory who is at it, so
        # that what he still adds to the listing from before the change is dropped, too.
        self._forget_inode(abi.NOTIFY_INODE.pack(directory, 0, 0))

    def forget_attr(self, ino: Ino) -> None:
        """Drop the attributes of an inode, not its pages."""
        self._forget_inode(abi.NOTIFY_INODE.pack(ino, _ATTRIBUTES_ONLY, 0))

    def forget_data(self, ino: Ino, offset: int, length: int) -> None:
        """Drop attributes, and the pages of a range (length 0: to the end)."""
        self._forget_inode(abi.NOTIFY_INODE.pack(ino, offset, length))

    def _forget_inode(self, body: bytes) -> None:
        if self._tell(Notify.INVAL_INODE, body) == errno.ENOENT and (late := self._introducing()):
            self._again.append((late, body))

    def tell_again(self) -> bool:
        """Tell again what may concern an inode that the kernel has got to know meanwhile.

        True: some is left, because the answers in question are still on their way.
        """
        if not self._again:
            return False
        again, self._again = self._again, []
        under_way = self._introducing()
        for late, body in again:
            if late & under_way:
                self._again.append((late, body))
            else:
                self._tell(Notify.INVAL_INODE, body)
        return bool(self._again)

    def entry_deleted(self, parent: Ino, ino: Ino, name: bytes) -> None:
        """Drop a name even if it is in use; who watches the inode by inotify hears of it."""
        body = abi.NOTIFY_DELETE.pack(parent, ino, len(name), 0)
        if self._tell(Notify.DELETE, body + name + b"\0") in (errno.ENOTEMPTY, errno.EBUSY):
            # The kernel refuses where it sees something there still: names in a directory,
            # a mount. Then the name is looked up again at its next use.
            self.forget_entry(parent, name)
        self._forget_listing(parent)
        # The kernel takes it for the last name of the inode and counts no links any more:
        # what they are it must ask.
        self.forget_attr(ino)

    def store(self, ino: Ino, offset: int, data: bytes | memoryview) -> None:
        """Put bytes into the page cache of a file, replacing what is there.

        Waits for requests that concern the same pages. Whoever calls sees to it that the file
        ends at or behind them, and that nobody writes to it meanwhile.
        """
        self._tell(Notify.STORE, abi.NOTIFY_STORE.pack(ino, offset, len(data), 0), data)

    def _tell(self, code: Notify, body: bytes, data: bytes | memoryview = b"") -> int:
        # Return 0, or with which error the kernel refused; what is unexpected is logged.
        length = abi.OUT_HEADER.size + len(body) + len(data)
        message = abi.OUT_HEADER.pack(length, code, 0) + body
        try:
            with self._open:
                if self._fd >= 0:
                    os.writev(self._fd, (message, data) if data else (message,))
        except OSError as err:
            is_in_use = err.errno in (errno.ENOTEMPTY, errno.EBUSY) and code is Notify.DELETE
            if err.errno not in _NOTHING_TO_FORGET and not is_in_use:
                _log.error("the kernel refused %s: %s", code.name, err)
            return err.errno or errno.EIO
        return 0
