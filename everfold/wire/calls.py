"""What mounts say to a nameserver, and what it answers."""

from __future__ import annotations

from everfold.model import (
    NOW,
    SIZE_MAX,
    Attr,
    BlockId,
    Entry,
    Extent,
    HistoryName,
    Ino,
    Lock,
    MountId,
    Node,
    NodeId,
    Record,
    Seq,
    SpaceId,
    Version,
)
from everfold.wire.ops import AnyOp, Result


class Hello(Record, frozen=True):
    """A mount introduces itself; the same `mount` may say it again and again."""

    mount: MountId
    label: str  # shown to people: host and mountpoint
    space: str = ""  # name of the space, "" = the user's own
    read_only: bool = False


class Session(Record, frozen=True):
    """What a mount must know to work. `last_op`: the last operation of it that was applied.

    `quota_left`: bytes that may still be stored in the space, None without a quota; with each
    commit and lease it is told anew. `size_max`: of one file.
    """

    space: SpaceId
    space_name: str
    user: str
    device: str
    seq: Seq
    last_op: int
    min_replicas: int
    nodes: list[Node]
    block_token: str  # for the datanodes, good for this space
    block_token_expires: float  # seconds since the epoch
    session_ttl_s: float  # locks fall when the mount is silent for so long
    quota_left: int | None = None
    size_max: int = SIZE_MAX
    read_only: bool = False  # whoever mounts it may not change it, or said that it only reads
    teams: int = 0  # see `Feed`
    token: str = ""  # the mount's own: to be shown from now on; "": the one that it came with


class Lookup(Record, frozen=True):
    """Find one name. The answer's `seq` tells as of which commit it is true."""

    space: SpaceId
    parent: Ino
    name: bytes
    seq: Seq = NOW


class Found(Record, frozen=True):
    """`entry` is None when there is no such name."""

    seq: Seq
    entry: Entry | None


class ListDir(Record, frozen=True):
    """List a directory in name order from after `after`, at most `limit` entries."""

    space: SpaceId
    ino: Ino
    after: bytes = b""
    limit: int = 10_000
    seq: Seq = NOW


class Listing(Record, frozen=True):
    """`attr` is the directory's own; `more`: ask again after the last name."""

    seq: Seq
    attr: Attr
    parent: Ino  # the directory's own parent; itself for the root
    entries: list[Entry]
    more: bool


class ListMany(Record, frozen=True):
    """List directories as they are now, with up to `limit` names each (256 in a question)."""

    space: SpaceId
    inos: list[Ino]
    limit: int = 1_000


class Listings(Record, frozen=True):
    """Whole listings, in the order of the question, about 10,000 names together.

    What is gone, is no directory, has more names, or comes after these is left out.
    """

    seq: Seq
    found: list[Listing]


class GetAttrs(Record, frozen=True):
    """Attributes of several inodes; those that are gone are left out of the answer."""

    space: SpaceId
    inos: list[Ino]
    seq: Seq = NOW


class Attrs(Record, frozen=True):
    """Answer of `GetAttrs`."""

    seq: Seq
    attrs: list[Attr]


class GetExtents(Record, frozen=True):
    """The extents of a file that touch ``[offset, offset + length)``."""

    space: SpaceId
    ino: Ino
    offset: int = 0
    length: int = (1 << 63) - 1
    seq: Seq = NOW


class FileExtents(Record, frozen=True):
    """Sorted, disjoint extents; `where` tells on which nodes each block of them is."""

    seq: Seq
    size: int
    version: int
    extents: list[Extent]
    where: dict[BlockId, list[NodeId]]
    author: str = ""  # who wrote this content


class GetManyExtents(Record, frozen=True):
    """All extents of several files, as they are now; for those that are small."""

    space: SpaceId
    inos: list[Ino]


class ManyExtents(Record, frozen=True):
    """See `FileExtents`. Files without extents, and those beyond what one answer holds, are
    left out, as what is no file or has no name any more."""

    seq: Seq
    files: dict[Ino, list[Extent]]
    where: dict[BlockId, list[NodeId]]


class GetXattrs(Record, frozen=True):
    """All extended attributes of an inode."""

    space: SpaceId
    ino: Ino
    seq: Seq = NOW


class Xattrs(Record, frozen=True):
    """Answer of `GetXattrs`."""

    seq: Seq
    values: dict[bytes, bytes]


class Stored(Record, frozen=True):
    """A block that the client put, and the nodes that acknowledged it."""

    block: BlockId
    size: int
    nodes: list[NodeId]


class Commit(Record, frozen=True):
    """Apply `ops` in order in one transaction.

    `epoch`: of the write lease under which they were answered before this call, 0 for none.
    When the lease has been another's since, they are taken as late (see `Write.is_late`).
    Every block that a Write names must be on min_replicas nodes, or named by history already:
    else the whole batch is UNAVAILABLE and nothing of it is applied.
    While another mount holds the lease it is recalled, and the call waits; BUSY after a while.

    The operations are those numbered `first_op`, `first_op` + 1, … of this mount. A retry
    (also in another grouping) never applies one twice: what was applied before is answered
    as it was then.
    """

    space: SpaceId
    mount: MountId
    first_op: int
    ops: list[AnyOp]
    stored: list[Stored] = []
    epoch: int = 0


class Committed(Record, frozen=True):
    """`seq` is the space's commit number after the batch (durable); one result an operation.

    Of a retry of the mount's last batch it is the number after that, whatever came since.
    """

    seq: Seq
    results: list[Result]
    first: Seq = NOW  # the batch's commits are `first` … `seq`; 0 when nothing was applied now
    quota_left: int | None = None  # see `Session`


class Reserve(Record, frozen=True):
    """Ask for `count` fresh inode numbers."""

    space: SpaceId
    count: int


class Reserved(Record, frozen=True):
    """The numbers `first` … `first` + `count` - 1 are the mount's alone."""

    first: Ino
    count: int


class Plan(Record, frozen=True):
    """Where shall these (block, size) go? `avoid`: nodes that just failed the client.

    `spares`: how many places for small blocks the client would like to know beforehand.
    """

    space: SpaceId
    blocks: list[tuple[BlockId, int]]
    avoid: list[NodeId] = []
    spares: int = 0


class Placements(Record, frozen=True):
    """Per block: None when the cluster has it already, else the nodes to write to.

    The blocks are kept from the garbage collector for the grace period. `nodes` describes
    every node named. Each of `spares` is a place that small blocks may be put to without
    asking, for `spares_s` seconds from the answer on, and be committed by then.
    """

    targets: list[list[NodeId] | None]
    nodes: list[Node]
    block_token: str
    block_token_expires: float
    spares: list[list[NodeId]] = []
    spares_s: float = 0.0


class Locate(Record, frozen=True):
    """Which nodes have these blocks now?"""

    space: SpaceId
    blocks: list[BlockId]


class Located(Record, frozen=True):
    """`where` leaves out blocks that no node has; best node first."""

    where: dict[BlockId, list[NodeId]]
    nodes: list[Node]
    block_token: str
    block_token_expires: float


class ReportBad(Record, frozen=True):
    """A replica gave bytes that do not match, or said that it has not the block."""

    space: SpaceId
    block: BlockId
    node: NodeId
    reason: str  # "corrupt" | "missing"


class FeedPoll(Record, frozen=True):
    """Wait up to `wait_s` for commits after `after`, or for `locks`/`nodes` to move on."""

    space: SpaceId
    mount: MountId
    after: Seq
    wait_s: float
    locks: int = 0  # the counters of the last answer
    nodes: int = 0
    epoch: int = 0  # of the write lease that the mount holds: renewed by asking
    grants_locks: bool = False  # the mount believes that it grants the space's locks
    teams: int = 0  # as `locks` and `nodes`


class Change(Record, frozen=True):
    """What one commit did to one thing.

    "entry": `name` in `parent` leads to `ino` now, or to nothing when `ino` is 0; the
    directory's own attributes changed too. "attr": attributes (or xattrs) of `ino`.
    "data": its bytes in ``[offset, offset+length)`` and its attributes. "gone": `ino` lost
    its last name.
    """

    what: str  # "entry" | "attr" | "data" | "gone"
    ino: Ino
    parent: Ino = Ino(0)
    name: bytes = b""
    offset: int = 0
    length: int = 0


class CommitEvent(Record, frozen=True):
    """One commit, as the feed tells it."""

    seq: Seq
    at_ns: int
    user: str
    device: str
    mount: MountId
    changes: list[Change]


class Feed(Record, frozen=True):
    """Events in order. `is_reset`: too far behind; forget everything and go on from `seq`."""

    seq: Seq
    events: list[CommitEvent]
    locks: int
    nodes: int
    is_reset: bool = False
    node_list: list[Node] = []  # given when `nodes` moved
    lease_left_s: float = 0.0  # how long the lease of `epoch` is good from now on
    is_recalled: bool = False  # another mount wants to write
    are_locks_recalled: bool = False  # another mount wants a lock: `GiveLocks`
    teams: int = 0  # moves when team folders come, go or change in this home space: `GetTeams`


class SetLock(Record, frozen=True):
    """Take or drop a lock; one conflict: WOULD_BLOCK.

    With `is_waiting` the caller is going to try again until it gets it: the nameserver notes
    who waits for whom, and answers DEADLOCK when that closes a circle. The feed's `locks`
    counter moves on whenever locks of the space fall.
    """

    space: SpaceId
    mount: MountId
    lock: Lock
    is_waiting: bool = False


class Granted(Record, frozen=True):
    """The lock is taken or dropped; `seq` is the space's commit number at that moment.

    A mount that took a lock first follows the feed up to `seq`, so that it sees all that was
    written under the lock before.
    """

    seq: Seq


class TestLock(Record, frozen=True):
    """Ask which lock would stand in the way of this one (as F_GETLK)."""

    space: SpaceId
    mount: MountId
    lock: Lock


class Blocking(Record, frozen=True):
    """The first conflicting lock, or None. `mount` is whose it is."""

    lock: Lock | None
    mount: MountId = MountId("")


class DropLocks(Record, frozen=True):
    """Drop every lock of an owner on an inode (close), or of the whole mount (`owner` None)."""

    space: SpaceId
    mount: MountId
    owner: int | None = None
    ino: Ino = Ino(0)


class TakeLocks(Record, frozen=True):
    """Ask to grant locks to this mount's programs without a call, under the write lease `epoch`.

    From then on another mount that asks for a lock, or about one, has that recalled through the
    feed and waits for `GiveLocks`; BUSY after a while, and WOULD_BLOCK while the holder is
    silent. It falls with the mount's session, as its locks do.
    """

    space: SpaceId
    mount: MountId
    epoch: int


class LockLease(Record, frozen=True):
    """Not `is_granted`: another wanted a lock a moment ago, or the write lease is not good.

    `remote`: inodes on which other mounts hold locks. Locks on those are still taken and
    dropped with `SetLock`.
    """

    is_granted: bool
    remote: list[Ino] = []


class GiveLocks(Record, frozen=True):
    """Grant locks no more: `locks` are all that the mount's programs hold now.

    All that was written before is in the cluster by now. Also said after the session was lost:
    then what others were granted meanwhile stays theirs.
    """

    space: SpaceId
    mount: MountId
    locks: list[Lock]


class LocksKept(Record, frozen=True):
    """`lost`: those that another's lock is in the way of; the mount had been silent too long."""

    lost: list[Lock]


class GetHistory(Record, frozen=True):
    """The versions that were visible at a name, newest last."""

    space: SpaceId
    parent: Ino
    name: bytes


class History(Record, frozen=True):
    """Answer of `GetHistory`; empty when the name never was."""

    seq: Seq
    versions: list[Version]


class GetHistoryNames(Record, frozen=True):
    """The names of a directory that have history, deleted ones too."""

    space: SpaceId
    parent: Ino


class HistoryNames(Record, frozen=True):
    """Answer of `GetHistoryNames`, in name order."""

    seq: Seq
    names: list[HistoryName]


class ResolvePath(Record, frozen=True):
    """Walk names from the root; symlinks are not followed."""

    space: SpaceId
    names: list[bytes]
    seq: Seq = NOW


class Resolved(Record, frozen=True):
    """The directory of the last name, and what is there now (None: nothing)."""

    seq: Seq
    parent: Ino
    entry: Entry | None


class TakeLease(Record, frozen=True):
    """Ask for the space's write lease; with an `epoch`, give that one back."""

    space: SpaceId
    mount: MountId
    epoch: int = 0


class Lease(Record, frozen=True):
    """`epoch` 0: not now (another holds it, or wrote a moment ago).

    The holder alone may answer changes before they are committed, after it has followed the
    feed up to `seq`.
    """

    epoch: int
    left_s: float
    seq: Seq
    quota_left: int | None = None  # see `Session`


class GetTeams(Record, frozen=True):
    """Which team folders stand in this home space?"""

    space: SpaceId


class TeamPlace(Record, frozen=True):
    """A team folder, and the names that lead from the home's root to its place.

    The place is an empty directory, to be covered by a mount of the team's space.
    """

    space: SpaceId
    space_name: str  # for `Hello`
    ino: Ino  # of the place, in the home space
    names: list[bytes]
    read_only: bool


class Teams(Record, frozen=True):
    """Answer of `GetTeams`."""

    teams: list[TeamPlace]


class GetUsage(Record, frozen=True):
    """Ask for the figures behind statfs."""

    space: SpaceId


class Bye(Record, frozen=True):
    """A mount ends in order: its session and locks fall."""

    space: SpaceId
    mount: MountId


class Done(Record, frozen=True):
    """Nothing more to say."""
