"""``.versions/``: the past of each directory's names, as read-only folders and files.

Three kinds of virtual nodes, numbered from `VIRTUAL_INO` up: the ``.versions`` of a directory,
the folder of one name in it, and one version. A node keeps its number while the kernel refers
to it, and a good while longer, because programs compare inode numbers between two looks.
``NAME@v7``, ``NAME@first`` and ``NAME@yesterday`` (see `moments`) resolve without being listed.
Nothing can be written here; moving a version out restores it by reference (see `restore`).
"""

from __future__ import annotations

import itertools
import stat
from collections import OrderedDict
from typing import NamedTuple

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import Attr, Ino, Version
from everfold.versionname import format_name, number_in, parse_typed, pick
from mount import patience
from mount.core import Core
from mount.filesystem import VIRTUAL_INO, Names, Node

VERSIONS = b".versions"
_TTL_S = 1.0
_SETTLE_S = 2.0
_IDLE_MAX = 20_000  # nodes without a reference that keep their number


class Key(NamedTuple):
    """What a virtual node stands for: `name` None: the ``.versions`` of `directory`;
    `number` None: the folder of `name`; else that version of it."""

    directory: Ino
    name: bytes | None = None
    number: int | None = None


def is_virtual(ino: Ino) -> bool:
    """Tell whether a node is one of these."""
    return ino >= VIRTUAL_INO


class HistoryTree:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._numbers = itertools.count(VIRTUAL_INO)
        self._keys: dict[Ino, Key] = {}  # these five are guarded by the core's lock
        self._inos: dict[Key, Ino] = {}
        self._references: dict[Ino, int] = {}
        self._idle: OrderedDict[Ino, None] = OrderedDict()  # without references, oldest first
        self._known: dict[tuple[Ino, bytes], tuple[object, list[Version]]] = {}

    # ------------------------------------------------------------ nodes

    def _key(self, ino: Ino) -> Key:
        with self._core.lock:
            try:
                return self._keys[ino]
            except KeyError:
                raise EverfoldError(Kind.STALE, "the history node is gone") from None

    def ino(self, key: Key) -> Ino:
        """Return the node number of a key, given when it has none."""
        with self._core.lock:
            ino = self._inos.get(key)
            if ino is None:
                ino = Ino(next(self._numbers))
                self._inos[key] = ino
                self._keys[ino] = key
                self._rest(ino)
            elif ino in self._idle:
                self._idle.move_to_end(ino)
            return ino

    def _rest(self, ino: Ino) -> None:
        """Nobody refers to a node now; the one that rested longest loses its number."""
        self._idle[ino] = None
        if len(self._idle) > _IDLE_MAX:
            oldest, _ = self._idle.popitem(last=False)
            del self._inos[self._keys.pop(oldest)]

    def versions_of(self, directory: Ino) -> Ino:
        """Return the node of a directory's ``.versions``."""
        return self.ino(Key(directory))

    def refer(self, ino: Ino) -> None:
        """Count a reference of the kernel."""
        with self._core.lock:
            self._references[ino] = self._references.get(ino, 0) + 1
            self._idle.pop(ino, None)

    def forget(self, ino: Ino, count: int) -> None:
        """Give references back."""
        with self._core.lock:
            left = self._references.pop(ino, 0) - count
            if left > 0:
                self._references[ino] = left
            elif ino in self._keys:
                self._rest(ino)

    def attr(self, ino: Ino) -> Attr:
        """Return the attributes of a virtual node."""
        key = self._key(ino)
        if key.name is None or key.number is None:
            return self._directory_attr(ino, key.directory)
        return self._version_attr(ino, self.version(key))

    def node(self, ino: Ino) -> Node:
        """Return a virtual node as the kernel gets it; counts no reference."""
        return Node(self._core.shown(self.attr(ino)), _TTL_S, _TTL_S)

    def _directory_attr(self, ino: Ino, directory: Ino) -> Attr:
        real = self._core.attr(directory)
        return msgspec.structs.replace(real, ino=ino, mode=stat.S_IFDIR | 0o755, nlink=2)

    def _version_attr(self, ino: Ino, version: Version) -> Attr:
        try:
            real = self._core.attr(version.ino)
            uid, gid = real.uid, real.gid
        except EverfoldError as err:
            if err.kind is not Kind.STALE:
                raise
            uid = gid = 0  # deleted; the owner comes back with a restore
        return Attr(
            ino=ino,
            mode=stat.S_IFREG | (stat.S_IMODE(version.mode) & 0o555),
            nlink=1,
            uid=uid,
            gid=gid,
            size=version.size,
            atime_ns=version.mtime_ns,
            mtime_ns=version.mtime_ns,
            ctime_ns=version.at_ns,
            btime_ns=version.at_ns,
            allocated=version.size,
        )

    # ------------------------------------------------------------ asking the nameserver

    def versions(self, directory: Ino, name: bytes) -> list[Version]:
        """Return the versions of a name, oldest first; asked anew after each commit."""
        core = self._core
        core.settle(_SETTLE_S)
        state = (core.feed_seq, core.shipper.committed_number)
        with core.lock:
            known = self._known.get((directory, name))
            if known is not None and known[0] == state and core.is_live:
                return known[1]
        patience.require()
        answer = core.read(lambda: core.names.history(wire.GetHistory(core.space, directory, name)))
        with core.lock:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[(directory, name)] = (state, answer.versions)
        return answer.versions

    def version(self, key: Key) -> Version:
        """Return one version; NOT_FOUND when it was forgotten."""
        if key.name is None or key.number is None:
            raise EverfoldError(Kind.IS_DIR, "a folder of versions")
        for version in self.versions(key.directory, key.name):
            if version.number == key.number:
                return version
        raise EverfoldError(Kind.NOT_FOUND, "no such version")

    def version_of(self, ino: Ino) -> Version:
        """Return the version that a virtual file stands for; IS_DIR for folders."""
        return self.version(self._key(ino))

    # ------------------------------------------------------------ names

    def lookup(self, parent: Ino, name: bytes) -> Ino:
        """Return the virtual node of a name in a virtual directory; NOT_FOUND."""
        key = self._key(parent)
        if key.number is not None:
            raise EverfoldError(Kind.NOT_DIR, "a version is a file")
        if key.name is None:
            return self.ino(self._in_versions(key.directory, name))
        number = number_in(name)
        if number is not None:
            found = self.version(Key(key.directory, key.name, number))
            if format_name(key.name, found) == name:
                return self.ino(Key(key.directory, key.name, number))
        raise EverfoldError(Kind.NOT_FOUND, "no such version")

    def _in_versions(self, directory: Ino, name: bytes) -> Key:
        if self.versions(directory, name):
            return Key(directory, name)
        typed = parse_typed(name)
        if typed is not None:
            versions = self.versions(directory, typed[0])
            found = pick(versions, typed[1], self._core.clock.time_ns())
            if found is not None:
                return Key(directory, typed[0], found.number)
        raise EverfoldError(Kind.NOT_FOUND, "the name has no history")

    def listing(self, ino: Ino) -> tuple[Ino, Names]:
        """Return (number of "..", [(name, node, mode)]) of a virtual directory."""
        key = self._key(ino)
        if key.number is not None:
            raise EverfoldError(Kind.NOT_DIR, "a version is a file")
        if key.name is not None:
            versions = self.versions(key.directory, key.name)
            names = [
                (
                    format_name(key.name, version),
                    self.ino(Key(key.directory, key.name, version.number)),
                    stat.S_IFREG,
                )
                for version in versions
            ]
            return self.ino(Key(key.directory)), names
        core = self._core
        core.settle(_SETTLE_S)
        patience.require()
        answer = core.read(
            lambda: core.names.history_names(wire.GetHistoryNames(core.space, key.directory))
        )
        return key.directory, [
            (each.name, self.ino(Key(key.directory, each.name)), stat.S_IFDIR)
            for each in answer.names
            if stat.S_ISREG(each.mode)
        ]

    # ------------------------------------------------------------ coming back

    def restore(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        """Make a version the content of a real name, as a new version of it."""
        core = self._core
        core.check_writable()
        if flags & wire.RENAME_EXCHANGE:
            raise EverfoldError(Kind.READ_ONLY, "history cannot be changed")
        if flags & wire.RENAME_NOREPLACE and core.child(new_parent, new_name) is not None:
            raise EverfoldError(Kind.EXISTS, "the name is taken")
        key = self._key(self.lookup(parent, name))
        if key.name is None or key.number is None:
            raise EverfoldError(Kind.NOT_PERMITTED, "a folder of versions cannot be moved")
        result, seq = core.commit(
            wire.Restore(
                new_parent,
                new_name,
                key.number,
                core.new_ino(),
                core.clock.time_ns(),
                from_parent=key.directory,
                from_name=key.name,
            )
        )
        with core.lock:
            core.tree.touch_name(new_parent, new_name, seq)
            core.tree.forget_name(new_parent, new_name)
            core.tree.forget_attr(new_parent)
            core.content_changed(result.ino, seq)
        core.notifier.forget_entry(new_parent, new_name)
        core.notifier.forget_entry(parent, name)
        core.notifier.forget_attr(new_parent)
