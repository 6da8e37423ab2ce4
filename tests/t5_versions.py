"""What programs do to save, and what ``.versions`` shows afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.folders import Folder, run, versions

pytestmark = pytest.mark.fuse

SAVES = [b"first\n", b"second, which is longer\n", b"third\n"]
Save = Callable[[Path, bytes], None]

# ---------------------------------------------------------------- how programs save


def in_place(path: Path, content: bytes) -> None:
    """Open, truncate, write: a shell, many small programs, vim with backupcopy=yes."""
    path.write_bytes(content)


def by_temporary(path: Path, content: bytes) -> None:
    """Write another file and rename it over: most programs of today."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        shutil.copystat(path, draft)
    draft.rename(path)


def by_temporary_unsynced(path: Path, content: bytes) -> None:
    """The same in a hurry: nothing is synced before the rename."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_bytes(content)
    draft.rename(path)


def by_backup(path: Path, content: bytes) -> None:
    """Move the old file aside, create a new one, delete the old: vim with backupcopy=no."""
    backup = path.with_name(path.name + "~")
    if path.exists():
        path.rename(backup)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    backup.unlink(missing_ok=True)


def with_lock_file(path: Path, content: bytes) -> None:
    """A lock file beside it, a draft in the folder, renamed over: LibreOffice."""
    lock = path.with_name(f".~lock.{path.name}#")
    lock.write_text(",ann,laptop,,;")
    draft = path.with_name("lu31415.tmp")
    draft.touch()
    draft.write_bytes(content)
    draft.chmod(0o644)
    draft.rename(path)
    lock.unlink()


def by_link(path: Path, content: bytes) -> None:
    """Keep the old file under a backup name by a hard link, then rename over: emacs, git."""
    draft, backup = path.with_name("draft"), path.with_name("backup")
    draft.write_bytes(content)
    if path.exists():
        backup.unlink(missing_ok=True)
        os.link(path, backup)
    draft.rename(path)


@pytest.mark.parametrize(
    "save", [in_place, by_temporary, by_temporary_unsynced, by_backup, with_lock_file, by_link]
)
def test_every_saved_content_is_a_version_at_its_name_in_order(here: Path, save: Save) -> None:
    path = here / "report.odt"
    for content in SAVES:
        save(path, content)
        assert path.read_bytes() == content

    assert versions(path) == SAVES
    listed = sorted(os.listdir(here / ".versions" / "report.odt"))
    numbers = [int(name.split("_")[1].removeprefix("v")) for name in listed]
    assert numbers == sorted(set(numbers))
    assert all(name.endswith(".odt") for name in listed)


def test_programs_that_save_in_different_ways_share_one_history(here: Path) -> None:
    path, saved = here / "note.txt", []
    for number, save in enumerate([in_place, by_temporary, by_backup, with_lock_file, in_place]):
        saved.append(b"save %d\n" % number)
        save(path, saved[-1])

    assert versions(path) == saved


def test_sed_in_place_makes_versions(here: Path) -> None:
    path = here / "config"
    path.write_text("colour = red\n")
    run("sed", "-i", "s/red/green/", path)
    run("sed", "-i", "s/green/blue/", path)

    assert versions(path) == [b"colour = red\n", b"colour = green\n", b"colour = blue\n"]


@pytest.mark.skipif(not shutil.which("vim"), reason="vim is not installed")
@pytest.mark.parametrize("backupcopy", ["yes", "no", "auto"])
def test_vim_itself_makes_versions(here: Path, backupcopy: str) -> None:
    path = here / "text"
    path.write_text("one\n")
    for word in ("two", "three"):
        settings = f"set nocp backup wb backupcopy={backupcopy} backupdir=. swapfile directory=."
        run("vim", "-N", "-u", "NONE", "-es", "-c", settings, "-c", f"normal! ggcc{word}",
            "-c", "wq", path, cwd=here)  # fmt: skip

    assert versions(path) == [b"one\n", b"two\n", b"three\n"]


def test_a_file_that_stays_open_is_not_a_version_for_each_sync(here: Path) -> None:
    path = here / "database"
    with path.open("wb") as file:
        for number in range(20):
            file.write(b"%d" % number)
            file.flush()
            os.fsync(file.fileno())

    assert len(versions(path)) == 1


def test_an_empty_file_and_an_emptied_one_are_versions(here: Path) -> None:
    path = here / "f"
    path.touch()
    path.write_bytes(b"content")
    os.truncate(path, 0)

    assert versions(path) == [b"", b"content", b""]


# ---------------------------------------------------------------- what is shown


def test_versions_are_there_but_never_listed(here: Path) -> None:
    (here / "f").write_bytes(b"x")

    assert os.listdir(here) == ["f"]
    assert (here / ".versions").is_dir()
    assert run("find", here).split() == [str(here), str(here / "f")]
    assert os.listdir(here / ".versions") == ["f"]


def test_versions_are_there_at_any_depth(here: Path) -> None:
    deep = here / "a" / "b" / "c"
    deep.mkdir(parents=True)
    for content in SAVES:
        (deep / "f").write_bytes(content)

    assert versions(deep / "f") == SAVES


def test_a_version_has_the_time_and_size_that_the_file_had(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"old")
    old = path.stat()
    path.write_bytes(b"newer")
    past = here / ".versions" / "f@v1"

    assert past.stat().st_size == 3
    assert past.stat().st_mtime_ns == old.st_mtime_ns
    assert past.stat().st_mode & 0o222 == 0


def test_the_past_cannot_be_changed(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"kept")
    past = here / ".versions" / "f"
    listed = past / os.listdir(past)[0]
    attempts: list[Callable[[], object]] = [
        lambda: listed.write_bytes(b"x"),
        lambda: listed.unlink(),
        lambda: listed.chmod(0o777),
        lambda: os.truncate(listed, 0),
        lambda: os.utime(listed),
        lambda: (past / "new").touch(),
        lambda: (past / "new").mkdir(),
        lambda: os.rename(path, past / "new"),
        lambda: os.setxattr(listed, "user.x", b"x"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno in (errno.EROFS, errno.EPERM), attempt

    assert listed.read_bytes() == b"kept"
    for attempt in (lambda: (here / ".versions").rmdir(), lambda: (here / ".versions").mkdir()):
        with pytest.raises(OSError):
            attempt()


def test_names_that_never_were_have_no_history(here: Path) -> None:
    (here / "f").write_bytes(b"x")
    for name in ("never", "f@v7", "f@v0", "f/2020-01-01T00.00.00.000Z_v1_x"):
        assert not (here / ".versions" / name).exists(), name


def test_strange_names_have_a_history(here: Path) -> None:
    for name in (b"\xff\xfe.bin", b"new\nline", b"x" * 255, "überall.txt".encode(), b"a@v1", b"-"):
        path = Path(os.fsdecode(os.fsencode(here) + b"/" + name))
        path.write_bytes(b"1")
        path.write_bytes(b"22")

        assert versions(path) == [b"1", b"22"], name


def test_the_command_shows_what_the_folder_shows(live: Folder, here: Path) -> None:
    path = here / "f.txt"
    for content in SAVES:
        path.write_bytes(content)
    shown = versions(path)

    told = json.loads(live.cluster.tool("versions", str(path), "--json").stdout)
    assert [each["size"] for each in told] == [len(content) for content in shown]


# ---------------------------------------------------------------- coming back


def test_a_version_copied_out_is_the_content_and_a_new_version(here: Path) -> None:
    path = here / "f"
    for content in SAVES:
        path.write_bytes(content)
    run("cp", here / ".versions" / "f@v1", path)

    assert path.read_bytes() == SAVES[0]
    assert versions(path) == [*SAVES, SAVES[0]]


def test_a_version_moved_out_comes_back_and_stays_in_the_past(here: Path) -> None:
    path = here / "f"
    for content in SAVES:
        path.write_bytes(content)
    past = here / ".versions" / "f"
    run("mv", past / sorted(os.listdir(past))[0], path)

    assert path.read_bytes() == SAVES[0]
    assert versions(path) == [*SAVES, SAVES[0]]


def test_a_version_can_be_moved_to_another_name_and_folder(here: Path) -> None:
    (here / "f").write_bytes(b"old")
    (here / "f").write_bytes(b"new")
    (here / "d").mkdir()
    run("mv", here / ".versions" / "f@v1", here / "d" / "g")

    assert (here / "d" / "g").read_bytes() == b"old"
    assert (here / "f").read_bytes() == b"new"


@pytest.mark.parametrize("way", ["cp", "mv", "restore"])
def test_a_deleted_file_comes_back(live: Folder, here: Path, way: str) -> None:
    path = here / "f"
    path.write_bytes(b"precious")
    path.unlink()
    assert os.listdir(here / ".versions") == ["f"]
    if way == "restore":
        assert live.cluster.tool("restore", str(path), "--version", "1").returncode == 0
    else:
        run(way, here / ".versions" / "f@v1", path)

    assert path.read_bytes() == b"precious"


def test_a_renamed_file_leaves_its_past_at_both_names(here: Path) -> None:
    (here / "before").write_bytes(b"one")
    (here / "before").rename(here / "after")
    (here / "after").write_bytes(b"two")

    assert versions(here / "before") == [b"one"]
    assert versions(here / "after") == [b"one", b"two"]


def test_a_name_that_was_used_again_keeps_both_lives(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"first life")
    path.unlink()
    path.write_bytes(b"second life")

    assert versions(path) == [b"first life", b"second life"]
