"""`everfold-mount`: mount a space as a folder and serve it until it is unmounted.

EXIT STATUS: 0 unmounted with everything in the cluster; 1 it could not be mounted; 2 wrong
arguments; 3 unmounted, and the journal in the cache directory holds changes that the next
mount will send.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol

from everfold import log as logs
from everfold import memory, readiness, tuning, wire
from everfold.config import CA_FILE
from everfold.errors import EverfoldError
from mount import patience
from mount.client import Client, Settings, open_remote
from mount.filesystem import KernelCache
from mount.fusepy_adapter import FusepyMount
from mount.kernel.driver import KernelMount
from mount.kernel.mounting import MountOptions
from mount.policy import Policy
from mount.statistics import Cost, packed
from mount.teams import Covers

log = logging.getLogger("mount")
READY_S = 20.0


class Driver(Protocol):
    """What both adapters offer."""

    @property
    def cache(self) -> KernelCache: ...
    def mount(self) -> None: ...
    def run(self) -> None: ...
    def unmount(self, lazy: bool = False) -> None: ...
    def wait_ready(self, timeout_s: float) -> bool: ...
    def statistics(self) -> dict[str, Cost]: ...


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="everfold-mount",
        description="Mount an Everfold space as a folder.",
        epilog=__doc__.split("\n\n")[1] if __doc__ else "",
    )
    parser.add_argument("mountpoint", metavar="DIR")
    parser.add_argument("--server", required=True, metavar="URL")
    parser.add_argument("--token-file", required=True, type=Path, metavar="F")
    trusted = f"authorities of the servers, instead of the system's ({CA_FILE})"
    ca_file = os.environ.get(CA_FILE, "")
    parser.add_argument("--ca-file", default=ca_file, metavar="F", help=trusted)
    parser.add_argument("--space", default="", metavar="S")
    parser.add_argument("--cache-dir", required=True, type=Path, metavar="D")
    parser.add_argument("--cache-size", type=int, default=4096, metavar="MIB")
    parser.add_argument("--driver", choices=("kernel", "fusepy"), default="kernel")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTION,...")
    parser.add_argument("--foreground", action="store_true")
    parser.add_argument("--attended", action="store_true", help="leave when stdin ends")
    parser.add_argument("--ready-file", type=Path, metavar="F")
    parser.add_argument("--log-file", type=Path, metavar="F")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = _arguments(argv)
    words = [word for each in args.options for word in each.split(",") if word]
    if not args.foreground and (status := _into_background()) is not None:
        return status
    tuning.settle()
    logs.set_up(path=args.log_file)
    try:
        client = _open(args, "ro" in words)
    except (EverfoldError, OSError) as err:
        print(f"everfold-mount: {err}", file=sys.stderr)
        return 1
    options = MountOptions(
        read_only=client.core.policy.is_read_only,
        fsname=f"everfold:{client.session.space_name}",
        extra=tuple(w for w in words if w not in ("ro", "rw")),
    )
    driver: Driver = (
        KernelMount(client.vfs, args.mountpoint, options=options)
        if args.driver == "kernel"
        else FusepyMount(client.vfs, args.mountpoint, options=options)
    )
    try:
        driver.mount()
    except EverfoldError as err:
        client.close()
        print(f"everfold-mount: {err}", file=sys.stderr)
        return 1
    if args.driver == "kernel":
        client.core.notifier.attach(driver.cache)
    client.vfs.tell("statistics", lambda: _figures(driver, client))
    covers = Covers(client.core, args.mountpoint, args.cache_dir, partial(_child, args))
    parting = Parting(driver, client, covers)
    with _signals(driver, client, parting):
        threading.Thread(target=_tell_ready, args=(driver, args, covers), daemon=True).start()
        if args.attended:
            threading.Thread(target=_attend, args=(parting,), daemon=True).start()
        memory.give_back_at_rest()
        driver.run()
    patience.may_wait()  # the loop ran on this thread
    covers.close()
    return 0 if client.close() else 3


def _child(args: argparse.Namespace, place: wire.TeamPlace, where: str, cache: Path) -> list[str]:
    """Return the arguments of the mount that covers a team folder's place."""
    line = [
        where, "--server", args.server, "--token-file", str(args.token_file.absolute()),
        "--space", place.space_name, "--cache-dir", str(cache.absolute()),
        "--cache-size", str(max(64, args.cache_size // 4)), "--driver", args.driver,
        "--ca-file", args.ca_file, "--foreground", "--attended",
    ]  # fmt: skip
    for name, value in (("--uid", args.uid), ("--gid", args.gid), ("--log-file", args.log_file)):
        if value is not None:
            line += [name, os.path.abspath(value) if name == "--log-file" else str(value)]
    for option in args.options:
        line += ["-o", option]
    return line


@dataclass(frozen=True)
class Parting:
    """How a mount ends when it is told to: what covers it first, then it itself."""

    driver: Driver
    client: Client
    covers: Covers

    def leave(self) -> None:
        """Send everything on and unmount, also when programs are in it."""
        self.covers.close()
        self.client.drain()
        try:
            self.driver.unmount()
        except EverfoldError as err:
            log.warning("detaching although in use: %s", err)
            self.driver.unmount(lazy=True)

    def leave_for_good(self) -> None:
        """Leave; when that cannot be, since what we are mounted in is dead, end all the same."""
        try:
            self.leave()
        except EverfoldError as err:
            log.warning("cannot be unmounted, ending all the same: %s", err)
            status = 0 if self.client.close() else 3
            os._exit(status)


def _attend(parting: Parting) -> None:
    """Leave when whoever started us is gone."""
    while os.read(0, 64):
        pass
    parting.leave_for_good()


def _open(args: argparse.Namespace, is_read_only: bool) -> Client:
    where = os.path.abspath(args.mountpoint)
    ca_file = os.path.abspath(args.ca_file) if args.ca_file else ""
    kernel_ttl = 3600.0 if args.driver == "kernel" else 0.0  # libfuse cannot be told to forget
    policy = Policy(
        entry_ttl_s=kernel_ttl,
        attr_ttl_s=kernel_ttl,
        negative_ttl_s=kernel_ttl,
        is_read_only=is_read_only,
        uid=args.uid,
        gid=args.gid,
    )
    settings = Settings(
        cache_dir=args.cache_dir,
        label=f"{socket.gethostname()}:{where}",
        space=args.space,
        about={
            "server": args.server,
            "space": args.space,
            "mountpoint": where,
            "token_file": str(args.token_file.absolute()),
            "ca_file": ca_file,
        },
        policy=policy,
        cache_bytes=args.cache_size * 1024**2,
    )
    return open_remote(settings, args.server, args.token_file, ca_file)


def _tell_ready(driver: Driver, args: argparse.Namespace, covers: Covers) -> None:
    if not driver.wait_ready(READY_S):
        log.error("the kernel did not answer in %g s", READY_S)
        return
    if args.ready_file is not None:
        form = {"mount": os.path.abspath(args.mountpoint), "pid": os.getpid()}
        draft = args.ready_file.with_name(args.ready_file.name + ".new")
        draft.write_text(json.dumps(form), encoding="utf-8")
        draft.rename(args.ready_file)
    readiness.tell()
    _announce.set()
    covers.start()


_announce = threading.Event()


def _figures(driver: Driver, client: Client) -> bytes:
    """Answer the attribute from which `everfold status` reads."""
    patience.require()  # a long backlog takes milliseconds to add up
    return packed(client.statistics(driver.statistics()))


@contextlib.contextmanager
def _signals(driver: Driver, client: Client, parting: Parting) -> Iterator[None]:
    """SIGTERM and SIGINT unmount; SIGUSR1 writes what goes on into the log.

    A thread of its own acts on them: the main one may go to sleep in the kernel between a
    signal's arrival and the moment at which the interpreter would have called a handler.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    told = (reader, driver, client, parting)
    listener = threading.Thread(target=_listen, args=told, name="signals")
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [(number, signal.signal(number, _ignore)) for number in numbers]
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before:
            signal.signal(number, handler)
        os.close(writer)
        listener.join()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The listener has heard of it."""


def _listen(reader: int, driver: Driver, client: Client, parting: Parting) -> None:
    """Act on signals, until the other end of the pipe is closed."""
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number == signal.SIGUSR1:
                log.info(
                    "state: %s", packed(client.statistics(driver.statistics())).decode().strip()
                )
            else:
                threading.Thread(target=parting.leave, name="leave", daemon=True).start()
    os.close(reader)


def _into_background() -> int | None:
    """Go on in a child of no terminal; the parent returns once the folder is usable."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.setsid()
        threading.Thread(target=_report_ready, args=(writer,), daemon=True).start()
        return None
    os.close(writer)
    word = os.read(reader, 1)
    return 0 if word == b"1" else 1


def _report_ready(writer: int) -> None:
    _announce.wait()
    os.write(writer, b"1")
    os.close(writer)


if __name__ == "__main__":
    sys.exit(main())
