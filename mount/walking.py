"""Lists directories that a program is about to come to, while it looks at those before them.

Who walks through a tree (`find`, a build, `git status`) comes from each directory to those inside
it, then to the next beside it, in the order of inode numbers or in one like it. Each that is
not known costs a question, 0.25 ms or more, that nothing else is done in. So where a directory
was listed, what is inside it is expected next, then what follows it. When somebody comes to one
of the first that are expected, some are listed ahead, many with one question; for each of them
that he comes to then, twice as many, up to `AHEAD_MAX`. When he goes elsewhere, none any more.
Several may walk at once: git's threads each take a part of the tree.

Only hints: what fails is left to whoever asks. Bounded by `AHEAD_MAX`, `EXPECTED_MAX`, `WALKS_MAX`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Final

from everfold import wire
from everfold.errors import EverfoldError
from everfold.model import Entry, Ino, SpaceId
from mount.tree import Tree

AHEAD_MAX: Final = 64  # directories
EXPECTED_MAX: Final = 10_000
WALKS_MAX: Final = 8
NAMES_MAX: Final = 1_000  # of a directory that is listed before it was asked for whole
_FIRST: Final = 4  # directories listed ahead to begin with
_NEAR: Final = 8  # that many of those expected may be passed over
_AT_ONCE: Final = 8  # directories in one question
_SIBLINGS_MAX: Final = 5_000  # names among which siblings are looked for: about 1 ms
_WAIT_S: Final = 0.2  # for one question, before the walker asks for itself
_log = logging.getLogger(__name__)


class Walk:
    """Where somebody seems to be going."""

    __slots__ = ("ahead", "expected", "window")

    def __init__(self, expected: Iterable[Ino]) -> None:
        self.expected = deque(expected)  # in the order in which he comes to them
        self.window = 0  # how many may be ahead; 0: perhaps nobody walks
        self.ahead = 0  # directories that are listed for him, or being listed

    def expect(self, entries: Iterable[Entry]) -> None:
        """Expect the directories among these, as they were made, before all others."""
        inside = [entry.attr.ino for entry in entries if entry.attr.is_dir]
        self.expected.extendleft(sorted(inside, reverse=True))
        while len(self.expected) > EXPECTED_MAX:
            self.expected.pop()

    def passes(self, directory: Ino) -> bool:
        """Tell whether a directory is one of the first expected; it is no more, then."""
        near = list(itertools.islice(self.expected, _NEAR))
        if directory not in near:
            return False
        for _ in range(near.index(directory) + 1):
            self.expected.popleft()
        return True


class Walking:
    """See the module's docstring. `lock` is the tree's, and guards all that is here."""

    def __init__(
        self,
        space: SpaceId,
        tree: Tree,
        lock: AbstractContextManager[object],
        ask: Callable[[wire.ListMany], wire.Listings],
    ) -> None:
        self._space, self._tree, self._lock, self._ask = space, tree, lock, ask
        self._lister = ThreadPoolExecutor(1, "walking")
        self._walks: list[Walk] = []  # the one that went on last is the first
        self._coming: dict[Ino, Future[None]] = {}
        self.ahead: dict[Ino, Walk] = {}  # directories that are listed, and nobody came to yet

    def awaits(self, directory: Ino) -> bool:
        """Wait for the listing of a directory if it is under way; tell whether it was."""
        coming = self._coming.get(directory)
        if coming is not None:
            wait((coming,), _WAIT_S)
        return coming is not None

    def expects(self, directory: Ino) -> Walk | None:
        """Somebody comes to a directory of which nothing is known: return his walk, if any.

        Hold the lock.
        """
        for walk in self._walks:
            if walk.passes(directory):
                self._walks.remove(walk)
                self._walks.insert(0, walk)
                walk.window = max(walk.window, _FIRST)
                self._let_go(walk)  # he went past what is listed
                return walk
        return None

    def listed(
        self, walk: Walk | None, directory: Ino, parent: Ino, entries: Iterable[Entry]
    ) -> None:
        """Somebody had a directory listed, after `expects`. Hold the lock."""
        if walk is None:
            walk = Walk(self._after(directory, parent))
            self._walks.insert(0, walk)
            if len(self._walks) > WALKS_MAX:
                self._let_go(self._walks.pop())
        walk.expect(entries)
        self._list_on(walk)

    def arrives(self, directory: Ino) -> None:
        """Somebody comes to a directory of `ahead`. Hold the lock."""
        walk = self.ahead.pop(directory)
        walk.ahead -= 1
        walk.window = min(2 * walk.window, AHEAD_MAX)
        self._list_on(walk)

    def forget(self) -> None:
        """Expect nobody any more. Hold the lock."""
        self._walks.clear()
        self.ahead.clear()

    def _let_go(self, walk: Walk) -> None:
        """What is listed for a walk is not ahead of it any more."""
        for ino in [ino for ino, whose in self.ahead.items() if whose is walk]:
            del self.ahead[ino]
            walk.ahead -= 1

    def _after(self, directory: Ino, parent: Ino) -> list[Ino]:
        """Return the directories beside one, those that were made after it."""
        children, attr_of = self._tree.children(parent), self._tree.attr
        if len(children) > _SIBLINGS_MAX or parent == directory:  # the root is in itself
            return []
        later = sorted(ino for ino in children.values() if ino > directory)
        return [ino for ino in later if (attr := attr_of(ino)) is not None and attr.is_dir]

    def _list_on(self, walk: Walk) -> None:
        """Have directories listed as far as a walk's window reaches, when that are a few."""
        if walk.window - walk.ahead < _FIRST:
            return
        while batch := self._take(walk, min(walk.window - walk.ahead, _AT_ONCE)):
            with contextlib.suppress(RuntimeError):  # the mount is ending
                listing = self._lister.submit(self._list, walk, batch)
                self._coming.update(dict.fromkeys(batch, listing))
                walk.ahead += len(batch)

    def _take(self, walk: Walk, count: int) -> list[Ino]:
        """Take the next that are expected and not listed yet."""
        batch: list[Ino] = []
        while walk.expected and len(batch) < count:
            ino = walk.expected.popleft()
            if not (self._tree.is_listed(ino) or ino in self._coming or ino in batch):
                batch.append(ino)
        return batch

    def _list(self, walk: Walk, directories: list[Ino]) -> None:
        pages: list[wire.Listing] = []
        try:
            pages = self._ask(wire.ListMany(self._space, directories, NAMES_MAX)).found
        except EverfoldError as err:
            _log.info("nothing is listed ahead: %s", err)
        except Exception:  # noqa: BLE001 - the last stop of a defect: nobody asks for the outcome
            _log.exception("listing ahead failed")
        with self._lock:
            for ino in directories:
                self._coming.pop(ino, None)
            walk.ahead -= len(directories)
            self._install(walk, pages)

    def _install(self, walk: Walk, pages: list[wire.Listing]) -> None:
        """Take in listings that were asked for ahead. Hold the lock."""
        inside: list[Entry] = []
        for page in pages:
            ino = page.attr.ino
            is_new = self._tree.install_listing(ino, page.parent, page.entries, page.seq)
            if is_new and walk in self._walks:
                self.ahead[ino] = walk
                walk.ahead += 1
                inside += page.entries
        walk.expect(inside)
