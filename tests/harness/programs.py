"""Programs beside the test: other processes that use a mount, step by step.

Locks belong to processes, and a system call that waits holds its process: so what two
programs do to each other is tested with real ones.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_LOOP = """
import errno, fcntl, os, signal, sys
def interrupt(*_):
    raise InterruptedError(errno.EINTR, "by a signal")
signal.signal(signal.SIGUSR1, interrupt)
files = {}
for line in sys.stdin:
    try:
        exec(line)
        print("done", flush=True)
    except OSError as err:
        # EDEADLK has two names
        print('EDEADLK' if err.errno == errno.EDEADLK else errno.errorcode[err.errno], flush=True)
"""


class Program:
    """A process that runs statements one after the other; `f` of them is the open file."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.do(f"f = open({str(path)!r}, 'r+b', buffering=0)") == "done"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line.strip())

    def start(self, statement: str) -> None:
        """Let it begin a statement, which may wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(statement + "\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float = 10.0) -> str:
        """Return how the statement ended, "done" or the name of an errno; "" for not yet."""
        try:
            return self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return ""

    def do(self, statement: str) -> str:
        """Run a statement to its end and return `answer`."""
        self.start(statement)
        return self.answer()

    def interrupt(self) -> None:
        """Send it a signal that ends the system call it waits in."""
        self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> int:
        """Kill it outright and return its exit status; it must be gone within seconds."""
        self._process.kill()
        return self._process.wait(10)

    def close(self) -> None:
        """End it."""
        self.kill()
        self._reader.join(10)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


@contextlib.contextmanager
def programs(path: Path, count: int) -> Iterator[list[Program]]:
    """Start `count` programs that have opened `path`, and end them with the block."""
    with contextlib.ExitStack() as stack:
        started: list[Program] = []
        for _ in range(count):
            program = Program(path)
            stack.callback(program.close)
            started.append(program)
        yield started
