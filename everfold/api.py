"""The nameserver's JSON routes, for people's programs: `Api` is the public Python client.

What a mount needs goes through `nameclient`; this is for tools and scripts, where a request a
second is much. Every failure is an `EverfoldError` of the kind that the server raised, TIMEOUT
or UNAVAILABLE when there was no answer. Nothing is retried, except where a method says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from everfold import tls
from everfold.errors import EverfoldError, Kind
from everfold.http import error_of
from everfold.log import request_id
from everfold.wire import REQUEST_ID

CONNECT_S = 2.0
TIMEOUT_S = 10.0
LONG_S = 600.0  # a walk over everything

Json = dict[str, Any]


class Api:
    """One nameserver, as one user (or nobody, before `login`). Not for several threads."""

    def __init__(self, server: str, token: str = "", ca_file: str = "") -> None:
        """`ca_file` holds the authorities that are trusted instead of the usual ones."""
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EverfoldError(Kind.INVALID, "not the URL of a server (http://host:port)", server)
        self.server = server.rstrip("/")
        self.token = token
        self.ca_file = ca_file
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the desktop is not meant for a cluster
        if ca_file:
            tls.client_context(ca_file)  # so that a file of no use is refused at once
            self._session.verify = ca_file

    def __enter__(self) -> Api:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def call(
        self, method: str, path: str, body: Json | None = None, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """Return the JSON that a route answers; raise the error that it answers."""
        headers = {REQUEST_ID: request_id()}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            answer = self._session.request(
                method,
                self.server + path,
                json=body,
                headers=headers,
                timeout=(CONNECT_S, timeout_s),
                allow_redirects=False,
            )
        except requests.Timeout as err:
            raise EverfoldError(Kind.TIMEOUT, f"no answer in {timeout_s:g} s", self.server) from err
        except requests.exceptions.SSLError as err:
            raise EverfoldError(
                Kind.UNAVAILABLE, f"cannot reach the nameserver: {_tls_failure(err)}", self.server
            ) from err
        except requests.ConnectionError as err:
            raise EverfoldError(
                Kind.UNAVAILABLE, "cannot reach the nameserver", self.server
            ) from err
        except requests.RequestException as err:
            raise EverfoldError(Kind.INVALID, f"cannot ask: {err}", self.server) from err
        if not 200 <= answer.status_code < 300:
            raise error_of(answer.status_code, answer.content, self.server)
        if answer.status_code == 204 or not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as err:
            raise EverfoldError(
                Kind.INTERNAL, "this is not an Everfold nameserver", self.server
            ) from err

    # ------------------------------------------------------------ who am I

    def login(
        self, username: str, password: str, device_name: str = "", device_id: str = ""
    ) -> Json:
        """Log in and use the token from now on; it is bound to a device of the user.

        `device_id` is what an earlier login answered, so that a machine stays one device.
        UNAUTHENTICATED for a wrong name or password, RATE_LIMITED after too many.
        """
        body = {
            "username": username,
            "password": password,
            "device_name": device_name,
            "device_id": device_id,
        }
        answer: Json = self.call("POST", "/api/auth/login", body)
        self.token = str(answer["token"])
        return answer

    def profile(self) -> Json:
        """Return who the token belongs to."""
        answer: Json = self.call("GET", "/api/auth/profile")
        found: Json = answer["user"]
        return found

    # ------------------------------------------------------------ the cluster

    def nodes(self) -> list[Json]:
        """Return every datanode: id, url, state, used, capacity, blocks."""
        answer: list[Json] = self.call("GET", "/admin/system/nodes")
        return answer

    def fail_node(self, node: str) -> Json:
        """Declare a datanode dead; NOT_FOUND when there is none of that name."""
        answer: Json = self.call("POST", f"/admin/system/fail-node/{quote(node, safe='')}")
        return answer

    def repair_node(self, node: str) -> Json:
        """Take a datanode back; what it still has is counted before anything is copied."""
        answer: Json = self.call("POST", f"/admin/system/repair-node/{quote(node, safe='')}")
        return answer

    def drain_node(self, node: str) -> Json:
        """Put nothing more on a datanode; what it has is copied to the others (`to_copy`)."""
        answer: Json = self.call("POST", f"/admin/system/drain-node/{quote(node, safe='')}")
        return answer

    def remove_node(self, node: str, force: bool = False) -> Json:
        """Take a datanode out of the cluster.

        BUSY while it is in use, or a block needs its copy; `force` lets these be lost.
        """
        path = f"/admin/system/remove-node/{quote(node, safe='')}"
        answer: Json = self.call("POST", path, {"force": force}, LONG_S)
        return answer

    def status(self) -> Json:
        """Return the cluster's figures: blocks, under_replicated, missing, corrupt, nodes, …"""
        answer: Json = self.call("GET", "/admin/system")
        return answer

    def fsck(self, repair: bool = False) -> Json:
        """Walk tree, extents and replica map on the server and ask the nodes; may take long.

        `repair`: write the sums of what spaces use anew where they are wrong.
        """
        answer: Json = self.call("POST", "/admin/fsck", {"repair": repair}, LONG_S)
        return answer

    # ------------------------------------------------------------ people

    def users(self) -> list[Json]:
        """Return every user, without secrets."""
        found: list[Json] = self.call("GET", "/admin/users")["users"]
        return found

    def add_user(self, username: str, password: str, role: str = "user", quota: int = 0) -> Json:
        """Make a user; EXISTS when the name is taken."""
        body = {"username": username, "password": password, "role": role, "quota": quota}
        answer: Json = self.call("POST", "/admin/users", body)
        return answer

    def change_user(self, username: str, **what: Any) -> Json:
        """Change `quota`, `role` or `disabled` of a user; NOT_PERMITTED for the last admin."""
        answer: Json = self.call("PUT", f"/admin/users/{quote(username, safe='')}", what)
        return answer

    def set_password(self, username: str, password: str) -> None:
        """Set a user's password; the tokens given for the old one are dead."""
        path = f"/admin/users/{quote(username, safe='')}/password"
        self.call("PUT", path, {"password": password})

    # ------------------------------------------------------------ team folders

    def teams(self) -> list[Json]:
        """Return the team folders that one is in."""
        found: list[Json] = self.call("GET", "/api/teams")["teams"]
        return found

    def create_team(self, path: str, members: Sequence[tuple[str, str]] = ()) -> Json:
        """Make a team folder, with (name, permission) of its members; a folder that is there
        keeps its files, which may take long. NOT_FOUND for an unknown user."""
        listed = [{"username": name, "permission": may} for name, may in members]
        made: Json = self.call("POST", "/api/teams", {"path": path, "members": listed}, LONG_S)
        return dict(made["team"])

    def set_team_member(self, team: int, username: str, permission: str) -> None:
        """Let somebody into a team folder of one's own, or change what they may do."""
        path = f"/api/teams/{team}/members/{quote(username, safe='')}"
        self.call("PUT", path, {"permission": permission})

    def remove_team_member(self, team: int, username: str) -> None:
        """Shut somebody out of a team folder; oneself: leave it."""
        self.call("DELETE", f"/api/teams/{team}/members/{quote(username, safe='')}")

    def delete_team(self, team: int) -> None:
        """Delete a team folder of one's own, to the trash."""
        self.call("DELETE", f"/api/teams/{team}")


def _tls_failure(err: BaseException | None) -> str:
    """Find what requests and urllib3 wrap and hide."""
    seen = err
    while seen is not None and not isinstance(seen, ssl.SSLError):
        inner = [each for each in (getattr(seen, "reason", None), *seen.args)
                 if isinstance(each, BaseException)]  # fmt: skip
        seen = inner[0] if inner else seen.__context__
    return tls.failure(seen) if seen is not None else "TLS failed"
