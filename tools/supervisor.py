"""Processes that belong together: started, watched, restarted, ended, none left behind.

One thread does everything, so a child may be forked at any moment. Should the supervisor be
killed, an `undertaker` ends the children in its place; and each child inherits the lock on the
data directory, so the directory stays locked until the last of them is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from everfold.errors import EverfoldError, Kind
from tools import mountpoint
from tools.undertaker import Undertaker

Ready = dict[str, Any]

_BACKOFF_S: Final = (0.1, 5.0)  # first and longest pause before a restart
_STEADY_S: Final = 30.0  # a child that ran so long starts over with the first pause
_TICK_S: Final = 0.1
_LOG_MAX: Final = 16 << 20


@dataclass
class Child:
    """A process that is to run. `argv()` is asked at every start, so that ports may change."""

    name: str
    argv: Callable[[], Sequence[str]]
    log: Path
    ready_file: Path
    env: Mapping[str, str]
    rank: int = 0  # higher ones end first
    end_s: float = 10.0  # how long an orderly end may take
    mountpoint: str = ""  # detached when its driver could not do it itself
    nice: int = 0  # how much it gives way to the programs of this machine
    may_end: bool = False  # an end with status 0 is meant, and not to be undone
    ready: Ready | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float = 0.0
    pause_s: float = field(default=_BACKOFF_S[0])

    def last_words(self) -> str:
        """Return the last line that it logged."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][-300:] if lines else ""


class Supervisor:
    """Use as a context: on leaving, the children are ended, those of the highest rank first."""

    def __init__(self, say: Callable[[str], None], inherited: int) -> None:
        self._say = say
        self._inherited = inherited
        self._undertaker = Undertaker()
        self._children: list[Child] = []
        self._stop_asked = False
        self._reload_asked = False
        self._wake: tuple[int, int] = (-1, -1)
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Supervisor:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = (reader, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number, action in (
            (signal.SIGTERM, self._on_stop),
            (signal.SIGINT, self._on_stop),
            (signal.SIGHUP, self._on_reload),
            (signal.SIGCHLD, lambda *_: None),
        ):
            self._old[number] = signal.signal(number, action)
        return self

    def __exit__(self, *_: object) -> None:
        self._end_all()
        self._undertaker.dismiss()
        for number, action in self._old.items():
            signal.signal(number, action)
        signal.set_wakeup_fd(-1)
        for end in self._wake:
            os.close(end)

    def _on_stop(self, *_: object) -> None:
        self._stop_asked = True

    def _on_reload(self, *_: object) -> None:
        self._reload_asked = True

    # ------------------------------------------------------------ starting

    def start(self, child: Child) -> None:
        """Start a child and keep it running from now on; it may not be ready yet."""
        self._children.append(child)
        self._spawn(child)

    def wait_ready(self, deadline_s: float, is_well: Callable[[], bool] = lambda: True) -> bool:
        """Wait until all started children are ready and `is_well()`.

        Returns False when the end was asked for meanwhile. UNAVAILABLE, with the child's last
        words, when one ends or is not ready in time.
        """
        ends = time.monotonic() + deadline_s
        while not self._stop_asked:
            for child in self._children:
                self._look_for_ready(child)
                if child.process is None or child.process.poll() is not None:
                    raise self._failure(child, "ended at its start")
            late = [child for child in self._children if child.ready is None]
            if not late and is_well():
                return True
            if time.monotonic() > ends:
                raise self._failure(
                    late[0] if late else self._children[0], f"not ready in {deadline_s:g} s"
                )
            self._nap()
        return False

    def _failure(self, child: Child, what: str) -> EverfoldError:
        words = child.last_words()
        return EverfoldError(
            Kind.UNAVAILABLE, f"{what}: {words}" if words else what, f"{child.name} ({child.log})"
        )

    def _spawn(self, child: Child) -> None:
        child.ready = None
        child.ready_file.unlink(missing_ok=True)
        child.ready_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        child.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if child.log.exists() and child.log.stat().st_size > _LOG_MAX:
            child.log.replace(child.log.with_suffix(".log.1"))
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                list(child.argv()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(child.env),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone
                pass_fds=(self._inherited,),
                preexec_fn=lambda: self._undertaker.announce(
                    child.rank, child.end_s, child.mountpoint
                ),
            )
        if child.nice:
            _give_way(child.process.pid, child.nice)
        child.started = time.monotonic()

    def _look_for_ready(self, child: Child) -> bool:
        """Take over a child's ready file when it has just appeared."""
        if child.ready is not None:
            return False
        try:
            text = child.ready_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        child.ready = json.loads(text)
        child.ready_file.unlink()  # the nameserver's may hold the first password
        return True

    # ------------------------------------------------------------ watching

    def watch(
        self,
        on_ready: Callable[[Child], None],
        on_reload: Callable[[], None],
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep all children running until the end is asked for."""
        while not self._stop_asked:
            for child in list(self._children):
                if child.process is not None:
                    self._check(child)
                elif time.monotonic() >= child.restart_at:
                    self._spawn(child)
                if self._look_for_ready(child):
                    self._say(f"{child.name} is back")
                    on_ready(child)
            if self._reload_asked:
                self._reload_asked = False
                on_reload()
            on_tick()
            self._nap()

    def _check(self, child: Child) -> None:
        assert child.process is not None
        status = child.process.poll()
        if status is None:
            return
        if time.monotonic() - child.started > _STEADY_S:
            child.pause_s = _BACKOFF_S[0]
        if status == 0 and child.may_end:
            self._say(f"{child.name} ended, as it was asked to")
            self._children.remove(child)
            return
        how = f"signal {-status}" if status < 0 else f"status {status}"
        words = f": {child.last_words()}" if status > 0 else ""
        self._say(f"{child.name} ended ({how}){words}; starting it again")
        child.process = None
        child.restart_at = time.monotonic() + child.pause_s
        child.pause_s = min(child.pause_s * 2, _BACKOFF_S[1])
        if child.mountpoint:
            mountpoint.detach(child.mountpoint)

    def _nap(self) -> None:
        """Wait for a signal (a child's end is one), at most a tick."""
        reader = self._wake[0]
        if select.select([reader], [], [], _TICK_S)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)

    # ------------------------------------------------------------ ending

    def _end_all(self) -> None:
        """End rank by rank; children of one rank together."""
        for rank in sorted({child.rank for child in self._children}, reverse=True):
            told = [c for c in self._children if c.rank == rank and c.process is not None]
            for child in told:
                if child.process is not None and child.process.poll() is None:
                    child.process.terminate()
                    child.process.send_signal(signal.SIGCONT)  # a stopped one would not notice
            for child in told:
                self._await_end(child)

    def _await_end(self, child: Child) -> None:
        assert child.process is not None
        try:
            child.process.wait(child.end_s)
        except subprocess.TimeoutExpired:
            self._say(f"{child.name} does not end by itself; killing it")
            child.process.kill()
            child.process.wait()
        if child.mountpoint:
            mountpoint.detach(child.mountpoint)


def python(*args: str) -> list[str]:
    """Return the command line of a module of ours under this interpreter."""
    return [sys.executable, "-m", *args]


def _give_way(pid: int, nice: int) -> None:
    """Let a process wait where others want the processor too; it is not refused any of it.

    A kernel that groups processes by session (SCHED_AUTOGROUP) weighs the groups, and each
    child has a session of its own: there the group's figure counts, not the process's.
    """
    figure = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    with contextlib.suppress(OSError):  # it has ended already, which `watch` will notice
        os.setpriority(os.PRIO_PROCESS, pid, figure)
        Path(f"/proc/{pid}/autogroup").write_text(str(figure), encoding="ascii")
