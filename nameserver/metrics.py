"""``/metrics``: what this process has answered, and how the cluster stands, for Prometheus.

Counters are this process's own, since its start; gauges of the cluster are the database's, the same
at every process. To count the copies of all blocks is work, so those figures are up to
`_FRESH_S` old, older where counting takes long: never more than a twentieth of the time is spent.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from everfold import traffic
from everfold.model import NodeState

if TYPE_CHECKING:
    from nameserver.service import Service

_FRESH_S: Final = 5.0
_GAUGES: Final = {
    "blocks": "blocks",
    "blocks_under_replicated": "under_replicated",
    "blocks_missing": "missing",
    "replicas_corrupt": "corrupt",
    "copies_under_way": "repairing",
    "space_used_bytes": "space_used",
    "space_free_bytes": "space_free",
    "space_capacity_bytes": "space_capacity",
    "users": "users",
    "spaces": "spaces",
    "inodes": "inodes",
    "live_bytes": "live_bytes",
    "history_bytes": "history_bytes",
    "mounts": "mounts",
}
Json = dict[str, Any]


class Metrics:
    """Answers for one service. Thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()  # guards the two below; held while they are counted
        self._figures: Json = {}
        self._good_until = 0.0

    def text(self) -> str:
        """Return all figures in Prometheus' text form."""
        figures = self._cluster()
        load = self._service.load
        lines = traffic.text(load.traffic, "everfold_nameserver", load.process)
        lines += self._own()
        for name, field in _GAUGES.items():
            lines += _gauge(name, figures[field])
        lines += _counter("commits", figures["commits"])
        lines.append("# TYPE everfold_nodes gauge")
        states = [node["state"] for node in figures["nodes"]]
        lines += [
            f'everfold_nodes{{state="{state.value}"}} {states.count(state.value)}'
            for state in NodeState
            if state is not NodeState.REMOVED
        ]
        for field in ("used", "capacity", "free", "blocks", "to_copy", "silent_s"):
            lines.append(f"# TYPE everfold_node_{field} gauge")
            lines += [
                f'everfold_node_{field}{{node="{node["id"]}"}} {node[field]}'
                for node in figures["nodes"]
            ]
        return "\n".join(lines) + "\n"

    def _own(self) -> list[str]:
        service = self._service
        waited = service.db.waited
        label, turn = f'process="{service.load.process}"', "everfold_nameserver_write_turn_seconds"
        return [
            *_counter("nameserver_operations", service.tree.operations, label),
            *_counter("nameserver_batches", service.tree.batches, label),
            *_gauge("nameserver_threads", threading.active_count(), label),
            "# TYPE everfold_nameserver_write_turn_seconds summary",
            f"{turn}_sum{{{label}}} {waited.total_ns / 1e9:.6f}",
            f"{turn}_count{{{label}}} {waited.count}",
            *(
                f'{turn}{{{label},quantile="{share}"}} {waited.percentile_ns(share) / 1e9:.6f}'
                for share in (0.5, 0.99)
            ),
        ]

    def _cluster(self) -> Json:
        with self._lock:
            began = time.monotonic()
            if began >= self._good_until:
                status = self._service.status
                self._figures = {**status.figures(), **status.system()}
                spent = time.monotonic() - began
                self._good_until = began + max(_FRESH_S, 20 * spent)
            return self._figures


def _gauge(name: str, value: object, label: str = "") -> list[str]:
    return [f"# TYPE everfold_{name} gauge", f"everfold_{name}{_labels(label)} {value}"]


def _counter(name: str, value: object, label: str = "") -> list[str]:
    name = f"everfold_{name}_total"
    return [f"# TYPE {name} counter", f"{name}{_labels(label)} {value}"]


def _labels(label: str) -> str:
    return f"{{{label}}}" if label else ""
