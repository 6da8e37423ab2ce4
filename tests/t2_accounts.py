"""Users, logins, devices, tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.tokens import Signer
from nameserver import passwords
from nameserver.db import Database
from nameserver.policy import Policy
from tests.harness.service import KEYS, PASSWORD, Desk


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
