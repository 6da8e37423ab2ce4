"""What the node tells of itself: Prometheus text and plain variables, from one dictionary."""

from __future__ import annotations

import threading
from typing import Any

from datanode.node import Node


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


def text(node: Node) -> str:
    """Return the figures in Prometheus' text form."""
    figures = variables(node)
    label = f'{{node="{node.identity.id}"}}'
    lines = []
    for name in ("blocks", "used_bytes", "free_bytes", "threads"):
        lines += [f"# TYPE everfold_{name} gauge", f"everfold_{name}{label} {figures[name]}"]
    for name, value in figures["counters"].items():
        lines += [f"# TYPE everfold_{name}_total counter", f"everfold_{name}_total{label} {value}"]
    return "\n".join(lines) + "\n"
