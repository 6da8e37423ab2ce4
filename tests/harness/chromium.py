"""A real Chromium without a window, and people who use the page with it.

`chromium` is a fixture: one browser for a module. A `Person` is a user of the cluster whose pages
come signed in; whatever a page logs as an error, or throws, fails the test that opened it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from everfold.api import Api

__all__ = ["Person", "chromium", "expect"]

WAIT_MS = 20_000  # the machine may be busy; what is there is seen at once
PASSWORD = "a password of a test"
WIDE, NARROW = 1280, 360


def program() -> str:
    """Return the installed browser; that there is none is a failure, not a reason to skip."""
    for name in ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise AssertionError("the tests of the page need Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a module."""
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


class Person:
    """A user with a browser: `page(...)` opens one, signed in."""

    def __init__(
        self, browser: Browser, url: str, name: str = "admin", password: str = PASSWORD
    ) -> None:
        self.browser, self.url, self.name, self.password = browser, url, name, password
        self.api = Api(url)
        self.api.login(name, password, device_name="program")
        self.troubles: list[str] = []
        self.forgiven: list[str] = []  # parts of messages that a test provokes on purpose
        self._contexts: list[BrowserContext] = []
        self._state: Any = None

    def page(self, where: str = "", width: int = WIDE, theme: str = "light") -> Page:
        """Open a page in a window of its own."""
        page = self.stranger(width, theme, self._signed_in())
        page.goto(f"{self.url}/{where}")
        expect(page.locator("#view")).to_be_visible()
        return page

    def stranger(self, width: int = WIDE, theme: str = "light", state: Any = None) -> Page:
        """Return an empty page whose browser knows no session."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",  # no animations to wait for, which this browser paints itself
            has_touch=width < 500,
            is_mobile=width < 500,
            storage_state=state,
        )
        context.set_default_timeout(WAIT_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        return page

    def _signed_in(self) -> Any:
        if self._state is None:
            page = self.stranger()
            page.goto(self.url)
            sign_in(page, self.name, self.password)
            # the cookie is the session; to fill the storage, too, costs a second for each window
            self._state = {"cookies": page.context.cookies(), "origins": []}
        return self._state

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(
            part in message.text for part in self.forgiven
        ):
            self.troubles.append(message.text)

    def close(self) -> None:
        """Close the windows; fail when a page had troubles."""
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        troubles, self.troubles, self.forgiven = self.troubles, [], []

        assert not troubles, f"the page complained: {troubles}"


def sign_in(page: Page, name: str, password: str) -> None:
    """Fill the form of the door."""
    page.get_by_label("Name or e-mail").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#view h1")).to_be_visible()


def row(page: Page, name: str) -> Locator:
    """Return the row of a list that has this very name."""
    return page.locator(".row.item").filter(has=page.locator("bdi", has_text=name)).first


def names(page: Page) -> list[str]:
    """Return the names that the list shows, in order."""
    return page.locator(".row.item .open").all_text_contents()


def act(page: Page, name: str, action: str) -> None:
    """Choose an action from the menu of a row."""
    row(page, name).click(button="right")
    page.locator("[role=menuitem]", has=page.get_by_text(action, exact=True)).click()


def fits(page: Page) -> bool:
    """Tell whether nothing sticks out to the side."""
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    return bool(page.evaluate(wide))


def nameless(page: Page) -> list[str]:
    """Return what can be used on the page, but says nothing to who hears it."""
    script = """() => ['button', 'a[href]', 'input', 'select', 'meter', 'progress']
        .flatMap(kind => [...document.querySelectorAll(kind)])
        .filter(e => e.checkVisibility() && e.ariaHidden !== 'true')
        .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
        .map(e => e.outerHTML.slice(0, 120))"""
    found: list[str] = page.evaluate(script)
    return found
