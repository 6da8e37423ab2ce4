"""Open directories: each holds a snapshot of names, so that a listing is stable.

A name that stays is given exactly once, whatever comes and goes; reading from the start
again takes a new snapshot. Attributes that go to the kernel with a listing are those known
now, not those of the snapshot: what was forgotten meanwhile is listed without them.

The kernel keeps listings too, and goes on with one that another reader of the directory
began: from its pages, or with us at the place where it stopped. So a cookie belongs to the
name, not to its position, and all snapshots of a directory have one order: that of cookies,
which is about the order in which the files were made.
"""

from __future__ import annotations

import itertools
import stat
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import Ino
from mount.core import Core
from mount.filesystem import DirItem, Names, Node

_NAME_BITS: Final = 20  # of a cookie: they tell the names of one inode apart
_NAME_MASK: Final = (1 << _NAME_BITS) - 1
_COOKIE_MAX: Final = (1 << 63) - 1  # an off_t
_item = tuple.__new__  # a third of what the classes' own constructors cost
_OWN: Final = 2  # cookies of "." and ".." are 1 and 2


class _Snapshot(NamedTuple):
    cookies: list[int]  # ascending
    names: Names
    changed: int  # see `Tree.changed`


class OpenDirectory:
    """An open directory; the snapshot is taken at the first reading."""

    __slots__ = ("ino", "snapshot")

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.snapshot: _Snapshot | None = None


class Listings:
    """See the module's docstring.

    `list_virtual` and `virtual_node` serve the directories that `is_virtual` tells apart.
    """

    def __init__(
        self,
        core: Core,
        is_virtual: Callable[[Ino], bool],
        list_virtual: Callable[[Ino], tuple[Ino, Names]],
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
        """See `Filesystem.readdir`."""
        directory = self._open.get(fh)
        if directory is None:
            raise EverfoldError(Kind.INVALID, f"no open directory {fh}")
        snapshot = directory.snapshot
        if snapshot is None or cookie == 0:
            snapshot = directory.snapshot = self._snapshot(directory.ino)
        elif snapshot.changed != self._core.tree.changed(directory.ino):
            # The kernel would put the rest of this behind what another reader has got since.
            # (Telling it waits until this reader has what he asked for.)
            self._core.notifier.forget_entry(directory.ino, b".")
        start = bisect_right(snapshot.cookies, cookie)
        cookies = snapshot.cookies[start : start + limit]
        part = snapshot.names[start : start + limit]
        nodes = self._nodes(directory.ino, part) if plus else [None] * len(part)
        rows = zip(part, cookies, nodes, strict=True)
        return [_item(DirItem, (*names, at, node)) for names, at, node in rows]

    def _nodes(self, parent: Ino, part: Names) -> list[Node | None]:
        """Return what the names lead to as far as it is known; "." and ".." carry none."""
        if self._is_virtual(parent):
            return [
                None if name in (b".", b"..") else self._virtual_node(ino) for name, ino, _ in part
            ]
        core, nodes = self._core, list[Node | None]()
        with core.lock:
            # Written out: with a few calls for each name this took 4 us a name, not 1.5.
            children, attr_of = core.tree.children(parent), core.tree.attr
            policy, is_live, contents = core.policy, core.is_live, core.contents
            is_mapped = policy.uid is not None or policy.gid is not None
            ttls = (policy.entry_ttl_s, policy.attr_ttl_s) if is_live else (0.0, 0.0)
            for name, ino, _ in part:
                attr = attr_of(ino)
                if attr is None or children.get(name) != ino:
                    nodes.append(None)
                    continue
                content = contents.get(ino)
                if content is not None and content.is_active:
                    attr = core.attr(ino)
                if is_mapped:
                    attr = core.shown(attr)
                nodes.append(_item(Node, (attr, *ttls)))
        return nodes

    def _snapshot(self, ino: Ino) -> _Snapshot:
        if self._is_virtual(ino):
            parent, names = self._list_virtual(ino)
            cookies, changed = list(range(_OWN + 1, _OWN + 1 + len(names))), 0
        else:
            parent, children, changed = self._core.listing(ino)
            cookies, names = _in_order(children)
        own = [(b".", ino, stat.S_IFDIR), (b"..", parent, stat.S_IFDIR)]
        return _Snapshot([1, _OWN, *cookies], own + names, changed)


def _in_order(names: Names) -> tuple[list[int], Names]:
    """Return the cookies of names, ascending, and the names in their order.

    Two names of one inode share a cookie once in a million; then one takes the next number.
    """
    cookies = [
        (ino << _NAME_BITS | hash(name) & _NAME_MASK) & _COOKIE_MAX for name, ino, _ in names
    ]
    of_cookie = dict(zip(cookies, names, strict=True))
    if len(of_cookie) == len(names):  # sorting numbers alone is the quicker way
        cookies = sorted(of_cookie)
        return cookies, [of_cookie[cookie] for cookie in cookies]
    rows = sorted(zip(cookies, names, strict=True))
    cookies = [cookie for cookie, _ in rows]
    for i in range(1, len(cookies)):
        cookies[i] = max(cookies[i], cookies[i - 1] + 1)
    return cookies, [item for _, item in rows]
