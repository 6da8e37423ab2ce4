"""What a mount does on its own: tends open files, and keeps the figures of statfs fresh."""

from __future__ import annotations

import logging
import threading

from everfold import wire
from everfold.errors import EverfoldError
from everfold.log import new_request_id
from everfold.model import SpaceUsage
from mount.core import Core
from mount.files import Files

log = logging.getLogger(__name__)
_TICK_S = 0.1
_USAGE_S = 2.0
_SYNC_S = 2.0


class Housekeeper:
    """A thread that ticks; `usage` is the last known answer for statfs, never a call."""

    def __init__(self, core: Core, files: Files) -> None:
        self._core, self._files = core, files
        self.usage = SpaceUsage(live=0, history=0, quota=0, inodes=0, free=0, capacity=0)
        self._ending = threading.Event()
        self._next_usage = 0.0
        self._next_sync = 0.0
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._ending.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._ending.wait(_TICK_S):
            self._files.tend()
            now = self._core.clock.monotonic()
            self._keep_backlog(now)
            if now >= self._next_usage:
                self._next_usage = now + _USAGE_S
                self.refresh_usage()

    def _keep_backlog(self, now: float) -> None:
        """Sync a backlog that the cluster does not take; one that it takes is gone sooner."""
        shipper = self._core.shipper
        if not shipper.backlog[0]:
            self._next_sync = now + _SYNC_S
        elif now >= self._next_sync:
            self._next_sync = now + _SYNC_S
            try:
                shipper.make_durable()
            except EverfoldError as err:
                log.warning("the backlog would not survive a power cut: %s", err)

    def refresh_usage(self) -> None:
        """Ask for the space's usage; when the server is away the old figures stay."""
        new_request_id()
        try:
            self.usage = self._core.names.usage(wire.GetUsage(self._core.space))
        except EverfoldError as err:
            log.debug("no usage figures: %s", err)
