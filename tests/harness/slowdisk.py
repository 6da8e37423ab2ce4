"""A disk whose every sync takes as long as a test says, for processes started with `SlowDisk.env`.

A library loaded before the others waits in fsync, fdatasync and syncfs, of SQLite's too. The
delay is in a file, so that it may change while they run; without it syncs are as they are.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

static void wait_a_while(void) {
    int ms = 0;
    FILE *file = fopen(DELAY_FILE, "r");
    if (file == NULL) return;
    if (fscanf(file, "%d", &ms) == 1 && ms > 0) usleep(1000 * ms);
    fclose(file);
}
#define SLOW(name) \
    int name(int fd) { \
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        wait_a_while(); \
        return real(fd); \
    }
SLOW(fsync)
SLOW(fdatasync)
SLOW(syncfs)
"""


class SlowDisk:
    """Compiled in `folder`; as quick as the real one until `slow`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._delay = folder / "delay"
        source, library = folder / "slow.c", folder / "slow.so"
        source.write_text(_SOURCE)
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "no C compiler"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", f'-DDELAY_FILE="{self._delay}"',
             "-o", library, source, "-ldl"],
            check=True,
        )  # fmt: skip
        self.env = {"LD_PRELOAD": str(library)}

    def slow(self, ms: int) -> None:
        """Let every sync take so much longer from now on; 0: none."""
        fresh = self._delay.with_suffix(".new")
        fresh.write_text(str(ms))
        fresh.rename(self._delay)
