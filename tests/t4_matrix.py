"""Who may do what in a team folder: a table, tried over HTTP and over the mounts' protocol.

"ok", or the kind of the refusal. What one may not know of is not_found; what nobody without an
account may ask is unauthenticated. The same through real mounts: `t5_teams`.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from everfold import wire
from everfold.blockid import name_of
from everfold.errors import EverfoldError
from everfold.model import ROOT, Ino, Lock, LockKind, LockType, MountId, Seq, SpaceId
from everfold.nameclient import NameClient
from everfold.nodeclient import NodeClient
from tests.harness.browser import Browser, form
from tests.harness.inprocess import CALM, InProcessCluster

PASSWORD = "open sesame please"
OVER_HTTP = """
who            list             read             write            rename           delete           versions         restore          share            members
owner          ok               ok               ok               ok               ok               ok               ok               ok               ok
writer         ok               ok               ok               ok               ok               ok               ok               ok               forbidden
reader         ok               ok               read_only        read_only        read_only        ok               read_only        read_only        forbidden
stranger       not_found        not_found        -                not_found        not_found        not_found        not_found        not_found        not_found
admin          not_found        not_found        -                not_found        not_found        not_found        not_found        not_found        not_found
nobody         unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated
link_read      ok               ok               forbidden        unauthenticated  forbidden        unauthenticated  unauthenticated  unauthenticated  unauthenticated
link_write     ok               ok               ok               unauthenticated  forbidden        unauthenticated  unauthenticated  unauthenticated  unauthenticated
link_admin     ok               ok               ok               unauthenticated  ok               unauthenticated  unauthenticated  unauthenticated  unauthenticated
link_locked    unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated  unauthenticated
link_unlocked  ok               ok               ok               unauthenticated  ok               unauthenticated  unauthenticated  unauthenticated  unauthenticated
link_expired   stale            stale            stale            unauthenticated  stale            unauthenticated  unauthenticated  unauthenticated  unauthenticated
link_revoked   not_found        not_found        not_found        unauthenticated  not_found        unauthenticated  unauthenticated  unauthenticated  unauthenticated
"""  # noqa: E501
BY_MOUNT = """
who       session    list       read       feed       versions   rlock      write      rename     delete     restore    plan       lease      wlock      impostor
owner     ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         forbidden
writer    ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         ok         forbidden
reader    ok         ok         ok         ok         ok         ok         read_only  read_only  read_only  read_only  read_only  read_only  read_only  read_only
stranger  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found
admin     not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found  not_found
"""  # noqa: E501


def cells(table: str) -> list[tuple[str, str, str]]:
    """Return (who, what, outcome) of each cell; "-" is no question."""
    heads, *rows = [line.split() for line in table.strip().splitlines()]
    return [
        (row[0], what, outcome)
        for row in rows
        for what, outcome in zip(heads[1:], row[1:], strict=True)
        if outcome != "-"
    ]


class Stage:
    """A team folder, Plans, with people around it and links into it."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self.cluster = cluster
        self.public = Browser(cluster.app)
        self.people = {
            name: Browser(cluster.app, cluster.user(name))
            for name in ("owner", "writer", "reader", "stranger", "admin", "guest")
        }
        with cluster.db.write() as cx:
            cx.run("UPDATE account SET role = 'admin' WHERE name = 'admin'")
        members = [
            {"username": "writer", "permission": "write"},
            {"username": "reader", "permission": "read"},
        ]
        owner = self.people["owner"]
        made = owner.good("POST", "/api/teams", {"path": "Plans", "members": members})["team"]
        self.id, self.space = made["id"], SpaceId(made["id"])
        self.folder = made["file_id"]
        self.numbers = itertools.count(1)

    def fresh(self) -> tuple[str, str]:
        """Make a file with two versions; return (name, id)."""
        name = f"f{next(self.numbers)}.txt"
        for data in (b"one", b"two"):
            told = self.people["owner"].upload(f"Plans/{name}", data)
        return name, told["id"]

    def names(self, who: str) -> NameClient:
        return self.cluster.names(self.people[who].token)

    def link(self, kind: str) -> str:
        """Make a link to the folder; return its route."""
        asked: dict[str, Any] = {
            "permission": kind if kind in ("read", "write") else "admin",
            "password": PASSWORD if kind in ("locked", "unlocked") else "",
        }
        owner = self.people["owner"]
        made = owner.good("POST", f"/api/files/{self.folder}/share", asked)
        if kind == "revoked":
            owner.good("DELETE", f"/api/files/shares/{made['id']}")
        if kind == "expired":
            with self.cluster.db.write() as cx:
                cx.run("UPDATE share SET expires_ns = 1 WHERE key = ?", made["id"])
        return str(made["share_url"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    with InProcessCluster(tmp_path_factory.mktemp("matrix"), policy=CALM) as started:
        yield Stage(started)


# ---------------------------------------------------------------- over HTTP


def by_account(stage: Stage, one: Browser, what: str) -> tuple[int, Any]:
    """Do something as somebody with an account (or nobody)."""
    name, file = stage.fresh()
    calls: dict[str, Callable[[], tuple[int, Any]]] = {
        "list": lambda: one.call("GET", "/api/files/list", path="Plans"),
        "read": lambda: loaded(one, f"/api/files/{file}/download"),
        "write": lambda: one.post("/api/files/upload", form(b"three", path=f"Plans/{name}")),
        "rename": lambda: one.call(
            "POST", "/api/files/move", {"file_id": file, "to": f"Plans/new {name}"}
        ),
        "delete": lambda: one.call("DELETE", f"/api/files/{file}"),
        "versions": lambda: one.call("GET", f"/api/files/{file}/versions"),
        "restore": lambda: one.call("POST", f"/api/files/{file}/versions/1/restore"),
        "share": lambda: one.call("POST", f"/api/files/{file}/share", {}),
        "members": lambda: one.call(
            "PUT", f"/api/teams/{stage.id}/members/guest", {"permission": "read"}
        ),
    }
    return calls[what]()


def by_link(stage: Stage, kind: str, what: str) -> tuple[int, Any]:
    """Do something as somebody who has nothing but a link; what has no route for them is asked
    as it is with an account."""
    if what not in ("list", "read", "write", "delete"):
        return by_account(stage, stage.public, what)
    name, _ = stage.fresh()
    route, one = stage.link(kind), stage.public
    headers = {"X_Share_Password": PASSWORD} if kind == "unlocked" else {}
    calls: dict[str, Callable[[], tuple[int, Any]]] = {
        "list": lambda: loaded(one, route, **headers),
        "read": lambda: loaded(one, f"{route}/download?path={name}", **headers),
        "write": lambda: sent(one, f"{route}/upload?path={name}", **headers),
        "delete": lambda: loaded(one, route, "DELETE", **headers),
    }
    return calls[what]()


def loaded(one: Browser, route: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    status, _, data = one.ask(method, route, **headers)
    return status, json.loads(data) if status >= 400 else None


def sent(one: Browser, route: str, **headers: str) -> tuple[int, Any]:
    kind = "multipart/form-data; boundary=----everfold-test"
    status, _, data = one.ask("POST", route, form(b"three"), Content_Type=kind, **headers)
    return status, json.loads(data)


@pytest.mark.parametrize(("who", "what", "outcome"), cells(OVER_HTTP))
def test_over_http_everybody_may_what_the_table_says(stage, who, what, outcome):
    if who.startswith("link_"):
        status, answer = by_link(stage, who.removeprefix("link_"), what)
    else:
        one = stage.public if who == "nobody" else stage.people[who]
        status, answer = by_account(stage, one, what)

    assert outcome == ("ok" if status in (200, 201) else answer["error"]["kind"]), answer


# ---------------------------------------------------------------- as a mount


class Mount:
    """Somebody's side of the mounts' protocol, in the team folder's space."""

    def __init__(self, stage: Stage, who: str) -> None:
        self.stage, self.who = stage, who
        self.names, self.space = stage.names(who), stage.space
        self.id = MountId(f"mount-of-{who}")
        self.owner = stage.names("owner")

    def hello(self) -> wire.Session:
        return self.names.session(wire.Hello(self.id, self.who, f"team:{self.space}"))

    def there(self) -> tuple[bytes, Ino]:
        """Make a file; return its name and inode."""
        name, file = self.stage.fresh()
        return name.encode(), Ino(int(file.split("-")[1]))

    def commit(self, op: wire.AnyOp, mount: MountId | None = None) -> None:
        number = next(self.stage.numbers)
        done = self.names.commit(wire.Commit(self.space, mount or self.id, number, [op]))
        done.results[0].check()

    def lock(self, kind: LockType) -> None:
        _, ino = self.there()
        lock = Lock(ino, LockKind.FLOCK, kind, 1, 0, 1 << 40, 1)
        self.names.set_lock(wire.SetLock(self.space, self.id, lock))

    def act(self, what: str) -> None:
        name, ino = self.there()
        calls: dict[str, Callable[[], object]] = {
            "session": self.hello,
            "list": lambda: self.names.listdir(wire.ListDir(self.space, ROOT)),
            "read": lambda: self.names.extents(wire.GetExtents(self.space, ino)),
            "feed": lambda: self.names.feed(wire.FeedPoll(self.space, self.id, Seq(0), 0.0)),
            "versions": lambda: self.names.history(wire.GetHistory(self.space, ROOT, name)),
            "rlock": functools.partial(self.lock, LockType.READ),
            "wlock": functools.partial(self.lock, LockType.WRITE),
            "write": lambda: self.commit(wire.SetAttr(ino, 1, 0o600)),
            "rename": lambda: self.commit(wire.Rename(ROOT, name, ROOT, b"new " + name, 1)),
            "delete": lambda: self.commit(wire.Unlink(ROOT, name, ino, False, 1)),
            "restore": lambda: self.commit(wire.Restore(ROOT, name, 1, Ino(0), 1)),
            "plan": lambda: self.names.plan(wire.Plan(self.space, [])),
            "lease": lambda: self.names.lease(wire.TakeLease(self.space, self.id)),
            "impostor": lambda: self.commit(wire.SetAttr(ino, 1, 0o600), MountId("http")),
        }
        calls[what]()


@pytest.mark.parametrize(("who", "what", "outcome"), cells(BY_MOUNT))
def test_as_a_mount_everybody_may_what_the_table_says(stage, who, what, outcome):
    mount = Mount(stage, who)
    if outcome == "ok":
        mount.hello()
    try:
        mount.act(what)
        found = "ok"
    except EverfoldError as err:
        found = err.kind.value
    if found == "ok" and what not in ("session", "list"):
        mount.names.bye(wire.Bye(mount.space, mount.id))

    assert found == outcome


def test_the_mount_of_another_member_is_not_ones_own(stage):
    Mount(stage, "owner").hello()
    writer = Mount(stage, "writer")
    writer.hello()
    _, ino = writer.there()
    theirs = MountId("mount-of-owner")

    for act in (
        lambda: writer.commit(wire.SetAttr(ino, 1, 0o600), theirs),
        lambda: writer.names.bye(wire.Bye(stage.space, theirs)),
        lambda: writer.names.drop_locks(wire.DropLocks(stage.space, theirs)),
        lambda: writer.names.feed(wire.FeedPoll(stage.space, theirs, Seq(0), 0.0)),
        lambda: writer.names.session(wire.Hello(theirs, "", f"team:{stage.space}")),
        lambda: writer.names.session(wire.Hello(MountId("http"), "", f"team:{stage.space}")),
    ):
        with pytest.raises(EverfoldError) as refused:
            act()
        assert refused.value.kind.value == "forbidden"


def test_the_token_of_who_only_reads_puts_no_block(stage):
    reader, writer = Mount(stage, "reader").hello(), Mount(stage, "writer").hello()
    located = stage.names("reader").locate(wire.Locate(stage.space, []))
    data = b"a block that nobody has put"
    node = stage.cluster.links[reader.nodes[0].url]

    for token in (reader.block_token, located.block_token):
        with pytest.raises(EverfoldError) as refused:
            NodeClient(node, token).put(name_of(data), data)
        assert refused.value.kind.value == "forbidden"
    assert reader.read_only and not writer.read_only
    NodeClient(node, writer.block_token).put(name_of(data), data)
    assert NodeClient(node, reader.block_token).get(name_of(data)) == data
