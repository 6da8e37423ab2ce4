"""Doing what the nameserver orders in its answers to beats, a few things at a time.

A command that is being done is not started twice, and its outcome is told by the ledger in
the next beat, which is sent at once. One that failed is only logged: the nameserver goes by
what the node holds, and orders again.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from datanode.copying import Copier
from datanode.node import Node
from everfold import wire
from everfold.errors import EverfoldError
from everfold.log import adopt_request_id, request_id

log = logging.getLogger("datanode.commands")
_WORKERS = 4
_Key = tuple[object, ...]


class Commands:
    """A small pool of workers. `close` it in the end."""

    def __init__(self, node: Node, copier: Copier) -> None:
        self._node = node
        self._copier = copier
        self._lock = threading.Lock()  # guards _running, _is_closed
        self._running: set[_Key] = set()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="command")

    def start(self, command: wire.Command) -> None:
        """Do a command in the background, unless it is being done already."""
        key = _key(command)
        with self._lock:
            if self._is_closed or key in self._running:
                return
            self._running.add(key)
            self._pool.submit(self._run, command, key, request_id())

    def close(self) -> None:
        """Stop; what has not begun is not done."""
        with self._lock:
            self._is_closed = True
        self._copier.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, command: wire.Command, key: _Key, request: str) -> None:
        adopt_request_id(request)
        try:
            self._do(command)
        except EverfoldError as err:
            log.warning("%s was not done: %s", key, err)
        except Exception:  # a defect must be seen, and must not keep the command "running"
            log.exception("%s was not done", key)
        finally:
            with self._lock:
                self._running.discard(key)
            self._node.on_urgent()

    def _do(self, command: wire.Command) -> None:
        node = self._node
        if isinstance(command, wire.Copy):
            self._copier.pull(command)
        elif isinstance(command, wire.Drop):
            if not node.drop(command.space, command.block):
                node.ledger.answer(wire.Held(command.space, command.block, 0))
        elif isinstance(command, wire.Verify):
            node.verify(command.space, command.block)
            node.ledger.answer(wire.Held(command.space, command.block, 0))
        else:
            node.ledger.enclose(command.prefix, node.recount(command.prefix))


def _key(command: wire.Command) -> _Key:
    if isinstance(command, wire.ListPrefix):
        return ("list", command.prefix)
    return (type(command).__name__, command.space, command.block.hex())
