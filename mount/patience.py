"""Which threads may wait for the network.

One thread reads the kernel's requests and answers at once what memory can answer. It is
*impatient*: a filesystem method that finds it must wait calls `require()` before its first
side effect, which raises `MustWait` there, and the adapter runs the same call again on a
pool thread, where `require()` lets it pass.
"""

from __future__ import annotations

import threading


class MustWait(Exception):
    """This call cannot be answered from memory; run it where waiting is allowed."""


_thread = threading.local()


def never_wait() -> None:
    """Make the calling thread impatient, until `may_wait`."""
    _thread.impatient = True


def require() -> None:
    """Raise `MustWait` on an impatient thread; no side effect may have happened before."""
    if getattr(_thread, "impatient", False):
        raise MustWait


def may_wait() -> None:
    """Let the calling thread wait (again); it serves no kernel any more."""
    _thread.impatient = False
