"""What the kernel remembers of a mount, and that it forgets exactly what it is told to."""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT
from mount.filesystem import Caller, Changes
from tests.harness.folders import cool
from tests.harness.memfs import MemoryFilesystem
from tests.harness.mounts import Mounted, mounted

pytestmark = pytest.mark.fuse

ROOT_CALLER = Caller(0, 0, 0)
_IN_DELETE_SELF = 0x400
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def served() -> Iterator[Mounted]:
    with mounted(MemoryFilesystem) as mount:
        yield mount


@pytest.fixture(scope="module")
def portable() -> Iterator[Mounted]:
    with mounted(MemoryFilesystem, "fusepy") as mount:
        yield mount


@pytest.fixture
def file(served: Mounted) -> Path:
    path = served.path / secrets.token_hex(4)
    path.write_bytes(b"old")
    return path


def overwrite(served: Mounted, path: Path, content: bytes) -> int:
    """Change a file as another machine would: the kernel is not asked."""
    ino = path.lstat().st_ino
    fh = served.filesystem.open(ino, os.O_WRONLY | os.O_TRUNC).fh
    served.filesystem.write(fh, 0, content, False)
    served.filesystem.release(fh, 0, False)
    return ino


def requests(served: Mounted, *names: str) -> int:
    statistics = served.mount.statistics()
    return sum(statistics[name].count for name in names if name in statistics)


def test_a_warm_file_is_read_and_statted_without_asking(served: Mounted, file: Path) -> None:
    file.read_bytes()
    file.stat()
    asked = ("LOOKUP", "GETATTR", "READ")
    before = requests(served, *asked)
    for _ in range(50):
        os.access(file, os.R_OK)
        os.lstat(file)
        assert file.read_bytes() == b"old"

    # Reading makes the kernel doubt the atime, so a stat after a READ asks once.
    assert requests(served, *asked) - before <= 1


def test_content_changed_elsewhere_is_seen_once_told(served: Mounted, file: Path) -> None:
    assert file.read_bytes() == b"old"
    ino = overwrite(served, file, b"newer")
    assert file.read_bytes() == b"old"
    served.cache.forget_data(ino, 0, 0)

    assert file.read_bytes() == b"newer"
    assert file.stat().st_size == 5


def test_only_the_pages_concerned_are_dropped(served: Mounted, file: Path) -> None:
    file.write_bytes(b"a" * 8192)
    with open(file, "rb", buffering=0) as held:
        assert os.pread(held.fileno(), 8192, 0) == b"a" * 8192
        ino = overwrite(served, file, b"b" * 8192)
        served.cache.forget_data(ino, 4096, 4096)

        assert os.pread(held.fileno(), 8192, 0) == b"a" * 4096 + b"b" * 4096


def test_a_mapping_sees_content_changed_elsewhere(served: Mounted, file: Path) -> None:
    file.write_bytes(b"x" * 4096)
    with open(file, "rb") as held, mmap.mmap(held.fileno(), 4096, prot=mmap.PROT_READ) as pages:
        assert pages[:4] == b"xxxx"
        ino = overwrite(served, file, b"y" * 4096)
        served.cache.forget_data(ino, 0, 0)

        assert pages[:4] == b"yyyy"


def test_attributes_changed_elsewhere_are_seen_once_told(served: Mounted, file: Path) -> None:
    ino = file.stat().st_ino
    served.filesystem.setattr(ino, Changes(mode=0o600, uid=7), None, ROOT_CALLER)
    assert file.stat().st_uid == 0
    served.cache.forget_attr(ino)

    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (7, 0o600)


def test_a_name_remembered_as_absent_appears_once_told(served: Mounted) -> None:
    fresh = served.path / "made-elsewhere"
    assert not fresh.exists()
    served.filesystem.mknod(ROOT, b"made-elsewhere", 0o100644, 0, ROOT_CALLER)
    assert not fresh.exists()
    served.cache.forget_entry(ROOT, b"made-elsewhere")

    assert fresh.exists()


def test_a_name_that_leads_elsewhere_now_is_looked_up_again(served: Mounted, file: Path) -> None:
    (served.path / "other").write_bytes(b"replacement")
    assert file.read_bytes() == b"old"
    served.filesystem.rename(ROOT, b"other", ROOT, file.name.encode(), 0)
    served.cache.forget_entry(ROOT, file.name.encode())
    served.cache.forget_entry(ROOT, b"other")

    assert file.read_bytes() == b"replacement"
    assert not (served.path / "other").exists()


def test_a_name_deleted_elsewhere_goes_though_it_is_open(served: Mounted, file: Path) -> None:
    with open(file, "rb") as held:
        name, ino = file.name.encode(), file.stat().st_ino
        served.filesystem.unlink(ROOT, name)
        served.cache.entry_deleted(ROOT, ino, name)

        assert not file.exists()
        assert held.read() == b"old"


def test_watchers_of_a_file_hear_that_it_was_deleted_elsewhere(served: Mounted, file: Path) -> None:
    name, ino = file.name.encode(), file.stat().st_ino
    watch = _libc.inotify_init1(os.O_CLOEXEC)
    assert _libc.inotify_add_watch(watch, os.fsencode(file), _IN_DELETE_SELF) >= 0
    served.filesystem.unlink(ROOT, name)
    served.cache.entry_deleted(ROOT, ino, name)
    assert select.select([watch], [], [], 5.0)[0]
    event = os.read(watch, 4096)
    os.close(watch)

    _, mask, _, _ = struct.unpack_from("iIII", event)
    assert mask & _IN_DELETE_SELF


def test_the_other_name_of_a_deleted_link_keeps_its_count(served: Mounted, file: Path) -> None:
    other = file.with_name(file.name + "-other")
    os.link(file, other)
    assert other.stat().st_nlink == 2
    name, ino = file.name.encode(), file.stat().st_ino
    served.filesystem.unlink(ROOT, name)
    served.cache.entry_deleted(ROOT, ino, name)

    assert other.stat().st_nlink == 1
    assert other.read_bytes() == b"old"


def test_a_directory_deleted_elsewhere_while_the_kernel_sees_it_full(served: Mounted) -> None:
    folder = served.path / "folder"
    folder.mkdir()
    (folder / "child").write_bytes(b"")
    ino, child = folder.stat().st_ino, (folder / "child").stat().st_ino
    with open(folder / "child", "rb"):
        served.filesystem.unlink(ino, b"child")
        served.filesystem.rmdir(ROOT, b"folder")
        served.cache.entry_deleted(ROOT, ino, b"folder")
        served.cache.entry_deleted(ino, child, b"child")

    assert not folder.exists()


def test_pages_that_were_put_are_read_without_asking(served: Mounted, file: Path) -> None:
    file.write_bytes(b"a" * 10_000)
    ino = file.stat().st_ino
    cool(file)
    before = requests(served, "READ")
    served.cache.store(ino, 0, b"a" * 10_000)

    assert file.read_bytes() == b"a" * 10_000
    assert requests(served, "READ") == before
    served.cache.forget_data(ino, 0, 0)
    assert file.read_bytes() == b"a" * 10_000
    assert requests(served, "READ") > before


def listings(served: Mounted) -> int:
    return requests(served, "READDIR", "READDIRPLUS")


def test_a_listing_is_remembered_with_its_attributes(served: Mounted) -> None:
    folder = served.path / "listed"
    folder.mkdir()
    for number in range(300):
        (folder / f"file-{number}").touch()

    def scan() -> dict[str, int]:
        return {entry.name: entry.stat().st_ino for entry in os.scandir(folder)}

    found = scan()
    before = requests(served, "READDIR", "READDIRPLUS", "LOOKUP")
    for _ in range(10):
        assert scan() == found
    assert len(found) == 300
    assert requests(served, "READDIR", "READDIRPLUS", "LOOKUP") == before
    before = requests(served, "GETATTR")
    assert scan() == found
    assert requests(served, "GETATTR") == before


def test_a_listing_follows_what_was_made_and_removed_here(served: Mounted) -> None:
    folder = served.path / "lived-in"
    folder.mkdir()
    (folder / "a").touch()
    for _ in range(3):
        assert os.listdir(folder) == ["a"]
    (folder / "b").touch()
    assert sorted(os.listdir(folder)) == ["a", "b"]
    (folder / "a").rename(folder / "c")
    assert sorted(os.listdir(folder)) == ["b", "c"]
    (folder / "b").unlink()

    assert os.listdir(folder) == ["c"]


def test_a_listing_follows_what_changed_elsewhere_once_told(served: Mounted) -> None:
    folder = served.path / "shared"
    folder.mkdir()
    (folder / "old").touch()
    ino = folder.stat().st_ino
    for _ in range(2):  # the second refreshes the atime, and with it all attributes
        assert os.listdir(folder) == ["old"]
    served.filesystem.mknod(ino, b"new", 0o100644, 0, ROOT_CALLER)
    before = listings(served)
    assert os.listdir(folder) == ["old"]
    assert listings(served) == before
    served.cache.forget_entry(ino, b"new")
    assert sorted(os.listdir(folder)) == ["new", "old"]
    gone = (folder / "old").stat().st_ino
    served.filesystem.unlink(ino, b"old")
    served.cache.entry_deleted(ino, gone, b"old")

    assert os.listdir(folder) == ["new"]


def test_forgetting_what_was_never_known_is_harmless(served: Mounted) -> None:
    served.cache.forget_entry(ROOT, b"never heard of")
    served.cache.forget_entry(999_999, b"name")
    served.cache.forget_attr(999_999)
    served.cache.forget_data(999_999, 0, 10)
    served.cache.entry_deleted(ROOT, 999_999, b"gone")

    assert served.path.stat().st_ino == ROOT


def test_links_are_remembered(served: Mounted) -> None:
    os.symlink("target", served.path / "link")
    assert os.readlink(served.path / "link") == "target"
    before = requests(served, "READLINK")
    for _ in range(10):
        os.readlink(served.path / "link")

    assert requests(served, "READLINK") == before


def test_the_portable_adapter_sees_every_change_at_once(portable: Mounted) -> None:
    file = portable.path / "file"
    file.write_bytes(b"old")
    assert file.read_bytes() == b"old"
    assert not (portable.path / "fresh").exists()
    overwrite(portable, file, b"newer")
    portable.filesystem.mknod(ROOT, b"fresh", 0o100644, 0, ROOT_CALLER)

    assert file.read_bytes() == b"newer"
    assert file.stat().st_size == 5
    assert (portable.path / "fresh").exists()
    portable.filesystem.unlink(ROOT, b"fresh")
    assert not (portable.path / "fresh").exists()


def test_failures_behind_the_kernel_reach_the_test(served: Mounted) -> None:
    with pytest.raises(EverfoldError) as caught:
        served.filesystem.unlink(ROOT, b"not there")

    assert caught.value.kind is Kind.NOT_FOUND
