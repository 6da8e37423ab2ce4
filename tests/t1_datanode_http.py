"""The datanode's routes: what they do, what they refuse, and how they say so."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from everfold import blockid, wire
from everfold.clock import SystemClock
from everfold.errors import EverfoldError, Kind
from everfold.http import error_of
from everfold.model import BLOCK_MAX, SMALL_BLOCK, BlockId, NodeState, SpaceId
from everfold.nodeclient import FRAMES_MAX, NodeClient
from everfold.pending import Settled
from everfold.services import Pending
from everfold.tokens import Signer
from tests.contracts.blockstore import block_of
from tests.harness import nodes

LARGE = block_of(SMALL_BLOCK * 5)
SMALL = block_of(1000)
PATH = f"/v1/blocks/{SMALL[0].hex()}"


@pytest.fixture
def peers() -> nodes.InProcessPeers:
    return nodes.InProcessPeers()


@pytest.fixture
def node(tmp_path: Path, peers: nodes.InProcessPeers) -> Iterator[nodes.InProcessNode]:
    node = nodes.InProcessNode(tmp_path / "dn1", peers=peers)
    yield node
    node.close()


@pytest.fixture
def client(node: nodes.InProcessNode) -> NodeClient:
    return node.client()


def ask(
    node: nodes.InProcessNode, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    given = {"Authorization": f"Bearer {nodes.token(1)}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return node.transport.request(method, path, headers=given, body=body, timeout_s=5)


def kind_of(answer: tuple[int, dict[str, str], bytes]) -> Kind:
    error = error_of(answer[0], answer[2], "")
    assert answer[0] == error.kind.http_status
    return error.kind


class TestBlocks:
    def test_a_put_says_created_and_a_second_one_ok(self, node: nodes.InProcessNode) -> None:
        assert ask(node, "PUT", PATH, SMALL[1])[0] == 201
        assert ask(node, "PUT", PATH, SMALL[1])[0] == 200

    @pytest.mark.parametrize("pair", [SMALL, LARGE], ids=["packed", "file"])
    @pytest.mark.parametrize(
        ("asked", "first", "last"),
        [("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=990-", 990, None),
         ("bytes=-7", -7, None), ("bytes=500-99999999", 500, None)],
    )  # fmt: skip
    def test_a_range_gives_those_bytes(
        self,
        node: nodes.InProcessNode,
        client: NodeClient,
        pair: tuple[BlockId, bytes],
        asked: str,
        first: int,
        last: int | None,
    ) -> None:
        client.put(*pair)
        wanted = pair[1][first:] if last is None else pair[1][first : last + 1]

        status, headers, body = ask(node, "GET", f"/v1/blocks/{pair[0].hex()}", Range=asked)

        assert (status, body) == (206, wanted)
        start = len(pair[1]) - 7 if first == -7 else first
        end = start + len(wanted) - 1
        assert headers["content-range"] == f"bytes {start}-{end}/{len(pair[1])}"

    @pytest.mark.parametrize("asked", ["bytes=1000-", "bytes=5-2", "bytes=0-1,3-4", "lines=1-2"])
    def test_a_range_that_cannot_be_served_is_refused(
        self, node: nodes.InProcessNode, client: NodeClient, asked: str
    ) -> None:
        client.put(*SMALL)

        assert kind_of(ask(node, "GET", PATH, Range=asked)) is Kind.RANGE

    def test_head_tells_the_size_without_bytes(
        self, node: nodes.InProcessNode, client: NodeClient
    ) -> None:
        client.put(*LARGE)

        status, headers, _ = ask(node, "HEAD", f"/v1/blocks/{LARGE[0].hex()}")

        assert (status, headers["content-length"]) == (200, str(len(LARGE[1])))
        assert client.get_range(LARGE[0], 3, 4) == LARGE[1][3:7]

    def test_many_blocks_are_answered_one_by_one(self, client: NodeClient) -> None:
        wrong = (block_of(5)[0], b"other bytes")
        empty = (block_of(6)[0], b"")

        kinds = client.put_many([SMALL, wrong, LARGE, empty])

        assert kinds == [None, Kind.CORRUPT, None, Kind.INVALID]
        assert client.get_many([SMALL[0], LARGE[0], wrong[0]]) == dict([SMALL, LARGE])

    def test_fetching_answers_with_no_bytes_for_what_is_not_here(
        self, node: nodes.InProcessNode, client: NodeClient
    ) -> None:
        client.put(*SMALL)
        names = msgspec.msgpack.encode([SMALL[0], LARGE[0], SMALL[0]])

        body = ask(node, "POST", "/v1/blocks/fetch", names)[2]

        frames = [(block, len(data)) for block, data in wire.unpack_frames(body)]
        assert frames == [(SMALL[0], 1000), (LARGE[0], 0), (SMALL[0], 1000)]

    def test_an_answer_beyond_the_bound_is_refused(self, client: NodeClient) -> None:
        big = block_of(BLOCK_MAX)
        client.put(*big)

        with pytest.raises(EverfoldError) as caught:
            client.get_many([big[0]] * (FRAMES_MAX // BLOCK_MAX + 1))

        assert caught.value.kind is Kind.TOO_LARGE

    def test_the_list_of_a_prefix_shows_only_the_tokens_space(
        self, node: nodes.InProcessNode, client: NodeClient
    ) -> None:
        client.put(*SMALL)
        node.client(space=2).put(*SMALL)

        assert client.under(SMALL[0][0]) == [wire.Held(SpaceId(1), SMALL[0], 1000)]
        assert client.under((SMALL[0][0] + 1) % 256) == []

    def test_deleting_tells_whether_it_was_there(self, client: NodeClient) -> None:
        client.put(*LARGE)

        assert client.delete(LARGE[0]) is True
        assert client.delete(LARGE[0]) is False

    def test_rot_is_told_to_the_reader_and_the_block_is_gone(
        self, node: nodes.InProcessNode, client: NodeClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.put(*SMALL)
        pack = next(node.node.store.root.glob("packs/*.pack"))
        raw = bytearray(pack.read_bytes())
        raw[200] ^= 4
        pack.write_bytes(raw)

        with pytest.raises(EverfoldError) as caught:
            client.get(SMALL[0])

        assert caught.value.kind is Kind.CORRUPT
        assert client.size_of(SMALL[0]) is None
        assert "had rotted" in caplog.text
        caplog.clear()

    def test_a_full_node_refuses_and_keeps_serving(self, tmp_path: Path) -> None:
        node = nodes.InProcessNode(tmp_path / "full", capacity=5000)
        client = node.client()
        client.put(*SMALL)

        with pytest.raises(EverfoldError) as caught:
            client.put(*LARGE)

        assert caught.value.kind is Kind.NO_SPACE
        assert client.get(SMALL[0]) == SMALL[1]
        node.close()


class TestRefusals:
    @pytest.mark.parametrize(
        ("header", "kind"),
        [
            ("", Kind.UNAUTHENTICATED),
            ("Basic abc", Kind.UNAUTHENTICATED),
            ("Bearer", Kind.UNAUTHENTICATED),
            ("Bearer nonsense", Kind.UNAUTHENTICATED),
            ("Bearer " + nodes.token(1, ttl_s=-5), Kind.UNAUTHENTICATED),
            ("Bearer " + nodes.token(1, audience="node"), Kind.UNAUTHENTICATED),
            ("Bearer " + nodes.token(-1), Kind.UNAUTHENTICATED),
            ("Bearer " + nodes.token(1)[:-3] + "abc", Kind.UNAUTHENTICATED),
            ("Bearer " + nodes.token(1, verbs="w"), Kind.FORBIDDEN),
        ],
    )  # fmt: skip
    def test_without_a_good_token_nothing_is_read(
        self, node: nodes.InProcessNode, client: NodeClient, header: str, kind: Kind
    ) -> None:
        client.put(*SMALL)

        assert kind_of(ask(node, "GET", PATH, Authorization=header)) is kind

    def test_a_token_of_another_secret_opens_nothing(self, node: nodes.InProcessNode) -> None:
        foreign = Signer("another", SystemClock()).mint("blocks", 60, space=1, verbs="rwd")

        answer = ask(node, "GET", PATH, Authorization=f"Bearer {foreign}")

        assert kind_of(answer) is Kind.UNAUTHENTICATED

    @pytest.mark.parametrize(
        ("verbs", "method"), [("r", "PUT"), ("rw", "DELETE"), ("d", "GET"), ("d", "HEAD")]
    )
    def test_a_verb_that_the_token_lacks_is_forbidden(
        self, node: nodes.InProcessNode, verbs: str, method: str
    ) -> None:
        header = f"Bearer {nodes.token(1, verbs)}"

        assert ask(node, method, PATH, SMALL[1], Authorization=header)[0] == 403

    @pytest.mark.parametrize(
        ("method", "path", "kind"),
        [
            ("GET", "/v1/blocks/xyz", Kind.INVALID),
            ("GET", "/v1/blocks/" + "g" * 64, Kind.INVALID),
            ("GET", "/v1/blocks/" + "a" * 63, Kind.INVALID),
            ("GET", "/v1/blocks/../../etc/passwd", Kind.NOT_FOUND),
            ("GET", "/v1/nothing", Kind.NOT_FOUND),
            ("GET", "/v1/blocks?prefix=256", Kind.INVALID),
            ("GET", "/v1/blocks?prefix=x", Kind.INVALID),
            ("GET", "/v1/blocks", Kind.INVALID),
        ],
    )
    def test_nonsense_in_the_path_is_refused(
        self, node: nodes.InProcessNode, method: str, path: str, kind: Kind
    ) -> None:
        assert kind_of(ask(node, method, path)) is kind

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/blocks", b"short"),
            ("/v1/blocks", wire.FRAME.pack(SMALL[0], 50) + b"cut"),
            ("/v1/blocks/fetch", b"\xff\xff"),
            ("/v1/blocks/fetch", msgspec.msgpack.encode([b"short"])),
            ("/v1/blocks/fetch", msgspec.msgpack.encode({"a": 1})),
            ("/v1/copy", b"\x00"),
        ],
    )
    def test_nonsense_in_the_body_is_refused(
        self, node: nodes.InProcessNode, path: str, body: bytes
    ) -> None:
        assert kind_of(ask(node, "POST", path, body)) is Kind.INVALID

    def test_a_method_that_is_not_offered_is_refused(self, node: nodes.InProcessNode) -> None:
        status, _, body = ask(node, "PATCH", PATH)

        assert status == 405
        assert json.loads(body)["error"]["kind"] == "unsupported"

    def test_a_body_beyond_the_bound_is_refused_unread(self, node: nodes.InProcessNode) -> None:
        class Unread(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise AssertionError("the body was read")

        for path, method, size in (
            (PATH, "PUT", BLOCK_MAX + 1),
            ("/v1/blocks", "POST", FRAMES_MAX + 1),
        ):
            environ = {
                "REQUEST_METHOD": method, "PATH_INFO": path, "CONTENT_LENGTH": str(size),
                "wsgi.input": Unread(), "SERVER_NAME": "x", "SERVER_PORT": "80",
                "wsgi.url_scheme": "http", "HTTP_AUTHORIZATION": f"Bearer {nodes.token(1)}",
            }  # fmt: skip
            told: list[str] = []
            body = b"".join(
                node.transport._app(environ, lambda status, headers, told=told: told.append(status))
            )
            assert told[0].startswith("413 ")
            assert json.loads(body)["error"]["kind"] == "too_large"

    def test_every_answer_of_a_failed_node_is_unavailable(
        self, node: nodes.InProcessNode, client: NodeClient
    ) -> None:
        client.put(*SMALL)
        node.node.state = NodeState.FAILED

        calls: list[Callable[[], object]] = [
            lambda: client.get(SMALL[0]),
            lambda: client.put(*LARGE),
            lambda: client.delete(LARGE[0]),
            lambda: client.put_many([LARGE]),
            lambda: client.get_many([SMALL[0]]),
            lambda: client.size_of(SMALL[0]),
        ]
        for call in calls:
            with pytest.raises(EverfoldError) as caught:
                call()
            assert caught.value.kind is Kind.UNAVAILABLE
        node.node.state = NodeState.UP
        assert client.get(SMALL[0]) == SMALL[1]


class TestCopies:
    @pytest.fixture
    def other(self, tmp_path: Path, peers: nodes.InProcessPeers) -> Iterator[nodes.InProcessNode]:
        other = nodes.InProcessNode(tmp_path / "dn2", "dn2", peers=peers)
        yield other
        other.close()

    def copy(self, pair: tuple[BlockId, bytes], *sources: str, space: int = 1) -> wire.Copy:
        token = nodes.token(space, "r")
        return wire.Copy(SpaceId(space), pair[0], len(pair[1]), list(sources), token)

    @pytest.mark.parametrize("pair", [SMALL, LARGE], ids=["packed", "file"])
    def test_a_block_is_pulled_from_the_first_peer_that_has_it(
        self, node: nodes.InProcessNode, other: nodes.InProcessNode, pair: tuple[BlockId, bytes]
    ) -> None:
        node.client().put(*pair)

        other.client().copy(self.copy(pair, "http://127.0.0.1:9", other.url, node.url))

        assert other.client().get(pair[0]) == pair[1]

    def test_what_no_peer_has_is_an_error(
        self, node: nodes.InProcessNode, other: nodes.InProcessNode
    ) -> None:
        with pytest.raises(EverfoldError) as caught:
            other.client().copy(self.copy(SMALL, node.url))

        assert caught.value.kind is Kind.NOT_FOUND

    def test_a_token_of_another_space_cannot_order_a_copy(
        self, node: nodes.InProcessNode, other: nodes.InProcessNode
    ) -> None:
        with pytest.raises(EverfoldError) as caught:
            other.client(space=2).copy(self.copy(SMALL, node.url))

        assert caught.value.kind is Kind.FORBIDDEN

    def test_a_rotten_own_copy_is_replaced(
        self, node: nodes.InProcessNode, other: nodes.InProcessNode,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        node.client().put(*LARGE)
        other.client().put(*LARGE)
        path = next(other.node.store.root.rglob(LARGE[0].hex()))
        path.write_bytes(b"\0" * len(LARGE[1]))

        other.client().copy(self.copy(LARGE, node.url))

        assert other.client().get(LARGE[0]) == LARGE[1]
        assert "had rotted" in caplog.text
        caplog.clear()


class TestOpenness:
    def test_health_metrics_and_variables_need_no_token(
        self, node: nodes.InProcessNode, client: NodeClient
    ) -> None:
        client.put(*SMALL)

        health = json.loads(ask(node, "GET", "/healthz", Authorization="")[2])
        metrics = ask(node, "GET", "/metrics", Authorization="")[2].decode()
        variables = json.loads(ask(node, "GET", "/debug/vars", Authorization="")[2])

        assert health == {"ok": True, "node": "dn1", "state": "up"}
        assert 'everfold_datanode_blocks{node="dn1"} 1\n' in metrics
        assert 'everfold_datanode_puts_total{node="dn1"} 1\n' in metrics
        assert 'everfold_datanode_state{node="dn1",state="up"} 1\n' in metrics
        assert 'everfold_datanode_request_seconds_count{process="dn1",kind="put"} 1\n' in metrics
        assert (
            'everfold_datanode_request_bytes_in_total{process="dn1",kind="put"} 1000\n' in metrics
        )
        assert variables["used_bytes"] == 1000
        assert variables["counters"]["bytes_in"] == 1000

    @pytest.mark.expects_warnings
    def test_a_node_that_was_marked_failed_is_healthy_and_not_ready(
        self, node: nodes.InProcessNode
    ) -> None:
        before = ask(node, "GET", "/readyz", Authorization="")[0]
        node.node.set_state(NodeState.FAILED)

        assert before == 200
        assert ask(node, "GET", "/readyz", Authorization="")[0] == 503
        assert ask(node, "GET", "/healthz", Authorization="")[0] == 200


class TestClient:
    def test_lying_bytes_never_leave_the_client(self) -> None:
        class Liar:
            base_url = "http://liar.test"

            def request(
                self, method: str, path: str, **_: object
            ) -> tuple[int, dict[str, str], bytes]:
                if path.endswith("fetch"):
                    frames = wire.pack_frames([(SMALL[0], b"lies"), (LARGE[0], LARGE[1])])
                    return 200, {}, b"".join(frames)
                return 200, {}, b"lies"

            def begin(
                self, method: str, path: str, **more: object
            ) -> Pending[tuple[int, dict[str, str], bytes]]:
                return Settled(lambda: self.request(method, path, **more))

            def close(self) -> None:
                """Nothing is kept."""

        client = NodeClient(Liar(), "token")

        with pytest.raises(EverfoldError) as caught:
            client.get(SMALL[0])
        assert caught.value.kind is Kind.CORRUPT
        assert client.get_many([SMALL[0], LARGE[0]]) == dict([LARGE])

    def test_a_token_may_be_replaced(self, node: nodes.InProcessNode) -> None:
        client = NodeClient(node.transport, "stale")
        with pytest.raises(EverfoldError):
            client.put(*SMALL)

        client.token = nodes.token(1)

        assert client.put(*SMALL) is True

    def test_threads_share_a_node(self, node: nodes.InProcessNode) -> None:
        done = threading.Barrier(4)

        def work(seed: int) -> bool:
            client = node.client(space=seed % 2 + 1)
            batch = [block_of(300 + n, seed) for n in range(20)]
            done.wait(10)
            return client.put_many(batch) == [None] * 20 and client.get_many(
                [b for b, _ in batch]
            ) == dict(batch)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
        assert node.node.ledger.totals()[0] == 80
        assert blockid.name_of(SMALL[1]) == SMALL[0]
