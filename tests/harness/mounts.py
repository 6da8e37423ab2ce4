"""Mount a filesystem for a test, in a process of its own.

The process that uses a mount must not be the one that serves it (a system call that holds
the interpreter would wait for itself). So a child, started afresh, makes the filesystem,
mounts it and serves it; the test talks to the filesystem behind the kernel's back through a
pipe (`mounted.filesystem.lookup(...)`, `mounted.cache.forget_entry(...)`). When the test's
process ends, however it ends, the pipe closes and the child unmounts.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mount.fusepy_adapter
import mount.kernel
from everfold.errors import EverfoldError, Kind
from mount.filesystem import Filesystem
from mount.kernel import mounting
from mount.kernel.mounting import MountOptions

DRIVERS = ("kernel", "fusepy")
_START_S = 30.0
_END_S = 20.0
_CALL_S = 60.0

Factory = Callable[[], Filesystem]


@dataclass(frozen=True)
class Plan:
    """What the child is to do; it travels to it."""

    factory: Factory
    mountpoint: str
    driver: str
    options: MountOptions | None = None
    uid: int | None = None  # the user to become before mounting


class Remote:
    """An object in the driver's process: its methods can be called from here."""

    def __init__(self, pipe: Connection, lock: threading.Lock, target: str) -> None:
        self._pipe, self._lock, self._target = pipe, lock, target

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self._pipe.send((self._target, method, args, kwargs))
                if not self._pipe.poll(_CALL_S):
                    raise TimeoutError(f"{self._target}.{method} does not answer")
                is_value, answer = self._pipe.recv()
            if is_value:
                return answer
            raise answer

        return call


class Mounted:
    """A filesystem that is mounted at `path` by the process `pid`."""

    def __init__(self, plan: Plan, process: subprocess.Popen[bytes], pipe: Connection) -> None:
        self.driver = plan.driver
        self.path = Path(plan.mountpoint)
        self.process = process
        lock = threading.Lock()  # one call over the pipe at a time
        self.filesystem = Remote(pipe, lock, "filesystem")
        self.cache = Remote(pipe, lock, "cache")
        self.mount = Remote(pipe, lock, "mount")

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self.process.pid

    def kill(self) -> None:
        """Kill the driver as a crash would; the mountpoint stays behind, dead."""
        self.process.kill()
        self.process.wait(_END_S)


@contextlib.contextmanager
def mounted(
    factory: Factory,
    driver: str = "kernel",
    *,
    mountpoint: Path | None = None,
    options: MountOptions | None = None,
    uid: int | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Mounted]:
    """Mount what `factory` makes (a picklable callable) until the block ends.

    The driver becomes the user `uid`; `prefix` is the beginning of its command line, for a
    namespace of its own. Afterwards nothing is left: no process, no mount, and no directory
    if it was made here.
    """
    with contextlib.ExitStack() as stack:
        if mountpoint is None:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="everfold-mount-"))
            mountpoint = Path(made)
            if uid is not None:
                os.chown(mountpoint, uid, -1)
        plan = Plan(factory, str(mountpoint), driver, options, uid)
        process, pipe = _start(plan, prefix)
        try:
            if not pipe.poll(_START_S):
                raise TimeoutError("the mount does not come up")
            try:
                problem = pipe.recv()
            except EOFError:
                raise RuntimeError("the driver died before it had mounted") from None
            if problem is not None:
                raise problem
            yield Mounted(plan, process, pipe)
        finally:
            _clean_up(process, pipe, plan.mountpoint)


def _start(plan: Plan, prefix: Sequence[str]) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", __name__, str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    ours.send(plan)
    return process, ours


def _clean_up(process: subprocess.Popen[bytes], pipe: Connection, mountpoint: str) -> None:
    pipe.close()  # the driver sees it, and unmounts
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_END_S)
    while mounting.device_of(mountpoint) is not None:
        mounting.detach(mountpoint, lazy=True)


def stale_mounts(under: Path) -> list[str]:
    """Return the mountpoints below a directory, dead ones too."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        points = [line.split()[4] for line in table]
    return [point for point in points if point.startswith(f"{under}/")]


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Return the first true value of `condition`; fail when there is none in time."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError("it did not become true in time")
        pause.wait(0.01)
    return value


# ---------------------------------------------------------------- in the driver's process


def _drive(plan: Plan, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the test's; the pipe tells us
    logging.basicConfig(level=logging.WARNING)
    filesystem = plan.factory()
    if plan.uid is not None:
        os.setgroups([])
        os.setresgid(plan.uid, plan.uid, plan.uid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
        os.chdir("/")
    adapter: Any = (
        mount.kernel.KernelMount if plan.driver == "kernel" else mount.fusepy_adapter.FusepyMount
    )
    driver = adapter(filesystem, plan.mountpoint, options=plan.options)
    try:
        driver.mount()
    except EverfoldError as err:
        pipe.send(err)
        return
    calling = threading.Lock()  # held during a call: the answer to `unmount` is not cut off
    serving = (pipe, filesystem, driver, calling)
    threading.Thread(target=_serve, args=serving, daemon=True).start()
    driver.run()
    with calling:
        pass


def _serve(pipe: Connection, filesystem: Filesystem, driver: Any, calling: threading.Lock) -> None:
    ready = driver.wait_ready(_START_S)
    pipe.send(None if ready else TimeoutError("the kernel does not talk to the driver"))
    targets = {"filesystem": filesystem, "cache": driver.cache, "mount": driver}
    while True:
        try:
            target, method, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            break
        with calling:
            try:
                answer = (True, getattr(targets[target], method)(*args, **kwargs))
            except Exception as err:  # noqa: BLE001 - the test's process raises it
                answer = (False, err)
            pipe.send(answer)
    try:
        driver.unmount()
    except EverfoldError as err:
        if err.kind is not Kind.BUSY:
            raise
        driver.unmount(lazy=True)


if __name__ == "__main__":
    # Not `_drive` of this `__main__`: what travels must be of the importable module.
    from tests.harness import mounts

    inherited = Connection(int(sys.argv[1]))
    mounts._drive(inherited.recv(), inherited)
