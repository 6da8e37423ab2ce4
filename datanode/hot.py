"""Putting, getting and looking for blocks: the calls that mounts wait for.

They are answered in front of Flask, by a direct handler: Flask costs 200 us a call, which is
more than a small block's way to the disk on a machine at rest. A body is received into one
piece of memory, a block that is a file goes out by sendfile(2). Nothing is decided here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
from werkzeug.http import parse_range_header

from datanode.auth import Doorkeeper
from datanode.node import Node
from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.exchange import Answer, Request, refusal
from everfold.log import adopt_request_id
from everfold.model import BLOCK_MAX, BlockId
from everfold.nodeclient import FRAMES_MAX

OCTETS = "application/octet-stream"
ASK_MAX = 4 * 1024 * 1024
_BLOCK = "/v1/blocks/"
_FETCH = msgspec.msgpack.Decoder(list[bytes])

_log = logging.getLogger("datanode.app")


class HotCalls:
    """Answers the calls about blocks that are asked often. An `exchange.Direct`."""

    def __init__(self, node: Node, doorkeeper: Doorkeeper) -> None:
        self._node = node
        self._admit = doorkeeper.admit
        self._named: dict[str, Callable[[Request], Answer]] = {
            "PUT": self._put,
            "GET": self._get,
            "HEAD": self._head,
        }
        self._posts: dict[str, Callable[[Request], Answer]] = {
            "/v1/blocks": self._put_many,
            "/v1/blocks/fetch": self._fetch,
        }

    def __call__(self, request: Request) -> Answer | None:
        path = request.path
        if request.method == "POST":
            method = self._posts.get(path)
        elif path.startswith(_BLOCK) and "/" not in path[len(_BLOCK) :]:
            method = self._named.get(request.method)
        else:
            method = None
        if method is None:
            return None
        adopt_request_id(request.header("x-request-id"))
        try:
            return method(request)
        except EverfoldError as err:
            self._node.count(f"errors_{err.kind.value}")
            return refusal(err)
        except Exception:  # noqa: BLE001  # the last stop of a defect: logged whole, told as 500
            _log.exception("%s %s failed", request.method, path[:80])
            self._node.count("errors_internal")
            return refusal(EverfoldError(Kind.INTERNAL, "a defect; see the node's log"))

    def _put(self, request: Request) -> Answer:
        space = self._admit(request.header("authorization"), "w")
        block = _block(request)
        is_new = self._node.put(space, block, request.whole(BLOCK_MAX))
        return Answer(201 if is_new else 200)

    def _put_many(self, request: Request) -> Answer:
        space = self._admit(request.header("authorization"), "w")
        frames = list(wire.unpack_frames(request.whole(FRAMES_MAX)))
        kinds = self._node.put_many(space, frames)
        return _msgpack([kind.value if kind else "" for kind in kinds])

    def _get(self, request: Request) -> Answer:
        space = self._admit(request.header("authorization"), "r")
        block = _block(request)
        asked = request.header("range")
        if asked is not None:
            return _part(self._node.get(space, block), asked)
        file = self._node.open_file(space, block)
        return Answer(200, OCTETS, self._node.get(space, block) if file is None else file)

    def _head(self, request: Request) -> Answer:
        space = self._admit(request.header("authorization"), "r")
        block = _block(request)
        size = self._node.size_of(space, block)
        if size is None:
            raise EverfoldError(Kind.NOT_FOUND, "not kept here", block.hex())
        more = (("X-Block-Size", str(size)), ("Accept-Ranges", "bytes"))
        return Answer(200, OCTETS, b"", more, length=size)

    def _fetch(self, request: Request) -> Answer:
        space = self._admit(request.header("authorization"), "r")
        try:
            names = _FETCH.decode(request.whole(ASK_MAX))
        except msgspec.DecodeError as err:
            raise EverfoldError(Kind.INVALID, f"not a list of block names: {err}") from err
        if any(len(name) != blockid.BLOCK_ID_SIZE for name in names):
            raise EverfoldError(Kind.INVALID, "not a block name (32 bytes)")
        found = self._node.get_many(space, [BlockId(name) for name in names])
        return Answer(200, wire.FRAMES, wire.pack_frames(found))


def _block(request: Request) -> BlockId:
    return blockid.parse(request.path[len(_BLOCK) :])


def _part(data: bytes, asked: str) -> Answer:
    ranges = parse_range_header(asked)
    if ranges is None or ranges.units != "bytes":
        raise EverfoldError(Kind.RANGE, "not a byte range")
    span = ranges.range_for_length(len(data))  # None for several ranges, too
    if span is None:
        raise EverfoldError(Kind.RANGE, f"outside of {len(data)} bytes")
    start, end = span
    told = ("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
    return Answer(206, OCTETS, data[start:end], (told,))


def _msgpack(answer: Any) -> Answer:
    return Answer(200, wire.MSGPACK, msgspec.msgpack.encode(answer))
