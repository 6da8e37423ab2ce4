"""Looking through several spaces at once: a search, and what was deleted anywhere.

Each space has commit numbers of its own, so a moment of them all is told as a time: microseconds,
which are larger than any commit number. The next page asks for each space as it was then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from everfold.model import NOW, Seq, SpaceId
from everfold.services import Clock
from nameserver.db import Cx, Database
from nameserver.files.browse import Matches, Page, View
from nameserver.files.items import Item
from nameserver.files.visitors import Visitor

_TIMES_FROM: Final = 10**15  # microseconds since the epoch: since 2001
_LAST: Final = "SELECT MAX(at_ns) FROM commit_log WHERE space_id = ? AND seq > 0"
_UP_TO: Final = "SELECT MAX(seq) FROM commit_log WHERE space_id = ? AND at_ns < ?"

Found = tuple[Page, list[Visitor]]
"""A part of what was found, and by whom each thing: the visitor in that space."""


class Surveys:
    """See the module. Thread-safe."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    def search(
        self,
        everywhere: Sequence[Visitor],
        below: Sequence[bytes],
        matches: Matches,
        offset: int,
        limit: int,
        asked: Seq = NOW,
        files_only: bool = False,
    ) -> Found:
        """Return a part of what has a fitting name, in order of path.

        The first of the spaces is looked through below a path, the others wholly.
        """
        with self._db.read() as cx:
            moment = self._moment(cx, everywhere, asked)
            found = []
            for me in everywhere:
                seq = _seq(cx, me.space, moment, is_first=me is everywhere[0])
                if seq is None:
                    continue
                view = View(cx, me.space, seq)
                folder = view.at(list(below) if me is everywhere[0] else [])
                first, count = (0, offset + limit) if len(everywhere) > 1 else (offset, limit)
                page = view.search(folder, matches, first, count, files_only=files_only)
                found.append((me, page))
        if len(everywhere) == 1:
            return found[0][1], [everywhere[0]] * len(found[0][1].items)
        return _merged(found, offset, limit, moment, lambda me, item: (*me.above, *item.names))

    def trash(self, everywhere: Sequence[Visitor], offset: int, limit: int) -> Found:
        """Return a part of what was deleted, the latest first."""
        with self._db.read() as cx:
            found = [(me, View(cx, me.space).trash(None, 0, offset + limit)) for me in everywhere]
        seq = found[0][1].seq
        return _merged(found, offset, limit, seq, lambda _, item: (-item.died_ns, item.names))

    def _moment(self, cx: Cx, everywhere: Sequence[Visitor], asked: Seq) -> Seq:
        if asked != NOW or len(everywhere) == 1:
            return asked
        last = [cx.one(_LAST, me.space) for me in everywhere]
        latest = max((row[0] for row in last if row and row[0]), default=0)
        return Seq(max(self._clock.time_ns(), latest) // 1000)


def _seq(cx: Cx, space: SpaceId, moment: Seq, is_first: bool) -> Seq | None:
    """Return the commit to look at in one of the spaces; None: there was nothing yet."""
    if moment < _TIMES_FROM:
        return moment if is_first else NOW  # of one space alone, before there were more
    row = cx.one(_UP_TO, space, (moment + 1) * 1000)
    return Seq(row[0]) if row and row[0] else None


def _merged(
    found: Sequence[tuple[Visitor, Page]],
    offset: int,
    limit: int,
    seq: Seq,
    key: Callable[[Visitor, Item], tuple[object, ...]],
) -> Found:
    pairs = [(me, item) for me, page in found for item in page.items]
    pairs.sort(key=lambda pair: key(*pair))
    part = pairs[offset : offset + limit]
    page = Page(
        seq,
        [item for _, item in part],
        sum(page.total for _, page in found),
        any(page.is_cut for _, page in found),
    )
    return page, [me for me, _ in part]
