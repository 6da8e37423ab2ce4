"""Files over HTTP at a real cluster: real sockets, real datanodes, a real mount beside."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.harness import machine
from tests.harness.browser import BOUNDARY
from tests.harness.cluster import RealCluster, running

LARGE = 24 * 1024 * 1024 + 4321
TIMEOUT_S = 30


class Web:
    """The admin with a program that speaks HTTP."""

    def __init__(self, cluster: RealCluster) -> None:
        self.url = cluster.url
        with cluster.api() as api:
            self.token = api.token
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {self.token}"

    def upload(self, path: str, source: object) -> dict:
        answer = self.session.post(
            f"{self.url}/api/files/upload",
            data={"path": path},
            files={"file": ("x", source)},
            timeout=TIMEOUT_S,
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["file"]

    def get(self, route: str, **headers: str) -> requests.Response:
        return self.session.get(self.url + route, headers=headers, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory) -> Iterator[tuple[RealCluster, Path]]:
    folder = tmp_path_factory.mktemp("web")
    space = folder / "space"
    with running(folder, "--mount", str(space)) as cluster:
        yield cluster, space


@pytest.mark.fuse
def test_a_file_uploaded_by_http_is_at_once_in_the_folder_and_the_other_way_round(mounted):
    cluster, space = mounted
    web = Web(cluster)
    data = os.urandom(LARGE)
    file = web.upload("new/folder/from http.bin", data)
    machine.wait_until((space / "new/folder/from http.bin").exists, 5, "the upload in the folder")
    assert (space / "new/folder/from http.bin").read_bytes() == data

    (space / "new/saved.txt").write_text("by the folder")
    fd = os.open(space / "new/saved.txt", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    listed = web.get("/api/files/list?path=new").json()["files"]
    assert [each["name"] for each in listed] == ["folder", "saved.txt"]
    assert web.get(f"/api/files/{listed[1]['id']}/download").content == b"by the folder"

    web.upload("new/saved.txt", b"by http")
    machine.wait_until(
        lambda: (space / "new/saved.txt").read_bytes() == b"by http", 5, "the new content"
    )
    assert web.get(f"/api/files/{file['id']}/download", Range="bytes=-7").content == data[-7:]


@pytest.mark.fuse
def test_an_upload_that_hangs_up_in_the_middle_leaves_nothing(mounted):
    cluster, space = mounted
    web = Web(cluster)
    host, port = web.url.removeprefix("http://").split(":")
    head = (
        "POST /api/files/upload?path=half/file HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
        f"Authorization: Bearer {web.token}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as sock:
        sock.sendall(head.encode() + bytes(5_000_000))
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(65536)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not (space / "half").exists()
    assert web.get("/api/files/list?path=half").status_code == 404


@pytest.mark.fuse
def test_a_large_file_is_streamed_both_ways_in_little_memory(mounted, tmp_path):
    cluster, _ = mounted
    web = Web(cluster)
    size, piece = 160 * 1024 * 1024, os.urandom(1 << 20)
    source = tmp_path / "large"
    wanted = hashlib.sha256()
    with source.open("wb") as file:
        for k in range(size >> 20):
            part = k.to_bytes(8, "big") + piece[8:]
            wanted.update(part)
            file.write(part)
    pid = cluster.pid("nameserver")
    before = machine.peak_kib(pid)

    with source.open("rb") as file:
        told = stream_up(web, "large", file, size)
    got = hashlib.sha256()
    with web.session.get(
        f"{web.url}/api/files/{told['id']}/download", stream=True, timeout=TIMEOUT_S
    ) as answer:
        for chunk in answer.iter_content(1 << 20):
            got.update(chunk)

    assert got.hexdigest() == wanted.hexdigest()
    assert machine.peak_kib(pid) - before < 96 * 1024


def stream_up(web: Web, path: str, file: object, size: int) -> dict:
    """Upload without reading the file into memory."""
    head = (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        while piece := file.read(1 << 20):
            yield piece
        yield tail

    answer = web.session.post(
        f"{web.url}/api/files/upload",
        params={"path": path},
        data=body(),
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        timeout=4 * TIMEOUT_S,
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["file"]
