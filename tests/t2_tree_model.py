"""Random batches of two mounts against dictionaries: the present, every past, every history."""

from __future__ import annotations

import copy
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from everfold import wire
from everfold.blockid import name_of
from everfold.model import NOW, ROOT, Attr, Extent, Ino, Seq
from nameserver.db import Database
from nameserver.tree import ahead
from tests.harness.databases import PostgresServer
from tests.harness.databases import postgres_server as postgres_server
from tests.harness.trees import Stage, Writer

NAMES = [b"a", b"b", b"c"]
KINDS = [stat.S_IFREG | 0o644, stat.S_IFREG | 0o600, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777]


@dataclass
class Thing:
    """An inode, as the model sees it."""

    mode: int
    uid: int = 1000
    target: bytes = b""
    content: bytes = b""
    is_written: bool = False
    open_by: str = ""  # the mount that has the newest version open
    nlink: int = 1
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, int] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Model:
    """The simplest thing that is a tree."""

    def __init__(self) -> None:
        self.things: dict[int, Thing] = {ROOT: Thing(stat.S_IFDIR | 0o755, uid=0)}
        self.shown: dict[tuple[int, bytes], set[bytes]] = {}  # contents that a name must list

    def apply(self, op: wire.AnyOp, mount: str) -> bool:
        """Do what the operation says; tell whether it can be done."""
        done: bool = getattr(self, type(op).__name__.lower())(op, mount)
        return done

    def _dir(self, ino: int) -> Thing | None:
        found = self.things.get(ino)
        return found if found and found.is_dir else None

    def show(self, ino: int) -> None:
        """Note that every name of a file must list its content from now on."""
        thing = self.things.get(ino)
        if thing is None or not thing.is_written or thing.open_by:
            return
        for parent, directory in self.things.items():
            for name, child in directory.children.items():
                if child == ino:
                    self.shown.setdefault((parent, name), set()).add(thing.content)

    def make(self, op: wire.Make, mount: str) -> bool:
        parent = self._dir(op.parent)
        if parent is None or op.name in parent.children:
            return False
        self.things[op.ino] = Thing(op.mode, op.uid, op.target)
        parent.children[op.name] = op.ino
        return True

    def link(self, op: wire.Link, mount: str) -> bool:
        thing, parent = self.things.get(op.ino), self._dir(op.parent)
        if thing is None or parent is None or thing.is_dir or op.name in parent.children:
            return False
        thing.nlink += 1
        parent.children[op.name] = op.ino
        self.show(op.ino)
        return True

    def _let_go(self, parent: Thing, name: bytes) -> None:
        ino = parent.children[name]
        thing = self.things[ino]
        thing.open_by = ""
        self.show(ino)
        del parent.children[name]
        thing.nlink -= 1
        if thing.is_dir or not thing.nlink:
            del self.things[ino]

    def unlink(self, op: wire.Unlink, mount: str) -> bool:
        parent = self._dir(op.parent)
        if parent is None or op.name not in parent.children:
            return False
        thing = self.things[parent.children[op.name]]
        if thing.is_dir != op.is_rmdir or thing.children:
            return False
        self._let_go(parent, op.name)
        return True

    def rename(self, op: wire.Rename, mount: str) -> bool:
        old, new = self._dir(op.parent), self._dir(op.new_parent)
        if old is None or new is None or op.name not in old.children:
            return False
        ino, there = old.children[op.name], new.children.get(op.new_name)
        thing = self.things[ino]
        if op.flags == wire.RENAME_NOREPLACE and there is not None:
            return False
        if op.flags == wire.RENAME_EXCHANGE and there is None:
            return False
        if there == ino:
            return True
        if thing.is_dir and self._is_within(op.new_parent, ino):
            return False
        if there is not None:
            other = self.things[there]
            if op.flags == wire.RENAME_EXCHANGE:
                if other.is_dir and self._is_within(op.parent, there):
                    return False
                self._closed(ino, there)
                old.children[op.name], new.children[op.new_name] = there, ino
                self.show(ino)
                self.show(there)
                return True
            if thing.is_dir != other.is_dir or other.children:
                return False
            self._let_go(new, op.new_name)
        self._closed(ino)
        del old.children[op.name]
        new.children[op.new_name] = ino
        self.show(ino)
        return True

    def _closed(self, *inos: int) -> None:
        for ino in inos:
            self.things[ino].open_by = ""
            self.show(ino)

    def _is_within(self, ino: int, above: int) -> bool:
        return ino == above or self._reaches(above, ino)

    def _reaches(self, above: int, ino: int) -> bool:
        thing = self.things[above]
        return any(
            child == ino or (self.things[child].is_dir and self._reaches(child, ino))
            for child in thing.children.values()
        )

    def setattr(self, op: wire.SetAttr, mount: str) -> bool:
        thing = self.things.get(op.ino)
        if thing is None:
            return False
        if op.mode is not None:
            thing.mode = stat.S_IFMT(thing.mode) | op.mode
        if op.uid is not None:
            thing.uid = op.uid
        return True

    def setxattr(self, op: wire.SetXattr, mount: str) -> bool:
        thing = self.things.get(op.ino)
        if thing is None:
            return False
        thing.xattrs[op.name] = op.value
        return True

    def removexattr(self, op: wire.RemoveXattr, mount: str) -> bool:
        thing = self.things.get(op.ino)
        return thing is not None and thing.xattrs.pop(op.name, None) is not None

    def write(self, op: wire.Write, mount: str) -> bool:
        thing = self.things.get(op.ino)
        if thing is None or not stat.S_ISREG(thing.mode):
            return False
        content = bytearray(thing.content)
        if op.cut is not None:
            del content[op.cut :]
        ends = [e.end for e in op.extents] + [offset + n for offset, n in op.holes] + [op.size]
        content.extend(bytes(max(0, max(ends) - len(content))))
        for offset, length in op.holes:
            content[offset : offset + length] = bytes(length)
        for e in op.extents:
            content[e.offset : e.end] = BYTES[e.block][e.block_offset :][: e.length]
        del content[op.size :]
        is_same = thing.is_written and bytes(content) == thing.content
        thing.content = bytes(content)
        thing.is_written = True
        if op.is_sealed:
            thing.open_by = thing.open_by if is_same and thing.open_by != mount else ""
        elif not is_same:
            thing.open_by = mount
        self.show(op.ino)
        return True

    def seal(self, op: wire.Seal, mount: str) -> bool:
        thing = self.things.get(op.ino)
        if thing is None or not stat.S_ISREG(thing.mode):
            return False
        thing.is_written = True
        if thing.open_by == mount:
            thing.open_by = ""
        self.show(op.ino)
        return True


BYTES: dict[bytes, bytes] = {}
SnapshotRow = tuple[int, int, int, int, bytes, bytes, tuple[tuple[bytes, bytes], ...]]
Snapshot = dict[bytes, SnapshotRow]


def snapshot(model: Model, ino: int = ROOT, path: bytes = b"") -> Snapshot:
    """Return all that has history of a model's tree, by path."""
    found: Snapshot = {}
    for name, child in model.things[ino].children.items():
        thing = model.things[child]
        where = path + b"/" + name
        nlink = 0 if thing.is_dir else thing.nlink
        xattrs = tuple(sorted(thing.xattrs.items()))
        found[where] = (child, thing.mode, thing.uid, nlink, thing.content, thing.target, xattrs)
        if thing.is_dir:
            found |= snapshot(model, child, where)
    return found


def walked(stage: Stage, seq: Seq, ino: Ino = ROOT, path: bytes = b"") -> Snapshot:
    """Return the same of the real tree at a moment."""
    found: Snapshot = {}
    for entry in stage.tree.listdir(wire.ListDir(stage.space, ino, seq=seq)).entries:
        attr: Attr = entry.attr
        where = path + b"/" + entry.name
        content = stage.read(attr.ino, seq) if attr.is_file else b""
        if attr.is_file:
            ask = wire.GetExtents(stage.space, attr.ino, seq=seq)
            assert attr.allocated == sum(e.length for e in stage.tree.extents(ask).extents)
        xattrs = stage.tree.xattrs(wire.GetXattrs(stage.space, attr.ino, seq)).values
        assert attr.has_xattrs == bool(xattrs)
        nlink = 0 if attr.is_dir else attr.nlink
        found[where] = (attr.ino, attr.mode, attr.uid, nlink, content, attr.target,
                        tuple(sorted(xattrs.items())))  # fmt: skip
        if attr.is_dir:
            found |= walked(stage, seq, attr.ino, where)
    return found


class TreeMachine(RuleBasedStateMachine):
    """Batches of random operations; `open_database` is set per database."""

    open_database: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.db: Database = type(self).open_database()
        self.stage = Stage(self.db)
        self.stage.bytes = BYTES  # type: ignore[assignment]
        self.writers = [self.stage.writer("m1"), self.stage.writer("m2", "bob", "desktop")]
        self.model = Model()
        self.past: dict[int, Snapshot] = {0: {}}
        self.inos: list[int] = [ROOT]
        self.listed: dict[tuple[int, bytes], dict[int, bytes]] = {}

    def teardown(self) -> None:
        self.db.close()

    # ------------------------------------------------------------ operations

    def _ino(self, data: st.DataObject) -> Ino:
        return Ino(data.draw(st.sampled_from(self.inos), label="ino"))

    def _dir(self, data: st.DataObject) -> Ino:
        dirs = [ino for ino, thing in self.model.things.items() if thing.is_dir]
        return Ino(data.draw(st.sampled_from([*dirs, *dirs, self.inos[-1]]), label="dir"))

    def _name(self, data: st.DataObject) -> bytes:
        return data.draw(st.sampled_from(NAMES), label="name")

    def _make(self, data: st.DataObject, w: Writer) -> wire.AnyOp:
        mode = data.draw(st.sampled_from(KINDS))
        target = b"there" if stat.S_ISLNK(mode) else b""
        ino = w.fresh()
        self.inos.append(ino)
        return wire.Make(self._dir(data), self._name(data), ino, mode, 1000, 0, w.now,
                         target=target)  # fmt: skip

    def _write(self, data: st.DataObject, w: Writer) -> wire.AnyOp:
        offset = data.draw(st.integers(0, 12))
        text = data.draw(st.sampled_from([b"", b"x", b"yy", b"abcdefgh"]))
        extents = []
        if text:
            BYTES[name_of(text)] = text
            cut_off = data.draw(st.integers(0, len(text) - 1))
            extents = [Extent(offset, len(text) - cut_off, name_of(text), cut_off)]
        holes = data.draw(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 4)), max_size=1))
        cut = data.draw(st.none() | st.integers(0, 10))
        size = data.draw(st.integers(0, 16))
        return wire.Write(
            self._ino(data), data.draw(st.integers(0, 3)), size, w.now, w.now, extents, holes,
            cut, is_sealed=data.draw(st.booleans()),
        )  # fmt: skip

    def _operation(self, data: st.DataObject, w: Writer) -> wire.AnyOp:
        what = data.draw(
            st.sampled_from(
                ["make", "make", "write", "write", "write", "seal", "unlink", "rename", "rename",
                 "link", "setattr", "setxattr", "removexattr"]
            )
        )  # fmt: skip
        if what == "make":
            return self._make(data, w)
        if what == "write":
            return self._write(data, w)
        if what == "seal":
            return wire.Seal(self._ino(data), w.now)
        if what == "unlink":
            rmdir = data.draw(st.booleans())
            return wire.Unlink(self._dir(data), self._name(data), Ino(0), rmdir, w.now)
        if what == "rename":
            return wire.Rename(
                self._dir(data), self._name(data), self._dir(data), self._name(data), w.now,
                flags=data.draw(st.sampled_from([0, 0, 1, 2])),
            )  # fmt: skip
        if what == "link":
            return wire.Link(self._ino(data), self._dir(data), self._name(data), w.now)
        if what == "setattr":
            return wire.SetAttr(self._ino(data), w.now, mode=data.draw(st.sampled_from([0o600, 7])))
        if what == "setxattr":
            value = data.draw(st.sampled_from([b"1", b"2"]))
            return wire.SetXattr(self._ino(data), b"user.x", value, 0, w.now)
        return wire.RemoveXattr(self._ino(data), b"user.x", w.now)

    @rule(data=st.data(), who=st.integers(0, 1), count=st.integers(1, 6))
    def commit(self, data: st.DataObject, who: int, count: int) -> None:
        """Several operations, in one batch."""
        w = self.writers[who]
        ops, expected = [], []
        for _ in range(count):
            op = self._operation(data, w)
            ops.append(op)
            expected.append(self.model.apply(op, w.mount))
        stored = [
            wire.Stored(block, len(text), ["dn1", "dn2"])  # type: ignore[list-item]
            for block, text in BYTES.items()
        ]
        ask = w.ask(*ops, stored=stored)
        w.next_op += len(ops)
        answer = self.stage.tree.commit(ask, w.author)

        assert [not result.kind for result in answer.results] == expected, answer.results
        again = self.stage.tree.commit(ask, w.author)
        assert (again.seq, again.results) == (answer.seq, answer.results)
        assert walked(self.stage, NOW) == snapshot(self.model)
        self.past[answer.seq] = copy.deepcopy(snapshot(self.model))

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        """The tree as of any batch is what it was then."""
        seq = data.draw(st.sampled_from(sorted(self.past)))
        if seq:
            assert walked(self.stage, Seq(seq)) == self.past[seq]

    # ------------------------------------------------------------ what always holds

    @invariant()
    def every_name_keeps_its_history(self) -> None:
        for (parent, name), contents in self.model.shown.items():
            ask = wire.GetHistory(self.stage.space, Ino(parent), name)
            versions = self.stage.tree.history(ask).versions
            numbers = [v.number for v in versions]
            assert numbers == sorted(set(numbers)), "numbers rise and are unique"
            listed = {v.number: self.stage.read(v.ino, v.seq) for v in versions}
            assert contents <= set(listed.values())
            known = self.listed.setdefault((parent, name), {})
            for number, content in known.items():
                assert listed.get(number) == content, "a sealed version stays what it was"
            known |= {v.number: listed[v.number] for v in versions if v.sealed}
            self._check_current(parent, name, {v.number: listed[v.number]
                                               for v in versions if v.current})  # fmt: skip

    def _check_current(self, parent: int, name: bytes, current: dict[int, bytes]) -> None:
        directory = self.model.things.get(parent)
        ino = directory.children.get(name) if directory else None
        thing = self.model.things[ino] if ino is not None else None
        if thing is not None and thing.is_written:
            assert list(current.values()) == [thing.content]
        else:
            assert not current

    @invariant()
    def the_figures_are_right(self) -> None:
        files = [t for t in self.model.things.values() if stat.S_ISREG(t.mode)]
        usage = self.stage.tree.usage(wire.GetUsage(self.stage.space))
        assert usage.live == sum(len(t.content) for t in files)
        assert usage.inodes == len(self.model.things)

    @invariant()
    def commits_are_numbered_without_gaps(self) -> None:
        events = self.stage.events()
        assert [e.seq for e in events] == list(range(1, self.stage.seq + 1))
        times = [e.at_ns for e in events]
        assert times == sorted(set(times))


def _run(open_database: Any, examples: int) -> None:
    machine = type("Machine", (TreeMachine,), {"open_database": staticmethod(open_database)})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.parametrize(("few", "examples"), [(ahead.FEW, 40), (1, 20)], ids=["usual", "ahead"])
def test_the_tree_is_what_a_dictionary_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int, examples: int
) -> None:
    monkeypatch.setattr(ahead, "FEW", few)

    def open_database() -> Database:
        folder = tempfile.mkdtemp(dir=tmp_path)
        return Database(f"sqlite:///{folder}/everfold.db")

    _run(open_database, examples)


@pytest.mark.postgres
def test_the_tree_is_what_a_dictionary_would_be_on_postgresql(
    postgres_server: PostgresServer,
) -> None:
    _run(lambda: Database(postgres_server.new_database()), 10)
