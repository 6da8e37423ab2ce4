"""The web page in a real Chromium: links, teams, devices, accounts, and the cluster for admins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page

from tests.harness.chromium import NARROW, Person, act, chromium, expect, fits, row, sign_in
from tests.harness.cluster import PASSWORD, RealCluster, running
from tests.harness.machine import wait_until

__all__ = ["chromium"]

SECRET = "a password of a test"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[RealCluster]:
    with running(tmp_path_factory.mktemp("people"), REGISTRATION="open") as started:
        yield started


@pytest.fixture(scope="module")
def people(cluster, chromium: Browser) -> dict[str, Person]:
    """The admin, and three users who know nothing of each other."""
    known = {"admin": Person(chromium, cluster.url, "admin", PASSWORD)}
    for name in ("ann", "bob", "eve"):
        known["admin"].api.add_user(name, SECRET)
        known[name] = Person(chromium, cluster.url, name, SECRET)
    return known


@pytest.fixture
def admin(people) -> Iterator[Person]:
    yield people["admin"]
    people["admin"].close()


@pytest.fixture
def ann(people) -> Iterator[Person]:
    yield people["ann"]
    people["ann"].close()


@pytest.fixture
def bob(people) -> Iterator[Person]:
    yield people["bob"]
    people["bob"].close()


@pytest.fixture
def eve(people) -> Iterator[Person]:
    yield people["eve"]
    people["eve"].close()


def save(person: Person, path: str, data: bytes = b"x") -> str:
    """Save a file; return its id."""
    answer = requests.post(
        f"{person.url}/api/files/upload",
        headers={"Authorization": f"Bearer {person.api.token}"},
        data={"path": path},
        files={"file": ("file", data)},
        timeout=20,
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["file_id"])


def make_link(page: Page, name: str, password: str = "", ends: str = "") -> str:
    """Make a link in the dialog of a row; return its address."""
    act(page, name, "Share link")
    if password:
        page.get_by_label("Password (optional)").fill(password)
    if ends:
        page.get_by_label("Ends").select_option(label=ends)
    page.get_by_role("button", name="Create link").click()
    return page.get_by_label("Address of the link").input_value()


# ---------------------------------------------------------------- links


def test_a_link_with_a_password_lets_a_stranger_in_until_it_is_revoked(ann):
    save(ann, "report.txt", b"what was shared")
    page = ann.page()
    address = make_link(page, "report.txt", "open sesame", "After a week")
    expect(page.locator(".link-row")).to_contain_text("with a password")
    ann.forgiven += ["401", "404"]
    stranger = ann.stranger(NARROW)

    stranger.goto(address)
    stranger.get_by_label("Password").fill("open says me")
    stranger.keyboard.press("Enter")
    expect(stranger.get_by_role("alert")).to_contain_text("not the password")
    stranger.get_by_label("Password").fill("open sesame")
    stranger.keyboard.press("Enter")
    expect(stranger.locator(".stage pre")).to_have_text("what was shared")
    with stranger.expect_download() as loaded:
        stranger.get_by_role("button", name="Download").click()

    assert Path(loaded.value.path()).read_bytes() == b"what was shared"
    assert fits(stranger)
    page.reload()
    page.goto(f"{ann.url}/#/shared")
    expect(page.locator(".link-row")).to_contain_text("1 download")
    page.get_by_role("button", name="Revoke this link").click()
    expect(page.get_by_text("No links yet")).to_be_visible()
    stranger.reload()
    expect(stranger.get_by_text("Nothing here")).to_be_visible()


def test_a_link_of_a_folder_shows_what_is_below_and_takes_uploads_when_it_may(ann, tmp_path):
    save(ann, "album/inner/deep.txt", b"deep")
    (tmp_path / "given.txt").write_bytes(b"given")
    page = ann.page()
    act(page, "album", "Share link")
    page.get_by_label("Permission").select_option("write")
    page.get_by_role("button", name="Create link").click()
    address = page.get_by_label("Address of the link").input_value()
    stranger = ann.stranger()

    stranger.goto(address)
    stranger.get_by_role("link", name="inner").click()
    stranger.get_by_role("link", name="deep.txt").click()
    expect(stranger.locator(".stage pre")).to_have_text("deep")
    stranger.get_by_role("link", name="All").click()
    with stranger.expect_file_chooser() as chooser:
        stranger.get_by_role("button", name="Upload").click()
    chooser.value.set_files(tmp_path / "given.txt")
    expect(stranger.get_by_role("link", name="given.txt")).to_be_visible()

    assert ann.api.call("GET", "/api/files/list?path=album&search=given")["total"] == 1


# ---------------------------------------------------------------- teams


def test_a_team_folder_is_made_used_by_both_and_one_who_reads_may_not_change_it(ann, bob):
    page, others = ann.page("#/teams"), bob.page()
    expect(others.get_by_text("Drop files here")).to_be_visible()

    page.get_by_role("button", name="New team folder").click()
    page.get_by_label("Name", exact=True).fill("Plans")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_text("Only you so far")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("bob")
    page.locator("dialog form select").select_option("read")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_label("Permission of bob")).to_have_value("read")
    page.keyboard.press("Escape")
    save(ann, "Plans/first.txt", b"from ann")
    page.goto(f"{ann.url}/#/files")
    expect(row(page, "Plans")).to_contain_text("Team")
    row(others, "Plans").locator(".open").click()
    expect(row(others, "first.txt")).to_be_visible()
    expect(others.get_by_role("button", name="Upload")).to_have_count(0)
    save(ann, "Plans/second.txt", b"later")
    expect(row(others, "second.txt")).to_be_visible()

    page.goto(f"{ann.url}/#/teams")
    page.get_by_role("button", name="People").click()
    page.get_by_role("button", name="Remove bob").click()
    others.goto(f"{bob.url}/#/teams")
    expect(others.get_by_text("No team folders yet")).to_be_visible()


def test_a_folder_that_is_there_is_shared_with_what_is_in_it(ann, bob):
    save(ann, "Letters/old.txt", b"from before")
    page, others = ann.page(), bob.page()

    act(page, "Letters", "Share with people")
    page.get_by_label("Name", exact=True).fill("bob")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_label("Permission of bob")).to_have_value("write")
    page.keyboard.press("Escape")
    expect(row(page, "Letters")).to_contain_text("Team")
    row(others, "Letters").locator(".open").click()

    expect(row(others, "old.txt")).to_be_visible()
    expect(others.get_by_role("button", name="Upload")).to_be_visible()


# ---------------------------------------------------------------- oneself


def test_a_device_that_is_revoked_elsewhere_is_signed_out_and_told_so(ann):
    page = ann.page()
    other = ann.stranger()
    other.goto(ann.url)
    sign_in(other, "ann", SECRET)
    ann.forgiven.append("401")

    page.goto(f"{ann.url}/#/devices")
    mine = page.locator(".device", has_text="This one")
    expect(mine).to_have_count(1)
    browsers = page.locator(".device", has_text="Browser").filter(has_not_text="This one")
    for _ in range(browsers.count()):
        left = browsers.count()
        browsers.first.get_by_role("button").click()
        page.locator("dialog").get_by_role("button", name="Revoke").click()
        expect(browsers).to_have_count(left - 1)
    other.goto(f"{ann.url}/#/usage")

    expect(other.get_by_role("heading", name="Sign in to Everfold")).to_be_visible()
    expect(mine).to_have_count(1)


def test_usage_tells_what_there_is_in_words_too(eve):
    save(eve, "one.txt", b"x" * 2048)
    save(eve, "one.txt", b"y" * 1024)
    save(eve, "two.png", b"z" * 4096)
    page = eve.page("#/usage")

    expect(page.get_by_role("heading", name="7.0 KB used")).to_be_visible()
    expect(page.locator(".tile", has_text="Versions")).to_contain_text("3")
    expect(page.get_by_role("img", name="Saves in the last 30 days: most on Today")).to_be_visible()
    expect(page.locator(".bars li").first).to_contain_text("Images")
    expect(page.get_by_role("img", name="history 2.0 KB")).to_be_visible()


def test_a_new_user_registers_changes_the_password_and_stays_signed_in_here_only(ann):
    page = ann.stranger(NARROW, "dark")
    page.goto(ann.url)
    page.get_by_role("button", name="Create an account").click()
    page.get_by_label("Name", exact=True).fill("carol")
    page.get_by_label("Password").fill("carols first password")
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_text("Drop files here")).to_be_visible()
    carol = Person(ann.browser, ann.url, "carol", "carols first password")

    tab = page.context.new_page()
    tab.goto(f"{ann.url}/#/files")
    expect(tab.get_by_text("Drop files here")).to_be_visible()
    page.goto(f"{ann.url}/#/account")
    page.get_by_label("Current password").fill("carols first password")
    page.get_by_label("New password").fill("carols second password")
    with tab.expect_response("**/api/auth/session"):  # its session has ended: it finds the new one
        page.get_by_role("button", name="Change password").click()
        expect(page.locator(".toast")).to_contain_text("The password is changed")
    page.reload()

    expect(page.get_by_role("heading", name="carol")).to_be_visible()
    expect(page.locator("nav a", has_text="Cluster")).to_have_count(0)
    wait_until(lambda: not is_let_in(carol), 5, "the other token has ended")
    tab.get_by_role("button", name="New folder").click()
    tab.get_by_label("Name").fill("after")
    tab.get_by_role("button", name="Create").click()
    expect(row(tab, "after")).to_be_visible()


def is_let_in(person: Person) -> bool:
    headers = {"Authorization": f"Bearer {person.api.token}"}
    return requests.get(f"{person.url}/api/auth/profile", headers=headers, timeout=10).ok


# ---------------------------------------------------------------- the cluster


def node(page: Page, name: str, state: str) -> None:
    expect(page.locator(".node", has_text=name).locator(".badge")).to_have_text(state)


def choose(page: Page, name: str, action: str, verb: str = "") -> None:
    page.get_by_role("button", name=f"Actions for {name}").click()
    page.locator("[role=menuitem]", has=page.get_by_text(action, exact=True)).click()
    if verb:
        page.locator("dialog").get_by_role("button", name=verb).click()


def test_a_node_is_declared_dead_and_taken_back_while_one_looks(admin):
    for number in range(12):
        save(admin, f"blocks/{number}", bytes([number]) * 300_000)
    page = admin.page("#/admin")
    expect(page.get_by_text("Everything is safe.")).to_be_visible()
    expect(page.get_by_role("meter", name="Disk of dn1")).to_be_visible()

    choose(page, "dn1", "Declare dead", "Declare dead")
    node(page, "dn1", "Declared dead")
    expect(page.get_by_text("Everything is safe.")).to_be_visible()  # copied to the other two
    choose(page, "dn1", "Repair: take it back")
    node(page, "dn1", "Healthy")
    choose(page, "dn2", "Drain", "Drain")
    node(page, "dn2", "Draining")
    choose(page, "dn2", "Repair: take it back")

    node(page, "dn2", "Healthy")
    page.goto(f"{admin.url}/#/admin/audit")
    for action in ("node.fail", "node.repair", "node.drain"):
        expect(page.locator("table")).to_contain_text(action)


def test_plots_show_the_load_over_time(admin):
    page = admin.page("#/admin/load")

    for title in ("Throughput", "Requests", "Latency"):
        expect(page.get_by_role("img", name=f"{title}:")).to_be_visible()
    page.get_by_label("How far back").select_option("15")
    expect(page.locator(".plot .line")).to_have_count(5)


def test_users_are_added_bounded_and_shut_out(admin):
    page = admin.page("#/admin/people")
    page.get_by_role("button", name="Add user").click()
    page.get_by_label("Name", exact=True).fill("dave")
    page.get_by_label("Password").fill("daves long password")
    page.get_by_role("button", name="Add", exact=True).click()
    line = page.locator("tr", has_text="dave")
    expect(line).to_contain_text("No limit")

    choose(page, "dave", "Change the quota")
    page.get_by_label("Quota", exact=True).fill("1.5 GB")
    page.get_by_role("button", name="Save").click()
    expect(line).to_contain_text("1.5 GB")
    choose(page, "dave", "Disable")

    expect(line).to_contain_text("Disabled")
    told = {user["username"]: user for user in admin.api.users()}["dave"]
    assert (told["quota"], told["disabled"]) == (3 << 29, True)


def test_whoever_is_no_admin_is_not_shown_the_cluster(bob):
    bob.forgiven.append("403")
    page = bob.page("#/admin")

    expect(page.locator("nav a", has_text="Usage")).to_be_visible()
    expect(page.locator("nav a", has_text="Cluster")).to_have_count(0)
    expect(page.get_by_role("alert")).to_contain_text("Only admins may do this")
