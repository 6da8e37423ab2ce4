"""The tree to the outside: one method a verb of `wire.CALLS`, one transaction a call.

Who may ask is decided before: nothing here knows permissions, tokens or sessions.
"""

from __future__ import annotations

from typing import Final

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import NOW, SIZE_MAX, MountId, SpaceId, SpaceUsage
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.feed import Bell
from nameserver.tree import history, reads, spaces
from nameserver.tree.batch import Author
from nameserver.tree.commit import Committer
from nameserver.tree.ledger import BlockLedger
from nameserver.tree.reads import Moment

_SEAL_ALL: Final = (
    "UPDATE version INDEXED BY version_open SET is_sealed = 1"
    " WHERE space_id = ? AND mount = ? AND is_sealed = 0"
)


class Tree:
    """The temporal trees of all spaces in one database. Threads may share it."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        blocks: BlockLedger,
        bell: Bell,
        *,
        min_replicas: int = 1,
        max_file_size: int = SIZE_MAX,
    ) -> None:
        self._db = db
        self._clock = clock
        self._blocks = blocks
        self._bell = bell
        self._committer = Committer(blocks, min_replicas, max_file_size)
        self._digests = history.Digests()
        self.batches = self.operations = 0  # committed by this process, for its metrics

    # ------------------------------------------------------------ changing

    def commit(self, ask: wire.Commit, author: tuple[str, str]) -> wire.Committed:
        """Apply a batch (see `wire.Commit`) in the name of (user, device); durable on return."""
        with self._db.write() as cx:
            answer = self._committer.run(cx, ask, Author(*author), self._clock.time_ns())
            self._bell.announce(cx, ask.space)
        self._bell.ring(ask.space, by=ask.mount)
        self.batches += 1
        self.operations += len(ask.ops)
        return answer

    def reserve(self, ask: wire.Reserve) -> wire.Reserved:
        """See `wire.Reserve`."""
        with self._db.write() as cx:
            return spaces.reserve(cx, ask)

    def seal_all(self, cx: Cx, space: SpaceId, mount: MountId) -> int:
        """Complete every version that a mount left open (it ended, or went quiet)."""
        return cx.run(_SEAL_ALL, space, mount)

    # ------------------------------------------------------------ reading

    def lookup(self, ask: wire.Lookup) -> wire.Found:
        """See `wire.Lookup`; NOT_FOUND, NOT_DIR for the parent."""
        with self._db.read() as cx:
            moment = Moment(cx, ask.space, ask.seq)
            return wire.Found(moment.seq, moment.entry(ask.parent, ask.name))

    def listdir(self, ask: wire.ListDir) -> wire.Listing:
        """See `wire.ListDir`; NOT_FOUND, NOT_DIR."""
        with self._db.read() as cx:
            return reads.listing(Moment(cx, ask.space, ask.seq), ask)

    def attrs(self, ask: wire.GetAttrs) -> wire.Attrs:
        """See `wire.GetAttrs`."""
        with self._db.read() as cx:
            return reads.attrs(Moment(cx, ask.space, ask.seq), ask)

    def extents(self, ask: wire.GetExtents) -> wire.FileExtents:
        """See `wire.GetExtents`; NOT_FOUND, also for an inode that has no name any more."""
        with self._db.read() as cx:
            return Moment(cx, ask.space, ask.seq).extents(ask, self._blocks)

    def list_many(self, ask: wire.ListMany) -> wire.Listings:
        """See `wire.ListMany`."""
        with self._db.read() as cx:
            return reads.listings(Moment(cx, ask.space, NOW), ask)

    def many_extents(self, ask: wire.GetManyExtents) -> wire.ManyExtents:
        """See `wire.GetManyExtents`."""
        with self._db.read() as cx:
            return reads.many_extents(Moment(cx, ask.space, NOW), ask, self._blocks)

    def xattrs(self, ask: wire.GetXattrs) -> wire.Xattrs:
        """See `wire.GetXattrs`; NOT_FOUND."""
        with self._db.read() as cx:
            moment = Moment(cx, ask.space, ask.seq)
            return wire.Xattrs(moment.seq, moment.xattrs(ask.ino))

    def resolve(self, ask: wire.ResolvePath) -> wire.Resolved:
        """See `wire.ResolvePath`; NOT_FOUND, NOT_DIR for a directory on the way.

        No names at all: the root, as an entry without a name.
        """
        with self._db.read() as cx:
            moment = Moment(cx, ask.space, ask.seq)
            parent, entry = moment.walk(ask.names)
            return wire.Resolved(moment.seq, parent, entry)

    def history(self, ask: wire.GetHistory) -> wire.History:
        """See `wire.GetHistory`."""
        with self._db.read() as cx:
            moment = Moment(cx, ask.space, NOW)
            found = history.versions(cx, ask.space, ask.parent, ask.name, self._digests)
            return wire.History(moment.seq, found)

    def history_names(self, ask: wire.GetHistoryNames) -> wire.HistoryNames:
        """See `wire.GetHistoryNames`; also of a directory that was deleted."""
        with self._db.read() as cx:
            moment = Moment(cx, ask.space, NOW)
            return wire.HistoryNames(moment.seq, history.names(cx, ask))

    def usage(self, ask: wire.GetUsage, *, free: int = 0, capacity: int = 0) -> SpaceUsage:
        """See `wire.GetUsage`; `free` and `capacity` are what the caller knows of the nodes."""
        with self._db.read() as cx:
            row = cx.one(
                "SELECT s.live_bytes, s.history_bytes, a.quota, s.inodes FROM space s"
                " JOIN account a ON a.id = s.owner_id WHERE s.id = ?",
                ask.space,
            )
        if row is None:
            raise EverfoldError(Kind.NOT_FOUND, "no such space", str(ask.space))
        return SpaceUsage(*(*row, free, capacity))
