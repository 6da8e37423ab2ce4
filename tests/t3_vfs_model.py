"""The filesystem against dictionaries: two machines, crashes, bad nodes, a bad line.

Everything is compared after every step: names, attributes, bytes, open files, and at the end
all of it again from a machine that has no cache, every version of every name, and the
nameserver's own opinion. See `tests.harness.machines` for what the machines suffer.
"""

from __future__ import annotations

import copy
import os
import random
import stat
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)

from everfold import wire
from everfold.errors import EverfoldError, Kind
from mount.filesystem import Changes
from mount.policy import Policy
from tests.harness.dictfs import LONG_AGO, Thing
from tests.harness.machines import Handle, Machines
from tests.harness.world import ME

OFFSETS = st.sampled_from([0, 1, 7, 100, 4095, 4096, 70_000, 131_072])
LENGTHS = st.sampled_from([1, 3, 50, 4096, 5000, 100_000])
SEEDS = st.integers(0, 5)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o4755, 0o2755, 0o6711, 0])
TIMES = st.sampled_from([0, 1, 1_234_567_890_123_456_789, -5])
XATTRS = st.sampled_from([b"user.x", b"user.y"])
VALUES = st.sampled_from([b"", b"1", b"v" * 5000])
EXAMPLES = int(os.environ.get("EVERFOLD_SOAK_EXAMPLES", "60"))  # of 100 steps each
HUGE = 5 * 1024 * 1024
QUIET = Policy(change_deadline_s=20.0, poll_s=0.1, dirty_age_s=1e6, quiet_s=1e6)
BUSY = Policy(
    change_deadline_s=20.0,
    poll_s=0.1,
    dirty_age_s=0.01,
    quiet_s=0.02,
    dirty_max=150_000,
    scattered_min=3,
    gather_s=0.05,
)

pytestmark = pytest.mark.expects_warnings  # nodes and lines that are bad on purpose


def noise(seed: int, length: int) -> bytes:
    """Return bytes that look like a file's; seed 0: zeros, which are data all the same."""
    return random.Random(seed).randbytes(length) if seed else bytes(length)


class VfsMachine(Machines):
    """The steps; see the module's docstring."""

    policy = QUIET

    # ------------------------------------------------------------ names

    @rule(data=st.data(), mode=MODES, flags=st.sampled_from([0, os.O_EXCL, os.O_APPEND]))
    def create(self, data: st.DataObject, mode: int, flags: int) -> None:
        self._heal_unless_leased()
        parent, name = self._dir(data), self._name(data)
        there = parent.children.get(name)
        why = None
        if there is not None and flags & os.O_EXCL:
            why = Kind.EXISTS
        elif there is not None and not there.is_file:
            why = Kind.IS_DIR if there.is_dir else Kind.INVALID
        flags |= os.O_CREAT | os.O_RDWR
        made = self._try(lambda: self.vfs.create(parent.ino, name, mode, flags, ME), why)
        if made is None:
            return
        node, opened = made
        was_created = there is None
        if there is None:
            there = Thing(node.attr.ino, stat.S_IFREG | (mode & ~ME.umask))
            parent.children[name] = there
            parent.touched()
            there.journaled()
        self.handles[self.here].append(Handle(opened.fh, there, flags, was_created))

    @rule(data=st.data(), mode=MODES)
    def mknod(self, data: st.DataObject, mode: int) -> None:
        self._make(data, stat.S_IFREG | (mode & ~ME.umask), lambda p, n: (
            self.vfs.mknod(p, n, stat.S_IFREG | mode, 0, ME)))  # fmt: skip

    @rule(data=st.data(), mode=MODES)
    def mkdir(self, data: st.DataObject, mode: int) -> None:
        self._make(data, stat.S_IFDIR | (mode & ~ME.umask), lambda p, n: (
            self.vfs.mkdir(p, n, mode, ME)))  # fmt: skip

    @rule(data=st.data(), points_to=st.sampled_from([b"a", b"../c", b"x" * 300]))
    def symlink(self, data: st.DataObject, points_to: bytes) -> None:
        self._make(data, stat.S_IFLNK | 0o777, lambda p, n: (
            self.vfs.symlink(p, n, points_to, ME)), points_to)  # fmt: skip

    def _make(
        self, data: st.DataObject, mode: int, call: Callable[..., Any], target: bytes = b""
    ) -> None:
        self._heal_unless_leased()
        parent, name = self._dir(data), self._name(data)
        if stat.S_ISDIR(mode) and parent.mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        why = Kind.EXISTS if name in parent.children else None
        node = self._try(lambda: call(parent.ino, name), why)
        if node is not None:
            made = parent.children[name] = Thing(node.attr.ino, mode, target=target)
            made.journaled()
            parent.touched()

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        thing, parent, name = self._thing(data, lambda t: True), self._dir(data), self._name(data)
        if thing is None:
            return
        self._heal_unless_leased()
        why = Kind.EXISTS if name in parent.children else None
        why = Kind.NOT_PERMITTED if thing.is_dir else why
        if self._try(lambda: self.vfs.link(thing.ino, parent.ino, name), why) is not None:
            parent.children[name] = thing
            parent.touched()
            self.model.show(thing)

    @rule(data=st.data(), is_rmdir=st.booleans())
    def remove(self, data: st.DataObject, is_rmdir: bool) -> None:
        self._heal_unless_leased()
        parent, name = self._dir(data), self._name(data)
        thing = parent.children.get(name)
        why = self.model.why_not_remove(thing, is_rmdir)
        call = self.vfs.rmdir if is_rmdir else self.vfs.unlink
        self._try(lambda: call(parent.ino, name), why)
        if why is None and thing is not None:
            del parent.children[name]
            parent.touched()
            self._lost_name(thing)

    @rule(data=st.data(), flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, data: st.DataObject, flags: int) -> None:
        self._heal_unless_leased()
        parent, name = self._dir(data), self._name(data)
        above, new_name = self._dir(data), self._name(data)
        moved, target = parent.children.get(name), above.children.get(new_name)
        why = self.model.why_not_rename(moved, parent, target, above, flags)
        if Kind.INVALID in why:
            return  # a directory into itself: the kernel refuses that
        self._try(lambda: self.vfs.rename(parent.ino, name, above.ino, new_name, flags), why)
        if why or moved is target or moved is None:
            return
        if flags == 2 and target is not None:
            parent.children[name] = target
            self.model.show(target)
        else:
            del parent.children[name]
        above.children[new_name] = moved
        parent.touched()
        above.touched()
        if flags != 2 and target is not None:
            self._lost_name(target)
        self.model.show(moved)

    def _lost_name(self, thing: Thing) -> None:
        """What is open stays as it is, for each machine by itself from now on."""
        if thing.is_dir:
            self.model.forget_history(thing)
        if self.model.nlink(thing) or not thing.is_file:
            return
        for handles in self.handles.values():
            own = copy.copy(thing)
            for handle in handles:
                if handle.thing is thing:
                    handle.thing, handle.is_lost = own, True

    # ------------------------------------------------------------ open files

    @rule(data=st.data(), flags=st.sampled_from(
        [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC]
    ))  # fmt: skip
    def open(self, data: st.DataObject, flags: int) -> None:
        thing = self._thing(data, lambda t: True)
        if thing is None or len(self.handles[self.here]) > 6:
            return
        why = None if thing.is_file else Kind.IS_DIR if thing.is_dir else Kind.INVALID
        opened = self._try(lambda: self.vfs.open(thing.ino, flags), why)
        if opened is not None:
            if not self._is_open_here(thing):
                thing.journaled()
            if flags & os.O_TRUNC and thing.data:
                thing.resize(0)
            self.handles[self.here].append(Handle(opened.fh, thing, flags))

    def _is_open_here(self, thing: Thing) -> bool:
        return any(handle.thing is thing for handle in self.handles[self.here])

    @rule(data=st.data(), offset=OFFSETS, length=LENGTHS, seed=SEEDS, kill=st.booleans())
    def write(self, data: st.DataObject, offset: int, length: int, seed: int, kill: bool) -> None:
        self._write(self._handle(data), offset, noise(seed, length), kill)

    @precondition(lambda self: self.handles[self.here])
    @rule(data=st.data(), seed=st.integers(1, 2), rarely=st.integers(0, 9))
    def write_much(self, data: st.DataObject, seed: int, rarely: int) -> None:
        """More than a block, across a boundary of blocks."""
        if rarely == 0:
            self._write(self._handle(data), HUGE // 3, noise(seed, HUGE), False)

    def _write(self, handle: Handle | None, offset: int, text: bytes, kill: bool) -> None:
        if handle is None:
            return
        why = None if handle.is_writer else Kind.INVALID
        if self._try(lambda: self.vfs.write(handle.fh, offset, text, kill), why) is None:
            return
        thing = handle.thing
        if kill:
            thing.drop_privileges()
        thing.write(len(thing.data) if handle.flags & os.O_APPEND else offset, text)

    @rule(data=st.data(), size=OFFSETS)
    def truncate_open(self, data: st.DataObject, size: int) -> None:
        handle = self._handle(data, lambda h: h.is_writer)
        if handle is not None:
            self.vfs.setattr(handle.thing.ino, Changes(size=size), handle.fh, ME)
            handle.thing.resize(size)

    @rule(data=st.data(), size=OFFSETS)
    def truncate(self, data: st.DataObject, size: int) -> None:
        thing = self._thing(data, lambda t: t.is_file or t.is_dir)
        if thing is None:
            return
        why = Kind.IS_DIR if thing.is_dir else None
        change = Changes(size=size)
        if self._try(lambda: self.vfs.setattr(thing.ino, change, None, ME), why) is None:
            return
        before = thing.data
        thing.resize(size)
        if not any(h.thing is thing and h.is_writer for h in self.handles[self.here]):
            thing.journaled()
            if thing.data != before or not self._is_open_elsewhere(thing):
                self.model.saved(thing)

    @rule(data=st.data(), mode=st.sampled_from([0, 1, 3, 16, 17, 32]),
          offset=OFFSETS, length=LENGTHS)  # fmt: skip
    def fallocate(self, data: st.DataObject, mode: int, offset: int, length: int) -> None:
        handle = self._handle(data, lambda h: h.is_writer)
        if handle is None:
            return
        why = Kind.UNSUPPORTED if mode == 32 else None
        self._try(lambda: self.vfs.fallocate(handle.fh, mode, offset, length), why)
        thing = handle.thing
        if mode in (3, 16, 17):
            thing.zero(offset, length)
            thing.changed(thing.data)  # also when nothing was there
        if mode in (0, 16) and offset + length > thing.size:
            thing.resize(offset + length)

    @rule(data=st.data(), at=OFFSETS, to=OFFSETS, length=LENGTHS)
    def copy_range(self, data: st.DataObject, at: int, to: int, length: int) -> None:
        source, target = self._handle(data), self._handle(data, lambda h: h.is_writer)
        if source is None or target is None:
            return
        self._heal()
        n = min(length, source.thing.size - at)
        why = None
        if n > 0 and source.thing is target.thing and at < to + n and to < at + n:
            why = Kind.INVALID
        elif n > 0 and source.is_lost:
            why = Kind.CROSS_SPACE
        done = self._try(
            lambda: self.vfs.copy_file_range(source.fh, at, target.fh, to, length), why
        )
        if done is not None:
            assert done == max(n, 0)
        if n > 0 and why is None:
            source.thing.journaled()
            target.thing.write(to, source.thing.data[at : at + n])

    @rule(data=st.data())
    def fsync(self, data: st.DataObject) -> None:
        handle = self._handle(data)
        if handle is not None:
            self._heal()
            self.vfs.fsync(handle.fh, False)
            handle.thing.journaled()

    @rule()
    def syncfs(self) -> None:
        self._heal()
        self._sync(self.here)
        if not any(handle.is_lost for handle in self.handles[self.here]):
            assert self.client.core.staging.used_bytes == 0

    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        """A duplicate of the descriptor is closed."""
        handle = self._handle(data)
        if handle is not None:
            self.vfs.flush(handle.fh, 0)
            handle.thing.journaled()

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        handle = self._handle(data)
        if handle is not None:
            self._close(self.here, handle)

    @rule(data=st.data(), offset=OFFSETS)
    def seek(self, data: st.DataObject, offset: int) -> None:
        """What is not data is zeros, and data and holes take turns up to the end."""
        handle = self._handle(data)
        if handle is None:
            return
        text = handle.thing.data
        if offset >= len(text):
            self._try(lambda: self.vfs.lseek(handle.fh, offset, os.SEEK_DATA), Kind.NO_DATA)
            return
        at = offset
        while at < len(text):
            hole = self.vfs.lseek(handle.fh, at, os.SEEK_HOLE)
            assert at <= hole <= len(text)
            try:
                start = self.vfs.lseek(handle.fh, hole, os.SEEK_DATA) if hole < len(text) else hole
            except EverfoldError as err:
                assert err.kind is Kind.NO_DATA
                start = len(text)
            assert hole <= start
            assert not text[hole:start].strip(b"\0")
            at = max(start, at + 1) if hole == at else start

    # ------------------------------------------------------------ attributes

    @rule(data=st.data(), mode=MODES)
    def chmod(self, data: st.DataObject, mode: int) -> None:
        thing = self._thing(data, lambda t: not stat.S_ISLNK(t.mode))
        if thing is not None:
            attr = self.vfs.setattr(thing.ino, Changes(mode=mode), None, ME).attr
            thing.set_mode(mode)
            assert attr.mode == thing.mode

    @rule(data=st.data(), mode=MODES)
    def chmod_open(self, data: st.DataObject, mode: int) -> None:
        handle = self._handle(data)
        if handle is not None:
            self.vfs.setattr(handle.thing.ino, Changes(mode=mode), handle.fh, ME)
            handle.thing.set_mode(mode)

    @rule(data=st.data(), atime=st.none() | TIMES, mtime=st.none() | TIMES)
    def utimens(self, data: st.DataObject, atime: int | None, mtime: int | None) -> None:
        thing = self._thing(data, lambda t: True)
        if thing is None:
            return
        self.vfs.setattr(thing.ino, Changes(atime_ns=atime, mtime_ns=mtime), None, ME)
        thing.atime_ns = thing.atime_ns if atime is None else atime
        thing.mtime_ns = thing.mtime_ns if mtime is None else mtime

    @rule(data=st.data(), name=XATTRS, value=VALUES, flags=st.sampled_from([0, 0, 1, 2]))
    def setxattr(self, data: st.DataObject, name: bytes, value: bytes, flags: int) -> None:
        thing = self._thing(data, lambda t: True)
        if thing is None:
            return
        self._heal()
        why = Kind.EXISTS if flags == 1 and name in thing.xattrs else None
        why = Kind.NO_ATTR if flags == 2 and name not in thing.xattrs else why
        self._try(lambda: self.vfs.setxattr(thing.ino, name, value, flags), why)
        if why is None:
            thing.xattrs = {**thing.xattrs, name: value}

    @rule(data=st.data(), name=XATTRS)
    def removexattr(self, data: st.DataObject, name: bytes) -> None:
        thing = self._thing(data, lambda t: True)
        if thing is None:
            return
        self._heal()
        why = None if name in thing.xattrs else Kind.NO_ATTR
        self._try(lambda: self.vfs.removexattr(thing.ino, name), why)
        if why is None:
            thing.xattrs = {n: v for n, v in thing.xattrs.items() if n != name}

    # ------------------------------------------------------------ the past

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        """A name lists every content that was saved at it."""
        if self.model.shown:
            self._heal()
            key = data.draw(st.sampled_from(list(self.model.shown)), label="history of")
            self._check_history(self.client, *key)

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """Moving a version out of the past makes it the content of a name."""
        if not self.model.shown:
            return
        parent_ino, name = data.draw(st.sampled_from(list(self.model.shown)), label="history of")
        above, new_name = self._dir(data), self._name(data)
        there = above.children.get(new_name)
        if there is not None and (not there.is_file or self._is_open_elsewhere(there)):
            return
        self._heal()
        core = self.client.core
        self._sync(self.here)
        ask = wire.GetHistory(core.space, parent_ino, name)
        versions = core.names.history(ask).versions  # how many depends on when files were sent on
        version = versions[data.draw(st.integers(0, 99), label="version") % len(versions)]
        folder = self.vfs.lookup(parent_ino, b".versions").attr.ino
        text = self._read_version(self.client, parent_ino, name, version.number)
        typed = name + b"@v%d" % version.number
        self.vfs.rename(folder, typed, above.ino, new_name, 0)
        if there is None:
            attr = self.vfs.lookup(above.ino, new_name).attr
            there = above.children[new_name] = Thing(attr.ino, attr.mode)
            above.touched()
        there.data, there.mtime_ns, there.since_ns, there.is_written = text, None, LONG_AGO, True
        there.journaled()
        self.model.saved(there)


class BusyMachine(VfsMachine):
    """The same with mounts that send on what is dirty all the time."""

    policy = BUSY


def _run(machine: type[VfsMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            report_multiple_bugs=False,
            phases=set(Phase) - (set() if "SHRINK" in os.environ else {Phase.shrink}),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_the_filesystem_is_what_dictionaries_would_be() -> None:
    _run(VfsMachine, 8, 50)


def test_the_same_while_files_are_sent_on_at_any_moment() -> None:
    _run(BusyMachine, 4, 50)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [VfsMachine, BusyMachine])
def test_the_filesystem_is_a_dictionary_for_thousands_of_steps(machine: type[VfsMachine]) -> None:
    _run(machine, EXAMPLES, 100)
