"""The tree in memory: what this mount knows of names and attributes, and as of when.

Nothing here is ever wrong for long: what the feed says has changed is forgotten, and what
an answer of the nameserver says is believed only if no later change of the same thing has
been seen (`install_*` compare the answer's commit number with `_touched`). Not known is not
the same as not there: `child` returns None for the first, `ABSENT` for the second.

What this mount itself changed and the cluster has not taken yet is *held*: answers of the
nameserver do not touch it, and it is not forgotten for want of room.

No I/O, no locks: the owner (`mount.core`) calls under its lock. Memory is bounded: past
`limit` inodes the least recently used are forgotten and fetched again when asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TypeVar

from everfold.model import NOW, Attr, Entry, Ino, Seq

ABSENT = Ino(-1)
K = TypeVar("K")
_TOUCHED_MAX = 50_000


class Directory:
    """The names of a directory as far as they are known."""

    __slots__ = ("absent", "changed", "children", "held", "is_complete", "parent")

    def __init__(self, changed: int) -> None:
        self.changed = changed  # see `Tree.changed`
        self.children: dict[bytes, Ino] = {}
        self.absent: set[bytes] = set()
        self.held: dict[bytes, int] = {}  # names with changes on their way, and how many
        self.is_complete = False  # every name is in `children`
        self.parent = Ino(0)  # 0: not known

    def knows(self, name: bytes) -> bool:
        """Tell whether it is known what a name leads to, or that there is none."""
        return name in self.children or name in self.absent or name in self.held

    def keep(self, names: Container[bytes]) -> None:
        """Forget every other name, absent ones too."""
        self.children = {name: ino for name, ino in self.children.items() if name in names}
        self.absent = {name for name in self.absent if name in names}


class Tree:
    """See the module's docstring."""

    def __init__(self, limit: int = 200_000) -> None:
        self._limit = limit
        self._attrs: OrderedDict[Ino, Attr] = OrderedDict()
        self._directories: OrderedDict[Ino, Directory] = OrderedDict()
        self._touched_names: OrderedDict[tuple[Ino, bytes], Seq] = OrderedDict()
        self._touched_inos: OrderedDict[Ino, Seq] = OrderedDict()
        self._held: dict[Ino, int] = {}  # inodes with changes on their way, and how many
        self._floor = Seq(0)  # answers older than this are not believed any more
        self._changes = 0  # of names

    # ------------------------------------------------------------ asking

    def attr(self, ino: Ino) -> Attr | None:
        """Return the committed attributes of an inode, None when not known."""
        attr = self._attrs.get(ino)
        if attr is not None:
            self._attrs.move_to_end(ino)
        return attr

    def child(self, parent: Ino, name: bytes) -> Ino | None:
        """Return the inode of a name, `ABSENT` when there is surely none, None if not known."""
        directory = self._directories.get(parent)
        if directory is None:
            return None
        ino = directory.children.get(name)
        if ino is not None:
            return ino
        return ABSENT if directory.is_complete or name in directory.absent else None

    def listing(self, ino: Ino) -> tuple[Ino, list[tuple[bytes, Ino]]] | None:
        """Return (parent, names) of a directory that is wholly known, else None."""
        directory = self._directories.get(ino)
        if directory is None or not directory.is_complete:
            return None
        self._directories.move_to_end(ino)
        return directory.parent, list(directory.children.items())

    def changed(self, ino: Ino) -> int:
        """Return a number that rises when a name of a directory changes; 0: nothing is known."""
        directory = self._directories.get(ino)
        return directory.changed if directory is not None else 0

    def is_listed(self, ino: Ino) -> bool:
        """Tell whether all names of a directory are known."""
        directory = self._directories.get(ino)
        return directory is not None and directory.is_complete

    def children(self, ino: Ino) -> Mapping[bytes, Ino]:
        """Return the known names of a directory: the very mapping that changes with it."""
        directory = self._directories.get(ino)
        return directory.children if directory is not None else {}

    def inos(self) -> Iterator[Ino]:
        """Yield the inodes whose attributes are known."""
        return iter(list(self._attrs))

    def names(self) -> Iterator[tuple[Ino, bytes]]:
        """Yield (parent, name) of all that is known of names, absences too."""
        for ino, directory in list(self._directories.items()):
            for name in (*directory.children, *directory.absent):
                yield ino, name

    def __len__(self) -> int:
        return len(self._attrs)

    def touched_after(self, ino: Ino, seq: Seq) -> bool:
        """Tell whether the inode is known to have changed after commit `seq`."""
        return self._touched_inos.get(ino, self._floor) > seq

    # ------------------------------------------------------------ answers of the nameserver

    def install_attr(self, attr: Attr, as_of: Seq) -> bool:
        """Believe attributes unless the inode changed after `as_of`; tell whether."""
        if attr.ino in self._held or as_of < self._touched_inos.get(attr.ino, self._floor):
            return False
        self._attrs[attr.ino] = attr
        self._attrs.move_to_end(attr.ino)
        self._bound()
        return True

    def install_entry(self, parent: Ino, name: bytes, entry: Entry | None, as_of: Seq) -> None:
        """Believe a name, or (None) its absence, unless it changed after `as_of`."""
        if as_of < self._touched_names.get((parent, name), self._floor):
            return
        directory = self._directory(parent)
        if name in directory.held:
            return
        if entry is None:
            directory.children.pop(name, None)
            directory.absent.add(name)
        else:
            directory.absent.discard(name)
            directory.children[name] = entry.attr.ino
            self.install_attr(entry.attr, as_of)

    def install_listing(self, ino: Ino, parent: Ino, entries: Iterable[Entry], as_of: Seq) -> bool:
        """Believe a whole directory, but for names that changed after `as_of`; tell whether.

        What such names are now must be known here, else nothing is believed.
        """
        kept = self._changed_names(ino, as_of)
        directory = self._directory(ino)
        if kept is None or not all(directory.knows(name) for name in kept):
            return False
        kept.update(directory.held)
        may_have_moved = ino in self._held or self.touched_after(ino, as_of)
        if not (may_have_moved and directory.parent):
            directory.parent = parent
        directory.keep(kept)
        directory.is_complete = True
        self._install_names(directory, entries, kept, as_of)
        self._bound()
        return True

    def _install_names(
        self, directory: Directory, entries: Iterable[Entry], kept: Container[bytes], as_of: Seq
    ) -> None:
        """Believe names and, as `install_attr` does, attributes: written out, half of it."""
        children, attrs = directory.children, self._attrs
        held, touched, floor = self._held, self._touched_inos, self._floor
        for entry in entries:
            name, attr = entry.name, entry.attr
            if name in kept:
                continue
            ino = attr.ino
            children[name] = ino
            if ino not in held and as_of >= touched.get(ino, floor):
                attrs[ino] = attr
                attrs.move_to_end(ino)

    def _changed_names(self, ino: Ino, as_of: Seq) -> set[bytes] | None:
        """Return the names of a directory that changed after `as_of`; None: not known."""
        if not self.touched_after(ino, as_of):
            return set()
        if as_of < self._floor:
            return None
        touched = self._touched_names.items()
        return {name for (parent, name), seq in touched if parent == ino and seq > as_of}

    # ------------------------------------------------------------ changes on their way

    def hold(self, names: Iterable[tuple[Ino, bytes]], inos: Iterable[Ino]) -> None:
        """A change of these names and inodes goes on its way."""
        for parent, name in names:
            held = self._directory(parent).held
            held[name] = held.get(name, 0) + 1
        for ino in inos:
            self._held[ino] = self._held.get(ino, 0) + 1

    def let_go(self, names: Iterable[tuple[Ino, bytes]], inos: Iterable[Ino], seq: Seq) -> None:
        """The change is committed (as `seq`), or refused (0): it is held no longer."""
        for parent, name in names:
            directory = self._directories.get(parent)
            if directory is not None:
                _count_down(directory.held, name)
            if seq:
                self.touch_name(parent, name, seq)
        for ino in inos:
            _count_down(self._held, ino)
            if seq:
                self.touch_ino(ino, seq)

    def is_held(self, ino: Ino) -> bool:
        """Tell whether changes of an inode are on their way."""
        return ino in self._held

    # ------------------------------------------------------------ changes

    def touch_name(self, parent: Ino, name: bytes, seq: Seq) -> bool:
        """Note that commit `seq` changed a name; False when a later change is known already."""
        key = (parent, name)
        if seq < self._touched_names.get(key, Seq(0)):
            return False
        self._touched_names[key] = seq
        self._touched_names.move_to_end(key)
        self.touch_ino(parent, seq)
        if len(self._touched_names) > _TOUCHED_MAX:
            self._floor = max(self._floor, self._touched_names.popitem(last=False)[1])
        return True

    def follows(self, parent: Ino, name: bytes, seq: Seq) -> bool:
        """Tell whether a change of this mount's own is the last known one of a name.

        `seq` NOW: it is not committed yet, which only the holder of the write lease may ask.
        """
        return seq == NOW or self.touch_name(parent, name, seq)

    def touch_ino(self, ino: Ino, seq: Seq) -> bool:
        """Note that commit `seq` changed an inode; False when a later change is known."""
        if seq < self._touched_inos.get(ino, Seq(0)):
            return False
        self._touched_inos[ino] = seq
        self._touched_inos.move_to_end(ino)
        if len(self._touched_inos) > _TOUCHED_MAX:
            self._floor = max(self._floor, self._touched_inos.popitem(last=False)[1])
        return True

    def set_child(self, parent: Ino, name: bytes, ino: Ino) -> None:
        """A name leads to an inode now (this mount made it so)."""
        directory = self._directory(parent)
        self._changes = directory.changed = self._changes + 1
        directory.absent.discard(name)
        directory.children[name] = ino

    def set_absent(self, parent: Ino, name: bytes) -> None:
        """A name is gone (this mount removed it)."""
        directory = self._directory(parent)
        self._changes = directory.changed = self._changes + 1
        directory.children.pop(name, None)
        directory.absent.add(name)

    def set_attr(self, attr: Attr) -> None:
        """An inode has these attributes now (this mount made it so)."""
        self._attrs[attr.ino] = attr
        self._attrs.move_to_end(attr.ino)
        self._bound()

    def made_directory(self, ino: Ino, parent: Ino) -> None:
        """This mount made an empty directory: all its names are known."""
        directory = self._directory(ino)
        directory.is_complete = True
        directory.parent = parent

    def moved_directory(self, ino: Ino, parent: Ino) -> None:
        """A directory lies in another one now."""
        directory = self._directories.get(ino)
        if directory is not None:
            directory.parent = parent

    def moved_elsewhere(self, ino: Ino, parent: Ino, seq: Seq) -> None:
        """Another machine made a name in `parent` lead to an inode, with commit `seq`."""
        if self.touch_ino(ino, seq) and ino not in self._held:
            self.moved_directory(ino, parent)

    def forget_name(self, parent: Ino, name: bytes) -> None:
        """What the name leads to is not known any more."""
        directory = self._directories.get(parent)
        if directory is not None:
            self._changes = directory.changed = self._changes + 1
            directory.children.pop(name, None)
            directory.absent.discard(name)
            directory.is_complete = False

    def forget_attr(self, ino: Ino) -> None:
        """The attributes of the inode are not known any more."""
        self._attrs.pop(ino, None)

    def forget_directory(self, ino: Ino) -> None:
        """None of the directory's names is known any more."""
        self._directories.pop(ino, None)

    def forget_all(self) -> None:
        """Nothing is known any more but what is held."""
        for ino in [ino for ino in self._attrs if ino not in self._held]:
            del self._attrs[ino]
        for ino, directory in list(self._directories.items()):
            if directory.held:
                directory.keep(directory.held)
                directory.is_complete = False
            else:
                del self._directories[ino]

    # ------------------------------------------------------------ bounds

    def _directory(self, ino: Ino) -> Directory:
        directory = self._directories.get(ino)
        if directory is None:
            self._changes += 1
            directory = self._directories[ino] = Directory(self._changes)
            if len(self._directories) > self._limit // 4:
                self._forget_oldest_directory()
        return directory

    def _forget_oldest_directory(self) -> None:
        for ino, directory in self._directories.items():
            if not directory.held:
                del self._directories[ino]
                return

    def _bound(self) -> None:
        for _ in range(len(self._attrs) - self._limit):
            ino = next(iter(self._attrs))
            if ino in self._held:
                self._attrs.move_to_end(ino)
            else:
                del self._attrs[ino]


def _count_down(counts: dict[K, int], key: K) -> None:
    left = counts.get(key, 0) - 1
    if left > 0:
        counts[key] = left
    else:
        counts.pop(key, None)
