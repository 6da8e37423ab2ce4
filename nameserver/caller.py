"""The nameserver as one caller sees it: `services.NameService` with the permission checks.

Every verb says what it needs (`Spaces.check`): who looks must be let in to read, whatever changes
a space or holds others up needs more. Of spaces that are not theirs callers learn nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everfold import wire
from everfold.model import LockType, MountId, SpaceId, SpaceUsage
from nameserver.gate import Identity
from nameserver.spaces import READ, WRITE

if TYPE_CHECKING:
    from nameserver.service import Service


class Caller:
    """One identity's view. Implements `services.NameService`; cheap to make."""

    def __init__(self, service: Service, who: Identity) -> None:
        self._service = service
        self._who = who

    # ------------------------------------------------------------ what one may

    def _may(self, space: SpaceId, need: str = READ, mount: MountId | None = None) -> str:
        """Return what one may do in a space; raises as `Spaces.check` does.

        `mount` is one that the call acts for: it must be one's own.
        """
        spaces = self._service.spaces
        held = spaces.check(space, self._who.user, need)
        if mount is not None:
            spaces.check_mount(space, mount, self._who.name)
        return held

    def _seen(self, space: SpaceId, mount: MountId, position: int = 0) -> None:
        self._service.sessions.seen(space, mount, position)

    def _author(self) -> tuple[str, str]:
        return self._who.name, self._who.device_name or self._who.name

    # ------------------------------------------------------------ the tree

    def session(self, ask: wire.Hello) -> wire.Session:
        return self._service.sessions.hello(ask, self._who)

    def lookup(self, ask: wire.Lookup) -> wire.Found:
        self._may(ask.space)
        return self._service.tree.lookup(ask)

    def listdir(self, ask: wire.ListDir) -> wire.Listing:
        self._may(ask.space)
        return self._service.tree.listdir(ask)

    def attrs(self, ask: wire.GetAttrs) -> wire.Attrs:
        self._may(ask.space)
        return self._service.tree.attrs(ask)

    def extents(self, ask: wire.GetExtents) -> wire.FileExtents:
        self._may(ask.space)
        return self._service.tree.extents(ask)

    def list_many(self, ask: wire.ListMany) -> wire.Listings:
        self._may(ask.space)
        return self._service.tree.list_many(ask)

    def many_extents(self, ask: wire.GetManyExtents) -> wire.ManyExtents:
        self._may(ask.space)
        return self._service.tree.many_extents(ask)

    def xattrs(self, ask: wire.GetXattrs) -> wire.Xattrs:
        self._may(ask.space)
        return self._service.tree.xattrs(ask)

    def commit(self, ask: wire.Commit) -> wire.Committed:
        author = self._author()

        def commit() -> wire.Committed:  # perhaps seconds later, when another's lease is over
            self._may(ask.space, WRITE, ask.mount)
            return self._service.tree.commit(ask, author)

        self._may(ask.space, WRITE, ask.mount)
        return self._service.leases.when_free(ask, commit)

    def reserve(self, ask: wire.Reserve) -> wire.Reserved:
        self._may(ask.space, WRITE)
        return self._service.tree.reserve(ask)

    def history(self, ask: wire.GetHistory) -> wire.History:
        self._may(ask.space)
        return self._service.tree.history(ask)

    def history_names(self, ask: wire.GetHistoryNames) -> wire.HistoryNames:
        self._may(ask.space)
        return self._service.tree.history_names(ask)

    def resolve(self, ask: wire.ResolvePath) -> wire.Resolved:
        self._may(ask.space)
        return self._service.tree.resolve(ask)

    def teams(self, ask: wire.GetTeams) -> wire.Teams:
        self._may(ask.space)
        return self._service.teams.places(ask, self._who)

    def usage(self, ask: wire.GetUsage) -> SpaceUsage:
        self._may(ask.space)
        return self._service.usage(ask)

    # ------------------------------------------------------------ blocks

    def plan(self, ask: wire.Plan) -> wire.Placements:
        self._may(ask.space, WRITE)
        return self._service.ledger.plan(ask)

    def locate(self, ask: wire.Locate) -> wire.Located:
        verbs = "r" if self._may(ask.space) == READ else "rw"
        return self._service.ledger.locate(ask, verbs)

    def report_bad(self, ask: wire.ReportBad) -> wire.Done:
        self._may(ask.space)
        return self._service.ledger.report_bad(ask)

    # ------------------------------------------------------------ feed, locks, leases

    def feed(self, ask: wire.FeedPoll) -> wire.Feed:
        self._may(ask.space, READ, ask.mount)
        self._seen(ask.space, ask.mount, ask.after)
        feed = self._service.feeds.poll(ask)
        self._may(ask.space)  # it may have waited for long
        return feed

    def set_lock(self, ask: wire.SetLock) -> wire.Granted:
        is_taking = ask.lock.type is LockType.WRITE
        self._may(ask.space, WRITE if is_taking else READ, ask.mount)
        self._seen(ask.space, ask.mount)
        return self._service.locks.set_lock(ask)

    def test_lock(self, ask: wire.TestLock) -> wire.Blocking:
        self._may(ask.space)
        return self._service.locks.test_lock(ask)

    def drop_locks(self, ask: wire.DropLocks) -> wire.Done:
        self._may(ask.space, READ, ask.mount)
        return self._service.locks.drop_locks(ask)

    def take_locks(self, ask: wire.TakeLocks) -> wire.LockLease:
        self._may(ask.space, WRITE, ask.mount)
        self._seen(ask.space, ask.mount)
        return self._service.locks.leases.take(ask)

    def give_locks(self, ask: wire.GiveLocks) -> wire.LocksKept:
        is_keeping = any(lock.type is LockType.WRITE for lock in ask.locks)
        self._may(ask.space, WRITE if is_keeping else READ, ask.mount)
        self._seen(ask.space, ask.mount)
        return self._service.locks.take_back(ask)

    def lease(self, ask: wire.TakeLease) -> wire.Lease:
        self._may(ask.space, READ if ask.epoch else WRITE, ask.mount)
        self._seen(ask.space, ask.mount)
        if not ask.epoch:
            self._service.sessions.check_writable(ask.space, ask.mount)
        return self._service.leases.take(ask)

    def bye(self, ask: wire.Bye) -> wire.Done:
        self._may(ask.space, READ, ask.mount)
        self._service.sessions.end(ask.space, ask.mount)
        return wire.Done()
