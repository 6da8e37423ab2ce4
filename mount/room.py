"""How much more may be written: what the quota left, less what is on its way to the cluster.

A write is answered before its commit, so the quota must refuse it here: what the nameserver
refuses later was promised to somebody. The nameserver tells what is left with the session, with
a write lease and with every commit (the *allowance*); growth that no commit has counted yet is
known here. Other mounts and spaces of the same owner share the quota: what they use between two
commits of ours is noticed by the commit, and told by the next fsync or close.

`take` is called for every write: it costs an addition and a comparison, and looks at the open
files only when the sum (which is never too small) has come to the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from everfold.errors import EverfoldError, Kind
from mount.content import Content


class Room:
    """See the module's docstring. The owner (`mount.core`) calls under its lock."""

    def __init__(self, left: int | None, contents: Callable[[], Iterable[Content]]) -> None:
        """`left`: bytes, None without a quota."""
        self._left = left
        self._contents = contents
        self._taken = 0  # at least the growth that is on its way

    @property
    def is_limited(self) -> bool:
        """Tell whether there is a quota."""
        return self._left is not None

    def is_left(self, left: int | None) -> None:
        """Take in what the nameserver said is left after all commits that are settled here."""
        self._left = left
        if self._taken < 0 and left is not None:
            self._taken = left  # what was cut may be counted in `left` by now: sum up again

    def take(self, growth: int) -> None:
        """Count bytes by which a file is about to grow. QUOTA when they are too many."""
        if self._left is None or growth <= 0:
            return
        self._taken += growth
        if self._taken <= self._left:
            return
        self._taken = sum(  # less than nothing where files were cut
            content.size - content.committed_size
            for content in self._contents()
            if content.is_active and not content.is_orphan
        )
        if self._taken + growth > self._left:
            raise EverfoldError(Kind.QUOTA, "the quota is used up")
        self._taken += growth
