"""What the node tells of itself: Prometheus text and plain variables, from one dictionary."""

from __future__ import annotations

import threading
from typing import Any, Final

from datanode.node import Node
from everfold import traffic
from everfold.exchange import Request
from everfold.model import NodeState
from everfold.traffic import Traffic

_BLOCK: Final = "/v1/blocks/"
_KINDS: Final = {
    "/v1/blocks": "put-many",
    "/v1/blocks/fetch": "fetch",
    "/v1/copy": "copy",
    **dict.fromkeys(("/healthz", "/readyz", "/metrics", "/debug/vars"), "health"),
}


def kind_of(method: str, path: str) -> str:
    """Return what kind of request this is; one of a few."""
    if path == "/v1/blocks" and method == "GET":
        return "list"
    known = _KINDS.get(path)
    return known or (method.lower() if path.startswith(_BLOCK) else "other")


def direct_kind(request: Request) -> str | None:
    """Return what kind of call about blocks this is, of those that Flask does not answer."""
    kind = kind_of(request.method, request.path)
    return kind if kind in ("put", "get", "head", "put-many", "fetch") else None


def variables(node: Node) -> dict[str, Any]:
    """Return the node's figures as values."""
    blocks, used = node.ledger.totals()
    return {
        "node": node.identity.id,
        "url": node.identity.url,
        "zone": node.identity.zone,
        "state": node.state.value,
        "blocks": blocks,
        "used_bytes": used,
        "free_bytes": node.store.free(),
        "capacity_bytes": node.identity.capacity,
        "threads": threading.active_count(),
        "counters": dict(sorted(node.counters.items())),
    }


def text(node: Node, answered: Traffic) -> str:
    """Return the figures in Prometheus' text form."""
    figures = variables(node)
    name = node.identity.id
    lines = traffic.text(answered, "everfold_datanode", name)
    for field in ("blocks", "used_bytes", "free_bytes", "capacity_bytes", "threads"):
        lines.append(f"# TYPE everfold_datanode_{field} gauge")
        lines.append(f'everfold_datanode_{field}{{node="{name}"}} {figures[field]}')
    lines.append("# TYPE everfold_datanode_state gauge")
    lines += [
        f'everfold_datanode_state{{node="{name}",state="{state.value}"}} {int(state is node.state)}'
        for state in NodeState
    ]
    for field, value in figures["counters"].items():
        lines.append(f"# TYPE everfold_datanode_{field}_total counter")
        lines.append(f'everfold_datanode_{field}_total{{node="{name}"}} {value}')
    return "\n".join(lines) + "\n"
