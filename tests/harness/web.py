"""The nameserver's routes, called without sockets."""

from __future__ import annotations

import json
from typing import Any

from everfold.http import WsgiTransport
from everfold.nameclient import NameClient
from nameserver.app import create_app
from tests.harness.service import PASSWORD, Desk

Json = dict[str, Any]


class Web:
    """The routes, called without sockets."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.transport = WsgiTransport(create_app(desk.service))
        self.token = ""

    def call(
        self, method: str, path: str, form: object = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        body = form if isinstance(form, bytes) else json.dumps(form).encode() if form else None
        status, back, raw = self.transport.request(
            method, path, headers=headers, body=body, timeout_s=5
        )
        return status, json.loads(raw), back

    def login(self, name: str, password: str = PASSWORD, **more: str) -> Any:
        form = {"username": name, "password": password, **more}
        status, answer, _ = self.call("POST", "/api/auth/login", form, Authorization="")
        assert status == 200, answer
        self.token = answer["token"]
        return answer

    def client(self) -> NameClient:
        return NameClient(self.transport, self.token)
