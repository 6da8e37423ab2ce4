"""Our own HTTP/1.1 server: `serve` runs it in this very process, a thread for each connection.

The pid that is known is the pid that serves: stopping, killing or freezing it stops the server
and frees its port. What supervises and restarts is outside: `everfold up`, systemd, a container.
One process is enough: hashing and all I/O release the interpreter lock, and long polls park on
their threads. docs/adr/0004 tells why it is not gunicorn any more, with numbers.

Never more than `connections` at once: callers beyond that wait in the kernel's queue, and the
one that was idle longest is let go, for a kept connection is a courtesy.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from everfold.exchange import Front, Wsgi
from everfold.peer import STALLED_S, Peer
from everfold.tls import Certificate

_SPARE: Final = 4  # threads without a connection that are kept for the next one
_PAUSE_S: Final = 0.05  # when there are too many connections, or the system takes no more
# Below the size of a huge page, which the kernel may else give to each stack (2 MiB a thread);
# enough for the deepest recursion that the interpreter allows.
_STACK: Final = 1024 * 1024
_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. The kernel queues early callers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    # Inherited by accepted sockets: half a request must not hold a thread for ever.
    limit = struct.pack("@ll", STALLED_S, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Server:
    """Serves a listener on threads of its own, from `start` to `refuse` and `stop`."""

    def __init__(
        self,
        app: Front | Wsgi,
        listener: socket.socket,
        *,
        connections: int = 1000,
        tls: Certificate | None = None,
        thread_ends: Callable[[], None] = lambda: None,
    ) -> None:
        """`thread_ends` runs on each thread at its end, to let go of what was the thread's."""
        self._front = app if isinstance(app, Front) else Front(lambda request: None, app)
        self._listener = listener
        self._connections = connections
        self._tls = tls
        self._thread_ends = thread_ends
        self._is_ending = False
        self._asleep, self._awake = os.pipe()
        self._waiting: queue.SimpleQueue[Peer | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards all below
        self._peers: set[Peer] = set()
        self._spare = 0
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> None:
        """Begin to accept connections."""
        self._acceptor.start()

    def refuse(self) -> None:
        """Accept no connection any more, and close each one with its next answer.

        The listener may be other processes' too, so it is closed, not shut down.
        """
        self._is_ending = True
        _wake(self._awake)
        self._acceptor.join()
        self._listener.close()
        os.close(self._asleep)
        os.close(self._awake)

    def stop(self, grace_s: float) -> None:
        """Let what was asked be answered (at most `grace_s`), then hang up. After `refuse`."""
        ends = time.monotonic() + grace_s
        with self._changed:
            for peer in self._peers:
                if peer.is_idle:
                    peer.hang_up(socket.SHUT_RD)
            while self._peers and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
            for peer in self._peers:
                peer.hang_up()
            for _ in range(self._spare):
                self._waiting.put(None)

    def _accept(self) -> None:
        self._listener.setblocking(False)
        poll = select.poll()
        for end in (self._asleep, self._listener.fileno()):
            poll.register(end, select.POLLIN)
        while not self._is_ending:
            try:
                poll.poll()
                sock, address = self._listener.accept()
            except BlockingIOError:
                continue  # another process was faster, or it is time to end
            except OSError as err:
                if not self._is_ending:
                    _log.warning("no connection can be accepted: %s", err)
                    time.sleep(_PAUSE_S)
                continue
            self._take(Peer(sock, address, self._front, self._tls, self._ends))

    def _ends(self) -> bool:
        return self._is_ending

    def _take(self, peer: Peer) -> None:
        """Give a connection to a thread, when there is room for it."""
        with self._changed:
            while len(self._peers) >= self._connections and not self._is_ending:
                self._let_one_go()
                self._changed.wait(_PAUSE_S)
            self._peers.add(peer)
            if self._spare:
                self._spare -= 1
                self._waiting.put(peer)
                return
        try:
            threading.Thread(target=self._work, args=(peer,), name="peer", daemon=True).start()
        except RuntimeError as err:  # the system has no more threads
            _log.warning("a connection is refused: %s", err)
            peer.sock.close()
            with self._changed:
                self._peers.discard(peer)

    def _let_one_go(self) -> None:
        idle = [peer for peer in self._peers if peer.is_idle]
        if idle:
            min(idle, key=lambda peer: peer.idle_since).hang_up(socket.SHUT_RD)

    def _work(self, first: Peer) -> None:
        peer: Peer | None = first
        try:
            while peer is not None:
                peer.serve()
                with self._changed:
                    self._peers.discard(peer)
                    self._changed.notify_all()
                    if self._is_ending or self._spare >= _SPARE:
                        return
                    self._spare += 1
                peer = self._waiting.get()
        finally:
            self._thread_ends()


def serve(
    app: Front | Wsgi,
    listener: socket.socket,
    *,
    grace_s: float,
    on_ready: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
    thread_ends: Callable[[], None] = lambda: None,
    tls: Certificate | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGQUIT, then finish what was asked (at most `grace_s`).

    Must run on the main thread. `stopping` is called once, before that: it must make parked
    requests return. SIGUSR1 writes what every thread is doing to stderr; SIGHUP looks at the
    certificate again.
    """
    threading.stack_size(_STACK)
    server = Server(app, listener, tls=tls, thread_ends=thread_ends)
    asleep, awake = os.pipe()
    os.set_blocking(awake, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: _wake(awake))
    signal.signal(signal.SIGHUP, lambda *_: tls.reload() if tls else None)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    server.start()
    on_ready()
    os.read(asleep, 1)
    server.refuse()
    stopping()
    server.stop(grace_s)


def _wake(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError):  # full: it was told often enough
        os.write(pipe, b".")
