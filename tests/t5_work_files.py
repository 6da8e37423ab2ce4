"""Files of all kinds in the folder, compared with the same on local disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import random
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import machine
from tests.harness.folders import Folder, cool, folder, picture, run

pytestmark = pytest.mark.fuse

MIB = 1 << 20
LARGE = 80 * MIB
PACKAGES = ("asyncio", "email", "encodings", "json", "unittest", "xml")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred files of the standard library on local disk, with links of both kinds."""
    top = tmp_path_factory.mktemp("library") / "library"
    top.mkdir()
    for name in PACKAGES:
        source = Path(sysconfig.get_path("stdlib"), name)
        shutil.copytree(source, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    (top / "json" / "script").write_bytes(b"#!/bin/sh\n")
    (top / "json" / "script").chmod(0o751)
    (top / "json" / "empty").touch(0o400)
    os.symlink("../xml/dom", top / "json" / "link")
    os.symlink("/nowhere", top / "dangling")
    os.link(top / "json" / "script", top / "json" / "second-name")
    os.utime(top / "json" / "empty", ns=(1, 1_234_567_890_123_456_789))
    (top / "xml").chmod(0o2775)
    return top


@pytest.fixture(scope="module")
def large(live: Folder) -> Iterator[tuple[Path, bytearray]]:
    """A large file in the folder, and what must be in it."""
    content = bytearray(random.Random(1).randbytes(LARGE))
    path = live.path / "large"
    path.write_bytes(content)
    yield path, content
    path.unlink()


# ---------------------------------------------------------------- trees


def test_a_tree_copied_into_the_folder_and_back_is_the_same(
    library: Path, here: Path, tmp_path: Path
) -> None:
    run("cp", "-a", library, here / "in")
    run("cp", "-a", here / "in", tmp_path / "back")

    assert picture(here / "in") == picture(library)
    assert picture(tmp_path / "back") == picture(library)
    linked = here / "in" / "json" / "second-name"
    assert linked.stat().st_ino == (here / "in" / "json" / "script").stat().st_ino
    assert linked.stat().st_nlink == 2


def test_a_copied_tree_is_the_same_for_another_mount_that_knows_nothing(
    live: Folder, library: Path, here: Path, tmp_path: Path
) -> None:
    run("cp", "-a", library / "email", here / "in")
    os.sync()
    with folder(live.cluster, tmp_path / "second") as second:
        seen = picture(second.path / here.name / "in")

    assert seen == picture(library / "email")


def test_a_tree_goes_through_tar_both_ways(library: Path, here: Path, tmp_path: Path) -> None:
    run("tar", "-C", library, "-cf", here / "in.tar", ".")
    (here / "out").mkdir()
    run("tar", "-C", here / "out", "-xpf", here / "in.tar")
    run("tar", "-C", here / "out", "--compare", "-f", here / "in.tar")
    run("tar", "-C", here / "out", "-cf", tmp_path / "back.tar", ".")
    (tmp_path / "back").mkdir()
    run("tar", "-C", tmp_path / "back", "-xpf", tmp_path / "back.tar")

    whole_seconds = {
        name: (mode, mtime // 10**9, *rest)
        for name, (mode, mtime, *rest) in picture(library).items()
    }
    assert {
        name: (mode, mtime // 10**9, *rest)
        for name, (mode, mtime, *rest) in picture(tmp_path / "back").items()
    } == whole_seconds


def test_rsync_finds_nothing_to_do_by_checksum_after_it_copied(library: Path, here: Path) -> None:
    run("rsync", "-aH", f"{library}/", here / "in/")
    again = run("rsync", "-aHc", "--itemize-changes", f"{library}/", here / "in/")

    assert again == ""
    assert picture(here / "in") == picture(library)


def test_a_removed_tree_leaves_an_empty_folder(library: Path, here: Path) -> None:
    run("cp", "-a", library / "xml", here / "in")
    run("rm", "-r", here / "in")

    assert os.listdir(here) == []


# ---------------------------------------------------------------- large files


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_large_file_is_read_back_cold(large: tuple[Path, bytearray]) -> None:
    path, content = large
    cool(path)

    assert digest(path) == hashlib.sha256(content).hexdigest()


def test_a_large_file_overwritten_in_the_middle_is_right_for_another_mount(
    live: Folder, large: tuple[Path, bytearray], tmp_path: Path
) -> None:
    path, content = large
    with path.open("r+b") as file:
        for at, length in ((LARGE // 2, 5 * MIB), (4 * MIB - 3, 7), (LARGE - 100, 300)):
            fresh = secrets.token_bytes(length)
            file.seek(at)
            file.write(fresh)
            content[at : at + length] = fresh
        file.flush()
        os.fsync(file.fileno())
    cool(path)

    assert digest(path) == hashlib.sha256(content).hexdigest()
    with folder(live.cluster, tmp_path / "second") as second:
        assert digest(second.path / "large") == hashlib.sha256(content).hexdigest()


def test_parts_of_a_large_file_are_read_in_any_order(large: tuple[Path, bytearray]) -> None:
    path, content = large
    cool(path)
    places = random.Random(2)
    with path.open("rb", buffering=0) as file:
        for _ in range(100):
            at, length = places.randrange(len(content)), places.randrange(1, 100_000)
            assert os.pread(file.fileno(), length, at) == content[at : at + length]


def test_a_sparse_file_keeps_its_holes_in_the_cluster(
    live: Folder, here: Path, tmp_path: Path
) -> None:
    with (here / "sparse").open("wb") as file:
        file.truncate(10 << 30)
        os.pwrite(file.fileno(), b"first", 1 << 30)
        os.pwrite(file.fileno(), b"second", 7 << 30)
    with folder(live.cluster, tmp_path / "second") as second:
        path = second.path / here.name / "sparse"
        with path.open("rb", buffering=0) as file:
            fd = file.fileno()

            assert os.fstat(fd).st_size == 10 << 30
            assert os.fstat(fd).st_blocks * 512 < MIB
            assert os.pread(fd, 8, (1 << 30) - 2) == b"\0\0first\0"
            assert os.pread(fd, 6, 7 << 30) == b"second"
            if second.driver == "kernel":
                assert os.lseek(fd, 2 << 30, os.SEEK_DATA) == 7 << 30
                assert os.lseek(fd, 1 << 30, os.SEEK_HOLE) == (1 << 30) + 5


# ---------------------------------------------------------------- open files


def test_mapped_writes_are_in_the_cluster_after_msync(
    live: Folder, here: Path, tmp_path: Path
) -> None:
    (here / "mapped").write_bytes(bytes(MIB))
    expected = bytearray(MIB)
    with (
        (here / "mapped").open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as pages,
        folder(live.cluster, tmp_path / "second") as second,
    ):
        for at in (0, 4095, 500_000, MIB - 5):
            pages[at : at + 5] = expected[at : at + 5] = b"hello"
        pages.flush()
        os.fsync(file.fileno())
        assert (second.path / here.name / "mapped").read_bytes() == expected

    assert (here / "mapped").read_bytes() == expected


def test_an_unlinked_file_is_read_and_written_until_it_is_closed(here: Path) -> None:
    content = bytearray(secrets.token_bytes(9 * MIB))
    (here / "f").write_bytes(content)
    with (here / "f").open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        (here / "f").unlink()
        cool_fd(file.fileno())
        assert os.pread(file.fileno(), len(content), 0) == content
        os.pwrite(file.fileno(), b"changed", 5 * MIB)
        content[5 * MIB : 5 * MIB + 7] = b"changed"
        cool_fd(file.fileno())

        assert read_all(file.fileno()) == content
        assert os.listdir(here) == []


def cool_fd(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(fd: int) -> bytes:
    data = b""
    while part := os.pread(fd, MIB, len(data)):
        data += part
    return data


_APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for number in range(200):
    os.write(fd, f"{sys.argv[2]} {number:04d}\\n".encode())
"""


def test_two_processes_append_and_no_line_is_lost_or_torn(here: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", _APPENDER, here / "log", name]) for name in "ab"
    ]
    assert [process.wait(60) for process in started] == [0, 0]

    lines = (here / "log").read_text().splitlines()
    for name in "ab":
        assert [line for line in lines if line[0] == name] == [
            f"{name} {n:04d}" for n in range(200)
        ]
    assert len(lines) == 400


def test_a_locked_counter_counts_every_process(here: Path) -> None:
    (here / "counter").write_text("0")
    script = """
import fcntl, sys
for _ in range(25):
    with open(sys.argv[1], "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
        file.flush()
"""
    started = [subprocess.Popen([sys.executable, "-c", script, here / "counter"]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]

    assert (here / "counter").read_text() == "75"


def test_locks_are_let_go_with_the_last_descriptor(here: Path) -> None:
    with (here / "f").open("w") as first, (here / "f").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first.close()  # the kernel tells the driver soon, and close does not wait for it

        def is_free() -> bool:
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        machine.wait_until(is_free, 5, "the lock fell")


def test_the_virtual_attributes_tell_version_and_durability(here: Path) -> None:
    for text in (b"one", b"two"):
        (here / "f").write_bytes(text)
    with (here / "f").open("rb") as file:
        os.fsync(file.fileno())

    def told(name: str) -> str:
        return os.getxattr(here / "f", f"user.everfold.{name}").decode()

    assert told("version") == "2"
    assert told("durable") == "yes"
    assert told("author") == "admin"

    # A node that a busy machine starved is suspected, and a third copy made, for a moment.
    def is_on_two() -> bool:
        replicas = json.loads(told("replicas"))
        is_up = {each["state"] for each in replicas} == {"up"}
        return is_up and len({each["node"] for each in replicas}) == 2

    machine.wait_until(is_on_two, 60, "two copies, on nodes that are up")
    assert len(told("hash")) == 64
    assert os.listxattr(here / "f") == []
