"""Socket.IO: whoever may hear of a change hears of it once, in order, however they listen."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import socketio.exceptions
import websocket

from everfold.clock import SystemClock
from everfold.model import UserId
from nameserver.app import create_app
from nameserver.db import Database
from nameserver.files.events import Events
from nameserver.files.positions import Sights
from nameserver.files.service import FileService
from nameserver.live import follower, hub
from nameserver.live.outbox import ROOM
from nameserver.routes.auth import COOKIE
from nameserver.secretfile import Secrets
from nameserver.service import Service
from tests.harness.browser import Browser
from tests.harness.inprocess import CALM, InProcessCluster
from tests.harness.listeners import WAIT_S, Listener, served
from tests.harness.machine import wait_until
from tests.harness.nodes import SECRET
from tests.harness.world import save

TRANSPORTS = ("websocket", "polling")
Listen = Callable[..., Listener]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("live"), policy=CALM) as started:
        yield started


@pytest.fixture(scope="module")
def url(cluster) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(served(cluster.app))
        cluster.service.stop()  # lets parked polls go


@pytest.fixture
def me(cluster, request) -> Browser:
    """A user of one's own for every test."""
    return Browser(cluster.app, cluster.user("u" + str(abs(hash(request.node.nodeid)))))


@pytest.fixture
def listen(url, me) -> Iterator[Listen]:
    """Return what makes clients that end with the test."""
    made: list[Listener] = []

    def listener(*transports: str, token: str = me.token, at: str = url, **how: Any) -> Listener:
        made.append(Listener(at, token, transports or ("websocket",), **how))
        return made[-1]

    yield listener
    for each in made:
        each.close()


def told(me: Browser, **query: object) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = me.good("GET", "/api/sync/events", limit=1000, **query)["events"]
    return events


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize("transports", [("websocket",), ("polling",), ("polling", "websocket")])
def test_a_save_in_a_mount_is_told_at_once_and_once(cluster, me, listen, transports):
    client = listen(*transports)
    client.join()
    mount = cluster.mount("-".join(transports), me.token)

    save(mount, "notes.txt", b"from the mount")
    assert mount.drain()
    wait_until(lambda: client.named("file_uploaded"), WAIT_S, "the save")

    (form,) = client.named("file_uploaded")
    assert (form["path"], form["size"], form["mime_type"]) == ("/notes.txt", 14, "text/plain")
    assert client.events == told(me)
    assert client.io.transport() == transports[-1]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_kind_of_event_has_its_name_and_comes_in_order(me, listen, transport):
    client = listen(transport)
    client.join()

    file = me.upload("d/f.txt", b"one")["id"]
    me.good("POST", "/api/files/move", {"file_id": file, "to": "g.txt"})
    me.good("DELETE", f"/api/files/{file}")
    client.hears(4)

    assert [(name, form["event_type"]) for name, form in client.got[1:]] == [
        ("sync_event", "folder_created"),
        ("file_uploaded", "file_uploaded"),
        ("sync_event", "file_moved"),
        ("file_deleted", "file_deleted"),
    ]
    assert client.events == told(me)


def test_who_connects_is_greeted_and_hears_nothing_before_joining(me, listen):
    me.upload("before", b"x")
    client, other = listen(), listen()
    other.join()

    me.upload("after", b"x")
    other.hears(1)
    client.ask("leave_sync_room")

    assert [name for name, _ in client.got] == ["connected"]
    form = client.got[0][1]
    assert form["position"] == "1" and form["user"] and form["device_id"]


def test_what_others_do_is_not_told(cluster, me, listen):
    client = listen()
    client.join()
    stranger = Browser(cluster.app, cluster.user(f"stranger-{id(client)}"))

    stranger.upload("secret", b"x")
    me.upload("mine", b"x")

    assert [event["path"] for event in client.hears(1)] == ["/mine"]


def test_a_team_folder_is_heard_of_under_ones_own_path_while_one_may(cluster, me, listen):
    member = Browser(cluster.app, cluster.user(f"member-{id(listen)}"))
    name = member.good("GET", "/api/auth/profile")["user"]["username"]
    client = listen(token=member.token)
    client.join()
    members = [{"username": name, "permission": "read"}]
    team = me.good("POST", "/api/teams", {"path": "Plans", "members": members})["team"]

    me.upload("Plans/x.txt", b"x")
    wait_until(lambda: "/Plans/x.txt" in _paths(client), WAIT_S, "the team's event")
    position = member.good("GET", "/api/sync/status")["position"]
    me.good("DELETE", f"/api/teams/{team['id']}/members/{name}")
    me.upload("Plans/hidden.txt", b"x")
    member.upload("own", b"x")
    wait_until(lambda: "/own" in _paths(client), WAIT_S, "the own event")

    assert "/Plans/hidden.txt" not in _paths(client)
    assert len(set(client.ids)) == len(client.ids)
    assert f"{team['id']}:" in position


def test_a_team_folder_that_begins_while_one_joins_is_heard_of(cluster, me, listen, monkeypatch):
    member = Browser(cluster.app, cluster.user(f"joining-{id(listen)}"))
    name = member.good("GET", "/api/auth/profile")["user"]["username"]
    client = listen(token=member.token)
    asked, members = Events.sights, [{"username": name, "permission": "read"}]

    def sights(self: Events, user: UserId) -> Sights:
        seen = asked(self, user)
        if threading.current_thread().name != "live":  # the follower's; else it is the join
            monkeypatch.setattr(Events, "sights", asked)
            me.good("POST", "/api/teams", {"path": "Plans", "members": members})
        return seen

    monkeypatch.setattr(Events, "sights", sights)
    client.join()
    me.upload("Plans/x.txt", b"x")

    wait_until(lambda: "/Plans/x.txt" in _paths(client), WAIT_S, "the team's event")


def _paths(client: Listener) -> list[str]:
    return [event["path"] for event in client.events]


# ---------------------------------------------------------------- from where one was


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_was_away_goes_on_where_it_was_while_more_happens(me, listen, monkeypatch, transport):
    monkeypatch.setattr(follower, "PAGE", 7)
    client = listen(transport)
    client.join(since="0")
    for k in range(3):
        me.good("POST", "/api/files/mkdir", {"path": f"a{k}"})
    client.hears(3)
    before = client.ids
    client.close()
    for k in range(30):
        me.good("POST", "/api/files/mkdir", {"path": f"b{k}"})

    again = listen(transport)
    again.join(since=before[-1])
    for k in range(20):
        me.good("POST", "/api/files/mkdir", {"path": f"c{k}"})

    assert again.hears(50)
    assert before + again.ids == [event["id"] for event in told(me)]
    pages = [form for name, form in again.got if name == "sync_events"]
    assert all(page["count"] <= 7 for page in pages)
    assert [page["has_more"] for page in pages] == [True] * (len(pages) - 1) + [False]


def test_a_device_goes_on_after_what_it_has_processed(me, listen):
    for name in "abc":
        me.upload(name, b"x")
    first = listen()
    first.join(since="0")
    ids = [event["id"] for event in first.hears(3)]

    first.ask("request_sync", processed=ids[1], limit=1)
    second = listen()
    joined = second.join()

    assert joined["position"] == ids[1]
    assert [event["id"] for event in second.hears(1)] == ids[2:]
    assert told(me) == first.events[2:3]


def test_who_leaves_hears_nothing_and_comes_back_to_the_same_place(me, listen):
    client, witness = listen(), listen()
    client.join(), witness.join()
    me.upload("a", b"x")
    client.hears(1)

    left = client.ask("leave_sync_room")
    me.upload("b", b"x")
    witness.hears(2)
    assert len(client.events) == 1
    client.join(since=left["position"])

    assert [event["path"] for event in client.hears(2)] == ["/a", "/b"]


def test_a_page_is_told_on_request(me, listen):
    for name in "abc":
        me.upload(name, b"x")
    client = listen()

    first = client.ask("request_sync", limit=2)
    rest = client.ask("request_sync", since=first["next_since"], limit=2)

    assert (first["count"], first["has_more"]) == (2, True)
    assert (rest["count"], rest["has_more"]) == (1, False)
    assert [name for name, _ in client.got[1:]] == ["sync_events"] * 2
    assert client.events == told(me)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"since": "yesterday"}, "invalid"),
        ({"since": ["1"]}, "invalid"),
        ({"device_id": "another's"}, "not_found"),
        ({"processed": "9-9"}, "not_found"),
        ({"limit": 0}, "invalid"),
        ({"limit": "many"}, "invalid"),
        ([1, 2], "invalid"),
        ("text", "invalid"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(listen, form, kind):
    client = listen()

    assert client.io.call("request_sync", form)["error"]["kind"] == kind
    assert "error" not in client.ask("request_sync")


def test_a_large_commit_is_told_in_pages_without_loss(cluster, me, listen, monkeypatch):
    monkeypatch.setattr(follower, "PAGE", 60)
    mount = cluster.mount("large", me.token)
    for k in range(250):
        save(mount, f"f{k:03}", b"x")
    assert mount.drain()

    client = listen()
    client.join(since="0")
    client.hears(250)

    assert sorted(set(_paths(client))) == [f"/f{k:03}" for k in range(250)]
    assert client.ids == [event["id"] for event in told(me)]


# ---------------------------------------------------------------- who may listen


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("way", ["auth", "header", "query", "cookie"])
def test_a_token_is_shown_in_any_of_four_ways(url, me, listen, transport, way):
    how: dict[str, Any] = {
        "auth": {"token": me.token},
        "header": {"token": "", "headers": {"Authorization": f"Bearer {me.token}"}},
        "query": {"token": "", "at": f"{url}?token={me.token}"},
        "cookie": {"token": "", "headers": {"Cookie": f"{COOKIE}={me.token}"}},
    }[way]

    assert listen(transport, **how).join()["room"].startswith("user-")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
def test_whoever_shows_no_good_token_is_refused(url, transport, token):
    with pytest.raises(socketio.exceptions.ConnectionError):
        Listener(url, token, (transport,), retry=False)


def test_a_page_of_another_site_is_refused(url, me):
    cookie = {"Cookie": f"{COOKIE}={me.token}", "Origin": "https://evil.example"}
    with pytest.raises(socketio.exceptions.ConnectionError):
        Listener(url, "", headers=cookie)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_token_that_is_revoked_ends_the_connection(me, listen, monkeypatch, transport):
    monkeypatch.setattr(hub, "CHECK_S", 0.1)
    monkeypatch.setattr(follower, "CHECK_S", 0.1)
    client = listen(transport)
    client.join()
    device = client.got[0][1]["device_id"]

    me.good("DELETE", f"/api/auth/devices/{device}")

    assert client.has_ended.wait(WAIT_S)


# ---------------------------------------------------------------- clients that misbehave


def polling(url: str, token: str) -> tuple[requests.Session, str]:
    """Return a connected session that polls by hand, and its address."""
    session = requests.Session()
    at = f"{url}/socket.io/?EIO=4&transport=polling"
    opened = session.get(at, timeout=WAIT_S).text
    at += "&sid=" + json.loads(opened[1:])["sid"]
    session.post(at, data="40" + json.dumps({"token": token}), timeout=WAIT_S)
    return session, at


def test_who_does_not_take_its_events_costs_nothing_and_loses_none(url, me, listen):
    slow, at = polling(url, me.token)
    slow.post(at, data='42["join_sync_room",{}]', timeout=WAIT_S)
    quick = listen()
    quick.join()
    count = 3 * ROOM

    for k in range(count):
        me.good("POST", "/api/files/mkdir", {"path": f"d{k}"})
    quick.hears(count)
    payloads: list[list[str]] = []
    while sum(len(each) for each in payloads) < count + 2:
        payloads.append(slow.get(at, timeout=WAIT_S).text.split("\x1e"))

    events = [json.loads(p[2:])[1] for each in payloads for p in each if p.startswith("42")]
    assert [event["id"] for event in events if "id" in event] == quick.ids
    assert max(len(each) for each in payloads) <= 16


def test_who_asks_and_never_reads_is_let_go(url, me):
    session, at = polling(url, me.token)
    status = 200
    for _ in range(60):
        body = "\x1e".join(['42["leave_sync_room"]'.replace("42", f"42{k}") for k in range(16)])
        status = session.post(at, data=body, timeout=WAIT_S).status_code
        if status != 200:
            break

    assert status == 400


@pytest.mark.parametrize("said", ["", "4", "42", "42[]", "42{", "45-x", "4null", "42[[1]]", "x"])
def test_nonsense_ends_the_connection_that_says_it_and_no_other(url, me, listen, said):
    other = listen()
    other.join()
    at = url.replace("http", "ws") + "/socket.io/?EIO=4&transport=websocket"
    rude = websocket.create_connection(at, timeout=WAIT_S)
    rude.recv()
    rude.send("40" + json.dumps({"token": me.token}))
    assert rude.recv().startswith("40") and "connected" in rude.recv()

    rude.send(said)
    is_ended = _last_words(rude) == ""
    me.upload("f", b"x")

    assert is_ended and len(other.hears(1)) == 1


def test_a_message_that_is_too_long_ends_the_connection(url, me):
    at = url.replace("http", "ws") + "/socket.io/?EIO=4&transport=websocket"
    rude = websocket.create_connection(at, timeout=WAIT_S)
    rude.recv()

    with contextlib.suppress(OSError):
        rude.send("4" + "x" * 1_000_000)

    assert _last_words(rude) == ""


def _last_words(client: websocket.WebSocket) -> str:
    """Return what is said before the end: a goodbye is an empty message."""
    try:
        return str(client.recv())
    except (OSError, websocket.WebSocketException) as err:
        assert not isinstance(err, websocket.WebSocketTimeoutException)
        return ""


def test_what_is_no_handshake_is_a_400(url):
    fields = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "short"}
    at = f"{url}/socket.io/?EIO=4&transport=websocket"

    assert requests.get(at, headers=fields, timeout=WAIT_S).status_code == 400
    assert requests.get(f"{url}/socket.io/?EIO=3", timeout=WAIT_S).status_code == 400
    gone = f"{url}/socket.io/?EIO=4&transport=polling&sid={'0' * 16}.x"
    assert requests.get(gone, timeout=WAIT_S).status_code == 400


# ---------------------------------------------------------------- several processes


@pytest.fixture
def neighbour(cluster) -> Iterator[tuple[str, FileService]]:
    """Another nameserver on the same database; as far as it can tell, in another process."""
    db = Database(cluster.db.url)
    keys = Secrets("s" * 32, "j" * 32, SECRET)
    service = Service(db, SystemClock(), CALM, keys, cluster.links.__getitem__)
    with served(create_app(service)) as at:
        yield at, service.files
        service.stop()
    db.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_another_processs_commits_are_told_too(me, listen, neighbour, transport):
    client = listen(transport, at=neighbour[0])
    client.join()

    me.upload("a", b"x")
    client.hears(1)
    me.upload("b", b"x")

    assert [event["path"] for event in client.hears(2)] == ["/a", "/b"]


def test_a_client_that_polls_may_reach_any_process(url, me, neighbour):
    session, at = polling(url, me.token)
    other = at.replace(url, neighbour[0])

    session.post(other, data='420["join_sync_room",{"since":"0"}]', timeout=WAIT_S)
    me.upload("a", b"x")
    got = ""
    while "file_uploaded" not in got:
        answer = session.get(other, timeout=WAIT_S)
        assert answer.status_code == 200
        got += answer.text

    assert '430[{"room"' in got


def test_a_websocket_may_go_on_at_another_process(url, me, neighbour):
    _, at = polling(url, me.token)
    other = at.replace(url, neighbour[0]).replace("http", "ws").replace("polling", "websocket")

    moved = websocket.create_connection(other, timeout=WAIT_S)
    moved.send("2probe")
    assert moved.recv() == "3probe"
    moved.send("5")
    moved.send('420["join_sync_room",{}]')
    got = [moved.recv()]
    while not got[-1].startswith("430"):
        got.append(moved.recv())
    me.upload("a", b"x")

    assert moved.recv().startswith('42["file_uploaded"')
    moved.close()


# ---------------------------------------------------------------- the end


def test_the_end_of_the_server_ends_all_clients(tmp_path):
    with InProcessCluster(tmp_path, nodes=0, policy=CALM) as cluster:
        with served(cluster.app) as url:
            clients = [Listener(url, cluster.token, (transport,)) for transport in TRANSPORTS]
            for client in clients:
                client.join()
            cluster.service.stop()

            assert all(client.has_ended.wait(WAIT_S) for client in clients)
            with pytest.raises(socketio.exceptions.ConnectionError):
                Listener(url, cluster.token)
        left = {thread.name for thread in threading.enumerate()}
        assert not left & {"live", "neighbours", "relay"} or _are_others(left)


def _are_others(left: set[str]) -> bool:
    """Another cluster of this module still serves."""
    return "accept" in left
