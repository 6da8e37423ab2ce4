"""Team folders of a mounted home: each is covered by a mount of its own space.

The child is an ordinary mount, a process of its own with a journal and a cache below ours, mounted
on the junction. One thread starts and ends children as the feed tells which team folders there are;
a child that ended by itself (its junction was moved, somebody unmounted it) is started again where
its junction stands then. A child learns from the end of its standard input that we are gone, and
leaves. Nothing here looks into the folder that this process serves: that would wait for itself.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from everfold import wire
from everfold.errors import EverfoldError
from everfold.log import new_request_id
from everfold.model import SpaceId
from mount.core import Core

log = logging.getLogger(__name__)
_TICK_S = 0.25
_PAUSE_S = (1.0, 30.0)  # before a child is started again: the first, and the longest
_STEADY_S = 30.0  # a child that ran so long starts over with the first pause
_END_S = 90.0  # what it still has to send may take its time
_KEPT = 3  # its exit status: not everything could be sent

CommandLine = Callable[[wire.TeamPlace, str, Path], list[str]]
"""(team folder, where it is mounted, directory of its cache): the arguments of the child."""


@dataclass
class _Cover:
    """The child for one team folder; `process` None: it is not running."""

    place: wire.TeamPlace
    process: subprocess.Popen[bytes] | None = None
    is_ending: bool = False
    started: float = 0.0
    start_at: float = 0.0
    pause_s: float = field(default=_PAUSE_S[0])


class Covers:
    """See the module's docstring."""

    def __init__(self, core: Core, mountpoint: str, cache_dir: Path, command: CommandLine) -> None:
        self._core, self._command = core, command
        self._mountpoint, self._cache_dir = os.path.abspath(mountpoint), cache_dir
        self._covers: dict[SpaceId, _Cover] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="teams", daemon=True)

    def start(self) -> None:
        """Begin; the folder is served by another thread from now on."""
        self._thread.start()

    def close(self) -> None:
        """End the children in order, and wait for them. May be called again."""
        self._ending.set()
        self._core.teams_moved.set()
        if self._thread.is_alive():
            self._thread.join()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        moved = self._core.teams_moved
        while not self._ending.is_set():
            moved.wait(_TICK_S if self._covers or self._core.team_places else None)
            moved.clear()
            new_request_id()
            try:
                self._look()
            except Exception:
                log.exception("team folders were not looked after")
        for cover in self._covers.values():
            self._end(cover)
        for cover in self._covers.values():
            self._wait(cover)

    def _look(self) -> None:
        """Bring what runs closer to what should."""
        core = self._core
        is_barred = core.barred is not None  # then they have no business here, either
        places = {} if is_barred else {place.space: place for place in core.team_places}
        for space, cover in list(self._covers.items()):
            place = places.get(space)
            if cover.process is not None and cover.process.poll() is not None:
                self._ended(cover)
                if place is not None and not cover.is_ending:
                    self._ask_again()
                cover.process, cover.is_ending = None, False
            if cover.process is None:
                if place is None:
                    del self._covers[space]
            elif place != cover.place:
                self._end(cover)
        now = self._core.clock.monotonic()
        for space, place in places.items():
            cover = self._covers.setdefault(space, _Cover(place))
            if cover.process is None and now >= cover.start_at and not self._ending.is_set():
                cover.place = place
                self._start(cover, now)

    def _ask_again(self) -> None:
        """Learn where the team folders stand now: one may have been moved from under its cover."""
        try:
            self._core.learn_teams()
        except EverfoldError as err:
            log.info("the team folders are not known anew: %s", err)

    # ------------------------------------------------------------ one child

    def _start(self, cover: _Cover, now: float) -> None:
        place = cover.place
        where = os.path.join(self._mountpoint, *(os.fsdecode(name) for name in place.names))
        cache = self._cache_dir / "teams" / str(place.space)
        line = [sys.executable, "-m", "mount", *self._command(place, where, cache)]
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            cover.process = subprocess.Popen(
                line, stdin=subprocess.PIPE, cwd="/", start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip
        except OSError as err:
            log.error("%s is not mounted: %s", where, err)
        cover.started, cover.start_at = now, now + cover.pause_s
        cover.pause_s = min(2 * cover.pause_s, _PAUSE_S[1])

    def _end(self, cover: _Cover) -> None:
        if cover.process is None or cover.is_ending:
            return
        cover.is_ending = True
        cover.process.send_signal(signal.SIGTERM)

    def _wait(self, cover: _Cover) -> None:
        if cover.process is None:
            return
        try:
            cover.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            log.error("the mount of a team folder does not end; its journal keeps what it had")
            cover.process.kill()
            cover.process.wait()
        self._ended(cover)

    def _ended(self, cover: _Cover) -> None:
        """Say what became of a child, and forget how long to wait if it ran well."""
        process, now = cover.process, self._core.clock.monotonic()
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        name = os.fsdecode(cover.place.names[-1])
        if process.returncode == _KEPT:
            kept = self._cache_dir / "teams" / str(cover.place.space) / "journal"
            log.warning("team folder %s: changes that were not sent stay in %s", name, kept)
        elif process.returncode:
            log.warning("team folder %s: its mount ended (%d)", name, process.returncode)
        if cover.is_ending or now - cover.started > _STEADY_S:
            cover.pause_s = _PAUSE_S[0]
        cover.start_at = now if cover.is_ending else max(cover.start_at, now + _PAUSE_S[0])
