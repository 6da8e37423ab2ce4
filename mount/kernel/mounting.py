"""Attach a descriptor of /dev/fuse to a directory, and detach it again.

Root calls mount(2) and umount2(2) through libc; anybody else asks the setuid program
`fusermount3`, which hands the descriptor over a socket. A mountpoint whose driver died is
recognised (every access gives ENOTCONN) and detached, so that the next mount takes it over.

Nothing here looks into the mounted directory: before the session answers, that would hang.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from everfold.errors import EverfoldError, Kind

SUBTYPE = "everfold"
_DEVICE = "/dev/fuse"
_HELPER_TIMEOUT_S = 20.0
_READ_AHEAD_KB = 1024
_MOST_DEAD_LAYERS = 16  # dead mounts on top of each other that a take-over removes

_MS = {  # options of mount(8) that are flags of mount(2): bit, and whether they set it
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "async": (16, False),
    "dirsync": (128, True),
    "noatime": (1024, True),
    "atime": (1024, False),
}
_NOSUID_NODEV = 2 | 4
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_KINDS = {
    errno.ENOENT: Kind.NOT_FOUND,
    errno.ENOTDIR: Kind.NOT_DIR,
    errno.EPERM: Kind.FORBIDDEN,
    errno.EACCES: Kind.FORBIDDEN,
    errno.EBUSY: Kind.BUSY,
    errno.EINVAL: Kind.INVALID,
    errno.ENODEV: Kind.UNSUPPORTED,
    errno.ENXIO: Kind.UNSUPPORTED,
}

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `extra`: words as after `mount -o` (`suid`, `noexec`, `max_read=4096`).

    `allow_other` None: yes for root, no for a user (whom fuse.conf must permit it).
    """

    allow_other: bool | None = None
    read_only: bool = False
    fsname: str = SUBTYPE
    extra: tuple[str, ...] = ()

    def may_others(self) -> bool:
        """Tell whether users other than the one who mounts are let in."""
        return os.geteuid() == 0 if self.allow_other is None else self.allow_other

    def flags(self) -> int:
        """Return the flags for mount(2); nosuid and nodev unless asked otherwise."""
        flags = _NOSUID_NODEV | (1 if self.read_only else 0)
        for word in self.extra:
            if word in _MS:
                bit, is_set = _MS[word]
                flags = flags | bit if is_set else flags & ~bit
        return flags

    def words(self) -> list[str]:
        """Return the options that the filesystem itself reads."""
        words = ["default_permissions"]
        if self.may_others():
            words.append("allow_other")
        return words + [word for word in self.extra if word not in _MS]

    def flag_words(self) -> list[str]:
        """Return the words of `extra` that are about the mount, not the filesystem."""
        return [word for word in self.extra if word in _MS]


# ---------------------------------------------------------------- attach


def attach(mountpoint: str, options: MountOptions) -> int:
    """Mount on `mountpoint` and return the descriptor to serve; a dead mount is taken over.

    NOT_FOUND, NOT_DIR, FORBIDDEN, BUSY; UNSUPPORTED without /dev/fuse or fusermount3.
    """
    check_mountpoint(mountpoint)
    if os.geteuid() == 0:
        return _attach_as_root(mountpoint, options)
    return _attach_as_user(mountpoint, options)


def check_mountpoint(mountpoint: str) -> None:
    """See that it is a directory (NOT_FOUND, NOT_DIR); a dead mount is detached first."""
    take_over(mountpoint)
    if not os.path.isdir(mountpoint):
        kind = Kind.NOT_DIR if os.path.lexists(mountpoint) else Kind.NOT_FOUND
        raise EverfoldError(kind, "the mountpoint is not a directory", mountpoint)


def _attach_as_root(mountpoint: str, options: MountOptions) -> int:
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise EverfoldError(Kind.UNSUPPORTED, f"no FUSE here: {err}", _DEVICE) from err
    words = [f"fd={fd}", f"rootmode={stat.S_IFDIR:o}", "user_id=0", "group_id=0"]
    result = _libc.mount(
        os.fsencode(options.fsname),
        os.fsencode(mountpoint),
        f"fuse.{SUBTYPE}".encode(),
        ctypes.c_ulong(options.flags()),
        ",".join(words + options.words()).encode(),
    )
    if result != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise _failure("mount", mountpoint, code)
    return fd


def _attach_as_user(mountpoint: str, options: MountOptions) -> int:
    words = [*options.words(), f"fsname={options.fsname}", f"subtype={SUBTYPE}"]
    words += options.flag_words()
    if options.read_only:
        words.append("ro")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        helper = subprocess.run(
            [_fusermount(), "-o", ",".join(words), "--", mountpoint],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
        if helper.returncode != 0:
            raise EverfoldError(Kind.FORBIDDEN, helper.stderr.strip() or "refused", mountpoint)
        ours.settimeout(_HELPER_TIMEOUT_S)
        _, fds, _, _ = socket.recv_fds(ours, 16, 1)
    if not fds:
        raise EverfoldError(Kind.INTERNAL, "fusermount3 gave no descriptor", mountpoint)
    os.set_inheritable(fds[0], False)
    return fds[0]


def _fusermount() -> str:
    for name in ("fusermount3", "fusermount"):
        if path := shutil.which(name):
            return path
    raise EverfoldError(Kind.UNSUPPORTED, "only root can mount here: there is no fusermount3")


def _failure(verb: str, mountpoint: str, code: int) -> EverfoldError:
    kind = _KINDS.get(code, Kind.INTERNAL)
    return EverfoldError(kind, f"{verb}: {os.strerror(code)}", mountpoint)


# ---------------------------------------------------------------- detach


def detach(mountpoint: str, lazy: bool) -> None:
    """Unmount; BUSY while it is in use, unless `lazy` (then it goes when its last user does).

    INVALID when nothing is mounted there.
    """
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        if _libc.umount2(os.fsencode(mountpoint), flags) != 0:
            raise _failure("umount", mountpoint, ctypes.get_errno())
        return
    command = [_fusermount(), "-u", *(["-z"] if lazy else []), "--", mountpoint]
    helper = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_HELPER_TIMEOUT_S,
        check=False,
    )
    if helper.returncode != 0:
        words = helper.stderr.strip()
        is_busy = "busy" in words.lower()  # all that the program tells
        raise EverfoldError(Kind.BUSY if is_busy else Kind.INVALID, words, mountpoint)


def detach_if_mounted(mountpoint: str, lazy: bool) -> None:
    """Unmount as `detach` does; somebody else having been quicker is success."""
    try:
        detach(mountpoint, lazy)
    except EverfoldError as err:
        if err.kind is not Kind.INVALID:
            raise


def is_dead(mountpoint: str) -> bool:
    """Tell whether a FUSE mount stands there whose driver is gone."""
    try:
        os.lstat(mountpoint)
    except OSError as err:
        return err.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def take_over(mountpoint: str) -> bool:
    """Detach dead mounts from `mountpoint`, and tell whether there was one."""
    layers = 0
    while is_dead(mountpoint) and layers < _MOST_DEAD_LAYERS:
        _log.warning("%s: detaching a mount whose driver is gone", mountpoint)
        detach(mountpoint, lazy=True)
        layers += 1
    return layers > 0


# ---------------------------------------------------------------- what the kernel knows of it


def device_of(mountpoint: str) -> str | None:
    """Return "major:minor" of the top mount there, without touching it; None: no mount."""
    wanted, found = os.path.abspath(mountpoint), None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            if _unescape(fields[4]) == wanted:
                found = fields[2]
    return found


def _unescape(path: str) -> str:
    # mountinfo writes blanks and backslashes as \ooo
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def widen_read_ahead(mountpoint: str) -> None:
    """Let the kernel read ahead at least 1 MiB; where that is not permitted, it stays."""
    device = device_of(mountpoint)
    knob = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    try:
        if int(knob.read_text()) < _READ_AHEAD_KB:
            knob.write_text(str(_READ_AHEAD_KB))
    except (OSError, ValueError) as err:
        _log.debug("read-ahead of %s stays as it is: %s", mountpoint, err)
