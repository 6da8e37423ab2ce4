"""Who is asking: tokens in, identities out.

A token's signature is checked once and remembered; whether its user, device and generation
still stand is looked up again after at most `Policy.verified_s` (under a second), so a
revocation works everywhere within that time. A token ends with its user's generation, with its
device, or by itself (`end`).
"""

from __future__ import annotations

import secrets
import threading
from typing import Any, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId, UserId
from everfold.services import Clock
from everfold.tokens import Signer
from nameserver.accounts import Accounts, User
from nameserver.audit import note
from nameserver.db import Database
from nameserver.devices import Device, Devices
from nameserver.policy import Policy

_REMEMBERED = 4096
_REMEMBERED_NODES = 256
_SEEN_NS = 300_000_000_000  # how old what is told of a device's last use may be


class Identity(NamedTuple):
    """A caller that is known. `device` is empty for a password without a device."""

    user: UserId
    name: str
    role: str
    device: DeviceId = DeviceId("")
    device_name: str = ""  # as history tells it; of a mount, the device that it was mounted at
    issued_s: int = 0  # when the token was
    generation: int = 0  # of the user's tokens; a new password begins another one


class _Verified(NamedTuple):
    claims: dict[str, Any]
    identity: Identity
    until: float  # monotonic; then the database is asked again


class Gate:
    """Checks tokens and passwords. Thread-safe."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        policy: Policy,
        accounts: Accounts,
        devices: Devices,
        users: Signer,
        cluster: Signer,
    ) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._accounts = accounts
        self._devices = devices
        self._users = users
        self._cluster = cluster
        self._lock = threading.Lock()  # guards changes of _verified and _nodes
        self._verified: dict[str, _Verified] = {}
        self._nodes: dict[str, tuple[str, int]] = {}  # token -> (id, good until, in ns)

    def admit(self, user: User, device: Device) -> str:
        """Return a token for a user at a device."""
        return self._users.mint(
            "user",
            self._policy.token_ttl_s,
            sub=user.id,
            name=user.name,
            dev=device.id,
            gen=user.token_gen,
            jti=secrets.token_hex(8),
        )

    def end(self, token: str, author: str) -> None:
        """Let a token be good no longer, here at once, elsewhere within `Policy.verified_s`."""
        claims = self._users.verify(token, "user")
        now = self._clock.time_ns()
        with self._db.write() as cx:
            cx.run("DELETE FROM revoked_token WHERE until_ns < ?", now)
            cx.run(
                "INSERT INTO revoked_token (id, until_ns) VALUES (?, ?) ON CONFLICT DO NOTHING",
                _id_of(claims),
                int(claims["exp"]) * 1_000_000_000,
            )
            note(cx, now, author, "logout", str(claims["dev"]))
        with self._lock:
            self._verified.pop(token, None)

    def by_token(self, token: str) -> Identity:
        """Return who holds this token; UNAUTHENTICATED when it is not (or no longer) good."""
        now = self._clock.monotonic()
        known = self._verified.get(token)
        if known is not None and known.until > now:
            if known.claims["exp"] * 1_000_000_000 > self._clock.time_ns():
                return known.identity
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token has expired")
        claims = self._users.verify(token, "user")
        identity = self._still_good(claims)
        with self._lock:
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[token] = _Verified(claims, identity, now + self._policy.verified_s)
        return identity

    def _still_good(self, claims: dict[str, Any]) -> Identity:
        try:
            user, generation, device = int(claims["sub"]), int(claims["gen"]), str(claims["dev"])
        except (KeyError, TypeError, ValueError) as err:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token is not valid") from err
        with self._db.read() as cx:
            row = cx.one(
                "SELECT name, role, is_disabled, token_gen FROM account WHERE id = ?", user
            )
            found = self._devices.find(cx, device)
            parent = self._devices.find(cx, found.parent) if found and found.parent else None
            is_ended = cx.one("SELECT 1 FROM revoked_token WHERE id = ?", _id_of(claims))
        if is_ended is not None:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token has been revoked")
        if row is None or row[2] or row[3] != generation:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the token has been revoked")
        if found is None or found.is_revoked or found.user != user:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the device has been revoked")
        if self._clock.time_ns() - found.seen_ns > _SEEN_NS:
            self._devices.seen(found.id)
        shown = parent.name if parent else found.name
        issued_s = int(claims["iat"])
        return Identity(UserId(user), row[0], row[1], found.id, shown, issued_s, generation)

    def by_password(self, name: str, password: str, address: str) -> Identity:
        """Return who has this name and password, for a call without a device."""
        user = self._accounts.login(name, password, address)
        return Identity(user.id, user.name, user.role, generation=user.token_gen)

    def check(self, who: Identity, token: str) -> None:
        """Raise UNAUTHENTICATED when somebody, let in before, would be let in no more.

        For requests that last. `token` "": they came with a password.
        """
        if token:
            self.by_token(token)
            return
        user = self._accounts.get(who.name)
        if user.is_disabled or user.token_gen != who.generation:
            raise EverfoldError(Kind.UNAUTHENTICATED, "the password is good no longer")

    def node(self, token: str) -> str:
        """Return the id that a datanode's token names ("": any); UNAUTHENTICATED otherwise.

        Nodes have no accounts and cannot be revoked: a token is good until it expires.
        """
        known = self._nodes.get(token)
        if known is not None and known[1] > self._clock.time_ns():
            return known[0]
        claims = self._cluster.verify(token, "node")
        named = str(claims.get("sub", ""))
        with self._lock:
            if len(self._nodes) >= _REMEMBERED_NODES:
                self._nodes.clear()
            self._nodes[token] = named, int(claims["exp"]) * 1_000_000_000
        return named


def _id_of(claims: dict[str, Any]) -> str:
    """Return what a token is known by; older ones have no number of their own."""
    return str(claims.get("jti") or f"{claims['sub']}.{claims['dev']}.{claims['iat']}")
