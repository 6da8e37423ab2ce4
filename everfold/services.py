"""All the interfaces, on one page: who may be asked for what.

`NameService` is what a mount needs of a nameserver, `BlockStore` what anything that keeps
blocks offers. Everything here is implemented at least twice (in process and over HTTP; in
memory and on disk), and every implementation is held to one contract suite.

Failures are `EverfoldError`s, nothing else. Every remote implementation has a deadline on
every call and raises TIMEOUT or UNAVAILABLE, never hangs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from everfold import wire
from everfold.fileslice import FileSlice
from everfold.model import BlockId, SpaceId, SpaceUsage

T_co = TypeVar("T_co", covariant=True)


class NameService(Protocol):
    """The nameserver, as a mount sees it: one method a verb of `wire.CALLS`.

    The caller is known (token, or an in-process identity); what it may not know of is
    NOT_FOUND. Answers about the tree carry the `seq` as of which they are true.
    """

    def session(self, ask: wire.Hello) -> wire.Session: ...
    def lookup(self, ask: wire.Lookup) -> wire.Found: ...
    def listdir(self, ask: wire.ListDir) -> wire.Listing: ...
    def attrs(self, ask: wire.GetAttrs) -> wire.Attrs: ...
    def extents(self, ask: wire.GetExtents) -> wire.FileExtents: ...
    def list_many(self, ask: wire.ListMany) -> wire.Listings: ...
    def many_extents(self, ask: wire.GetManyExtents) -> wire.ManyExtents: ...
    def xattrs(self, ask: wire.GetXattrs) -> wire.Xattrs: ...
    def commit(self, ask: wire.Commit) -> wire.Committed: ...
    def reserve(self, ask: wire.Reserve) -> wire.Reserved: ...
    def plan(self, ask: wire.Plan) -> wire.Placements: ...
    def locate(self, ask: wire.Locate) -> wire.Located: ...
    def report_bad(self, ask: wire.ReportBad) -> wire.Done: ...
    def feed(self, ask: wire.FeedPoll) -> wire.Feed: ...
    def set_lock(self, ask: wire.SetLock) -> wire.Granted: ...
    def test_lock(self, ask: wire.TestLock) -> wire.Blocking: ...
    def drop_locks(self, ask: wire.DropLocks) -> wire.Done: ...
    def take_locks(self, ask: wire.TakeLocks) -> wire.LockLease: ...
    def give_locks(self, ask: wire.GiveLocks) -> wire.LocksKept: ...
    def teams(self, ask: wire.GetTeams) -> wire.Teams: ...
    def history(self, ask: wire.GetHistory) -> wire.History: ...
    def history_names(self, ask: wire.GetHistoryNames) -> wire.HistoryNames: ...
    def resolve(self, ask: wire.ResolvePath) -> wire.Resolved: ...
    def lease(self, ask: wire.TakeLease) -> wire.Lease: ...
    def usage(self, ask: wire.GetUsage) -> SpaceUsage: ...
    def bye(self, ask: wire.Bye) -> wire.Done: ...


class BlockStore(Protocol):
    """Something that keeps blocks: a disk, a node, several nodes, a cache before one of them.

    Blocks of different spaces never meet: the same bytes in two spaces are two blocks.
    """

    def put(self, space: SpaceId, block: BlockId, data: bytes | memoryview) -> None:
        """Keep a block. On return it survives a crash of the process and of the machine.

        Putting what is already kept changes nothing. CORRUPT when `data` are not the bytes
        of `block`, NO_SPACE when the store is full, UNAVAILABLE when it cannot be reached.
        """
        ...

    def put_many(
        self, space: SpaceId, blocks: Sequence[tuple[BlockId, bytes | memoryview]]
    ) -> None:
        """Keep several blocks with one wait for the disk. On an error some may be kept."""
        ...

    def get(self, space: SpaceId, block: BlockId) -> bytes:
        """Return the bytes, verified. NOT_FOUND when not kept, CORRUPT when they rotted."""
        ...

    def get_many(self, space: SpaceId, blocks: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """Return those that are kept and sound."""
        ...

    def size_of(self, space: SpaceId, block: BlockId) -> int | None:
        """Return the block's size, or None when it is not kept; does not read it."""
        ...

    def delete(self, space: SpaceId, block: BlockId) -> bool:
        """Forget a block; tell whether it was there."""
        ...

    def blocks(self) -> Iterator[wire.Held]:
        """Yield everything kept, in no order; what comes or goes meanwhile may be missed."""
        ...


class Clock(Protocol):
    """Time, so that tests can move it."""

    def time_ns(self) -> int:
        """Return nanoseconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never steps."""
        ...


class Pending(Protocol[T_co]):
    """The answer to a request that was sent. Of whoever began it, and of one thread at a time.

    What was handed over as a body must stay unchanged until `result` or `cancel` has returned:
    a kept connection that the server closed meanwhile is replaced, and the request sent again.
    """

    def is_ready(self, within_s: float = 0.0) -> bool:
        """Wait up to `within_s`; tell whether `result` would have something to work on."""
        ...

    def result(self) -> T_co:
        """Receive the answer and return it; to be called once.

        Raises all that the whole call could, also what failed while it was being sent. The
        deadline is the one given at the beginning.
        """
        ...

    def cancel(self) -> None:
        """Give the answer up. The server may do what it was asked, or not."""
        ...


class Transport(Protocol):
    """One server, over a socket or in process; connections are pooled, threads may share it."""

    base_url: str

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: bytes | memoryview | FileSlice | Iterable[bytes | memoryview] | None = None,
        timeout_s: float,
    ) -> tuple[int, dict[str, str], bytes]:
        """Return (status, headers with lower-case names, body). The headers are not to be changed.

        TIMEOUT when the server does not answer within `timeout_s`, UNAVAILABLE when it
        cannot be reached or hangs up. No retries here. An iterable body comes with a
        Content-Length header of the caller's.
        """
        ...

    def begin(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: bytes | memoryview | FileSlice | Iterable[bytes | memoryview] | None = None,
        timeout_s: float,
    ) -> Pending[tuple[int, dict[str, str], bytes]]:
        """Send what `request` sends, and return without waiting for the answer.

        Only a request that cannot be written down (INVALID) is refused here; everything else
        that fails is told by the answer's `result`.
        """
        ...

    def close(self) -> None:
        """Close the pooled connections."""
        ...
