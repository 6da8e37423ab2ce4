"""Administration over the routes: nodes that leave, users, invitations, the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from everfold.model import NodeId, NodeState, SpaceId
from nameserver.db import Database
from nameserver.policy import Policy
from tests.harness.service import PASSWORD, Desk
from tests.harness.web import Json, Web

SPACE = SpaceId(2)  # ann's home


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(
        database, Policy(bcrypt_rounds=4, surplus_s=2.0, drop_rest_s=1.0, registration="invite")
    )
    yield desk
    desk.service.stop()


@pytest.fixture
def web(desk: Desk) -> Web:
    web = Web(desk)
    web.login("root")
    return web


def done(web: Web, method: str, path: str, form: object = None) -> Any:
    status, answer, _ = web.call(method, path, form)
    assert status < 300, answer
    return answer


def kind(web: Web, method: str, path: str, form: object = None, **headers: str) -> tuple[int, str]:
    status, answer, _ = web.call(method, path, form, **headers)
    return status, answer.get("error", {}).get("kind", "")


def rows(web: Web) -> dict[str, Json]:
    return {row["id"]: row for row in done(web, "GET", "/admin/system/nodes")}


# ------------------------------------------------------------ nodes


def test_a_drained_node_gives_its_copies_away_and_can_be_removed(desk: Desk, web: Web) -> None:
    blocks = [desk.store(SPACE, ["dn1", "dn2"]) for _ in range(5)]

    told = done(web, "POST", "/admin/system/drain-node/dn1")
    refused = kind(web, "POST", "/admin/system/remove-node/dn1")
    desk.pass_time(20)
    after = rows(web)["dn1"]
    gone = done(web, "POST", "/admin/system/remove-node/dn1")

    assert (told["state"], told["to_copy"]) == ("draining", 5)
    assert refused == (409, "busy")
    assert (after["state"], after["to_copy"]) == ("draining", 0)
    assert gone == {"removed": "dn1", "lacking": 0, "lost": 0}
    assert set(rows(web)) == {"dn2", "dn3"}
    assert all(desk.holders(SPACE, block) >= {"dn2", "dn3"} for block in blocks)
    with desk.service.db.read() as cx:
        assert cx.one("SELECT count(*) FROM replica WHERE node = 'dn1'") == (0,)


def test_nothing_is_put_on_a_node_that_drains_and_it_is_read_until_the_end(
    desk: Desk, web: Web
) -> None:
    done(web, "POST", "/admin/system/drain-node/dn1")
    desk.nodes["dn1"].put(SPACE, desk.block())
    desk.beat("dn1")

    assert desk.state("dn1") is NodeState.DRAINING
    assert rows(web)["dn1"]["to_copy"] == 1
    assert done(web, "POST", "/admin/system/repair-node/dn1")["state"] == "up"


def test_a_node_that_is_in_use_is_not_removed(web: Web) -> None:
    assert kind(web, "POST", "/admin/system/remove-node/dn1") == (409, "busy")
    assert rows(web)["dn1"]["state"] == "up"


def test_what_only_one_node_has_keeps_it_from_being_removed_unless_forced(
    desk: Desk, web: Web
) -> None:
    desk.store(SPACE, ["dn1"])
    done(web, "POST", "/admin/system/fail-node/dn1")

    status, answer, _ = web.call("POST", "/admin/system/remove-node/dn1")
    forced = done(web, "POST", "/admin/system/remove-node/dn1", {"force": True})

    assert status == 409
    assert "1 blocks lack copies without it, 1 of them have no other" in answer["error"]["message"]
    assert forced == {"removed": "dn1", "lacking": 1, "lost": 1}


def test_a_removed_node_that_is_taken_back_is_counted_and_nothing_on_it_was_wiped(
    desk: Desk, web: Web
) -> None:
    block = desk.store(SPACE, ["dn1"])
    done(web, "POST", "/admin/system/remove-node/dn1?force=1")

    back = done(web, "POST", "/admin/system/repair-node/dn1")
    desk.pass_time(10)

    assert back["state"] == "up"
    assert len(desk.holders(SPACE, block)) == 2
    assert done(web, "GET", "/status")["missing"] == 0


@pytest.mark.parametrize("action", ["drain-node", "remove-node", "fail-node", "repair-node"])
def test_a_node_that_nobody_knows_is_not_found(web: Web, action: str) -> None:
    assert kind(web, "POST", f"/admin/system/{action}/dn9") == (404, "not_found")


def test_while_a_node_comes_back_the_copies_that_it_is_about_to_get_are_told(
    desk: Desk, web: Web
) -> None:
    desk.store(SPACE, ["dn1", "dn2"])
    desk.service.fail_node(NodeId("dn2"), "root")
    desk.pass_time(1)
    desk.clock.move(5)  # the block is old enough; nobody obeys yet
    desk.beat("dn1", "dn3")
    desk.service.driver.tick()

    assert sum(row["to_copy"] for row in rows(web).values() if row["state"] == "up") <= 1
    assert rows(web)["dn2"]["state"] == "failed"


# ------------------------------------------------------------ users


def test_an_admin_changes_quota_role_and_access_of_a_user(desk: Desk, web: Web) -> None:
    changed = done(web, "PUT", "/admin/users/ann", {"quota": 1000, "role": "admin"})["user"]
    shut = done(web, "PUT", "/admin/users/ann", {"disabled": True})["user"]

    assert (changed["quota"], changed["role"], changed["disabled"]) == (1000, "admin", False)
    assert (shut["quota"], shut["role"], shut["disabled"]) == (1000, "admin", True)
    assert {"used_bytes", "history_bytes"} <= set(shut)
    assert done(web, "GET", "/admin/users/ann")["user"] == shut


@pytest.mark.parametrize("form", [{"role": "user"}, {"disabled": True}])
def test_the_last_admin_stays_one(web: Web, form: Json) -> None:
    assert kind(web, "PUT", "/admin/users/root", form) == (403, "not_permitted")

    done(web, "PUT", "/admin/users/ann", {"role": "admin"})
    assert kind(web, "PUT", "/admin/users/root", form)[0] == 200


@pytest.mark.parametrize(
    "form", [{}, {"quota": -1}, {"quota": "much"}, {"role": "emperor"}, {"disabled": "yes"}]
)
def test_a_change_that_makes_no_sense_changes_nothing(web: Web, form: Json) -> None:
    before = done(web, "GET", "/admin/users/ann")

    assert kind(web, "PUT", "/admin/users/ann", form or b"{}") == (400, "invalid")
    assert done(web, "GET", "/admin/users/ann") == before


def test_a_user_that_nobody_knows_cannot_be_changed(web: Web) -> None:
    assert kind(web, "PUT", "/admin/users/nobody", {"quota": 1}) == (404, "not_found")


def test_the_routes_of_admins_are_for_admins(desk: Desk) -> None:
    web = Web(desk)
    web.login("ann")

    for method, path in (
        ("POST", "/admin/system/drain-node/dn1"),
        ("POST", "/admin/system/remove-node/dn1"),
        ("PUT", "/admin/users/ann"),
        ("GET", "/admin/audit"),
        ("GET", "/admin/system/load"),
        ("GET", "/admin/invitations"),
        ("POST", "/admin/invitations"),
    ):
        assert kind(web, method, path) == (403, "forbidden"), path


# ------------------------------------------------------------ the audit log


def test_the_log_tells_who_did_what_from_where_page_by_page(desk: Desk, web: Web) -> None:
    assert (
        kind(web, "POST", "/api/auth/login", {"username": "ann", "password": "a guess"})[0] == 401
    )
    Web(desk).login("ann")
    done(web, "POST", "/admin/system/drain-node/dn1")

    first = done(web, "GET", "/admin/audit?per_page=2")
    second = done(web, "GET", "/admin/audit?per_page=2&page=2")
    logins = done(web, "GET", "/admin/audit?action=login&author=ann")["audit"]

    drain, login = first["audit"]
    assert (drain["author"], drain["action"], drain["subject"]) == ("root", "node.drain", "dn1")
    assert (login["author"], login["action"], login["address"]) == ("ann", "login", "127.0.0.1")
    assert second["audit"][0]["action"] == "login.failed"
    assert (first["page"], first["has_next"], second["has_prev"]) == (1, True, True)
    assert [line["action"] for line in logins] == ["login", "login.failed"]
    assert kind(web, "GET", "/admin/audit?page=0") == (400, "invalid")


# ------------------------------------------------------------ invitations


def invited(web: Web, **more: object) -> str:
    answer = done(web, "POST", "/admin/invitations", {"expires_in_days": 2, **more})
    token: str = answer["invitation"]["token"]
    return token


def register(web: Web, name: str, token: str = "", **more: str) -> tuple[int, str]:
    form = {"username": name, "password": PASSWORD, "invitation": token, **more}
    return kind(web, "POST", "/api/auth/register", form, Authorization="")


def test_an_invitation_lets_one_person_in_once(desk: Desk, web: Web) -> None:
    token = invited(web, quota=500)

    assert register(web, "bob", "nonsense") == (403, "forbidden")
    assert register(web, "bob") == (403, "forbidden")
    assert register(web, "bob", token)[0] == 201
    assert register(web, "eve", token) == (403, "forbidden")

    told = done(web, "GET", "/admin/invitations")["invitations"][0]
    assert (told["used_by"], "token" in told) == ("bob", False)
    assert done(web, "GET", "/admin/users/bob")["user"]["quota"] == 500


def test_an_invitation_ends_by_itself_or_is_withdrawn_or_is_for_one_address(
    desk: Desk, web: Web
) -> None:
    late, bound = invited(web), invited(web, email="Bob@example.org")
    made = done(web, "POST", "/admin/invitations")["invitation"]

    done(web, "DELETE", f"/admin/invitations/{made['id']}")
    assert register(web, "bob", made["token"]) == (403, "forbidden")
    assert register(web, "bob", bound, email="eve@example.org") == (403, "forbidden")
    assert register(web, "bob", bound, email="bob@Example.org")[0] == 201
    desk.clock.move(2 * 86_400 + 1)
    web.login("root")
    assert register(web, "eve", late) == (403, "forbidden")
    assert kind(web, "DELETE", "/admin/invitations/unknown") == (404, "not_found")


def test_a_name_that_is_taken_does_not_use_an_invitation_up(web: Web) -> None:
    token = invited(web)

    assert register(web, "ann", token) == (409, "exists")
    assert register(web, "bob", token)[0] == 201
