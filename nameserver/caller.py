"""The nameserver as one caller sees it: `services.NameService` with the permission checks.

Only the owner of a space may use it; of other spaces a caller does not learn that they exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everfold import wire
from everfold.model import MountId, SpaceId, SpaceUsage
from nameserver.gate import Identity

if TYPE_CHECKING:
    from nameserver.service import Service


class Caller:
    """One identity's view. Implements `services.NameService`; cheap to make."""

    def __init__(self, service: Service, who: Identity) -> None:
        self._service = service
        self._who = who

    def _mine(self, space: SpaceId) -> None:
        self._service.spaces.check(space, self._who.user)

    def session(self, ask: wire.Hello) -> wire.Session:
        return self._service.sessions.hello(ask, self._who)

    def lookup(self, ask: wire.Lookup) -> wire.Found:
        self._mine(ask.space)
        return self._service.tree.lookup(ask)

    def listdir(self, ask: wire.ListDir) -> wire.Listing:
        self._mine(ask.space)
        return self._service.tree.listdir(ask)

    def attrs(self, ask: wire.GetAttrs) -> wire.Attrs:
        self._mine(ask.space)
        return self._service.tree.attrs(ask)

    def extents(self, ask: wire.GetExtents) -> wire.FileExtents:
        self._mine(ask.space)
        return self._service.tree.extents(ask)

    def many_extents(self, ask: wire.GetManyExtents) -> wire.ManyExtents:
        self._mine(ask.space)
        return self._service.tree.many_extents(ask)

    def xattrs(self, ask: wire.GetXattrs) -> wire.Xattrs:
        self._mine(ask.space)
        return self._service.tree.xattrs(ask)

    def commit(self, ask: wire.Commit) -> wire.Committed:
        self._mine(ask.space)
        author = self._author()
        return self._service.leases.when_free(ask, lambda: self._service.tree.commit(ask, author))

    def reserve(self, ask: wire.Reserve) -> wire.Reserved:
        self._mine(ask.space)
        return self._service.tree.reserve(ask)

    def plan(self, ask: wire.Plan) -> wire.Placements:
        self._mine(ask.space)
        return self._service.ledger.plan(ask)

    def locate(self, ask: wire.Locate) -> wire.Located:
        self._mine(ask.space)
        return self._service.ledger.locate(ask)

    def report_bad(self, ask: wire.ReportBad) -> wire.Done:
        self._mine(ask.space)
        return self._service.ledger.report_bad(ask)

    def feed(self, ask: wire.FeedPoll) -> wire.Feed:
        self._mine(ask.space)
        self._seen(ask.space, ask.mount)
        return self._service.feeds.poll(ask)

    def set_lock(self, ask: wire.SetLock) -> wire.Granted:
        self._mine(ask.space)
        self._seen(ask.space, ask.mount)
        return self._service.locks.set_lock(ask)

    def test_lock(self, ask: wire.TestLock) -> wire.Blocking:
        self._mine(ask.space)
        return self._service.locks.test_lock(ask)

    def drop_locks(self, ask: wire.DropLocks) -> wire.Done:
        self._mine(ask.space)
        return self._service.locks.drop_locks(ask)

    def take_locks(self, ask: wire.TakeLocks) -> wire.LockLease:
        self._mine(ask.space)
        self._seen(ask.space, ask.mount)
        return self._service.locks.leases.take(ask)

    def give_locks(self, ask: wire.GiveLocks) -> wire.LocksKept:
        self._mine(ask.space)
        self._seen(ask.space, ask.mount)
        return self._service.locks.take_back(ask)

    def history(self, ask: wire.GetHistory) -> wire.History:
        self._mine(ask.space)
        return self._service.tree.history(ask)

    def history_names(self, ask: wire.GetHistoryNames) -> wire.HistoryNames:
        self._mine(ask.space)
        return self._service.tree.history_names(ask)

    def resolve(self, ask: wire.ResolvePath) -> wire.Resolved:
        self._mine(ask.space)
        return self._service.tree.resolve(ask)

    def lease(self, ask: wire.TakeLease) -> wire.Lease:
        self._mine(ask.space)
        self._seen(ask.space, ask.mount)
        self._service.sessions.check_writable(ask.space, ask.mount)
        return self._service.leases.take(ask)

    def usage(self, ask: wire.GetUsage) -> SpaceUsage:
        self._mine(ask.space)
        return self._service.usage(ask)

    def bye(self, ask: wire.Bye) -> wire.Done:
        self._mine(ask.space)
        self._service.sessions.end(ask.space, ask.mount)
        return wire.Done()

    def _seen(self, space: SpaceId, mount: MountId) -> None:
        self._service.sessions.seen(space, mount)

    def _author(self) -> tuple[str, str]:
        return self._who.name, self._who.device_name or self._who.name
