"""What can be set, and by whom: flags > environment > file > defaults.

One table (`SETTINGS`) says the name, the meaning and the check of every setting; the flags of
the servers, the configuration file and the environment are all read through it, so a value is
refused with the same clear message wherever it came from. Read once, in a `__main__`; everything
further in is given a `Settings`.

The file has lines ``NAME=value``; ``#`` starts a comment line; unknown names are an error.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from everfold.errors import EverfoldError, Kind

CONFIG_FILE: Final = "EVERFOLD_CONFIG"  # environment: the configuration file
TLS_CERT: Final = "EVERFOLD_TLS_CERT"
TLS_KEY: Final = "EVERFOLD_TLS_KEY"
CA_FILE: Final = "EVERFOLD_CA_FILE"
SECRET_MIN = 16
DEMO_PASSWORD: Final = "admin123"  # of the first admin, with --demo
REPLICAS_MAX = 16
REGISTRATIONS: Final = ("open", "invite", "admin")

_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNIT = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1"))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked. Secrets are "" when the server is to make its own."""

    secret_key: str = ""
    jwt_secret_key: str = ""
    cluster_secret: str = ""
    database_url: str = ""  # "": SQLite in the data directory
    storage_path: str = ""  # "": what the command line says
    max_file_size: int = 0  # bytes, 0: no limit
    allowed_extensions: frozenset[str] = frozenset()  # lower case, no dot; empty: all
    nodes: int = 3
    replicas: int = 2
    min_replicas: int = 0  # 0: 2, or `replicas` when that is smaller; see `load`
    default_quota: int = 0  # bytes, 0: none
    registration: str = "admin"
    admin_password: str = ""
    tls_cert: str = ""  # "": plain HTTP
    tls_key: str = ""  # "": in the certificate's file
    ca_file: str = ""  # "": the system's authorities
    workers: int = 1  # processes of a nameserver
    trusted_proxies: tuple[Network, ...] = _LOOPBACK


def parse_size(text: str) -> int:
    """Return the bytes meant by "4096", "64K", "10 GiB"; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError("a size is digits and perhaps K, M, G or T")
    return int(match[1]) * _UNIT[match[2].lower()]


def _secret(text: str) -> str:
    if text and len(text) < SECRET_MIN:
        raise ValueError(f"a secret has at least {SECRET_MIN} characters")
    return text


def _path(text: str) -> str:
    return os.path.abspath(text) if text else ""


def _database(text: str) -> str:
    if text and not text.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("it starts with sqlite:/// or postgresql://")
    return text


def _networks(text: str) -> tuple[Network, ...]:
    words = [word.strip() for word in text.split(",")]
    try:
        return tuple(ipaddress.ip_network(word) for word in words if word)
    except ValueError as err:
        raise ValueError(f"it is a list such as 127.0.0.1,10.0.0.0/8: {err}") from err


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.strip().isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"it is a number from {low} to {high}")
        return int(text)

    return parse


def _extensions(text: str) -> frozenset[str]:
    words = [word.strip().lower().lstrip(".") for word in text.split(",")]
    if any("/" in word or "\0" in word for word in words):
        raise ValueError("it is a list such as pdf,txt,odt")
    return frozenset(word for word in words if word and word != "*")


def _registration(text: str) -> str:
    if text not in REGISTRATIONS:
        raise ValueError("it is one of " + ", ".join(REGISTRATIONS))
    return text


def _password(text: str) -> str:
    if text and len(text) < 8:
        raise ValueError("a password has at least 8 characters")
    return text


class Setting(NamedTuple):
    """A row of the table: `name` in environment and file, `field` of `Settings`."""

    name: str
    field: str
    parse: Callable[[str], Any]
    help: str

    @property
    def flag(self) -> str:
        """Return the command line's name for it."""
        return "--" + self.field.replace("_", "-")


SETTINGS: Final = (
    Setting("SECRET_KEY", "secret_key", _secret, "signs web sessions"),
    Setting("JWT_SECRET_KEY", "jwt_secret_key", _secret, "signs users' and devices' tokens"),
    Setting("CLUSTER_SECRET", "cluster_secret", _secret, "what the servers of a cluster share"),
    Setting("DATABASE_URL", "database_url", _database, "sqlite:///PATH or postgresql://…"),
    Setting("STORAGE_PATH", "storage_path", str, "where the data lie"),
    Setting("MAX_FILE_SIZE", "max_file_size", parse_size, "largest file; 0: no limit"),
    Setting("ALLOWED_EXTENSIONS", "allowed_extensions", _extensions, "pdf,txt,…; empty: all"),
    Setting("NODES", "nodes", _count(1, 64), "datanodes of an embedded cluster"),
    Setting("REPLICAS", "replicas", _count(1, REPLICAS_MAX), "copies of every block"),
    Setting(
        "MIN_REPLICAS", "min_replicas", _count(0, REPLICAS_MAX), "copies before a write counts"
    ),
    Setting("DEFAULT_QUOTA", "default_quota", parse_size, "a new user's share; 0: no limit"),
    Setting("REGISTRATION", "registration", _registration, "who may register: open|invite|admin"),
    Setting("EVERFOLD_ADMIN_PASSWORD", "admin_password", _password, "the first admin's password"),
    Setting("WORKERS", "workers", _count(1, 64), "processes that serve a nameserver's address"),
    Setting("TRUSTED_PROXIES", "trusted_proxies", _networks, "whose X-Forwarded-For is believed"),
    Setting(TLS_CERT, "tls_cert", _path, "certificate chain that is shown (PEM); empty: no TLS"),
    Setting(TLS_KEY, "tls_key", _path, "its key (PEM), when it is in a file of its own"),
    Setting(CA_FILE, "ca_file", _path, "authorities of our servers (PEM); empty: the system's"),
)
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_BY_FIELD: Final = {setting.field: setting for setting in SETTINGS}


def demo(settings: Settings, host: str) -> Settings:
    """Return the settings with the admin's password that everybody knows.

    INVALID unless `host`, where the server is to listen, is this machine only.
    """
    if host != "localhost" and not _is_loopback(host):
        raise EverfoldError(Kind.INVALID, "is for 127.0.0.1 only: its password is known", "--demo")
    return replace(settings, admin_password=settings.admin_password or DEMO_PASSWORD)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Give `parser` a flag for each of these fields (``--database-url``), and ``--config``."""
    group = parser.add_argument_group(
        "settings", "also as environment variables and in the configuration file"
    )
    group.add_argument("--config", metavar="FILE", help=f"lines NAME=value (or {CONFIG_FILE})")
    for name in names:
        setting = _BY_FIELD[name]
        group.add_argument(setting.flag, metavar="V", help=f"{setting.help} ({setting.name})")


def from_args(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Return the settings of a command that used `add_flags`."""
    return load(_flags(args), environ, _file(args, environ))


def given(args: argparse.Namespace, environ: Mapping[str, str]) -> set[str]:
    """Return the names of the settings that somebody said, wherever."""
    path = _file(args, environ)
    said = {*_flags(args), *environ, *(read_file(path) if path else ())}
    return said & set(_BY_NAME)


def _flags(args: argparse.Namespace) -> dict[str, str]:
    values = {setting.name: getattr(args, setting.field, None) for setting in SETTINGS}
    return {name: str(value) for name, value in values.items() if value is not None}


def _file(args: argparse.Namespace, environ: Mapping[str, str]) -> Path | None:
    path = getattr(args, "config", None) or environ.get(CONFIG_FILE)
    return Path(path) if path else None


def as_environment(settings: Settings) -> dict[str, str]:
    """Return the settings as `load` reads them, to hand them on to another process."""
    values: dict[str, str] = {}
    for setting in SETTINGS:
        value = getattr(settings, setting.field)
        values[setting.name] = (
            ",".join(sorted(map(str, value)))
            if isinstance(value, (frozenset, tuple))
            else str(value)
        )
    return {name: value for name, value in values.items() if value}


def load(
    flags: Mapping[str, str], environ: Mapping[str, str], file: Path | None = None
) -> Settings:
    """Return the settings; flags beat the environment, which beats the file.

    Raises INVALID, naming the setting and where it came from.
    """
    sources: list[tuple[str, Mapping[str, str]]] = [("flag", flags), ("environment", environ)]
    if file is not None:
        sources.append((str(file), read_file(file)))
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        for source, given in sources:
            if setting.name in given:
                values[setting.field] = _parsed(setting, given[setting.name], source)
                break
    return _together(Settings(**values))


def _parsed(setting: Setting, text: str, source: str) -> Any:
    try:
        return setting.parse(text)
    except ValueError as err:
        shown = "" if setting.parse in (_secret, _password) else f" {text!r:.60}"
        raise EverfoldError(
            Kind.INVALID, f"bad value{shown} ({source}): {err}", setting.name
        ) from err


def _together(settings: Settings) -> Settings:
    """Check what only makes sense of several settings, and fill in what follows from others."""
    if settings.min_replicas > settings.replicas:
        raise EverfoldError(
            Kind.INVALID,
            f"{settings.min_replicas} is more than REPLICAS={settings.replicas}",
            "MIN_REPLICAS",
        )
    if settings.min_replicas:
        return settings
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return Settings(**{**values, "min_replicas": min(2, settings.replicas)})


def read_file(path: Path) -> dict[str, str]:
    """Return the settings of a configuration file as text; INVALID names the bad line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as err:
        raise EverfoldError(Kind.INVALID, f"cannot read it: {err}", str(path)) from err
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or name not in _BY_NAME:
            what = f"unknown setting {name!r:.60}" if equals else "not NAME=value"
            raise EverfoldError(Kind.INVALID, f"line {number}: {what}", str(path))
        values[name] = value.strip().strip("\"'")
    return values
