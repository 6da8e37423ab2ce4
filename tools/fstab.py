"""`mount.everfold`: what mount(8) calls for fstab lines of type `everfold`.

    http://ns:5000   /home/ann/Everfold   everfold   _netdev,uid=1000,gid=1000   0 0

Install it as /sbin/mount.everfold. The source is the server, with ``#space`` when it is not the
user's own. Log in first as the user who mounts (root at boot), or name another `home=`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tools.__main__ import main as everfold

_TAKING_VALUE = {"uid": "--uid", "gid": "--gid", "driver": "--driver", "cache_dir": "--cache-dir"}


def translate(argv: Sequence[str]) -> list[str]:
    """Return the `everfold mount` command line for mount(8)'s; options for others are left out.

    ``home=DIR`` is not part of it: it becomes EVERFOLD_HOME.
    """
    parser = argparse.ArgumentParser(prog="mount.everfold")
    parser.add_argument("source", metavar="SERVER[#SPACE]")
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("-t", dest="type", help=argparse.SUPPRESS)
    parser.add_argument("-N", dest="namespace", help=argparse.SUPPRESS)
    for flag in "sfnv":
        parser.add_argument(f"-{flag}", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    server, _, space = args.source.partition("#")
    line = ["mount", args.dir, "--server", server]
    if space:
        line += ["--space", space]
    for option in ",".join(args.options).split(","):
        name, _, value = option.partition("=")
        if name in _TAKING_VALUE and value:
            line += [_TAKING_VALUE[name], value]
        elif name == "ro":
            line += ["-o", "ro"]
        elif name == "home" and value:
            os.environ["EVERFOLD_HOME"] = value
    return line


def main() -> int:
    """Mount, as mount(8) asks."""
    return everfold(translate(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
