"""How `everfold up` lets itself in: whoever holds a cluster's keys needs no password.

A token is minted at every start, so a changed password or a long pause never locks the
embedded folder out. One device stands for it; revoking that is undone by a fresh one. That takes
most of the nameserver's code, so it is done in a process of its own (`minting`): `up` runs for
months, and would keep 30 MiB of it.
"""

from __future__ import annotations

import json
import subprocess
from typing import NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId
from nameserver.secretfile import Secrets
from tools.supervisor import python

_TIMEOUT_S = 60.0


class Minted(NamedTuple):
    """A token, and whose it is."""

    token: str
    username: str
    device: DeviceId


def mint(database_url: str, keys: Secrets, username: str, device: str) -> Minted:
    """Return a fresh token of an admin; `username` "" means the first one that may still log in.

    NOT_FOUND when none is left.
    """
    return _ask("mint", database_url, keys, username, device)


def renew(database_url: str, keys: Secrets, username: str, device: str) -> str:
    """Return a token where one has ended because the password was changed; "" otherwise.

    Who was disabled, and a device that was revoked, get none.
    """
    return _ask("renew", database_url, keys, username, device).token


def _ask(verb: str, database_url: str, keys: Secrets, username: str, device: str) -> Minted:
    ask = {
        "verb": verb,
        "database_url": database_url,
        "keys": keys,
        "username": username,
        "device": device,
    }
    try:
        done = subprocess.run(
            python("tools.minting"),
            input=json.dumps(ask).encode(),  # not among the arguments, which everybody may read
            capture_output=True,
            timeout=_TIMEOUT_S,
            start_new_session=True,  # Ctrl-C is for us to deal with
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise EverfoldError(Kind.UNAVAILABLE, f"no token could be made: {err}") from err
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise EverfoldError(Kind.INTERNAL, f"no token could be made: {last}")
    answer = json.loads(done.stdout)
    if isinstance(answer, dict):
        raise EverfoldError.from_wire(answer["error"])
    return Minted(*answer)
