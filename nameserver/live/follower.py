"""Telling each guest what happened after its position, as long as its line has room.

Until there is room nothing is kept for a guest: a slow one costs nothing and holds up nobody.
Within a space events come in order, each once. `Follower` belongs to the hub's one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from everfold.errors import EverfoldError, Kind
from everfold.model import SpaceId
from everfold.services import Clock
from nameserver.files.events import Event, Events
from nameserver.files.items import iso
from nameserver.files.positions import Place, Position, Sight, Sights, after_all, told
from nameserver.gate import Gate
from nameserver.hearing import Ear
from nameserver.live.guest import Guest
from nameserver.live.stream import Stream

Json = dict[str, Any]
Encode = Callable[[str, Json], str]
"""Return the packet of an event of this name."""

CHECK_S: Final = 5.0  # how often a guest's token is looked at
PAGE: Final = 100  # events of what somebody missed, told at once
_PAGES: Final = 4  # of those between two looks at what is new
_LOOK_S: Final = 1.0  # so late is a lost bell
_FEW: Final = 4  # spaces that are read without asking first
_OWN_NAMES: Final = frozenset({"file_uploaded", "file_deleted"})


def page(
    events: Events, clock: Clock, sights: Sights, position: Position, limit: int
) -> tuple[Json, Position]:
    """Return what `sync_events` tells, and the position after it."""
    found, position = events.page(sights, position, limit)
    form = {
        "events": found,
        "count": len(found),
        "next_since": told(position, sights),
        "has_more": len(found) == limit,
        "server_time": iso(clock.time_ns()),
    }
    return form, position


class Follower:
    """See the module."""

    def __init__(self, events: Events, gate: Gate, clock: Clock, encode: Encode) -> None:
        self._events, self._gate, self._clock, self._encode = events, gate, clock, encode
        self._streams: dict[SpaceId, Stream] = {}
        self._look_at = 0.0
        self._is_sure = True  # the last round came to its end
        self._is_busy = False  # there is more to be told at once
        self._packets: dict[tuple[Place, Sight], str] = {}  # of this round

    def round(self, ear: Ear, guests: Collection[Guest]) -> None:
        """Wait for news, a second at most, and tell them."""
        joined = [guest for guest in guests if guest.sights]
        ear.listen({sight.space for guest in joined for sight in guest.sights})
        heard = ear.wait(0.0 if self._is_busy else max(0.0, self._look_at - self._now()))
        was_sure, self._is_sure = self._is_sure, False
        if self._now() >= self._look_at or not was_sure:
            self._look_at = self._now() + _LOOK_S
            self._check(guests)
            heard = {sight.space for guest in joined for sight in guest.sights}
        self._is_busy = False
        self._keep_streams(joined)
        read_ns = self._clock.time_ns()
        moved = self._advance(heard | self._missing(joined))
        if not was_sure:  # some of what was read may not have been told
            moved = set(self._streams)
        self._look_again(joined, moved, read_ns)
        pages = _PAGES
        for guest in joined:
            if guest.is_behind or any(sight.space in moved for sight in guest.sights):
                pages -= self._serve(guest, pages)
        self._forget(joined, moved)
        self._packets.clear()
        self._is_sure = True

    def _now(self) -> float:
        return self._clock.monotonic()

    # ------------------------------------------------------------ what is new

    def _keep_streams(self, joined: Collection[Guest]) -> None:
        wanted = {sight.space for guest in joined for sight in guest.sights}
        for space in self._streams.keys() - wanted:
            del self._streams[space]

    def _missing(self, joined: Collection[Guest]) -> set[SpaceId]:
        wanted = {sight.space for guest in joined for sight in guest.sights}
        return wanted - self._streams.keys()

    def _advance(self, spaces: Collection[SpaceId]) -> set[SpaceId]:
        """Read what is new in these spaces, and in those of which not all was read.

        Where there was a commit, and hardly anywhere else, it is read at once; else it is asked
        first where there was one.
        """
        moved = {space for space, stream in self._streams.items() if stream.has_more}
        few = len(spaces) <= _FEW and self._streams.keys() >= set(spaces)
        moved |= set(spaces) if few else self._changed(spaces)
        for space in moved:
            self._streams[space].advance(self._events)
            self._is_busy |= self._streams[space].has_more
        return moved

    def _changed(self, spaces: Collection[SpaceId]) -> set[SpaceId]:
        """Return those of these spaces that moved on; begin to follow those that are new."""
        changed = set()
        for space, (seq, teams) in self._events.heads(spaces).items():
            stream = self._streams.get(space)
            if stream is None:
                self._streams[space] = Stream(space, after_all(seq), teams)
            elif seq == stream.place.seq and teams == stream.teams:
                continue
            changed.add(space)
        return changed

    def _forget(self, joined: Collection[Guest], moved: Collection[SpaceId]) -> None:
        """Keep no events that all have who listen."""
        for space in moved:
            stream = self._streams[space]
            if all(guest.position.get(space, stream.place) >= stream.place for guest in joined):
                stream.forget()

    # ------------------------------------------------------------ telling

    def _serve(self, guest: Guest, pages: int) -> int:
        """Tell a guest what its line has room for; return how many pages that were (of `pages`)."""
        with guest.lock:
            if not guest.misses:
                guest.is_behind = False
                for sight in guest.sights:
                    self._tell(guest, sight)
                return 0
            guest.is_behind = True
            if not (guest.line.is_empty or guest.line.room > 1):
                return 0
            self._is_busy = True
            if pages <= 0:
                return 0
            form, guest.position = page(
                self._events, self._clock, guest.sights, guest.position, PAGE
            )
            guest.line.tell(self._encode("sync_events", form))
            guest.misses = form["has_more"]
            return 1

    def _tell(self, guest: Guest, sight: Sight) -> None:
        stream = self._streams.get(sight.space)
        if stream is None:  # joined after this round began
            guest.is_behind = self._is_busy = True
            return
        place = guest.position[sight.space]
        while place < stream.place:
            room = guest.line.room
            if room <= 0:
                guest.is_behind = True
                break
            found, place = stream.after(place, room, self._events)
            for event in found:
                guest.line.tell(self._packet(event, sight))
            if not found:
                place = max(place, stream.place)
            guest.position[sight.space] = place

    def _packet(self, event: Event, sight: Sight) -> str:
        key = (event.place, sight)
        packet = self._packets.get(key)
        if packet is None:
            form = event.seen(sight)
            kind = form["event_type"]
            name = kind if kind in _OWN_NAMES else "sync_event"
            packet = self._packets[key] = self._encode(name, form)
        return packet

    # ------------------------------------------------------------ who may hear it

    def _check(self, guests: Collection[Guest]) -> None:
        """End what belongs to tokens that are not good any more."""
        now = self._now()
        for guest in guests:
            if guest.check_at > now:
                continue
            guest.check_at = now + CHECK_S
            try:
                self._gate.by_token(guest.token)
            except EverfoldError as err:
                if err.kind is not Kind.UNAUTHENTICATED:
                    raise
                guest.line.end()

    def _look_again(
        self, joined: Collection[Guest], moved: Collection[SpaceId], read_ns: int
    ) -> None:
        """Ask again what those see whose team folders came, went or have moved.

        What they are at was read at `read_ns` or later. Of somebody who has just joined it is not
        known which team folders there were when their sights were read: they are asked once more.
        """
        for guest in joined:
            with guest.lock:
                if not guest.sights:
                    continue
                home = guest.sights[0].space
                stream = self._streams.get(home)
                if stream is None:
                    continue  # joined after this round began
                if guest.teams != stream.teams or (len(guest.sights) > 1 and home in moved):
                    self._see(guest)
                guest.teams, guest.seen_ns = stream.teams, read_ns

    def _see(self, guest: Guest) -> None:
        """Let a guest see what is open to them now. Lock held.

        A team folder that is new is followed from when it was not there yet.
        """
        try:
            sights = self._events.sights(guest.who.user)
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            guest.sights, guest.check_at = (), 0.0  # there is no such user any more
            return
        for sight in sights:
            if sight.space not in guest.position:
                place = self._events.since_time(sight.space, guest.seen_ns)
                guest.position[sight.space] = place
        seen = {sight.space for sight in sights}
        guest.position = {k: place for k, place in guest.position.items() if k in seen}
        guest.sights, guest.is_behind = sights, True
