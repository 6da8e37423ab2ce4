"""The block cache: within its limits, never wrong, never in a reader's way."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from everfold.blockid import name_of
from everfold.fileslice import FileSlice
from everfold.model import SMALL_BLOCK, BlockId, SpaceId
from mount import blockcache
from mount.blockcache import BlockCache

SPACE = SpaceId(7)
MIB = 1 << 20


def block_of(mark: int, size: int) -> tuple[BlockId, bytes]:
    data = mark.to_bytes(4, "big") * (size // 4)
    return name_of(data), data


def on_disk(directory: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in directory.glob("??/*")}


def test_a_block_is_given_back_whole_and_in_part(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=MIB)
    block, data = block_of(1, 1000)

    cache.put(SPACE, block, memoryview(data))

    assert cache.get(SPACE, block) == data
    assert cache.read(SPACE, block, 10, 20) == data[10:30]
    assert cache.read(SPACE, block, 990, 100) == data[990:]
    assert cache.statistics().memory_hits == 3


def test_another_space_does_not_see_the_block(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=MIB)
    block, data = block_of(1, SMALL_BLOCK)
    cache.put(SPACE, block, data)

    assert cache.get(SpaceId(8), block) is None
    assert cache.read(SpaceId(8), block, 0, 10) is None
    assert not cache.has(SpaceId(8), block)
    assert cache.statistics().misses == 2


def test_blocks_are_there_after_a_restart(tmp_path: Path) -> None:
    small, large = block_of(1, 100), block_of(2, SMALL_BLOCK)
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=MIB)
    for block, data in (small, large):
        cache.put(SPACE, block, data)
    cache.close()

    again = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)

    for block, data in (small, large):
        assert again.has(SPACE, block)
        assert again.read(SPACE, block, 4, 8) == data[4:12]
        assert again.get(SPACE, block) == data


def test_a_part_is_read_without_loading_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    block, data = block_of(1, SMALL_BLOCK)
    cache.put(SPACE, block, data)

    loaded: list[int] = []
    real = os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        loaded.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", counting)

    assert cache.read(SPACE, block, 100, 50) == data[100:150]
    assert cache.read(SPACE, block, SMALL_BLOCK - 3, 50) == data[-3:]
    assert cache.read(SPACE, block, SMALL_BLOCK, 50) == b""
    assert loaded == [50, 3, 0]


def test_a_block_is_checked_once_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, data = block_of(1, SMALL_BLOCK)
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    cache.put(SPACE, block, data)
    cache.close()
    again = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    checked: list[BlockId] = []
    monkeypatch.setattr(blockcache.blockid, "check", lambda block, data: checked.append(block))

    for _ in range(3):
        assert again.read(SPACE, block, 0, 8) == data[:8]

    assert checked == [block]


@pytest.mark.expects_warnings
@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_a_rotten_file_is_a_miss_and_is_removed(tmp_path: Path, damage: str) -> None:
    block, data = block_of(1, SMALL_BLOCK)
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    cache.put(SPACE, block, data)
    cache.close()
    (path,) = tmp_path.glob("??/*")
    rotten = {"flipped": b"X" + data[1:], "short": data[:-1], "empty": b""}[damage]
    path.write_bytes(rotten)
    again = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)

    assert again.read(SPACE, block, 0, 8) is None

    assert not path.exists()
    assert again.statistics().rotten == 1
    again.put(SPACE, block, data)
    assert again.get(SPACE, block) == data


@pytest.mark.expects_warnings
def test_a_file_cut_short_while_in_use_is_a_miss(tmp_path: Path) -> None:
    block, data = block_of(1, SMALL_BLOCK)
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    cache.put(SPACE, block, data)
    (path,) = tmp_path.glob("??/*")
    os.truncate(path, 100)

    assert cache.read(SPACE, block, 50, 100) is None
    assert not cache.has(SPACE, block)


def test_a_file_that_somebody_removed_is_a_miss(tmp_path: Path) -> None:
    block, data = block_of(1, SMALL_BLOCK)
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    cache.put(SPACE, block, data)
    for path in tmp_path.glob("??/*"):
        path.unlink()

    assert cache.get(SPACE, block) is None
    assert cache.statistics().disk_bytes == 0


def test_the_disk_limit_holds_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=4 * SMALL_BLOCK, memory_bytes=0)
    blocks = [block_of(i, SMALL_BLOCK) for i in range(6)]
    for block, data in blocks[:4]:
        cache.put(SPACE, block, data)
    assert cache.read(SPACE, blocks[0][0], 0, 4) is not None

    for block, data in blocks[4:]:
        cache.put(SPACE, block, data)

    assert [cache.has(SPACE, block) for block, _ in blocks] == [True, False, False] + [True] * 3
    assert sum(on_disk(tmp_path).values()) == 4 * SMALL_BLOCK
    assert cache.statistics().disk_bytes == 4 * SMALL_BLOCK


def test_small_files_count_as_what_they_take_on_the_disk(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=8 * 4096, memory_bytes=0)
    for i in range(20):
        cache.put(SPACE, *block_of(i, 8))

    assert len(on_disk(tmp_path)) == 8


def test_a_smaller_limit_is_obeyed_at_the_next_start_oldest_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    blocks = [block_of(i, SMALL_BLOCK) for i in range(4)]
    for age, (block, data) in enumerate(blocks):
        cache.put(SPACE, block, data)
        path = next(tmp_path.glob(f"??/{block.hex()}.*"))
        os.utime(path, (1000 - age, 1000 - age))
    cache.close()

    again = BlockCache(tmp_path, disk_bytes=2 * SMALL_BLOCK, memory_bytes=0)

    assert [again.has(SPACE, block) for block, _ in blocks] == [True, True, False, False]


def test_the_memory_limit_holds_and_what_is_pushed_out_goes_to_the_disk(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=10_000)
    blocks = [block_of(i, 1000) for i in range(30)]
    for block, data in blocks:
        cache.put(SPACE, block, data)
        assert cache.statistics().memory_bytes <= 10_000

    assert len(on_disk(tmp_path)) == 20
    assert all(cache.get(SPACE, block) == data for block, data in blocks)
    assert cache.statistics().memory_bytes <= 10_000


def test_a_block_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=SMALL_BLOCK, memory_bytes=1000)
    block, data = block_of(1, 2 * SMALL_BLOCK)

    cache.put(SPACE, block, data)

    assert cache.get(SPACE, block) is None
    assert on_disk(tmp_path) == {}


@pytest.mark.expects_warnings
@pytest.mark.parametrize(("code", "left"), [(errno.ENOSPC, 3), (errno.EIO, 4)])
def test_a_disk_that_refuses_makes_the_cache_smaller_and_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, left: int
) -> None:
    cache = BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)
    blocks = [block_of(i, SMALL_BLOCK) for i in range(5)]
    for block, data in blocks[:4]:
        cache.put(SPACE, block, data)

    def refuse(fd: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        cache.put(SPACE, *blocks[4])

    assert not cache.has(SPACE, blocks[4][0])
    assert len(on_disk(tmp_path)) == left
    assert list((tmp_path / "temp").iterdir()) == []
    kept = [data for block, data in blocks if cache.get(SPACE, block) == data]
    assert len(kept) == left
    assert cache.statistics().disk_limit == (3 * SMALL_BLOCK if code == errno.ENOSPC else 0)


@pytest.mark.expects_warnings
def test_a_directory_that_cannot_be_used_leaves_a_cache_in_memory(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")

    cache = BlockCache(tmp_path / "cache", disk_bytes=MIB, memory_bytes=MIB)
    block, data = block_of(1, SMALL_BLOCK)
    cache.put(SPACE, block, data)

    assert cache.get(SPACE, block) == data
    cache.close()


def test_what_a_crash_left_half_written_is_swept(tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    (tmp_path / "temp" / "half").write_bytes(b"x")

    BlockCache(tmp_path, disk_bytes=MIB, memory_bytes=0)

    assert list((tmp_path / "temp").iterdir()) == []


def test_threads_see_whole_blocks_only(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=5 * SMALL_BLOCK, memory_bytes=2 * SMALL_BLOCK)
    blocks = [block_of(i, SMALL_BLOCK if i % 2 else 500) for i in range(12)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in range(60):
            block, data = blocks[(start + i * 5) % 12]
            got = cache.get(SPACE, block)
            if got is None:
                cache.put(SPACE, block, data)
            elif got != data:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    figures = cache.statistics()
    assert figures.disk_bytes <= 5 * SMALL_BLOCK
    assert figures.disk_bytes == sum(-(-s // 4096) * 4096 for s in on_disk(tmp_path).values())


def test_a_block_in_a_file_of_its_own_is_taken_over_without_a_copy(tmp_path: Path) -> None:
    data = b"whole" * 50_000
    source = tmp_path / "segment"
    source.write_bytes(data)
    cache = BlockCache(tmp_path / "cache", 1 << 24, 1 << 20)
    with source.open("rb") as file:
        cache.adopt(SPACE, name_of(data), FileSlice(file.fileno(), 0, len(data), str(source)))
    assert source.stat().st_nlink == 2

    source.unlink()

    assert cache.read(SPACE, name_of(data), 5, 10) == data[5:15]
    assert cache.statistics().disk_bytes >= len(data)
    cache.close()


@pytest.mark.parametrize("path", [None, "/nonexistent/segment"])
def test_a_block_that_cannot_be_linked_is_copied(tmp_path: Path, path: str | None) -> None:
    data = b"part" * 50_000
    source = tmp_path / "segment"
    source.write_bytes(b"before" + data + b"behind")
    cache = BlockCache(tmp_path / "cache", 1 << 24, 1 << 20)
    with source.open("rb") as file:
        cache.adopt(SPACE, name_of(data), FileSlice(file.fileno(), 6, len(data), path))

    assert cache.get(SPACE, name_of(data)) == data
    cache.close()


def test_the_disk_is_told_of_whole_blocks_that_are_wanted_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BlockCache(tmp_path, disk_bytes=8 * MIB, memory_bytes=MIB)
    block, data = block_of(1, 3 * MIB)
    small, few = block_of(2, 1000)
    cache.put(SPACE, block, data)
    cache.put(SPACE, small, few)
    told: list[range] = []
    monkeypatch.setattr(
        blockcache.os,
        "posix_fadvise",
        lambda fd, at, length, how: told.append(range(at, at + length)),
    )

    cache.will_need(SPACE, [block, small, block_of(3, 1000)[0]])
    assert {at for part in told for at in part[::4096]} == set(range(0, 3 * MIB, 4096))
    next(tmp_path.glob("??/*")).unlink()
    cache.will_need(SPACE, [block])
    assert cache.get(SPACE, block) is None


def test_a_cache_that_was_cleared_has_nothing_and_counts_nothing(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1 << 24, 1 << 20)
    blocks = [(name_of(data), data) for data in (b"small", b"large" * 50_000)]
    for block, data in blocks:
        cache.put(SPACE, block, data)

    cache.clear()

    assert [cache.get(SPACE, block) for block, _ in blocks] == [None, None]
    assert cache.statistics().memory_bytes == cache.statistics().disk_bytes == 0
    cache.put(SPACE, *blocks[1])
    assert cache.get(SPACE, blocks[1][0]) == blocks[1][1]
    cache.close()


def test_what_only_passes_through_makes_room_without_going_to_disk(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=64 * MIB, memory_bytes=4 * MIB)
    blocks = [block_of(mark, MIB // 2) for mark in range(20)]
    for block, data in blocks:
        assert cache.remember(SPACE, block, data, is_passing=True)
        assert cache.read(SPACE, block, 0, MIB) == data
    assert on_disk(tmp_path) == {}
    assert not cache.has(SPACE, blocks[0][0])
    cache.put(SPACE, *blocks[-1])  # somebody wants it for good
    cache.close()

    assert list(on_disk(tmp_path).values()) == [MIB // 2]
    assert not cache.remember(SPACE, *block_of(99, 2 * MIB), is_passing=True)  # too large
