"""What the tools remember of a person: logins and mounts, under ``$EVERFOLD_HOME``.

Layout: ``logins.json`` (server -> user and token file, and which server is the current one),
``tokens/`` (one bare token a file, as mounts read them), ``mounts/KEY.json`` (a running mount)
and ``mounts/KEY/`` (its cache, journal and log; outlives the mount: what was not yet shipped
is in it). Everything is mode 0600/0700 and replaced by rename, never rewritten in place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from everfold.api import Api
from everfold.config import CA_FILE
from everfold.errors import EverfoldError, Kind
from everfold.statefile import read_json, write_private


@dataclass(frozen=True, slots=True)
class Login:
    """Who the tools are at a server."""

    server: str
    username: str
    device_id: str
    token_file: Path
    ca_file: str = ""  # authorities of its servers; "": the system's

    def api(self) -> Api:
        """Return a client that is this user there."""
        return Api(self.server, self.token, self.ca_file)

    @property
    def token(self) -> str:
        """Read the token."""
        return self.token_file.read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount that `everfold mount` started."""

    pid: int
    mountpoint: str
    server: str
    space: str
    driver: str
    log: str
    token_file: str


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Home:
    """The folder; made when something is first written."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(os.environ.get("EVERFOLD_HOME") or "~/.config/everfold")
        self.path = self.path.expanduser().absolute()

    # ------------------------------------------------------------ logins

    def save_login(
        self, server: str, username: str, device_id: str, token: str, ca_file: str = ""
    ) -> Login:
        """Remember a login and make its server the current one."""
        token_file = self.path / "tokens" / _key(server)
        write_private(token_file, token + "\n")
        known = read_json(self.path / "logins.json") or {"logins": {}}
        known["current"] = server
        known["logins"][server] = {
            "username": username,
            "device_id": device_id,
            "token_file": str(token_file),
            "ca_file": ca_file,
        }
        write_private(self.path / "logins.json", json.dumps(known, indent=2))
        return self.login(server)

    def device_id(self, server: str, username: str) -> str:
        """Return which device this machine is for a user there, "" before the first login."""
        known = read_json(self.path / "logins.json") or {"logins": {}}
        entry = known["logins"].get(server, {})
        return str(entry["device_id"]) if entry.get("username") == username else ""

    def login(self, server: str | None = None) -> Login:
        """Return the login at `server`, or at the current one; UNAUTHENTICATED without one."""
        known = read_json(self.path / "logins.json") or {"current": "", "logins": {}}
        chosen = (server or known["current"]).rstrip("/")
        entry = known["logins"].get(chosen)
        if entry is None:
            where = f"at {chosen} " if chosen else ""
            raise EverfoldError(
                Kind.UNAUTHENTICATED,
                f"not logged in {where}(everfold login --server URL --username U)",
            )
        ca_file = os.environ.get(CA_FILE) or entry.get("ca_file", "")
        token_file = Path(entry["token_file"])
        return Login(chosen, entry["username"], entry["device_id"], token_file, ca_file)

    # ------------------------------------------------------------ mounts

    def mount_folder(self, mountpoint: str) -> Path:
        """Return the folder for the cache, journal and log of the mount at this place."""
        return self.path / "mounts" / _key(mountpoint)

    def record_mount(self, record: MountRecord) -> None:
        """Remember a running mount."""
        path = self.mount_folder(record.mountpoint).with_suffix(".json")
        write_private(path, json.dumps(asdict(record), indent=2))

    def mount_at(self, mountpoint: str) -> MountRecord | None:
        """Return what is remembered of the mount at this place."""
        form = read_json(self.mount_folder(mountpoint).with_suffix(".json"))
        return MountRecord(**form) if form else None

    def forget_mount(self, mountpoint: str) -> None:
        """Forget a mount; its cache and journal stay."""
        self.mount_folder(mountpoint).with_suffix(".json").unlink(missing_ok=True)


def api_of(args: argparse.Namespace) -> Api:
    """Return a client for whoever is logged in where a command line says (``--server``)."""
    return Home().login(args.server).api()
