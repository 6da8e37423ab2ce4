"""What an operation costs the nameserver as its tables grow: `python -m tools.benchscale`.

Fills the SQLite database of a nameserver with 10 k, 100 k, 1 M and 2 M inodes (directories of
1,000 files of one block with two copies) and prints, at each size, the microseconds of CPU of
an operation in the service itself, without HTTP. Filling takes a short way through plain SQL on the
real schema; what is measured goes the way of every call, with every fsync. Names and inodes
are drawn from the whole tree, so no page is warm by luck. Flat rows are the point.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from everfold import wire
from everfold.clock import SystemClock
from everfold.model import BlockId, DeviceId, Extent, Ino, MountId, NodeId
from nameserver.accounts import ADMIN
from nameserver.caller import Caller
from nameserver.db import Database
from nameserver.gate import Identity
from nameserver.policy import DAY_S, Policy
from nameserver.secretfile import Secrets
from nameserver.service import Service
from tools import command

SIZES: Final = (10_000, 100_000, 1_000_000, 2_000_000)
FILES: Final = 1000  # of a directory
STEP: Final = 100  # directories that one transaction of the filling makes
PAIRS: Final = 500  # create + write, in one batch
REPEATS: Final = 7
SINGLES: Final = 200
EVENTS: Final = 100  # that one reading of the feed brings
MOUNT: Final = MountId("bench")
READER: Final = MountId("reader")
NODES: Final = [NodeId("dn1"), NodeId("dn2"), NodeId("dn3")]

_NUMBERS: Final = (
    "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count) "
)
_OLD: Final = "ino >= :base AND ino < :base + :count AND space_id = :space"
FILL: Final = (
    f"INSERT INTO inode {_NUMBERS} SELECT :space, :base + i, :seq, NULL,"
    " iif(i % :span, 33188, 16877), iif(i % :span, 1, 2), 0, 0, 0, iif(i % :span, 4096, 0),"
    " iif(i % :span, 4096, 0), :now, :now, :now, :now, i % :span > 0, iif(i % :span, :seq, 0),"
    " x'', 0 FROM n",
    f"INSERT INTO entry {_NUMBERS} SELECT :space, iif(i % :span, :base + i - i % :span, 1),"
    " CAST(printf(iif(i % :span, 'f%07d', 'd%07d'), iif(i % :span, i % :span, :base + i)) AS BLOB),"
    " :seq, NULL, :base + i, 0, 0 FROM n",
    f"INSERT INTO version {_NUMBERS} SELECT :space, :base + i, 1, :seq, :now, 4096, :now, 33188,"
    " 'ann', 'laptop', 'fill', :base + i, 1, 0, 0, 0 FROM n WHERE i % :span",
    f"INSERT INTO extent {_NUMBERS} SELECT :space, :base + i, 0, :seq, NULL, 4096,"
    " randomblob(32), 0 FROM n WHERE i % :span",
    f"INSERT INTO block SELECT space_id, block, length, :now FROM extent WHERE {_OLD} ORDER BY 2",
    "INSERT INTO replica SELECT space_id, block, column1, 0 FROM extent,"
    f" (VALUES ('dn1'), ('dn2')) WHERE {_OLD} ORDER BY 2, 3",
    "INSERT INTO commit_log VALUES (:space, :seq, :now, 'ann', 'laptop', 'fill', x'90')",
    "UPDATE space SET seq = :seq, next_ino = :base + :count, inodes = inodes + :count,"
    " live_bytes = live_bytes + 4096 * :count WHERE id = :space",
)
"""A step of the filling: `count` inodes from `base` on, every `span`-th of them a directory."""


class Bench:
    """A nameserver in this process, its one mount, and what it has been filled with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.db = Database(f"sqlite:///{path}")
        policy = Policy(bcrypt_rounds=4, suspect_s=DAY_S, down_s=2 * DAY_S)
        self.service = Service(
            self.db, SystemClock(), policy, Secrets("k" * 32, "k" * 32, "k" * 32)
        )
        user = self.service.accounts.create("ann", "not kept anywhere", role=ADMIN)
        for node in NODES:
            self.service.beats.beat(
                wire.Heartbeat(node, f"http://{node}", "", "1", 1 << 50, 0, 1 << 50, 0, [], [], [])
            )
        who = Identity(user.id, "ann", ADMIN, DeviceId("d"), "laptop")
        self.caller: Caller = self.service.caller(who)
        session = self.caller.session(wire.Hello(MOUNT, "bench"))
        self.caller.session(wire.Hello(READER, "bench"))
        self.space = session.space
        self.epoch = self.caller.lease(wire.TakeLease(self.space, MOUNT)).epoch
        self.dirs: list[Ino] = []
        self._next_op = 1
        self._fresh: Iterator[int] = iter(())
        self._random = random.Random(7)

    # ------------------------------------------------------------ filling

    def fill(self, inodes: int) -> None:
        """Make the tree as large as that."""
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")  # only here
        connection.execute("PRAGMA cache_size = -200000")
        (have,) = connection.execute("SELECT inodes FROM space").fetchone()
        left = (inodes - have) // (FILES + 1)
        while left > 0:
            count = min(left, STEP)
            self._step(connection, count)
            left -= count
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def _step(self, connection: sqlite3.Connection, dirs: int) -> None:
        base, seq = connection.execute("SELECT next_ino, seq + 1 FROM space").fetchone()
        values = {
            "space": self.space, "base": base, "seq": seq, "span": FILES + 1,
            "count": dirs * (FILES + 1), "now": time.time_ns(),
        }  # fmt: skip
        connection.execute("BEGIN")
        for statement in FILL:
            connection.execute(statement, values)
        connection.execute("COMMIT")
        self.dirs += [Ino(base + number * (FILES + 1)) for number in range(dirs)]

    # ------------------------------------------------------------ asking

    def ino(self) -> Ino:
        """Return a number that no inode has."""
        for number in self._fresh:
            return Ino(number)
        got = self.caller.reserve(wire.Reserve(self.space, 100_000))
        self._fresh = iter(range(got.first, got.first + got.count))
        return self.ino()

    def any_dir(self) -> Ino:
        """Return a filled directory."""
        return self._random.choice(self.dirs)

    def any_name(self) -> bytes:
        """Return the name of one of the files of every filled directory."""
        return b"f%07d" % self._random.randint(1, FILES)

    def commit(
        self, ops: list[wire.AnyOp], stored: list[wire.Stored], mount: MountId = MOUNT
    ) -> None:
        """Commit a batch, every operation of which must be done."""
        ask = wire.Commit(self.space, mount, self._next_op, ops, stored, self.epoch)
        self._next_op += len(ops)
        for result in self.caller.commit(ask).results:
            result.check()

    def making(self, parent: Ino, count: int) -> tuple[list[wire.AnyOp], list[wire.Stored]]:
        """Return the operations that make files of one block."""
        ops: list[wire.AnyOp] = []
        stored = []
        now = time.time_ns()
        for _ in range(count):
            ino, block = self.ino(), BlockId(os.urandom(32))
            ops.append(wire.Make(parent, b"n%d" % ino, ino, 0o100644, 0, 0, now))
            ops.append(wire.Write(ino, 0, 4096, now, now, [Extent(0, 4096, block)]))
            stored.append(wire.Stored(block, 4096, NODES[:2]))
        return ops, stored


def timed(act: Callable[[], object], repeats: int, per: int = 1) -> float:
    """Return the CPU time of a good run, in microseconds for each of `per` things.

    The kernel's part is in it, waiting for the disk is not; of the runs the one at the first
    quarter, since a machine that does other things too makes some of them twice as long.
    """
    took = []
    for _ in range(repeats):
        began = time.process_time()
        act()
        took.append(time.process_time() - began)
    return sorted(took)[repeats // 4] * 1e6 / per


def measure(bench: Bench) -> dict[str, float]:
    """Return the microseconds of each operation at the present size."""
    batches = [bench.making(bench.any_dir(), PAIRS) for _ in range(REPEATS)]
    singles = [bench.making(bench.any_dir(), 1) for _ in range(SINGLES)]
    found = {
        "create + write, of a batch": timed(lambda: bench.commit(*batches.pop()), REPEATS, PAIRS),
        "create + write, alone": timed(lambda: bench.commit(*singles.pop()), SINGLES),
    }
    moved: list[tuple[Ino, bytes]] = list(
        {(bench.any_dir(), bench.any_name()) for _ in range(REPEATS * PAIRS * 2)}
    )[: REPEATS * PAIRS]
    now = time.time_ns()
    renames: list[wire.AnyOp] = [wire.Rename(d, n, d, b"r" + n, now) for d, n in moved]
    back: list[wire.AnyOp] = [wire.Rename(d, b"r" + n, d, n, now) for d, n in moved]
    each = len(moved) // REPEATS
    found["rename, of a batch"] = timed(
        lambda: bench.commit(_some(renames, each), []), REPEATS, each
    )
    bench.commit(back, [])
    found["unlink, of a batch"] = timed(unlinking(bench), REPEATS, PAIRS)
    return found | asked(bench)


def unlinking(bench: Bench) -> Callable[[], None]:
    """Make files all over the tree; return what unlinks a batch of them."""
    made = [bench.making(bench.any_dir(), 1) for _ in range(REPEATS * PAIRS)]
    gone: list[wire.AnyOp] = []
    for ops, _ in made:
        make = ops[0]
        if isinstance(make, wire.Make):
            gone.append(wire.Unlink(make.parent, make.name, make.ino, False, make.time_ns))
    bench.commit([op for ops, _ in made for op in ops], [s for _, each in made for s in each])
    return lambda: bench.commit(_some(gone, PAIRS), [])


def asked(bench: Bench) -> dict[str, float]:
    """Return the microseconds of each question."""
    space, caller = bench.space, bench.caller
    for _ in range(EVENTS):
        bench.commit(bench.making(bench.any_dir(), 1)[0][:1], [])
    seq = caller.attrs(wire.GetAttrs(space, [])).seq
    poll = wire.FeedPoll(space, READER, type(seq)(seq - EVENTS), 0.0)
    return {
        "lookup": timed(
            lambda: caller.lookup(wire.Lookup(space, bench.any_dir(), bench.any_name())), SINGLES
        ),
        f"an entry of a listing of {FILES}": timed(
            lambda: caller.listdir(wire.ListDir(space, bench.any_dir(), limit=FILES)),
            REPEATS * 3,
            FILES,
        ),
        "history of a file": timed(
            lambda: caller.history(wire.GetHistory(space, bench.any_dir(), bench.any_name())),
            SINGLES,
        ),
        f"an event of a feed of {EVENTS}": timed(lambda: caller.feed(poll), REPEATS * 3, EVENTS),
    }


def _some(ops: list[wire.AnyOp], count: int) -> list[wire.AnyOp]:
    taken = ops[-count:]
    del ops[-count:]
    return taken


def main(argv: list[str] | None = None) -> int:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchscale", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument("--inodes", type=int, default=SIZES[-1], metavar="N", help="at the end")
    parser.add_argument("--dir", metavar="D", help="where to make the temporary folder")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    sizes = [size for size in SIZES if size < args.inodes] + [args.inodes]
    measured: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="everfold-scale-", dir=args.dir) as made:
        bench = Bench(Path(made) / "nameserver.db")
        for size in sizes:
            bench.fill(size)
            measured[size] = measure(bench)
            command.say(f"{size} inodes: done")
        bench.db.close()
    if args.json:
        print(json.dumps(measured, indent=2))
    else:
        command.print_table(
            ("CPU MICROSECONDS OF", *(f"{size:,}" for size in sizes)),
            [
                (what, *(round(measured[size][what], 1) for size in sizes))
                for what in measured[sizes[0]]
            ],
        )
    return command.DONE


if __name__ == "__main__":
    sys.exit(main())
