"""A mount is a device: seen, revoked, and let in again after a new login."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import xattr

from everfold.errors import EverfoldError, Kind
from tests.harness import machine
from tests.harness.cluster import PASSWORD, running

pytestmark = pytest.mark.fuse
SOON_S = 8.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    with running(folder, "--mount", str(folder / "mnt")) as started:
        started.log_in()
        yield started


@pytest.fixture
def folder(cluster, tmp_path):
    """A mounted folder; its cache stays between mounts."""
    where = tmp_path / "folder"
    mounted(cluster, where)
    yield where
    cluster.tool("umount", str(where))
    machine.detach(machine.fuse_mounts(tmp_path))


def mounted(cluster, where):
    done = cluster.tool("mount", str(where))
    assert done.returncode == 0, done.stderr


def device_of(api, where):
    rows = api.call("GET", "/api/auth/devices")["devices"]
    return next(row for row in rows if row["name"].endswith(f":{where}"))


def figures(where):
    return json.loads(xattr.getxattr(str(where), "user.everfold.statistics"))


def refusal(act):
    """Return the errno that an act fails with, 0 when it does not."""
    try:
        act()
    except OSError as err:
        return err.errno
    return 0


def is_shut_out(where):
    return not figures(where)["let_in"]


def test_a_mount_is_in_the_list_of_devices_with_its_place_and_how_far_it_followed(cluster, folder):
    (folder / "a").write_text("a")
    os.sync()
    with cluster.api() as api:
        (login,) = [d for d in api.call("GET", "/api/auth/devices")["devices"]
                    if d["id"] == device_of(api, folder)["parent_id"]]  # fmt: skip

        row = device_of(api, folder)

    assert (row["type"], row["active"], row["revoked"]) == ("mount", True, False)
    assert row["mount_id"] == figures(folder)["mount"]
    assert row["behind"] >= 0
    assert login["type"] != "mount"


def test_a_revoked_mount_says_so_stops_writing_and_keeps_what_it_had_not_sent(cluster, folder):
    (folder / "seen").write_text("seen before")
    os.close(os.open(folder / "seen", os.O_RDONLY))
    held = os.open(folder / "seen", os.O_RDWR)
    os.fsync(held)
    for name in ("dn1", "dn2", "dn3"):
        cluster.signal(name, signal.SIGSTOP)
    try:
        (folder / "unsent").write_bytes(b"u" * 300_000)
        with cluster.api() as api:
            api.call("DELETE", f"/api/auth/devices/{device_of(api, folder)['id']}")
        machine.wait_until(lambda: is_shut_out(folder), SOON_S, "the mount has noticed")

        assert refusal(lambda: (folder / "new").write_text("x")) == errno.EACCES
        assert refusal(lambda: os.pwrite(held, b"more", 0)) == errno.EACCES
        assert refusal(lambda: os.pread(held, 4, 0)) == errno.EACCES
        assert refusal(lambda: (folder / "seen").read_text()) == errno.EACCES
        assert refusal(lambda: os.listdir(folder)) == errno.EACCES
        os.statvfs(folder)
        told = cluster.tool("status", str(folder)).stdout
        assert "revoked" in told
        assert figures(folder)["backlog"]["bytes"] == 300_000
    finally:
        for name in ("dn1", "dn2", "dn3"):
            cluster.signal(name, signal.SIGCONT)
        os.close(held)

    unmounted = cluster.tool("umount", str(folder))
    assert unmounted.returncode == 0, unmounted.stderr
    refused = cluster.tool("mount", str(folder))
    assert refused.returncode == 1
    cluster.log_in()  # later than the revocation: whoever knows the password
    mounted(cluster, folder)

    assert "not in the cluster" in unmounted.stderr
    assert "revoked" in refused.stderr
    assert (folder / "unsent").read_bytes() == b"u" * 300_000
    assert (folder / "seen").read_text() == "seen before"


def test_a_mount_goes_on_by_itself_after_a_new_login_when_the_password_was_changed(cluster, folder):
    changed = PASSWORD + " changed"
    embedded = cluster.folder / "mnt"
    token_file = Path(
        json.loads(xattr.getxattr(str(embedded), "user.everfold.mount"))["token_file"]
    )
    before = token_file.read_text()
    (folder / "before").write_text("before")
    with cluster.api() as api:
        form = {"current_password": PASSWORD, "new_password": changed}
        answer = api.call("PUT", "/api/auth/profile", form)
        machine.wait_until(lambda: is_shut_out(folder), SOON_S, "the mount has noticed")
        assert refusal(lambda: (folder / "before").write_text("no")) == errno.EACCES

        api.token = answer["token"]
        assert api.profile()["username"] == "admin"
        back = {"current_password": changed, "new_password": PASSWORD}
        api.call("PUT", "/api/auth/profile", back)
    cluster.log_in()
    machine.wait_until(lambda: figures(folder)["let_in"], SOON_S, "the mount is let in")
    machine.wait_until(lambda: token_file.read_text() != before, SOON_S, "`up` has a new token")
    machine.wait_until(lambda: figures(embedded)["let_in"], SOON_S, "the embedded folder, too")

    assert (folder / "before").read_text() == "before"
    with (folder / "after").open("w") as file:
        file.write("after")
        file.flush()
        os.fsync(file.fileno())
    with cluster.api() as api:
        row = device_of(api, folder)
    assert (row["active"], row["mount_id"]) == (True, figures(folder)["mount"])


def test_revoking_a_login_ends_what_was_mounted_with_it(cluster, folder):
    with cluster.api() as api:
        mount = device_of(api, folder)
        api.call("DELETE", f"/api/auth/devices/{mount['parent_id']}")
        machine.wait_until(lambda: is_shut_out(folder), SOON_S, "the mount has noticed")

        assert refusal(lambda: os.listdir(folder)) == errno.EACCES
        with pytest.raises(EverfoldError) as refused:
            api.call("DELETE", f"/api/auth/devices/{mount['id']}")
    cluster.log_in()

    assert refused.value.kind is Kind.NOT_FOUND
