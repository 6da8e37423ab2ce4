"""Two mounts of one space, driven step by step and compared with a dictionary after each.

One machine acts at a time; before the other acts, what was done is in the cluster and its feed
has heard of it, so every result is certain. `Machines` brings the machines, their faults and
the comparison; who inherits brings the steps.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import ROOT, Attr
from mount.client import Client
from mount.feed import wait_for_feed
from mount.policy import Policy
from tests.harness.dictfs import LONG_AGO, DictFs, Thing
from tests.harness.world import World

NAMES = [b"a", b"b", b"c.txt", b"d"]
CUT_S = 1.0  # a lease that is recalled meanwhile must not keep anybody waiting for long


@dataclass(eq=False)
class Handle:
    """An open file of a machine."""

    fh: int
    thing: Thing
    flags: int
    was_created: bool = False
    is_lost: bool = False  # no name leads to the file any more: what is done stays here

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<{self.fh} of {self.thing}, {self.flags:o}>")

    @property
    def is_writer(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class _Errors(logging.Handler):
    """Remembers what was logged as an error: nothing here may be."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] in ("mount", "nameserver", "everfold"):
            self.lines.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


class Machines(RuleBasedStateMachine):
    """See the module's docstring. `self.here` is the machine that acts."""

    policy = Policy()

    def __init__(self) -> None:
        super().__init__()
        self.errors = _Errors()
        logging.getLogger().addHandler(self.errors)
        self.folder = Path(tempfile.mkdtemp(prefix="everfold-vfs-"))
        self.world = World(self.folder)
        self.world.__enter__()
        self.model = DictFs()
        self.clients = {name: self.world.mount(name, self.policy) for name in ("a", "b")}
        self.handles: dict[str, list[Handle]] = {"a": [], "b": []}
        self.here = "a"
        self.listed: dict[tuple[int, bytes], dict[int, bytes]] = {}

    def teardown(self) -> None:
        try:
            self._at_the_end()
        finally:
            logging.getLogger().removeHandler(self.errors)
            self._heal()
            self.world.__exit__(None, None, None)
            shutil.rmtree(self.folder)

    def _at_the_end(self) -> None:
        self._heal()
        for name in ("a", "b"):
            self._act_on(name)
            for handle in list(self.handles[name]):
                self._close(name, handle)
        self._sync("a")
        self._sync("b")
        assert [c.core.staging.used_bytes for c in self.clients.values()] == [0, 0]
        fresh = self.world.mount("fresh", self.policy)
        self._compare_tree(fresh)
        for parent, name in self.model.shown:
            self._check_history(fresh, parent, name)
        self.world.repair()
        assert self.world.fsck() == []
        usage = self.world.service.tree.usage(wire.GetUsage(fresh.core.space))
        things = {id(thing): thing for _, _, thing in self.model.walk()}
        assert usage.live == sum(t.size for t in things.values() if t.is_file)
        assert usage.inodes == len(things) + 1

    # ------------------------------------------------------------ machines

    @property
    def client(self) -> Client:
        return self.clients[self.here]

    @property
    def vfs(self) -> Any:
        return self.client.vfs

    def _sync(self, name: str) -> None:
        self.clients[name].vfs.syncfs()
        for handle in self.handles[name]:
            if not handle.is_lost:
                handle.thing.journaled()

    def _act_on(self, name: str) -> None:
        """Let a machine act; it has heard of all that the other did."""
        if name == self.here:
            return
        self._heal()
        self._sync(self.here)
        self.here = name
        self._hear()

    def _hear(self) -> None:
        core = self.client.core
        seq = core.names.lookup(wire.Lookup(core.space, ROOT, b"x")).seq
        wait_for_feed(core, seq, 10.0)

    @property
    def line(self) -> Any:
        return self.world.lines[self.here]

    def _heal(self) -> None:
        for line in self.world.lines.values():
            line.cut_until = 0.0

    def _heal_unless_leased(self) -> None:
        """Names can be changed without the cluster only by who holds the write lease."""
        if not self.client.core.lease.held:
            self._heal()

    @rule(name=st.sampled_from(["a", "b"]))
    def switch(self, name: str) -> None:
        """The other machine goes on."""
        self._act_on(name)

    @rule()
    def cut(self) -> None:
        """No change reaches the nameserver until one must, or a while is over."""
        self.line.cut_until = time.monotonic() + CUT_S

    @rule(count=st.integers(1, 2))
    def lose_answers(self, count: int) -> None:
        """The next changes are done, and nobody hears of it."""
        self.line.answers_to_lose = count

    @rule(name=st.sampled_from(["dn1", "dn2", "dn3"]), is_liar=st.booleans())
    def node_goes_bad(self, name: str, is_liar: bool) -> None:
        """One node is away, or gives wrong bytes; the one before it is sound again."""
        for node in self.world.nodes.values():
            node.is_down = node.id == name and not is_liar
            node.is_lying = node.id == name and is_liar

    @rule()
    def nodes_are_sound(self) -> None:
        for node in self.world.nodes.values():
            node.is_down = node.is_lying = False
        self.world.repair()

    @rule()
    def remount(self) -> None:
        """Unmount in order, files open or not, and mount again."""
        self._heal()
        self._sync(self.here)
        assert self.client.close()
        self._begin_anew(is_crash=False)

    @rule()
    def crash(self) -> None:
        """The process dies; what it had acknowledged is there afterwards."""
        self.client.abandon()
        self._heal()
        self._begin_anew(is_crash=True)

    def _begin_anew(self, is_crash: bool) -> None:
        self.world.forget(self.client)
        lost, self.handles[self.here] = self.handles[self.here], []
        self.line.answers_to_lose = 0
        self.clients[self.here] = self.world.mount(self.here, self.policy)
        for thing in {id(h.thing): h.thing for h in lost if not h.is_lost}.values():
            if is_crash:
                self._find_out(thing)
            if not self._is_open_elsewhere(thing):
                self.model.saved(thing)

    def _find_out(self, thing: Thing) -> None:
        """Take over what became of a file that was open in the crash, if it may be that."""
        found = self._read_ino(self.client, thing)
        mode = self.vfs.getattr(thing.ino).attr.mode
        assert (found, mode) in [(thing.data, thing.mode), *thing.drafts], "an impossible state"
        if found != thing.data:
            thing.mtime_ns = None
        if len(thing.drafts) > 1:  # the last write may be one that was lost
            thing.since_ns = LONG_AGO
            thing.is_written = bool(found)
        thing.data, thing.mode = found, mode
        thing.journaled()

    def _is_open_elsewhere(self, thing: Thing) -> bool:
        return any(
            handle.thing is thing and handle.is_writer
            for handles in self.handles.values()
            for handle in handles
        )

    def _close(self, name: str, handle: Handle) -> None:
        vfs = self.clients[name].vfs
        if handle.is_writer:
            vfs.flush(handle.fh, 0)
        vfs.release(handle.fh, 0, False)
        self.handles[name].remove(handle)
        if handle.is_writer and not handle.is_lost:
            handle.thing.journaled()
            handle.thing.is_written |= handle.was_created  # an empty file is a version too
            if not self._is_open_elsewhere(handle.thing):
                self.model.saved(handle.thing)

    # ------------------------------------------------------------ drawing

    def _dir(self, data: st.DataObject) -> Thing:
        return data.draw(st.sampled_from(self.model.directories()), label="directory")

    def _name(self, data: st.DataObject) -> bytes:
        return data.draw(st.sampled_from(NAMES), label="name")

    def _things(self, wanted: Callable[[Thing], bool]) -> list[Thing]:
        return list({t.ino: t for _, _, t in self.model.walk() if wanted(t)}.values())

    def _thing(self, data: st.DataObject, wanted: Callable[[Thing], bool]) -> Thing | None:
        found = self._things(wanted)
        return data.draw(st.sampled_from(found), label="thing") if found else None

    def _handle(
        self, data: st.DataObject, wanted: Callable[[Handle], bool] = lambda h: True
    ) -> Handle | None:
        found = [handle for handle in self.handles[self.here] if wanted(handle)]
        return data.draw(st.sampled_from(found), label="handle") if found else None

    def _try(self, call: Callable[[], Any], why_not: set[Kind] | Kind | None) -> Any:
        """Call; the failure must be (one of) the expected, or there must be none."""
        expected = why_not if isinstance(why_not, set) else {why_not} - {None}
        try:
            answer = call()
        except EverfoldError as err:
            assert err.kind in expected, f"{err.kind}: {err}, expected {expected}"
            return None
        assert not expected, f"done, expected {expected}"
        return answer

    # ------------------------------------------------------------ the past

    def _read_version(self, client: Client, parent: int, name: bytes, number: int) -> bytes:
        vfs = client.vfs
        folder = vfs.lookup(parent, b".versions").attr.ino
        return self._read(client, vfs.lookup(folder, name + b"@v%d" % number).attr.ino)

    def _check_history(self, client: Client, parent: int, name: bytes) -> None:
        vfs = client.vfs
        folder = vfs.lookup(vfs.lookup(parent, b".versions").attr.ino, name).attr.ino
        fh = vfs.opendir(folder)
        items = [i for i in vfs.readdir(fh, 0, 10_000, False) if i.name not in (b".", b"..")]
        vfs.releasedir(fh)
        contents = {}
        numbers = []
        for item in items:
            assert b"-conflict" not in item.name, "nobody worked at the same time"
            numbers.append(int(item.name.split(b"_")[1][1:]))
            contents[numbers[-1]] = self._read(client, vfs.lookup(folder, item.name).attr.ino)
        assert numbers == sorted(set(numbers)), "numbers rise and are unique"
        missing = [len(t) for t in self.model.shown[parent, name] if t not in contents.values()]
        assert not missing, f"{name!r} in {parent} lacks contents of sizes {missing}"
        core = client.core
        known = self.listed.setdefault((parent, name), {})
        for number, text in known.items():
            assert contents.get(number) == text, "a sealed version stays what it was"
        versions = core.names.history(wire.GetHistory(core.space, parent, name)).versions
        known |= {v.number: contents[v.number] for v in versions if v.sealed}

    # ------------------------------------------------------------ comparing

    @invariant()
    def the_tree_is_that_of_the_model(self) -> None:
        assert not self.errors.lines, self.errors.lines
        self._compare_tree(self.client)
        for handle in self.handles[self.here]:
            attr = self.vfs.getattr(handle.thing.ino, handle.fh).attr
            assert attr.size == len(handle.thing.data)
            assert attr.mode == handle.thing.mode
            if handle.is_lost:
                assert attr.nlink == 0
            assert self._read_fh(self.client, handle.fh) == handle.thing.data
        Thing.step_ns = time.time_ns()

    def _compare_tree(self, client: Client) -> None:
        self._compare(client, self.model.root, b"")
        for directory in self.model.directories():
            self._compare_directory(client, directory)

    def _compare_directory(self, client: Client, directory: Thing) -> None:
        vfs = client.vfs
        fh = vfs.opendir(directory.ino)
        items = list(vfs.readdir(fh, 0, 1000, True))
        vfs.releasedir(fh)
        assert [(i.name, i.ino) for i in items[:2]] == [
            (b".", directory.ino),
            (b"..", self.model.parent(directory).ino),
        ]
        listed = {item.name: item for item in items[2:]}
        assert listed.keys() == directory.children.keys()
        assert len(listed) == len(items) - 2
        for name, thing in directory.children.items():
            assert vfs.lookup(directory.ino, name).attr.ino == thing.ino
            assert listed[name].ino == thing.ino
            assert stat.S_IFMT(listed[name].mode) == stat.S_IFMT(thing.mode)
            self._compare(client, thing, name)
        for name in NAMES:
            if name not in directory.children:
                self._try(lambda n=name: vfs.lookup(directory.ino, n), Kind.NOT_FOUND)

    def _compare(self, client: Client, thing: Thing, name: bytes) -> None:
        attr: Attr = client.vfs.getattr(thing.ino).attr
        shown = (attr.mode, attr.nlink, attr.target)
        assert shown == (thing.mode, self.model.nlink(thing), thing.target), name
        assert thing.atime_ns in (None, attr.atime_ns), (name, thing)
        if thing.mtime_ns is None:
            assert attr.mtime_ns >= thing.since_ns, (name, thing)
        else:
            assert attr.mtime_ns == thing.mtime_ns, (name, thing)
        values = {n: client.vfs.getxattr(thing.ino, n) for n in client.vfs.listxattr(thing.ino)}
        assert values == thing.xattrs
        if thing.is_dir:
            return
        assert attr.size == thing.size, name
        if thing.is_file:
            text = self._read(client, thing.ino)
            assert text == thing.data, (name, len(text), len(thing.data))

    def _read_ino(self, client: Client, thing: Thing) -> bytes:
        return self._read(client, thing.ino)

    def _read(self, client: Client, ino: int) -> bytes:
        opened = client.vfs.open(ino, os.O_RDONLY)
        try:
            return self._read_fh(client, opened.fh)
        finally:
            client.vfs.release(opened.fh, 0, False)

    def _read_fh(self, client: Client, fh: int) -> bytes:
        text = b""
        while part := client.vfs.read(fh, len(text), 1 << 20):
            text += part
        return text
