"""Who asks by way of a reverse proxy: the proxy's word is taken, nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from everfold import config
from everfold.errors import EverfoldError
from nameserver.proxies import BehindProxies

TRUSTED = config.load({"TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8,::1"}, {}).trusted_proxies


def seen(peer: str, told: str | None = None, proto: str = "") -> tuple[str, str]:
    """Return (address, scheme) that the application sees."""
    found: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: object) -> list[bytes]:
        found.append(environ)
        return []

    environ = {"REMOTE_ADDR": peer, "wsgi.url_scheme": "http"}
    if told is not None:
        environ["HTTP_X_FORWARDED_FOR"] = told
    if proto:
        environ["HTTP_X_FORWARDED_PROTO"] = proto
    BehindProxies(app, TRUSTED)(environ, lambda *_: None)
    assert not any("FORWARDED" in name for name in found[0])
    return found[0]["REMOTE_ADDR"], found[0]["wsgi.url_scheme"]


@pytest.mark.parametrize(
    ("peer", "told", "client"),
    [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("::1", "2001:db8::9", "2001:db8::9"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
        ("127.0.0.1", "[2001:db8::9]:4711", "2001:db8::9"),
        ("127.0.0.1", "6.6.6.6, 203.0.113.7", "203.0.113.7"),  # the client lied
        ("127.0.0.1", "203.0.113.7, 10.1.2.3", "203.0.113.7"),  # two proxies of ours
        ("127.0.0.1", "unknown, 10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "<script>", "127.0.0.1"),
        ("203.0.113.9", "127.0.0.1", "203.0.113.9"),  # no proxy of ours
        ("", "127.0.0.1", ""),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy_of_ours(
    peer: str, told: str | None, client: str
) -> None:
    assert seen(peer, told)[0] == client


def test_the_scheme_is_the_proxy_s_word_too() -> None:
    assert seen("127.0.0.1", proto="https")[1] == "https"
    assert seen("127.0.0.1", proto="gopher")[1] == "http"
    assert seen("203.0.113.9", proto="https")[1] == "http"


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(EverfoldError) as caught:
        config.load({"TRUSTED_PROXIES": "everyone"}, {})

    assert caught.value.subject == "TRUSTED_PROXIES"


def test_the_setting_survives_being_handed_on() -> None:
    settings = config.load({"TRUSTED_PROXIES": "10.0.0.0/8,::1"}, {})

    assert config.load({}, config.as_environment(settings)) == settings
