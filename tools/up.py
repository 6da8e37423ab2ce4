"""`everfold up`: a whole cluster in one data directory, in the foreground.

Nameserver, datanodes and mount are processes of their own, exactly as they would be on
machines of their own; this only starts them in order, keeps them running, and ends them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from everfold import config, tls
from everfold.errors import EverfoldError, Kind
from everfold.http import HttpTransport, error_of
from everfold.statefile import write_private
from nameserver.secretfile import Secrets
from tools import admintoken, command, mountpoint
from tools.embedded import SECRETS, Chosen, Embedded, is_free
from tools.supervisor import Child, Supervisor, python

READY_S = 60.0
ASK_S = 10.0
TOKEN_S, TOKEN_WAIT_S = 3.0, 1.0  # how often the folder's token is tried, and for how long
MOUNT_READY_S = 180.0  # what an earlier driver left in its journal is sent first
DRAIN_S = 60.0
DEFAULT_PORT = 5000
NODE_RANK, MOUNT_RANK = 1, 2  # the end comes in the opposite order of the start
# Who works in the folder goes first: on two cores, small creates went from 1,800/s to 2,800/s.
SERVER_NICE = 5
_PASSED_ON = (
    "DATABASE_URL",
    "MIN_REPLICAS",
    "REGISTRATION",
    "MAX_FILE_SIZE",
    "ALLOWED_EXTENSIONS",
    "DEFAULT_QUOTA",
    "WORKERS",
    "TRUSTED_PROXIES",
    "EVERFOLD_ADMIN_PASSWORD",
)
_TLS = (config.TLS_CERT, config.TLS_KEY, config.CA_FILE)
_SECRET_NAMES = ("SECRET_KEY", "JWT_SECRET_KEY", "CLUSTER_SECRET", "EVERFOLD_ADMIN_PASSWORD")


def add(verbs: command.Verbs) -> None:
    """Describe the verb."""
    parser = command.verb(
        verbs,
        "up",
        run,
        summary="run a whole cluster on this machine",
        description="Run nameserver, datanodes and (with --mount) the folder, until Ctrl-C or\n"
        "SIGTERM. What dies is started again. The data stay in DIR; the next `up` on it\n"
        "brings everything back.",
        example="everfold up --data ./.everfold --mount ./Everfold",
    )
    parser.add_argument("--data", metavar="DIR", help="(STORAGE_PATH)")
    parser.add_argument("--port", type=int, metavar="N", help="default 5000; 0: any free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--mount", metavar="DIR", help="mount the admin's space there")
    parser.add_argument(
        "--demo", action="store_true", help="first admin: admin, password admin123; loopback only"
    )
    parser.add_argument("--driver", choices=("kernel", "fusepy"), default="kernel")
    parser.add_argument("--ready-file", metavar="F", help="written as JSON when all is ready")
    config.add_flags(parser, *(row.field for row in config.SETTINGS if row.field != "storage_path"))


def run(args: argparse.Namespace) -> int:
    """Run the cluster until the end is asked for."""
    if args.port is not None and not 0 <= args.port <= 65535:
        raise EverfoldError(Kind.INVALID, "a port is a number from 0 to 65535", "--port")
    settings = config.from_args(args, os.environ)
    settings = config.demo(settings, args.host) if args.demo else settings
    tls.certificate(settings.tls_cert, settings.tls_key)  # of no use: said here, in one line
    data = args.data or settings.storage_path
    if not data:
        raise EverfoldError(Kind.INVALID, "say where the data are to lie", "--data")
    embedded = Embedded(Path(data))
    with embedded.locked() as lock, Supervisor(command.say, lock) as supervisor:
        Cluster(embedded, supervisor, settings, args).run()
    return command.DONE


class Cluster:
    """The children of one `up`, and what they must be told."""

    def __init__(
        self,
        embedded: Embedded,
        supervisor: Supervisor,
        settings: config.Settings,
        args: argparse.Namespace,
    ) -> None:
        self._embedded = embedded
        self._supervisor = supervisor
        self._settings = settings
        self._host = args.host
        self._driver = args.driver
        self._mount = os.path.abspath(args.mount) if args.mount else None
        self._ready_file = Path(args.ready_file).absolute() if args.ready_file else None
        own = config.as_environment(settings)
        self._secrets = {k: own.get(k, v) for k, v in embedded.secrets().items()}
        self._chosen = self._choose(args)
        self._chosen.ca_file = settings.ca_file
        self._admin: dict[str, str] = {}
        self._database = embedded.path / "nameserver" / "nameserver.db"
        self._nameserver = self._make_nameserver()
        self._nodes = [self._make_node(f"dn{k + 1}") for k in range(self._chosen.nodes)]
        self._mounter: Child | None = None
        self._token_at = 0.0  # when to look at it again

    def _choose(self, args: argparse.Namespace) -> Chosen:
        """Return what was chosen at the first start, with what is said anew now."""
        settings = self._settings
        given = config.given(args, os.environ)
        chosen = self._embedded.chosen() or Chosen(settings.nodes, settings.replicas)
        if "NODES" in given:
            if settings.nodes < chosen.nodes:
                raise EverfoldError(
                    Kind.INVALID,
                    f"there are {chosen.nodes} datanodes with blocks on them already",
                    "--nodes",
                )
            chosen.nodes = settings.nodes
        if "REPLICAS" in given:
            chosen.replicas = settings.replicas
        if chosen.replicas > chosen.nodes:
            raise EverfoldError(
                Kind.INVALID,
                f"{chosen.replicas} copies need as many nodes, not {chosen.nodes}",
                "--replicas",
            )
        port = args.port if args.port is not None else chosen.port or DEFAULT_PORT
        if port and not is_free(self._host, port):
            raise EverfoldError(
                Kind.BUSY, "another program listens there; choose with --port", f"port {port}"
            )
        if port:
            chosen.port = port
        elif not (chosen.port and is_free(self._host, chosen.port)):
            chosen.port = 0
        self._embedded.choose(chosen)
        return chosen

    # ------------------------------------------------------------ the children

    def _environment(self, **own: str) -> dict[str, str]:
        """Return our environment without any secret, and with what this child is to know."""
        clean = {k: v for k, v in os.environ.items() if k not in _SECRET_NAMES}
        told = {
            "PYTHONPATH": _source_path(),
            "PYTHONUNBUFFERED": "1",
            "MALLOC_ARENA_MAX": "2",  # else each of many threads keeps freed buffers of its own
        }
        values = config.as_environment(self._settings)
        trust = {name: values[name] for name in _TLS if name in values}
        return {**clean, **told, **trust, **own}

    def _make_nameserver(self) -> Child:
        values = config.as_environment(self._settings)
        told = {name: values[name] for name in _PASSED_ON if name in values}
        told["REPLICAS"] = str(self._chosen.replicas)
        told["MIN_REPLICAS"] = str(min(self._settings.min_replicas, self._chosen.replicas))
        ready = self._embedded.ready_file("nameserver")

        def argv() -> list[str]:
            return python(
                "nameserver", "--data", str(self._embedded.path / "nameserver"),
                "--host", self._host, "--port", str(self._chosen.port),
                "--ready-file", str(ready),
            )  # fmt: skip

        env = self._environment(**{**self._secrets, **told})
        log = self._embedded.log("nameserver")
        return Child("nameserver", argv, log, ready, env, nice=SERVER_NICE)

    def _make_node(self, name: str) -> Child:
        ready = self._embedded.ready_file(name)
        root = self._embedded.path / "nodes" / name

        def argv() -> list[str]:
            port = self._chosen.node_ports.get(name, 0)
            if port and not is_free("127.0.0.1", port):
                port = 0  # somebody took it meanwhile; the next heartbeat tells the new one
            return python(
                "datanode", "--id", name, "--root", str(root),
                "--nameserver", self._url, "--host", "127.0.0.1", "--port", str(port),
                "--ready-file", str(ready),
            )  # fmt: skip

        env = self._environment(CLUSTER_SECRET=self._secrets["CLUSTER_SECRET"])
        log = self._embedded.log(name)
        return Child(name, argv, log, ready, env, rank=NODE_RANK, nice=SERVER_NICE)

    def _make_mount(self, where: str) -> Child:
        ready = self._embedded.ready_file("mount")

        def argv() -> list[str]:
            mountpoint.detach(where)  # of a driver that was killed
            self._mint_token()  # the last one may have been revoked with a password
            return python(
                "mount", where, "--server", self._url, "--foreground",
                "--token-file", str(self._embedded.token_file),
                "--cache-dir", str(self._embedded.path / "mount"),
                "--driver", self._driver, "--ready-file", str(ready),
            )  # fmt: skip

        child = Child("mount", argv, self._embedded.log("mount"), ready, self._environment())
        child.rank, child.end_s, child.mountpoint = MOUNT_RANK, DRAIN_S, where
        child.may_end = True  # `everfold umount` ends it
        return child

    @property
    def _url(self) -> str:
        assert self._nameserver.ready is not None
        url = str(self._nameserver.ready["url"])
        if self._settings.tls_cert:  # no certificate is for these
            url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        return url

    # ------------------------------------------------------------ the life of it

    def run(self) -> None:
        """Start everything in order, say so, and keep it running."""
        if not self._start():
            return
        self._write_ready()
        self._announce()
        self._supervisor.watch(self._came_back, self._grow, self._keep_token)
        command.say("ending: folder, datanodes, nameserver ...")

    def _start(self) -> bool:
        """Return False when the end was asked for before everything was ready."""
        supervisor = self._supervisor
        supervisor.start(self._nameserver)
        if not supervisor.wait_ready(READY_S):
            return False
        self._took_port(self._nameserver)
        self._take_admin()
        for node in self._nodes:
            supervisor.start(node)
        if not supervisor.wait_ready(READY_S, self._counts_on_nodes):
            return False
        for node in self._nodes:
            self._took_port(node)
        if self._mount:
            Path(self._mount).mkdir(parents=True, exist_ok=True)
            self._mounter = self._make_mount(self._mount)
            supervisor.start(self._mounter)
            return supervisor.wait_ready(MOUNT_READY_S)
        return True

    def _took_port(self, child: Child) -> None:
        assert child.ready is not None
        port = urlsplit(str(child.ready["url"])).port or 0
        if child is self._nameserver:
            self._chosen.port, self._chosen.url = port, self._url
        else:
            self._chosen.node_ports[child.name] = port
        self._embedded.choose(self._chosen)

    def _take_admin(self) -> None:
        """Learn who the admin is, and write a fresh token of theirs for the mount and for us."""
        assert self._nameserver.ready is not None
        fresh = self._nameserver.ready.get("admin")
        if fresh:
            self._admin = {"username": fresh["username"], "password": fresh["password"]}
        minted = self._mint_token()
        self._admin.setdefault("username", minted.username)
        self._chosen.admin, self._chosen.device = minted.username, minted.device
        self._embedded.choose(self._chosen)

    def _mint_token(self) -> admintoken.Minted:
        chosen = self._chosen
        minted = admintoken.mint(*self._keys(), chosen.admin, chosen.device)
        write_private(self._embedded.token_file, minted.token + "\n")
        return minted

    def _keep_token(self) -> None:
        """Put a fresh token where the folder looks for one, when the password was changed."""
        now = time.monotonic()
        if self._mounter is None or now < self._token_at or self._nameserver.ready is None:
            return
        self._token_at = now + TOKEN_S
        try:
            self._get("/api/auth/profile", TOKEN_WAIT_S)
        except EverfoldError as err:
            if err.kind is Kind.UNAUTHENTICATED:
                self._renew_token()

    def _renew_token(self) -> None:
        chosen = self._chosen
        try:
            fresh = admintoken.renew(*self._keys(), chosen.admin, chosen.device)
        except EverfoldError as err:
            command.say(f"the folder's token cannot be renewed: {err}")
            return
        if fresh:
            write_private(self._embedded.token_file, fresh + "\n")

    def _keys(self) -> tuple[str, Secrets]:
        database = self._settings.database_url or f"sqlite:///{self._database}"
        return database, Secrets(*(self._secrets[name] for name in SECRETS))

    def _counts_on_nodes(self) -> bool:
        """Tell whether the nameserver has heard of all our nodes since their start."""
        try:
            nodes = self._get("/admin/system/nodes", ASK_S)
        except EverfoldError as err:
            if err.kind.may_retry:
                return False
            raise
        heard = {node["id"] for node in nodes if node["state"] not in ("down", "suspect")}
        return {node.name for node in self._nodes} <= heard

    def _get(self, path: str, timeout_s: float) -> Any:
        """Return what a JSON route answers the admin.

        Not with `everfold.api`, whose library would be half of the memory of this process.
        """
        token = self._embedded.token_file.read_text(encoding="ascii").strip()
        server = HttpTransport(self._url, ca_file=self._settings.ca_file or None)
        try:
            headers = {"Authorization": f"Bearer {token}"}
            status, _, body = server.request("GET", path, headers=headers, timeout_s=timeout_s)
        finally:
            server.close()
        if status != HTTPStatus.OK:
            raise error_of(status, body, self._url)
        return json.loads(body)

    # ------------------------------------------------------------ afterwards

    def _came_back(self, child: Child) -> None:
        if child is not self._mounter:
            self._took_port(child)
        self._write_ready()

    def _grow(self) -> None:
        """Start the datanodes that `everfold node add` asked for."""
        asked = self._embedded.chosen()
        if asked is None or asked.nodes <= self._chosen.nodes:
            return
        self._chosen.nodes = asked.nodes
        for k in range(len(self._nodes), asked.nodes):
            node = self._make_node(f"dn{k + 1}")
            command.say(f"{node.name} is new")
            self._nodes.append(node)
            self._supervisor.start(node)

    def _report(self) -> dict[str, Any]:
        nameserver = self._nameserver.ready or {}
        nodes = [node.ready for node in self._nodes if node.ready is not None]
        return {
            "url": self._url,
            "mount": self._mount,
            "admin": self._admin,
            "nameserver": {"pid": nameserver.get("pid")},
            "nodes": [{key: node[key] for key in ("id", "url", "pid", "root")} for node in nodes],
        }

    def _write_ready(self) -> None:
        if self._ready_file is not None and self._nameserver.ready is not None:
            write_private(self._ready_file, json.dumps(self._report(), indent=2) + "\n")

    def _announce(self) -> None:
        name = self._admin["username"]
        print("Everfold is ready.")
        print(f"  server  {self._url}")
        if self._mount:
            print(f"  folder  {self._mount}")
        if self._settings.admin_password == config.DEMO_PASSWORD:
            print(f"  admin   {name}, password {config.DEMO_PASSWORD} if it is new: to try it out")
        elif self._settings.admin_password:
            print(f"  admin   {name}, with the password of EVERFOLD_ADMIN_PASSWORD if it is new")
        elif "password" in self._admin:
            print(f"  admin   {name}, password {self._admin['password']} (shown this once)")
        else:
            print(f"  admin   {name}")
        print(f"  data    {self._embedded.path}")
        print("Ctrl-C ends it; the data stay.", flush=True)


def _source_path() -> str:
    """Return where our packages lie, so that a clone works from any folder."""
    own = str(Path(__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH", "")
    return f"{own}{os.pathsep}{known}" if known else own
