"""What datanodes say to a nameserver, and the commands that come back."""

from __future__ import annotations

from everfold.model import BlockId, NodeId, NodeState, Record, SpaceId


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
    `took`, `gave`: bytes of blocks since the last beat that was answered, for the load's figures.
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
    took: int = 0
    gave: int = 0


class BeatReply(Record, frozen=True):
    """`state` FAILED or REMOVED: the node refuses every block call until that changes."""

    state: NodeState
    beat_s: float
    commands: list[Command]
