"""Several processes that serve one address, and the one that looks after them.

The parent opens the listening socket and serves nothing: it starts workers by fork(2), starts
again one that ended, hands signals on, and ends when all have ended. A worker that loses its
parent ends by itself. Whatever a request changes is in the database, so any worker may have it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

Work = Callable[[Callable[[], None]], int]
"""What a worker does, until SIGTERM: it calls what it is given once it serves, and returns its
exit status."""

_STEADY_S: Final = 10.0  # who served so long did not fail at its start
_BACKOFF_S: Final = (0.1, 10.0)
_TICK_S: Final = 0.5
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_HANDED_ON: Final = (signal.SIGHUP, signal.SIGUSR1)
_log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """A place among the workers; processes come and go in it."""

    number: int
    pid: int = 0  # 0: none now
    told: int = -1  # where its process says that it serves; -1: it has, or it ended
    is_serving: bool = False
    started: float = 0.0
    start_at: float = 0.0
    pause_s: float = field(default=_BACKOFF_S[0])


class Workers:
    """`run` is called once, on the main thread of a process that has no other thread."""

    def __init__(self, count: int, work: Work, end_s: float) -> None:
        """`end_s`: how long a worker may take to end."""
        self._work = work
        self._end_s = end_s
        self._workers = [_Worker(number) for number in range(count)]
        self._is_ending = False
        self._has_served = False
        self._wake, self._woken = os.pipe()
        self._alive, self._life = os.pipe()  # nobody writes: its end is the parent's

    def run(self, on_ready: Callable[[list[int]], None]) -> int:
        """Keep the workers serving until the end is asked for; return the exit status.

        `on_ready` is told their pids when all serve for the first time. When one ends before
        that, all end.
        """
        assert threading.active_count() == 1, "a thread does not survive fork(2)"
        self._hear_signals()
        try:
            while not self._is_ending:
                self._start_due()
                self._wait()
                if not self._has_served and all(w.is_serving for w in self._workers):
                    self._has_served = True
                    on_ready([worker.pid for worker in self._workers])
        finally:
            is_clean = self._end_all()
        return 0 if self._has_served and is_clean else 1

    def _hear_signals(self) -> None:
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        for number in (*_ENDING, *_HANDED_ON, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)

    # ------------------------------------------------------------ starting

    def _start_due(self) -> None:
        for worker in self._workers:
            if not worker.pid and time.monotonic() >= worker.start_at:
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        told, tell = os.pipe()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        worker.pid = os.fork()
        if not worker.pid:
            self._become(tell, told)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(tell)
        worker.told, worker.started = told, time.monotonic()

    def _become(self, tell: int, told: int) -> None:
        """Be a worker, in the child; does not return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*_ENDING, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for number in _HANDED_ON:
                signal.signal(number, signal.SIG_IGN)  # until it serves
            others = [other.told for other in self._workers if other.told >= 0]
            for end in (self._wake, self._woken, self._life, told, *others):
                os.close(end)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            threading.Thread(target=_end_with_parent, args=(self._alive,), daemon=True).start()
            status = self._work(lambda: _tell(tell))
        except BaseException:  # noqa: BLE001  # a child never goes on as its parent
            _log.exception("a worker failed")
        finally:
            logging.shutdown()
            os._exit(status)

    # ------------------------------------------------------------ watching

    def _wait(self) -> None:
        """Sleep until something happens, and take note of it."""
        telling = {worker.told: worker for worker in self._workers if worker.told >= 0}
        ready = select.select([self._wake, *telling], [], [], _TICK_S)[0]
        for end in ready:
            if end in telling:
                telling[end].is_serving = bool(os.read(end, 1))
                os.close(end)
                telling[end].told = -1
        if self._wake in ready:
            for number in os.read(self._wake, 4096):
                self._heard(number)
        for worker in self._workers:
            if worker.pid:
                self._look_after(worker)

    def _heard(self, number: int) -> None:
        if number in _ENDING:
            self._is_ending = True
        elif number in _HANDED_ON:
            self._tell_all(signal.Signals(number))

    def _tell_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)

    def _look_after(self, worker: _Worker) -> int | None:
        """Take note of a worker's end; return its exit status, None while it runs."""
        pid, raw = os.waitpid(worker.pid, os.WNOHANG)
        if not pid:
            return None
        status = os.waitstatus_to_exitcode(raw)
        if not self._is_ending:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            _log.warning("worker %d (process %d) ended: %s", worker.number, pid, how)
            self._is_ending = not self._has_served
        now = time.monotonic()
        if now - worker.started > _STEADY_S:
            worker.pause_s = _BACKOFF_S[0]
        worker.start_at = now + worker.pause_s
        worker.pause_s = min(worker.pause_s * 2, _BACKOFF_S[1])
        if worker.told >= 0:
            os.close(worker.told)
        worker.pid, worker.told, worker.is_serving = 0, -1, False
        return status

    def _end_all(self) -> bool:
        """End every worker; tell whether each ended in order."""
        self._is_ending = True
        self._tell_all(signal.SIGTERM)
        ends, is_clean = time.monotonic() + self._end_s, True
        while running := [worker for worker in self._workers if worker.pid]:
            if time.monotonic() > ends:
                _log.warning("workers that do not end are killed")
                self._tell_all(signal.SIGKILL)
                ends = float("inf")
            for worker in running:
                status = self._look_after(worker)
                is_clean = is_clean and not status
            select.select([self._wake], [], [], 0.05)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        return is_clean


def _tell(pipe: int) -> None:
    os.write(pipe, b"1")
    os.close(pipe)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)
