"""The `everfold` command: finds the verb, and turns what goes wrong into one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from everfold import __version__
from everfold.errors import EverfoldError
from tools import command

VERBS = (
    "up", "login", "mount", "umount", "versions", "restore", "status", "fsck", "bench", "node",
    "user", "team", "ready",
)  # fmt: skip


def parser(asked: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """Return the command line's parser, with these verbs (a verb costs its imports)."""
    whole = argparse.ArgumentParser(
        prog="everfold",
        description="A folder that never forgets and never loses.",
        epilog="`everfold VERB --help` has an example and the exit status of each.",
    )
    whole.add_argument("--version", action="version", version=f"everfold {__version__}")
    verbs = whole.add_subparsers(metavar="VERB", required=True)
    for name in asked:
        importlib.import_module(f"tools.{name}").add(verbs)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    asked = [name for name in words[:1] if name in VERBS]
    args = parser(asked or VERBS).parse_args(words)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except EverfoldError as err:
        command.say(f"everfold: {err}")
        return getattr(args, "failed", command.FAILED)
    except KeyboardInterrupt:
        return command.INTERRUPTED
    except BrokenPipeError:  # the reader had enough: `everfold … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return command.FAILED
    except OSError as err:
        command.say(f"everfold: {err.filename or 'system'}: {err.strerror or err}")
        return command.FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
