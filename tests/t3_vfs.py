"""The filesystem without a kernel: what a program sees, remounts, and the past."""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Ino
from mount.client import Client
from mount.core import Policy
from mount.filesystem import Changes
from tests.harness.world import ME, World, eventually, find, load, names, save, split


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def versions(client, path: str) -> list[bytes]:
    """Return the contents listed in ``.versions`` for a path, oldest first."""
    above, _, name = path.rpartition("/")
    folder = f"{above}/.versions/{name}"
    return [load(client, f"{folder}/{each}") for each in names(client, folder)]


def test_what_was_saved_is_read_back_before_and_after_a_remount(world: World) -> None:
    first = world.mount()
    data = os.urandom(300_000)
    save(first, "a.bin", data)

    assert load(first, "a.bin") == data
    assert first.close()
    world.forget(first)
    assert load(world.mount(), "a.bin") == data


def test_a_directory_lists_what_was_made_in_it(world: World) -> None:
    client = world.mount()
    client.vfs.mkdir(ROOT, b"d", 0o777, ME)
    for name in ("x", "y", "z"):
        save(client, f"d/{name}", name.encode())
    client.vfs.unlink(*split(client, "d/y"))

    assert sorted(names(client, "d")) == ["x", "z"]
    assert stat.S_IMODE(find(client, "d").mode) == 0o755
    with pytest.raises(EverfoldError) as err:
        client.vfs.rmdir(*split(client, "d"))
    assert err.value.kind is Kind.NOT_EMPTY


def test_a_write_in_the_middle_changes_only_those_bytes(world: World) -> None:
    client = world.mount()
    data = bytearray(os.urandom(200_000))
    save(client, "f", bytes(data))
    ino = find(client, "f").ino
    opened = client.vfs.open(ino, os.O_RDWR)
    client.vfs.write(opened.fh, 100_001, b"changed", False)
    data[100_001:100_008] = b"changed"

    assert load(client, "f") == data
    client.vfs.fsync(opened.fh, False)
    assert load(client, "f") == data
    client.vfs.release(opened.fh, 0, False)
    assert load(world.mount("b"), "f") == data


def test_a_file_written_here_and_there_gathers_until_it_is_synced(world: World) -> None:
    calm = Policy(
        poll_s=0.1,
        dirty_age_s=0.0,
        gather_s=1e6,
        dirty_max=64 * 1024,
        scattered_min=20,
        gather_alone_s=1e6,
    )
    client = world.mount("a", calm)
    data = bytearray(os.urandom(400 * 1024))
    save(client, "f", bytes(data))
    ino = find(client, "f").ino
    opened = client.vfs.open(ino, os.O_RDWR)
    client.vfs.fsync(opened.fh, False)
    content = client.core.contents[ino]
    number = content.last_number
    slots = random.Random(1).choices(range(0, len(data), 4096), k=200)
    with client.core.lock:  # nothing is sent on because it is old
        for slot in slots:
            data[slot : slot + 4096] = os.urandom(4096)
            client.vfs.write(opened.fh, slot, bytes(data[slot : slot + 4096]), False)
            if len(content.dirty) < calm.scattered_min:
                number = content.last_number
        assert content.dirty_runs() < len(content.dirty)
        assert content.last_number == number
    assert load(client, "f") == data
    client.vfs.fsync(opened.fh, False)

    assert content.last_number == number + 1
    assert not list(content.overlay)
    assert client.core.staging.used_bytes == 0
    client.vfs.release(opened.fh, 0, False)
    assert load(world.mount("b"), "f") == data


@pytest.mark.parametrize(
    "limit", [{"gather_s": 0.0}, {"gather_bytes": 1}, {"gather_runs": 0}, {"scattered_min": 10**6}]
)
def test_what_gathered_is_sent_when_it_is_old_or_much(world: World, limit: dict[str, int]) -> None:
    policy = Policy(
        poll_s=0.1,
        dirty_age_s=1e6,
        gather_s=1e6,
        dirty_max=64 * 1024,
        scattered_min=5,
        gather_alone_s=1e6,
    )
    client = world.mount("a", replace(policy, **limit))
    entry, opened = client.vfs.create(ROOT, b"f", 0o644, os.O_RDWR, ME)
    content = client.core.contents[entry.attr.ino]
    for slot in range(16):
        assert not content.last_write_number
        client.vfs.write(opened.fh, slot * 9000, b"x" * 4096, False)

    assert content.last_write_number
    client.vfs.release(opened.fh, 0, False)


def test_truncating_and_growing_again_shows_zeros(world: World) -> None:
    client = world.mount()
    save(client, "f", b"x" * 10_000)
    ino = find(client, "f").ino
    client.vfs.setattr(ino, Changes(size=100), None, ME)
    client.vfs.setattr(ino, Changes(size=5000), None, ME)

    assert load(client, "f") == b"x" * 100 + bytes(4900)
    client.vfs.syncfs()
    assert load(world.mount("b"), "f") == b"x" * 100 + bytes(4900)


def test_a_file_that_lost_its_name_while_open_is_still_read_and_written(world: World) -> None:
    client = world.mount()
    save(client, "f", b"before" * 1000)
    opened = client.vfs.open(find(client, "f").ino, os.O_RDWR)
    client.vfs.unlink(ROOT, b"f")

    client.vfs.write(opened.fh, 0, b"AFTER!", False)
    assert bytes(client.vfs.read(opened.fh, 0, 12)) == b"AFTER!before"
    assert names(client, "") == []
    client.vfs.release(opened.fh, 0, False)


def test_what_another_machine_does_shows_up_by_itself(world: World) -> None:
    a, b = world.mount("a"), world.mount("b")
    save(a, "f", b"one")
    assert eventually(lambda: names(b, "") == ["f"])
    assert eventually(lambda: load(b, "f") == b"one")

    save(a, "f", b"two, longer")
    assert eventually(lambda: load(b, "f") == b"two, longer")
    a.vfs.rename(ROOT, b"f", ROOT, b"g", 0)
    assert eventually(lambda: names(b, "") == ["g"])
    a.vfs.unlink(ROOT, b"g")
    assert eventually(lambda: names(b, "") == [])


@pytest.mark.parametrize("flags", [0, wire.RENAME_EXCHANGE])
def test_a_directory_that_another_machine_moved_is_in_its_new_place(
    world: World, flags: int
) -> None:
    def above(client: Client, ino: Ino) -> Ino:
        fh = client.vfs.opendir(ino)
        items = client.vfs.readdir(fh, 0, 9, True)
        client.vfs.releasedir(fh)
        return items[1].ino

    a, b = world.mount("a"), world.mount("b")
    moved = a.vfs.mkdir(ROOT, b"moved", 0o755, ME).attr.ino
    other = a.vfs.mkdir(ROOT, b"other", 0o755, ME).attr.ino
    inside = a.vfs.mkdir(other, b"inside", 0o755, ME).attr.ino
    a.vfs.syncfs()
    assert [above(each, moved) for each in (a, b)] == [ROOT, ROOT]
    assert [above(each, inside) for each in (a, b)] == [other, other]

    a.vfs.rename(ROOT, b"moved", other, b"inside" if flags else b"moved", flags)

    assert above(a, moved) == other
    assert eventually(lambda: above(b, moved) == other)
    assert above(a, inside) == above(b, inside) == (ROOT if flags else other)


def test_exclusive_creation_succeeds_on_one_machine_only(world: World) -> None:
    a, b = world.mount("a"), world.mount("b")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    for i in range(20):
        won = 0
        for client in (a, b) if i % 2 else (b, a):
            try:
                _, opened = client.vfs.create(ROOT, b"lock%d" % i, 0o600, flags, ME)
                client.vfs.release(opened.fh, 0, False)
                won += 1
            except EverfoldError as err:
                assert err.kind is Kind.EXISTS
        assert won == 1


def test_each_save_is_a_version_at_its_name(world: World) -> None:
    client = world.mount()
    for text in (b"one", b"two", b"three"):
        save(client, "f.txt", text)
        client.vfs.syncfs()

    assert versions(client, "f.txt") == [b"one", b"two", b"three"]
    listed = names(client, ".versions/f.txt")
    assert all(name.endswith(".txt") for name in listed)
    assert [name.split("_")[1] for name in listed] == ["v1", "v2", "v3"]
    assert ".versions" not in names(client, "")


@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_APPEND, 0])
def test_saves_are_versions_when_the_last_close_is_told_late(world: World, flags: int) -> None:
    client = world.mount()
    save(client, "f", b"0")
    ino = find(client, "f").ino
    told_late = []
    content = b"0"
    saved = [content]
    for number in b"123":
        opened = client.vfs.open(ino, os.O_WRONLY | flags)
        at = len(content) if flags & os.O_APPEND else 0
        client.vfs.write(opened.fh, at, b"%c" % number, False)
        client.vfs.flush(opened.fh, 0)
        told_late.append(opened.fh)
        content = content[:at] + b"%c" % number
        saved.append(content)
    client.vfs.setattr(ino, Changes(size=0), None, ME)
    saved.append(b"")
    for fh in told_late:
        client.vfs.release(fh, 0, False)

    assert versions(client, "f") == saved


def test_a_descriptor_that_is_still_written_to_is_one_save(world: World) -> None:
    client = world.mount()
    save(client, "f", b"0")
    ino = find(client, "f").ino
    one, two = (client.vfs.open(ino, os.O_WRONLY) for _ in range(2))
    client.vfs.write(one.fh, 0, b"1", False)
    client.vfs.flush(one.fh, 0)  # a duplicate of it was closed
    client.vfs.write(one.fh, 1, b"2", False)
    client.vfs.release(client.vfs.open(ino, os.O_WRONLY).fh, 0, False)
    client.vfs.write(two.fh, 2, b"3", False)
    for opened in (one, two):
        client.vfs.flush(opened.fh, 0)
        client.vfs.release(opened.fh, 0, False)

    assert versions(client, "f") == [b"0", b"123"]


def test_saving_by_rename_keeps_the_history_of_the_name(world: World) -> None:
    client = world.mount()
    for i in range(1, 4):
        save(client, "f.tmp", b"save %d" % i)
        client.vfs.rename(ROOT, b"f.tmp", ROOT, b"f", 0)

    assert versions(client, "f") == [b"save 1", b"save 2", b"save 3"]


def test_backup_and_create_keeps_the_history_of_the_name(world: World) -> None:
    client = world.mount()
    save(client, "f", b"save 1")
    for i in range(2, 4):
        client.vfs.rename(ROOT, b"f", ROOT, b"f~", 0)
        save(client, "f", b"save %d" % i)
        client.vfs.unlink(ROOT, b"f~")
    client.vfs.syncfs()

    assert versions(client, "f") == [b"save 1", b"save 2", b"save 3"]


def test_moving_a_version_out_restores_it_as_a_new_version(world: World) -> None:
    client = world.mount()
    for text in (b"old", b"new"):
        save(client, "f", text)
        client.vfs.syncfs()
    folder = find(client, ".versions").ino
    client.vfs.rename(folder, b"f@v1", ROOT, b"f", 0)

    assert load(client, "f") == b"old"
    assert versions(client, "f")[-1] == b"old"
    assert len(versions(client, "f")) == 3


def test_a_deleted_name_is_listed_and_comes_back(world: World) -> None:
    client = world.mount()
    save(client, "f", b"precious")
    client.vfs.unlink(ROOT, b"f")

    assert names(client, ".versions") == ["f"]
    folder = find(client, ".versions").ino
    client.vfs.rename(folder, b"f@first", ROOT, b"f", 0)
    assert load(client, "f") == b"precious"


def test_history_cannot_be_changed(world: World) -> None:
    client = world.mount()
    save(client, "f", b"text")
    client.vfs.syncfs()
    folder = find(client, ".versions/f").ino
    listed = os.fsencode(names(client, ".versions/f")[0])
    file = client.vfs.lookup(folder, listed).attr

    for attempt in (
        lambda: client.vfs.unlink(folder, listed),
        lambda: client.vfs.open(file.ino, os.O_WRONLY),
        lambda: client.vfs.setattr(file.ino, Changes(mode=0o777), None, ME),
        lambda: client.vfs.mkdir(folder, b"d", 0o777, ME),
    ):
        with pytest.raises(EverfoldError) as err:
            attempt()
        assert err.value.kind is Kind.READ_ONLY


def test_reads_and_writes_go_on_while_a_node_is_down(world: World) -> None:
    client = world.mount()
    save(client, "f", b"before" * 50_000)
    client.vfs.syncfs()
    world.nodes["dn1"].is_down = True
    save(client, "g", b"after" * 50_000)
    client.vfs.syncfs()

    fresh = world.mount("b")
    assert load(fresh, "f") == b"before" * 50_000
    assert load(fresh, "g") == b"after" * 50_000


@pytest.mark.expects_warnings
def test_a_lying_node_is_noticed_and_passed_over(world: World) -> None:
    client = world.mount()
    data = os.urandom(500_000)
    save(client, "f", data)
    client.vfs.syncfs()
    for liar in ("dn1", "dn2", "dn3"):
        for node in world.nodes.values():
            node.is_lying = node.id == liar
        assert load(world.mount(f"reader-of-{liar}"), "f") == data


@pytest.mark.expects_warnings
def test_a_block_that_no_node_has_is_an_error_never_zeros(world: World) -> None:
    client = world.mount()
    save(client, "f", os.urandom(100_000))
    client.vfs.syncfs()
    for node in world.nodes.values():
        for held in list(node.store.blocks()):
            node.store.delete(held.space, held.block)

    with pytest.raises(EverfoldError) as err:
        load(world.mount("b"), "f")
    assert err.value.kind.errno == 5


@pytest.mark.expects_warnings
def test_what_a_killed_mount_left_is_sent_by_the_next(world: World) -> None:
    client = world.mount()
    save(client, "early", b"early")
    client.vfs.syncfs()
    for node in world.nodes.values():
        node.is_down = True
    save_async(client, b"late", b"late bytes")
    client.abandon()
    world.forget(client)
    for node in world.nodes.values():
        node.is_down = False

    again = world.mount()
    assert load(again, "late") == b"late bytes"


def save_async(client, name: bytes, data: bytes) -> None:
    """Create a file, write it and close it, without waiting for the cluster."""
    _, opened = client.vfs.create(ROOT, name, 0o644, os.O_WRONLY | os.O_CREAT, ME)
    client.vfs.write(opened.fh, 0, data, False)
    client.vfs.flush(opened.fh, 0)
    client.vfs.release(opened.fh, 0, False)


def test_links_share_one_inode_and_its_attributes(world: World) -> None:
    client = world.mount()
    save(client, "f", b"text")
    ino = find(client, "f").ino
    client.vfs.link(ino, ROOT, b"g")

    assert find(client, "g").ino == ino
    assert find(client, "f").nlink == 2
    client.vfs.unlink(ROOT, b"f")
    assert find(client, "g").nlink == 1
    assert load(client, "g") == b"text"


def test_exchange_swaps_two_names(world: World) -> None:
    client = world.mount()
    save(client, "a", b"A")
    save(client, "b", b"B")
    client.vfs.rename(ROOT, b"a", ROOT, b"b", wire.RENAME_EXCHANGE)

    assert (load(client, "a"), load(client, "b")) == (b"B", b"A")


@pytest.mark.parametrize("is_changed_meanwhile", [False, True])
def test_a_file_without_a_name_keeps_its_bytes_when_another_machine_was_faster_with_the_name(
    world: World, monkeypatch: pytest.MonkeyPatch, is_changed_meanwhile: bool
) -> None:
    one, other = world.mount("a"), world.mount("b")
    node, opened = one.vfs.tmpfile(ROOT, 0o644, os.O_RDWR, ME)
    one.vfs.write(opened.fh, 0, b"text", False)
    one.vfs.write(opened.fh, 10, b"more", False)
    save(other, "f", b"theirs")
    expected = b"text" + bytes(6) + b"more"
    if is_changed_meanwhile:
        commit, writes = world.lines["a"].commit, [b"EXTs"]

        def commit_late(ask: wire.Commit) -> wire.Committed:
            while writes:
                one.vfs.write(opened.fh, 1, writes.pop(), False)
            return commit(ask)

        monkeypatch.setattr(world.lines["a"], "commit", commit_late)
        expected = b"tEXTs" + bytes(5) + b"more"
    with pytest.raises(EverfoldError) as refused:
        one.vfs.link(node.attr.ino, ROOT, b"f")

    assert refused.value.kind is Kind.EXISTS
    assert bytes(one.vfs.read(opened.fh, 0, 100)) == expected
    one.vfs.link(node.attr.ino, ROOT, b"g")
    one.vfs.fsync(opened.fh, False)
    assert load(other, "g") == expected
    assert load(other, "f") == b"theirs"
    one.vfs.release(opened.fh, 0, False)
    one.vfs.syncfs()
    assert eventually(lambda: one.core.staging.used_bytes == 0)


def test_a_file_without_a_name_appears_whole_when_it_is_linked(world: World) -> None:
    client = world.mount()
    node, opened = client.vfs.tmpfile(ROOT, 0o600, os.O_RDWR, ME)
    client.vfs.write(opened.fh, 0, b"whole", False)
    assert names(client, "") == []
    client.vfs.link(node.attr.ino, ROOT, b"f")

    assert load(client, "f") == b"whole"
    client.vfs.flush(opened.fh, 0)
    client.vfs.release(opened.fh, 0, False)
    client.vfs.syncfs()
    assert load(world.mount("b"), "f") == b"whole"


def test_a_copy_by_reference_moves_no_bytes(world: World) -> None:
    client = world.mount()
    data = os.urandom(400_000)
    save(client, "f", data)
    client.vfs.syncfs()
    held = sum(1 for node in world.nodes.values() for _ in node.store.blocks())
    source = client.vfs.open(find(client, "f").ino, os.O_RDONLY)
    _, target = client.vfs.create(ROOT, b"g", 0o644, os.O_RDWR | os.O_CREAT, ME)
    done = client.vfs.copy_file_range(source.fh, 0, target.fh, 0, len(data))
    client.vfs.fsync(target.fh, False)

    assert done == len(data)
    assert load(client, "g") == data
    assert sum(1 for node in world.nodes.values() for _ in node.store.blocks()) == held
    client.vfs.release(source.fh, 0, False)
    client.vfs.release(target.fh, 0, False)


def test_holes_are_found_and_read_as_zeros(world: World) -> None:
    client = world.mount()
    _, opened = client.vfs.create(ROOT, b"f", 0o644, os.O_RDWR | os.O_CREAT, ME)
    client.vfs.write(opened.fh, 1 << 20, b"data", False)
    client.vfs.fsync(opened.fh, False)

    assert client.vfs.lseek(opened.fh, 0, os.SEEK_DATA) == 1 << 20
    assert client.vfs.lseek(opened.fh, 0, os.SEEK_HOLE) == 0
    assert bytes(client.vfs.read(opened.fh, 0, 1000)) == bytes(1000)
    client.vfs.fallocate(opened.fh, 3, 1 << 20, 4)
    assert bytes(client.vfs.read(opened.fh, 1 << 20, 4)) == bytes(4)
    client.vfs.release(opened.fh, 0, False)


def test_times_are_kept_to_the_nanosecond(world: World) -> None:
    client = world.mount()
    save(client, "f", b"text")
    ino = find(client, "f").ino
    client.vfs.setattr(ino, Changes(mtime_ns=1_234_567_890_123_456_789), None, ME)
    client.vfs.syncfs()

    assert find(world.mount("b"), "f").mtime_ns == 1_234_567_890_123_456_789


def test_extended_attributes_are_kept_and_virtual_ones_answered(world: World) -> None:
    client = world.mount()
    save(client, "f", b"text")
    ino = find(client, "f").ino
    client.vfs.setxattr(ino, b"user.colour", b"blue", 0)
    client.vfs.syncfs()

    other = world.mount("b")
    assert other.vfs.getxattr(find(other, "f").ino, b"user.colour") == b"blue"
    assert client.vfs.listxattr(ino) == [b"user.colour"]
    assert client.vfs.getxattr(ino, b"user.everfold.version") == b"1"
    assert client.vfs.getxattr(ino, b"user.everfold.durable") == b"yes"


def test_caches_that_were_dropped_are_filled_again_from_the_cluster(world: World) -> None:
    client = world.mount("a")
    save(client, "f", b"text" * 50_000)
    opened = client.vfs.open(find(client, "f").ino, os.O_RDWR)
    client.vfs.write(opened.fh, 0, b"dirty", False)

    client.vfs.setxattr(ROOT, b"user.everfold.drop_caches", b"1", 0)

    assert client.core.blocks.cache.statistics().memory_bytes == 0
    assert load(client, "f") == b"dirty" + (b"text" * 50_000)[5:]
    client.vfs.release(opened.fh, 0, False)


def test_what_a_killed_process_had_synced_is_a_version_of_its_own(world: World) -> None:
    first = world.mount()
    _, opened = first.vfs.create(ROOT, b"f", 0o644, os.O_RDWR | os.O_CREAT, ME)
    first.vfs.write(opened.fh, 0, b"synced", False)
    first.vfs.fsync(opened.fh, False)
    first.abandon()
    world.forget(first)
    again = world.mount()
    save(again, "f", b"saved afterwards")

    assert versions(again, "f") == [b"synced", b"saved afterwards"]


@pytest.mark.expects_warnings
def test_a_file_that_the_cluster_does_not_know_yet_can_be_read(world: World) -> None:
    client = world.mount()
    save(client, "first", b"text")
    assert eventually(lambda: bool(client.core.lease.held))
    world.lines["a"].cut_until = time.monotonic() + 5.0
    ino = client.vfs.mknod(ROOT, b"f", 0o644, 0, ME).attr.ino
    opened = client.vfs.open(ino, os.O_RDWR)
    client.vfs.write(opened.fh, 10, b"text", False)

    assert bytes(client.vfs.read(opened.fh, 0, 100)) == bytes(10) + b"text"
    world.lines["a"].cut_until = 0.0
    client.vfs.release(opened.fh, 0, False)


@pytest.mark.expects_warnings
def test_a_new_empty_file_that_was_synced_is_in_the_cluster(world: World) -> None:
    client = world.mount()
    save(client, "first", b"text")
    assert eventually(lambda: bool(client.core.lease.held))
    world.lines["a"].cut_until = time.monotonic() + 0.5
    _, opened = client.vfs.create(ROOT, b"f", 0o644, os.O_RDWR | os.O_CREAT, ME)
    client.vfs.fsync(opened.fh, False)

    assert sorted(names(world.mount("b"), "")) == ["f", "first"]
    client.vfs.release(opened.fh, 0, False)


@pytest.mark.expects_warnings
def test_a_change_that_nobody_waited_for_shows_once_it_is_committed(world: World) -> None:
    client = world.mount("a", Policy(change_deadline_s=0.2, poll_s=0.1))
    assert names(client, "") == []
    world.lines["a"].cut_until = time.monotonic() + 60.0
    with pytest.raises(EverfoldError) as err:
        client.vfs.mkdir(ROOT, b"late", 0o755, ME)
    assert err.value.kind is Kind.TIMEOUT
    world.lines["a"].cut_until = 0.0

    assert eventually(lambda: names(client, "") == ["late"])
    assert find(client, "").nlink == 3


def test_a_file_that_another_machine_linked_unnoticed_is_not_taken_for_gone(world: World) -> None:
    a, b = world.mount("a"), world.mount("b")
    save(a, "f", b"before")
    a.vfs.syncfs()
    ino = find(b, "f").ino
    opened = a.vfs.open(ino, os.O_RDWR)
    a.vfs.feed.close()  # what the other does now is not heard of here
    b.vfs.link(ino, ROOT, b"g")
    a.vfs.unlink(ROOT, b"f")
    a.vfs.write(opened.fh, 0, b"AFTER!", False)
    a.vfs.fsync(opened.fh, False)

    assert eventually(lambda: load(b, "g") == b"AFTER!")
    assert names(b, "") == ["g"]
    a.vfs.release(opened.fh, 0, False)


@pytest.mark.expects_warnings
def test_each_save_that_a_killed_mount_left_is_a_version(world: World) -> None:
    client = world.mount()
    save(client, "f", b"save 0")
    client.vfs.syncfs()
    for node in world.nodes.values():
        node.is_down = True
    for number in range(1, 4):
        save(client, "f", b"save %d" % number)
    client.abandon()
    world.forget(client)
    for node in world.nodes.values():
        node.is_down = False

    assert versions(world.mount(), "f") == [b"save 0", b"save 1", b"save 2", b"save 3"]


@pytest.mark.expects_warnings
def test_a_file_that_another_machine_wrote_and_deleted_is_read_to_its_end(world: World) -> None:
    a, b = world.mount("a"), world.mount("b")
    save(a, "f", b"")
    a.vfs.syncfs()
    assert eventually(lambda: names(b, "") == ["f"])
    opened = b.vfs.open(find(b, "f").ino, os.O_RDONLY)
    save(a, "f", b"written after it was opened")
    a.vfs.syncfs()
    a.vfs.unlink(ROOT, b"f")
    a.vfs.syncfs()
    assert eventually(lambda: names(b, "") == [])

    assert bytes(b.vfs.read(opened.fh, 0, 100)) == b"written after it was opened"
    b.vfs.release(opened.fh, 0, False)


def test_a_time_set_right_after_a_save_stays_when_the_save_is_through(world: World) -> None:
    client = world.mount()
    for number in range(20):
        save(client, "f", b"text %d" % number)
        ino = find(client, "f").ino
        client.vfs.setattr(ino, Changes(mtime_ns=1000 + number), None, ME)
        client.vfs.syncfs()
        assert find(client, "f").mtime_ns == 1000 + number


def test_a_save_is_two_operations_the_name_and_the_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.files.HOLD_S", 60.0)
    client = world.mount()
    save(client, "other", b"")
    assert eventually(lambda: bool(client.core.lease.held))
    client.vfs.syncfs()
    before = client.core.shipper.shipped_ops
    save(client, "f", b"text")
    assert eventually(lambda: client.core.shipper.shipped_ops == before + 2)  # not held back

    client.vfs.syncfs()
    assert client.core.shipper.shipped_ops == before + 2
    assert versions(client, "f") == [b"text"]
