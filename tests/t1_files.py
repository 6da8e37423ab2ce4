"""The file seam: all of a file or nothing of it, whatever fails when."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.files import DIRECT_MIN, Files, Piece, aligned, translated
from tests.harness.faults import BreakingFiles, Died, TearingFiles, die_at, fail_at

STEPS = ["x.write", "x.sync", "x.rename", "x.folder"]


def keep(files: Files, folder: Path, data: bytes) -> Path:
    temp = folder / "tmp"
    temp.mkdir(exist_ok=True)
    files.keep("x", folder / "file", [data[:3], memoryview(data)[3:]], temp)
    return folder / "file"


def test_a_kept_file_has_all_the_bytes_and_was_synced_before_it_got_its_name(
    tmp_path: Path,
) -> None:
    files = BreakingFiles()

    path = keep(files, tmp_path, b"some bytes")

    assert path.read_bytes() == b"some bytes"
    assert files.labels == STEPS
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("label", STEPS)
def test_a_failing_call_leaves_no_scratch_file_and_never_half_a_file(
    tmp_path: Path, label: str
) -> None:
    keep(Files(), tmp_path, b"old")

    with pytest.raises(OSError):
        keep(BreakingFiles(fail_at(label, errno.EIO)), tmp_path, b"new content")

    assert (tmp_path / "file").read_bytes() in (b"old", b"new content")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("label", STEPS)
def test_a_crash_leaves_the_old_file_or_the_new_one(tmp_path: Path, label: str) -> None:
    keep(Files(), tmp_path, b"old")

    with pytest.raises(Died):
        keep(BreakingFiles(die_at(label)), tmp_path, b"new content")

    assert (tmp_path / "file").read_bytes() in (b"old", b"new content")


def test_a_torn_write_never_gets_the_name(tmp_path: Path) -> None:
    keep(Files(), tmp_path, b"old")

    with pytest.raises(Died):
        keep(TearingFiles("x.write", 4), tmp_path, b"new content")

    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_the_check_refuses_never_gets_the_name(tmp_path: Path) -> None:
    keep(Files(), tmp_path, b"old")

    def refuse() -> None:
        raise EverfoldError(Kind.CORRUPT, "wrong")

    with pytest.raises(EverfoldError):
        Files().keep("x", tmp_path / "file", [b"new"], tmp_path / "tmp", refuse)

    assert (tmp_path / "file").read_bytes() == b"old"
    assert list((tmp_path / "tmp").iterdir()) == []


class TestPastTheCache:
    """Large aligned memory goes to the disk as it is, where that can be."""

    class Watching(BreakingFiles):
        """Notes whether each write went past the page cache."""

        def __init__(self, fault: Callable[[str, int], None] | None = None) -> None:
            super().__init__(fault)
            self.direct: list[bool] = []

        def write(self, label: str, fd: int, pieces: Sequence[Piece], offset: int) -> int:
            self.direct.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
            return super().write(label, fd, pieces, offset)

    def keep(self, files: Files, folder: Path, piece: Piece) -> bytes:
        (folder / "tmp").mkdir()
        files.keep("x", folder / "file", [piece], folder / "tmp")
        return (folder / "file").read_bytes()

    def memory(self, size: int) -> memoryview:
        memory = aligned(size)
        memory[:] = random.Random(size).randbytes(size)
        return memory

    def test_it_is_tried_for_what_is_large_and_whole_pages(self, tmp_path: Path) -> None:
        files, memory = self.Watching(), self.memory(DIRECT_MIN * 2)

        assert self.keep(files, tmp_path, memory) == memory

        assert files.direct[0] is True

    @pytest.mark.parametrize("start", [0, 1, 4096])
    @pytest.mark.parametrize("size", [DIRECT_MIN - 4096, DIRECT_MIN + 1])
    def test_other_memory_is_written_as_always(self, tmp_path: Path, start: int, size: int) -> None:
        files, memory = self.Watching(), self.memory(start + size)[start:]

        assert self.keep(files, tmp_path, memory) == memory

        assert files.direct == [False]

    @pytest.mark.parametrize("make", [bytes, bytearray, lambda raw: memoryview(bytes(raw))])
    def test_memory_of_another_kind_is_written_as_always(
        self, tmp_path: Path, make: Callable[[memoryview], Piece]
    ) -> None:
        files, piece = self.Watching(), make(self.memory(DIRECT_MIN))

        assert self.keep(files, tmp_path, piece) == piece

        assert files.direct == [False]

    def test_a_filesystem_that_does_not_know_it_gets_the_bytes_as_always(
        self, tmp_path: Path
    ) -> None:
        files = self.Watching(fail_at("x.write", errno.EINVAL))
        memory = self.memory(DIRECT_MIN)

        assert self.keep(files, tmp_path, memory) == memory

        assert files.direct == [True, False]

    def test_a_disk_that_fails_is_not_asked_twice(self, tmp_path: Path) -> None:
        files = self.Watching(fail_at("x.write", errno.EIO))

        with pytest.raises(OSError):
            self.keep(files, tmp_path, self.memory(DIRECT_MIN))

        assert files.direct == [True]
        assert list((tmp_path / "tmp").iterdir()) == []


def test_many_pieces_are_written_whole(tmp_path: Path) -> None:
    pieces = [bytes([n % 256]) * (n % 7) for n in range(5000)]
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)

    size = Files().write("w", fd, pieces, 10)

    assert size == sum(map(len, pieces))
    assert os.pread(fd, size, 10) == b"".join(pieces)
    os.close(fd)


def test_folders_are_made_with_those_above_them_each_synced(tmp_path: Path) -> None:
    files = BreakingFiles()

    files.make_folder("d", tmp_path / "a" / "b")
    files.make_folder("d", tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()
    assert files.labels == ["d"] * 4


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, Kind.NOT_FOUND),
        (errno.ENOSPC, Kind.NO_SPACE),
        (errno.EDQUOT, Kind.NO_SPACE),
        (errno.EIO, Kind.UNAVAILABLE),
        (errno.EROFS, Kind.UNAVAILABLE),
    ],
)
def test_errors_of_the_disk_become_ours(code: int, kind: Kind) -> None:
    with pytest.raises(EverfoldError) as caught, translated("thing"):
        raise OSError(code, os.strerror(code))

    assert caught.value.kind is kind


def test_everything_can_be_synced_at_once(tmp_path: Path) -> None:
    files = BreakingFiles()

    files.sync_all("all", tmp_path)

    assert files.labels == ["all"]
    with pytest.raises(OSError):
        files.sync_all("all", tmp_path / "nothing")
