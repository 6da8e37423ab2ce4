"""The session of a browser: the cookie, what must come with it, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.cookies import SimpleCookie

import pytest

from tests.harness.browser import Browser
from tests.harness.inprocess import CALM, InProcessCluster

NAME, PASSWORD = "eve", "a long enough password"
JSON = "application/json"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[InProcessCluster]:
    with InProcessCluster(tmp_path_factory.mktemp("session"), policy=CALM) as started:
        started.service.accounts.create(NAME, PASSWORD)
        yield started


class Tab(Browser):
    """A page in a browser: its cookies, and what it was told to show with them."""

    csrf = ""
    cookie = ""
    set_cookie = ""

    def ask(self, method, path, body=None, **headers):
        if self.cookie:
            headers.setdefault("Cookie", self.cookie)
        status, back, raw = super().ask(method, path, body, **headers)
        fields = {name.lower(): value for name, value in back.items()}
        if "set-cookie" in fields:
            self.set_cookie = fields["set-cookie"]
            jar = SimpleCookie(self.set_cookie)
            self.cookie = "; ".join(f"{k}={v.value}" for k, v in jar.items() if v.value)
        return status, fields, raw

    def sign_in(self, **more):
        form = {"username": NAME, "password": PASSWORD, **more}
        status, _, raw = self.ask(
            "POST", "/api/auth/session", json.dumps(form).encode(), Content_Type=JSON
        )
        told = json.loads(raw)
        self.csrf = told.get("csrf", "")
        return status, told

    def mkdir(self, **headers):
        body = json.dumps({"path": f"d{id(headers)}"}).encode()
        return self.ask("POST", "/api/files/mkdir", body, **headers)[0]


@pytest.fixture
def tab(cluster) -> Tab:
    made = Tab(cluster.app)
    assert made.sign_in()[0] == 200
    return made


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(cluster, tab):
    plain = tab.set_cookie
    tab.ask("POST", "/api/auth/session", json.dumps({"username": NAME, "password": PASSWORD,
            "remember": True}).encode(), Content_Type=JSON, X_Forwarded_Proto="https")  # fmt: skip

    assert "HttpOnly" in plain and "SameSite=Strict" in plain and "Path=/" in plain
    assert "Secure" not in plain and "Max-Age" not in plain
    assert "Secure" in tab.set_cookie and "Max-Age" in tab.set_cookie


def test_a_session_reads_and_tells_who_one_is(tab):
    told = tab.good("GET", "/api/auth/session")

    assert told["user"]["username"] == NAME
    assert told["csrf"] == tab.csrf
    assert tab.good("GET", "/api/files/list")["total"] == 0


def test_nobody_is_told_so_without_an_error(cluster):
    told = Tab(cluster.app).good("GET", "/api/auth/session")

    assert told["user"] is None and told["csrf"] is None


def test_what_changes_something_needs_the_header_with_the_cookie(cluster, tab):
    other = Tab(cluster.app)
    other.sign_in()

    assert tab.mkdir() == 403
    assert tab.mkdir(X_CSRF_Token="wrong") == 403
    assert tab.mkdir(X_CSRF_Token="wr\xf6ng") == 403
    assert tab.mkdir(X_CSRF_Token=other.csrf) == 403
    assert tab.mkdir(X_CSRF_Token=tab.csrf) == 201


@pytest.mark.parametrize("method", ["DELETE"])
def test_signing_out_needs_the_header_too_and_ends_the_token_itself(cluster, tab, method):
    before = tab.cookie
    assert tab.ask(method, "/api/auth/session")[0] == 403

    status = tab.ask(method, "/api/auth/session", X_CSRF_Token=tab.csrf)[0]
    kept = tab.cookie
    token = before.partition("=")[2]

    assert status == 200 and kept == ""
    cluster.service.gate._verified.clear()  # what was verified half a second ago counts no more
    assert tab.ask("GET", "/api/files/list", Cookie=before)[0] == 401
    assert tab.ask("GET", "/api/files/list", Authorization=f"Bearer {token}")[0] == 401


def test_a_token_needs_no_such_header_and_beats_the_cookie(cluster, tab):
    token = cluster.user("walter")
    told = json.loads(tab.ask("GET", "/api/auth/profile", Authorization=f"Bearer {token}")[2])

    assert told["user"]["username"] == "walter"
    assert tab.mkdir(Authorization=f"Bearer {token}") == 201
    assert tab.ask("GET", "/api/files/list", Authorization="Bearer no.such.token")[0] == 401
    assert tab.ask("GET", "/api/files/list", Authorization="Digest x=y")[0] == 401


def test_a_form_of_another_site_logs_nobody_in(cluster):
    stranger = Tab(cluster.app)
    body = json.dumps({"username": NAME, "password": PASSWORD}).encode()

    status = stranger.ask("POST", "/api/auth/session", body, Content_Type="text/plain")[0]

    assert (status, stranger.cookie) == (400, "")


def test_revoking_the_device_or_changing_the_password_ends_the_session(cluster, tab):
    device = tab.good("GET", "/api/auth/session")["device_id"]
    cluster.service.devices.revoke(cluster.service.accounts.get(NAME).id, device, NAME)
    cluster.service.gate._verified.clear()

    assert tab.ask("GET", "/api/files/list")[0] == 401
    assert tab.good("GET", "/api/auth/session")["user"] is None
    assert tab.cookie == ""  # and the browser is told to forget it


def test_who_changes_the_password_stays_signed_in_and_no_script_sees_the_token(cluster):
    cluster.service.accounts.create("fay", PASSWORD)
    tab = Tab(cluster.app)
    tab.sign_in(username="fay")
    form = {"current_password": PASSWORD, "new_password": "another long password"}

    status, _, raw = tab.ask(
        "PUT", "/api/auth/profile", json.dumps(form).encode(), X_CSRF_Token=tab.csrf
    )
    told = json.loads(raw)

    assert status == 200 and "token" not in told
    assert "HttpOnly" in tab.set_cookie
    assert tab.mkdir(X_CSRF_Token=tab.csrf) == 403
    assert tab.mkdir(X_CSRF_Token=told["csrf"]) == 201


def test_guessing_is_slowed_as_with_any_login(cluster):
    cluster.service.accounts.create("guessed", PASSWORD)
    tab = Tab(cluster.app)
    answers = [tab.sign_in(username="guessed", password="wrong guess")[0] for _ in range(11)]

    assert answers[:10] == [401] * 10
    assert answers[10] == 429


# ---------------------------------------------------------------- the page's own files


def test_the_page_may_run_its_own_scripts_and_nothing_else(cluster):
    status, headers, raw = Tab(cluster.app).ask("GET", "/")
    policy = headers["content-security-policy"]

    assert status == 200 and b"<!doctype html>" in raw
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert b"<script>" not in raw and b"style=" not in raw


def test_files_of_the_page_are_kept_for_ever_under_their_digest(cluster):
    tab = Tab(cluster.app)
    page = tab.ask("GET", "/")[2].decode()
    named = page.split('src="')[1].split('"')[0]

    status, headers, _ = tab.ask("GET", named)
    _, packed, _ = tab.ask("GET", named, Accept_Encoding="gzip")
    again = tab.ask("GET", named, If_None_Match=headers["etag"])[0]
    elsewhere = tab.ask("GET", "/static/main.js")[1]

    assert (status, again) == (200, 304)
    assert "immutable" in headers["cache-control"]
    assert headers["content-type"].startswith("text/javascript")
    assert packed["content-encoding"] == "gzip" and packed["etag"] != headers["etag"]
    assert elsewhere["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["index.html", "../app.py", "..%2fapp.py", "nothing.js", ""])
def test_nothing_else_is_served_from_there(cluster, name):
    assert Tab(cluster.app).ask("GET", f"/static/{name}")[0] == 404


# ---------------------------------------------------------------- the password of a link


def test_a_browser_that_knew_the_password_of_a_link_need_not_say_it_again(cluster, tab):
    me = Browser(cluster.app, cluster.user("sharer"))
    file = me.upload("f.txt", b"shared")["id"]
    link = me.good("POST", f"/api/files/{file}/share", {"password": "open sesame"})["share_url"]
    stranger = Tab(cluster.app)

    def unlock(password: str) -> int:
        body = json.dumps({"password": password}).encode()
        return stranger.ask("POST", link + "/open", body)[0]

    assert stranger.ask("GET", link)[0] == 401
    assert unlock("open says me") == 401
    assert unlock("open sesame") == 200
    assert f"Path={link}" in stranger.set_cookie and "HttpOnly" in stranger.set_cookie
    assert "sesame" not in stranger.set_cookie
    assert stranger.ask("GET", link + "/download")[2] == b"shared"
    assert stranger.ask("GET", link, Cookie="everfold_share=forged")[0] == 401


def test_a_look_through_a_link_is_no_download(cluster):
    me = Browser(cluster.app, cluster.user("looker"))
    file = me.upload("f.txt", b"shared")["id"]
    link = me.good("POST", f"/api/files/{file}/share", {})["share_url"]

    me.ask("GET", link + "/download?inline=1")
    me.ask("GET", link + "/download")

    assert me.good("GET", f"/api/files/{file}/shares")["shares"][0]["downloads"] == 1
