"""Who is connected, what they ask for, and the one thread that tells all of them what happens.

What is told comes from the commit log and from nothing else, so it does not matter which process,
or which mount, made a change.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from everfold.errors import EverfoldError, Kind
from everfold.model import DeviceId
from everfold.services import Clock
from nameserver.feed import Bell
from nameserver.files.events import Events
from nameserver.files.items import iso
from nameserver.files.positions import told
from nameserver.gate import Gate, Identity
from nameserver.hearing import Ear
from nameserver.live.follower import CHECK_S, Encode, Follower, page
from nameserver.live.guest import TEAMS_UNKNOWN, Guest, Line

Json = dict[str, Any]
_log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0  # after the database failed


class Hub:
    """See the module. Thread-safe; the thread runs while there are guests."""

    def __init__(
        self, clock: Clock, bell: Bell, events: Events, gate: Gate, encode: Encode
    ) -> None:
        self._clock, self._bell = clock, bell
        self._events, self._gate, self._encode = events, gate, encode
        self._lock = threading.Lock()  # guards all below
        self._guests: set[Guest] = set()
        self._ear: Ear | None = None
        self._thread: threading.Thread | None = None
        self._is_over = False

    # ------------------------------------------------------------ guests

    def enter(self, line: Line, token: str) -> Guest:
        """Let somebody in; UNAUTHENTICATED, or UNAVAILABLE when this ends."""
        who = self._gate.by_token(token)
        guest = Guest(line, who, token, self._clock.monotonic() + CHECK_S)
        with self._lock:
            if self._is_over:
                raise EverfoldError(Kind.UNAVAILABLE, "the server is ending")
            self._guests.add(guest)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="live", daemon=True)
                self._thread.start()
        return guest

    def leave(self, guest: Guest) -> None:
        """Forget a guest, who is gone."""
        with self._lock:
            self._guests.discard(guest)
        self.wake()

    def greeting(self, guest: Guest) -> Json:
        """Return what a guest is told first: who they are, and where the log ends now."""
        sights = self._events.sights(guest.who.user)
        return {
            "user": guest.who.name,
            "device_id": guest.who.device or None,
            "position": told(self._events.now(sights), sights),
            "server_time": iso(self._clock.time_ns()),
        }

    def join(self, guest: Guest, since: str, device: DeviceId) -> Json:
        """Tell this guest of everything from now on: after `since`, if that is not empty, or
        after what `device` followed, if it ever said so. INVALID."""
        now_ns = self._clock.time_ns()
        sights = self._events.sights(guest.who.user)
        misses = bool(since) or self._events.has_followed(device)
        if since:
            position = self._events.place(sights, since)
        elif misses:
            position = self._events.followed(sights, device)
        else:
            position = self._events.now(sights)
        with guest.lock:
            guest.sights, guest.position, guest.misses = sights, position, misses
            guest.is_behind, guest.teams, guest.seen_ns = True, TEAMS_UNKNOWN, now_ns
        self.wake()
        return {"room": _room(guest.who), "position": told(position, sights)}

    def part(self, guest: Guest) -> Json:
        """Tell this guest nothing more; return up to where it was told."""
        with guest.lock:
            at = told(guest.position, guest.sights)
            guest.sights, guest.position, guest.misses = (), {}, False
        return {"room": _room(guest.who), "position": at or None}

    def page(self, guest: Guest, since: str, device: DeviceId, limit: int) -> Json:
        """Return what happened after `since`, or after what a device followed. INVALID."""
        sights = self._events.sights(guest.who.user)
        at = self._events.place(sights, since) if since else self._events.followed(sights, device)
        return page(self._events, self._clock, sights, at, limit)[0]

    def follow(self, guest: Guest, device: DeviceId, event: str) -> None:
        """Note that a device has dealt with all events up to this one; NOT_FOUND."""
        self._events.follow(self._events.sights(guest.who.user), device, event)

    def wake(self) -> None:
        """Look around: a line has room, or a guest came."""
        ear = self._ear
        if ear is not None:
            ear.wake()

    def stop(self) -> None:
        """Let nobody in any more, and tell nothing more."""
        with self._lock:
            self._is_over = True
            thread = self._thread
        self.wake()
        if thread is not None:
            thread.join(5.0)

    # ------------------------------------------------------------ the thread

    def _follow(self) -> None:
        follower = Follower(self._events, self._gate, self._clock, self._encode)
        with self._bell.ear() as ear:
            self._ear = ear
            while not self._ends():
                try:
                    follower.round(ear, self._present())
                except EverfoldError as err:
                    _log.warning("events are told late: %s", err)
                    ear.wait(_AGAIN_S)
                except Exception:  # noqa: BLE001  # a defect must not end the rest; it is logged
                    _log.exception("telling events failed")
                    ear.wait(_AGAIN_S)

    def _ends(self) -> bool:
        with self._lock:
            if self._guests and not self._is_over:
                return False
            self._thread = self._ear = None
            return True

    def _present(self) -> list[Guest]:
        with self._lock:
            return list(self._guests)


def _room(who: Identity) -> str:
    return f"user-{who.user}"
