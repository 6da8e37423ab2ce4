"""Extended attributes: the file's own, and virtual ones that tell what Everfold knows.

``user.everfold.version``, ``.replicas``, ``.durable``, ``.hash``, ``.author`` are answered for
every file and never listed, so that copies do not carry them; ``user.everfold.mount`` on the
root tells tools whose folder this is, ``user.everfold.statistics`` what goes on in it. Setting
``user.everfold.drop_caches`` there empties this mount's caches, for those who measure.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
from blake3 import blake3

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.extents import from_extents, to_extents
from everfold.model import ROOT, XATTR_NAME_MAX, XATTR_SIZE_MAX, Attr, BlockId, Extent, Ino, NodeId
from mount import patience
from mount.core import Core

PREFIX = b"user.everfold."
DROP_CACHES = PREFIX + b"drop_caches"
_STORED = (b"user.", b"trusted.", b"security.")


class Xattrs:
    """See the module's docstring. `about` is the JSON of ``user.everfold.mount``."""

    def __init__(self, core: Core, about: dict[str, str]) -> None:
        self._core = core
        self._of_mount: dict[str, Callable[[], bytes]] = {
            "mount": lambda: json.dumps(about).encode()
        }

    def tell(self, name: str, answer: Callable[[], bytes]) -> None:
        """Answer ``user.everfold.NAME`` of the root from now on; it may have to wait."""
        self._of_mount[name] = answer

    def get(self, ino: Ino, name: bytes) -> bytes:
        """Return a value; NO_ATTR when there is none."""
        if name.startswith(PREFIX):
            return self._virtual(ino, name.removeprefix(PREFIX).decode("utf-8", "replace"))
        _check_space(name)
        values = self._values(self._core.attr(ino))
        if name not in values:
            raise EverfoldError(Kind.NO_ATTR, "no such extended attribute")
        return values[name]

    def list(self, ino: Ino) -> list[bytes]:
        """Return the names of the file's own attributes."""
        return list(self._values(self._core.attr(ino)))

    def set(self, ino: Ino, name: bytes, value: bytes, flags: int) -> None:
        """Set a value and wait for its commit."""
        core = self._core
        if ino == ROOT and name == DROP_CACHES:
            core.drop_caches()
            return
        core.check_writable()
        _check(name)
        if len(value) > XATTR_SIZE_MAX:
            raise EverfoldError(Kind.RANGE, f"a value has at most {XATTR_SIZE_MAX} bytes")
        now = core.clock.time_ns()
        core.commit(wire.SetXattr(ino, name, value, flags, now))
        self._changed(ino, now, has_xattrs=True)

    def remove(self, ino: Ino, name: bytes) -> None:
        """Remove a value and wait for the commit; NO_ATTR when there is none."""
        core = self._core
        core.check_writable()
        _check(name)
        now = core.clock.time_ns()
        core.commit(wire.RemoveXattr(ino, name, now))
        self._changed(ino, now, has_xattrs=None)

    def _changed(self, ino: Ino, now: int, has_xattrs: bool | None) -> None:
        core = self._core
        with core.lock:
            core.xattrs.pop(ino, None)
            attr = core.tree.attr(ino)
            if attr is not None:
                core.tree.set_attr(
                    msgspec.structs.replace(
                        attr,
                        ctime_ns=now,
                        has_xattrs=attr.has_xattrs if has_xattrs is None else has_xattrs,
                    )
                )

    def _values(self, attr: Attr) -> dict[bytes, bytes]:
        if not attr.has_xattrs:
            return {}
        core = self._core
        with core.lock:
            known = core.xattrs.get(attr.ino)
        if known is not None:
            return known
        patience.require()
        answer = core.read(lambda: core.names.xattrs(wire.GetXattrs(core.space, attr.ino)))
        with core.lock:
            if not core.tree.touched_after(attr.ino, answer.seq):
                if len(core.xattrs) > 10_000:
                    core.xattrs.clear()
                core.xattrs[attr.ino] = answer.values
        return answer.values

    # ------------------------------------------------------------ virtual

    def _virtual(self, ino: Ino, name: str) -> bytes:
        if ino == ROOT and name in self._of_mount:
            return self._of_mount[name]()
        attr = self._core.attr(ino)
        if not attr.is_file:
            raise EverfoldError(Kind.NO_ATTR, "no such extended attribute")
        if name == "version":
            return str(attr.version).encode()
        if name in ("replicas", "durable", "hash", "author"):
            patience.require()
            return self._of_blocks(attr, name).encode()
        raise EverfoldError(Kind.NO_ATTR, "no such extended attribute")

    def _of_blocks(self, attr: Attr, name: str) -> str:
        core = self._core
        with core.lock:
            content = core.contents.get(attr.ino)
            is_local = content is not None and content.is_active
        if is_local and name == "durable":
            return "no"
        answer = core.read(lambda: core.names.extents(wire.GetExtents(core.space, attr.ino)))
        if name == "author":
            return answer.author
        if name == "hash":
            digest = blake3(answer.size.to_bytes(8, "little"))
            for extent in _merged(answer):
                digest.update(wire.encode(extent))
            return digest.hexdigest()
        where = {block: answer.where.get(block, []) for block in _blocks(answer)}
        if name == "durable":
            wanted = core.session.min_replicas
            return "yes" if all(len(nodes) >= wanted for nodes in where.values()) else "no"
        states = {node.id: node.state.value for node in core.blocks.nodes()}
        return json.dumps(
            [
                {"block": block.hex(), "node": node, "state": states.get(NodeId(node), "unknown")}
                for block, nodes in where.items()
                for node in nodes
            ]
        )


def _merged(answer: wire.FileExtents) -> list[Extent]:
    """Return a file's extents with neighbours joined, so that equal files give equal lists."""
    return to_extents(from_extents(answer.extents))


def _blocks(answer: wire.FileExtents) -> list[BlockId]:
    return list(dict.fromkeys(extent.block for extent in answer.extents))


def _check_space(name: bytes) -> None:
    if not name.startswith(_STORED):
        raise EverfoldError(Kind.UNSUPPORTED, "this namespace is not offered")


def _check(name: bytes) -> None:
    _check_space(name)
    if name.startswith(PREFIX):
        raise EverfoldError(Kind.NOT_PERMITTED, "virtual attributes cannot be changed")
    if len(name) > XATTR_NAME_MAX:
        raise EverfoldError(Kind.NAME_TOO_LONG, "the attribute's name is too long")
