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
from everfold.fileslice import FileSlice
from everfold.http import Answer, error_of
from everfold.log import request_id
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId
from everfold.pending import Read, Settled
from everfold.services import Pending, Transport

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

    def put(
        self, block: BlockId, data: bytes | memoryview | FileSlice, timeout_s: float | None = None
    ) -> bool:
        """Put a block; when this returns the node keeps it durably. True when it was new.

        CORRUPT when `data` are not the bytes of `block`, NO_SPACE, UNAVAILABLE, TIMEOUT.
        """
        return self.begin_put(block, data, timeout_s).result()

    def begin_put(
        self, block: BlockId, data: bytes | memoryview | FileSlice, timeout_s: float | None = None
    ) -> Pending[bool]:
        """Send a block, as `put` does, without waiting for the node's answer."""
        pending = self._begin("PUT", f"/v1/blocks/{block.hex()}", data, len(data), timeout_s)
        return Read(pending, lambda answer: self._good(answer)[0] == 201)

    def put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float | None = None
    ) -> list[Kind | None]:
        """Put blocks with one wait for the node's disk; tell for each None (kept) or why not.

        The whole body is at most FRAMES_MAX. Raises when the request as a whole failed.
        """
        return self.begin_put_many(blocks, timeout_s).result()

    def begin_put_many(
        self, blocks: Sequence[tuple[BlockId, bytes | memoryview]], timeout_s: float | None = None
    ) -> Pending[list[Kind | None]]:
        """Send blocks, as `put_many` does, without waiting for the node's answer."""
        count = len(blocks)
        if not count:
            return Settled(list)
        pieces = _joined(wire.pack_frames(blocks))
        size = sum(map(len, pieces))
        pending = self._begin("POST", "/v1/blocks", pieces, size, timeout_s)
        return Read(pending, lambda answer: self._kinds(answer, count))

    def _kinds(self, answer: Answer, count: int) -> list[Kind | None]:
        kinds = _decoded(_FETCHED, self._good(answer)[2])
        if len(kinds) != count:
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
        body: bytes | None,
        moved: int,
        timeout_s: float | None,
        extra: dict[str, str] | None = None,
    ) -> Answer:
        pending = self._begin(method, path, body, moved, timeout_s, extra)
        return self._good(pending.result(), method)

    def _begin(
        self,
        method: str,
        path: str,
        body: bytes | memoryview | FileSlice | list[bytes | memoryview] | None,
        moved: int,
        timeout_s: float | None,
        extra: dict[str, str] | None = None,
    ) -> Pending[Answer]:
        headers = {"Authorization": f"Bearer {self.token}", wire.REQUEST_ID: request_id()}
        if body is not None:
            headers["Content-Type"] = wire.FRAMES if path == "/v1/blocks" else wire.MSGPACK
        if extra is not None:
            headers.update(extra)
        limit = (self._timeout_s if timeout_s is None else timeout_s) + moved / _SLOWEST
        return self._transport.begin(method, path, headers=headers, body=body, timeout_s=limit)

    def _good(self, answer: Answer, method: str = "") -> Answer:
        """Return an answer that is none of a failure; raise what any other says."""
        status = answer[0]
        if status < 300:
            return answer
        if method == "HEAD":  # its answer has no body to say what it was
            kind = _HEAD_KINDS.get(status, Kind.UNAVAILABLE)
            raise EverfoldError(kind, f"HTTP {status}", self.url)
        raise error_of(status, answer[2], self._transport.base_url)


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
