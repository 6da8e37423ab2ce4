"""Programs that people use all day, at work in the folder."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.harness.folders import picture, run

pytestmark = pytest.mark.fuse

GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}


def git(repository: Path, *words: str | Path) -> str:
    return run("git", *words, cwd=repository, HOME=str(repository.parent), **GIT)


def test_git_keeps_a_repository_in_the_folder(here: Path) -> None:
    repository = here / "repository"
    ignored = shutil.ignore_patterns("__pycache__")
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(stdlib / "json", repository / "json", ignore=ignored)
    shutil.copytree(stdlib / "email", repository / "email", ignore=ignored)
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "everything")
    assert git(repository, "status", "--porcelain") == ""

    (repository / "json" / "decoder.py").write_text("# changed\n")
    (repository / "email" / "mime").rename(repository / "mime")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "changed")
    git(repository, "fsck", "--strict")
    git(repository, "gc", "-q", "--prune=now")
    git(repository, "fsck", "--strict")
    git(repository, "clone", "-q", repository, here / "clone")
    git(repository, "checkout", "-q", "HEAD~1")

    assert git(repository, "status", "--porcelain") == ""
    assert (repository / "json" / "decoder.py").read_text() != "# changed\n"
    assert (here / "clone" / "json" / "decoder.py").read_text() == "# changed\n"
    assert git(here / "clone", "status", "--porcelain") == ""
    git(here / "clone", "fsck", "--strict")


# ---------------------------------------------------------------- SQLite

_WRITER = """
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


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_an_sqlite_database_of_two_processes_stays_sound(here: Path, journal: str) -> None:
    path, count = here / "database", 25
    connection = sqlite3.connect(path)
    assert connection.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
    connection.executescript(
        "CREATE TABLE sum (total INTEGER); INSERT INTO sum VALUES (0);"
        "CREATE TABLE line (name TEXT, number INTEGER, filling TEXT)"
    )
    connection.close()
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, path, name, str(count)]) for name in "ab"
    ]
    assert [writer.wait(90) for writer in writers] == [0, 0]

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT total FROM sum").fetchone() == (2 * count,)
    rows = connection.execute("SELECT name, number FROM line ORDER BY name, number").fetchall()
    connection.close()
    assert rows == [(name, number) for name in "ab" for number in range(count)]


def test_a_transaction_that_was_rolled_back_leaves_nothing(here: Path) -> None:
    connection = sqlite3.connect(here / "database")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES (1)")
    connection.commit()
    connection.executemany("INSERT INTO t VALUES (?)", [("y" * 1000,)] * 3000)
    connection.rollback()

    assert connection.execute("SELECT * FROM t").fetchall() == [(1,)]
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


# ---------------------------------------------------------------- building

_MAKEFILE = """\
program: main.o greet.o
\t$(CC) -o $@ $^
%.o: %.c greet.h
\t$(CC) -c -o $@ $<
"""


@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("make"), reason="no compiler")
def test_a_c_project_is_built_and_only_rebuilt_where_it_changed(here: Path) -> None:
    (here / "Makefile").write_text(_MAKEFILE)
    (here / "greet.h").write_text("void greet(const char *name);\n")
    (here / "greet.c").write_text(
        '#include <stdio.h>\n#include "greet.h"\n'
        'void greet(const char *name) { printf("hello %s\\n", name); }\n'
    )
    (here / "main.c").write_text('#include "greet.h"\nint main(void) { greet("ann"); }\n')
    run("make", "CC=gcc", cwd=here)
    assert run(here / "program") == "hello ann\n"
    assert "up to date" in run("make", "CC=gcc", cwd=here)

    (here / "main.c").write_text('#include "greet.h"\nint main(void) { greet("bob"); }\n')
    again = run("make", "CC=gcc", cwd=here)
    assert "main.c" in again and "greet.c" not in again
    assert run(here / "program") == "hello bob\n"


def test_a_virtual_environment_lies_and_runs_in_the_folder(here: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", here / "venv")
    site = next((here / "venv" / "lib").glob("python*")) / "site-packages"
    shutil.copytree(Path(sysconfig.get_path("stdlib"), "json"), site / "ourjson")
    script = "import ourjson, sys; print(sys.prefix, ourjson.loads('[1, 2]'))"
    python = here / "venv" / "bin" / "python"

    assert run(python, "-c", script).split() == [str(here / "venv"), "[1,", "2]"]
    assert run(python, "-m", "compileall", "-q", site) == ""
    assert list((site / "ourjson" / "__pycache__").glob("decoder.*.pyc"))


def test_an_archive_is_made_and_unpacked_in_the_folder(here: Path) -> None:
    source = Path(sysconfig.get_path("stdlib"), "json")
    shutil.copytree(source, here / "json")
    for kind in ("zip", "gztar", "xztar"):
        archive = shutil.make_archive(str(here / "archive"), kind, here, "json")
        shutil.unpack_archive(archive, here / kind)

        contents = {name: seen[2:] for name, seen in picture(here / kind / "json").items()}
        assert contents == {name: seen[2:] for name, seen in picture(here / "json").items()}


def test_a_program_runs_from_the_folder_while_its_file_is_replaced(here: Path) -> None:
    shutil.copy("/bin/sleep", here / "program")
    with subprocess.Popen([here / "program", "60"]) as process:
        with pytest.raises(OSError, match="Text file busy"):
            (here / "program").open("r+b")
        shutil.copy("/bin/true", here / "draft")
        os.replace(here / "draft", here / "program")

        assert process.poll() is None
        process.kill()
    run(here / "program")
