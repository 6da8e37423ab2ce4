"""What people's programs may do with files: the one service under every JSON route and the page.

A `Visitor` is somebody in a space that is open to them: paths lead from their own into their team
folders (`visitors`). What is asked for by id is checked to be theirs first; of anything else they
do not learn that it exists. What they may do there, `Spaces` decides, and again in the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport
from everfold.model import NOW, ROOT, SIZE_MAX, Ino, Seq, SpaceId, Version
from nameserver.files import paths
from nameserver.files.blocks import Blocks, Connect
from nameserver.files.browse import Page, View, containing
from nameserver.files.budget import BUDGET, Budget
from nameserver.files.changes import After, Build, Changes, Draft, Told, need, nothing_else
from nameserver.files.events import Events
from nameserver.files.figures import Figures, together
from nameserver.files.intake import Content, Intake
from nameserver.files.items import Item, Json
from nameserver.files.outlet import Outlet
from nameserver.files.paths import FileId
from nameserver.files.purge import forget
from nameserver.files.replicas import replica_map
from nameserver.files.shares import Shares
from nameserver.files.surveys import Surveys
from nameserver.files.uploads import Uploads
from nameserver.files.visitors import Visitor, Visitors
from nameserver.gate import Identity
from nameserver.spaces import OWNER, READ, WRITE, Junction
from nameserver.tree import checks

if TYPE_CHECKING:
    from nameserver.service import Service

__all__ = ["Asked", "FileService", "Visitor"]

_THREADS: Final = 12  # that carry blocks to and from the datanodes
T = TypeVar("T")


class Asked(NamedTuple):
    """A part of a listing that somebody asks for; `seq` as an earlier page told it, 0: now."""

    path: str = ""
    words: str = ""
    is_recursive: bool = False
    page: int = 1
    per_page: int = 50
    seq: Seq = NOW
    order: str = "name"
    is_falling: bool = False


class FileService:
    """See the module. Thread-safe."""

    def __init__(self, service: Service, connect: Connect = HttpTransport) -> None:
        self._service = service
        self._db = service.db
        self._pool = ThreadPoolExecutor(_THREADS, "files")
        self.room_in, self.room_out = Budget(BUDGET), Budget(BUDGET)
        self.blocks = Blocks(service.ledger, service.clock, service.policy, connect)
        self.figures = Figures(service.db, service.clock)
        self.shares = Shares(service, self)
        self.uploads = Uploads(service, self)
        self.events = Events(service.db, service.clock, service.bell, service.spaces)
        self.visitors = Visitors(service)
        self._surveys = Surveys(service.db, service.clock)
        self.changes = Changes(
            service.db, service.clock, service.policy, service.ledger, service.bell, service.leases
        )

    def stop(self) -> None:
        """Let go of whoever waits for datanodes."""
        self.blocks.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def visitor(self, who: Identity, device: str = "") -> Visitor:
        """Return who somebody is here. `device`: one of theirs, if it is not the token's.

        NOT_FOUND when there is no such device (any more).
        """
        return self.visitors.visitor(who, device)

    def into(self, me: Visitor, space: SpaceId, need: str = READ) -> Visitor:
        """Return the visitor in another space; NOT_FOUND, READ_ONLY, FORBIDDEN."""
        return self.visitors.into(me, space, need)

    def aim(self, me: Visitor, path: str, need: str = READ) -> tuple[Visitor, str]:
        """Return the visitor in the space that a path leads into, and the path there."""
        there, names = self.visitors.aim(me, paths.parse(path), need)
        tail = "/" if path.endswith("/") and names else ""
        return there, "/".join(name.decode() for name in names) + tail

    # ------------------------------------------------------------ looking

    def info(self, me: Visitor, file: str) -> Item:
        """Return a file by its id; NOT_FOUND."""
        return self._look(me, file, lambda view, known: view.by_id(known))

    def lost(self, me: Visitor, file: str) -> Item:
        """Return a deleted file by its id; NOT_FOUND."""
        if (junction := self._deleted(me, file)) is not None:
            with self._db.read() as cx:
                item = View(cx, me.home).lost_id(FileId(me.home, junction.ino))
            return self.visitors.shown(me, item)
        return self._look(me, file, lambda view, known: view.lost_id(known))

    def at(self, me: Visitor, path: str) -> Item:
        """Return what is at a path; NOT_FOUND, NOT_DIR."""
        there, names = self.visitors.aim(me, paths.parse(path))
        with self._db.read() as cx:
            item = View(cx, there.space).at(names)
        return self.visitors.shown(there, item)

    def listing(self, me: Visitor, ask: Asked, *, files_only: bool = False) -> Page:
        """Return a part of a directory, or of what is below it, team folders included."""
        there, names = self.visitors.aim(me, paths.parse(ask.path))
        offset = (ask.page - 1) * ask.per_page
        if not (ask.words or ask.is_recursive):
            with self._db.read() as cx:
                view = View(cx, there.space, ask.seq)
                page = view.page(view.at(names), offset, ask.per_page, ask.order, ask.is_falling)
            return self._told(there, page)
        everywhere = self.visitors.everywhere(there, names)
        found = self._surveys.search(
            everywhere, names, containing(ask.words), offset, ask.per_page, ask.seq, files_only
        )
        return self._survey(found)

    def within(self, me: Visitor, file: FileId, path: str) -> Item:
        """Return what is at a path below a folder, or with an empty one the thing itself."""
        names = paths.parse(path)
        with self._db.read() as cx:
            view = View(cx, file.space)
            return view.below(view.by_id(file), names)

    def listing_of(self, me: Visitor, folder: Item, ask: Asked) -> Page:
        """Return a part of a folder's listing, that folder alone."""
        offset = (ask.page - 1) * ask.per_page
        with self._db.read() as cx:
            view = View(cx, folder.space, ask.seq)
            return view.page(folder, offset, ask.per_page, ask.order, ask.is_falling)

    def trash(self, me: Visitor, ask: Asked) -> Page:
        """Return a part of what was deleted in a directory, or anywhere."""
        there, names = self.visitors.aim(me, paths.parse(ask.path))
        offset = (ask.page - 1) * ask.per_page
        if ask.is_recursive:
            everywhere = self.visitors.everywhere(there)
            return self._survey(self._surveys.trash(everywhere, offset, ask.per_page))
        with self._db.read() as cx:
            view = View(cx, there.space)
            page = view.trash(view.at(names), offset, ask.per_page)
        return self._told(there, page)

    def stats(self, me: Visitor, days: int) -> Json:
        """Return figures of all that is open to the visitor, the team folders also one by one."""
        home, *others = self.visitors.everywhere(me)
        found = self.figures.of(home.space, days)
        if not others:
            return found
        teams = [self.figures.of(each.space, days) for each in others]
        told = ("total_bytes", "history_bytes", "total_files", "total_versions")
        return {
            **together(found, teams),
            "teams": [
                {"team_id": there.space, "path": paths.shown(there.above)}
                | {key: figures[key] for key in told}
                for there, figures in zip(others, teams, strict=True)
            ],
        }

    def _told(self, me: Visitor, page: Page) -> Page:
        return page._replace(items=[self.visitors.shown(me, item) for item in page.items])

    def _survey(self, found: tuple[Page, list[Visitor]]) -> Page:
        page, whose = found
        pairs = zip(whose, page.items, strict=True)
        return page._replace(items=[self.visitors.shown(me, item) for me, item in pairs])

    def _look(self, me: Visitor, file: str, look: Callable[[View, FileId], Item]) -> Item:
        there, known = self._mine(me, file)
        with self._db.read() as cx:
            item = look(View(cx, known.space), known)
        return self.visitors.shown(there, item)

    def _mine(self, me: Visitor, file: str, need: str = READ) -> tuple[Visitor, FileId]:
        """Return the visitor in the space of a file that they named, and the file.

        A junction and the root of its team folder are one thing, to which both ids lead.
        """
        known = paths.parse_id(file)
        if known.space == me.home and (junction := me.junction(known.ino)) is not None:
            known = FileId(junction.space, ROOT)
        elif known.space == me.home:
            known = self.visitors.moved_on(known)
        try:
            return self.visitors.into(me, known.space, need), known
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            raise paths.no_such_file(file) from err

    def _junction(self, me: Visitor, file: FileId) -> Junction | None:
        """Return the junction of a team folder whose root a file is."""
        if file.ino != ROOT:
            return None
        return next((each for each in me.junctions if each.space == file.space), None)

    def _deleted(self, me: Visitor, file: str) -> Junction | None:
        """Return the place of a deleted team folder of one's own that an id means."""
        known = paths.parse_id(file)
        ids = {FileId(each.space, ROOT): each for each in me.junctions if each.name is None}
        ids |= {FileId(me.home, each.ino): each for each in ids.values()}
        return ids.get(known)

    def _change(
        self,
        me: Visitor,
        build: Build,
        stored: Sequence[wire.Stored] = (),
        after: After = nothing_else,
        may: str = WRITE,
    ) -> Item | None:
        """Commit a draft in the visitor's space; they must still be let to, when it is done."""

        def allowed(draft: Draft) -> Told:
            self._service.spaces.require(draft.cx, me.space, me.who.user, may)
            return build(draft)

        item = self.changes.apply(me.space, me.author, allowed, stored, after)
        return None if item is None else self.visitors.shown(me, item)

    # ------------------------------------------------------------ bytes

    def intake(self, me: Visitor, length: int | None) -> Intake:
        """Begin to take a file's bytes, in the visitor's space. READ_ONLY; TOO_LARGE, QUOTA when
        `length` bytes are too many."""
        self._service.spaces.check(me.space, me.who.user, WRITE)
        policy = self._service.policy
        size_max = policy.max_file_size or SIZE_MAX
        taken = Intake(self.blocks, self._pool, self.room_in, me.space, size_max, self._room(me))
        taken.check(length or 0)
        return taken

    def _room(self, me: Visitor) -> int | None:
        """Return how large a file may become at most: also one that replaces all others.

        The quota is that of the space's owner.
        """
        with self._db.read() as cx:
            row = cx.one(
                "SELECT a.quota FROM space s JOIN account a ON a.id = s.owner_id WHERE s.id = ?",
                me.space,
            )
        return int(row[0]) if row and row[0] else None

    def keep(
        self, me: Visitor, path: Sequence[bytes], content: Content, after: After = nothing_else
    ) -> Item:
        """Let a path of the visitor's space have this content, which is in that space, from now on.

        QUOTA, IS_DIR, NOT_DIR, READ_ONLY; nothing else stays. `after` runs in the same transaction.
        """
        paths.check_extension(path[-1], self._service.policy.allowed_extensions)

        def build(draft: Draft) -> Sequence[bytes]:
            draft.write(path, content)
            return path

        return need(self._change(me, build, content.stored, after))

    def target(
        self, me: Visitor, path: str, filename: str, within: FileId | None = None
    ) -> list[bytes]:
        """Return the path of an upload within the visitor's space: `path`, or the file's own name,
        perhaps in that folder.

        All of it is below the folder `within`; when that is a file, it is the target itself.
        INVALID for what cannot be a path, or may not be one for its ending.
        """
        base: list[bytes] = []
        if within is not None:
            shared = self.within(me, within, "")
            base = list(shared.names)
            if not shared.is_dir:
                return base
        names = base + paths.parse(path)
        if names == base or path.endswith("/") or self._is_folder(me, names):
            names += paths.parse_new(filename)
        for name in names[len(base) :]:
            checks.new_name(name)
        paths.check_extension(names[-1], self._service.policy.allowed_extensions)
        return names

    def _is_folder(self, me: Visitor, names: list[bytes]) -> bool:
        with self._db.read() as cx:
            try:
                found = View(cx, me.space).find(names)
            except EverfoldError as err:
                if err.kind is Kind.NOT_FOUND:
                    return False
                raise
        return found is not None and found.is_dir

    def outlet(self, content: tuple[SpaceId, Ino, Seq], start: int, stop: int) -> Outlet:
        """Return a part of a content, to be streamed."""
        tree = self._service.tree
        return Outlet(tree, self.blocks, self._pool, self.room_out, content, start, stop)

    def content(self, me: Visitor, file: str) -> tuple[Item, tuple[SpaceId, Ino, Seq]]:
        """Return a regular file and where its bytes are read; IS_DIR, INVALID for others."""
        _, known = self._mine(me, file)
        with self._db.read() as cx:
            view = View(cx, known.space)
            item = _regular(view.by_id(known))
            return item, (item.space, item.ino, view.seq)

    def replicas(self, me: Visitor, file: str) -> Json:
        """Return where the bytes of a file are; IS_DIR, INVALID for what has none."""
        _, content = self.content(me, file)
        return replica_map(self._db, self._service.nodes, content)

    # ------------------------------------------------------------ versions

    def versions(self, me: Visitor, file: str) -> tuple[Item, list[Version]]:
        """Return a file (also a deleted one) and its versions, the oldest first."""
        there, item, versions = self._versions(me, file)
        return self.visitors.shown(there, item), versions

    def _versions(
        self, me: Visitor, file: str, need: str = READ
    ) -> tuple[Visitor, Item, list[Version]]:
        there, known = self._mine(me, file, need)
        with self._db.read() as cx:
            item = View(cx, known.space).by_id_or_lost(known)
        ask = wire.GetHistory(item.space, item.parent, item.name)
        return there, item, self._service.tree.history(ask).versions

    def version(self, me: Visitor, file: str, number: int) -> tuple[Item, Version]:
        """Return one version of a file; NOT_FOUND."""
        item, known = self.versions(me, file)
        return item, _numbered(known, number)

    def restore(self, me: Visitor, file: str, number: int) -> Item:
        """Make a version the content again: itself a new version. A deleted file comes back."""
        there, item, known = self._versions(me, file, WRITE)
        version = _numbered(known, number)
        if item.died_ns:
            return self._bring_back(
                there, item._replace(vbase=0, version=version.number), item.names
            )

        def build(draft: Draft) -> FileId:
            draft.restore(item, number)
            return item.id

        return need(self._change(there, build))

    # ------------------------------------------------------------ names

    def make_folder(self, me: Visitor, path: str) -> Item:
        """Make a folder, and those above it; EXISTS."""
        there, names = self.visitors.aim(me, paths.parse_new(path), WRITE)

        def build(draft: Draft) -> Sequence[bytes]:
            draft.make_folder(names)
            return names

        return need(self._change(there, build))

    def move(self, me: Visitor, file: str, path: str, replaces: bool = False) -> Item:
        """Move or rename; into `path` when that is a folder. EXISTS, NOT_FOUND, INVALID.

        A team folder itself is moved within the home. CROSS_SPACE: its files are copied, not moved.
        """
        here, known = self._mine(me, file)
        junction = self._junction(me, known)
        if junction is not None:
            here, known = me, FileId(me.home, junction.ino)
        there, wanted = self.visitors.aim(me, paths.parse(path), WRITE)
        if there.space != here.space:
            raise EverfoldError(
                Kind.CROSS_SPACE,
                "nothing is moved into or out of a team folder; copy it",
                path[:200],
            )

        def build(draft: Draft) -> Sequence[bytes]:
            item = draft.view.by_id(known)
            names = list(wanted)
            there = draft.view.find(names)
            if path.endswith("/") or (there is not None and there.is_dir and there.id != item.id):
                names.append(item.name)
            if not item.name or not names:
                raise EverfoldError(Kind.INVALID, "the top folder stays where it is")
            if item.is_file:
                paths.check_extension(names[-1], self._service.policy.allowed_extensions)
            draft.move(item, names, replaces)
            return names

        return need(self._change(here, build))

    def delete(self, me: Visitor, file: str, is_recursive: bool = False) -> Item:
        """Delete to the trash: history keeps it. NOT_EMPTY for a folder unless recursive.

        A team folder is left by that; NOT_PERMITTED for its owner.
        """
        here, known = self._mine(me, file)
        if self._junction(me, known) is not None:
            left = self.info(me, file)
            self._service.teams.leave(me, known.space)
            return left
        self._service.spaces.check(known.space, me.who.user, WRITE)
        gone: list[Item] = []
        is_done: list[bool] = []

        def build(draft: Draft) -> None:
            gone[:] = [draft.view.by_id(known)]
            if not gone[0].name:
                raise EverfoldError(Kind.INVALID, "the top folder cannot be deleted")
            is_done[:] = [draft.remove(gone[0], is_recursive)]

        while not (is_done and is_done[0]):
            self._change(here, build)
        return self.visitors.shown(here, gone[0])

    def purge(self, me: Visitor, file: str) -> Item:
        """Delete a file, or what is left of a deleted one, with all its versions, for good.

        IS_DIR for a folder. In a team folder only its owner may.
        """
        here, known = self._mine(me, file, OWNER)
        gone: list[Item] = []

        def build(draft: Draft) -> None:
            gone[:] = [draft.view.by_id_or_lost(known)]
            if gone[0].is_dir:
                raise EverfoldError(Kind.IS_DIR, "folders are deleted under /api/files", file)
            if not gone[0].died_ns:
                draft.remove(gone[0], is_recursive=False)

        self._change(
            here,
            build,
            after=lambda cx: forget(cx, known.space, gone[0].parent, gone[0].name),
            may=OWNER,
        )
        return self.visitors.shown(here, gone[0])

    def undelete(self, me: Visitor, file: str, path: str, to: str = "") -> Item:
        """Bring back what was deleted, by its id or (without one) its path, or `to` another path.

        EXISTS when the name is taken, NOT_FOUND when its folder is gone, too.
        """
        if file:
            if (junction := self._deleted(me, file)) is not None:
                return self._service.teams.revive(me, junction.space, to)
            here, known = self._mine(me, file, WRITE)
            with self._db.read() as cx:
                item = View(cx, known.space).lost_id(known)
        else:
            here, names = self.visitors.aim(me, paths.parse_new(path), WRITE)
            with self._db.read() as cx:
                item = View(cx, here.space).lost_at(names)
            if here.is_home and (junction := me.junction(item.ino)) is not None:
                return self._service.teams.revive(me, junction.space, to)
        if not to:
            return self._bring_back(here, item, item.names)
        there, wanted = self.visitors.aim(me, paths.parse_new(to), WRITE)
        if there.space != here.space:
            raise EverfoldError(Kind.CROSS_SPACE, "it comes back where it was deleted", to[:200])
        return self._bring_back(here, item, wanted)

    def _bring_back(self, me: Visitor, item: Item, names: Sequence[bytes]) -> Item:
        def build(draft: Draft) -> Sequence[bytes]:
            draft.bring_back(item, names)
            return names

        return need(self._change(me, build))


def _numbered(known: list[Version], number: int) -> Version:
    for version in known:
        if version.number == number:
            return version
    raise EverfoldError(Kind.NOT_FOUND, "there is no such version", str(number)[:40])


def _regular(item: Item) -> Item:
    if item.is_dir:
        raise EverfoldError(Kind.IS_DIR, "a folder has no bytes", paths.shown(item.names))
    if not item.is_file:
        raise EverfoldError(Kind.INVALID, "not a regular file", paths.shown(item.names))
    return item
