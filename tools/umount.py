"""`everfold umount`: take the folder away once everything in it is in the cluster."""

from __future__ import annotations

import argparse
import errno
import os
import time
from pathlib import Path

from everfold.errors import EverfoldError, Kind
from tools import command, mountpoint
from tools.home import Home

TIMEOUT_S = 300.0
_ATTEMPTS = 3


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "umount",
        run,
        summary="unmount a folder",
        description="Send what is not yet in the cluster, unmount, and end the driver.\n"
        "A folder that a program works in stays mounted.",
        example="everfold umount ~/Everfold",
    )
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S")


def run(args: argparse.Namespace) -> int:
    """Unmount."""
    where = os.path.realpath(args.dir)
    home = Home()
    record = home.mount_at(where)
    pid = record.pid if record else 0
    if not mountpoint.is_fuse(where):
        if record and not _runs(pid):
            home.forget_mount(where)
        raise EverfoldError(Kind.INVALID, "nothing is mounted there", where)
    _settle(where)
    _take_away(where)
    if pid:
        _wait_gone(pid, where, args.timeout)
        home.forget_mount(where)
    return command.DONE


def _settle(where: str) -> None:
    """Send everything while the folder is still there, so that a failure leaves it mounted."""
    try:
        handle = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as err:
        if mountpoint.is_dead(err) or _is_shut_out(where, err):
            return  # the next mount sends what its driver left
        raise
    try:
        os.fsync(handle)
    except OSError as err:
        if not _is_shut_out(where, err):
            raise EverfoldError(
                Kind.UNAVAILABLE, f"not everything is in the cluster yet ({err.strerror})", where
            ) from err
    finally:
        os.close(handle)


def _is_shut_out(where: str, err: OSError) -> bool:
    """Tell whether a folder cannot be settled because the cluster lets it in no more; say so."""
    if err.errno != errno.EACCES:
        return False
    _, figures = mountpoint.statistics(where)
    if figures["let_in"]:
        return False
    left = figures["backlog"]["records"]
    if left:
        command.say(f"{left} changes are not in the cluster; the next mount here sends them.")
    return True


def _take_away(where: str) -> None:
    """Unmount a folder and, before it, the team folders in it.

    Their driver mounts these again after a second, also when the folder itself is in use.
    """
    for attempt in range(_ATTEMPTS):
        within = [each for each in mountpoint.ours() if each.startswith(f"{where}/")]
        for each in sorted(within, key=len, reverse=True):
            _settle(each)
            mountpoint.unmount(each)
        try:
            mountpoint.unmount(where)
            return
        except EverfoldError as err:
            covered = any(each.startswith(f"{where}/") for each in mountpoint.ours())
            if err.kind is not Kind.BUSY or not covered or attempt == _ATTEMPTS - 1:
                raise


def _wait_gone(pid: int, where: str, timeout_s: float) -> None:
    ends = time.monotonic() + timeout_s
    while _runs(pid):
        if time.monotonic() > ends:
            raise EverfoldError(
                Kind.TIMEOUT, f"unmounted, but its driver (process {pid}) still runs", where
            )
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Tell whether a driver's process runs; a number that another program got since is not it."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"mount" in line
