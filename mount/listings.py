"""Open directories: each holds a snapshot of names, so that a listing is stable.

A name that stays is given exactly once, whatever comes and goes; reading from the start
again takes a new snapshot. Attributes that go to the kernel with a listing are those known
now, not those of the snapshot: what was forgotten meanwhile is listed without them.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable
from dataclasses import dataclass

from everfold.errors import EverfoldError, Kind
from everfold.model import Ino
from mount.core import Core
from mount.filesystem import DirItem, Node

Snapshot = list[tuple[bytes, Ino, int]]  # name, inode, mode; "." and ".." first


@dataclass(slots=True)
class OpenDirectory:
    """An open directory; the snapshot is taken at the first reading."""

    ino: Ino
    snapshot: Snapshot | None = None


class Listings:
    """See the module's docstring.

    `list_virtual` and `virtual_node` serve the directories that `is_virtual` tells apart.
    """

    def __init__(
        self,
        core: Core,
        is_virtual: Callable[[Ino], bool],
        list_virtual: Callable[[Ino], tuple[Ino, Snapshot]],
        virtual_node: Callable[[Ino], Node],
    ) -> None:
        self._core = core
        self._is_virtual = is_virtual
        self._list_virtual = list_virtual
        self._virtual_node = virtual_node
        self._open: dict[int, OpenDirectory] = {}
        self._numbers = itertools.count(1)

    def open(self, ino: Ino) -> int:
        """Open a directory."""
        if not self._is_virtual(ino) and not self._core.attr(ino).is_dir:
            raise EverfoldError(Kind.NOT_DIR, "not a directory")
        fh = next(self._numbers)
        self._open[fh] = OpenDirectory(ino)
        return fh

    def close(self, fh: int) -> None:
        """Let go of an open directory."""
        self._open.pop(fh, None)

    def read(self, fh: int, cookie: int, limit: int, plus: bool) -> list[DirItem]:
        """See `Filesystem.readdir`; a cookie is the position after the item."""
        directory = self._open.get(fh)
        if directory is None:
            raise EverfoldError(Kind.INVALID, f"no open directory {fh}")
        if directory.snapshot is None or cookie == 0:
            directory.snapshot = self._snapshot(directory.ino)
        part = directory.snapshot[cookie : cookie + limit]
        if self._is_virtual(directory.ino):
            return _items(part, cookie, plus, lambda _, ino: self._virtual_node(ino))
        with self._core.lock:
            return _items(
                part, cookie, plus, lambda name, ino: self._node(directory.ino, name, ino)
            )

    def _node(self, parent: Ino, name: bytes, ino: Ino) -> Node | None:
        core = self._core
        if core.tree.child(parent, name) != ino or core.tree.attr(ino) is None:
            return None
        return core.node(core.attr(ino))

    def _snapshot(self, ino: Ino) -> Snapshot:
        if self._is_virtual(ino):
            parent, names = self._list_virtual(ino)
        else:
            parent, children = self._core.listing(ino)
            names = [(name, attr.ino, stat.S_IFMT(attr.mode)) for name, attr in children]
        return [(b".", ino, stat.S_IFDIR), (b"..", parent, stat.S_IFDIR), *names]


def _items(
    part: Snapshot, cookie: int, plus: bool, node_of: Callable[[bytes, Ino], Node | None]
) -> list[DirItem]:
    """Return a part of a listing from after `cookie`; "." and ".." carry no node."""
    return [
        DirItem(
            name,
            ino,
            mode,
            cookie + i,
            node_of(name, ino) if plus and name not in (b".", b"..") else None,
        )
        for i, (name, ino, mode) in enumerate(part, 1)
    ]
