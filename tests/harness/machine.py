"""What this machine can do, and what runs on it that a test started.

Processes are recognised by a variable that they inherit (`MARK`), so that one is found even
when its parent is gone; other people's processes on the same machine never are.
"""

from __future__ import annotations

import functools
import os
import platform
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from everfold import native

MARK = "EVERFOLD_TEST_RUN"
_pause = threading.Event()  # never set: its wait is the pause between two looks at a condition


@functools.cache
def abilities() -> dict[str, str]:
    """Return what tests ask for: "yes", or why not."""
    return {
        "fuse": _fuse(),
        "postgres": "yes" if postgres_bin() else "no postgresql is installed",
        "native": "yes" if native.folder().is_dir() else "nothing is compiled; see make native",
        "root": "yes" if os.geteuid() == 0 else "no: mounts go through fusermount3",
        "kernel": platform.release(),
    }


def _fuse() -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        return f"/dev/fuse cannot be opened: {err.strerror}"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "no fusermount3, and this is not root"
    return "yes"


def postgres_bin() -> Path | None:
    """Return the folder of the newest installed PostgreSQL server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def mark_run() -> None:
    """Mark this process, and so all that it will start, as this run's."""
    os.environ[MARK] = f"{os.getpid()}-{secrets.token_hex(4)}"


def children() -> set[int]:
    """Return the live processes that this run started, whoever their parent is by now."""
    wanted = f"{MARK}={os.environ.get(MARK, 'none')}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            is_ours = wanted in (folder / "environ").read_bytes().split(b"\0")
            if is_ours and not _is_zombie(folder) and not _is_pythons_own(folder):
                found.add(int(folder.name))
        except OSError:
            continue  # it ended while we looked, or is another user's
    return found


def _is_pythons_own(folder: Path) -> bool:
    """Tell whether this is multiprocessing's tracker, which lives as long as the whole run."""
    return b"multiprocessing.resource_tracker" in (folder / "cmdline").read_bytes()


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return not _is_zombie(Path(f"/proc/{pid}"))
    except OSError:
        return False


def descends_from(pid: int, ancestors: set[int]) -> bool:
    """Tell whether a process is in, or was started below one of, `ancestors`."""
    while pid > 1:
        if pid in ancestors:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return False
        pid = int(stat.rpartition(b")")[2].split()[1])
    return False


def command_line(pid: int) -> str:
    """Return a process's command line, "?" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "?"


def peak_kib(pid: int) -> int:
    """Return the most memory that a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def wait_until(is_so: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Return once `is_so()`; raise AssertionError when it is not within the deadline."""
    ends = time.monotonic() + deadline_s
    while not is_so():
        if time.monotonic() > ends:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        _pause.wait(0.02)


def wait_gone(left: Callable[[], set[int]], deadline_s: float) -> set[int]:
    """Give processes that are ending a moment; return those that stay."""
    ends = time.monotonic() + deadline_s
    while (pids := left()) and time.monotonic() < ends:
        _pause.wait(0.02)
    return pids


def kill(pids: Iterable[int]) -> None:
    """Kill these processes, for good."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def fuse_mounts(below: Path) -> set[str]:
    """Return the mountpoints of FUSE filesystems below a folder."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        kind = fields[fields.index("-") + 1]
        point = fields[4].encode().decode("unicode_escape").encode("latin-1").decode()
        if kind.split(".")[0] == "fuse" and point.startswith(f"{below}/"):
            found.add(point)
    return found


def detach(mountpoints: Iterable[str]) -> None:
    """Take mounts away even when they are busy or dead."""
    for point in mountpoints:
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        subprocess.run([*command, point], check=False, capture_output=True, timeout=10)
