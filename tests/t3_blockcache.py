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
from mount import diskcache
from mount.blockcache import BlockCache
from mount.cachepacks import PackFiles

SPACE = SpaceId(7)
MIB = 1 << 20


def block_of(mark: int, size: int) -> tuple[BlockId, bytes]:
    data = mark.to_bytes(4, "big") * (size // 4)
    return name_of(data), data


def on_disk(directory: Path) -> dict[str, int]:
    """Return the files of large blocks, and their sizes."""
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
    monkeypatch.setattr(diskcache.blockid, "check", lambda block, data: checked.append(block))

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


def packs(directory: Path) -> list[Path]:
    """Return the files in which small blocks lie, oldest first."""
    return sorted(directory.glob("packs/*"), key=lambda path: int(path.stem))


def test_small_blocks_count_as_a_unit_of_the_disk_each(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, disk_bytes=8 * 4096, memory_bytes=0)
    blocks = [block_of(i, 8) for i in range(20)]
    for block, data in blocks:
        cache.put(SPACE, block, data)

    assert [cache.has(SPACE, block) for block, _ in blocks] == [False] * 12 + [True] * 8
    assert cache.statistics().disk_bytes == 8 * 4096
    assert sum(path.stat().st_size for path in packs(tmp_path)) <= 8 * 4096


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

    assert cache.statistics().disk_bytes == 20 * 4096
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
    small = [
        size for pack in PackFiles(tmp_path / "packs").found() for _, (_, _, size) in pack.blocks
    ]
    sizes = [*on_disk(tmp_path).values(), *small]
    assert figures.disk_bytes == sum(-(-s // 4096) * 4096 for s in sizes)
    cache.clear()
    assert cache.statistics().disk_bytes == 0


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
        diskcache.os,
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


# ---------------------------------------------------------------------- small blocks on disk


def filled(directory: Path, count: int, disk_bytes: int = MIB) -> list[tuple[BlockId, bytes]]:
    """Leave a cache on disk that has so many small blocks, and nothing in memory."""
    cache = BlockCache(directory, disk_bytes, memory_bytes=0)
    blocks = [block_of(i, 1000 + 4 * i) for i in range(count)]
    for block, data in blocks:
        cache.put(SPACE, block, data)
    cache.close()
    return blocks


def had(cache: BlockCache, blocks: list[tuple[BlockId, bytes]]) -> list[bool]:
    """Return which blocks are given back; none of them wrong."""
    found = [cache.get(SPACE, block) for block, _ in blocks]
    assert all(got in (None, data) for got, (_, data) in zip(found, blocks, strict=True))
    return [got is not None for got in found]


def test_small_blocks_lie_many_to_a_file_and_outlast_the_process(tmp_path: Path) -> None:
    blocks = filled(tmp_path, 30)
    again = BlockCache(tmp_path, MIB, memory_bytes=0)
    more = [block_of(99, 500)]
    again.put(SPACE, *more[0])
    again.close()

    assert [path.name for path in packs(tmp_path)] == ["1.pack", "2.pack", "3.pack"]
    third = BlockCache(tmp_path, MIB, memory_bytes=0)
    assert all(had(third, blocks + more))
    assert third.statistics().disk_hits == 31


@pytest.mark.parametrize("lost", [1, 500, 1500])
def test_a_pack_that_a_crash_cut_short_has_what_comes_before(tmp_path: Path, lost: int) -> None:
    blocks = filled(tmp_path, 5)
    (pack,) = packs(tmp_path)
    os.truncate(pack, pack.stat().st_size - lost)

    cache = BlockCache(tmp_path, MIB, memory_bytes=0)
    missing = 1 if lost < 1016 else 2
    assert had(cache, blocks) == [True] * (5 - missing) + [False] * missing
    cache.put(SPACE, *blocks[4])
    assert cache.get(SPACE, blocks[4][0]) == blocks[4][1]


@pytest.mark.expects_warnings
def test_a_small_block_that_rotted_is_a_miss_and_harms_no_other(tmp_path: Path) -> None:
    blocks = filled(tmp_path, 5)
    (pack,) = packs(tmp_path)
    content = bytearray(pack.read_bytes())
    content[content.index(blocks[2][1]) + 3] ^= 1
    pack.write_bytes(content)

    cache = BlockCache(tmp_path, MIB, memory_bytes=0)
    assert had(cache, blocks) == [True, True, False, True, True]
    assert cache.statistics().rotten == 1
    assert not cache.has(SPACE, blocks[2][0])


def test_a_record_that_makes_no_sense_is_passed_over(tmp_path: Path) -> None:
    blocks = filled(tmp_path, 5)
    (pack,) = packs(tmp_path)
    content = pack.read_bytes()
    at = content.index(blocks[2][1]) - 20  # in the head before it
    pack.write_bytes(content[:at] + bytes(40) + content[at + 40 :])

    cache = BlockCache(tmp_path, MIB, memory_bytes=0)

    assert had(cache, blocks) == [True, True, False, True, True]
    assert cache.statistics().rotten == 0


def test_a_pack_that_somebody_removed_is_a_miss_for_all_its_blocks(tmp_path: Path) -> None:
    blocks = filled(tmp_path, 5)
    cache = BlockCache(tmp_path, MIB, memory_bytes=0)
    packs(tmp_path)[0].unlink()

    assert had(cache, blocks) == [False] * 5
    assert cache.statistics().disk_bytes == 0
    assert cache.statistics().rotten == 0


def test_packs_and_files_go_in_the_order_of_their_last_use(tmp_path: Path) -> None:
    share = 16 * 4096  # what a pack takes of this limit
    cache = BlockCache(tmp_path, 16 * share, memory_bytes=0)
    small = [block_of(i, 100) for i in range(16 * 3)]
    large = block_of(99, SMALL_BLOCK)
    for block, data in small:
        cache.put(SPACE, block, data)
    cache.put(SPACE, *large)
    assert len(packs(tmp_path)) == 3
    assert cache.get(SPACE, small[0][0]) is not None  # the first pack is the last that was used

    cache.put(SPACE, *block_of(100, 13 * share))  # so the second one goes

    kept = [cache.has(SPACE, block) for block, _ in small]
    assert kept == [True] * 16 + [False] * 16 + [True] * 16
    cache.put(SPACE, *block_of(101, 2 * share))  # the third, and the large block
    assert [path.name for path in packs(tmp_path)] == ["1.pack"]
    assert not cache.has(SPACE, large[0])
    assert cache.statistics().disk_bytes == 16 * share


def test_which_packs_were_used_last_is_known_after_a_restart(tmp_path: Path) -> None:
    limit = 64 * 4096  # four blocks make a pack
    blocks = filled(tmp_path, 12, limit)
    for age, path in enumerate(packs(tmp_path)):
        os.utime(path, (1000 + age, 1000 + age))
    cache = BlockCache(tmp_path, limit, memory_bytes=0)
    assert cache.get(SPACE, blocks[0][0]) is not None
    cache.close()

    again = BlockCache(tmp_path, 8 * 4096, memory_bytes=0)

    kept = [again.has(SPACE, block) for block, _ in blocks]
    assert kept == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("code", "limit", "kept"), [(errno.ENOSPC, 3 * 4096, 0), (errno.EIO, 0, 4)]
)
def test_a_disk_that_takes_no_small_blocks_makes_the_cache_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, limit: int, kept: int
) -> None:
    cache = BlockCache(tmp_path, MIB, memory_bytes=0)
    blocks = [block_of(i, 1000) for i in range(6)]
    for block, data in blocks[:4]:
        cache.put(SPACE, block, data)

    def half(fd: int, data: bytes, at: int) -> int:
        if len(data) > 500:
            return write(fd, data[:500], at)
        raise OSError(code, os.strerror(code))

    write = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        cache.put(SPACE, *blocks[4])

    assert not cache.has(SPACE, blocks[4][0])
    assert cache.statistics().disk_limit == limit
    assert cache.statistics().disk_bytes == kept * 4096
    assert sum(had(cache, blocks[:4])) == kept  # a pack goes as a whole
    cache.put(SPACE, *blocks[5])
    assert cache.has(SPACE, blocks[5][0]) == bool(limit)
    assert had(cache, blocks[5:]) == [bool(limit)]
    cache.close()
