"""What the nameserver does by itself: one thread that looks around four times a second.

Of all processes on a database one has the right to plan (`planning`) and does the work; the
others only wait for it. After a start nothing is repaired until the nodes that are known have
reported or a few seconds have passed (safe mode): their silence was ours.
"""

from __future__ import annotations

import logging
import threading
import time

from everfold.errors import EverfoldError
from everfold.model import NodeState
from everfold.services import Clock
from nameserver import gc, tasks
from nameserver.db import Database
from nameserver.files.uploads import expire
from nameserver.nodes import NodeBook
from nameserver.planning import planning
from nameserver.policy import Policy
from nameserver.rounds import Rounds
from nameserver.sessions import Sessions

_log = logging.getLogger(__name__)
_TICK_S = 0.25
_SWEEP_S = 1.0
_AWAY = (NodeState.DOWN, NodeState.FAILED, NodeState.REMOVED)


class Driver:
    """`start` runs it on a thread of its own; tests call `tick`."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        policy: Policy,
        nodes: NodeBook,
        sessions: Sessions,
    ) -> None:
        self._db = db
        self._clock = clock
        self._policy = policy
        self._nodes = nodes
        self._sessions = sessions
        self._rounds = Rounds(db, clock, policy, nodes)
        self._planning = planning(db, clock, policy)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = clock.monotonic()
        self._is_safe_mode = True
        self._sweep_at = self._repair_at = self._gc_at = 0.0
        self._calm_since = self._started
        self._told: object = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread is done and another process may plan."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None
        else:
            self._give_back()

    def _run(self) -> None:
        failures = 0
        while not self._stop.wait(_TICK_S):
            try:
                self.tick()
                failures = 0
            except EverfoldError as err:
                failures += 1  # the next tick tries again
                if failures in (1, 10) or failures % 400 == 0:
                    _log.warning("cannot look after the cluster (%d times): %s", failures, err)
            except Exception:  # noqa: BLE001  # a defect must not end the watch; it is logged
                _log.exception("looking after the cluster failed")
        self._give_back()
        self._db.close()

    def _give_back(self) -> None:
        try:
            self._planning.give_back()
        except EverfoldError as err:
            _log.warning("the right to plan is left to expire: %s", err)

    def tick(self) -> None:
        """Look around once, and do what is due."""
        if not self._planning.is_ours():
            return
        self._nodes.tell_now()
        now = self._clock.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            self._sweep()
        if self._waits_for_nodes(now):
            return
        self._repair(now)
        if now >= self._gc_at:
            self._gc_at = now + self._policy.gc_interval_s
            expire(self._db, self._clock, self._policy)
            gone = gc.collect(self._db, self._clock, self._policy)
            if gone:
                _log.info("%d blocks that nothing names are dropped", gone)
                self._gc_at = now  # there may be more

    def _repair(self, now: float) -> None:
        states = {m.id: (m.state, m.boot) for m in self._nodes.members().values()}
        if states != self._told:
            self._told, self._repair_at, self._calm_since = states, 0.0, now
        if now < self._repair_at:
            return
        began = time.monotonic()
        endangered = self._rounds.repair()
        spent = time.monotonic() - began
        self._repair_at = now + max(1.0, 20 * spent)  # at most a twentieth of a core
        if endangered:
            self._repair_at = now + max(0.5, 5 * spent)
            self._calm_since = now
        elif now - self._calm_since >= self._policy.surplus_s:
            self._rounds.thin()

    def _waits_for_nodes(self, now: float) -> bool:
        if self._is_safe_mode:
            members = self._nodes.members().values()
            waits = any(m.state is NodeState.DOWN for m in members)
            self._is_safe_mode = waits and now - self._started < self._policy.safe_mode_s
        return self._is_safe_mode

    # ------------------------------------------------------------ sweeping

    def _sweep(self) -> None:
        """Forget unanswered commands, commands of nodes that are away, silent mounts."""
        now_ns = self._clock.time_ns()
        with self._db.read() as cx:
            is_idle = cx.one("SELECT 1 FROM task LIMIT 1") is None
        if not is_idle:
            with self._db.write() as cx:
                tasks.expire(cx, now_ns, self._policy.task_ttl_s, self._policy.drop_ttl_s)
                for member in self._nodes.read(cx).values():
                    if member.state in _AWAY:
                        tasks.discard(cx, member.id)
        for mount in self._sessions.expire():
            _log.info("mount %s fell silent; what it held is let go", mount)
