"""The heartbeat: tell the nameserver how it stands here, and take its orders.

The nameserver never calls a node; its commands come back as the answer to a beat. A lost
answer costs nothing: the next beat tells the same again. While the nameserver is away the
node goes on serving, and tries again at least once a second.
"""

from __future__ import annotations

import logging
import secrets
import threading

from datanode.commands import Commands
from datanode.node import Node
from everfold import wire
from everfold.errors import EverfoldError
from everfold.http import error_of
from everfold.log import new_request_id
from everfold.services import Clock, Transport
from everfold.tokens import Signer

log = logging.getLogger("datanode.beat")
FIRST_BEAT_S = 0.5
_BACKOFF_MAX_S = 1.0
_GATHER_S = 0.02  # urgent news wait so long for company
_TIMEOUT_S = 5.0
_TOKEN_TTL_S = 3600


class Beat(threading.Thread):
    """Beats until `close`. `poke` makes it beat at once."""

    def __init__(
        self, node: Node, commands: Commands, nameserver: Transport, secret: str, clock: Clock
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._node = node
        self._commands = commands
        self._nameserver = nameserver
        self._signer = Signer(secret, clock)
        self._clock = clock
        self._boot = secrets.token_hex(8)
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._interval_s = FIRST_BEAT_S
        self._failures = 0
        self._has_more = False
        node.on_urgent = self.poke

    def poke(self) -> None:
        """Beat as soon as other urgent news had a moment to gather."""
        self._wake.set()

    def close(self) -> None:
        """Stop beating; the thread may be joined."""
        self._ended.set()
        self._wake.set()
        if self.is_alive():
            self.join(_TIMEOUT_S + 1)
        self._nameserver.close()

    def run(self) -> None:
        """Beat, wait, beat."""
        while not self._ended.is_set():
            self.beat()
            if self._wake.wait(self._pause_s()):
                self._ended.wait(_GATHER_S)
            self._wake.clear()

    def _pause_s(self) -> float:
        if self._failures:
            return float(min(_BACKOFF_MAX_S, 0.05 * 2**self._failures))
        return 0.0 if self._has_more else self._interval_s

    def beat(self) -> bool:
        """Send one beat and obey its answer; tell whether there was one."""
        new_request_id()
        try:
            beat, news = self._node.heartbeat(self._boot)
            reply = self._send(beat)
            self._node.set_state(reply.state)
        except EverfoldError as err:
            self._failures += 1
            if self._failures in (1, 10) or self._failures % 600 == 0:
                log.warning("no heartbeat (%d in a row): %s", self._failures, err)
            return False
        except Exception:  # a defect; the node must not fall silent because of it
            self._failures += 1
            log.exception("a heartbeat failed")
            return False
        if self._failures:
            log.info("the nameserver answers again")
        self._failures = 0
        self._node.was_told(beat, news)
        self._has_more = not news.is_all
        self._interval_s = min(max(reply.beat_s, 0.01), 60.0)
        for command in reply.commands:
            self._commands.start(command)
        return True

    def _send(self, beat: wire.Heartbeat) -> wire.BeatReply:
        token = self._signer.mint("node", _TOKEN_TTL_S, sub=self._node.identity.id)
        status, _, body = self._nameserver.request(
            "POST",
            "/v1/heartbeat",
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": wire.MSGPACK,
                wire.REQUEST_ID: new_request_id(),
            },
            body=wire.encode(beat),
            timeout_s=_TIMEOUT_S,
        )
        if status != 200:
            raise error_of(status, body, self._nameserver.base_url)
        return wire.decode(body, wire.BeatReply)
