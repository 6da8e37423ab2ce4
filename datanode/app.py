"""The datanode's routes: decode, ask the node, encode. Nothing is decided here.

Answers of the hot routes are made without Flask's response helpers where that was measured
to matter; failures are JSON as `wire` says, by one error handler.
"""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import flask
import msgspec
from werkzeug.exceptions import HTTPException
from werkzeug.wsgi import wrap_file

from datanode import metrics
from datanode.auth import Doorkeeper
from datanode.copying import Copier
from datanode.node import Node
from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.log import adopt_request_id
from everfold.model import BLOCK_MAX, BlockId, SpaceId
from everfold.nodeclient import FRAMES_MAX
from everfold.serving import WholeBody

log = logging.getLogger("datanode.app")
_OCTETS = "application/octet-stream"
_FETCH = msgspec.msgpack.Decoder(list[bytes])
_SMALL_ASK = 4 * 1024 * 1024
_KIND_OF_STATUS = {400: Kind.INVALID, 404: Kind.NOT_FOUND, 405: Kind.UNSUPPORTED}


def create_app(node: Node, doorkeeper: Doorkeeper, copier: Copier) -> flask.Flask:
    """Return the WSGI application of one node."""
    app = flask.Flask("datanode", static_folder=None)

    def admit(verb: str) -> SpaceId:
        return doorkeeper.admit(flask.request.headers.get("Authorization"), verb)

    @app.before_request
    def adopt() -> None:
        adopt_request_id(flask.request.headers.get(wire.REQUEST_ID))

    @app.put("/v1/blocks/<name>")
    def put(name: str) -> flask.Response:
        space, block = admit("w"), blockid.parse(name)
        is_new = node.put(space, block, body(BLOCK_MAX))
        return flask.Response(status=201 if is_new else 200)

    @app.get("/v1/blocks/<name>")
    def get(name: str) -> flask.Response:
        space, block = admit("r"), blockid.parse(name)
        if flask.request.method == "HEAD":
            return _size(node, space, block)
        if "Range" in flask.request.headers:
            return _part(node.get(space, block))
        file = node.open_file(space, block)
        if file is None:
            return flask.Response(node.get(space, block), mimetype=_OCTETS)
        return _file(file)

    @app.delete("/v1/blocks/<name>")
    def delete(name: str) -> flask.Response:
        space, block = admit("d"), blockid.parse(name)
        if not node.delete(space, block):
            raise EverfoldError(Kind.NOT_FOUND, "not kept here", name)
        return flask.Response(status=204)

    @app.post("/v1/blocks")
    def put_many() -> flask.Response:
        space = admit("w")
        frames = list(wire.unpack_frames(body(FRAMES_MAX)))
        kinds = node.put_many(space, frames)
        return _msgpack([kind.value if kind else "" for kind in kinds])

    @app.get("/v1/blocks")
    def listing() -> flask.Response:
        space = admit("r")
        prefix = flask.request.args.get("prefix", type=int)
        if prefix is None or not 0 <= prefix <= 255:
            raise EverfoldError(Kind.INVALID, "prefix must be 0 to 255")
        return _msgpack(node.under(prefix, space))

    @app.post("/v1/blocks/fetch")
    def fetch() -> flask.Response:
        space = admit("r")
        try:
            names = _FETCH.decode(body(_SMALL_ASK))
        except msgspec.DecodeError as err:
            raise EverfoldError(Kind.INVALID, f"not a list of block names: {err}") from err
        if any(len(name) != blockid.BLOCK_ID_SIZE for name in names):
            raise EverfoldError(Kind.INVALID, "not a block name (32 bytes)")
        frames = wire.pack_frames(node.get_many(space, [BlockId(name) for name in names]))
        return flask.Response(b"".join(frames), mimetype=wire.FRAMES)

    @app.post("/v1/copy")
    def copy() -> flask.Response:
        space = admit("w")
        ask = wire.decode(body(_SMALL_ASK), wire.Copy)
        if ask.space != space:
            raise EverfoldError(Kind.FORBIDDEN, "the token is for another space")
        copier.pull(ask)
        return flask.Response(status=200)

    @app.get("/healthz")
    def healthz() -> flask.Response:
        return flask.jsonify({"ok": True, "node": node.identity.id, "state": node.state.value})

    @app.get("/metrics")
    def prometheus() -> flask.Response:
        return flask.Response(metrics.text(node), mimetype="text/plain; version=0.0.4")

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

    return app


def body(limit: int) -> bytes | memoryview:
    """Return the request's body: INVALID when cut short, TOO_LARGE beyond `limit`."""
    environ = flask.request.environ
    try:
        length = int(environ["CONTENT_LENGTH"])
    except (KeyError, ValueError) as err:
        raise EverfoldError(Kind.INVALID, "Content-Length is needed") from err
    if length > limit:
        raise EverfoldError(Kind.TOO_LARGE, f"the body may have {limit} bytes, not {length}")
    try:
        reader = getattr(environ["wsgi.input"], "reader", None)
        if isinstance(reader, WholeBody):
            raw: bytes | memoryview = reader.whole()
        else:
            raw = environ["wsgi.input"].read(length)
    except OSError as err:
        raise EverfoldError(Kind.TIMEOUT, f"the body did not come: {err}") from err
    if len(raw) != length:
        raise EverfoldError(Kind.INVALID, f"the body was cut short at {len(raw)} of {length}")
    return raw


def _size(node: Node, space: SpaceId, block: BlockId) -> flask.Response:
    size = node.size_of(space, block)
    if size is None:
        raise EverfoldError(Kind.NOT_FOUND, "not kept here", block.hex())
    headers = {"Content-Length": str(size), "X-Block-Size": str(size), "Accept-Ranges": "bytes"}
    return flask.Response(status=200, headers=headers, mimetype=_OCTETS)


def _part(data: bytes) -> flask.Response:
    asked = flask.request.range
    if asked is None or asked.units != "bytes":
        raise EverfoldError(Kind.RANGE, "not a byte range")
    span = asked.range_for_length(len(data))  # None for several ranges, too
    if span is None:
        raise EverfoldError(Kind.RANGE, f"outside of {len(data)} bytes")
    start, end = span
    response = flask.Response(data[start:end], status=206, mimetype=_OCTETS)
    response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return response


def _file(file: io.FileIO) -> flask.Response:
    """Send a whole file, by sendfile(2) where the server can."""
    size = file.seek(0, 2)
    file.seek(0)
    wrapped = wrap_file(flask.request.environ, file, 1024 * 1024)
    response = flask.Response(wrapped, mimetype=_OCTETS, direct_passthrough=True)
    response.content_length = size
    return response


def _msgpack(answer: Any) -> flask.Response:
    return flask.Response(msgspec.msgpack.encode(answer), mimetype=wire.MSGPACK)


def _error(err: EverfoldError, status: int | None = None) -> flask.Response:
    text = json.dumps({"error": err.to_wire()})
    return flask.Response(text, status=status or err.kind.http_status, mimetype="application/json")
