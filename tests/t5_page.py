"""The web page in a real Chromium, beside a mounted folder: one's files, and nothing else.

What is done on the page is looked for in the folder, and the other way round. Each test has a
folder of its own; whatever the browser complains of fails the test.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, Route

from tests.harness.chromium import (
    NARROW,
    Person,
    act,
    chromium,
    expect,
    fits,
    nameless,
    names,
    row,
    sign_in,
)
from tests.harness.cluster import PASSWORD
from tests.harness.folders import folder, versions
from tests.harness.machine import wait_until

__all__ = ["chromium"]
pytestmark = pytest.mark.fuse

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
    "789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\ntrailer<</Root 1 0 R>>"  # noqa: E501
EVIL = "<script>document.title='taken'</script>"
VIEWS = {
    "shared": "Shared links", "teams": "Team folders", "trash": "Trash", "usage": "Usage",
    "devices": "Devices", "account": "admin", "admin": "Cluster", "admin/load": "Cluster",
    "admin/people": "Cluster", "admin/audit": "Cluster",
}  # fmt: skip


@pytest.fixture(scope="module")
def top(live_cluster) -> Iterator[Path]:
    """The folder, mounted."""
    with (
        tempfile.TemporaryDirectory(prefix="everfold-page-") as above,
        folder(live_cluster, Path(above, "folder")) as mounted,
    ):
        yield mounted.path


@pytest.fixture(scope="module")
def admin(live_cluster, chromium: Browser) -> Person:
    return Person(chromium, live_cluster.url, "admin", PASSWORD)


@pytest.fixture
def me(admin: Person) -> Iterator[Person]:
    yield admin
    admin.close()


@pytest.fixture
def here(top: Path, request) -> Path:
    """A folder of one's own for every test."""
    made = top / request.node.name.split("[")[0][5:60]
    made.mkdir(exist_ok=True)
    return made


def at(place: Path) -> str:
    return f"#/files/{quote(place.name)}"


def drop(page: Page, where: str, **files: str) -> None:
    """Drop files from outside on an element."""
    script = """files => { const dt = new DataTransfer();
      for (const [name, text] of Object.entries(files)) dt.items.add(new File([text], name));
      return dt }"""
    transfer = page.evaluate_handle(script, files)
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(where, event, {"dataTransfer": transfer})


def upload(page: Page, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload", exact=True).click()
    chooser.value.set_files(files)


# ---------------------------------------------------------------- the door


def test_a_wrong_password_is_told_the_right_one_opens_and_leaving_ends_the_session(me):
    page = me.stranger()
    me.forgiven.append("401")
    page.goto(me.url)

    page.get_by_label("Name or e-mail").fill("admin")
    page.get_by_label("Password").fill("not the password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Wrong name or password")
    sign_in(page, "admin", PASSWORD)
    cookies = page.context.cookies()
    page.get_by_role("button", name="Account of admin").click()
    page.get_by_role("menuitem", name="Sign out").click()

    expect(page.get_by_role("heading", name="Sign in to Everfold")).to_be_visible()
    assert [(c["httpOnly"], c["sameSite"]) for c in cookies] == [(True, "Strict")]
    assert page.context.cookies() == []


# ---------------------------------------------------------------- walking around


@pytest.mark.parametrize(
    ("width", "theme"), [(1280, "light"), (1280, "dark"), (NARROW, "light"), (NARROW, "dark")]
)
def test_every_view_fits_and_complains_of_nothing_in_both_themes(me, here, width, theme):
    (here / ("a very long name " * 8 + ".txt")).write_text("x")
    page = me.page(at(here), width, theme)
    expect(page.locator(".row.item")).to_have_count(1)
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in shade[4:-1].split(",")) < 300
    sticking = [] if fits(page) and not nameless(page) else ["files"]

    for view, title in VIEWS.items():
        page.goto(f"{me.url}/#/{view}")
        expect(page.locator("#view h1")).to_have_text(title)
        expect(page.locator("#view .loading")).to_have_count(0)
        if not fits(page) or nameless(page):
            sticking.append(f"{view} {nameless(page)}")

    assert sticking == []
    assert dark == (theme == "dark")


def test_the_theme_can_be_chosen_and_is_remembered(me):
    page = me.page()

    page.get_by_role("button", name="Account of admin").click()
    page.get_by_role("menuitem", name="Dark").click()
    page.reload()

    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_folders_are_walked_by_name_and_back_by_the_path_above(me, here):
    (here / "outer" / "inner").mkdir(parents=True)
    (here / "outer" / "inner" / "leaf.txt").write_text("x")
    page = me.page(at(here))

    row(page, "outer").locator(".open").click()
    row(page, "inner").locator(".open").click()
    expect(row(page, "leaf.txt")).to_be_visible()
    page.get_by_role("navigation", name="Path").get_by_role("link", name="outer").click()

    expect(row(page, "inner")).to_be_visible()
    page.go_back()
    expect(row(page, "leaf.txt")).to_be_visible()


def test_lists_are_sorted_by_what_is_asked_folders_first(me, here):
    (here / "zoo").mkdir()
    for name, size in (("b10.txt", 10), ("b9.txt", 3000), ("A.txt", 200)):
        (here / name).write_bytes(b"x" * size)
    page = me.page(at(here))
    expect(page.locator(".row.item")).to_have_count(4)
    by_name = names(page)

    page.get_by_role("button", name="Size").click()
    expect(page.get_by_role("columnheader", name="Size")).to_have_attribute(
        "aria-sort", "ascending"
    )
    expect(page.locator(".row.item .open").nth(1)).to_have_text("b10.txt")

    assert by_name == ["zoo", "A.txt", "b9.txt", "b10.txt"]
    assert names(page) == ["zoo", "b10.txt", "A.txt", "b9.txt"]
    page.get_by_role("button", name="Name").click()
    expect(page.locator(".row.item .open").nth(1)).to_have_text("A.txt")


def test_a_long_folder_loads_as_one_scrolls(me, here):
    for number in range(430):
        (here / f"n{number:03}").touch()
    page = me.page(at(here))

    expect(page.locator(".row.item")).to_have_count(200)
    page.locator(".list-end").scroll_into_view_if_needed()
    expect(page.locator(".row.item")).to_have_count(400)
    page.locator(".list-end").scroll_into_view_if_needed()
    expect(page.locator(".row.item")).to_have_count(430)

    assert names(page) == [f"n{number:03}" for number in range(430)]


def test_a_search_begins_with_a_slash_and_finds_what_is_below(me, here):
    (here / "deep" / "er").mkdir(parents=True)
    (here / "deep" / "er" / "Needle one.txt").write_text("x")
    (here / "other.txt").write_text("x")
    page = me.page(at(here))
    expect(row(page, "other.txt")).to_be_visible()

    page.keyboard.press("/")
    page.keyboard.type("NEEDLE")

    expect(page.locator(".row.item")).to_have_count(1)
    expect(row(page, "Needle one.txt").locator(".detail")).to_contain_text("/deep/er")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    expect(row(page, "other.txt")).to_be_visible()


# ---------------------------------------------------------------- uploads


def test_many_files_are_uploaded_by_the_button_into_the_folder(me, here, tmp_path):
    files = [tmp_path / f"file {k}.bin" for k in range(5)]
    for file in files:
        file.write_bytes(os.urandom(5000))
    page = me.page(at(here))
    expect(page.get_by_text("Drop files here")).to_be_visible()

    upload(page, *files)

    expect(page.get_by_role("heading", name="5 files uploaded")).to_be_visible()
    expect(page.locator(".row.item")).to_have_count(5)
    assert {f.name: f.read_bytes() for f in here.iterdir()} == {
        f.name: f.read_bytes() for f in files
    }


def test_files_are_uploaded_by_dropping_them_on_the_page_or_on_a_folder(me, here):
    (here / "inner").mkdir()
    page = me.page(at(here))
    expect(row(page, "inner")).to_be_visible()

    drop(page, "#view", **{"note.txt": "dropped"})
    expect(row(page, "note.txt")).to_be_visible()
    drop(page, ".row.item", **{"second.txt": "into the folder"})

    wait_until(lambda: (here / "inner" / "second.txt").exists(), 10, "the second is there")
    assert (here / "note.txt").read_text() == "dropped"
    assert (here / "inner" / "second.txt").read_text() == "into the folder"


def slow(page: Page, bytes_per_s: int) -> None:
    client = page.context.new_cdp_session(page)
    client.send("Network.emulateNetworkConditions", {
        "offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_s,
    })  # fmt: skip


def test_a_large_upload_pauses_goes_on_and_can_be_given_up(me, here, tmp_path):
    large, other = tmp_path / "large.bin", tmp_path / "other.bin"
    large.write_bytes(os.urandom(20_000_000))
    other.write_bytes(os.urandom(20_000_000))
    me.forgiven.append("409")  # the server still waits for the rest of what was cut off
    page = me.page(at(here))
    slow(page, 4_000_000)

    upload(page, large, other)
    page.get_by_role("button", name="Cancel other.bin").click()
    expect(page.get_by_role("progressbar", name="Upload of large.bin")).not_to_have_attribute(
        "value", "0"
    )
    page.get_by_role("button", name="Pause large.bin").click()
    expect(page.get_by_text("Paused at")).to_be_visible()
    slow(page, -1)
    page.get_by_role("button", name="Resume large.bin").click()

    expect(page.get_by_role("heading", name="1 file uploaded")).to_be_visible()
    assert [each.name for each in here.iterdir()] == ["large.bin"]
    assert digest(here / "large.bin") == digest(large)


def test_an_upload_that_is_given_up_while_it_begins_stays_so(me, here, tmp_path):
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(10_000_000))
    page = me.page(at(here))
    begins: list[Route] = []
    page.route("**/api/files/uploads", lambda route: begins.append(route)
               if route.request.method == "POST" else route.continue_())  # fmt: skip

    upload(page, large)
    wait_until(lambda: page.wait_for_timeout(50) or begins, 30, "it begins")
    page.get_by_role("button", name="Cancel large.bin").click()
    with page.expect_response(lambda told: told.request.method == "DELETE") as forgotten:
        begins[0].continue_()

    assert forgotten.value.ok
    listed = page.evaluate("async () => (await (await fetch('/api/files/uploads')).json()).uploads")
    assert [each for each in listed if here.name in each["path"]] == []
    assert list(here.iterdir()) == []


def test_an_upload_goes_on_after_a_reload_when_the_same_file_is_chosen(me, here, tmp_path):
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(24_000_000))
    me.forgiven.append("409")
    page = me.page(at(here))
    page.on("dialog", lambda dialog: dialog.accept())
    slow(page, 12_000_000)
    offsets: list[int] = []
    page.on("request", lambda asked: offsets.append(int(asked.headers["upload-offset"]))
            if asked.method == "PATCH" else None)  # fmt: skip

    upload(page, large)
    wait_until(lambda: page.wait_for_timeout(50) or len(offsets) == 2, 30, "the second piece")
    page.reload()
    before = len(offsets)
    expect(page.get_by_text("Drop files here")).to_be_visible()
    upload(page, large)

    expect(page.get_by_role("heading", name="1 file uploaded")).to_be_visible()
    assert offsets[before] >= 16 * 1024 * 1024
    assert digest(here / "large.bin") == digest(large)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---------------------------------------------------------------- looking


def pixels(page: Page) -> int:
    """Return the width of the image that is shown; the page lets no test evaluate text there."""
    return int(page.evaluate("document.querySelector('.stage img')?.naturalWidth ?? 0"))


def test_text_images_and_pdf_are_shown_and_nothing_in_a_file_ever_runs(me, here):
    drawn = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>top.document.title="taken"</script></svg>'  # noqa: E501
    for name, data in {
        "a.html": EVIL.encode(), "b.png": PIXEL, "c.svg": drawn.encode(), "d.pdf": PDF,
        "e.bin": b"\0\1\2", "f": b"plain text without an ending",
    }.items():  # fmt: skip
        (here / name).write_bytes(data)
    page = me.page(at(here))

    row(page, "a.html").locator(".open").click()
    expect(page.locator(".stage pre")).to_have_text(EVIL)
    page.keyboard.press("ArrowRight")
    wait_until(lambda: pixels(page) == 1, 20, "the image")
    page.keyboard.press("ArrowRight")
    wait_until(lambda: pixels(page) == 9, 20, "the drawing")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".stage iframe")).to_be_visible()
    page.get_by_role("button", name="Next file").click()
    expect(page.get_by_text("no preview for this kind")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".stage pre")).to_have_text("plain text without an ending")
    page.keyboard.press("Escape")

    expect(page.locator("dialog")).to_have_count(0)
    expect(page).to_have_title("Files – Everfold")


def test_a_file_opened_by_its_address_cannot_reach_the_session(me, here):
    (here / "evil.html").write_text(EVIL)
    (here / "evil.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{EVIL}</svg>')
    page = me.page(at(here))
    expect(row(page, "evil.svg")).to_be_visible()
    answers = page.evaluate("""async path => {
      const told = await (await fetch('/api/files/list?path=' + path)).json();
      return Promise.all(told.files.map(async f => {
        const got = await fetch(`/api/files/${f.id}/download?inline=1`);
        return Object.fromEntries(got.headers) })) }""", here.name)  # fmt: skip

    for headers in answers:
        assert "sandbox" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert answers[0]["content-type"].startswith("text/plain")
    assert answers[1]["content-disposition"].startswith("attachment")


def test_a_file_is_downloaded_under_its_name(me, here):
    (here / "report.txt").write_text("whole")
    page = me.page(at(here))

    with page.expect_download() as loaded:
        act(page, "report.txt", "Download")

    assert loaded.value.suggested_filename == "report.txt"
    assert Path(loaded.value.path()).read_text() == "whole"


# ---------------------------------------------------------------- changing


def test_files_are_renamed_moved_and_folders_made(me, here):
    (here / "old.txt").write_text("x")
    (here / "target").mkdir()
    page = me.page(at(here))

    row(page, "old.txt").focus()
    page.keyboard.press("F2")
    page.keyboard.type("new")
    page.keyboard.press("Enter")
    expect(row(page, "new.txt")).to_be_visible()
    page.get_by_role("button", name="New folder").click()
    page.keyboard.type("made here")
    page.keyboard.press("Enter")
    expect(row(page, "made here")).to_be_visible()
    act(page, "new.txt", "Move")
    page.get_by_role("option", name="target").click()
    page.get_by_role("button", name="Move here").click()

    expect(row(page, "new.txt")).to_have_count(0)
    assert sorted(each.name for each in here.iterdir()) == ["made here", "target"]
    assert (here / "target" / "new.txt").read_text() == "x"


def test_a_rename_to_a_name_that_is_taken_is_refused_and_says_so(me, here):
    (here / "a.txt").write_text("a")
    (here / "b.txt").write_text("b")
    page = me.page(at(here))

    act(page, "a.txt", "Rename")
    page.get_by_label("Name", exact=True).fill("b.txt")
    page.keyboard.press("Enter")

    expect(page.get_by_role("alert")).to_contain_text("That name is taken")
    assert (here / "b.txt").read_text() == "b"


def test_what_is_deleted_comes_back_at_once_or_from_the_trash(me, here):
    (here / "dear.txt").write_text("dear")
    (here / "box").mkdir()
    (here / "box" / "in.txt").write_text("in")
    page = me.page(at(here))

    row(page, "dear.txt").focus()
    page.keyboard.press("Delete")
    expect(row(page, "dear.txt")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(row(page, "dear.txt")).to_be_visible()
    act(page, "box", "Move to trash")
    expect(row(page, "box")).to_have_count(0)
    page.goto(f"{me.url}/#/trash")
    act(page, "box", "Restore")

    wait_until(lambda: (here / "box" / "in.txt").exists(), 10, "the folder is back")
    assert (here / "box" / "in.txt").read_text() == "in"
    assert (here / "dear.txt").read_text() == "dear"


# ---------------------------------------------------------------- versions


def test_versions_stand_on_a_time_line_and_come_back_with_one_click(me, here):
    for text in ("first", "second draft", "third"):
        (here / "note.txt").write_text(text)
    page = me.page(at(here))

    row(page, "note.txt").focus()
    page.keyboard.press("v")
    expect(page.locator(".day li")).to_have_count(3)
    expect(page.locator(".day li").first).to_contain_text("Current")
    page.get_by_role("button", name="Preview of version 2").click()
    expect(page.locator(".look pre")).to_have_text("second draft")
    with page.expect_download() as loaded:
        page.get_by_role("button", name="Download version 1").click()
    page.locator(".day li").last.get_by_role("button", name="Restore").click()
    expect(page.locator(".day li")).to_have_count(4)

    assert Path(loaded.value.path()).read_text() == "first"
    wait_until(lambda: (here / "note.txt").read_text() == "first", 10, "the folder has it")
    wait_until(lambda: len(versions(here / "note.txt")) == 4, 10, "the folder lists it")


# ---------------------------------------------------------------- by itself


def test_what_is_saved_in_the_folder_appears_and_nothing_moves_under_ones_hands(me, here):
    for number in range(60):
        (here / f"f{number:02}").touch()
    page = me.page(at(here))
    expect(page.locator(".row.item")).to_have_count(60)
    row(page, "f40").locator(".picker").click()
    row(page, "f50").focus()
    row(page, "f50").scroll_into_view_if_needed()
    before = row(page, "f50").bounding_box()

    (here / "f99 fresh.txt").write_text("from the folder")
    expect(row(page, "f99 fresh.txt")).to_be_visible()
    (here / "f00").unlink()
    expect(page.locator(".row.item")).to_have_count(60)
    (here / "f50").write_text("now longer")
    expect(row(page, "f50")).to_contain_text("10 bytes")

    assert row(page, "f50").bounding_box() == before
    expect(row(page, "f40")).to_have_attribute("aria-selected", "true")
    expect(row(page, "f50")).to_be_focused()


def test_without_a_connection_the_page_says_so_and_comes_back_by_itself(me, here):
    (here / "seen.txt").write_text("x")
    me.forgiven.append("ERR_INTERNET_DISCONNECTED")
    page = me.page(at(here))
    expect(row(page, "seen.txt")).to_be_visible()

    page.context.set_offline(True)
    expect(page.get_by_text("No connection")).to_be_visible()
    (here / "meanwhile.txt").write_text("x")
    page.context.set_offline(False)

    expect(row(page, "meanwhile.txt")).to_be_visible()
    expect(page.get_by_text("No connection")).to_be_hidden()


# ---------------------------------------------------------------- keyboard


def test_all_can_be_done_without_a_pointer(me, here):
    (here / "one").mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (here / name).write_text(name)
    page = me.page(at(here))
    expect(page.locator(".row.item")).to_have_count(4)
    keys = page.keyboard.press

    keys("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    keys("Enter")
    for _ in range(8):
        if page.evaluate("document.activeElement.matches('.row.item')"):
            break
        keys("Tab")
    expect(row(page, "one")).to_be_focused()
    keys("ArrowDown")
    keys("Shift+ArrowDown")
    expect(page.get_by_role("toolbar", name="Selection")).to_contain_text("2 selected")
    keys("Escape")
    expect(page.get_by_role("toolbar", name="Selection")).to_have_count(0)
    keys("Home")
    keys("Enter")
    expect(page.locator("h1")).to_have_text("one")
    page.go_back()
    expect(row(page, "one")).to_be_focused()
    keys("End")
    keys("Shift+F10")
    expect(page.get_by_role("menuitem", name="Preview")).to_be_focused()
    keys("ArrowDown")
    keys("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)
    row(page, "c.txt").focus()
    keys("F2")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    for _ in range(12):
        keys("Tab")
        assert page.evaluate("document.activeElement === document.body"
                             " || document.activeElement.closest('dialog') !== null")  # fmt: skip
    keys("Escape")
    expect(row(page, "c.txt")).to_be_focused()
    keys("?")
    expect(page.get_by_role("heading", name="Keyboard shortcuts")).to_be_visible()


# ---------------------------------------------------------------- with bad will


def test_no_name_can_do_or_pretend_anything(me, here):
    hostile = ["<img src=x onerror=document.title='taken'>", "line\nbreak", "gpj\u202e.exe"]
    hostile += ["\u05e9\u05dc\u05d5\u05dd.txt", "&amp;'\"`${1}", "-rf", "javascript:alert(1)"]
    for name in hostile:
        (here / name).write_text("x")
    os.mkdir(bytes(here) + b"/caf\xe9")
    page = me.page(at(here))

    expect(page.locator(".row.item")).to_have_count(8)
    shown = set(names(page))
    row(page, hostile[0]).locator(".open").click()
    expect(page.locator(".stage pre")).to_have_text("x")
    page.keyboard.press("Escape")
    act(page, hostile[0], "Versions")
    expect(page.locator(".day li")).to_have_count(1)
    page.keyboard.press("Escape")
    row(page, "caf\ufffd").locator(".open").click()
    expect(page.locator(".toast")).to_contain_text("not valid text")
    act(page, "caf\ufffd", "Rename")
    page.get_by_label("Name", exact=True).fill("cafe")
    page.keyboard.press("Enter")

    expect(row(page, "cafe")).to_be_visible()
    assert {hostile[0], "line\ufffdbreak", "gpj\ufffd.exe", hostile[4], "caf\ufffd"} <= shown
    assert page.title() == "Files – Everfold"
    assert page.locator("#view img").count() == 0


def test_another_site_cannot_act_with_the_session(me, here):
    (here / "kept.txt").write_text("x")
    me.forgiven += ["403", "Content Security Policy", "TrustedHTML", "TrustedScript"]
    page = me.page(at(here))
    expect(row(page, "kept.txt")).to_be_visible()

    without = page.evaluate("""async () => (await fetch('/api/files/mkdir',
        {method: 'POST', body: JSON.stringify({path: 'csrf'})})).status""")
    injected = page.evaluate("""() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' }
        catch (e) { return e.name } }""")
    script = page.evaluate("""async () => { const s = document.createElement('script');
        try { s.textContent = 'window.taken = 1'; document.head.append(s) } catch {}
        return window.taken ?? 'nothing ran' }""")

    assert without == 403
    assert injected == "TypeError"
    assert script == "nothing ran"
    assert not (here.parent / "csrf").exists()
