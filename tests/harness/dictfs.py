"""The simplest thing that is a filesystem: directories are dicts, files are bytes.

It says what `vfs` must show, to the byte, and which failure a wrong call must meet. What only
a crash can decide (how much of an open file's latest writes survived) it keeps as a list of
possible states.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from everfold.errors import Kind
from everfold.model import ROOT, Ino

LONG_AGO = -(1 << 62)


@dataclass(eq=False, repr=False)
class Thing:
    """A file, directory or link; `atime_ns` None: any; `mtime_ns` None: `since_ns` or later."""

    step_ns: ClassVar[int] = 0  # when the step under way began

    ino: Ino
    mode: int
    data: bytes = b""
    target: bytes = b""
    mtime_ns: int | None = None
    since_ns: int = LONG_AGO
    atime_ns: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Thing] = field(default_factory=dict)
    is_written: bool = False  # it has, or will have, at least one version
    is_saved: bool = False  # its content is a version that must stay
    drafts: list[tuple[bytes, int]] = field(default_factory=list)  # (data, mode) since the journal

    def __repr__(self) -> str:
        return f"<{self.ino}: {self.mode:o}, {self.size} bytes, {sorted(self.children)}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # what a failing test prints

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def size(self) -> int:
        return len(self.target) if stat.S_ISLNK(self.mode) else len(self.data)

    def touched(self) -> None:
        """What it holds has just changed."""
        self.mtime_ns, self.since_ns = None, Thing.step_ns

    # ------------------------------------------------------------ bytes

    def changed(self, data: bytes) -> None:
        """The bytes are these now, and are not in the journal yet."""
        self.data = data
        self.touched()
        self.is_written = True
        self.is_saved = False
        self.drafts.append((data, self.mode))

    def write(self, offset: int, data: bytes) -> None:
        grown = self.data.ljust(offset, b"\0")
        self.changed(grown[:offset] + data + grown[offset + len(data) :])

    def resize(self, size: int) -> None:
        self.changed(self.data[:size].ljust(size, b"\0"))

    def zero(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.data))
        if offset < end:
            self.changed(self.data[:offset] + bytes(end - offset) + self.data[end:])

    def drop_privileges(self) -> None:
        self.mode &= ~stat.S_ISUID
        if self.mode & stat.S_IXGRP:
            self.mode &= ~stat.S_ISGID

    def set_mode(self, bits: int) -> None:
        """A mode that is set is in the journal at once, whatever becomes of the bytes."""
        self.mode = stat.S_IFMT(self.mode) | bits
        self.drafts = [(data, self.mode) for data, _ in self.drafts]

    def journaled(self) -> None:
        """All that was done so far survives a crash of the process."""
        self.drafts = [(self.data, self.mode)]


class DictFs:
    """The tree; `shown` holds what each name must list as its history."""

    def __init__(self) -> None:
        self.root = Thing(ROOT, stat.S_IFDIR | 0o755)
        self.shown: dict[tuple[Ino, bytes], list[bytes]] = {}

    # ------------------------------------------------------------ asking

    def walk(self, top: Thing | None = None) -> Iterator[tuple[Thing, bytes, Thing]]:
        """Yield (directory, name, thing) of every name."""
        directory = top or self.root
        for name, thing in directory.children.items():
            yield directory, name, thing
            if thing.is_dir:
                yield from self.walk(thing)

    def directories(self) -> list[Thing]:
        return [self.root, *(thing for _, _, thing in self.walk() if thing.is_dir)]

    def nlink(self, thing: Thing) -> int:
        if thing.is_dir:
            return 2 + sum(child.is_dir for child in thing.children.values())
        return sum(other is thing for _, _, other in self.walk())

    def parent(self, directory: Thing) -> Thing:
        for above, _, thing in self.walk():
            if thing is directory:
                return above
        return self.root

    def is_within(self, thing: Thing, top: Thing) -> bool:
        while thing is not top:
            if thing is self.root:
                return False
            thing = self.parent(thing)
        return True

    # ------------------------------------------------------------ history

    def saved(self, thing: Thing) -> None:
        """A writer is done: what he left is a version, which every name lists for ever."""
        if thing.is_written:
            thing.is_saved = True
            self.show(thing)

    def show(self, thing: Thing) -> None:
        if thing.is_file and thing.is_saved:
            for directory, name, other in self.walk():
                if other is thing:
                    listed = self.shown.setdefault((directory.ino, name), [])
                    if thing.data not in listed:
                        listed.append(thing.data)

    # ------------------------------------------------------------ names

    def why_not_remove(self, thing: Thing | None, is_rmdir: bool) -> Kind | None:
        if thing is None:
            return Kind.NOT_FOUND
        if not is_rmdir:
            return Kind.IS_DIR if thing.is_dir else None
        if not thing.is_dir:
            return Kind.NOT_DIR
        return Kind.NOT_EMPTY if thing.children else None

    def why_not_rename(
        self, moved: Thing | None, parent: Thing, target: Thing | None, above: Thing, flags: int
    ) -> set[Kind]:
        """Return the failures of which one must come; empty when the rename is possible."""
        if moved is None:
            return {Kind.NOT_FOUND}
        why = set()
        if flags == 1 and target is not None:
            why.add(Kind.EXISTS)
        if flags == 2 and target is None:
            why.add(Kind.NOT_FOUND)
        if why or moved is target:
            return why
        if moved.is_dir and self.is_within(above, moved):
            why.add(Kind.INVALID)
        if target is None:
            return why
        if flags == 2:
            if target.is_dir and self.is_within(parent, target):
                why.add(Kind.INVALID)
        elif target.is_dir and not moved.is_dir:
            why.add(Kind.IS_DIR)
        elif moved.is_dir and not target.is_dir:
            why.add(Kind.NOT_DIR)
        elif target.children:
            why.add(Kind.NOT_EMPTY)
        return why

    def forget_history(self, directory: Thing) -> None:
        """A directory is gone: nobody can ask for the names in it any more."""
        for key in [key for key in self.shown if key[0] == directory.ino]:
            del self.shown[key]
