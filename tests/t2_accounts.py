"""Users, logins, devices, tokens."""

from __future__ import annotations

from collections.abc import Iterator

import bcrypt
import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import MountId
from everfold.tokens import Signer
from nameserver import passwords
from nameserver.db import Database
from nameserver.policy import Policy
from tests.harness.service import KEYS, PASSWORD, Desk
from tests.harness.web import Web


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(database, Policy(bcrypt_rounds=4, login_failures=3, token_ttl_s=1000))
    yield desk
    desk.service.stop()


def fails(kind: Kind) -> pytest.RaisesExc[EverfoldError]:
    return pytest.RaisesExc(EverfoldError, check=lambda err: err.kind is kind)


def test_a_user_can_log_in_by_name_and_by_email(desk: Desk) -> None:
    desk.service.accounts.create("bob", "correct horse", "bob@example.org")

    assert desk.service.accounts.login("bob", "correct horse").name == "bob"
    assert desk.service.accounts.login("bob@example.org", "correct horse").name == "bob"


def test_every_user_has_a_home_space_of_the_same_name(desk: Desk) -> None:
    session = desk.mount()

    assert (session.space_name, session.user, session.seq) == ("ann", "ann", 0)


def test_a_name_or_email_that_is_taken_is_refused_and_nothing_is_made(desk: Desk) -> None:
    accounts = desk.service.accounts
    accounts.create("bob", "correct horse", "bob@example.org")

    with fails(Kind.EXISTS):
        accounts.create("bob", "another horse")
    with fails(Kind.EXISTS):
        accounts.create("rob", "another horse", "bob@example.org")
    assert [user.name for user in accounts.all()] == ["ann", "bob", "root"]


@pytest.mark.parametrize(
    ("name", "password", "email", "role"),
    [
        ("", "long enough", None, "user"),
        ("../etc", "long enough", None, "user"),
        ("a" * 65, "long enough", None, "user"),
        ("bob", "short", None, "user"),
        ("bob", "long enough", "nonsense", "user"),
        ("bob", "long enough", None, "emperor"),
    ],
)
def test_nonsense_is_no_user(
    desk: Desk, name: str, password: str, email: str | None, role: str
) -> None:
    with fails(Kind.INVALID):
        desk.service.accounts.create(name, password, email, role)


def test_a_wrong_password_and_an_unknown_name_sound_the_same(desk: Desk) -> None:
    said = []
    for name, password in (("ann", "wrong password"), ("nobody", PASSWORD)):
        with fails(Kind.UNAUTHENTICATED) as caught:
            desk.service.accounts.login(name, password)
        said.append(str(caught.value))

    assert said[0] == said[1]


def test_a_password_is_not_cut_at_72_bytes() -> None:
    stored = passwords.hashed("x" * 100 + "a", 4)

    assert passwords.matches("x" * 100 + "a", stored)
    assert not passwords.matches("x" * 100 + "b", stored)


def test_guessing_is_stopped_and_allowed_again_after_a_while(desk: Desk) -> None:
    accounts = desk.service.accounts
    for _ in range(3):
        with fails(Kind.UNAUTHENTICATED):
            accounts.login("ann", "a wrong guess", "10.0.0.1")

    with fails(Kind.RATE_LIMITED):
        accounts.login("ann", PASSWORD, "10.0.0.1")
    assert accounts.login("ann", PASSWORD, "10.0.0.2").name == "ann"
    desk.clock.move(desk.policy.login_window_s + 1)
    assert accounts.login("ann", PASSWORD, "10.0.0.1").name == "ann"


def token_of(desk: Desk, device: str = "") -> str:
    found = desk.service.devices.at_login(desk.ann.id, device, "laptop", "mount")
    return desk.service.gate.admit(desk.service.accounts.get("ann"), found)


def test_a_token_tells_who_and_which_device(desk: Desk) -> None:
    who = desk.service.gate.by_token(token_of(desk, "my-laptop"))

    assert (who.user, who.name, who.device, who.device_name) == (
        desk.ann.id, "ann", "my-laptop", "laptop",
    )  # fmt: skip


def test_a_token_ends_with_its_time_even_if_it_was_just_checked(desk: Desk) -> None:
    token = token_of(desk)
    desk.clock.move(999)
    desk.service.gate.by_token(token)

    desk.clock.move(0.4 + 1)
    with fails(Kind.UNAUTHENTICATED):
        desk.service.gate.by_token(token)


@pytest.mark.parametrize("how", ["device", "password", "disabled"])
def test_a_revoked_token_is_dead_within_a_second(desk: Desk, how: str) -> None:
    service, token = desk.service, token_of(desk, "d1")
    service.gate.by_token(token)

    if how == "device":
        service.devices.revoke(desk.ann.id, "d1", "ann")
    elif how == "password":
        service.accounts.set_password("ann", "another password", "root")
    else:
        service.accounts.disable("ann", True, "root")

    desk.clock.move(1.0)
    with fails(Kind.UNAUTHENTICATED):
        service.gate.by_token(token)


def test_a_revoked_device_id_never_comes_back(desk: Desk) -> None:
    old = token_of(desk, "d1")
    desk.service.devices.revoke(desk.ann.id, "d1", "ann")

    fresh = desk.service.gate.by_token(token_of(desk, "d1"))

    assert fresh.device != "d1"
    with fails(Kind.UNAUTHENTICATED):
        desk.service.gate.by_token(old)
    with fails(Kind.EXISTS):
        desk.service.devices.register(desk.ann.id, "d1", "laptop", "")


def test_nobody_can_take_or_revoke_the_device_of_another(desk: Desk) -> None:
    token_of(desk, "d1")
    bob = desk.service.accounts.create("bob", "correct horse")

    with fails(Kind.EXISTS):
        desk.service.devices.register(bob.id, "d1", "mine now", "")
    with fails(Kind.NOT_FOUND):
        desk.service.devices.revoke(bob.id, "d1", "bob")
    assert [device.id for device in desk.service.devices.of(desk.ann.id)] == ["d1"]


def test_a_token_of_another_cluster_or_purpose_is_refused(desk: Desk) -> None:
    gate = desk.service.gate
    foreign = Signer("another cluster's secret", desk.clock).mint("user", 100, sub=1, gen=0, dev="")
    blocks = Signer(KEYS.jwt_secret_key, desk.clock).mint("blocks", 100, space=1)

    for token in (foreign, blocks, "nonsense", ""):
        with fails(Kind.UNAUTHENTICATED):
            gate.by_token(token)


def test_the_last_admin_cannot_be_disabled(desk: Desk) -> None:
    with fails(Kind.NOT_PERMITTED):
        desk.service.accounts.disable("root", True, "root")

    assert desk.service.accounts.login("root", PASSWORD).role == "admin"


def test_only_a_first_start_makes_an_admin(desk: Desk) -> None:
    assert desk.service.first_admin() is None


# ------------------------------------------------------------ tokens that end one by one


def test_a_token_ends_by_itself_and_no_other_with_it(desk: Desk) -> None:
    gate, token, other = desk.service.gate, token_of(desk, "d1"), token_of(desk, "d1")

    gate.end(token, "ann")

    with fails(Kind.UNAUTHENTICATED):
        gate.by_token(token)
    assert gate.by_token(other).name == "ann"


def test_ended_tokens_are_forgotten_when_they_would_have_expired(desk: Desk) -> None:
    desk.service.gate.end(token_of(desk, "d1"), "ann")
    desk.clock.move(1001)
    desk.service.gate.end(token_of(desk, "d1"), "ann")

    with desk.service.db.read() as cx:
        assert cx.one("SELECT count(*) FROM revoked_token") == (1,)


# ------------------------------------------------------------ over the routes


@pytest.fixture
def web(desk: Desk) -> Web:
    web = Web(desk)
    web.login("ann")
    return web


def status(web: Web, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return web.call("GET", "/api/auth/profile", **headers)[0]


def test_logging_out_ends_this_token_and_revoking_all_ends_all(desk: Desk, web: Web) -> None:
    first, second = web.token, str(web.login("ann")["token"])

    assert web.call("POST", "/api/auth/logout")[0] == 200
    assert (status(web, first), status(web, second)) == (200, 401)

    web.token = first
    assert web.call("POST", "/api/auth/revoke-all")[0] == 200
    desk.clock.move(1)
    assert status(web, first) == 401


def test_a_changed_password_ends_other_tokens_and_gives_the_one_who_changed_it_a_new_one(
    desk: Desk, web: Web
) -> None:
    other = str(web.login("ann")["token"])
    form = {"current_password": PASSWORD, "new_password": "another password"}

    code, answer, _ = web.call("PUT", "/api/auth/profile", form)
    desk.clock.move(1)

    assert code == 200
    assert (status(web, answer["token"]), status(web, other)) == (200, 401)
    web.token = answer["token"]
    assert web.call("PUT", "/api/auth/profile", form)[0] == 401  # that was the password before


def test_a_browser_that_changes_the_password_stays_logged_in(desk: Desk) -> None:
    web = Web(desk)
    form = {"username": "ann", "password": PASSWORD}
    began = web.call("POST", "/api/auth/session", form, **{"Content-Type": "application/json"})
    cookie = began[2]["set-cookie"].partition(";")[0]
    change = {"current_password": PASSWORD, "new_password": "another password"}
    headers = {"Cookie": cookie, "X-CSRF-Token": began[1]["csrf"]}

    code, answer, back = web.call("PUT", "/api/auth/profile", change, **headers)
    desk.clock.move(1)

    assert code == 200
    assert web.call("GET", "/api/auth/profile", Cookie=cookie)[0] == 401
    fresh = {"Cookie": back["set-cookie"].partition(";")[0], "X-CSRF-Token": answer["csrf"]}
    assert web.call("PUT", "/api/auth/profile", {"email": "ann@example.org"}, **fresh)[0] == 200


def test_who_guesses_is_told_how_long_to_wait(desk: Desk) -> None:
    web = Web(desk)
    form = {"username": "ann", "password": "a wrong guess"}
    for _ in range(3):
        assert web.call("POST", "/api/auth/login", form)[0] == 401
    desk.clock.move(100)

    code, answer, headers = web.call("POST", "/api/auth/login", form)

    assert (code, answer["error"]["kind"]) == (429, "rate_limited")
    assert headers["retry-after"] == str(int(desk.policy.login_window_s) - 100 + 1)


def test_an_address_that_guesses_many_names_is_stopped_too(desk: Desk) -> None:
    accounts = desk.service.accounts
    for number in range(desk.policy.login_failures_address):
        with fails(Kind.UNAUTHENTICATED):
            accounts.login(f"nobody{number}", "a wrong guess", "10.0.0.1")

    with fails(Kind.RATE_LIMITED):
        accounts.login("ann", PASSWORD, "10.0.0.1")
    assert accounts.login("ann", PASSWORD, "10.0.0.2").name == "ann"


@pytest.mark.parametrize("who", ["nobody", "ann", "shut"])
def test_every_failed_login_costs_one_hash_whoever_it_names(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    desk.service.accounts.create("shut", PASSWORD)
    desk.service.accounts.disable("shut", True, "root")
    real, rounds = bcrypt.checkpw, []

    def counted(password: bytes, stored: bytes) -> bool:
        rounds.append(stored.split(b"$")[2])
        return real(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    with fails(Kind.UNAUTHENTICATED):
        desk.service.accounts.login(who, "a wrong guess")

    assert rounds == [b"04"]


def test_an_email_is_one_whatever_its_capitals(desk: Desk) -> None:
    desk.service.accounts.create("bob", "correct horse", "Bob@Example.org")

    assert desk.service.accounts.login("bob@example.ORG", "correct horse").name == "bob"
    with fails(Kind.EXISTS):
        desk.service.accounts.create("rob", "correct horse", "BOB@example.org")


@pytest.mark.parametrize(("mode", "code"), [("open", 201), ("invite", 403), ("admin", 403)])
def test_who_may_register_follows_the_setting(database: Database, mode: str, code: int) -> None:
    desk = Desk(database, Policy(bcrypt_rounds=4, registration=mode))
    form = {"username": "bob", "password": "correct horse", "email": "bob@example.org"}

    assert Web(desk).call("POST", "/api/auth/register", form)[0] == code
    desk.service.stop()


# ------------------------------------------------------------ mounts are devices


def test_a_mount_is_a_device_of_its_own_that_history_shows_as_the_machine(desk: Desk) -> None:
    login = desk.service.gate.by_token(token_of(desk, "d1"))
    session = desk.service.caller(login).session(wire.Hello(MountId("m1"), "host:/home/ann/E"))
    who = desk.service.gate.by_token(session.token)
    rows = {row["id"]: row for row in desk.service.devices.with_places(desk.ann.id)}

    assert (session.device, who.device_name) == ("laptop", "laptop")
    assert rows[who.device]["name"] == "host:/home/ann/E"
    assert (rows[who.device]["type"], rows[who.device]["parent_id"]) == ("mount", "d1")
    assert (rows[who.device]["mount_id"], rows[who.device]["active"]) == ("m1", True)


def test_a_mount_that_comes_again_stays_the_same_device(desk: Desk) -> None:
    caller = desk.service.caller(desk.service.gate.by_token(token_of(desk, "d1")))
    hello = wire.Hello(MountId("m1"), "host:/mnt")

    ids = {desk.service.gate.by_token(caller.session(hello).token).device for _ in range(3)}

    assert len(ids) == 1


def test_a_revoked_mount_comes_back_with_a_later_login_only(desk: Desk) -> None:
    service, hello = desk.service, wire.Hello(MountId("m1"), "host:/mnt")
    login = service.gate.by_token(token_of(desk, "d1"))
    session = service.caller(login).session(hello)
    own = service.gate.by_token(session.token).device
    desk.clock.move(10)

    service.devices.revoke(desk.ann.id, own, "ann")
    desk.clock.move(10)

    with fails(Kind.UNAUTHENTICATED):
        service.gate.by_token(session.token)
    with fails(Kind.UNAUTHENTICATED):
        service.caller(login).session(hello)
    later = service.gate.by_token(token_of(desk, "d1"))
    fresh = service.gate.by_token(service.caller(later).session(hello).token)
    assert fresh.device != own


def test_revoking_a_login_revokes_what_was_mounted_with_it(desk: Desk) -> None:
    service = desk.service
    login = service.gate.by_token(token_of(desk, "d1"))
    session = service.caller(login).session(wire.Hello(MountId("m1"), "host:/mnt"))

    service.devices.revoke(desk.ann.id, "d1", "ann")

    with fails(Kind.UNAUTHENTICATED):
        service.gate.by_token(session.token)
    assert service.devices.of(desk.ann.id) == []
