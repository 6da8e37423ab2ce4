"""Serving a WSGI application with gunicorn's threaded worker, in this very process.

Without gunicorn's arbiter there is no second process: the pid that is known is the pid that
serves, and stopping, killing or freezing it stops the server and frees its port. What
supervises and restarts is outside: `everfold up`, systemd, a container. One process is
enough: hashing and all I/O release the interpreter lock, and long polls park on threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.http.body import LengthReader
from gunicorn.workers import gthread

STALLED_S = 30  # a connection that moves no byte for so long in a request is given up
_KEEPALIVE_S = 75
_LINGER_S = 0.2  # of idle connections at the end
_STAY_MS = 1


class _Application(BaseApplication):  # type: ignore[misc]
    def __init__(self, app: Any, settings: dict[str, Any]) -> None:
        self._app = app
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._app


class WholeBody(LengthReader):  # type: ignore[misc]
    """A body that can be read in one go, into memory that is taken once.

    gunicorn's own way (pieces, pushed back and joined again) cost 2 ms more for 4 MiB.
    """

    def whole(self) -> memoryview:
        """Return all that is left; shorter when the client hung up."""
        view = memoryview(bytearray(self.length))
        ready = self.unreader.take_buffered()
        filled = min(len(ready), len(view))
        view[:filled] = ready[:filled]
        self.unreader.unread(ready[filled:])
        while filled < len(view):
            count = self.unreader.sock.recv_into(view[filled:])
            if not count:
                break
            filled += count
        self.length -= filled
        return view[:filled]


class _Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker on its own: one thread polls the connections, the others answer."""

    def __init__(self, stopping: Callable[[], None], *args: Any) -> None:
        super().__init__(*args)
        self._stopping = stopping
        self._busy: set[Any] = set()  # connections that a thread works for; one owner each

    def is_parent_alive(self) -> bool:
        """There is no arbiter to outlive; who started this process may end before it."""
        return True

    def notify(self) -> None:
        """There is no arbiter to tell."""

    def handle(self, conn: Any) -> Any:
        """Stay with a connection while its client goes on asking at once.

        Handing it to the poller and getting it back costs two thread switches a request.
        """
        self._busy.add(conn)
        try:
            keep = super().handle(conn)
            while keep is True and self.alive and _has_more(conn.sock):
                keep = super().handle(conn)
            return keep
        finally:
            self._busy.discard(conn)

    def hang_up(self) -> None:
        """End what is still being answered, so that no stalled client delays the end."""
        for conn in list(self._busy):
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RDWR)

    def handle_request(self, req: Any, conn: Any) -> Any:
        conn.sock.settimeout(STALLED_S)
        if type(req.body.reader) is LengthReader:
            req.body.reader = WholeBody(req.body.reader.unreader, req.body.reader.length)
        return super().handle_request(req, conn)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.alive:
            self._stopping()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Ctrl-C ends in order, as SIGTERM does."""
        self.handle_exit(sig, frame)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """Nothing: the log is not gunicorn's."""

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(min(deadline, time.monotonic() + _LINGER_S))


def _has_more(sock: socket.socket) -> bool:
    waiter = select.poll()
    try:
        waiter.register(sock, select.POLLIN)
        return bool(waiter.poll(_STAY_MS))
    except (OSError, ValueError):  # closed
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. The kernel queues early callers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    # Inherited by accepted sockets: half a request line must not hold a thread for ever.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", STALLED_S, 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    app: Any,
    listener: socket.socket,
    *,
    threads: int,
    grace_s: int,
    on_ready: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was asked (at most `grace_s`).

    Must run on the main thread. `stopping` is called once, from the signal handler, before
    that: it must make parked requests return.
    """
    settings = {
        "workers": 1,
        "threads": threads,
        "worker_class": "gthread",
        "worker_connections": 2000,
        "keepalive": _KEEPALIVE_S,
        "graceful_timeout": grace_s,
        "limit_request_line": 8190,
        "sendfile": True,
        "loglevel": "warning",
        "post_worker_init": lambda worker: on_ready(),
    }
    application = _Application(app, settings)
    config = application.cfg
    log = config.logger_class(config)
    for name in ("gunicorn.error", "gunicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    worker = _Worker(stopping, 0, os.getppid(), [listener], application, 0, config, log)
    worker.init_process()
    worker.hang_up()
