"""A nameserver over HTTP, with the interface that it has in process (`services.NameService`)."""

from __future__ import annotations

from typing import Any, TypeVar

from everfold import wire
from everfold.http import error_of
from everfold.log import request_id
from everfold.model import Record, SpaceUsage
from everfold.services import Transport

R = TypeVar("R", bound=Record)
CALL_TIMEOUT_S = 5.0
COMMIT_TIMEOUT_S = 30.0  # thousands of operations may be in it


class NameClient:
    """One caller (one token) at one nameserver. Thread-safe; no retries: the caller's policy."""

    def __init__(self, transport: Transport, token: str) -> None:
        self._transport = transport
        self.use(token)

    def use(self, token: str) -> None:
        """Show this token from now on."""
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": wire.MSGPACK}

    def _call(self, verb: str, ask: Record, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        headers = {**self._headers, wire.REQUEST_ID: request_id()}
        path, raw = f"/v1/{verb}", wire.encode(ask)
        status, _, body = self._transport.request(
            "POST", path, headers=headers, body=raw, timeout_s=timeout_s
        )
        if status != 200:
            raise error_of(status, body, self._transport.base_url)
        return wire.decode(body, wire.CALLS[verb][1])

    def session(self, ask: wire.Hello) -> wire.Session:
        """See `services.NameService.session`; the mount's own token is shown from now on."""
        answer: wire.Session = self._call("session", ask)
        if answer.token:
            self.use(answer.token)
        return answer

    def lookup(self, ask: wire.Lookup) -> wire.Found:
        answer: wire.Found = self._call("lookup", ask)
        return answer

    def listdir(self, ask: wire.ListDir) -> wire.Listing:
        answer: wire.Listing = self._call("listdir", ask)
        return answer

    def attrs(self, ask: wire.GetAttrs) -> wire.Attrs:
        answer: wire.Attrs = self._call("attrs", ask)
        return answer

    def extents(self, ask: wire.GetExtents) -> wire.FileExtents:
        answer: wire.FileExtents = self._call("extents", ask)
        return answer

    def list_many(self, ask: wire.ListMany) -> wire.Listings:
        answer: wire.Listings = self._call("list-many", ask)
        return answer

    def many_extents(self, ask: wire.GetManyExtents) -> wire.ManyExtents:
        answer: wire.ManyExtents = self._call("many-extents", ask)
        return answer

    def xattrs(self, ask: wire.GetXattrs) -> wire.Xattrs:
        answer: wire.Xattrs = self._call("xattrs", ask)
        return answer

    def commit(self, ask: wire.Commit) -> wire.Committed:
        answer: wire.Committed = self._call("commit", ask, COMMIT_TIMEOUT_S)
        return answer

    def reserve(self, ask: wire.Reserve) -> wire.Reserved:
        answer: wire.Reserved = self._call("reserve", ask)
        return answer

    def plan(self, ask: wire.Plan) -> wire.Placements:
        answer: wire.Placements = self._call("plan", ask)
        return answer

    def locate(self, ask: wire.Locate) -> wire.Located:
        answer: wire.Located = self._call("locate", ask)
        return answer

    def report_bad(self, ask: wire.ReportBad) -> wire.Done:
        answer: wire.Done = self._call("report-bad", ask)
        return answer

    def feed(self, ask: wire.FeedPoll) -> wire.Feed:
        answer: wire.Feed = self._call("feed", ask, ask.wait_s + CALL_TIMEOUT_S)
        return answer

    def set_lock(self, ask: wire.SetLock) -> wire.Granted:
        answer: wire.Granted = self._call("set-lock", ask)
        return answer

    def test_lock(self, ask: wire.TestLock) -> wire.Blocking:
        answer: wire.Blocking = self._call("test-lock", ask)
        return answer

    def drop_locks(self, ask: wire.DropLocks) -> wire.Done:
        answer: wire.Done = self._call("drop-locks", ask)
        return answer

    def take_locks(self, ask: wire.TakeLocks) -> wire.LockLease:
        answer: wire.LockLease = self._call("take-locks", ask)
        return answer

    def give_locks(self, ask: wire.GiveLocks) -> wire.LocksKept:
        answer: wire.LocksKept = self._call("give-locks", ask)
        return answer

    def teams(self, ask: wire.GetTeams) -> wire.Teams:
        answer: wire.Teams = self._call("teams", ask)
        return answer

    def history(self, ask: wire.GetHistory) -> wire.History:
        answer: wire.History = self._call("history", ask)
        return answer

    def history_names(self, ask: wire.GetHistoryNames) -> wire.HistoryNames:
        answer: wire.HistoryNames = self._call("history-names", ask)
        return answer

    def resolve(self, ask: wire.ResolvePath) -> wire.Resolved:
        answer: wire.Resolved = self._call("resolve", ask)
        return answer

    def lease(self, ask: wire.TakeLease) -> wire.Lease:
        answer: wire.Lease = self._call("lease", ask)
        return answer

    def usage(self, ask: wire.GetUsage) -> SpaceUsage:
        answer: SpaceUsage = self._call("usage", ask)
        return answer

    def bye(self, ask: wire.Bye) -> wire.Done:
        answer: wire.Done = self._call("bye", ask)
        return answer
