"""The way from a mount to the nameserver, with switches: cut for changes, or losing answers."""

from __future__ import annotations

import time
from typing import Any

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.services import NameService


class Line:
    """A `NameService` in front of a real one; everything but `commit` passes through."""

    def __init__(self, real: NameService) -> None:
        self._real = real
        self.cut_until = 0.0  # monotonic; until then no change gets through
        self.answers_to_lose = 0  # of changes that were done

    def commit(self, ask: wire.Commit) -> wire.Committed:
        if time.monotonic() < self.cut_until:
            raise EverfoldError(Kind.UNAVAILABLE, "the nameserver cannot be reached")
        answer = self._real.commit(ask)
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise EverfoldError(Kind.TIMEOUT, "no answer came")
        return answer

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._real, verb)
