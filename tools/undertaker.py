"""Who ends the children in order when their supervisor was killed and cannot.

A small process, forked at the start, that learns of every child from the child itself (before
it becomes the server that it is to be, so none is missed) and otherwise only waits. When the
supervisor dies, however it dies, the pipe to it closes; then the children are ended rank by
rank, the folder first, so that the mount still finds the servers that it has to send to.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple

from tools import mountpoint

_FAREWELL = b"\n.\n"  # an orderly end; a line that announces nothing


class Charge(NamedTuple):
    """What is known of a child. Higher ranks end first."""

    pid: int
    rank: int
    end_s: float  # how long an orderly end may take
    mountpoint: str = ""


class Undertaker:
    """Made by the supervisor before it has threads or children."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writer)
            _live(reader)
        os.close(reader)

    def announce(self, rank: int, end_s: float, mountpoint: str) -> None:
        """Make the calling process, a fresh child before its exec, known."""
        charge = Charge(os.getpid(), rank, end_s, mountpoint)
        os.write(self._writer, json.dumps(charge).encode() + b"\n")

    def dismiss(self) -> None:
        """Everything was ended in order; there is nothing to do any more."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._writer, _FAREWELL)
        os.close(self._writer)
        os.waitpid(self._pid, 0)


def _live(reader: int) -> None:
    """Be the undertaker: never returns."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        said = b""
        while piece := os.read(reader, 4096):
            said += piece
        if not said.endswith(_FAREWELL):
            _end(Charge(*json.loads(line)) for line in said.splitlines() if line)
        status = 0
    finally:
        os._exit(status)


def _end(charges: Iterable[Charge]) -> None:
    held = [(charge, handle) for charge in charges if (handle := _hold(charge.pid)) is not None]
    for rank in sorted({charge.rank for charge, _ in held}, reverse=True):
        told = [(charge, handle) for charge, handle in held if charge.rank == rank]
        for _, handle in told:
            _signal(handle, signal.SIGTERM)
            _signal(handle, signal.SIGCONT)  # a stopped process would never notice
        for charge, handle in told:
            ends = time.monotonic() + charge.end_s
            if not select.select([handle], [], [], max(0.0, ends - time.monotonic()))[0]:
                _signal(handle, signal.SIGKILL)
                select.select([handle], [], [], charge.end_s)
            if charge.mountpoint:
                mountpoint.detach(charge.mountpoint)


def _hold(pid: int) -> int | None:
    """Return a handle that means this very process, None when it is gone."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _signal(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)
