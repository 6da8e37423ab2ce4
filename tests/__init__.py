"""The tests, tiered by name. The process that runs them imports no compiled module.

For they reach into objects and put other methods in; what is compiled is called past that. The
mounts that they start are compiled where `make` could, as everybody's are, so each mode is
tested: EVERFOLD_NATIVE says what it is everywhere, when it is set.
"""

import os

_TOLD = os.environ.get("EVERFOLD_NATIVE")
os.environ["EVERFOLD_NATIVE"] = _TOLD or "0"

import everfold  # noqa: E402, F401 - decides it for this process

if _TOLD is None:
    del os.environ["EVERFOLD_NATIVE"]
