"""What a datanode answers: hot calls directly (`datanode.hot`), the rare ones by Flask, here.

Decode, ask the node, encode. Failures are JSON as `wire` says, by one error handler.
"""

from __future__ import annotations

import json
import logging

import flask
import msgspec
from werkzeug.exceptions import HTTPException

from datanode import metrics
from datanode.auth import Doorkeeper
from datanode.copying import Copier
from datanode.hot import ASK_MAX, HotCalls
from datanode.node import Node
from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.exchange import Front
from everfold.log import adopt_request_id
from everfold.model import SpaceId
from everfold.traffic import Traffic

log = logging.getLogger("datanode.app")
_KIND_OF_STATUS = {
    400: Kind.INVALID,
    404: Kind.NOT_FOUND,
    405: Kind.UNSUPPORTED,
    413: Kind.TOO_LARGE,
}


def create_app(node: Node, doorkeeper: Doorkeeper, copier: Copier) -> Front:
    """Return what one node answers."""
    app = flask.Flask("datanode", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = ASK_MAX
    traffic = Traffic(metrics.kind_of)

    def admit(verb: str) -> SpaceId:
        return doorkeeper.admit(flask.request.headers.get("Authorization"), verb)

    @app.before_request
    def adopt() -> None:
        adopt_request_id(flask.request.headers.get(wire.REQUEST_ID))

    @app.delete("/v1/blocks/<name>")
    def delete(name: str) -> flask.Response:
        space, block = admit("d"), blockid.parse(name)
        if not node.delete(space, block):
            raise EverfoldError(Kind.NOT_FOUND, "not kept here", name)
        return flask.Response(status=204)

    @app.get("/v1/blocks")
    def listing() -> flask.Response:
        space = admit("r")
        prefix = flask.request.args.get("prefix", type=int)
        if prefix is None or not 0 <= prefix <= 255:
            raise EverfoldError(Kind.INVALID, "prefix must be 0 to 255")
        held = msgspec.msgpack.encode(node.under(prefix, space))
        return flask.Response(held, mimetype=wire.MSGPACK)

    @app.post("/v1/copy")
    def copy() -> flask.Response:
        space = admit("w")
        ask = wire.decode(flask.request.get_data(cache=False), wire.Copy)
        if ask.space != space:
            raise EverfoldError(Kind.FORBIDDEN, "the token is for another space")
        copier.pull(ask)
        return flask.Response(status=200)

    @app.get("/healthz")
    def healthz() -> flask.Response:
        return flask.jsonify({"ok": True, "node": node.identity.id, "state": node.state.value})

    @app.get("/metrics")
    def prometheus() -> flask.Response:
        return flask.Response(metrics.text(node, traffic), mimetype="text/plain; version=0.0.4")

    @app.get("/debug/vars")
    def debug_vars() -> flask.Response:
        return flask.jsonify(metrics.variables(node))

    @app.errorhandler(EverfoldError)
    def failed(err: EverfoldError) -> flask.Response:
        node.count(f"errors_{err.kind.value}")
        return _error(err)

    @app.errorhandler(HTTPException)
    def refused(err: HTTPException) -> flask.Response:
        kind = _KIND_OF_STATUS.get(err.code or 500, Kind.INVALID)
        return _error(EverfoldError(kind, err.description or err.name), err.code)

    @app.errorhandler(Exception)
    def broken(err: Exception) -> flask.Response:
        log.exception("%s %s failed", flask.request.method, flask.request.path)
        node.count("errors_internal")
        return _error(EverfoldError(Kind.INTERNAL, "a defect; see the node's log"))

    @app.get("/readyz")
    def readyz() -> flask.Response:
        if not node.is_serving:
            raise EverfoldError(Kind.UNAVAILABLE, f"this node is marked {node.state.value}")
        return flask.jsonify({"ok": True})

    return traffic.counted(Front(HotCalls(node, doorkeeper), app), metrics.direct_kind)


def _error(err: EverfoldError, status: int | None = None) -> flask.Response:
    text = json.dumps({"error": err.to_wire()})
    return flask.Response(text, status=status or err.kind.http_status, mimetype="application/json")
