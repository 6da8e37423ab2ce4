"""The power cut: what a datanode acknowledged is on the medium, metadata included.

An ext4 filesystem on a loop device is shut down without writing its log out
(EXT4_IOC_SHUTDOWN), while the datanode works: all that was not synced is gone.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datanode.node import Identity, Node
from everfold.errors import EverfoldError
from everfold.files import DIRECT_MIN, aligned
from everfold.model import SMALL_BLOCK, BlockId, NodeId, SpaceId
from tests.contracts.blockstore import random_block

HOME = SpaceId(1)
_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_SIZE = 300 * 1024 * 1024


class Disk:
    """An ext4 filesystem whose power can be cut."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "image"
        self.point = folder / "disk"
        self.point.mkdir()
        with self.image.open("wb") as image:
            image.truncate(_SIZE)
        _run("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.point))

    def cut_power(self) -> None:
        fd = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        _run("umount", str(self.point))


def _run(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{line[0]}: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("power cuts need root, for loop devices")
    try:
        disk = Disk(tmp_path)
    except OSError as err:
        pytest.skip(f"no loop device with ext4 here: {err}")
    yield disk
    subprocess.run(["umount", "-l", str(disk.point)], capture_output=True, timeout=60)


def start(disk: Disk) -> Node:
    return Node(Identity(NodeId("dn1"), "http://dn1"), disk.point / "node", floor=0)


def after_power_cut(disk: Disk, node: Node) -> Node:
    disk.cut_power()
    node.abandon()
    disk.unmount()
    disk.mount()
    return start(disk)


def all_there(node: Node, kept: dict[BlockId, bytes]) -> bool:
    return dict(node.get_many(HOME, list(kept))) == kept


def test_what_was_acknowledged_survives_power_cuts(disk: Disk) -> None:
    node = start(disk)
    kept: dict[BlockId, bytes] = {}
    for _ in range(3):
        for _ in range(5):
            pairs = [random_block(size) for size in (10, 4096, SMALL_BLOCK, 500_000)]
            for block, data in pairs:
                node.put(HOME, block, data)
            many = [random_block(1000) for _ in range(30)]
            assert node.put_many(HOME, [(b, memoryview(d)) for b, d in many]) == [None] * 30
            kept.update(pairs)
            kept.update(many)

        node = after_power_cut(disk, node)

        assert all_there(node, kept)
        assert node.ledger.totals() == (len(kept), sum(map(len, kept.values())))
    node.close()
    disk.unmount()
    disk.mount()


@pytest.mark.parametrize(
    "size", [4096, SMALL_BLOCK * 4, DIRECT_MIN], ids=["packed", "file", "past the cache"]
)
def test_the_very_last_block_survives_and_so_does_its_name(disk: Disk, size: int) -> None:
    node = start(disk)
    for _ in range(3):
        block, data = random_block(size)
        memory = aligned(size)
        memory[:] = data
        node.put(HOME, block, memory)

        node = after_power_cut(disk, node)

        assert all_there(node, {block: data})
    node.close()


def test_a_cut_in_the_middle_of_compaction_loses_nothing(disk: Disk) -> None:
    node = start(disk)
    pairs = [random_block(20_000) for _ in range(3600)]  # more than one pack
    for first in range(0, len(pairs), 400):
        node.put_many(HOME, [(b, memoryview(d)) for b, d in pairs[first : first + 400]])
    for block, _ in pairs[: 3 * len(pairs) // 4]:
        node.drop(HOME, block)
    kept = dict(pairs[3 * len(pairs) // 4 :])
    assert node.store.tidy() is True

    node = after_power_cut(disk, node)

    assert all_there(node, kept)
    node.close()


def test_without_power_nothing_is_acknowledged(disk: Disk) -> None:
    node = start(disk)
    disk.cut_power()

    for size in (100, SMALL_BLOCK * 2):
        with pytest.raises(EverfoldError):
            node.put(HOME, *random_block(size))

    node.abandon()
    disk.unmount()
    disk.mount()
    node = start(disk)
    assert node.ledger.totals() == (0, 0)
    node.close()


def test_the_power_cut_is_real_unsynced_files_are_gone(disk: Disk) -> None:
    (disk.point / "unsynced").write_bytes(b"bytes")

    disk.cut_power()
    disk.unmount()
    disk.mount()

    assert not (disk.point / "unsynced").exists()
