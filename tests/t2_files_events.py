"""Events over HTTP: nothing lost, nothing twice, from wherever a device left off."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from everfold.model import ROOT
from tests.harness.browser import Browser
from tests.harness.inprocess import CALM, PASSWORD, InProcessCluster
from tests.harness.world import ME, save


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("events"), policy=CALM) as started:
        yield started


@pytest.fixture
def me(cluster, request) -> Browser:
    """A user of one's own for every test."""
    return Browser(cluster.app, cluster.user("u" + str(abs(hash(request.node.nodeid)))))


def events(me: Browser, **query: object) -> list[tuple[str, str]]:
    """Return (type, path) of the events."""
    told = me.good("GET", "/api/sync/events", **query)["events"]
    return [(each["event_type"], each["path"]) for each in told]


def test_what_is_done_over_http_is_told_once_and_in_order(me):
    file = me.upload("d/f.txt", b"one")["id"]
    me.upload("d/f.txt", b"two")
    me.good("POST", "/api/files/move", {"file_id": file, "to": "g.txt"})
    me.good("DELETE", f"/api/files/{file}")
    me.good("POST", "/api/files/undelete", {"file_id": file})

    assert events(me) == [
        ("folder_created", "/d"),
        ("file_uploaded", "/d/f.txt"),
        ("file_uploaded", "/d/f.txt"),
        ("file_moved", "/g.txt"),
        ("file_deleted", "/g.txt"),
        ("file_uploaded", "/g.txt"),
    ]
    moved = me.good("GET", "/api/sync/events")["events"][3]
    assert (moved["old_path"], moved["file_id"]) == ("/d/f.txt", file)


def test_what_a_mount_does_is_told_too(cluster, me):
    client = cluster.mount("events", me.token)
    save(client, "f", b"from the mount")
    assert client.drain()

    assert ("file_uploaded", "/f") in events(me)


def test_an_open_file_is_an_upload_when_it_has_its_content_be_it_none(cluster, me):
    client = cluster.mount("begun", me.token)
    for data in (b"", b"something"):
        name = f"f{len(data)}"
        _, opened = client.vfs.create(ROOT, name.encode(), 0o644, os.O_WRONLY, ME)
        assert client.drain()
        assert events(me)[-1] == ("file_created", f"/{name}")

        if data:
            client.vfs.write(opened.fh, 0, data, False)
        client.vfs.flush(opened.fh, 0)
        client.vfs.release(opened.fh, 0, False)
        assert client.drain()

        assert events(me)[-1] == ("file_uploaded", f"/{name}")


def test_an_editors_save_by_renaming_is_an_upload(me):
    me.upload("f", b"old")
    me.upload("tmp", b"new")
    me.good("POST", "/api/files/move", {"path": "tmp", "to": "f", "replace": True})

    assert events(me)[-1] == ("file_uploaded", "/f")


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_pages_of_events_join_without_loss_or_repeat(me, limit):
    for k in range(4):
        me.upload(f"new folder {k}/f", b"x")
    whole = me.good("GET", "/api/sync/events", limit=1000)["events"]
    assert len(whole) == 8

    got: list[str] = []
    since = ""
    while True:
        query = {"since": since} if since else {}
        told = me.good("GET", "/api/sync/events", limit=limit, **query)
        got += [each["id"] for each in told["events"]]
        since = told["next_since"]
        if not told["has_more"]:
            break

    assert got == [each["id"] for each in whole]


def test_since_is_an_id_a_commit_or_a_time(me):
    me.upload("a", b"x")
    first = me.good("GET", "/api/sync/events")["events"][0]
    me.upload("b", b"x")

    for since in (first["id"], first["seq"], first["timestamp"], "2023-01-01T00:00:00Z"):
        told = events(me, since=since)
        assert told[-1] == ("file_uploaded", "/b"), since
        assert len(told) == (2 if since == "2023-01-01T00:00:00Z" else 1)
    assert events(me, since="2999-01-01T00:00:00+02:00") == []
    for since in ("yesterday", "-1", "1-x", "2023-13-01", "9" * 40):
        assert me.kind("GET", "/api/sync/events", since=since) == "invalid"


def test_a_device_goes_on_where_it_left_off_and_never_back(me):
    phone = me.good("POST", "/api/auth/devices", {"device_name": "phone"})["device"]["id"]
    for name in "abc":
        me.upload(name, b"x")
    told = me.good("GET", "/api/sync/events", device_id=phone)["events"]

    me.good("PUT", f"/api/sync/events/{told[1]['id']}/processed", device_id=phone)
    me.good("PUT", f"/api/sync/events/{told[0]['id']}/processed", device_id=phone)

    assert events(me, device_id=phone) == [("file_uploaded", "/c")]
    assert len(events(me)) == 3
    status = me.good("GET", "/api/sync/status")
    behind = {each["device_id"]: each["pending"] for each in status["devices"]}
    assert behind[phone] == 1
    assert status["seq"] == 3


def test_a_ping_tells_what_is_pending_and_that_the_device_lives(me):
    phone = me.good("POST", "/api/auth/devices", {"device_name": "phone"})["device"]
    me.upload("a", b"x")

    status, _, _ = me.ask("POST", "/api/sync/ping", X_Device_ID=phone["id"])
    told = me.good("POST", "/api/sync/ping")

    assert (status, told["status"], told["pending"]) == (200, "ok", 1)
    seen = {
        each["id"]: each["last_seen"] for each in me.good("GET", "/api/auth/devices")["devices"]
    }
    assert seen[phone["id"]] > phone["last_seen"]


def test_a_poll_that_waits_is_answered_by_the_next_event(cluster, me):
    me.upload("a", b"x")
    since = me.good("GET", "/api/sync/events")["next_since"]
    waiting = Browser(cluster.app, me.token)
    got: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: got.extend(events(waiting, since=since, wait=20)))
    thread.start()

    me.upload("b", b"x")
    thread.join(15)

    assert got == [("file_uploaded", "/b")]


class Parked:
    """A poll that waits for an event; made, it has looked once and found none."""

    def __init__(self, cluster: InProcessCluster, who: Browser, headers: dict[str, str]) -> None:
        has_looked = threading.Event()
        page, told = cluster.service.files.events.page, who.good("GET", "/api/sync/events")

        def look(*asked: Any) -> Any:
            found = page(*asked)
            has_looked.set()
            return found

        self._route = f"/api/sync/events?since={told['next_since']}&wait=20"
        self._who, self._headers = who, headers
        self._answer: tuple[int, Any] = 0, None
        self._thread = threading.Thread(target=self._ask)
        with mock.patch.object(cluster.service.files.events, "page", look):
            self._thread.start()
            assert has_looked.wait(15)

    def _ask(self) -> None:
        status, _, raw = self._who.ask("GET", self._route, **self._headers)
        self._answer = status, json.loads(raw)

    def answer(self) -> tuple[int, Any]:
        """Return (status, JSON) once it is answered."""
        self._thread.join(15)
        return self._answer


@pytest.mark.parametrize("how", ["device", "password", "disabled"])
def test_a_poll_that_waits_ends_with_what_let_it_in(cluster, me, how):
    service, name = cluster.service, me.good("GET", "/api/auth/profile")["user"]["username"]
    basic = base64.b64encode(f"{name}:{PASSWORD}".encode()).decode()
    by_token = Parked(cluster, me, {})
    by_password = Parked(cluster, me, {"Authorization": f"Basic {basic}"})

    if how == "device":
        who = service.gate.by_token(me.token)
        service.devices.revoke(who.user, who.device, name)
    elif how == "password":
        service.accounts.set_password(name, "another password", "root")
    else:
        service.accounts.disable(name, True, "root")
    assert by_token.answer()[0] == 401

    if how == "device":  # a password is of no device
        Browser(cluster.app, cluster.service.gate.admit(
            service.accounts.get(name), service.devices.at_login(who.user, "", "new", "")
        )).upload("a", b"x")  # fmt: skip
        assert by_password.answer()[0] == 200
    else:
        assert by_password.answer()[0] == 401


def test_a_poll_that_waits_tells_nothing_of_a_team_folder_that_one_was_removed_from(
    cluster, me, monkeypatch
):
    mine = me.good("GET", "/api/auth/profile")["user"]["username"]
    owner = Browser(cluster.app, cluster.user(f"{mine}s-boss"))
    form = {"path": "Plans", "members": [{"username": mine, "permission": "read"}]}
    owner.good("POST", "/api/teams", form)
    found = cluster.service.files.events
    sights = found.sights(cluster.service.accounts.get(mine).id)
    page, looks = found.page, []

    def look(*asked: Any) -> Any:
        told = page(*asked)
        looks.append(told)
        if len(looks) == 1:  # from here on it waits
            owner.upload("Plans/secret", b"x")
            me.upload("own", b"x")
        return told

    monkeypatch.setattr(found, "page", look)
    told, _ = found.after(sights, found.now(sights), 100, 20, lambda: sights[:1])

    assert [event["path"] for event in told] == ["/own"]


def test_another_users_events_and_devices_are_not_there(cluster, me):
    me.upload("secret", b"x")
    phone = me.good("POST", "/api/auth/devices", {"device_name": "phone"})["device"]["id"]
    other = Browser(cluster.app, cluster.user("other" + phone))

    assert events(other) == []
    assert other.kind("GET", "/api/sync/events", device_id=phone) == "not_found"
    assert other.kind("PUT", "/api/sync/events/1-1/processed", device_id=phone) == "not_found"
    assert other.kind("PUT", "/api/sync/events/1-1/processed") == "not_found"


@pytest.mark.parametrize("event", ["0-1", "99-1", "x", "0", "1-1-1", "9" * 30])
def test_an_unknown_event_cannot_be_processed(me, event):
    me.upload("a", b"x")

    assert me.kind("PUT", f"/api/sync/events/{event}/processed") == "not_found"
