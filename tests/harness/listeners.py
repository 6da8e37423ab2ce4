"""Programs that listen: a nameserver's application on a real port, and Socket.IO clients of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import engineio
import socketio

from everfold import serving
from everfold.exchange import Front
from tests.harness.machine import wait_until

Json = dict[str, Any]
WAIT_S = 20.0
END_S = 5.0


@contextlib.contextmanager
def served(app: Front) -> Iterator[str]:
    """Serve an application as a nameserver does; yields its URL."""
    listener = serving.listen("127.0.0.1", 0)
    server = serving.Server(app, listener)
    server.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.refuse()
        server.stop(END_S)


class _InOrder(engineio.Client):
    """The library's, which runs each message in a thread of its own: one can overtake another."""

    def _trigger_event(self, event: str, *args: Any, **how: Any) -> Any:
        return super()._trigger_event(event, *args, **{**how, "run_async": False})


class _Client(socketio.Client):
    def _engineio_client_class(self) -> type[engineio.Client]:
        return _InOrder


class Listener:
    """A standard client; remembers what it was told, in order."""

    def __init__(
        self,
        url: str,
        token: str = "",
        transports: tuple[str, ...] = ("websocket",),
        client: Json | None = None,
        **how: Any,
    ) -> None:
        self.got: list[tuple[str, Json]] = []
        self.refused: Any = None
        self.has_ended = threading.Event()
        self.io = _Client(reconnection=False, handle_sigint=False, **(client or {}))
        self.io.on("*", lambda name, form: self.got.append((name, form)))
        self.io.on("connect_error", self._refuse)
        self.io.on("disconnect", lambda *_: self.has_ended.set())
        auth = {"token": token} if token else None
        self.io.connect(url, auth=auth, transports=list(transports), wait_timeout=WAIT_S, **how)

    def _refuse(self, why: Any) -> None:
        self.refused = why

    def ask(self, event: str, **form: object) -> Json:
        """Send an event; return what acknowledges it."""
        told: Json = self.io.call(event, form, timeout=WAIT_S)
        return told

    def join(self, **form: object) -> Json:
        """Join the room of one's own."""
        return self.ask("join_sync_room", **form)

    @property
    def events(self) -> list[Json]:
        """Return the events that it was told, alone or in pages."""
        found: list[Json] = []
        for name, form in list(self.got):
            if name == "sync_events":
                found += form["events"]
            elif name != "connected":
                found.append(form)
        return found

    def named(self, name: str) -> list[Json]:
        """Return what it was told under a name."""
        return [form for said, form in list(self.got) if said == name]

    @property
    def ids(self) -> list[str]:
        """Return their ids."""
        return [event["id"] for event in self.events]

    def hears(self, count: int) -> list[Json]:
        """Wait for so many events; return them."""
        wait_until(lambda: len(self.events) >= count, WAIT_S, f"{count} events, not {self.got}")
        return self.events

    def close(self) -> None:
        """Hang up at once."""
        self.io.eio.disconnect(abort=True)
