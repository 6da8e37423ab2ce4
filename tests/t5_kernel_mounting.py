"""Mounting and unmounting: as root and as a user, after crashes, and with nonsense."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.errors import EverfoldError, Kind
from mount.kernel import mounting
from mount.kernel.mounting import MountOptions
from tests.harness.memfs import MemoryFilesystem
from tests.harness.mounts import DRIVERS, mounted, until

pytestmark = pytest.mark.fuse

NOBODY = 65534
BECOME_NOBODY = ("--setuid", str(NOBODY), "--setgid", str(NOBODY))  # options of nsenter
USERS = functools.partial(MemoryFilesystem, owner=NOBODY)


def options_of(mountpoint: Path) -> set[str]:
    wanted = str(mountpoint)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4].replace("\\040", " ") == wanted:
            return set(fields[5].split(",")) | set(fields[-1].split(","))
    return set()


@pytest.mark.parametrize("driver", DRIVERS)
def test_nothing_is_left_when_a_mount_ends(driver: str, tmp_path: Path) -> None:
    with mounted(MemoryFilesystem, driver, mountpoint=tmp_path) as mount:
        (tmp_path / "inside").write_bytes(b"")
        assert mounting.device_of(str(tmp_path)) is not None

    assert mounting.device_of(str(tmp_path)) is None
    assert os.listdir(tmp_path) == []
    assert mount.process.returncode == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_umount_by_anybody_ends_the_driver_in_order(driver: str, tmp_path: Path) -> None:
    with mounted(MemoryFilesystem, driver, mountpoint=tmp_path) as mount:
        subprocess.run(["umount", tmp_path], check=True)

        assert mount.process.wait(10) == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_dead_mountpoint_is_taken_over(driver: str, tmp_path: Path) -> None:
    with mounted(MemoryFilesystem, driver, mountpoint=tmp_path) as dying:
        (tmp_path / "before").write_bytes(b"")
        dying.kill()
        with pytest.raises(OSError) as caught:
            os.listdir(tmp_path)
        assert caught.value.errno == errno.ENOTCONN

        with mounted(MemoryFilesystem, driver, mountpoint=tmp_path):
            (tmp_path / "after").write_bytes(b"alive")
            assert os.listdir(tmp_path) == ["after"]

    assert mounting.device_of(str(tmp_path)) is None


def test_programs_inside_a_mount_that_died_get_an_error_not_a_hang(tmp_path: Path) -> None:
    with mounted(MemoryFilesystem, mountpoint=tmp_path) as dying:
        held = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
        dying.kill()
        with pytest.raises(OSError) as caught:
            os.write(held, b"lost")
        with pytest.raises(OSError):
            os.close(held)

    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mount_in_use_is_busy_unless_lazy(driver: str, tmp_path: Path) -> None:
    with mounted(MemoryFilesystem, driver, mountpoint=tmp_path) as mount:
        with open(tmp_path / "f", "w+b", buffering=0) as held:
            with pytest.raises(EverfoldError) as caught:
                mount.mount.unmount()
            assert caught.value.kind is Kind.BUSY
            held.write(b"still served")
            mount.mount.unmount(True)
            assert mounting.device_of(str(tmp_path)) is None
            assert os.pread(held.fileno(), 100, 0) == b"still served"

        assert mount.process.wait(10) == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_read_only_mount_refuses_writers(driver: str) -> None:
    options = MountOptions(read_only=True)
    with mounted(MemoryFilesystem, driver, options=options) as mount:
        with pytest.raises(OSError) as caught:
            (mount.path / "f").write_bytes(b"")

        assert caught.value.errno == errno.EROFS
        assert os.listdir(mount.path) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mount_is_nosuid_and_nodev_unless_asked_otherwise(driver: str) -> None:
    with mounted(MemoryFilesystem, driver) as mount:
        assert {"nosuid", "nodev", "allow_other", "default_permissions"} <= options_of(mount.path)
    options = MountOptions(allow_other=False, extra=("suid", "dev", "noexec"))
    with mounted(MemoryFilesystem, driver, options=options) as mount:
        known = options_of(mount.path)
        assert "noexec" in known
        assert not {"nosuid", "nodev", "allow_other"} & known


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mount_says_what_it_is(driver: str) -> None:
    options = MountOptions(fsname="team@cluster")
    with mounted(MemoryFilesystem, driver, options=options) as mount:
        lines = Path("/proc/self/mounts").read_text().splitlines()

        assert f"team@cluster {mount.path} fuse.everfold" in [
            " ".join(line.split()[:3]) for line in lines
        ]


@pytest.mark.parametrize("driver", DRIVERS)
def test_nonsense_mountpoints_are_refused(driver: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name, kind in (("missing", Kind.NOT_FOUND), ("file", Kind.NOT_DIR)):
        with (
            pytest.raises(EverfoldError) as caught,
            mounted(MemoryFilesystem, driver, mountpoint=tmp_path / name),
        ):
            pass
        assert caught.value.kind is kind


def test_a_mountpoint_may_have_blanks_in_its_name(tmp_path: Path) -> None:
    point = tmp_path / "my own\tfolder"
    point.mkdir()
    with mounted(MemoryFilesystem, mountpoint=point) as mount:
        (point / "f").write_bytes(b"1")
        mount.mount.unmount()

        assert mount.process.wait(10) == 0
    assert mounting.device_of(str(point)) is None


def test_the_kernel_reads_ahead_a_megabyte(tmp_path: Path) -> None:
    with mounted(MemoryFilesystem, mountpoint=tmp_path):
        device = mounting.device_of(str(tmp_path))
        knob = Path(f"/sys/class/bdi/{device}/read_ahead_kb")

        assert until(lambda: int(knob.read_text()) >= 1024)


def test_statistics_tell_what_was_asked(tmp_path: Path) -> None:
    with mounted(MemoryFilesystem, mountpoint=tmp_path) as mount:
        for number in range(10):
            (tmp_path / str(number)).write_bytes(b"x")
        costs = mount.mount.statistics()

        assert costs["CREATE"].count == costs["WRITE"].count == 10
        assert 0 < costs["CREATE"].max_us <= costs["CREATE"].total_us


class Place:
    """A mount namespace whose /dev/fuse anybody may open, as it is on a usual machine."""

    def __init__(self, folder: Path) -> None:
        node = folder / "fuse"
        os.mknod(node, stat.S_IFCHR, os.makedev(10, 229))
        os.chmod(node, 0o666)
        script = f"mount --bind {node} /dev/fuse && echo ready && exec sleep 1000"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.prefix = ("nsenter", "--mount", "--target", str(self._holder.pid))

    def as_nobody(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *BECOME_NOBODY, *command], capture_output=True, text=True, check=False
        )

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait(10)
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    for program in ("fusermount3", "unshare", "nsenter"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    made = Place(tmp_path)
    yield made
    made.close()


def test_a_user_mounts_through_fusermount3(place: Place) -> None:
    with mounted(USERS, uid=NOBODY, prefix=place.prefix) as mount:
        assert place.as_nobody("sh", "-c", f"echo mine > {mount.path}/f").returncode == 0
        assert place.as_nobody("cat", mount.path / "f").stdout == "mine\n"
        listed = place.as_nobody("cat", "/proc/self/mountinfo").stdout
        roots = subprocess.run([*place.prefix, "ls", mount.path], capture_output=True, check=False)

        assert f"{mount.path} rw,nosuid,nodev" in listed
        assert f"user_id={NOBODY},group_id={NOBODY},default_permissions" in listed
        assert roots.returncode != 0  # not even root looks into it
        mount.mount.unmount()
        assert mount.process.wait(10) == 0


def test_a_user_takes_over_the_mountpoint_of_a_driver_that_died(place: Place) -> None:
    with mounted(USERS, uid=NOBODY, prefix=place.prefix) as dying:
        assert place.as_nobody("touch", dying.path / "before").returncode == 0
        dying.kill()
        assert "not connected" in place.as_nobody("ls", dying.path).stderr
        with mounted(USERS, mountpoint=dying.path, uid=NOBODY, prefix=place.prefix) as mount:
            assert place.as_nobody("touch", mount.path / "after").returncode == 0
            assert place.as_nobody("ls", mount.path).stdout == "after\n"


def test_a_users_mount_in_use_is_busy_unless_lazy(place: Place) -> None:
    with mounted(USERS, uid=NOBODY, prefix=place.prefix) as mount:
        sitting = subprocess.Popen(
            [*place.prefix, *BECOME_NOBODY, "sh", "-c", f"cd {mount.path} && echo in && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with sitting:
            assert sitting.stdout is not None
            assert sitting.stdout.readline() == b"in\n"
            with pytest.raises(EverfoldError) as caught:
                mount.mount.unmount()
            mount.mount.unmount(True)
            sitting.kill()

        assert caught.value.kind is Kind.BUSY
        assert mount.process.wait(10) == 0
