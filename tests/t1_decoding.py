"""Decoding by many threads: of a type that is new to the process, and all at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from everfold import wire
from everfold.wire import codec

MANY_AT_ONCE = """
import sys, threading
import msgspec
from everfold import wire

sys.setswitchinterval(1e-6)
for _ in range(400):
    class Leaf(msgspec.Struct, array_like=True):
        number: int
        raw: bytes = b""

    class Branch(msgspec.Struct, array_like=True):
        leaves: list[Leaf]
        named: dict[str, Leaf]

    class Tree(msgspec.Struct, array_like=True):
        branches: list[Branch]
        top: Branch | None = None

    tree = Tree([Branch([Leaf(1)], {"a": Leaf(2)})])
    raw, all_there, read = wire.encode(tree), threading.Barrier(6), []

    def decode():
        all_there.wait()
        read.append(wire.decode(raw, Tree))

    threads = [threading.Thread(target=decode) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [tree] * 6
print("done")
"""


def test_threads_that_decode_a_new_type_at_once_do_not_end_the_process() -> None:
    """Without the lock this ends by SIGSEGV, in msgspec 0.22."""
    root = Path(__file__).resolve().parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", MANY_AT_ONCE], cwd=root, capture_output=True, text=True, timeout=120
    )

    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr[-2000:]


def test_what_calls_carry_is_known_before_the_first_thread() -> None:
    forms = {form for pair in wire.CALLS.values() for form in pair}

    assert forms <= codec._decoders.keys()
