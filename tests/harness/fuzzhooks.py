"""What schemathesis loads (`tests/t4_fuzz.py`): requests that are sound name things that exist.

Else nearly all would be told 404 and nothing behind that would be tried. Every third keeps what
was made up for it.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode

_self = os.environ.get("FUZZ_SELF", "")
_known: dict[str, list[str]] = json.loads(os.environ.get("FUZZ_KNOWN", "{}"))
_turn = itertools.count()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Put ids and paths that are known into a case that the document allows.

    Nobody takes away the account that asks: all that follows would only be refused.
    """
    turn = next(_turn)
    if case.method != "GET" and (case.path_parameters or {}).get("name") == _self:
        case.path_parameters["name"] = "nobody"
    if (
        case.meta is None
        or case.meta.generation.mode is not GenerationMode.POSITIVE
        or not turn % 3
    ):
        return
    for part in (case.path_parameters, case.body, case.headers):
        if not isinstance(part, dict) and not hasattr(part, "items"):
            continue
        for name in list(part):
            if name in _known:
                part[name] = _known[name][turn % len(_known[name])]
