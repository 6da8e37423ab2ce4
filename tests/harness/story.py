"""A run of changes like that of a tar extraction, and the trees that it may leave behind.

A `Story` makes random changes below a folder, one system call after the other, and writes down
each that was answered. A `State` is what a tree then must look like. Two things are left open:
whether a call that got no answer took place, and how much of a file that was not closed or
synced is there (any of its *drafts*, the contents since then). Nothing else is: so a tree can be
compared with the state after all answered calls, or with those after each number of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PIECE = 256 * 1024  # of a large file is written at a time
_SIZES = (0, 1, 100, 3_000, 4_096, 9_999, 70_000)
_LARGE = (300_000, 1_500_000, 4_500_000)


@dataclass
class Inode:
    """What is under a name; `drafts` are contents that may be found instead of `data`."""

    mode: int
    data: bytes = b""
    drafts: list[bytes] = field(default_factory=list)

    def change(self, data: bytes) -> None:
        """Give it another content, which is not certain before it is settled."""
        self.drafts.append(self.data)
        self.data = data


Seen = dict[str, tuple[int, int, bytes]]  # mode, links, content (of a symlink its target)


class State:
    """A tree as the calls so far leave it: names to numbers, numbers to inodes."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.inodes: dict[int, Inode] = {}

    def make(self, path: str, number: int, mode: int, data: bytes = b"") -> None:
        """A new thing under a free name."""
        self.inodes[number] = Inode(mode, data)
        self.names[path] = number

    def write(self, number: int, offset: int, data: bytes) -> None:
        """Bytes were written over or behind a file's."""
        inode = self.inodes[number]
        inode.change(inode.data[:offset] + data + inode.data[offset + len(data) :])

    def cut(self, number: int) -> None:
        """A file was emptied."""
        self.inodes[number].change(b"")

    def settle(self, number: int) -> None:
        """A file was closed or synced: its content is certain."""
        self.inodes[number].drafts.clear()

    def rename(self, old: str, new: str) -> None:
        """A name, and all below it, became another; what was there is gone."""
        for path in [p for p in self.names if p == old or p.startswith(old + "/")]:
            self.names[new + path[len(old) :]] = self.names.pop(path)

    def remove(self, path: str) -> None:
        """A name is gone."""
        del self.names[path]

    def link(self, old: str, new: str) -> None:
        """A file got another name."""
        self.names[new] = self.names[old]

    def chmod(self, path: str, mode: int) -> None:
        """The permissions are others."""
        inode = self.inodes[self.names[path]]
        inode.mode = stat.S_IFMT(inode.mode) | mode

    def of_kind(self, kind: int) -> list[str]:
        """Return the names of directories, files or symlinks."""
        return [p for p, n in self.names.items() if stat.S_IFMT(self.inodes[n].mode) == kind]

    def differences(self, seen: Seen) -> list[str]:
        """Tell in words where a tree is none that this state allows."""
        wrong = [f"{path} is not there" for path in self.names.keys() - seen.keys()]
        wrong += [f"{path} should not be there" for path in seen.keys() - self.names.keys()]
        links: dict[int, int] = {}
        for number in self.names.values():
            links[number] = links.get(number, 0) + 1
        for path in self.names.keys() & seen.keys():
            inode = self.inodes[self.names[path]]
            mode, count, data = seen[path]
            if mode != inode.mode:
                wrong.append(f"{path} has mode {mode:o}, not {inode.mode:o}")
            elif not stat.S_ISDIR(mode) and count != links[self.names[path]]:
                wrong.append(f"{path} has {count} links, not {links[self.names[path]]}")
            elif data != inode.data and data not in inode.drafts:
                wrong.append(f"{path} has {_words(data)}, not {_words(inode.data)}")
        return wrong


def _words(data: bytes) -> str:
    return f"{len(data)} bytes {data[:12]!r}"


def look(top: Path) -> Seen:
    """Return what a tree looks like."""
    seen: Seen = {}
    for above, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(above, name)
            known = path.lstat()
            data = b""
            if stat.S_ISLNK(known.st_mode):
                data = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(known.st_mode):
                data = path.read_bytes()
                assert len(data) == known.st_size, path
            seen[str(path.relative_to(top))] = (known.st_mode, known.st_nlink, data)
    return seen


Change = Callable[[State], None]


class Story:
    """See the module's docstring. `seed` decides all that is done."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = random.Random(seed)
        self.state = State()  # after all answered calls
        self.answered: list[Change] = []
        self.in_flight: Change | None = None  # a call that got no answer
        self.synced = 0  # so many answered calls are in the cluster, as fsync says
        self.said = "nothing yet"
        self.on_answer: Callable[[int], None] = lambda count: None
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._last_number = 0
        self._handles: dict[int, int] = {}  # open files: number -> descriptor
        self._log = 0  # the one that stays open
        self._written: dict[int, int] = {}  # number -> answered calls when it was last written

    # ------------------------------------------------------------ what it may have left

    def possible(self) -> list[State]:
        """Return the states that may be found once everything answered is there."""
        if self.in_flight is None:
            return [self.state]
        return [self.state, self._after(len(self.answered) + 1)]

    def _after(self, count: int) -> State:
        state = State()
        for change in [*self.answered, *([self.in_flight] if self.in_flight else [])][:count]:
            change(state)
        return state

    def unlike(self, seen: Seen) -> list[str]:
        """Tell where a tree lacks something answered, or has what was never done."""
        wrong = [state.differences(seen) for state in self.possible()]
        return [] if [] in wrong else [*wrong[0], f"in flight: {self.said}"]

    def prefixes(self) -> Iterator[State]:
        """Yield the states after each number of calls that may be in the cluster, last first.

        Changes get there in their order: so fsync of a file takes along what went before the
        last write to it, and of a directory everything.
        """
        for count in range(len(self.answered) + (self.in_flight is not None), self.synced - 1, -1):
            yield self._after(count)

    # ------------------------------------------------------------ doing

    def run(self, steps: int) -> None:
        """Make so many changes; raises the OSError of a call that fails."""
        try:
            for _ in range(steps):
                self.random.choices(_KINDS, _WEIGHTS)[0](self)
            for number in list(self._handles):
                self._close(number)
        except OSError:
            for handle in self._handles.values():
                with contextlib.suppress(OSError):  # the mount is dead: the descriptor goes
                    os.close(handle)
            raise

    def _call(self, said: str, call: Callable[[], object], change: Change) -> None:
        self.said, self.in_flight = said, change
        call()
        change(self.state)
        self.answered.append(change)
        self.in_flight = None
        self.on_answer(len(self.answered))

    def _open(self, path: str, number: int, flags: int, change: Change, mode: int = 0) -> None:
        def call() -> None:
            self._handles[number] = os.open(self.top / path, flags, mode)

        is_written = flags & os.O_CREAT or (flags & os.O_TRUNC and self.state.inodes[number].data)
        self._call(f"open {path} {flags:o}", call, change)
        if is_written:
            self._written[number] = len(self.answered)

    def _write(self, number: int, offset: int, data: bytes) -> None:
        handle = self._handles[number]
        for at in range(0, len(data), PIECE):
            self._write_piece(handle, number, offset + at, data[at : at + PIECE])

    def _write_piece(self, handle: int, number: int, offset: int, data: bytes) -> None:
        def call() -> None:
            done = os.pwrite(handle, data, offset)
            if done < len(data):  # killed between its requests: the next call would tell
                self.in_flight = lambda state: state.write(number, offset, data[:done])
                raise OSError(errno.ENOTCONN, f"cut short after {done} bytes")

        said = f"write {len(data)} at {offset} of {number}"
        self._call(said, call, lambda state: state.write(number, offset, data))
        self._written[number] = len(self.answered)

    def _sync(self, number: int) -> None:
        handle = self._handles[number]
        self._call(f"fsync {number}", lambda: os.fsync(handle), lambda s: s.settle(number))
        if number in self.state.names.values():  # what has no name stays on this machine
            self.synced = max(self.synced, self._written.get(number, 0))

    def _close(self, number: int) -> None:
        # It is gone even if closing fails: closed twice it would be another thread's file.
        handle = self._handles.pop(number)
        self._call(f"close {number}", lambda: os.close(handle), lambda s: s.settle(number))

    def _save(self, number: int, offset: int, data: bytes) -> None:
        self._write(number, offset, data)
        if self.random.random() < 0.15:
            self._sync(number)
        self._close(number)

    # ------------------------------------------------------------ drawing

    def _content(self) -> bytes:
        sizes = _LARGE if self.random.random() < 0.03 else _SIZES
        return self.random.randbytes(self.random.choice(sizes))

    def _number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _fresh(self, word: str) -> str:
        folders = ["", *(path + "/" for path in self.state.of_kind(stat.S_IFDIR))]
        return f"{self.random.choice(folders)}{word}{self._number()}"

    def _one_of(self, *kinds: int) -> str | None:
        found = [path for kind in kinds for path in self.state.of_kind(kind)]
        return self.random.choice(found) if found else None

    # ------------------------------------------------------------ the kinds of changes

    def make_directory(self) -> None:
        """mkdir"""
        path, number = self._fresh("d"), self._number()
        mode = stat.S_IFDIR | (0o755 & ~self._umask)
        self._call(
            f"mkdir {path}",
            lambda: os.mkdir(self.top / path, 0o755),
            lambda state: state.make(path, number, mode),
        )

    def make_file(self) -> None:
        """create, write, close"""
        path = self._fresh("f")
        self._save(self._create(path), 0, self._content())

    def _create(self, path: str) -> int:
        number, bits = self._number(), self.random.choice((0o644, 0o600, 0o755))
        mode = stat.S_IFREG | (bits & ~self._umask)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._open(path, number, flags, lambda state: state.make(path, number, mode), bits)
        return number

    def replace_file(self) -> None:
        """Save as an editor does: a draft beside it, renamed over it."""
        path = self._one_of(stat.S_IFREG)
        if path is not None:
            draft = f"{path}.{self._number()}"
            self._save(self._create(draft), 0, self._content())
            self._rename(draft, path)

    def overwrite(self) -> None:
        """Bytes somewhere, or all of them anew."""
        path = self._one_of(stat.S_IFREG)
        if path is None:
            return
        number = self.state.names[path]
        size = len(self.state.inodes[number].data)
        if number in self._handles:
            return
        if self.random.random() < 0.5:
            self._open(path, number, os.O_WRONLY | os.O_TRUNC, lambda state: state.cut(number))
            self._save(number, 0, self._content())
        else:
            self._open(path, number, os.O_WRONLY, lambda state: None)
            self._save(number, self.random.randint(0, size), self._content())

    def append(self) -> None:
        """open, append, close"""
        path = self._one_of(stat.S_IFREG)
        if path is not None and self.state.names[path] not in self._handles:
            number = self.state.names[path]
            self._open(path, number, os.O_WRONLY | os.O_APPEND, lambda state: None)
            self._save(number, len(self.state.inodes[number].data), self._content()[:5_000])

    def log(self) -> None:
        """A line more in a file that stays open; sometimes it is synced, or closed."""
        if self._log not in self._handles:
            self._log = self._create(self._fresh("log"))
        line = b"%d\n" % len(self.answered)
        self._write(self._log, len(self.state.inodes[self._log].data), line)
        chance = self.random.random()
        if chance < 0.3:
            self._sync(self._log)
        elif chance < 0.4:
            self._close(self._log)

    def sync_directory(self) -> None:
        """fsync of a directory"""
        path = self._one_of(stat.S_IFDIR)
        if path is not None:
            handle = os.open(self.top / path, os.O_RDONLY)
            try:
                self._call(f"fsync {path}", lambda: os.fsync(handle), lambda state: None)
            finally:
                os.close(handle)
            self.synced = len(self.answered)

    def make_symlink(self) -> None:
        """symlink"""
        path, number = self._fresh("l"), self._number()
        target, mode = f"to/{number}", stat.S_IFLNK | 0o777
        self._call(
            f"symlink {path}",
            lambda: os.symlink(target, self.top / path),
            lambda state: state.make(path, number, mode, target.encode()),
        )

    def make_link(self) -> None:
        """link"""
        old, new = self._one_of(stat.S_IFREG), self._fresh("h")
        if old is not None:
            self._call(
                f"link {old} {new}",
                lambda: os.link(self.top / old, self.top / new),
                lambda state: state.link(old, new),
            )

    def rename(self) -> None:
        """rename, of a directory too"""
        old, new = self._one_of(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), self._fresh("r")
        if old is not None and not new.startswith(old + "/"):
            self._rename(old, new)

    def _rename(self, old: str, new: str) -> None:
        self._call(
            f"rename {old} {new}",
            lambda: os.rename(self.top / old, self.top / new),
            lambda state: state.rename(old, new),
        )

    def chmod(self) -> None:
        """chmod"""
        path, mode = self._one_of(stat.S_IFREG), self.random.choice((0o600, 0o755, 0o640))
        if path is not None:
            self._call(
                f"chmod {path} {mode:o}",
                lambda: os.chmod(self.top / path, mode),
                lambda state: state.chmod(path, mode),
            )

    def remove(self) -> None:
        """unlink, or rmdir of what is empty"""
        path = self._one_of(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        if path is None or any(name.startswith(path + "/") for name in self.state.names):
            return
        is_folder = stat.S_ISDIR(self.state.inodes[self.state.names[path]].mode)
        remove = os.rmdir if is_folder else os.unlink
        self._call(
            f"remove {path}", lambda: remove(self.top / path), lambda state: state.remove(path)
        )


_KINDS = (
    Story.make_file, Story.make_directory, Story.replace_file, Story.overwrite, Story.append,
    Story.log, Story.make_symlink, Story.make_link, Story.rename, Story.chmod, Story.remove,
    Story.sync_directory,
)  # fmt: skip
_WEIGHTS = (30, 8, 8, 8, 6, 6, 4, 3, 8, 5, 8, 1)
