"""Socket.IO at ``/socket.io``: Flask-SocketIO over our own server, and what we add to it.

Nothing here decides anything (`hub`). Ours are the queue of each client (`outbox`), its WebSocket
(`websocket`), and who may come: a client shows a token with its connect, and one that shows none in
time, or a bad one, is gone. A client belongs to one process (`relay`); processes need not know of
each other's clients, since each follows the log.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import parse_qs

import engineio.exceptions
import socketio.packet
from flask import Flask, request
from flask_socketio import ConnectionRefusedError as Refused
from flask_socketio import SocketIO

from everfold.errors import EverfoldError, Kind
from everfold.exchange import STATUS_LINES, Environ, StartResponse, Wsgi, refusal
from everfold.model import DeviceId
from nameserver.files.events import LIMIT_MAX
from nameserver.live.guest import Guest
from nameserver.live.hub import Hub
from nameserver.live.outbox import Outbox, Overflow
from nameserver.live.relay import NAME, Relay
from nameserver.live.websocket import MESSAGE_MAX, WebSocket
from nameserver.routes.auth import COOKIE
from nameserver.routes.forms import number, text
from nameserver.service import Service

Json = dict[str, Any]
_log = logging.getLogger(__name__)

CLIENTS_MAX: Final = 500  # of 1,000 connections; who polls has two
_STRANGER_S: Final = 10.0  # to show a token
_LIMIT: Final = 100


class Client:
    """One connection of Engine.IO; `guest.Line` for the hub."""

    def __init__(self, server: Any, sid: str) -> None:
        self.sid = sid
        self.name = ""  # its id in Socket.IO, once it is connected there
        self.guest: Guest | None = None
        self.is_greeted = False
        self.websocket: WebSocket | None = None
        self.stranger_since = time.monotonic()
        self.socket = server.eio.sockets[sid]
        self.outbox: Outbox = self.socket.queue
        self._server = server

    @property
    def room(self) -> int:
        return self.outbox.room

    @property
    def is_empty(self) -> bool:
        return self.outbox.is_empty

    def tell(self, packet: str) -> None:
        try:
            self.send(packet)
        except Overflow:
            self.drop()

    def send(self, packet: str) -> None:
        """Send something; Overflow. A client that is gone is told nothing."""
        with contextlib.suppress(engineio.exceptions.SocketIsClosedError):
            self._server.eio.send(self.sid, packet)

    def end(self) -> None:
        self._server.disconnect(self.name)

    def drop(self) -> None:
        """Hang up; a client that is sound comes back and goes on where it was."""
        with contextlib.suppress(engineio.exceptions.EngineIOError, KeyError):
            self.socket.close(wait=False, abort=True)
        if self.websocket is not None:
            self.websocket.hang_up()


class Sockets:
    """Serves ``/socket.io`` before a Flask application, from its making until `stop`."""

    def __init__(self, app: Flask, service: Service) -> None:
        self._service = service
        self._clients: dict[str, Client] = {}  # each call is atomic
        self._is_over = False
        quiet = _silent()
        self._socketio = SocketIO(
            app,
            async_mode="threading",
            async_handlers=False,
            manage_session=False,
            max_http_buffer_size=MESSAGE_MAX,
            http_compression=False,
            logger=quiet,
            engineio_logger=quiet,
        )
        self._server = self._socketio.server
        self._engine = self._server.eio
        self._engine._async = {
            **self._engine._async,
            "queue": Outbox,
            "websocket": lambda speak, engine: self._websocket(speak),
        }
        self._theirs = dict(self._engine.handlers)
        for event in ("connect", "disconnect", "message"):
            self._engine.on(event, getattr(self, f"_{event}"))
        self._rest: Wsgi = app.wsgi_app
        app.wsgi_app = self  # type: ignore[method-assign]
        self._relay = Relay(self._rest)
        make_id = self._engine.generate_id
        self._engine.generate_id = lambda: f"{self._relay.name}.{make_id()}"
        events = service.files.events
        self._hub = Hub(service.clock, service.bell, events, service.gate, _encode)
        self._answer_events()

    def stop(self) -> None:
        """Let nobody in any more, and hang up on all."""
        if self._is_over:
            return
        self._is_over = True
        self._relay.stop()
        self._hub.stop()
        for client in list(self._clients.values()):
            client.drop()
        self._server.shutdown()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as WSGI wants it. (Flask-SocketIO's middleware passes on what is not its own.)"""
        if not environ["PATH_INFO"].startswith("/socket.io/"):
            return self._rest(environ, start_response)
        owner, mark, _ = _session(environ).partition(".")
        if not mark:
            self._drop_strangers()
            if self._is_over or len(self._clients) >= CLIENTS_MAX:
                return _refuse(Kind.UNAVAILABLE, "too many clients; come again", start_response)
        try:
            if mark and owner != self._relay.name and NAME.fullmatch(owner):
                return self._relay.forward(owner, environ, start_response)
            return self._rest(environ, start_response)
        except (OSError, KeyError, engineio.exceptions.EngineIOError) as err:
            _log.debug("a client of Engine.IO is refused: %r", err)
            return _refuse(Kind.INVALID, "this connection is over", start_response)

    def _drop_strangers(self) -> None:
        before = time.monotonic() - _STRANGER_S
        for client in list(self._clients.values()):
            if client.guest is None and client.stranger_since < before:
                client.drop()

    # ------------------------------------------------------------ Engine.IO's events

    def _connect(self, sid: str, environ: Environ) -> object:
        self._relay.start()
        self._clients[sid] = Client(self._server, sid)
        return self._theirs["connect"](sid, environ)

    def _disconnect(self, sid: str, reason: str) -> None:
        client = self._clients.pop(sid, None)
        self._theirs["disconnect"](sid, reason)
        if client is not None:
            self._dismiss(client)

    def _message(self, sid: str, data: object) -> None:
        client = self._clients.get(sid)
        if client is None:
            return
        if client.outbox.is_full:  # it asks, and does not read the answers
            client.drop()
            return
        try:
            self._theirs["message"](sid, data)
            if client.guest is not None and not client.is_greeted:
                client.is_greeted = True
                client.tell(_encode("connected", self._hub.greeting(client.guest)))
        except Exception as err:  # noqa: BLE001  # whatever nonsense does to two libraries
            _log.debug("a client is let go: %r", err)
            client.drop()

    def _websocket(self, speak: Callable[[WebSocket], object]) -> WebSocket:
        engine_socket: Any = getattr(speak, "__self__")  # noqa: B009  # a bound method, says nobody

        def spoken(websocket: WebSocket) -> None:
            client = self._clients.get(engine_socket.sid)
            if client is not None:
                client.websocket = websocket
            try:
                speak(websocket)
            finally:
                with contextlib.suppress(engineio.exceptions.EngineIOError):
                    engine_socket.close(wait=False, abort=True)

        return WebSocket(spoken)

    def _dismiss(self, client: Client) -> None:
        guest, client.guest = client.guest, None
        client.stranger_since = time.monotonic()
        if guest is not None:
            self._hub.leave(guest)

    # ------------------------------------------------------------ Socket.IO's events

    def _answer_events(self) -> None:
        on = self._socketio.on
        on("connect")(self._enter)
        on("disconnect")(lambda *_: self._left())
        on("join_sync_room")(self._answering(self._join))
        on("leave_sync_room")(self._answering(lambda client, guest, form: self._hub.part(guest)))
        on("request_sync")(self._answering(self._page))

    def _here(self) -> Client | None:
        """Return the client whose event is being answered."""
        name = request.sid  # type: ignore[attr-defined]
        sid = self._server.manager.eio_sid_from_sid(name, "/")
        client = self._clients.get(sid)
        if client is not None and not client.name:
            client.name = name
        return client if client is not None and client.name == name else None

    def _enter(self, auth: object = None) -> None:
        client = self._here()
        if client is None or client.guest is not None:
            raise Refused("this connection has its guest")
        try:
            client.guest = self._hub.enter(client, _token(auth))
        except EverfoldError as err:
            client.name = ""
            raise Refused(err.message, err.to_wire()) from err
        client.is_greeted = False
        client.outbox.drained = self._hub.wake

    def _left(self) -> None:
        client = self._here()
        if client is not None:
            client.name = ""
            self._dismiss(client)

    def _answering(self, answer: Callable[[Client, Guest, Json], Json]) -> Callable[..., Json]:
        def handle(form: object = None, *_: object) -> Json:
            client = self._here()
            guest = client.guest if client is not None else None
            try:
                if client is None or guest is None:
                    raise EverfoldError(Kind.UNAUTHENTICATED, "connect first")
                if form is not None and not isinstance(form, dict):
                    raise EverfoldError(Kind.INVALID, "an event has one JSON object")
                return answer(client, guest, form or {})
            except EverfoldError as err:
                return {"error": err.to_wire()}
            except Exception:  # noqa: BLE001  # the border: logged, and told as what it is
                _log.exception("an event of a client failed")
                told = EverfoldError(Kind.INTERNAL, "a defect of the server; its log tells more")
                return {"error": told.to_wire()}

        return handle

    def _join(self, client: Client, guest: Guest, form: Json) -> Json:
        device = self._device(guest, form)
        return self._hub.join(guest, _since(form), device)

    def _page(self, client: Client, guest: Guest, form: Json) -> Json:
        device = self._device(guest, form)
        limit = number(form, "limit", _LIMIT)
        if not 1 <= limit <= LIMIT_MAX:
            raise EverfoldError(Kind.INVALID, f"'limit' is a number from 1 to {LIMIT_MAX}")
        page = self._hub.page(guest, _since(form), device, limit)
        try:
            client.send(_encode("sync_events", page))
        except Overflow as err:
            raise EverfoldError(Kind.RATE_LIMITED, "first take what was told") from err
        return {field: page[field] for field in ("count", "next_since", "has_more")}

    def _device(self, guest: Guest, form: Json) -> DeviceId:
        """Return the device that is meant, and note how far it says it is. NOT_FOUND."""
        device = DeviceId(text(form, "device_id", "") or guest.who.device)
        if device != guest.who.device:
            self._service.files.visitor(guest.who, device)
        processed = text(form, "processed", "")
        if processed:
            self._hub.follow(guest, device, processed)
        return device


def _encode(name: str, form: Json) -> str:
    packet = socketio.packet.Packet(socketio.packet.EVENT, data=[name, form], namespace="/")
    encoded: str = packet.encode()
    return encoded


def _session(environ: Environ) -> str:
    """Return the id of the session that a request belongs to; "" when it begins one."""
    return str(parse_qs(environ["QUERY_STRING"]).get("sid", [""])[0])


def _token(auth: object) -> str:
    """Return what a client shows with its connect, or showed when it began."""
    shown = auth.get("token") if isinstance(auth, dict) else None
    if isinstance(shown, str) and shown:
        return shown
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.args.get("token", "") or request.cookies.get(COOKIE, "")


def _since(form: Json) -> str:
    since = form.get("since")
    if isinstance(since, int) and not isinstance(since, bool):
        return str(since)
    return text(form, "since", "")


def _refuse(kind: Kind, message: str, start_response: StartResponse) -> list[bytes]:
    answer = refusal(EverfoldError(kind, message))
    start_response(STATUS_LINES[answer.status], [("Content-Type", answer.kind)])
    assert isinstance(answer.body, bytes)
    return [answer.body]


def _silent() -> logging.Logger:
    """Return a logger for libraries that log what clients do wrong as errors of theirs."""
    logger = logging.getLogger(f"{__name__}.libraries")
    logger.setLevel(logging.CRITICAL)
    return logger
