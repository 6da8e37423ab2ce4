"""What a program does with a local folder, through a real mount, over both adapters."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import secrets
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.wire import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.harness.cluster import RealCluster
from tests.harness.folders import Folder, folder
from tests.harness.memfs import MemoryFilesystem
from tests.harness.mounts import DRIVERS, Mounted, mounted, until

pytestmark = pytest.mark.fuse

NOBODY = 65534
Served = Mounted | Folder
_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE, _PUNCH_HOLE, _COLLAPSE = 1, 2, 8


@pytest.fixture(
    scope="module",
    params=[(driver, behind) for behind in ("memory", "cluster") for driver in DRIVERS],
    ids="-".join,
)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A mount, by each adapter, of a filesystem in memory and of a real cluster's space."""
    driver, behind = request.param
    if behind == "memory":
        with mounted(MemoryFilesystem, driver) as mount:
            yield mount
        return
    cluster: RealCluster = request.getfixturevalue("live_cluster")
    # Not below pytest's own folder, which other users may not enter.
    with (
        tempfile.TemporaryDirectory(prefix="everfold-mount-") as above,
        folder(cluster, Path(above, driver), driver) as mount,
    ):
        Path(above).chmod(0o755)
        yield mount


@pytest.fixture
def here(served: Served) -> Path:
    fresh = served.path / secrets.token_hex(4)
    fresh.mkdir()
    return fresh


def renameat2(old: Path, new: Path, flags: int) -> None:
    at_cwd = -100
    if _libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    arguments = (ctypes.c_int64(offset), ctypes.c_int64(length))
    if _libc.fallocate(fd, mode, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def give_name(fd: int, path: Path) -> None:
    # os.link does not pass AT_SYMLINK_FOLLOW on unless it is given directories.
    source, at_cwd, follow = f"/proc/self/fd/{fd}".encode(), -100, 0x400
    if _libc.linkat(at_cwd, source, at_cwd, os.fsencode(path), follow) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def as_nobody(*command: str | Path, umask: int = 0o022) -> int:
    ended = subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], umask=umask, check=False
    )
    return ended.returncode


# ---------------------------------------------------------------- bytes


def test_bytes_written_at_any_offset_are_read_back(here: Path) -> None:
    model = bytearray()
    with open(here / "f", "w+b", buffering=0) as file:
        for offset, length in ((0, 10), (100_000, 300_000), (50, 4096), (399_990, 2_000_000)):
            data = secrets.token_bytes(length)
            os.pwrite(file.fileno(), data, offset)
            model.extend(bytes(max(0, offset + length - len(model))))
            model[offset : offset + length] = data

    assert (here / "f").read_bytes() == bytes(model)
    assert (here / "f").stat().st_size == len(model)


def test_two_appenders_never_overwrite_each_other(here: Path) -> None:
    first = os.open(here / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    second = os.open(here / "log", os.O_WRONLY | os.O_APPEND)
    for number in range(20):
        os.write(first if number % 2 else second, b"%02d\n" % number)
    os.close(first)
    os.close(second)

    assert (here / "log").read_bytes() == b"".join(b"%02d\n" % n for n in range(20))


def test_what_truncate_cut_off_comes_back_as_zeros(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 10_000)

    os.truncate(here / "f", 100)
    os.truncate(here / "f", 10_000)

    assert (here / "f").read_bytes() == b"x" * 100 + bytes(9900)


def test_opening_with_o_trunc_empties(here: Path) -> None:
    (here / "f").write_bytes(b"old content")
    os.close(os.open(here / "f", os.O_WRONLY | os.O_TRUNC))

    assert (here / "f").read_bytes() == b""


def test_a_sparse_file_tells_its_holes(here: Path) -> None:
    with open(here / "f", "w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"data", 1 << 30)
        fd = file.fileno()

        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 30
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 1 << 30, os.SEEK_HOLE) == (1 << 30) + 4
        with pytest.raises(OSError) as caught:
            os.lseek(fd, 2 << 30, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
        assert os.fstat(fd).st_blocks * 512 < 1 << 20


def test_fallocate_grows_and_punches(here: Path) -> None:
    with open(here / "f", "w+b", buffering=0) as file:
        fd = file.fileno()
        file.write(b"x" * 16384)
        fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, 4096, 8192)
        fallocate(fd, 0, 0, 32768)

        assert os.fstat(fd).st_size == 32768
        expected = b"x" * 4096 + bytes(8192) + b"x" * 4096 + bytes(16384)
        assert os.pread(fd, 32768, 0) == expected


def test_collapse_range_is_refused_and_changes_nothing(here: Path) -> None:
    (here / "f").write_bytes(b"y" * 16384)
    fd = os.open(here / "f", os.O_RDWR)
    with pytest.raises(OSError) as caught:
        fallocate(fd, _COLLAPSE, 0, 4096)
    os.close(fd)

    assert caught.value.errno == errno.EOPNOTSUPP
    assert (here / "f").read_bytes() == b"y" * 16384


def test_a_mapped_file_is_read_and_written(here: Path) -> None:
    (here / "f").write_bytes(b"a" * 10_000)
    with open(here / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        assert pages[9_000:9_004] == b"aaaa"
        pages[5_000:5_003] = b"new"
        pages.flush()

    assert (here / "f").read_bytes() == b"a" * 5_000 + b"new" + b"a" * 4_997


def test_direct_io_reads_and_writes_aligned_blocks(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    pages = mmap.mmap(-1, 1 << 20)
    pages[:] = secrets.token_bytes(1 << 20)
    try:
        assert os.pwritev(fd, [pages], 0) == 1 << 20
        back = mmap.mmap(-1, 1 << 20)
        assert os.preadv(fd, [back], 0) == 1 << 20
        assert back[:] == pages[:]
    finally:
        os.close(fd)
    assert (here / "f").read_bytes() == pages[:]


def test_copy_file_range_and_sendfile_copy(here: Path) -> None:
    content = secrets.token_bytes(300_000)
    (here / "from").write_bytes(content)
    with open(here / "from", "rb") as source, open(here / "to", "wb") as target:
        copied = os.copy_file_range(source.fileno(), target.fileno(), 200_000, 50, 0)
        os.lseek(target.fileno(), 200_000, os.SEEK_SET)
        sent = os.sendfile(target.fileno(), source.fileno(), 250_000, 50_000)

    assert (copied, sent) == (200_000, 50_000)
    assert (here / "to").read_bytes() == content[50:200_050] + content[250_000:]


def test_a_deleted_file_lives_until_it_is_closed(here: Path) -> None:
    with open(here / "f", "w+b", buffering=0) as file:
        file.write(b"still here")
        os.unlink(here / "f")

        assert not (here / "f").exists()
        assert os.pread(file.fileno(), 100, 0) == b"still here"
        assert os.fstat(file.fileno()).st_size == 10
        os.ftruncate(file.fileno(), 5)
        assert os.pread(file.fileno(), 100, 0) == b"still"


def test_an_open_file_that_was_replaced_by_rename_keeps_its_content(here: Path) -> None:
    (here / "f").write_bytes(b"old")
    with open(here / "f", "rb", buffering=0) as old:
        (here / "tmp").write_bytes(b"newer")
        os.rename(here / "tmp", here / "f")

        assert os.fstat(old.fileno()).st_size == 3
        assert old.read() == b"old"
    assert (here / "f").read_bytes() == b"newer"


def test_a_file_of_o_tmpfile_has_no_name_until_it_is_linked(served: Served, here: Path) -> None:
    if served.driver == "fusepy":
        pytest.skip("libfuse's path interface has no tmpfile")
    fd = os.open(here, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"nameless")
    assert os.listdir(here) == []
    give_name(fd, here / "named")
    os.close(fd)

    assert (here / "named").read_bytes() == b"nameless"
    assert (here / "named").stat().st_nlink == 1


def test_the_syncs_succeed(here: Path) -> None:
    with open(here / "f", "wb") as file:
        file.write(b"1")
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
        assert _libc.syncfs(file.fileno()) == 0
    directory = os.open(here, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def test_thousands_of_files_can_be_open(served: Served, here: Path) -> None:
    count = 3_000 if isinstance(served, Mounted) else 2_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000), hard))
    fds = [os.open(here / str(n), os.O_RDWR | os.O_CREAT) for n in range(count)]
    try:
        for fd in fds:
            os.write(fd, b"%d" % fd)
        assert all(os.pread(fd, 10, 0) == b"%d" % fd for fd in fds)
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------- names


def test_rename_replaces_a_file_at_once(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")

    os.rename(here / "a", here / "b")

    assert os.listdir(here) == ["b"]
    assert (here / "b").read_bytes() == b"a"


def test_a_renamed_directory_keeps_what_is_in_it(here: Path) -> None:
    (here / "d" / "e").mkdir(parents=True)
    (here / "d" / "e" / "f").write_bytes(b"deep")
    (here / "other").mkdir()

    os.rename(here / "d", here / "other" / "moved")

    assert (here / "other" / "moved" / "e" / "f").read_bytes() == b"deep"
    assert not (here / "d").exists()
    assert here.stat().st_nlink == 3
    assert os.stat(here / "other" / "moved" / "..").st_ino == (here / "other").stat().st_ino


def test_renames_that_make_no_sense_are_refused(here: Path) -> None:
    (here / "d" / "sub").mkdir(parents=True)
    (here / "f").write_bytes(b"")
    (here / "empty").mkdir()
    for old, new, code in (
        ("d", "d/sub/x", errno.EINVAL),
        ("empty", "d", errno.ENOTEMPTY),
        ("f", "empty", errno.EISDIR),
        ("empty", "f", errno.ENOTDIR),
        ("missing", "f", errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            os.rename(here / old, here / new)
        assert caught.value.errno == code, (old, new)


def test_rename_noreplace_never_replaces(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    with pytest.raises(OSError) as caught:
        renameat2(here / "a", here / "b", RENAME_NOREPLACE)
    renameat2(here / "a", here / "c", RENAME_NOREPLACE)

    assert caught.value.errno == errno.EEXIST
    assert sorted(os.listdir(here)) == ["b", "c"]


def test_rename_exchange_swaps_or_is_refused_and_loses_nothing(served: Served, here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").mkdir()
    if served.driver == "fusepy":
        with pytest.raises(OSError) as caught:
            renameat2(here / "a", here / "b", RENAME_EXCHANGE)
        assert caught.value.errno == errno.EINVAL
        assert (here / "a").read_bytes() == b"a"
        assert (here / "b").is_dir()
        return

    renameat2(here / "a", here / "b", RENAME_EXCHANGE)

    assert (here / "b").read_bytes() == b"a"
    assert (here / "a").is_dir()


def test_hard_links_are_one_file(here: Path) -> None:
    (here / "a").write_bytes(b"1")
    os.link(here / "a", here / "b")
    (here / "b").write_bytes(b"22")
    os.chmod(here / "b", 0o600)

    assert (here / "a").read_bytes() == b"22"
    assert (here / "a").stat() == (here / "b").stat()
    assert (here / "a").stat().st_nlink == 2
    os.unlink(here / "a")
    assert (here / "b").stat().st_nlink == 1


def test_symlinks_hold_any_target(here: Path) -> None:
    os.symlink("gone/away", here / "dangling")
    os.symlink(b"x" * 4000, os.fsencode(here / "long"))

    assert os.readlink(here / "dangling") == "gone/away"
    assert len(os.readlink(here / "long")) == 4000
    assert (here / "dangling").lstat().st_size == 9
    with pytest.raises(FileExistsError):
        os.open(here / "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_o_excl_creates_once(here: Path) -> None:
    os.close(os.open(here / "f", os.O_CREAT | os.O_EXCL))
    with pytest.raises(FileExistsError):
        os.open(here / "f", os.O_CREAT | os.O_EXCL)


def test_fifos_sockets_and_devices_exist_as_nodes(here: Path) -> None:
    os.mkfifo(here / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        previous = os.getcwd()
        os.chdir(here)  # a socket's path is short
        bound.bind("sock")
        os.chdir(previous)
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))

    assert stat.S_ISFIFO((here / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((here / "sock").stat().st_mode)
    assert (here / "null").stat().st_rdev == os.makedev(1, 3)
    with pytest.raises(PermissionError):  # nodev
        os.open(here / "null", os.O_RDWR)


def test_names_may_hold_255_bytes_of_anything(here: Path) -> None:
    directory = os.fsencode(here)
    names = [b"x" * 255, b"\xff\xfe not utf-8", b"new\nline", "überall".encode(), b" ", b"-rf"]
    for name in names:
        os.close(os.open(directory + b"/" + name, os.O_CREAT))

    assert sorted(os.listdir(directory)) == sorted(names)
    for length in (256, 1500):
        with pytest.raises(OSError) as caught:
            os.mkdir(directory + b"/" + b"x" * length)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_paths_may_be_longer_than_path_max(served: Served, here: Path) -> None:
    if served.driver == "fusepy":
        pytest.skip("libfuse's path interface ends at PATH_MAX")
    fd = os.open(here, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("n" * 100, dir_fd=fd)
        deeper = os.open("n" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("bottom", os.O_CREAT, dir_fd=fd))

    assert os.listdir(fd) == ["bottom"]
    os.close(fd)


# ---------------------------------------------------------------- directories


def test_a_listing_gives_each_name_once_while_others_come_and_go(
    served: Served, here: Path
) -> None:
    count = 1_000 if isinstance(served, Mounted) else 200
    staying = {f"stays-{n}" for n in range(count)}
    for name in staying:
        os.mknod(here / name)
        os.mknod(here / f"goes-{name}")
    seen: list[str] = []
    with os.scandir(here) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 10 == 0:
                os.mknod(here / f"comes-{number}")
                (here / f"goes-stays-{number % count}").unlink(missing_ok=True)

    assert len(seen) == len(set(seen))
    assert staying <= set(seen)


def test_a_directory_emptied_while_listed_can_be_removed(here: Path) -> None:
    (here / "d").mkdir()
    for number in range(200):
        os.mknod(here / "d" / str(number))
    with os.scandir(here / "d") as entries:
        for entry in entries:
            os.unlink(entry.path)
    os.rmdir(here / "d")

    assert os.listdir(here) == []


def test_a_directory_can_go_with_a_file_of_it_still_open(served: Served, here: Path) -> None:
    (here / "d").mkdir()
    with open(here / "d" / "f", "w+b", buffering=0) as file:
        file.write(b"kept")
        os.unlink(here / "d" / "f")
        assert os.listdir(here / "d") == []
        os.rmdir(here / "d")

        assert os.pread(file.fileno(), 10, 0) == b"kept"
        if served.driver == "kernel":  # libfuse has no path for it any more
            assert os.fstat(file.fileno()).st_nlink == 0
    assert os.listdir(here) == []


def test_a_full_directory_is_not_removed(here: Path) -> None:
    (here / "d" / "e").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        os.rmdir(here / "d")

    assert caught.value.errno == errno.ENOTEMPTY


def test_references_come_back_when_files_are_deleted(served: Served, here: Path) -> None:
    if not isinstance(served, Mounted):
        pytest.skip("a filesystem in another process does not tell its references")
    before = served.filesystem.inode_count()
    for number in range(300):
        os.mknod(here / f"a-rather-long-name-so-that-not-all-fit-{number}")
    subprocess.run(["ls", "-l", here], stdout=subprocess.DEVNULL, check=True)
    for name in os.listdir(here):
        os.unlink(here / name)

    until(lambda: served.filesystem.inode_count() == before)


# ---------------------------------------------------------------- attributes


def test_times_are_kept_to_the_nanosecond(here: Path) -> None:
    (here / "f").write_bytes(b"")
    for atime, mtime in ((1_700_000_000_123_456_789, 1_111_111_111), (-5_500_000_001, 0)):
        os.utime(here / "f", ns=(atime, mtime))
        known = (here / "f").stat()
        assert (known.st_atime_ns, known.st_mtime_ns) == (atime, mtime)


def test_utimensat_sets_only_what_is_asked(here: Path) -> None:
    (here / "f").write_bytes(b"")
    os.utime(here / "f", ns=(1_000, 2_000))
    subprocess.run(["touch", "-a", "-d", "@5", here / "f"], check=True)
    known = (here / "f").stat()
    assert (known.st_atime_ns, known.st_mtime_ns) == (5_000_000_000, 2_000)

    subprocess.run(["touch", "-m", here / "f"], check=True)
    known = (here / "f").stat()
    assert known.st_atime_ns == 5_000_000_000
    assert known.st_mtime_ns == pytest.approx(known.st_ctime_ns, abs=10**9)


def test_mtime_is_that_of_the_write(here: Path) -> None:
    (here / "f").write_bytes(b"1")
    os.utime(here / "f", ns=(0, 0))
    with open(here / "f", "ab", buffering=0) as file:
        file.write(b"2")
        assert os.fstat(file.fileno()).st_mtime_ns > 10**18


def test_a_call_that_fails_leaves_ctime(here: Path) -> None:
    (here / "f").write_bytes(b"1")
    before = (here / "f").stat().st_ctime_ns
    with pytest.raises(OSError):
        os.rename(here / "f", here / "no" / "such")
    assert as_nobody("chmod", "777", here / "f") != 0

    assert (here / "f").stat().st_ctime_ns == before


def test_what_a_user_makes_is_the_users(here: Path) -> None:
    os.chmod(here, 0o777)
    assert as_nobody("touch", here / "f", umask=0o027) == 0
    assert as_nobody("mkdir", here / "d", umask=0o077) == 0
    assert as_nobody("mkfifo", here / "p", umask=0o002) == 0

    for name, mode in (("f", 0o640), ("d", 0o700), ("p", 0o664)):
        known = (here / name).stat()
        assert (known.st_uid, known.st_gid) == (NOBODY, NOBODY)
        assert stat.S_IMODE(known.st_mode) == mode


def test_a_setgid_directory_hands_its_group_on(here: Path) -> None:
    (here / "d").mkdir()
    os.chown(here / "d", -1, 4242)
    os.chmod(here / "d", 0o2777)
    assert as_nobody("touch", here / "d" / "f") == 0
    assert as_nobody("mkdir", here / "d" / "sub") == 0

    assert (here / "d" / "f").stat().st_gid == 4242
    assert (here / "d" / "sub").stat().st_gid == 4242
    assert (here / "d" / "sub").stat().st_mode & stat.S_ISGID


def test_mode_bits_are_enforced(here: Path) -> None:
    (here / "secret").write_bytes(b"")
    os.chmod(here / "secret", 0o600)
    os.chmod(here, 0o755)

    assert as_nobody("cat", here / "secret") != 0
    assert as_nobody("touch", here / "new") != 0
    assert as_nobody("rm", "-f", here / "secret") != 0
    os.chmod(here / "secret", 0o644)
    assert as_nobody("cat", here / "secret") == 0


def test_setuid_falls_when_another_writes_or_the_owner_changes(here: Path) -> None:
    os.chmod(here, 0o777)
    for name in ("written", "cut", "given"):
        (here / name).write_bytes(b"#!")
        os.chmod(here / name, 0o6777)
    assert as_nobody("sh", "-c", f"echo x >> {here}/written") == 0
    assert as_nobody("truncate", "-s", "1", here / "cut") == 0
    os.chown(here / "given", 1, 1)

    for name in ("written", "cut", "given"):
        assert stat.S_IMODE((here / name).stat().st_mode) == 0o777, name


def test_xattrs_are_set_listed_and_removed(here: Path) -> None:
    (here / "f").write_bytes(b"")
    os.setxattr(here / "f", "user.one", b"1")
    os.setxattr(here / "f", "user.big", b"\0" * 60_000)
    os.setxattr(here / "f", "user.empty", b"")

    assert sorted(os.listxattr(here / "f")) == ["user.big", "user.empty", "user.one"]
    assert os.getxattr(here / "f", "user.big") == b"\0" * 60_000
    assert os.getxattr(here / "f", "user.empty") == b""
    os.removexattr(here / "f", "user.one")
    for call, code in (
        (lambda: os.getxattr(here / "f", "user.one"), errno.ENODATA),
        (lambda: os.setxattr(here / "f", "user.one", b"", os.XATTR_REPLACE), errno.ENODATA),
        (lambda: os.setxattr(here / "f", "user.big", b"", os.XATTR_CREATE), errno.EEXIST),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == code


def test_statvfs_shows_the_space(here: Path) -> None:
    figures = os.statvfs(here)

    assert figures.f_blocks * figures.f_frsize >= figures.f_bavail * figures.f_frsize > 1 << 30
    assert figures.f_namemax == 255
