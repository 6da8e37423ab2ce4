"""The journal: what was appended is replayed, whatever the process or the machine did."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from mount.journal import Journal
from mount.journalfile import FrameKind as K
from mount.journalfile import pack_frame, pack_header

THREE = [b"first", b"", b"third" * 10]


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob("journal-*") if p.suffix == "")


def aside(directory: Path) -> list[str]:
    return sorted(p.suffix for p in directory.glob("journal-*") if p.suffix)


def reopened(directory: Path, boot: str = "A") -> tuple[list[tuple[int, bytes]], int]:
    journal = Journal(directory, boot_id=boot)
    try:
        return list(journal.replay()), journal.next_number
    finally:
        journal.close()


def test_records_are_numbered_from_one_and_replayed_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.append(THREE) == 1
    assert journal.append([b"fourth"]) == 4
    journal.close()

    again = Journal(tmp_path)

    assert list(again.replay()) == [*enumerate(THREE, 1), (4, b"fourth")]
    assert again.next_number == 5
    again.close()


def test_a_second_process_is_told_that_the_directory_is_in_use(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    with pytest.raises(EverfoldError) as caught:
        Journal(tmp_path)
    assert caught.value.kind is Kind.BUSY
    journal.close()

    Journal(tmp_path).close()


def test_trimmed_records_are_not_replayed_and_their_numbers_not_reused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, file_bytes=100, boot_id="A")
    for i in range(20):
        journal.append([b"%d" % i * 10])
    many = len(files(tmp_path))
    journal.trim(15)
    assert len(files(tmp_path)) < many
    journal.close()

    records, following = reopened(tmp_path)
    assert [number for number, _ in records] == [16, 17, 18, 19, 20]
    assert following == 21
    journal = Journal(tmp_path, boot_id="A")
    journal.trim(20)
    journal.close()

    assert reopened(tmp_path) == ([], 21)
    assert len(files(tmp_path)) == 1


def test_a_trim_beyond_the_end_trims_what_there_is(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(THREE)

    journal.trim(99)

    assert journal.trimmed == 3
    assert journal.append([b"x"]) == 4
    journal.close()


def test_many_restarts_leave_one_file(tmp_path: Path) -> None:
    for _ in range(5):
        Journal(tmp_path).close()

    assert len(files(tmp_path)) == 1


def test_skipped_numbers_stay_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path, boot_id="A")
    journal.append(THREE)
    journal.skip_to(10)
    journal.skip_to(7)
    assert journal.append([b"ten"]) == 10
    journal.close()

    assert reopened(tmp_path) == ([*enumerate(THREE, 1), (10, b"ten")], 11)


def test_a_crash_takes_an_amendment_only_if_nothing_was_appended_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a")
    journal.append(THREE)
    journal.amend(2, b"second, amended")
    shutil.copytree(tmp_path / "a", tmp_path / "before")  # as a killed process leaves it
    journal.append([b"fourth"])
    shutil.copytree(tmp_path / "a", tmp_path / "after")
    journal.close()

    assert bodies(tmp_path / "before") == THREE
    assert bodies(tmp_path / "after") == [THREE[0], b"second, amended", THREE[2], b"fourth"]
    assert bodies(tmp_path / "a") == bodies(tmp_path / "after")


@pytest.mark.expects_warnings
def test_an_amendment_may_lie_in_a_later_file_and_outlives_damage_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, file_bytes=100)
    for i in range(4):
        journal.append([b"%d" % i * 60])
    journal.amend(1, b"first, amended")
    journal.append([b"last"])
    journal.close()
    files = sorted(tmp_path.glob("journal-*"))
    assert len(files) > 1
    with files[-1].open("ab") as file:
        file.write(bytes(100))

    for _ in range(2):  # from the files as they were, and as they were written anew
        assert bodies(tmp_path)[0] == b"first, amended"
    assert "damaged" in caplog.text


def test_a_file_cut_at_any_byte_gives_the_whole_records_before_the_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "whole", boot_id="A")
    journal.append(THREE)
    journal.append([b"last"])
    journal.close()
    raw = files(tmp_path / "whole")[0].read_bytes()
    header = len(pack_header(1, "A"))
    ends, at = [], header
    for body in [*THREE, b"last"]:
        at += len(pack_frame(K.RECORD, 1, body))
        ends.append(at)
    assert at == len(raw)

    for cut in range(len(raw) + 1):
        directory = tmp_path / f"cut-{cut}"
        directory.mkdir()
        (directory / "journal-0000000001").write_bytes(raw[:cut])
        records, following = reopened(directory)

        whole = sum(end <= cut for end in ends)
        assert records == list(enumerate([*THREE, b"last"], 1))[:whole], cut
        assert following == whole + 1
        assert aside(directory) == []
        more = Journal(directory, boot_id="A")
        assert more.append([b"more"]) == whole + 1
        more.close()
        assert reopened(directory)[0] == [*records, (whole + 1, b"more")]
    assert caplog.records == []


@pytest.mark.expects_warnings
def test_a_flipped_byte_anywhere_is_noticed_and_nothing_is_thrown_away(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "whole", boot_id="A")
    journal.append(THREE)
    journal.append([b"last"])
    journal.close()
    raw = files(tmp_path / "whole")[0].read_bytes()
    expected = list(enumerate([*THREE, b"last"], 1))
    for at in range(len(raw)):
        directory = tmp_path / f"flip-{at}"
        directory.mkdir()
        damaged = bytearray(raw)
        damaged[at] ^= 0x40
        (directory / "journal-0000000001").write_bytes(damaged)

        records, following = reopened(directory)

        assert records == expected[: len(records)], at
        assert len(records) < 4
        assert following > 4  # no number that was given is given again
        (kept,) = directory.glob("*.damaged")
        assert kept.read_bytes() == damaged
        assert reopened(directory) == (records, following)


@pytest.mark.expects_warnings
def test_damage_in_the_middle_ends_the_replay_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, file_bytes=100, boot_id="A")
    for i in range(12):
        journal.append([b"%02d" % i * 20])
    journal.close()
    paths = files(tmp_path)
    second = bytearray(paths[1].read_bytes())
    second[-1] ^= 1
    paths[1].write_bytes(second)

    records, following = reopened(tmp_path)

    assert [number for number, _ in records] == list(range(1, len(records) + 1))
    assert 0 < len(records) < 12
    assert following > 12
    assert len(aside(tmp_path)) == len(paths) - 1
    assert any(r.levelno == logging.ERROR and "damaged" in r.getMessage() for r in caplog.records)
    assert reopened(tmp_path) == (records, following)


@pytest.mark.expects_warnings
def test_a_missing_file_in_the_middle_ends_the_replay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, file_bytes=100, boot_id="A")
    for i in range(12):
        journal.append([b"%02d" % i * 20])
    journal.close()
    paths = files(tmp_path)
    paths[2].unlink()

    records, following = reopened(tmp_path)

    assert 0 < len(records) < 12
    assert following > 12
    assert "starts at" in caplog.text


def bodies(directory: Path) -> list[bytes]:
    """Return what a journal replays."""
    journal = Journal(directory)
    found = [body for _, body in journal.replay()]
    journal.close()
    return found


@pytest.mark.expects_warnings
def test_after_a_power_cut_only_what_a_mark_vouches_for_is_replayed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, boot_id="A")
    journal.append([b"1", b"2"])
    journal.mark_durable()
    journal.append([b"3"])
    journal.close()

    again = Journal(tmp_path, boot_id="B")

    assert again.after_power_cut
    assert list(again.replay()) == [(1, b"1"), (2, b"2")]
    assert again.append([b"new"]) == 4
    again.close()
    assert aside(tmp_path) == [".unsynced"]
    assert "power cut took up to 1 records" in caplog.text
    assert reopened(tmp_path, "B") == ([(1, b"1"), (2, b"2"), (4, b"new")], 5)
    assert reopened(tmp_path, "C") == ([(1, b"1"), (2, b"2")], 5)


def test_a_reboot_in_good_order_loses_nothing_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, boot_id="A")
    journal.append(THREE)
    journal.mark_durable()
    journal.close()

    for boot in "BCD":
        assert reopened(tmp_path, boot) == (list(enumerate(THREE, 1)), 4)
    assert caplog.records == []
    assert aside(tmp_path) == []


@pytest.mark.expects_warnings
def test_a_mark_does_not_cover_what_was_appended_while_staging_was_synced(tmp_path: Path) -> None:
    journal = Journal(tmp_path, boot_id="A")
    journal.append([b"1"])
    covered = journal.next_number - 1
    journal.append([b"2"])
    journal.mark_durable(covered)
    journal.close()

    assert reopened(tmp_path, "B")[0] == [(1, b"1")]


@pytest.mark.expects_warnings
def test_a_mark_covers_older_files_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path, file_bytes=100, boot_id="A")
    for i in range(12):
        journal.append([b"%02d" % i * 20])
    journal.mark_durable()
    journal.append([b"lost"])
    journal.close()

    assert [number for number, _ in reopened(tmp_path, "B")[0]] == list(range(1, 13))


def test_after_a_power_cut_trimmed_records_stay_trimmed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, boot_id="A")
    journal.append(THREE)
    journal.mark_durable()
    journal.trim(2)
    journal.close()

    assert reopened(tmp_path, "B") == ([(3, THREE[2])], 4)


@pytest.mark.expects_warnings
def test_a_power_cut_at_any_byte_keeps_what_was_marked(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "whole", boot_id="A")
    journal.append([b"1", b"2"])
    journal.mark_durable()
    safe = files(tmp_path / "whole")[0].stat().st_size
    journal.append([b"3", b"4"])
    journal.close()
    raw = files(tmp_path / "whole")[0].read_bytes()
    for cut in range(safe, len(raw) + 1):
        for tail in (b"", bytes(len(raw) - cut)):  # a lost tail may come back as zeros
            directory = tmp_path / f"{cut}-{len(tail)}"
            directory.mkdir(exist_ok=True)
            (directory / "journal-0000000001").write_bytes(raw[:cut] + tail)
            assert reopened(directory, "B")[0] == [(1, b"1"), (2, b"2")]
            assert reopened(directory, "C")[0] == [(1, b"1"), (2, b"2")]
            for path in directory.iterdir():
                path.unlink()


@pytest.mark.expects_warnings
def test_a_crash_while_the_journal_settles_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(Exception):
        pass

    def die(*args: object, **more: object) -> None:
        raise Died

    for step in ("rename", "unlink"):
        directory = tmp_path / step
        journal = Journal(directory, file_bytes=60, boot_id="A")
        for i in range(4):
            journal.append([b"%d" % i * 30])
        journal.mark_durable()
        journal.append([b"lost"])
        journal.close()
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, die)
            with pytest.raises(Died):
                Journal(directory, boot_id="B")

        records, following = reopened(directory, "B")

        assert [number for number, _ in records] == [1, 2, 3, 4]
        assert following == 6
        assert ".unsynced" in aside(directory)


def test_a_killed_process_loses_nothing_that_it_appended(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        journal = Journal(tmp_path, file_bytes=500)
        for i in range(40):
            number = journal.append([b"%d" % i * 20])
            os.write(writer, b"%d\n" % number)
        os.kill(os.getpid(), 9)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        numbers = [int(line) for line in pipe]
    os.waitpid(child, 0)

    again = Journal(tmp_path)

    assert numbers == list(range(1, 41))
    assert list(again.replay()) == [(i + 1, b"%d" % i * 20) for i in range(40)]
    again.close()


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, Kind.NO_SPACE), (errno.EIO, Kind.UNAVAILABLE)]
)
def test_a_disk_that_refuses_half_way_leaves_nothing_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: Kind
) -> None:
    journal = Journal(tmp_path, boot_id="A")
    journal.append([b"1"])
    real = os.write
    calls: list[int] = []

    def refusing(fd: int, data: bytes) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(code, os.strerror(code))
        return real(fd, data[:30])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refusing)
        with pytest.raises(EverfoldError) as caught:
            journal.append([b"refused", b"refused"])
    assert caught.value.kind is kind
    assert journal.append([b"2"]) == 2
    journal.close()

    assert reopened(tmp_path) == ([(1, b"1"), (2, b"2")], 3)


def test_a_failed_sync_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.append([b"1"])

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(EverfoldError) as caught:
        journal.mark_durable()

    assert caught.value.kind is Kind.UNAVAILABLE
    journal.close()


def test_threads_get_numbers_of_their_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path, file_bytes=2000)
    given: list[tuple[int, bytes]] = []

    def work(mark: int) -> None:
        for i in range(50):
            body = b"%d/%d" % (mark, i)
            given.append((journal.append([body]), body))
            if i % 10 == 0:
                journal.mark_durable()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()

    again = Journal(tmp_path)
    assert list(again.replay()) == sorted(given)
    assert [number for number, _ in sorted(given)] == list(range(1, 201))
    again.close()
