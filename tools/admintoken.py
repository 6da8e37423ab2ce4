"""How `everfold up` lets itself in: whoever holds a cluster's keys needs no password.

A token is minted at every start, so a changed password or a long pause never locks the
embedded folder out. One device stands for it; revoking that is undone by a fresh one.
"""

from __future__ import annotations

import platform
from typing import NamedTuple

from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId
from nameserver.accounts import ADMIN
from nameserver.db import Database
from nameserver.policy import Policy
from nameserver.secretfile import Secrets
from nameserver.service import Service

DEVICE_KIND = "everfold up"


class Minted(NamedTuple):
    """A token, and whose it is."""

    token: str
    username: str
    device: DeviceId


def renew(database_url: str, keys: Secrets, username: str, device: str) -> str:
    """Return a token where one has ended because the password was changed; "" otherwise.

    Who was disabled, and a device that was revoked, get none.
    """
    db = Database(database_url)
    try:
        service = Service(db, SystemClock(), Policy(bcrypt_rounds=4), keys)
        user = service.accounts.get(username)
        try:
            found = service.devices.get(user.id, device)
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            return ""
        return "" if user.is_disabled else service.gate.admit(user, found)
    finally:
        db.close()


def mint(database_url: str, keys: Secrets, username: str, device: str) -> Minted:
    """Return a fresh token of an admin; `username` "" means the first one that may still log in."""
    db = Database(database_url)
    try:
        service = Service(db, SystemClock(), Policy(bcrypt_rounds=4), keys)
        admins = [u for u in service.accounts.all() if u.role == ADMIN and not u.is_disabled]
        chosen = next((u for u in admins if u.name == username), admins[0] if admins else None)
        if chosen is None:
            raise EverfoldError(Kind.NOT_FOUND, "no admin is left who may log in", database_url)
        found = service.devices.at_login(chosen.id, device, platform.node(), DEVICE_KIND)
        return Minted(service.gate.admit(chosen, found), chosen.name, found.id)
    finally:
        db.close()
