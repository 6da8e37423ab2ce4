"""The web server: gunicorn's threaded worker, run in this very process.

One process and many threads: long polls park on threads, and a kill ends everything at once
(with gunicorn's arbiter a worker would outlive it and keep the port). What supervises and
restarts is outside: `everfold up`, systemd, a container.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import ThreadWorker

THREADS = 128
GRACE_S = 5
_LINGER_S = 0.2  # of idle connections at the end
_KEEPALIVE_S = 75
_STALLED_S = 30  # a connection that moves no byte for so long within a request is given up
_STAY_MS = 1


class _Application(BaseApplication):  # type: ignore[misc]
    def __init__(self, app: Flask, settings: dict[str, Any]) -> None:
        self._app = app
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._app


class _Worker(ThreadWorker):  # type: ignore[misc]
    """One thread polls the connections, the others answer; see `handle`."""

    stopping: Callable[[], None]

    def handle(self, conn: Any) -> Any:
        """Stay with a connection while its client goes on asking at once.

        Handing it to the poller and getting it back costs two thread switches a request.
        """
        keep = super().handle(conn)
        while keep is True and self.alive and _has_more(conn.sock):
            keep = super().handle(conn)
        return keep

    def notify(self) -> None:
        """There is no arbiter to tell."""

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """Nothing: the log is not gunicorn's."""

    def is_parent_alive(self) -> bool:
        """There is no arbiter; who started this process may end before it."""
        return True

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.alive:
            self.stopping()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Ctrl-C ends in order, as SIGTERM does."""
        self.handle_exit(sig, frame)

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
    """Return a listening socket; the kernel queues callers until `serve` runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Accepted sockets inherit it: half a request must not hold a thread for ever.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _STALLED_S, 0))
    sock.bind((host, port))
    sock.listen(1024)
    return sock


def serve(app: Flask, sock: socket.socket, stopping: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was asked (at most GRACE_S).

    Must run on the main thread. `stopping` is called once, from the signal handler, before
    that: it must make parked requests return.
    """
    settings = {
        "worker_class": "gthread",
        "threads": THREADS,
        "worker_connections": 2000,
        "keepalive": _KEEPALIVE_S,
        "graceful_timeout": GRACE_S,
        "limit_request_line": 8190,
        "loglevel": "warning",
    }
    application = _Application(app, settings)
    log = application.cfg.logger_class(application.cfg)
    _log_like_ours()
    worker = _Worker(0, os.getppid(), [sock], application, 0, application.cfg, log)
    worker.stopping = stopping
    worker.init_process()


def _log_like_ours() -> None:
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
