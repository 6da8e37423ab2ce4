"""What travels, defined once for both sides.

Two forms. The *hot* calls (mount to nameserver, datanode to nameserver) are
``POST /v1/<verb>`` with a msgpack array as body, one request record and one reply record
each, listed in `CALLS`. The *block* calls carry raw bytes: one block in a body, or many as
frames (`pack_frames`). Everything for people and scripts is JSON (`/api`, `/admin`).

Every failure, on every route, is JSON ``{"error": {"kind", "message", "subject"}}`` with the
status of its kind. The version is in the path; records grow only at their end, with defaults.
Requests carry ``X-Request-Id``, which every log line on the way repeats.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from everfold.errors import EverfoldError, Kind
from everfold.model import (
    NOW,
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
    NodeState,
    Record,
    Seq,
    SpaceId,
    SpaceUsage,
    Version,
)

MSGPACK: Final = "application/vnd.everfold+msgpack"
FRAMES: Final = "application/vnd.everfold.frames"
REQUEST_ID: Final = "X-Request-Id"
FRAME: Final = struct.Struct("<32sI")  # block name, length; the bytes follow

# ---------------------------------------------------------------- operations of a commit


class Op(Record, frozen=True, tag_field="op"):
    """One change of a tree; `time_ns` is the client's clock and becomes mtime/ctime."""


class Make(Op, tag="make", frozen=True):
    """Create `name` in `parent` as the new inode `ino` (from `reserve`): any type.

    `mode` is final (umask and setgid inheritance already applied). EXISTS when the name is
    taken, NOT_FOUND when the parent is gone, NOT_DIR when it is no directory.
    """

    parent: Ino
    name: bytes
    ino: Ino
    mode: int
    uid: int
    gid: int
    time_ns: int
    rdev: int = 0
    target: bytes = b""


class Link(Op, tag="link", frozen=True):
    """Give the non-directory `ino` another name. EXISTS, TOO_MANY_LINKS, NOT_PERMITTED."""

    ino: Ino
    parent: Ino
    name: bytes
    time_ns: int


class Unlink(Op, tag="unlink", frozen=True):
    """Remove a name. `ino` is what the client saw there (0: whatever it is), else CONFLICT.

    With `is_rmdir` the name must be an empty directory (NOT_DIR, NOT_EMPTY), without it
    anything else (IS_DIR).
    """

    parent: Ino
    name: bytes
    ino: Ino
    is_rmdir: bool
    time_ns: int


RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class Rename(Op, tag="rename", frozen=True):
    """Move a name, as renameat2(2). `ino`/`replaced` are what the client saw at both ends.

    `ino` 0 skips the check of the source; `replaced` None skips that of the target, 0 means
    "nothing was there". CONFLICT when either is different now. Moving a directory into
    itself: INVALID.
    """

    parent: Ino
    name: bytes
    new_parent: Ino
    new_name: bytes
    time_ns: int
    ino: Ino = Ino(0)
    replaced: Ino | None = None
    flags: int = 0


class SetAttr(Op, tag="setattr", frozen=True):
    """Set what is not None. ctime becomes `time_ns`. Size is changed by `Write` alone."""

    ino: Ino
    time_ns: int
    mode: int | None = None  # permission bits only (07777)
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class SetXattr(Op, tag="setxattr", frozen=True):
    """Set an extended attribute; flags as setxattr(2): 1 CREATE (EXISTS), 2 REPLACE (NO_ATTR)."""

    ino: Ino
    name: bytes
    value: bytes
    flags: int
    time_ns: int


class RemoveXattr(Op, tag="removexattr", frozen=True):
    """Remove an extended attribute; NO_ATTR when there is none."""

    ino: Ino
    name: bytes
    time_ns: int


class Write(Op, tag="write", frozen=True):
    """Change the bytes of a file, in this order: cut, lay holes, lay extents, set the size.

    `cut`: everything from there on is dropped first (the smallest size that the file had
    since the last Write), None: nothing is. `holes` are (offset, length) that become holes.
    `extents` cover what they cover. `base` is the version `k` that the writer had seen; when
    another mount has written since, the result says `conflict` and the overwritten version
    is marked. A Write with `is_sealed` completes a version; without it the open version of
    this mount is replaced by the next Write of the same mount.

    `is_late`: replayed from a journal after the mount was away. If the base is stale then,
    the current content stays, and this one is kept as a version marked as a conflict.

    Every block named must be on min_replicas nodes (UNAVAILABLE otherwise).
    """

    ino: Ino
    base: int
    size: int
    mtime_ns: int
    time_ns: int
    extents: list[Extent]
    holes: list[tuple[int, int]] = []
    cut: int | None = None
    is_sealed: bool = True
    is_late: bool = False
    mode: int | None = None  # when the write took setuid/setgid away


class Seal(Op, tag="seal", frozen=True):
    """Complete the open version of a file that went quiet or was closed; no-op if sealed."""

    ino: Ino
    time_ns: int


class Restore(Op, tag="restore", frozen=True):
    """Make version `number` of a name its content again, by reference, as a new version.

    When the name is live its file keeps its inode, owner and mode; when it was deleted it is
    made again as `ino` (a reserved number) with the mode and owner it had.
    `from_parent`/`from_name`: whose history, when it is not the name's own (a `mv` out of
    another `.versions/`).
    """

    parent: Ino
    name: bytes
    number: int
    ino: Ino
    time_ns: int
    from_parent: Ino = Ino(0)
    from_name: bytes = b""


AnyOp = Make | Link | Unlink | Rename | SetAttr | SetXattr | RemoveXattr | Write | Seal | Restore


class Result(Record, frozen=True):
    """What became of one operation: `kind` "" when it was done, else the error's kind."""

    kind: str = ""
    message: str = ""
    ino: Ino = Ino(0)  # the inode concerned
    version: int = 0  # of Write, Seal, Restore: the k that the content has now
    conflict: bool = False  # of Write: another's version was overwritten unseen

    def check(self) -> None:
        """Raise the error that this result carries, if it carries one."""
        if self.kind:
            raise EverfoldError.from_wire({"kind": self.kind, "message": self.message})


# ---------------------------------------------------------------- mount <-> nameserver


class Hello(Record, frozen=True):
    """A mount introduces itself; the same `mount` may say it again and again."""

    mount: MountId
    label: str  # shown to people: host and mountpoint
    space: str = ""  # name of the space, "" = the user's own
    read_only: bool = False


class Session(Record, frozen=True):
    """What a mount must know to work. `last_op`: the last operation of it that was applied."""

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

    The operations are those numbered `first_op`, `first_op` + 1, … of this mount. A retry
    (also in another grouping) never applies one twice: what was applied before is answered
    as it was then.
    """

    space: SpaceId
    mount: MountId
    first_op: int
    ops: list[AnyOp]
    stored: list[Stored] = []


class Committed(Record, frozen=True):
    """`seq` is the space's commit number after the batch (durable); one result an operation."""

    seq: Seq
    results: list[Result]


class Reserve(Record, frozen=True):
    """Ask for `count` fresh inode numbers."""

    space: SpaceId
    count: int


class Reserved(Record, frozen=True):
    """The numbers `first` … `first` + `count` - 1 are the mount's alone."""

    first: Ino
    count: int


class Plan(Record, frozen=True):
    """Where shall these (block, size) go? `avoid`: nodes that just failed the client."""

    space: SpaceId
    blocks: list[tuple[BlockId, int]]
    avoid: list[NodeId] = []


class Placements(Record, frozen=True):
    """Per block: None when the cluster has it already, else the nodes to write to.

    The blocks are kept from the garbage collector for the grace period. `nodes` describes
    every node named.
    """

    targets: list[list[NodeId] | None]
    nodes: list[Node]
    block_token: str
    block_token_expires: float


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


class GetUsage(Record, frozen=True):
    """Ask for the figures behind statfs."""

    space: SpaceId


class Bye(Record, frozen=True):
    """A mount ends in order: its session and locks fall."""

    space: SpaceId
    mount: MountId


class Done(Record, frozen=True):
    """Nothing more to say."""


# ---------------------------------------------------------------- datanode <-> nameserver


class Copy(Record, tag_field="do", tag="copy", frozen=True):
    """Pull a block from one of these peers (url, in order of preference)."""

    space: SpaceId
    block: BlockId
    size: int
    sources: list[str]
    token: str


class Drop(Record, tag_field="do", tag="drop", frozen=True):
    """Delete a block; enough verified copies exist elsewhere, or nobody names it any more."""

    space: SpaceId
    block: BlockId


class Verify(Record, tag_field="do", tag="verify", frozen=True):
    """Read a block, check it, and report it: held or bad."""

    space: SpaceId
    block: BlockId


class ListPrefix(Record, tag_field="do", tag="list", frozen=True):
    """Send the whole list of blocks whose name starts with this byte, with the next beat."""

    prefix: int


Command = Copy | Drop | Verify | ListPrefix


class Held(Record, frozen=True):
    """A block that a node has."""

    space: SpaceId
    block: BlockId
    size: int


class PrefixDigest(Record, frozen=True):
    """`count` blocks whose name starts with byte `prefix`; `xor` of `held_digest` of each."""

    prefix: int
    count: int
    xor: int


class PrefixList(Record, frozen=True):
    """All that a node holds under a prefix."""

    prefix: int
    held: list[Held]


class Heartbeat(Record, frozen=True):
    """A node's beat. `added`, `removed`, `bad`: since the last beat that was answered.

    `boot` is a random number of this start of the node; a new one comes with all 256 digests.
    """

    node: NodeId
    url: str
    zone: str
    boot: str
    capacity: int
    used: int
    free: int
    blocks: int
    added: list[Held] = []
    removed: list[Held] = []
    bad: list[Held] = []
    digests: list[PrefixDigest] = []
    lists: list[PrefixList] = []


class BeatReply(Record, frozen=True):
    """`state` FAILED or REMOVED: the node refuses every block call until that changes."""

    state: NodeState
    beat_s: float
    commands: list[Command]


# ---------------------------------------------------------------- the table of hot calls

CALLS: Final[dict[str, tuple[type[Record], type[Record]]]] = {
    "session": (Hello, Session),
    "lookup": (Lookup, Found),
    "listdir": (ListDir, Listing),
    "attrs": (GetAttrs, Attrs),
    "extents": (GetExtents, FileExtents),
    "xattrs": (GetXattrs, Xattrs),
    "commit": (Commit, Committed),
    "reserve": (Reserve, Reserved),
    "plan": (Plan, Placements),
    "locate": (Locate, Located),
    "report-bad": (ReportBad, Done),
    "feed": (FeedPoll, Feed),
    "set-lock": (SetLock, Granted),
    "test-lock": (TestLock, Blocking),
    "drop-locks": (DropLocks, Done),
    "history": (GetHistory, History),
    "history-names": (GetHistoryNames, HistoryNames),
    "resolve": (ResolvePath, Resolved),
    "usage": (GetUsage, SpaceUsage),
    "bye": (Bye, Done),
    "heartbeat": (Heartbeat, BeatReply),
}
"""verb -> (request, reply). `heartbeat` is the datanodes', the rest are the mounts'."""

R = TypeVar("R")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(record: Any) -> bytes:
    """Return the wire form of a record."""
    return _encoder.encode(record)


def decode(raw: bytes | bytearray | memoryview, form: type[R]) -> R:
    """Read a record of type `form`; raise INVALID when the bytes are not one."""
    decoder = _decoders.get(form)
    if decoder is None:
        decoder = _decoders[form] = msgspec.msgpack.Decoder(form)
    try:
        answer: R = decoder.decode(raw)
    except (msgspec.DecodeError, ValueError, TypeError) as err:
        raise EverfoldError(Kind.INVALID, f"not a {form.__name__}: {err}") from err
    return answer


# ---------------------------------------------------------------- many blocks in one body


def pack_frames(blocks: Iterable[tuple[BlockId, bytes | memoryview]]) -> list[bytes | memoryview]:
    """Return the pieces of a body with many blocks, for a scatter write; no bytes are copied.

    A length of 0 stands for "not here" in the answer to a fetch.
    """
    pieces: list[bytes | memoryview] = []
    for block, data in blocks:
        pieces.append(FRAME.pack(block, len(data)))
        if len(data):
            pieces.append(data)
    return pieces


def unpack_frames(body: bytes | memoryview) -> Iterator[tuple[BlockId, memoryview]]:
    """Yield (block, bytes) of a framed body; raise INVALID when it is cut short."""
    view, at = memoryview(body), 0
    while at < len(view):
        if at + FRAME.size > len(view):
            raise EverfoldError(Kind.INVALID, "a frame's head is cut short")
        name, length = FRAME.unpack_from(view, at)
        at += FRAME.size
        if at + length > len(view):
            raise EverfoldError(Kind.INVALID, "a frame is cut short")
        yield BlockId(name), view[at : at + length]
        at += length


def held_digest(space: SpaceId, block: BlockId) -> int:
    """Return the 63-bit number that stands for (space, block) in a `PrefixDigest`."""
    mixed = int.from_bytes(block[8:16], "little") ^ (space * 0x9E3779B97F4A7C15)
    return mixed & 0x7FFF_FFFF_FFFF_FFFF
