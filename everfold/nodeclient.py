"""A datanode over HTTP: what mounts, tools and other datanodes ask of it.

One client speaks for one token, and a token is good for one space, so no call names a space.
Every call has a deadline, and none is tried again here: all of them may be repeated by the
caller, because a block is the same block however often it is put.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from everfold import blockid, wire
from everfold.errors import EverfoldError, Kind
from everfold.http import error_of
from everfold.log import request_id
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId
from everfold.services import Transport

TIMEOUT_S = 2.0
FRAMES_MAX = 64 * 1024 * 1024  # of one body with many blocks
_SLOWEST = 16 * 1024 * 1024  # bytes a second below which a link counts as hung
_JOIN_BELOW = 256 * 1024
_HEAD_KINDS = {
    kind.http_status: kind
    for kind in (Kind.INVALID, Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.NOT_FOUND, Kind.INTERNAL)
}
_KINDS = {kind.value: kind for kind in Kind}
_FETCHED = msgspec.msgpack.Decoder(list[str])
_HELD = msgspec.msgpack.Decoder(list[wire.Held])
T = TypeVar("T")


class NodeClient:
    """One datanode, one token. Threads may share it.

    `timeout_s` of each call is the deadline for a small answer; bytes moved add to it at the
    rate of the slowest link that is still of use.
    """

    def __init__(self, transport: Transport, token: str, timeout_s: float = TIMEOUT_S) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self.token = token  # may be replaced at any time

    @property
    def url(self) -> str:
        """Return the node's address."""
        return self._transport.base_url

    def put(self, block: BlockId, data: bytes | memoryview, timeout_s: float | None = None) -> bool:
        """Put a block; when this returns the node keeps it durably. True when it was new.

        CORRUPT when `data` are not the bytes of `block`, NO_SPACE, UNAVAILABLE, TIMEOUT.
        """
        status = self._ask("PUT", f"/v1/blocks/{block.hex()}", data, len(data), timeout_s)[0]
        return status == 201

    def put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float | None = None
    ) -> list[Kind | None]:
        """Put blocks with one wait for the node's disk; tell for each None (kept) or why not.

        The whole body is at most FRAMES_MAX. Raises when the request as a whole failed.
        """
        if not blocks:
            return []
        pieces = _joined(wire.pack_frames(blocks))
        size = sum(len(piece) for piece in pieces)
        answer = self._ask("POST", "/v1/blocks", pieces, size, timeout_s)[2]
        kinds = _decoded(_FETCHED, answer)
        if len(kinds) != len(blocks):
            raise EverfoldError(Kind.INTERNAL, "the node answered for other blocks", self.url)
        return [_KINDS.get(kind, Kind.INTERNAL) if kind else None for kind in kinds]

    def get(self, block: BlockId, timeout_s: float | None = None) -> bytes:
        """Return a block, verified here. NOT_FOUND, CORRUPT."""
        data = self._ask("GET", f"/v1/blocks/{block.hex()}", None, BLOCK_MAX, timeout_s)[2]
        blockid.check(block, data)
        return data

    def get_range(
        self, block: BlockId, offset: int, length: int, timeout_s: float | None = None
    ) -> bytes:
        """Return a part of a block, which nobody can verify."""
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        path = f"/v1/blocks/{block.hex()}"
        return self._ask("GET", path, None, length, timeout_s, headers)[2]

    def get_many(
        self, blocks: Sequence[BlockId], timeout_s: float | None = None
    ) -> dict[BlockId, bytes]:
        """Return those of these blocks that the node has and that are sound."""
        if not blocks:
            return {}
        ask = msgspec.msgpack.encode(list(blocks))
        moved = min(len(blocks) * SMALL_BLOCK, FRAMES_MAX)
        answer = self._ask("POST", "/v1/blocks/fetch", ask, moved, timeout_s)[2]
        found = {}
        for block, data in wire.unpack_frames(answer):
            if len(data) and blockid.name_of(data) == block:
                found[block] = bytes(data)
        return found

    def size_of(self, block: BlockId, timeout_s: float | None = None) -> int | None:
        """Return a block's size, or None when the node has it not."""
        try:
            headers = self._ask("HEAD", f"/v1/blocks/{block.hex()}", None, 0, timeout_s)[1]
        except EverfoldError as err:
            if err.kind is Kind.NOT_FOUND:
                return None
            raise
        return int(headers["x-block-size"])

    def delete(self, block: BlockId, timeout_s: float | None = None) -> bool:
        """Forget a block (verb "d"); tell whether it was there."""
        try:
            self._ask("DELETE", f"/v1/blocks/{block.hex()}", None, 0, timeout_s)
        except EverfoldError as err:
            if err.kind is Kind.NOT_FOUND:
                return False
            raise
        return True

    def copy(self, command: wire.Copy, timeout_s: float | None = None) -> None:
        """Let the node pull a block from its peers, and return when it keeps it."""
        body = wire.encode(command)
        self._ask("POST", "/v1/copy", body, 2 * command.size, timeout_s)

    def under(self, prefix: int, timeout_s: float | None = None) -> list[wire.Held]:
        """Return the blocks of the token's space whose name starts with the byte `prefix`."""
        path = f"/v1/blocks?prefix={prefix}"
        return _decoded(_HELD, self._ask("GET", path, None, BLOCK_MAX, timeout_s)[2])

    def close(self) -> None:
        """Close the pooled connections."""
        self._transport.close()

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | memoryview | list[bytes | memoryview] | None,
        moved: int,
        timeout_s: float | None,
        extra: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {
            "Authorization": f"Bearer {self.token}",
            wire.REQUEST_ID: request_id(),
            **(extra or {}),
        }
        if body is not None:
            size = sum(map(len, body)) if isinstance(body, list) else len(body)
            headers["Content-Length"] = str(size)
            headers["Content-Type"] = wire.FRAMES if path == "/v1/blocks" else wire.MSGPACK
        limit = (self._timeout_s if timeout_s is None else timeout_s) + moved / _SLOWEST
        status, told, answer = self._transport.request(
            method, path, headers=headers, body=body, timeout_s=limit
        )
        if status >= 300:
            if method == "HEAD":  # its answer has no body to say what it was
                kind = _HEAD_KINDS.get(status, Kind.UNAVAILABLE)
                raise EverfoldError(kind, f"HTTP {status}", path)
            raise error_of(status, answer, self._transport.base_url)
        return status, told, answer


def _joined(pieces: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join small pieces, which would each cost a system call; leave large ones uncopied."""
    joined: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) < _JOIN_BELOW:
            small.append(piece)
            continue
        joined += [b"".join(small), piece]
        small = []
    return [*joined, b"".join(small)] if small else joined


def _decoded(decoder: msgspec.msgpack.Decoder[list[T]], raw: bytes) -> list[T]:
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as err:
        raise EverfoldError(Kind.INTERNAL, f"unreadable answer of a node: {err}") from err
