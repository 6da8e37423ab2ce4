"""Where the bytes of a file are: block by block, node by node, as the replica map says now."""

from __future__ import annotations

from typing import Any, Final

from everfold.model import Ino, NodeId, Seq, SpaceId
from nameserver.db import Database, select_in
from nameserver.nodes import LIVE, NodeBook
from nameserver.tree import extents

Json = dict[str, Any]
BLOCKS_MAX: Final = 1000  # told of one file
_COPIES: Final = "SELECT block, node, is_bad FROM replica WHERE space_id = ? AND block IN ({})"


def replica_map(db: Database, nodes: NodeBook, content: tuple[SpaceId, Ino, Seq]) -> Json:
    """Return each block of a content with the nodes that have it.

    `copies` counts those that can be read: sound, on a node that answers.
    """
    space, ino, seq = content
    with db.read() as cx:
        members = nodes.members(cx)
        found = extents.at(cx, space, ino, seq)
        told = found[:BLOCKS_MAX]
        copies: dict[bytes, list[tuple[NodeId, bool]]] = {}
        for block, node, is_bad in select_in(cx, _COPIES, (space,), {e.block for e in told}):
            copies.setdefault(bytes(block), []).append((node, bool(is_bad)))
    blocks: list[Json] = []
    holders: set[NodeId] = set()
    for extent in told:
        known = [(n, is_bad) for n, is_bad in sorted(copies.get(extent.block, [])) if n in members]
        holders.update(node for node, _ in known)
        blocks.append(
            {
                "block": extent.block.hex(),
                "offset": extent.offset,
                "length": extent.length,
                "copies": sum(members[n].state in LIVE and not is_bad for n, is_bad in known),
                "replicas": [
                    {"node": n, "state": members[n].state.value, "bad": is_bad}
                    for n, is_bad in known
                ],
            }
        )
    return {"blocks": blocks, "block_count": len(found), "nodes": sorted(holders)}
