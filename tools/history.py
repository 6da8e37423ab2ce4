"""What `versions` and `restore` share: asking the nameserver about a path in a folder."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport
from everfold.model import Ino, MountId, Version
from everfold.nameclient import NameClient
from tools.mountpoint import Place


@dataclass(frozen=True, slots=True)
class Asked:
    """A session at the nameserver about one name in one directory."""

    names: NameClient
    session: wire.Session
    mount: MountId
    parent: Ino
    name: bytes

    def versions(self) -> list[Version]:
        """Return the contents that were visible at the name, the newest last; NOT_FOUND."""
        ask = wire.GetHistory(self.session.space, self.parent, self.name)
        found = self.names.history(ask).versions
        if not found:
            raise EverfoldError(Kind.NOT_FOUND, "has no versions")
        return found


@contextmanager
def asking(place: Place, read_only: bool) -> Iterator[Asked]:
    """Talk to the nameserver about `place` as its mount's user."""
    if not place.names:
        raise EverfoldError(Kind.IS_DIR, "is the folder itself", str(place.root))
    path = b"/".join(place.names).decode(errors="replace")
    transport = HttpTransport(place.server, connections=1, ca_file=place.ca_file)
    names = NameClient(transport, place.token)
    mount = MountId(f"tool-{secrets.token_hex(8)}")
    try:
        hello = wire.Hello(mount, "everfold command", place.space, read_only)
        session = names.session(hello)
        found = names.resolve(wire.ResolvePath(session.space, place.names))
        yield Asked(names, session, mount, found.parent, place.names[-1])
        names.bye(wire.Bye(session.space, mount))
    except EverfoldError as err:
        raise EverfoldError(err.kind, str(err), path) from err
    finally:
        transport.close()


def moment(time_ns: int) -> str:
    """Return a time as programs and people read it: 2026-11-21T18:54:07.123Z."""
    at = datetime.fromtimestamp(time_ns // 1_000_000_000, timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{time_ns // 1_000_000 % 1000:03d}Z"
