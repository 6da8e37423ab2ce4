"""The process in which `admintoken` makes tokens: it needs the nameserver's code, for a moment.

One JSON object comes on its standard input, the answer goes to its standard output.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable

from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId
from nameserver.accounts import ADMIN
from nameserver.db import Database
from nameserver.policy import Policy
from nameserver.secretfile import Secrets
from nameserver.service import Service
from tools.admintoken import Minted

DEVICE_KIND = "everfold up"


def renew(service: Service, username: str, device: str) -> Minted:
    """See `admintoken.renew`."""
    user = service.accounts.get(username)
    try:
        found = service.devices.get(user.id, device)
    except EverfoldError as err:
        if err.kind is not Kind.NOT_FOUND:
            raise
        return Minted("", user.name, DeviceId(device))
    token = "" if user.is_disabled else service.gate.admit(user, found)
    return Minted(token, user.name, found.id)


def mint(service: Service, username: str, device: str) -> Minted:
    """See `admintoken.mint`."""
    admins = [u for u in service.accounts.all() if u.role == ADMIN and not u.is_disabled]
    chosen = next((u for u in admins if u.name == username), admins[0] if admins else None)
    if chosen is None:
        raise EverfoldError(Kind.NOT_FOUND, "no admin is left who may log in", service.db.url)
    found = service.devices.at_login(chosen.id, device, platform.node(), DEVICE_KIND)
    return Minted(service.gate.admit(chosen, found), chosen.name, found.id)


_VERBS: dict[str, Callable[[Service, str, str], Minted]] = {"mint": mint, "renew": renew}


def main() -> int:
    """Do what is asked for; an error is part of the answer."""
    ask = json.load(sys.stdin)
    db = Database(ask["database_url"])
    answer: object
    try:
        service = Service(db, SystemClock(), Policy(bcrypt_rounds=4), Secrets(*ask["keys"]))
        answer = _VERBS[ask["verb"]](service, ask["username"], ask["device"])
    except EverfoldError as err:
        answer = {"error": err.to_wire()}
    finally:
        db.close()
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
