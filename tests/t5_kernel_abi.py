"""Our table of the kernel's ABI says what linux/fuse.h says."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from mount.kernel import abi, encode

HEADER = Path("/usr/include/linux/fuse.h")
SIZES = {"uint16_t": 2, "uint32_t": 4, "int32_t": 4, "uint64_t": 8, "int64_t": 8}
NEWER = {"STATX"}  # than the oldest header that the tests meet

LAYOUTS = {
    "fuse_in_header": abi.IN_HEADER,
    "fuse_out_header": abi.OUT_HEADER,
    "fuse_init_out": abi.INIT_OUT,
    "fuse_entry_out": abi.ENTRY_OUT,
    "fuse_attr_out": abi.ATTR_OUT,
    "fuse_open_out": abi.OPEN_OUT,
    "fuse_write_out": abi.SIZE_OUT,
    "fuse_getxattr_out": abi.SIZE_OUT,
    "fuse_lseek_out": abi.OFFSET_OUT,
    "fuse_statfs_out": abi.STATFS_OUT,
    "fuse_lk_out": abi.LK_OUT,
    "fuse_forget_in": abi.FORGET_IN,
    "fuse_batch_forget_in": abi.BATCH_FORGET_IN,
    "fuse_forget_one": abi.FORGET_ONE,
    "fuse_getattr_in": abi.GETATTR_IN,
    "fuse_setattr_in": abi.SETATTR_IN,
    "fuse_mknod_in": abi.MKNOD_IN,
    "fuse_mkdir_in": abi.MKDIR_IN,
    "fuse_rename_in": abi.RENAME_IN,
    "fuse_rename2_in": abi.RENAME2_IN,
    "fuse_link_in": abi.LINK_IN,
    "fuse_open_in": abi.OPEN_IN,
    "fuse_create_in": abi.CREATE_IN,
    "fuse_release_in": abi.RELEASE_IN,
    "fuse_flush_in": abi.FLUSH_IN,
    "fuse_read_in": abi.READ_IN,
    "fuse_write_in": abi.WRITE_IN,
    "fuse_fsync_in": abi.FSYNC_IN,
    "fuse_getxattr_in": abi.GETXATTR_IN,
    "fuse_lk_in": abi.LK_IN,
    "fuse_interrupt_in": abi.INTERRUPT_IN,
    "fuse_fallocate_in": abi.FALLOCATE_IN,
    "fuse_lseek_in": abi.LSEEK_IN,
    "fuse_copy_file_range_in": abi.COPY_FILE_RANGE_IN,
    "fuse_dirent": abi.DIRENT,
    "fuse_notify_inval_inode_out": abi.NOTIFY_INODE,
    "fuse_notify_inval_entry_out": abi.NOTIFY_ENTRY,
    "fuse_notify_delete_out": abi.NOTIFY_DELETE,
}


@pytest.fixture(scope="module")
def header() -> str:
    if not HEADER.exists():
        pytest.skip(f"no {HEADER} on this machine")
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def size_of(name: str, header: str) -> int:
    found = re.search(rf"struct {name} {{(.*?)}};", header, re.DOTALL)
    assert found, name
    total = 0
    for is_struct, type_, count in re.findall(r"(struct )?(\w+)\s+\w+(?:\[(\d*)\])?;", found[1]):
        one = size_of(type_, header) if is_struct else SIZES.get(type_, 0)
        total += one * (int(count) if count else 1)
    return total


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_as_long_as_the_headers(name: str, header: str) -> None:
    assert LAYOUTS[name].size == size_of(name, header)


def test_opcodes_and_flags_are_the_headers(header: str) -> None:
    for opcode in abi.Opcode:
        if opcode.name not in NEWER:
            assert re.search(rf"FUSE_{opcode.name}\s*=\s*{opcode.value},", header), opcode
    for notice in abi.Notify:
        assert re.search(rf"FUSE_NOTIFY_{notice.name}\s*=\s*{notice.value},", header), notice
    for prefix, flags in (("FUSE", abi.Init), ("FATTR", abi.Fattr)):
        for flag in flags:
            bit = flag.value.bit_length() - 1
            assert re.search(rf"#define {prefix}_{flag.name}\s+\(1 << {bit}\)", header), flag


def test_statx_is_as_long_as_the_kernels() -> None:
    # fuse_statx_out: 8 + 4 + 4 + 2 * 8, and fuse_statx as long as statx(2)'s structure
    assert abi.STATX_OUT.size == 32 + 256
    assert abi.STATX_IN.size == 24


def test_device_numbers_survive_the_kernels_packing() -> None:
    for major, minor in ((1, 3), (8, 300), (259, 70_000), (4095, 255)):
        rdev = os.makedev(major, minor)
        assert encode.user_dev(encode.kernel_dev(rdev)) == rdev


def test_a_negative_entry_names_no_inode() -> None:
    payload = encode.negative_entry(1.5)

    assert len(payload) == abi.ENTRY_OUT.size
    assert struct.unpack_from("=QQQQII", payload) == (0, 0, 1, 0, 500_000_000, 0)
