"""Staging: bytes survive the process, segments go when nobody needs them."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX
from mount.staging import RUN_MIN, Place, Staging


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("segment-*"))


def test_a_piece_is_read_back_whole_and_in_part(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    first = staging.append(b"hello")
    second = staging.append(memoryview(b"a wider world"))

    assert staging.read(first, 5) == b"hello"
    assert staging.read(second, 5, skip=2) == b"wider"
    assert staging.used_bytes == 18
    staging.close()


def test_pieces_are_read_together_in_the_order_asked_for(tmp_path: Path) -> None:
    staging = Staging(tmp_path, segment_bytes=10)
    places = [staging.append(bytes([65 + i]) * 4) for i in range(5)]
    asked = [(i, 3, places[i].segment, places[i].offset + 1) for i in (4, 0, 3)]

    assert staging.gather(asked) == b"EEEAAADDD"
    staging.release(places[0].segment, 8)
    with pytest.raises(EverfoldError) as caught:
        staging.gather(asked)
    assert caught.value.kind is Kind.STALE
    with pytest.raises(EverfoldError) as caught:
        staging.gather([(0, 4, places[4].segment, places[4].offset + 1)])
    assert caught.value.kind is Kind.CORRUPT
    staging.close()


def test_a_piece_never_spans_segments(tmp_path: Path) -> None:
    staging = Staging(tmp_path, segment_bytes=10)
    places = [staging.append(bytes([65 + i]) * 4) for i in range(5)]

    assert [place.segment for place in places] == [1, 1, 2, 2, 3]
    assert b"".join(staging.read(place, 4) for place in places) == b"AAAABBBBCCCCDDDDEEEE"
    staging.close()


@pytest.mark.parametrize("size", [0, 11])
def test_a_piece_that_fits_no_segment_is_refused(tmp_path: Path, size: int) -> None:
    staging = Staging(tmp_path, segment_bytes=10)

    with pytest.raises(EverfoldError) as caught:
        staging.append(b"x" * size)

    assert caught.value.kind is Kind.INVALID
    staging.close()


def test_a_full_segment_is_unlinked_when_its_last_byte_is_released(tmp_path: Path) -> None:
    staging = Staging(tmp_path, segment_bytes=10)
    first, second, third = (staging.append(b"x" * 5) for _ in range(3))
    staging.release(first.segment, 5)
    assert len(segments(tmp_path)) == 2

    staging.release(second.segment, 5)

    assert segments(tmp_path) == ["segment-0000000002"]
    assert staging.used_bytes == 5
    with pytest.raises(EverfoldError) as caught:
        staging.read(first, 5)
    assert caught.value.kind is Kind.STALE
    assert staging.read(third, 5) == b"xxxxx"
    staging.close()


def test_a_segment_released_before_it_is_full_goes_when_the_next_one_opens(
    tmp_path: Path,
) -> None:
    staging = Staging(tmp_path, segment_bytes=10)
    place = staging.append(b"x" * 8)
    staging.release(place.segment, 8)
    assert segments(tmp_path) == ["segment-0000000001"]

    staging.append(b"y" * 8)

    assert segments(tmp_path) == ["segment-0000000002"]
    staging.close()


def test_a_segment_number_is_never_used_again(tmp_path: Path) -> None:
    seen = set()
    for _ in range(4):
        staging = Staging.open(tmp_path, segment_bytes=10)
        staging.keep_only(set())
        place = staging.append(b"x" * 8)
        assert place.segment not in seen
        seen.add(place.segment)
        staging.release(place.segment, 8)
        staging.close()

    assert len(segments(tmp_path)) == 1


def test_what_was_staged_is_readable_after_a_restart(tmp_path: Path) -> None:
    staging = Staging(tmp_path, segment_bytes=10)
    places = [staging.append(bytes([65 + i]) * 6) for i in range(3)]
    staging.close()

    again = Staging.open(tmp_path, segment_bytes=10)
    again.retain(places[1], 6)
    again.keep_only({places[1].segment})

    assert again.read(places[1], 6) == b"BBBBBB"
    assert again.used_bytes == 6
    assert segments(tmp_path) == ["segment-0000000002", "segment-0000000004"]
    again.release(places[1].segment, 6)
    assert segments(tmp_path) == ["segment-0000000004"]
    again.close()


def test_a_recovered_segment_is_not_dropped_before_the_recovery_has_ended(
    tmp_path: Path,
) -> None:
    staging = Staging(tmp_path)
    place = staging.append(b"x" * 6)
    staging.close()
    again = Staging.open(tmp_path)
    again.retain(place, 3)

    again.release(place.segment, 3)

    assert again.read(place, 6) == b"x" * 6
    again.close()


def test_a_kept_segment_that_was_not_counted_needs_all_its_bytes_released(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    place = staging.append(b"x" * 6)
    staging.close()
    again = Staging.open(tmp_path)
    again.keep_only({place.segment})

    again.release(place.segment, 5)
    assert again.read(place, 6) == b"x" * 6
    again.release(place.segment, 1)

    assert segments(tmp_path) == ["segment-0000000002"]
    again.close()


def test_bytes_that_the_disk_lost_are_never_zeros_and_never_short(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    place = staging.append(b"0123456789")
    staging.close()
    path = tmp_path / segments(tmp_path)[0]
    for left in range(10):
        os.truncate(path, left)
        again = Staging.open(tmp_path)

        with pytest.raises(EverfoldError) as caught:
            again.read(place, 10)
        assert caught.value.kind is Kind.CORRUPT
        with pytest.raises(EverfoldError):
            again.retain(place, 10)
        again.close()


def test_a_killed_process_loses_nothing_that_it_appended(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        staging = Staging(tmp_path, segment_bytes=1000)
        for i in range(50):
            place = staging.append(bytes([i]) * 100)
            os.write(writer, b"%d %d\n" % place)
        os.kill(os.getpid(), 9)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        places = [Place(*map(int, line.split())) for line in pipe]
    os.waitpid(child, 0)

    again = Staging.open(tmp_path, segment_bytes=1000)

    assert [again.read(place, 100) for place in places] == [bytes([i]) * 100 for i in range(50)]
    again.close()


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, Kind.NO_SPACE), (errno.EIO, Kind.UNAVAILABLE)]
)
def test_a_disk_that_refuses_half_way_leaves_nothing_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: Kind
) -> None:
    staging = Staging(tmp_path)
    before = staging.append(b"before")
    real = os.pwrite

    def refusing(fd: int, data: bytes, offset: int) -> int:
        if len(data) < 5:
            raise OSError(code, os.strerror(code))
        return real(fd, data[:5], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refusing)
        with pytest.raises(EverfoldError) as caught:
            staging.append(b"too much")
    after = staging.append(b"after")

    assert caught.value.kind is kind
    assert after == Place(before.segment, 6)
    assert staging.read(after, 5) == b"after"
    assert staging.used_bytes == 11
    staging.close()


def test_a_failed_sync_is_never_followed_by_a_false_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(tmp_path, segment_bytes=10)
    place = staging.append(b"x" * 10)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(EverfoldError):
            staging.sync()
    with pytest.raises(EverfoldError) as caught:
        staging.sync()
    assert caught.value.kind is Kind.UNAVAILABLE
    staging.append(b"y")
    staging.release(place.segment, 10)

    staging.sync()
    staging.close()


def test_only_what_was_appended_since_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(tmp_path, segment_bytes=10)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    first = staging.append(b"x" * 10)
    second = staging.append(b"x" * 10)

    staging.sync()
    assert synced == [staging.segment_fd(first.segment), staging.segment_fd(second.segment)]
    synced.clear()
    staging.sync()
    assert synced == []
    third = staging.append(b"x")
    staging.sync()

    assert synced == [staging.segment_fd(third.segment)]
    staging.close()


def test_threads_never_overwrite_each_other(tmp_path: Path) -> None:
    staging = Staging(tmp_path, segment_bytes=5000)
    wrong: list[str] = []

    def work(mark: int) -> None:
        for i in range(100):
            data = bytes([mark, i]) * (50 + i)
            place = staging.append(data)
            if staging.read(place, len(data)) != data:
                wrong.append(f"{mark}/{i}")
            staging.release(place.segment, len(data))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert staging.used_bytes == 0
    assert len(segments(tmp_path)) == 1
    staging.close()


def test_nothing_is_appended_after_close(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.close()
    staging.close()

    with pytest.raises(EverfoldError) as caught:
        staging.append(b"late")

    assert caught.value.kind is Kind.UNAVAILABLE


# ---------------------------------------------------------------- runs

HALF = BLOCK_MAX // 2


def staged_run(staging: Staging, stream: int = 7, first: int = 0) -> list[Place]:
    """Stage a whole block in two writes; returns both places."""
    return [staging.append(bytes([k]) * HALF, stream, first + k * HALF) for k in (0, 1)]


def test_a_block_written_in_order_has_a_segment_of_its_own(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.append(b"something else")

    first, second = staged_run(staging)
    third, _ = staged_run(staging, first=BLOCK_MAX)

    assert (first.offset, second.offset) == (0, HALF)
    assert first.segment == second.segment != third.segment
    assert staging.slice(first.segment, 0, BLOCK_MAX).path is not None
    staging.close()


@pytest.mark.parametrize(("offset", "size"), [(100, RUN_MIN), (0, RUN_MIN - 1)])
def test_a_write_that_begins_no_block_or_is_small_makes_no_run(
    tmp_path: Path, offset: int, size: int
) -> None:
    staging = Staging(tmp_path)
    other = staging.append(b"x")

    assert staging.append(bytes(size), 7, offset).segment == other.segment
    staging.close()


def test_a_write_elsewhere_does_not_disturb_a_run(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    first = staging.append(bytes(HALF), 7, 0)
    staging.append(bytes(RUN_MIN), 7, 3 * BLOCK_MAX + 5)
    staging.append(bytes(RUN_MIN), 8, 0)

    second = staging.append(bytes(HALF), 7, HALF)

    assert second == Place(first.segment, HALF)
    staging.close()


def test_a_run_that_was_released_is_unlinked_and_its_number_stays_taken(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    (place, _) = staged_run(staging)
    slice_ = staging.slice(place.segment, 0, BLOCK_MAX)
    assert slice_.path is not None
    os.link(slice_.path, tmp_path / "adopted")

    staging.release(place.segment, BLOCK_MAX)

    assert (tmp_path / "adopted").stat().st_size == BLOCK_MAX
    assert (tmp_path / f"segment-{place.segment:010d}").stat().st_size == 0
    assert bytes(slice_) == bytes(HALF) + bytes([1]) * HALF
    staging.close()
    again = Staging(tmp_path)
    assert again.append(b"x").segment > place.segment
    again.close()


def test_empty_files_that_keep_a_number_do_not_pile_up(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    for k in range(5):
        (place, _) = staged_run(staging, first=k * BLOCK_MAX)
        staging.release(place.segment, BLOCK_MAX)

    assert len(segments(tmp_path)) == 2  # the one that takes small pieces, and the last number
    staging.close()


def test_many_files_at_a_time_do_not_take_ever_more_open_runs(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    places = [staging.append(bytes(RUN_MIN), stream, 0) for stream in range(1, 40)]
    for place in places:
        staging.release(place.segment, RUN_MIN)

    assert len(segments(tmp_path)) <= 10
    staging.close()


def test_a_run_that_the_disk_cut_short_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(tmp_path)
    staging.append(bytes(HALF), 7, 0)
    write = os.pwrite

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(EverfoldError):
        staging.append(bytes(RUN_MIN), 7, HALF)
    monkeypatch.setattr(os, "pwrite", write)

    other = staging.append(b"x" * RUN_MIN, 7, HALF + RUN_MIN)

    assert staging.read(other, RUN_MIN) == b"x" * RUN_MIN
    staging.close()
