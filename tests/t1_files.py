"""The file seam: all of a file or nothing of it, whatever fails when."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.files import Files, translated
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
