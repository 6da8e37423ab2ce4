"""Sets the interpreter up for a server: threads that answer beside threads that compute."""

from __future__ import annotations

import gc
import sys
from typing import Final

_SWITCH_S: Final = 0.0005
_GARBAGE: Final = (20_000, 20, 20)


def settle() -> None:
    """To be called once everything is imported and made, before the work begins.

    Whoever comes back from a system call or from the database waits a switch interval for a thread
    that computes: of the default 5 ms small files were a third slower, and a listing, which asks
    the database ten times, waited for a long commit as often. There is hardly any garbage in
    cycles, and much that lives long: looking for it took 3 % of a mount's time.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.set_threshold(*_GARBAGE)
    gc.freeze()
