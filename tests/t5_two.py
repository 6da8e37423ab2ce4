"""Two mounts of one space: what one does the other sees, and they exclude each other."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.folders import Folder, folder, picture, run, versions
from tests.harness.mounts import until
from tests.harness.programs import Program

pytestmark = pytest.mark.fuse

SOON_S = 5.0
ROUNDS = 60


class Pair(NamedTuple):
    """One directory, seen through two mounts."""

    a: Path
    b: Path


@pytest.fixture(scope="module")
def other(live: Folder) -> Iterator[Folder]:
    """A second mount of the space, over the same adapter."""
    with (
        tempfile.TemporaryDirectory(prefix="everfold-live-") as above,
        folder(live.cluster, Path(above, "second"), live.driver) as mount,
    ):
        yield mount


@pytest.fixture
def pair(other: Folder, here: Path) -> Pair:
    seen = other.path / here.name
    until(seen.exists, SOON_S)
    return Pair(here, seen)


@pytest.fixture(params=["forth", "back"])
def way(request: pytest.FixtureRequest, pair: Pair) -> Pair:
    """The pair in either direction."""
    return pair if request.param == "forth" else Pair(pair.b, pair.a)


def soon(is_so: Callable[[], object]) -> None:
    """Wait until something shows; a name that is not there yet is not an error."""

    def look() -> bool:
        try:
            return bool(is_so())
        except FileNotFoundError:
            return False

    until(look, SOON_S)


# ---------------------------------------------------------------- what one does, the other sees


def test_a_new_file_appears_with_its_content(way: Pair) -> None:
    assert not (way.b / "f").exists()
    (way.a / "f").write_bytes(b"content")

    soon(lambda: (way.b / "f").read_bytes() == b"content")
    assert os.listdir(way.b) == ["f"]


def test_new_content_of_the_same_size_appears(way: Pair) -> None:
    (way.a / "f").write_bytes(b"before")
    soon(lambda: (way.b / "f").read_bytes() == b"before")
    (way.a / "f").write_bytes(b"after!")

    soon(lambda: (way.b / "f").read_bytes() == b"after!")


def test_size_mode_and_times_appear(way: Pair) -> None:
    (way.a / "f").write_bytes(b"x")
    soon(lambda: (way.b / "f").stat().st_size == 1)
    with (way.a / "f").open("ab") as file:
        file.write(b"y" * 999)
    os.chmod(way.a / "f", 0o640)
    os.utime(way.a / "f", ns=(1, 1_234_567_890_123_456_789))

    soon(lambda: (way.b / "f").stat().st_size == 1000)
    soon(lambda: (way.b / "f").stat().st_mode & 0o777 == 0o640)
    soon(lambda: (way.b / "f").stat().st_mtime_ns == 1_234_567_890_123_456_789)


def test_a_rename_and_a_deletion_appear(way: Pair) -> None:
    (way.a / "old").write_bytes(b"x")
    soon((way.b / "old").exists)
    (way.a / "old").rename(way.a / "new")
    soon((way.b / "new").exists)
    soon(lambda: not (way.b / "old").exists())
    assert os.listdir(way.b) == ["new"]

    (way.a / "new").unlink()
    soon(lambda: not (way.b / "new").exists())
    assert os.listdir(way.b) == []


def test_a_whole_tree_appears_and_goes(way: Pair) -> None:
    assert os.listdir(way.b) == []
    for number in range(30):
        path = way.a / f"d{number % 3}" / f"e{number % 5}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    soon(lambda: picture(way.b) == picture(way.a))

    run("rm", "-r", *way.a.iterdir())
    soon(lambda: os.listdir(way.b) == [])


def test_a_directory_moved_in_one_is_found_in_the_other(way: Pair) -> None:
    (way.a / "from" / "deep").mkdir(parents=True)
    (way.a / "from" / "deep" / "f").write_bytes(b"x")
    (way.a / "to").mkdir()
    soon((way.b / "from" / "deep" / "f").exists)
    (way.a / "from" / "deep").rename(way.a / "to" / "moved")

    soon(lambda: (way.b / "to" / "moved" / "f").read_bytes() == b"x")
    soon(lambda: os.listdir(way.b / "from") == [])


def test_a_file_that_is_open_shows_new_content(way: Pair) -> None:
    (way.a / "f").write_bytes(b"before")
    soon(lambda: (way.b / "f").read_bytes() == b"before")
    with (way.b / "f").open("rb", buffering=0) as file:
        assert file.read() == b"before"
        (way.a / "f").write_bytes(b"after, longer")

        soon(lambda: os.pread(file.fileno(), 100, 0) == b"after, longer")
        soon(lambda: os.fstat(file.fileno()).st_size == 13)


def test_a_file_deleted_elsewhere_is_still_read_by_who_has_it_open(way: Pair) -> None:
    content = secrets.token_bytes(300_000)
    (way.a / "f").write_bytes(content)
    soon(lambda: (way.b / "f").stat().st_size == len(content))
    with (way.b / "f").open("rb", buffering=0) as file:
        (way.a / "f").unlink()
        soon(lambda: not (way.b / "f").exists())

        assert os.pread(file.fileno(), len(content), 0) == content


def test_a_log_that_grows_is_followed(way: Pair) -> None:
    seen = b""
    with (way.a / "log").open("wb", buffering=0) as writer:
        soon((way.b / "log").exists)
        with (way.b / "log").open("rb", buffering=0) as reader:
            for number in range(10):
                writer.write(b"line %d\n" % number)
                soon(lambda: reader.seek(0, os.SEEK_END) > len(seen))  # noqa: B023
                reader.seek(len(seen))
                seen += reader.read()

    assert seen == b"".join(b"line %d\n" % number for number in range(10))


def test_a_name_that_the_other_removed_is_made_anew_at_once(way: Pair) -> None:
    for number in range(20):
        (way.a / "f").write_bytes(b"%d" % number)
        soon(lambda: (way.b / "f").read_bytes() == b"%d" % number)  # noqa: B023
        (way.a / "f").unlink()
        soon(lambda: not (way.b / "f").exists())
        with (way.b / "f").open("ab") as file:
            file.write(b"x")
        soon(lambda: (way.a / "f").read_bytes() == b"x")
        (way.a / "f").unlink()
        soon(lambda: not (way.b / "f").exists())


# ---------------------------------------------------------------- exactly one

_RACER = """
import os, sys
folder = sys.argv[1]
for line in sys.stdin:
    kind, name = line.split()
    try:
        if kind == "create":
            os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif kind == "mkdir":
            os.mkdir(f"{folder}/{name}")
        elif kind == "rename":
            os.rename(f"{folder}/{name}", f"{folder}/{name}.{sys.argv[2]}")
        elif kind == "link":
            os.link(f"{folder}/source", f"{folder}/{name}")
        elif kind == "unlink":
            os.unlink(f"{folder}/{name}")
        print("won", flush=True)
    except (FileExistsError, FileNotFoundError):
        print("lost", flush=True)
"""


@pytest.mark.parametrize("kind", ["create", "mkdir", "rename", "link", "unlink"])
def test_a_race_is_won_exactly_once(pair: Pair, kind: str) -> None:
    names = [f"{kind}{number}" for number in range(ROUNDS)]
    (pair.a / "source").touch()
    if kind in ("rename", "unlink"):
        for name in names:
            (pair.a / name).touch()
        soon((pair.b / names[-1]).exists)
    soon((pair.b / "source").exists)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, where, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, where in zip("ab", pair, strict=True)
    ]
    outcomes = []
    for name in names:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{kind} {name}\n")
            racer.stdin.flush()
        outcomes.append(sorted(racer.stdout.readline() for racer in racers if racer.stdout))
    for racer in racers:
        racer.communicate(timeout=10)

    assert outcomes == [["lost\n", "won\n"]] * ROUNDS


# ---------------------------------------------------------------- locks

_TAKE = {
    "flock": "fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "fcntl": "fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)",
}


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_a_lock_excludes_the_other_mount_until_it_is_let_go(pair: Pair, kind: str) -> None:
    (pair.a / "f").write_bytes(b"x")
    soon((pair.b / "f").exists)
    first, second = Program(pair.a / "f"), Program(pair.b / "f")
    try:
        assert first.do(_TAKE[kind]) == "done"
        assert second.do(_TAKE[kind]) == "EAGAIN"
        second.start(_TAKE[kind].replace(" | fcntl.LOCK_NB", ""))
        assert second.answer(0.3) == ""
        assert first.do("f.close()") == "done"
        assert second.answer(SOON_S) == "done"
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_a_lock_falls_when_its_process_is_killed(pair: Pair, kind: str) -> None:
    (pair.a / "f").write_bytes(b"x")
    soon((pair.b / "f").exists)
    first, second = Program(pair.a / "f"), Program(pair.b / "f")
    try:
        assert first.do(_TAKE[kind]) == "done"
        second.start(_TAKE[kind].replace(" | fcntl.LOCK_NB", ""))
        first.kill()
        assert second.answer(SOON_S) == "done"
    finally:
        first.close()
        second.close()


def test_ranges_of_a_file_are_locked_apart(pair: Pair) -> None:
    (pair.a / "f").write_bytes(bytes(100))
    soon((pair.b / "f").exists)
    with (pair.a / "f").open("r+b") as first, (pair.b / "f").open("r+b") as second:
        fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
        with pytest.raises(OSError) as caught:
            fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 9)
        assert caught.value.errno in (errno.EAGAIN, errno.EACCES)
        fcntl.lockf(first, fcntl.LOCK_UN, 1, 9)
        fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 9)


_APPENDER = """
import fcntl, os, sys
path, name, count, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
lock = fcntl.flock if kind == "flock" else fcntl.lockf
for number in range(count):
    with open(path, "r+b") as file:
        lock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        file.write(f"{name} {number}\\n".encode())
"""


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_appends_under_a_lock_lose_nothing(pair: Pair, kind: str) -> None:
    (pair.a / "log").touch()
    soon((pair.b / "log").exists)
    writers = [
        subprocess.Popen([sys.executable, "-c", _APPENDER, where / "log", name, "20", kind])
        for name, where in zip("ab", pair, strict=True)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]

    expected = sorted(f"{name} {number}" for name in "ab" for number in range(20))
    for where in pair:
        soon(lambda: sorted((where / "log").read_text().splitlines()) == expected)  # noqa: B023


_COUNTER = """
import fcntl, sys, threading
path, count, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lock = fcntl.flock if kind == "flock" else fcntl.lockf
for number in range(count):
    with open(path, "r+b", buffering=0) as file:
        lock(file, fcntl.LOCK_EX)
        total = int(file.read())
        file.seek(0)
        file.write(b"%d" % (total + 1))
        if number % 2:
            lock(file, fcntl.LOCK_UN)
    if number % 40 == 20:
        threading.Event().wait(1.2)  # alone for a while, the other one grants locks itself
"""


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_counting_under_a_lock_loses_nothing(pair: Pair, kind: str) -> None:
    (pair.a / "total").write_bytes(b"0")
    soon((pair.b / "total").exists)
    counters = [
        subprocess.Popen([sys.executable, "-c", _COUNTER, where / "total", "130", kind])
        for where in pair
    ]
    assert [counter.wait(120) for counter in counters] == [0, 0]

    for where in pair:
        with (where / "total").open("rb") as file:
            (fcntl.flock if kind == "flock" else fcntl.lockf)(file, fcntl.LOCK_SH)
            assert file.read() == b"260"


# ---------------------------------------------------------------- both write

_SQLITE = """
import sqlite3, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in range(count):
    connection.execute("BEGIN IMMEDIATE")
    (total,) = connection.execute("SELECT total FROM sum").fetchone()
    connection.execute("UPDATE sum SET total = ?", (total + 1,))
    connection.execute("INSERT INTO line VALUES (?, ?, ?)", (name, number, "x" * 500))
    connection.execute("COMMIT")
"""


def test_an_sqlite_database_used_from_both_mounts_stays_sound(pair: Pair) -> None:
    count = 15
    connection = sqlite3.connect(pair.a / "database")
    connection.executescript(
        "CREATE TABLE sum (total INTEGER); INSERT INTO sum VALUES (0);"
        "CREATE TABLE line (name TEXT, number INTEGER, filling TEXT)"
    )
    connection.close()
    soon((pair.b / "database").exists)
    writers = [
        subprocess.Popen([sys.executable, "-c", _SQLITE, where / "database", name, str(count)])
        for name, where in zip("ab", pair, strict=True)
    ]
    assert [writer.wait(90) for writer in writers] == [0, 0]

    for where in pair:
        connection = sqlite3.connect(where / "database")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT total FROM sum").fetchone() == (2 * count,)
        rows = connection.execute("SELECT name, number FROM line ORDER BY 1, 2").fetchall()
        connection.close()
        assert rows == [(name, number) for name in "ab" for number in range(count)]


def test_both_saves_of_one_file_are_versions(pair: Pair) -> None:
    (pair.a / "f").write_bytes(b"common")
    soon(lambda: (pair.b / "f").read_bytes() == b"common")
    with (pair.a / "f").open("wb") as first, (pair.b / "f").open("wb") as second:
        first.write(b"by the first")
        second.write(b"by the second, longer")
    os.sync()

    # As on one machine, what is written first may be laid over what the other wrote, if that
    # is known by then; else each stands for itself.
    outcomes = {b"by the first", b"by the firstd, longer"}
    for where in pair:
        soon(lambda: {b"common", b"by the second, longer"} <= set(versions(where / "f")))  # noqa: B023
        soon(lambda: outcomes & set(versions(where / "f")))  # noqa: B023
    soon(lambda: (pair.a / "f").read_bytes() == (pair.b / "f").read_bytes())
    assert (pair.a / "f").read_bytes() in outcomes | {b"by the second, longer"}


def test_saves_by_rename_from_both_are_all_versions(pair: Pair) -> None:
    saved = set()
    for number in range(6):
        where = pair[number % 2]
        content = b"save %d" % number
        (where / f"draft{number}").write_bytes(content)
        (where / f"draft{number}").rename(where / "f")
        saved.add(content)
    os.sync()

    soon(lambda: set(versions(pair.a / "f")) == saved)
    soon(lambda: (pair.b / "f").read_bytes() == b"save 5")


def test_work_in_both_at_once_ends_in_the_same_tree(pair: Pair) -> None:
    script = """
import os, random, sys
folder, name = sys.argv[1], sys.argv[2]
choose = random.Random(name)
for number in range(60):
    path = f"{folder}/{choose.randrange(12)}"
    try:
        kind = choose.randrange(5)
        if kind < 2:
            with open(path, "wb") as file:
                file.write(f"{name} {number}".encode() * choose.randrange(1, 50))
        elif kind == 2:
            os.unlink(path)
        elif kind == 3:
            os.rename(path, f"{folder}/{choose.randrange(12)}")
        else:
            os.link(path, f"{folder}/{choose.randrange(12)}")
    except (FileNotFoundError, FileExistsError):
        pass
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", script, where, name])
        for name, where in zip("ab", pair, strict=True)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    os.sync()

    soon(lambda: picture(pair.a) == picture(pair.b))
