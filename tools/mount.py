"""`everfold mount`: your space as a folder."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from everfold.errors import EverfoldError, Kind
from everfold.statefile import read_json
from tools import command, mountpoint
from tools.home import Home, Login, MountRecord
from tools.supervisor import python

READY_S = 180.0  # what an earlier driver left is sent first


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "mount",
        run,
        summary="mount your space as a folder",
        description="Mount a space as a folder, in the background; returns when it is usable.\n"
        "One space may be mounted any number of times. A folder whose driver died is taken\n"
        "over, and what that driver had not yet sent is sent.",
        example="everfold mount ~/Everfold",
    )
    parser.add_argument("dir", metavar="DIR", help="made when it is not there")
    parser.add_argument("--server", metavar="URL", help="instead of the one logged in at")
    parser.add_argument("--space", metavar="S", default="", help="another space than your own")
    parser.add_argument("--driver", choices=("kernel", "fusepy"), default="kernel")
    parser.add_argument("--cache-dir", metavar="D", help="cache and journal; kept between mounts")
    parser.add_argument("--uid", type=int, metavar="N", help="show everything as this user's")
    parser.add_argument("--gid", type=int, metavar="N", help="show everything as this group's")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="ro")
    parser.add_argument("--foreground", action="store_true", help="stay until it is unmounted")
    parser.add_argument("--log-file", metavar="F")


def run(args: argparse.Namespace) -> int:
    """Mount."""
    home = Home()
    login = home.login(args.server)
    where = os.path.realpath(args.dir)
    mountpoint.detach_dead(where)
    if mountpoint.is_fuse(where):
        raise EverfoldError(Kind.BUSY, "something is mounted there already", where)
    _make(where)
    folder = home.mount_folder(where)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = Path(args.log_file).absolute() if args.log_file else folder / "mount.log"
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    line = _driver_line(args, login, where, folder / "cache", ready, log)
    if args.foreground:
        os.execv(line[0], line)
    pid = _start(line, ready, log, where)
    home.record_mount(
        MountRecord(
            pid, where, login.server, args.space, args.driver, str(log), str(login.token_file)
        )
    )
    return command.DONE


def _make(where: str) -> None:
    try:
        Path(where).mkdir(parents=True, exist_ok=True)
    except FileExistsError as err:
        raise EverfoldError(Kind.NOT_DIR, "is not a folder", where) from err


def _driver_line(
    args: argparse.Namespace, login: Login, where: str, cache: Path, ready: Path, log: Path
) -> list[str]:
    line = python(
        "mount", where, "--server", login.server, "--token-file", str(login.token_file),
        "--cache-dir", os.path.abspath(args.cache_dir) if args.cache_dir else str(cache),
        "--driver", args.driver, "--foreground", "--ready-file", str(ready),
    )  # fmt: skip
    if not args.foreground or args.log_file:
        line += ["--log-file", str(log)]
    if args.space:
        line += ["--space", args.space]
    if login.ca_file:
        line += ["--ca-file", login.ca_file]
    for name, value in (("--uid", args.uid), ("--gid", args.gid)):
        if value is not None:
            line += [name, str(value)]
    for option in args.options:
        line += ["-o", option]
    return line


def _start(line: list[str], ready: Path, log: Path, where: str) -> int:
    """Start the driver on its own; return its pid once the folder is usable."""
    errors = log.with_suffix(".err")
    with errors.open("wb") as sink:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
            cwd="/", env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
    ends = time.monotonic() + READY_S
    while read_json(ready) is None:
        if process.poll() is not None:
            words = errors.read_text(errors="replace").strip().splitlines()
            said = words[-1].removeprefix("everfold-mount: ") if words else f"see {log}"
            raise EverfoldError(Kind.UNAVAILABLE, said)
        if time.monotonic() > ends:
            process.terminate()
            raise EverfoldError(Kind.TIMEOUT, f"not ready after {READY_S:g} s; see {log}", where)
        time.sleep(0.02)
    return process.pid
