"""The loop: read a request from /dev/fuse, answer it.

One impatient thread (`mount.patience`) reads and answers at once what memory can answer; a
request that must wait is copied and run again by a bounded pool, so a slow network never
delays a `stat`. A blocking lock has a thread of its own, because it may wait for hours, and
FUSE_INTERRUPT ends it. Answers may be written by any thread: one write is one answer.

After an answer the loop looks for the next request for a moment (`_LOOK_NS`) before it sleeps.
Programs ask one thing after the other, most within 20 us of the answer before, and to wake a
thread on a core that has gone to rest takes 10 us or more each time. Measured by turns on a
virtual machine: an append 31 -> 20 us, a create 247 -> 164, an unlink 102 -> 75.

Errors become errnos here and nowhere else: `EverfoldError` by its kind, anything else is
logged with its traceback and is EIO.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections.abc import Callable
from time import monotonic, perf_counter_ns

from everfold.errors import EverfoldError, Kind
from everfold.model import LockType
from mount import patience
from mount.filesystem import Filesystem
from mount.kernel import abi
from mount.kernel.abi import Init, Init2, Opcode
from mount.kernel.passthrough import MAX_STACK_DEPTH, Passthrough
from mount.kernel.requests import Handler, Payload, Requests, lock_of
from mount.kernel.workers import Workers
from mount.statistics import Cost, Durations

MAX_WRITE = 1 << 20
_PAGE = 4096
# Room for the largest request: a WRITE with all its pages, its headers in one more page.
_BUFFER = MAX_WRITE + _PAGE
_WANTED = (
    Init.ASYNC_READ
    | Init.POSIX_LOCKS
    | Init.FLOCK_LOCKS
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.HANDLE_KILLPRIV_V2
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.EXPLICIT_INVAL_DATA
    | Init.INIT_EXT
)
# Answers that may give the kernel an inode which it did not know.
_INTRODUCES = frozenset(
    {
        Opcode.LOOKUP,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.LINK,
        Opcode.CREATE,
        Opcode.READDIRPLUS,
        Opcode.TMPFILE,
    }
)
_MAX_BACKGROUND = 64  # read-ahead and releases under way, before the kernel holds back
_SHORT = 4096  # up to here copying an answer costs less than a second buffer in its write
# How long the next request is looked for. Where that was in vain a few times running, it is not
# done again until one comes so soon by itself; on one core it would keep the program from asking.
_LOOK_NS = 100_000 if len(os.sched_getaffinity(0)) > 1 else 0
_LOOKS = 4
_FINISH_S = 30.0  # longer than any call may wait for the network

_out_header = abi.OUT_HEADER.pack
_log = logging.getLogger(__name__)


class Session:
    """One connection with the kernel, over a descriptor of /dev/fuse that is mounted."""

    def __init__(self, fd: int, filesystem: Filesystem, workers: int = 64) -> None:
        self._fd = fd
        self._requests = Requests(filesystem)
        self._table = self._requests.table
        self._table[Opcode.INIT] = self._init
        self._table[Opcode.SETLKW] = self._setlkw
        self._table[Opcode.INTERRUPT] = self._interrupt
        self._table[Opcode.DESTROY] = self._destroy
        self._fs = filesystem
        self._workers = Workers(workers, "fuse-worker")
        # Request of a blocking lock -> the event that cancels it; guarded by the condition.
        self._waiting: dict[int, threading.Event] = {}
        self._lock_ended = threading.Condition()
        self._unfinished = 0  # calls that were given up at the end: they may still answer
        self._introducing: set[int] = set()  # requests of `_INTRODUCES` that are being answered
        self._introduces = [opcode in _INTRODUCES for opcode in range(abi.OPCODES)]
        self._costs = [Durations() for _ in range(abi.OPCODES)]  # from arrival to answer
        self.is_ready = threading.Event()  # the kernel knows us: INIT was answered
        self.on_ready: Callable[[], None] = lambda: None

    def introducing(self) -> frozenset[int]:
        """Return the requests whose answers, under way now, may introduce inodes."""
        return frozenset(self._introducing)  # one step of the interpreter: nobody changes it in it

    def statistics(self) -> dict[str, Cost]:
        """Return the costs so far, by the name of the request."""
        return {o.name: Cost.of(self._costs[o]) for o in Opcode if self._costs[o].count}

    def close(self) -> None:
        """Close the descriptor, after `run`; not while a call that was given up may answer."""
        if not self._unfinished:
            os.close(self._fd)

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Serve until the filesystem is unmounted; the calling thread becomes impatient.

        Returns when the calls under way are finished.
        """
        patience.never_wait()
        buffer = bytearray(_BUFFER)
        view, buffers = memoryview(buffer), [buffer]
        fd, readv, clock = self._fd, os.readv, perf_counter_ns
        in_start, run, table = abi.IN_START.unpack_from, self._run, self._table
        answered, looks = 0, _LOOKS  # when the last answer was given here; how often to look yet
        os.set_blocking(fd, False)
        sleep = select.poll()
        sleep.register(fd, select.POLLIN)
        try:
            while True:
                try:
                    end = readv(fd, buffers)
                except OSError as err:
                    if err.errno == errno.EAGAIN:  # there is none
                        if looks <= 0 or clock() - answered > _LOOK_NS:
                            looks -= looks > 0
                            sleep.poll()
                        continue
                    if err.errno == errno.ENODEV:  # unmounted
                        return
                    if err.errno not in (errno.ENOENT, errno.EINTR):
                        raise
                    continue  # the request was interrupted before we had it
                started = clock()
                if started - answered < _LOOK_NS:
                    looks = _LOOKS
                _, opcode, unique, nodeid = in_start(buffer)
                handler = table[opcode] if opcode < abi.OPCODES else None
                if handler is None:
                    self._answer(unique, errno.ENOSYS, b"")
                    continue
                try:
                    run(handler, opcode, unique, nodeid, view, end, started)
                    answered = clock()
                except patience.MustWait:
                    request = memoryview(bytes(view[:end]))
                    self._hand_over(handler, opcode, unique, nodeid, request, end, started)
        finally:
            self._end()

    def _run(
        self,
        handler: Handler,
        opcode: int,
        unique: int,
        nodeid: int,
        request: memoryview,
        end: int,
        started: int,
    ) -> None:
        # Answer one request; only MustWait gets out.
        error = 0
        payload: Payload = b""
        is_introducing = self._introduces[opcode]
        if is_introducing:
            self._introducing.add(unique)
        try:
            payload = handler(nodeid, request, end)
        except EverfoldError as err:
            error = err.kind.errno
        except patience.MustWait:
            self._introducing.discard(unique)  # nothing was found out yet
            raise
        except Exception:  # noqa: BLE001 - the border: any defect inside is the program's EIO
            _log.exception("%s of inode %d failed", Opcode(opcode).name, nodeid)
            error = errno.EIO
        cost = self._costs[opcode]
        cost.count += 1  # before the answer: who got it finds it counted
        if payload is not None:
            if isinstance(payload, int):
                error, payload = payload, b""
            self._answer(unique, error, payload)
        cost.note(perf_counter_ns() - started)
        if is_introducing:
            self._introducing.discard(unique)
            if opcode == Opcode.READDIRPLUS:
                self._prepare()

    def _prepare(self) -> None:
        # What the reader of a listing asks for next; nobody waits for it.
        try:
            self._requests.prepare()
        except Exception:  # noqa: BLE001 - the border, as above: the loop goes on
            _log.exception("the next page of a listing could not be prepared")

    def _hand_over(
        self,
        handler: Handler,
        opcode: int,
        unique: int,
        nodeid: int,
        request: memoryview,
        end: int,
        started: int,
    ) -> None:
        self._workers.submit(
            lambda: self._run(handler, opcode, unique, nodeid, request, end, started)
        )

    def _answer(self, unique: int, error: int, payload: bytes | memoryview) -> None:
        length = len(payload)
        header = _out_header(16 + length, -error, unique)
        try:
            if length > _SHORT:
                os.writev(self._fd, (header, payload))
            else:
                os.write(self._fd, header + payload)
        except OSError as err:
            # ENOENT: the request was aborted meanwhile. ENODEV: the mount is gone.
            if err.errno not in (errno.ENOENT, errno.ENODEV):
                _log.error("the kernel refused the answer to request %d: %s", unique, err)
                if payload:
                    self._answer(unique, errno.EIO, b"")

    def _end(self) -> None:
        deadline = monotonic() + _FINISH_S
        with self._lock_ended:
            for cancel in self._waiting.values():
                cancel.set()
            self._lock_ended.wait_for(lambda: not self._waiting, _FINISH_S)
            self._unfinished = len(self._waiting)
        self._unfinished += self._workers.finish(deadline - monotonic())
        if self._unfinished:
            _log.error("%d requests were still under way when the mount ended", self._unfinished)

    # ------------------------------------------------------------ requests about the session

    def _init(self, nodeid: int, request: memoryview, end: int) -> Payload:
        major, minor, max_readahead, offered = abi.INIT_IN.unpack_from(request, abi.BODY_AT)
        if major < abi.MAJOR or (major == abi.MAJOR and minor < abi.OLDEST_MINOR):
            _log.error("the kernel speaks FUSE %d.%d, at least 7.31 is needed", major, minor)
            raise EverfoldError(Kind.UNSUPPORTED, "the kernel's FUSE protocol is too old")
        if major > abi.MAJOR:  # it asks again with ours
            return abi.INIT_OUT.pack(abi.MAJOR, abi.MINOR, *([0] * 10))
        wanted2 = self._extensions(offered, request, end)
        payload = abi.INIT_OUT.pack(
            abi.MAJOR,
            min(minor, abi.MINOR),
            max(max_readahead, MAX_WRITE),
            offered & _WANTED,
            _MAX_BACKGROUND,
            _MAX_BACKGROUND * 3 // 4,
            MAX_WRITE,
            1,  # time granularity in ns
            MAX_WRITE // _PAGE,
            0,
            wanted2,
            MAX_STACK_DEPTH if wanted2 & Init2.PASSTHROUGH else 0,
        )
        _, _, unique, _ = abi.IN_START.unpack_from(request)
        self._answer(unique, 0, payload)
        self.on_ready()
        self.is_ready.set()
        return None

    def _extensions(self, offered: int, request: memoryview, end: int) -> int:
        """Return which features of the second word are taken, and prepare for them."""
        at = abi.BODY_AT + abi.INIT_IN.size
        if not offered & Init.INIT_EXT or end < at + abi.INIT_IN_EXT.size:
            return 0
        (offered2,) = abi.INIT_IN_EXT.unpack_from(request, at)
        if not offered2 & Init2.PASSTHROUGH:
            return 0
        Passthrough(self._fd, self._fs, self._table)
        return Init2.PASSTHROUGH

    def _destroy(self, nodeid: int, request: memoryview, end: int) -> Payload:
        return b""

    def _setlkw(self, nodeid: int, request: memoryview, end: int) -> Payload:
        fh, lock = lock_of(nodeid, request)
        if lock.type is LockType.UNLOCK:
            self._fs.setlk(fh, lock, None)
            return b""
        try:
            self._fs.setlk(fh, lock, None)  # mostly it is free; a thread costs 100 us
            return b""
        except patience.MustWait:
            pass
        except EverfoldError as err:
            if err.kind is not Kind.WOULD_BLOCK:
                raise
        _, _, unique, _ = abi.IN_START.unpack_from(request)
        cancel = threading.Event()
        with self._lock_ended:
            self._waiting[unique] = cancel

        def wait_for_lock(nodeid: int, request: memoryview, end: int) -> Payload:
            self._fs.setlk(fh, lock, cancel)
            return b""

        def serve() -> None:
            self._run(wait_for_lock, Opcode.SETLKW, unique, nodeid, request, end, perf_counter_ns())
            with self._lock_ended:
                del self._waiting[unique]
                self._lock_ended.notify_all()

        threading.Thread(target=serve, name=f"fuse-lock-{unique}", daemon=True).start()
        return None

    def _interrupt(self, nodeid: int, request: memoryview, end: int) -> Payload:
        # Only a wait for a lock can be ended: everything else has a deadline of its own.
        (unique,) = abi.INTERRUPT_IN.unpack_from(request, abi.BODY_AT)
        with self._lock_ended:
            cancel = self._waiting.get(unique)
        if cancel is not None:
            cancel.set()
        return None
