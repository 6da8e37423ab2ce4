"""``everfold-nameserver``: read the configuration, wire the service, serve."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from everfold import config, log, memory, readiness, serving, tls, tuning
from everfold.clock import SystemClock
from everfold.errors import EverfoldError
from everfold.exchange import Front
from everfold.http import HttpTransport
from everfold.statefile import write_private
from nameserver import secretfile
from nameserver.app import create_app
from nameserver.db import Database
from nameserver.policy import Policy
from nameserver.proxies import BehindProxies
from nameserver.service import FirstAdmin, Service
from nameserver.workers import Workers

_log = logging.getLogger("nameserver")
GRACE_S = 5
END_S = 20.0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    described = argparse.ArgumentParser(
        prog="everfold-nameserver",
        description="Serve the names, versions and replica maps of a cluster.",
        epilog="example: everfold-nameserver --data /var/lib/everfold --port 5000\n"
        "exit status: 0 stopped in order, 2 bad configuration, 1 anything else",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    described.add_argument("--data", required=True, type=Path, metavar="DIR")
    described.add_argument("--host", default="127.0.0.1")
    described.add_argument("--port", default=5000, type=int, help="0: any free one")
    described.add_argument(
        "--demo", action="store_true", help="first admin: admin, password admin123; loopback only"
    )
    described.add_argument("--ready-file", type=Path, metavar="F")
    described.add_argument("--log-file", type=Path, metavar="F")
    config.add_flags(
        described, "secret_key", "jwt_secret_key", "cluster_secret", "database_url", "replicas",
        "min_replicas", "registration", "max_file_size", "allowed_extensions", "default_quota",
        "workers", "trusted_proxies", "tls_cert", "tls_key", "ca_file",
    )  # fmt: skip
    return described


def main(argv: Sequence[str] | None = None) -> int:
    """Run a nameserver until it is told to stop."""
    args = parser().parse_args(argv)
    log.set_up(path=args.log_file)
    try:
        settings = config.from_args(args, os.environ)
        settings = config.demo(settings, args.host) if args.demo else settings
        certificate = tls.certificate(settings.tls_cert, settings.tls_key)
        admin = prepare(args.data, settings)
        sock = serving.listen(args.host, args.port)
    except EverfoldError as err:
        print(f"everfold-nameserver: {err}", file=sys.stderr)
        return 2
    except OSError as err:
        print(f"everfold-nameserver: cannot listen at {args.host}:{args.port}: {err}",
              file=sys.stderr)  # fmt: skip
        return 1
    host = f"[{args.host}]" if ":" in args.host else args.host
    scheme = "https" if certificate else "http"
    url = f"{scheme}://{host}:{sock.getsockname()[1]}"
    if admin is not None and not settings.admin_password and args.ready_file is None:
        print(f"first admin: {admin.username} password: {admin.password}", file=sys.stderr)

    def tell(workers: Sequence[int] = ()) -> None:
        _log.info("serving at %s", url)
        readiness.tell()
        if args.ready_file is not None:
            _write_ready(args.ready_file, url, admin, workers)

    def work(ready: Callable[[], None]) -> int:
        return _serve(args.data, settings, sock, certificate, ready)

    if settings.workers == 1:
        return work(tell)
    return Workers(settings.workers, work, END_S).run(tell)


def _serve(
    data: Path,
    settings: config.Settings,
    sock: socket.socket,
    certificate: tls.Certificate | None,
    ready: Callable[[], None],
) -> int:
    """Be one process of a nameserver, until SIGTERM."""
    service = make_service(data, settings)
    service.leases.survive()
    service.db.prepare_to_serve()
    service.driver.start()
    memory.give_back_at_rest()
    service.load.start()
    front = create_app(service)
    tuning.settle()
    serving.serve(
        Front(front.direct, BehindProxies(front.rest, settings.trusted_proxies)),
        sock,
        grace_s=GRACE_S,
        on_ready=ready,
        stopping=service.stop,
        tls=certificate,
    )
    service.db.close()
    return 0


def prepare(data: Path, settings: config.Settings) -> FirstAdmin | None:
    """Make what a first start makes; return the admin if this is one. Leaves no thread behind."""
    service = make_service(data, settings)
    try:
        return service.first_admin(settings.admin_password)
    finally:
        service.db.close()


def make_service(data: Path, settings: config.Settings) -> Service:
    """Return the wired service."""
    data.mkdir(parents=True, exist_ok=True)
    given = secretfile.Secrets(
        settings.secret_key, settings.jwt_secret_key, settings.cluster_secret
    )
    db = Database(settings.database_url or f"sqlite:///{data / 'nameserver.db'}")
    policy = Policy(
        replicas=settings.replicas,
        min_replicas=settings.min_replicas or min(2, settings.replicas),
        registration=settings.registration,
        default_quota=settings.default_quota,
        max_file_size=settings.max_file_size,
        allowed_extensions=settings.allowed_extensions,
    )
    connect = functools.partial(HttpTransport, ca_file=settings.ca_file)
    if settings.ca_file:
        tls.client_context(settings.ca_file)  # a file of no use is refused at the start
    return Service(db, SystemClock(), policy, secretfile.load(data, given), connect)


def _write_ready(path: Path, url: str, admin: FirstAdmin | None, workers: Sequence[int]) -> None:
    """Tell the starter, whole or not at all; only its owner may read the password."""
    told = {
        "url": url,
        "pid": os.getpid(),
        "admin": admin._asdict() if admin else None,
        "workers": list(workers),
    }
    write_private(path, json.dumps(told))


if __name__ == "__main__":
    sys.exit(main())
