"""Somebody with a program that speaks HTTP: the JSON routes, called without sockets.

Every answer must be one that the API's document describes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, urlencode

from everfold.http import WsgiTransport
from tests.harness import apidoc

Json = dict[str, Any]
BOUNDARY = "----everfold-test"
TIMEOUT_S = 20.0


class Browser:
    """One user's token (none: a stranger) at one nameserver."""

    def __init__(self, app: Callable[..., Iterable[bytes]], token: str = "") -> None:
        self.transport = WsgiTransport(app)
        self.token = token

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return (status, headers, body); keyword ``If_None_Match`` is the header of that name."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            fields.setdefault("Authorization", f"Bearer {self.token}")
        answer = self.transport.request(
            method, path, headers=fields, body=body, timeout_s=TIMEOUT_S
        )
        status, told, raw = answer
        apidoc.check(method, path, status, told.get("content-type", ""), raw)
        return answer

    def call(
        self, method: str, route: str, form: object = None, **query: object
    ) -> tuple[int, Any]:
        """Return (status, the JSON of the answer)."""
        route += "?" + urlencode(query) if query else ""
        body = None if form is None else json.dumps(form).encode()
        status, _, raw = self.ask(method, route, body)
        return status, json.loads(raw) if raw else None

    def good(self, method: str, route: str, form: object = None, **query: object) -> Any:
        """Return the JSON of an answer that is no failure."""
        status, answer = self.call(method, route, form, **query)
        assert status in (200, 201), (status, answer)
        return answer

    def kind(self, method: str, route: str, form: object = None, **query: object) -> str:
        """Return the kind of the failure that is answered."""
        status, answer = self.call(method, route, form, **query)
        assert status >= 400, (status, answer)
        return str(answer["error"]["kind"])

    # ------------------------------------------------------------ files

    def post(
        self, route: str, body: bytes, kind: str = f"multipart/form-data; boundary={BOUNDARY}"
    ) -> tuple[int, Any]:
        """Send a form as it stands."""
        status, _, raw = self.ask("POST", route, body, Content_Type=kind)
        return status, json.loads(raw)

    def upload(self, path: str, data: bytes, filename: str = "x", **query: object) -> Json:
        """Upload and return what is told of the file."""
        route = "/api/files/upload" + ("?" + urlencode(query) if query else "")
        status, answer = self.post(route, form(data, filename, path=path))
        assert status == 201, (status, answer)
        told: Json = answer["file"]
        return told

    def refused(self, path: str, data: bytes = b"x", filename: str = "x") -> tuple[int, str]:
        """Upload in vain; return (status, kind)."""
        status, answer = self.post("/api/files/upload", form(data, filename, path=path))
        return status, answer["error"]["kind"]

    def load(self, file: str, **headers: str) -> bytes:
        """Download by id."""
        status, _, data = self.ask("GET", f"/api/files/{quote(file)}/download", **headers)
        assert status in (200, 206), (status, data[:200])
        return data

    def names(self, path: str = "", **query: object) -> list[str]:
        """Return the names in a folder."""
        listed = self.good("GET", "/api/files/list", path=path, **query)
        return [each["name"] for each in listed["files"]]


def form(data: bytes, filename: str | None = "x", **fields: str) -> bytes:
    """Return a multipart body: the fields, then `file`."""
    parts = [_part(f'name="{name}"', value.encode()) for name, value in fields.items() if value]
    if filename is not None:
        parts.append(_part(f'name="file"; filename="{filename}"', data))
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def _part(said: str, data: bytes) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {said}\r\n\r\n"
    return head.encode() + data + b"\r\n"


def noise(size: int) -> bytes:
    """Return bytes that no block has been made of before."""
    return os.urandom(size)
