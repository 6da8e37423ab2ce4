"""Mountpoints: what is mounted where, how to take it away, which place of which space a path is.

A live mount says who it is in the virtual extended attribute `MOUNT_XATTR` of its root, so a
path is understood however its mount was started.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import xattr

from everfold.errors import EverfoldError, Kind

MOUNT_XATTR: Final = "user.everfold.mount"
STATISTICS_XATTR: Final = "user.everfold.statistics"
_SOURCE: Final = "everfold:"  # what the mount table names our mounts by, before the space
_MNT_DETACH: Final = 2
_UNMOUNT_S: Final = 60.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Place:
    """A path inside a mount: `names` lead from the root of `space` to it."""

    root: Path
    server: str
    space: str
    token_file: Path
    names: list[bytes]
    ca_file: str = ""

    @property
    def token(self) -> str:
        """Read the token that the mount works with."""
        return self.token_file.read_text(encoding="ascii").strip()


def locate(path: str) -> Place:
    """Find out where in which space a path lies; nothing need be there (any more).

    INVALID when no mount of ours holds it, UNAVAILABLE when its mount is dead.
    """
    parent, name = os.path.split(os.path.abspath(path))
    inside = Path(os.path.realpath(parent)) / name if name else Path(parent)
    for root in (inside, *inside.parents):
        form = _told_by(root)
        if form is not None:
            names = [os.fsencode(part) for part in inside.relative_to(root).parts]
            token_file = Path(form["token_file"])
            ca_file = form.get("ca_file", "")
            return Place(root, form["server"], form["space"], token_file, names, ca_file)
    raise EverfoldError(Kind.INVALID, "not inside an Everfold folder", path)


def _told_by(root: Path) -> dict[str, str] | None:
    if not is_fuse(str(root)):
        return None
    try:
        form: dict[str, str] = json.loads(xattr.getxattr(str(root), MOUNT_XATTR))
    except OSError as err:
        if is_dead(err):
            raise EverfoldError(Kind.UNAVAILABLE, "the mount is dead", str(root)) from err
        return None
    except ValueError as err:
        raise EverfoldError(Kind.INTERNAL, "the mount does not say who it is", str(root)) from err
    return form


def ours() -> list[str]:
    """Return where Everfold is mounted, dead or alive; never asks a mount."""
    return [row.point for row in _table() if row.source.startswith(_SOURCE)]


def statistics(root: str) -> tuple[str, dict[str, Any]]:
    """Return which server a live mount has, and what it says of itself; may hang with it.

    UNAVAILABLE when it is dead, or is none of ours.
    """
    try:
        about = json.loads(xattr.getxattr(root, MOUNT_XATTR))
        return str(about["server"]), json.loads(xattr.getxattr(root, STATISTICS_XATTR))
    except (OSError, ValueError, KeyError) as err:
        raise EverfoldError(Kind.UNAVAILABLE, f"the mount does not answer: {err}", root) from err


def is_mounted(path: str) -> bool:
    """Tell whether something is mounted exactly here, dead or alive; never asks the mount."""
    return any(row.point == path for row in _table())


def is_fuse(path: str) -> bool:
    """Tell whether what is mounted exactly here, on top, is a FUSE filesystem."""
    found = [row.kind for row in _table() if row.point == path]
    return bool(found) and found[-1].split(".")[0] == "fuse"


class _Row(NamedTuple):
    point: str
    kind: str
    source: str


def _table() -> list[_Row]:
    rows = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        point = fields[4].decode("unicode_escape").encode("latin-1")  # \040 is a space
        kind, source = fields[fields.index(b"-") + 1 :][:2]
        rows.append(_Row(os.fsdecode(point), kind.decode(), os.fsdecode(source)))
    return rows


def unmount(path: str) -> None:
    """Unmount an idle folder; BUSY, with everything as it was, when a program is in it."""
    if os.geteuid() == 0:
        _umount2(path, 0)
        return
    ran = _fusermount("-u", path)
    if ran.returncode != 0:
        said = ran.stderr.decode(errors="replace").strip()
        kind = Kind.BUSY if "busy" in said.lower() else Kind.INVALID
        raise EverfoldError(kind, said or "cannot be unmounted", path)


def is_dead(err: OSError) -> bool:
    """Tell whether this error means that a mount's driver is gone."""
    return err.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def detach_dead(path: str) -> None:
    """Take a mount whose driver is gone out of the way; leave every other."""
    try:
        os.statvfs(path)  # always asks the driver; attributes the kernel may remember
    except OSError as err:
        if is_dead(err):
            detach(path)


def detach(path: str) -> None:
    """Take a mount out of the way, busy or dead; a no-op when nothing is mounted."""
    while is_mounted(path):
        if os.geteuid() == 0:
            _umount2(path, _MNT_DETACH)
        elif _fusermount("-uz", path).returncode != 0:
            raise EverfoldError(Kind.BUSY, "cannot be detached", path)


def _umount2(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise EverfoldError(Kind.BUSY, "a program works in it (fuser -vm shows which)", path)
    if number == errno.EINVAL:
        raise EverfoldError(Kind.INVALID, "nothing is mounted there", path)
    raise EverfoldError(Kind.NOT_PERMITTED, os.strerror(number), path)


def _fusermount(option: str, path: str) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise EverfoldError(Kind.UNSUPPORTED, "fusermount3 is not installed (package fuse3)")
    return subprocess.run([program, option, path], capture_output=True, timeout=_UNMOUNT_S)
