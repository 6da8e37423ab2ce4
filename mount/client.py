"""A mount without a kernel: everything between the cluster and `Vfs`, put together.

The cache directory belongs to one mount for its whole life: it holds the mount's id, its
journal, its staging segments and its block cache. Opening it sends what an earlier process
left in the journal before anything is served; closing it sends what is left.
"""

from __future__ import annotations

import functools
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from everfold import native, wire
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport, with_retries
from everfold.model import Ino, MountId, Node, Seq
from everfold.nameclient import NameClient
from everfold.nodeclient import NodeClient
from everfold.services import NameService
from everfold.statefile import write_private
from mount.admission import Admission
from mount.blockcache import BlockCache
from mount.blockio import BlockIO
from mount.core import Core
from mount.journal import Journal
from mount.lease import WriteLease
from mount.nodes import BlockClient
from mount.policy import Policy
from mount.records import StagedWrite, decode
from mount.shipper import Item, Shipper
from mount.staging import Place, Staging
from mount.statistics import Asked, Cost, hits
from mount.vfs import Vfs

log = logging.getLogger(__name__)

SESSION_DEADLINE_S = 20.0
REPLAY_DEADLINE_S = 120.0
DRAIN_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Settings:
    """What a mount is asked to be."""

    cache_dir: Path
    label: str = ""
    space: str = ""
    about: dict[str, str] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    cache_bytes: int = 4 * 1024**3
    memory_bytes: int = 64 * 1024**2


Connect = Callable[[Node], BlockClient]


class Client:
    """See the module's docstring; `vfs` is ready once `open` has returned."""

    def __init__(
        self, settings: Settings, names: NameService, connect: Connect | None = None
    ) -> None:
        """Open the cache directory and the session; ship what the journal holds.

        Raises BUSY when another process uses the directory, UNAVAILABLE when the cluster
        cannot be reached or does not take the journal in time, UNAUTHENTICATED, NOT_FOUND.
        """
        directory = settings.cache_dir
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._asked = Asked(names)
        self._names = names = self._asked.service
        self.mount_id = _mount_id(directory)
        self._journal = Journal(directory / "journal")
        try:
            label = settings.label or socket.gethostname()
            hello = wire.Hello(self.mount_id, label, settings.space, settings.policy.is_read_only)
            self.session = with_retries(lambda _left: names.session(hello), SESSION_DEADLINE_S)
            policy = settings.policy
            if self.session.read_only:
                policy = replace(policy, is_read_only=True)
            self._staging = Staging.open(directory / "staging")
            self._cache = BlockCache(
                directory / "blocks", settings.cache_bytes, settings.memory_bytes
            )
            self._blocks = BlockIO(
                self.session.space,
                names,
                self._cache,
                connect or _connect,
                self.session.min_replicas,
            )
            self._blocks.learn({}, self.session.nodes)
            self._blocks.learn_token(self.session.block_token, self.session.block_token_expires)
            self._shipper = Shipper(
                self.session.space, self.mount_id, names, self._blocks, self._staging, self._journal
            )
            self._replay()
            self._lease = WriteLease(self.session.space, self.mount_id, names, SystemClock())
            if not policy.is_read_only:
                with_retries(lambda _left: self._lease.clear(), SESSION_DEADLINE_S)
        except BaseException:
            self._journal.close()
            raise
        core = Core(
            self.session,
            names,
            self._blocks,
            self._staging,
            self._journal,
            self._shipper,
            self._lease,
            SystemClock(),
            policy,
        )
        self.core = core
        self.vfs = Vfs(core, self.mount_id, settings.about)
        self.vfs.start()

    def _replay(self) -> None:
        """Send what the journal holds; returns when it is in the cluster."""
        left: list[Item] = []
        segments: set[int] = set()
        for number, raw in self._journal.replay():
            if number <= self.session.last_op:
                continue
            record = decode(raw)
            if isinstance(record, StagedWrite) and not self._retain(record, segments):
                continue
            left.append(Item(number, record, self._replayed, is_late=True))
        self._staging.keep_only(segments)
        self._journal.skip_to(self.session.last_op + 1)
        self._shipper.start()
        if not left:
            return
        if self.session.read_only:
            log.warning("%d changes stay in the journal: here one may only read now", len(left))
            return
        log.info("sending %d changes that an earlier process left", len(left))
        self._shipper.submit(left)
        self._seal_replayed(left)
        if not self._shipper.drain(REPLAY_DEADLINE_S):
            raise EverfoldError(Kind.UNAVAILABLE, "the cluster does not take the earlier changes")

    def _retain(self, record: StagedWrite, segments: set[int]) -> bool:
        """Keep a record's staged bytes; False, and said aloud, when the disk has lost them."""
        try:
            for _, length, segment, at in record.staged:
                self._staging.retain(Place(segment, at), length)
                segments.add(segment)
        except EverfoldError as err:
            log.error("bytes of inode %d that were not sent are lost: %s", record.ino, err)
            return False
        return True

    def _seal_replayed(self, items: list[Item]) -> None:
        """What an earlier process had open when it died is complete now."""
        clock = SystemClock()
        written: set[Ino] = {i.record.ino for i in items if isinstance(i.record, StagedWrite)}
        seals = [wire.Seal(ino, clock.time_ns()) for ino in sorted(written)]
        if seals:
            first = self._journal.append([wire.encode(seal) for seal in seals])
            self._shipper.submit(
                [Item(n, seal, _ignore, is_late=True) for n, seal in enumerate(seals, first)]
            )

    def _replayed(self, item: Item, result: wire.Result, seq: Seq) -> None:
        # A write takes away a capability that may not be there.
        is_moot = type(item.record) is wire.RemoveXattr and result.kind == Kind.NO_ATTR.value
        if result.kind and not is_moot:
            log.error(
                "a change left by an earlier process was refused (%s): %s",
                result.message or result.kind,
                type(item.record).__name__,
            )
        if isinstance(item.record, StagedWrite):
            for _, length, segment, _ in item.record.staged:
                self._staging.release(segment, length)

    def drain(self, deadline_s: float = DRAIN_DEADLINE_S) -> bool:
        """Send everything on; False when the cluster did not take it in time."""
        try:
            self.vfs.syncfs()
        except EverfoldError as err:
            log.warning("not everything is in the cluster: %s", err)
            return False
        return self._shipper.drain(deadline_s)

    def close(self) -> bool:
        """Send what is left and let go; False when something stays in the journal."""
        is_drained = self.drain()
        if not is_drained:
            unsent = self._journal.next_number - 1 - self._journal.trimmed
            log.warning("%d changes stay in the journal", unsent)
            self._shipper.make_durable()
        self.vfs.close()
        if is_drained:
            self._lease.give_back()
        self._shipper.close()
        try:
            self._names.bye(wire.Bye(self.session.space, self.mount_id))
        except EverfoldError as err:
            log.info("could not say good-bye: %s", err)
        self._blocks.close()
        self._cache.close()
        self._staging.close()
        self._journal.close()
        return is_drained

    def abandon(self) -> None:
        """Let go without sending anything, as a crash would; the journal keeps it."""
        self._shipper.close()
        self.vfs.close()
        self._blocks.close()
        self._cache.close()
        self._staging.close()
        self._journal.close()

    def statistics(self, requests: Mapping[str, Cost] | None = None) -> dict[str, object]:
        """Return figures of what goes on, as values; `requests` are those of the kernel."""
        records, unsent = self._shipper.backlog
        calls = self._asked.costs()
        return {
            "mount": self.mount_id,
            "space": self.session.space_name,
            "feed": self._feed_figures(),
            "backlog": {
                "records": records,
                "waiting": self._shipper.queued,
                "bytes": unsent,
                "staged_bytes": self._staging.used_bytes,
            },
            "shipped": {"batches": self._shipper.batches, "operations": self._shipper.shipped_ops},
            "lease": {
                "held": bool(self._lease.held),
                "recalled": self._lease.is_recalled,
                "grants_locks": self._lease.grants_locks,
                "takes": self._lease.takes,
                "recalls": self._lease.recalls,
            },
            "cache": self._cache.statistics()._asdict(),
            "hits": hits(requests or {}, calls),
            "nodes": self._blocks.statistics(),
            "requests": dict(requests or {}),
            "calls": calls,
            "compiled": native.is_used(),
            "inodes": len(self.core.tree),
            "files": len(self.core.contents),
            "let_in": self.core.barred is None,
            "trouble": str(self.core.barred or self._shipper.failure or ""),
        }

    def _feed_figures(self) -> dict[str, object]:
        core = self.core
        silent_s = core.clock.monotonic() - core.feed_heard
        return {
            "seq": core.feed_seq,
            "live": core.is_live,
            "silent_s": round(silent_s, 2),
            "behind": max(0, self._asked.seen_seq - core.feed_seq),
        }


def open_remote(settings: Settings, server: str, token_file: Path, ca_file: str = "") -> Client:
    """Open a client of a nameserver over HTTP; `ca_file` says whom it and its nodes trust.

    The token in `token_file` is read again when it is good no longer.
    """
    token = token_file.read_text(encoding="ascii").strip()
    names = NameClient(HttpTransport(server, connections=80, ca_file=ca_file), token)
    admission = Admission(names, token, token_file)
    return Client(settings, admission.service, functools.partial(_connect, ca_file=ca_file))


def _connect(node: Node, ca_file: str = "") -> BlockClient:
    return NodeClient(HttpTransport(node.url, connections=16, ca_file=ca_file), "")


def _ignore(item: Item, result: wire.Result, seq: Seq) -> None:
    """Nobody waits for a seal."""


def _mount_id(directory: Path) -> MountId:
    """Return the id kept in the cache directory, made at first use."""
    path = directory / "mount-id"
    try:
        return MountId(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        write_private(path, secrets.token_hex(16))
        return MountId(path.read_text(encoding="ascii").strip())
