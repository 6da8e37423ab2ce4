"""Whether the nameserver lets this mount in, and the way back in when it does not any more.

A mount begins with the token of a login, which stands in a file, and gets one of its own. When that
is refused (the device was revoked, the password changed, the time is over) the file is read again:
a token that was put there since, by a new login, begins a new session, and what was asked is asked
once more. As long as there is none, every call is refused; `core` is told by the feed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.nameclient import NameClient
from everfold.services import NameService

log = logging.getLogger(__name__)


class Admission:
    """Stands before a nameserver. Threads may share it. Costs 0.2 us a call."""

    def __init__(self, real: NameClient, token: str, token_file: Path) -> None:
        """`token` is what was read from `token_file` before."""
        self._real = real
        self._token, self._token_file = token, token_file
        self._hello: wire.Hello | None = None
        self._lock = threading.Lock()  # guards _token, _times; held while a session begins
        self._times = 0  # how often it was let in again

    @property
    def service(self) -> NameService:
        """Return this as what it stands before: every verb passes through."""
        return cast(NameService, self)

    def session(self, hello: wire.Hello) -> wire.Session:
        """Begin a session; one that is begun again says the same."""
        session = self._real.session(hello)
        self._hello = hello
        return session

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._real, verb)
        if not callable(found):
            return found
        guarded = self._guarded(found)
        setattr(self, verb, guarded)  # the next call finds it without coming here
        return guarded

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            times = self._times
            try:
                return call(*args, **kwargs)
            except EverfoldError as err:
                if err.kind is not Kind.UNAUTHENTICATED or not self._comes_back(times):
                    raise
            return call(*args, **kwargs)

        return guarded

    def _comes_back(self, times: int) -> bool:
        """Begin a session with a token that is new in the file; tell whether there is one."""
        with self._lock:
            if self._times != times:
                return True  # another thread has
            token = self._read()
            if self._hello is None or not token or token == self._token:
                return False
            self._real.use(token)
            try:
                self._real.session(self._hello)
            except EverfoldError as err:
                if err.kind.may_retry:
                    raise
                log.warning("the token in %s is of no use, either: %s", self._token_file, err)
                self._token = token
                return False
            self._token = token
            self._times += 1
        log.info("let in again, with the new token in %s", self._token_file)
        return True

    def _read(self) -> str:
        try:
            return self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as err:
            log.debug("no token to read: %s", err)
            return ""
