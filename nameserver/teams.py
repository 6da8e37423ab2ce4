"""Team folders: spaces with members, each of whom finds a junction to it in the own home.

A junction and its row of `member` come and go in one transaction of that home, whose write lease is
recalled as for any change. A list of members that cannot be had whole is not had at all. Nothing is
lost by ending it: who leaves loses the junction and nothing else; what the owner deletes stays as
it was, counted as history, in the owner's trash, until `revive` brings it back (docs/adr/0007).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import NAME_MAX, ROOT, Ino, SpaceId, UserId
from nameserver import usage
from nameserver.accounts import User
from nameserver.audit import note
from nameserver.db import Cx
from nameserver.files import paths
from nameserver.files.browse import View
from nameserver.files.changes import Draft
from nameserver.files.items import Item
from nameserver.files.paths import FileId, shown, text_of
from nameserver.files.visitors import Visitor
from nameserver.gate import Identity
from nameserver.spaces import OWNER, READ, TEAM, WRITE, Junction
from nameserver.tree import make_space

if TYPE_CHECKING:
    from nameserver.service import Service

Json = dict[str, Any]
PERMISSIONS: Final = (READ, WRITE)
MEMBERS_MAX: Final = 1000

_TEAM: Final = (
    "SELECT t.name, t.deleted_ns, s.owner_id, a.name FROM team t JOIN space s ON s.id = t.space_id"
    " JOIN account a ON a.id = s.owner_id WHERE t.space_id = ?"
)
_MEMBERS: Final = (
    "SELECT a.name, m.permission FROM member m JOIN account a ON a.id = m.user_id"
    " WHERE m.space_id = ? AND m.permission <> 'owner' ORDER BY a.name"
)
_ADD: Final = (
    "INSERT INTO member (space_id, user_id, permission, home_id, ino, added_ns)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_HELD: Final = "SELECT home_id, ino, permission FROM member WHERE space_id = ? AND user_id = ?"
_STANDS: Final = (
    "SELECT 1 FROM entry INDEXED BY entry_ino WHERE space_id = ? AND ino = ? AND died IS NULL"
)
_DELETE: Final = "UPDATE team SET deleted_ns = ? WHERE space_id = ? AND deleted_ns = 0"
_REVIVE: Final = "UPDATE team SET deleted_ns = 0 WHERE space_id = ? AND deleted_ns > 0"
_TO_HISTORY: Final = (
    "UPDATE space SET history_bytes = history_bytes + live_bytes, live_bytes = 0 WHERE id = ?"
)


class Team(NamedTuple):
    """A team folder. `deleted_ns` 0: it lives."""

    space: SpaceId
    name: str
    deleted_ns: int
    owner: UserId
    owner_name: str


class Teams:
    """See the module. Thread-safe; keeps nothing."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._db, self._clock, self._spaces = service.db, service.clock, service.spaces

    # ------------------------------------------------------------ looking

    def all(self, me: Visitor) -> list[Json]:
        """Return one's team folders."""
        return [self._told(me, junction) for junction in me.junctions if junction.name is not None]

    def get(self, me: Visitor, team: str) -> Json:
        """Return a team folder by its number; NOT_FOUND."""
        space = self._number(me, team)
        return self._told(me, next(each for each in me.junctions if each.space == space))

    def _number(self, me: Visitor, team: str, need: str = READ) -> SpaceId:
        """Return the space of a team folder of one's own; NOT_FOUND, FORBIDDEN."""
        known = [each.space for each in me.junctions if str(each.space) == team and each.name]
        if not known:
            raise _unknown(team)
        self._spaces.check(known[0], me.who.user, need)
        return known[0]

    def _told(self, me: Visitor, junction: Junction) -> Json:
        with self._db.read() as cx:
            team = _team(cx, junction.space)
            members = cx.all(_MEMBERS, junction.space)
            where = View(cx, me.home).path_of(junction.parent) if junction.name else ()
        return {
            "id": junction.space,
            "name": text_of(junction.name or team.name.encode()),
            "owner": team.owner_name,
            "permission": junction.permission,
            "path": shown((*where, junction.name)) if junction.name else None,
            "file_id": str(FileId(junction.space, ROOT)),
            "members": [{"username": name, "permission": may} for name, may in members],
        }

    def places(self, ask: wire.GetTeams, who: Identity) -> wire.Teams:
        """See `wire.GetTeams`; none for a space that is not the asker's home."""
        with self._db.read() as cx:
            home, _, _ = self._spaces.named(cx, who.user, "")
            if ask.space != home:
                return wire.Teams([])
            view = View(cx, home)
            return wire.Teams(
                [
                    wire.TeamPlace(
                        each.space,
                        f"{TEAM}{each.space}",
                        each.ino,
                        [*view.path_of(each.parent), each.name],
                        each.permission == READ,
                    )
                    for each in self._spaces.junctions(cx, who.user)
                    if each.name is not None
                ]
            )

    # ------------------------------------------------------------ beginning

    def create(self, me: Visitor, path: str, members: Sequence[tuple[str, str]]) -> Json:
        """Make a team folder of mine at a path, with these members (name, permission).

        NOT_FOUND for unknown users, INVALID within another team folder; then nothing is done.
        """
        there, names = self._service.files.visitors.aim(me, paths.parse_new(path))
        if not there.is_home:
            raise EverfoldError(Kind.INVALID, "a team folder does not lie in another one", path)
        people = self._people(me, members)
        with self._db.read() as cx:
            is_there = View(cx, me.home).has(names)
        space = self._share(me, names) if is_there else self._make(me, names)
        try:
            for user, permission in people:
                self._add(me, space, user, permission)
        except BaseException:
            self._remove_all(me, space)
            if not is_there:
                self._end(me, space)
                self._forget(space)
            raise
        return self.get(self._again(me), str(space))

    def _share(self, me: Visitor, names: list[bytes]) -> SpaceId:
        """Let a folder that is there become a team folder, with all that it has."""

        def begin(cx: Cx, space: SpaceId, junction: Item) -> None:
            self._begin(cx, me, text_of(names[-1]), junction, space)

        return self._service.conversion.share(me, names, begin)

    def _forget(self, space: SpaceId) -> None:
        """Let a team folder that nobody could use yet never have been."""
        with self._db.write() as cx:
            if cx.lock_space(space) == (0, ROOT + 1):
                for table in ("member", "team", "inode", "mount"):
                    cx.run(f"DELETE FROM {table} WHERE space_id = ?", space)
                cx.run("DELETE FROM space WHERE id = ?", space)

    def _people(self, me: Visitor, members: Sequence[tuple[str, str]]) -> list[tuple[User, str]]:
        if len(members) > MEMBERS_MAX:
            raise EverfoldError(Kind.INVALID, f"a team folder has at most {MEMBERS_MAX} members")
        found: dict[UserId, tuple[User, str]] = {}
        for name, permission in members:
            user = self._person(me, name, permission)
            found[user.id] = (user, permission)
        return list(found.values())

    def _person(self, me: Visitor, name: str, permission: str) -> User:
        if permission not in PERMISSIONS:
            raise EverfoldError(Kind.INVALID, "permission is read or write", permission[:80])
        user = self._service.accounts.get(name)
        if user.is_disabled:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such user", name[:80])
        if user.id == me.who.user:
            raise EverfoldError(Kind.INVALID, "the owner is no member besides", name[:80])
        return user

    def _make(self, me: Visitor, names: Sequence[bytes]) -> SpaceId:
        """Make an empty team folder at a path that is free; EXISTS."""
        made: list[Item] = []
        spaces: list[SpaceId] = []

        def build(draft: Draft) -> Sequence[bytes]:
            made[:] = [draft.make_folder(names)]
            return names

        def after(cx: Cx) -> None:
            space = make_space(cx, me.who.user, TEAM + secrets.token_hex(8), self._clock.time_ns())
            ids = (made[0].uid, made[0].gid, space)
            cx.run("UPDATE inode SET uid = ?, gid = ? WHERE space_id = ?", *ids)
            self._begin(cx, me, text_of(names[-1]), made[0], space)
            spaces[:] = [space]

        self._service.files.changes.apply(me.home, me.author, build, after=after)
        return spaces[0]

    def _begin(self, cx: Cx, me: Visitor, name: str, junction: Item, space: SpaceId) -> None:
        now = self._clock.time_ns()
        cx.run("UPDATE space SET name = ? WHERE id = ?", f"{TEAM}{space}", space)
        cx.run(
            "INSERT INTO team (space_id, name, created_ns, deleted_ns, origin_id, origin_seq,"
            " origin_end) VALUES (?, ?, ?, 0, 0, 0, 0)",
            space, name, now,
        )  # fmt: skip
        cx.run(_ADD, space, me.who.user, OWNER, me.home, junction.ino, now)
        _moved(cx, me.home)
        note(cx, now, me.who.name, "team.create", str(space), name)

    # ------------------------------------------------------------ members

    def set_member(self, me: Visitor, team: str, name: str, permission: str) -> Json:
        """Let somebody in, or give them another permission. Only the owner may."""
        space = self._number(me, team, OWNER)
        user = self._person(me, name, permission)
        if not self._change(me, space, user, permission):
            self._add(me, space, user, permission)
        return self.get(me, team)

    def _change(self, me: Visitor, space: SpaceId, user: User, permission: str) -> bool:
        """Give a member another permission; False when this is none."""
        now = self._clock.time_ns()
        with self._db.write() as cx:
            held = cx.one(_HELD, space, user.id)
            if held is None:
                return False
            home, _, before = held
            if before == permission:
                return True
            cx.run(
                "UPDATE member SET permission = ? WHERE space_id = ? AND user_id = ?",
                permission, space, user.id,
            )  # fmt: skip
            _moved(cx, home)
            note(cx, now, me.who.name, "team.member", str(space), f"{user.name} {permission}")
            self._service.bell.announce(cx, home)
        self._spaces.forget(space)
        self._service.bell.ring(home)
        if permission == READ:
            self._end_sessions(space, user.name)
        return True

    def _add(self, me: Visitor, space: SpaceId, user: User, permission: str) -> None:
        with self._db.read() as cx:
            home, _, _ = self._spaces.named(cx, user.id, "")
            team = _team(cx, space)
        made: list[Item] = []

        def build(draft: Draft) -> None:
            name = _free(draft, team)
            made[:] = [draft.make_folder([name])]

        def after(cx: Cx) -> None:
            now = self._clock.time_ns()
            if _team(cx, space).deleted_ns:
                raise _unknown(str(space))
            if not cx.run(_ADD, space, user.id, permission, home, made[0].ino, now):
                raise EverfoldError(Kind.EXISTS, "is a member already", user.name)
            _moved(cx, home)
            note(cx, now, me.who.name, "team.member", str(space), f"{user.name} {permission}")

        self._service.files.changes.apply(home, me.author, build, after=after)
        self._spaces.forget(space)

    def remove_member(self, me: Visitor, team: str, name: str) -> None:
        """Shut a member out; oneself: leave. NOT_FOUND, FORBIDDEN, NOT_PERMITTED for the owner."""
        if name == me.who.name:
            self.leave(me, self._number(me, team))
            return
        space = self._number(me, team, OWNER)
        with self._db.read() as cx:
            row = cx.one(
                "SELECT m.user_id FROM member m JOIN account a ON a.id = m.user_id"
                " WHERE m.space_id = ? AND a.name = ?",
                space, name,
            )  # fmt: skip
        if row is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such member", name[:80])
        self._remove(me, space, UserId(row[0]), name)

    def leave(self, me: Visitor, space: SpaceId) -> None:
        """Be a member no more. NOT_PERMITTED for the owner."""
        if self._spaces.check(space, me.who.user) == OWNER:
            raise EverfoldError(
                Kind.NOT_PERMITTED,
                "it is your team folder: DELETE /api/teams/ID ends it",
                str(space),
            )
        self._remove(me, space, me.who.user, me.who.name)

    def _remove(self, me: Visitor, space: SpaceId, user: UserId, name: str) -> None:
        with self._db.read() as cx:
            held = cx.one(_HELD, space, user)
        if held is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such member", name[:80])
        home = SpaceId(held[0])

        def build(draft: Draft) -> None:
            gone = draft.cx.run(
                "DELETE FROM member WHERE space_id = ? AND user_id = ?", space, user
            )
            if not gone:
                raise EverfoldError(Kind.NOT_FOUND, "there is no such member", name[:80])
            _take_away(draft, home, Ino(held[1]))

        def after(cx: Cx) -> None:
            _moved(cx, home)
            note(cx, self._clock.time_ns(), me.who.name, "team.leave", str(space), name)

        self._service.files.changes.apply(home, me.author, build, after=after)
        self._spaces.forget(space)
        self._end_sessions(space, name)

    def _end_sessions(self, space: SpaceId, author: str) -> None:
        """Let go of what somebody's mounts hold, so that nobody waits for them."""
        with self._db.read() as cx:
            rows = cx.all(
                "SELECT id FROM mount WHERE space_id = ? AND author = ? AND seen_ns > 0",
                space, author,
            )  # fmt: skip
        for (mount,) in rows:
            self._service.sessions.end(space, mount)

    # ------------------------------------------------------------ ending, and back

    def delete(self, me: Visitor, team: str) -> None:
        """End a team folder: nobody is a member, what is in it is in its trash. FORBIDDEN."""
        self._end(me, self._number(me, team, OWNER))

    def _end(self, me: Visitor, space: SpaceId) -> None:
        self._remove_all(me, space)
        # recalls the write lease: what the owner's own mount has answered is in
        self._service.files.changes.apply(space, me.author, lambda draft: None)
        self._close(me, space)
        self._spaces.forget(space)
        self._end_sessions(space, me.who.name)

    def _remove_all(self, me: Visitor, space: SpaceId) -> None:
        with self._db.read() as cx:
            members = cx.all(
                "SELECT m.user_id, a.name FROM member m JOIN account a ON a.id = m.user_id"
                " WHERE m.space_id = ? AND m.permission <> 'owner'",
                space,
            )
        for user, name in members:
            self._remove(me, space, UserId(user), name)

    def _close(self, me: Visitor, space: SpaceId) -> None:
        """Take the owner's junction away; what is within stays, and counts as history."""

        def build(draft: Draft) -> None:
            cx, now = draft.cx, self._clock.time_ns()
            cx.lock_space(space)
            held = cx.one(_HELD, space, me.who.user)
            if held is None or not cx.run(_DELETE, now, space):
                raise _unknown(str(space))
            cx.run(_TO_HISTORY, space)
            _take_away(draft, me.home, Ino(held[1]))
            _moved(cx, me.home)
            note(cx, now, me.who.name, "team.delete", str(space))

        self._service.files.changes.apply(me.home, me.author, build)

    def revive(self, me: Visitor, space: SpaceId, to: str = "") -> Item:
        """Bring a deleted team folder of mine back, for me alone, with what went with it.

        `to`: where it shall stand. NOT_FOUND, EXISTS.
        """
        with self._db.read() as cx:
            row = cx.one(_TEAM, space)
        if row is None or row[2] != me.who.user or not row[1]:
            raise paths.no_such_file(str(FileId(space, ROOT)))
        team = Team(space, *row)
        names = paths.parse_new(to) if to else []
        made: list[Item] = []

        def build(draft: Draft) -> None:
            made[:] = [draft.make_folder(names or [_free(draft, team)])]

        def after(cx: Cx) -> None:
            if not cx.run(_REVIVE, space):
                raise paths.no_such_file(str(FileId(space, ROOT)))
            usage.repair(cx, space)
            cx.run(
                "UPDATE member SET ino = ? WHERE space_id = ? AND user_id = ?",
                made[0].ino, space, me.who.user,
            )  # fmt: skip
            _moved(cx, me.home)
            note(cx, self._clock.time_ns(), me.who.name, "team.revive", str(space))

        self._service.files.changes.apply(me.home, me.author, build, after=after)
        self._spaces.forget(space)
        return self._service.files.info(self._again(me), str(FileId(space, ROOT)))

    def _again(self, me: Visitor) -> Visitor:
        """Return the visitor with the team folders as they are now."""
        with self._db.read() as cx:
            return me._replace(junctions=tuple(self._spaces.junctions(cx, me.who.user)))


def _team(cx: Cx, space: SpaceId) -> Team:
    row = cx.one(_TEAM, space)
    if row is None:
        raise _unknown(str(space))
    return Team(space, *row)


def _moved(cx: Cx, home: SpaceId) -> None:
    """Let the feed of a home tell that its team folders changed."""
    cx.run("UPDATE space SET teams_gen = teams_gen + 1 WHERE id = ?", home)


def _free(draft: Draft, team: Team) -> bytes:
    """Return a name that is free at the top of a home: "Plans", "Plans (anna)", …"""
    tails = ["", f" ({team.owner_name})"]
    tails += [f" ({team.owner_name} {number})" for number in range(2, MEMBERS_MAX)]
    for tail in tails:
        room = NAME_MAX - len(tail.encode())
        name = team.name.encode()[:room].decode(errors="ignore").encode() + tail.encode()
        if draft.view.child(ROOT, name) is None:
            return name
    raise EverfoldError(Kind.EXISTS, "no name is free for the team folder", team.name[:80])


def _take_away(draft: Draft, home: SpaceId, junction: Ino) -> None:
    if draft.cx.one(_STANDS, home, junction) is not None:
        draft.remove(draft.view.by_id(FileId(home, junction)), is_recursive=False)


def _unknown(team: str) -> EverfoldError:
    return EverfoldError(Kind.NOT_FOUND, "there is no such team folder", team[:80])
