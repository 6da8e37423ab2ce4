"""Who asks, and where: people's paths lead through their home space into their team folders.

A `Visitor` stands in one space. `aim` walks a path of theirs up to the junction where another space
begins, and returns the visitor there with the rest of the path; `into` does the same for an id.
Both ask `Spaces.check`, so nothing is reached around it. What is answered is `shown` with paths as
its reader would say them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Ino, SpaceId
from nameserver.db import Cx
from nameserver.files.browse import View
from nameserver.files.items import Item
from nameserver.files.paths import FileId
from nameserver.gate import Identity
from nameserver.spaces import READ, Junction
from nameserver.tree.batch import Author

if TYPE_CHECKING:
    from nameserver.service import Service


_MOVED_ON: Final = (
    "SELECT t.space_id FROM team t JOIN inode i ON i.space_id = t.origin_id + 0 AND i.ino = ?"
    " AND i.died >= t.origin_seq AND i.died <= t.origin_end"
    " WHERE t.origin_id = ? AND t.deleted_ns = 0 AND NOT EXISTS (SELECT 1 FROM inode n"
    " WHERE n.space_id = i.space_id AND n.ino = i.ino AND n.died IS NULL) LIMIT 1"
)


class Visitor(NamedTuple):
    """Somebody, at a device, in one of the spaces that are open to them; at first their home.

    `above` leads from the home's root to this space; `place` is the junction there.
    """

    who: Identity
    space: SpaceId
    author: Author
    home: SpaceId
    junctions: tuple[Junction, ...] = ()
    above: tuple[bytes, ...] = ()
    place: FileId | None = None

    @property
    def is_home(self) -> bool:
        """Tell whether this is their own space."""
        return self.space == self.home

    def junction(self, ino: Ino) -> Junction | None:
        """Return the team folder that a directory of the home stands for."""
        return next((each for each in self.junctions if each.ino == ino), None)


class Visitors:
    """See the module. Thread-safe; keeps nothing."""

    def __init__(self, service: Service) -> None:
        self._db, self._devices, self._spaces = service.db, service.devices, service.spaces

    def visitor(self, who: Identity, device: str = "") -> Visitor:
        """Return who somebody is here. `device`: one of theirs, if it is not the token's.

        NOT_FOUND when there is no such device (any more).
        """
        label = who.device_name or who.name
        with self._db.read() as cx:
            space, _, _ = self._spaces.named(cx, who.user, "")
            if device:
                found = self._devices.find(cx, device)
                if found is None or found.user != who.user or found.is_revoked:
                    raise EverfoldError(Kind.NOT_FOUND, "there is no such device", device[:80])
                label = found.name
            junctions = tuple(self._spaces.junctions(cx, who.user))
        return Visitor(who, space, Author(who.name, label), space, junctions)

    # ------------------------------------------------------------ from space to space

    def aim(
        self, me: Visitor, names: Sequence[bytes], need: str = READ
    ) -> tuple[Visitor, list[bytes]]:
        """Return the visitor in the space that a path leads into, and the rest of the path.

        READ_ONLY, FORBIDDEN when they may not do there what they need to.
        """
        if me.is_home and me.junctions:
            with self._db.read() as cx:
                found = self._cross(cx, me, names)
            if found is not None:
                junction, depth = found
                return self._within(me, junction, tuple(names[:depth]), need), list(names[depth:])
        self._spaces.check(me.space, me.who.user, need)
        return me, list(names)

    def _cross(self, cx: Cx, me: Visitor, names: Sequence[bytes]) -> tuple[Junction, int] | None:
        view = View(cx, me.home)
        here = ROOT
        for depth, name in enumerate(names, 1):
            found = view.child(here, name)
            if found is None or not found.is_dir:
                return None
            junction = me.junction(found.ino)
            if junction is not None:
                return junction, depth
            here = found.ino
        return None

    def into(self, me: Visitor, space: SpaceId, need: str = READ) -> Visitor:
        """Return the visitor in a space that is open to them; NOT_FOUND, READ_ONLY, FORBIDDEN."""
        self._spaces.check(space, me.who.user, need)
        if space == me.space:
            return me
        if space == me.home:
            return me._replace(space=space, above=(), place=None)
        for junction in me.junctions:
            if junction.space == space and junction.name is not None:
                with self._db.read() as cx:
                    above = (*View(cx, me.home).path_of(junction.parent), junction.name)
                return self._within(me, junction, above, need)
        return me._replace(space=space, above=(), place=None)  # let in a moment ago

    def _within(
        self, me: Visitor, junction: Junction, above: tuple[bytes, ...], need: str
    ) -> Visitor:
        self._spaces.check(junction.space, me.who.user, need)
        place = FileId(me.home, junction.parent)
        return me._replace(space=junction.space, above=above, place=place)

    def moved_on(self, file: FileId) -> FileId:
        """Return the id that a file has now, if the folder that it was in became a team folder."""
        with self._db.read() as cx:
            row = cx.one(_MOVED_ON, file.ino, file.space)
        return FileId(SpaceId(row[0]), file.ino) if row else file

    def everywhere(self, me: Visitor, below: Sequence[bytes] = ()) -> list[Visitor]:
        """Return the visitor in each space that is open to them below a path of the home."""
        if not me.is_home:
            return [me]
        found = [me]
        for junction in me.junctions:
            if junction.name is None:
                continue  # deleted
            try:
                there = self.into(me, junction.space)
            except EverfoldError as err:
                if err.kind is not Kind.NOT_FOUND:
                    raise
                continue  # removed a moment ago
            if there.above[: len(below)] == tuple(below):
                found.append(there)
        return found

    # ------------------------------------------------------------ what is told

    def shown(self, me: Visitor, item: Item) -> Item:
        """Return an item as the visitor who found it sees it: only for answers, not for looking."""
        if me.is_home:
            junction = me.junction(item.ino) if item.is_dir else None
            return item if junction is None else self._as_root(me, item, junction)
        if item.name or not me.above:
            return item._replace(above=me.above, may=self._may(item.space, me))
        return item._replace(
            where=me.above[:-1], name=me.above[-1], at=me.place, may=self._may(item.space, me)
        )

    def _as_root(self, me: Visitor, item: Item, junction: Junction) -> Item:
        """Return the root of a team folder under the name of its junction."""
        with self._db.read() as cx:
            root = View(cx, junction.space).root()
        return root._replace(
            where=item.where, name=item.name, at=FileId(me.home, item.parent),
            may=junction.permission, died_ns=item.died_ns,
        )  # fmt: skip

    def _may(self, space: SpaceId, me: Visitor) -> str:
        return next((each.permission for each in me.junctions if each.space == space), "")
