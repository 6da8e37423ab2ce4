"""Operations on names: make, link, unlink, rename, and the attributes they touch.

Under the write lease each is evaluated against the tree, applied to it and answered; without
it, it is committed first and applied once the cluster has taken it (`Core.change`). The
outcome is the same. An operation says what it saw (the inode at a name); when another machine
was faster the nameserver answers CONFLICT, the name is looked up again and the operation is
evaluated anew.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TypeVar

from msgspec.structs import replace

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import LINK_MAX, NAME_MAX, NOW, SYMLINK_MAX, Attr, Ino, Seq
from mount import patience
from mount.core import Core
from mount.filesystem import Caller
from mount.knowledge import Unknown
from mount.shipper import HOLD_S

T = TypeVar("T")
_ATTEMPTS = 5
_NO_NAMES = (b".", b"..")


def check_name(name: bytes) -> None:
    """Raise NAME_TOO_LONG or INVALID for what cannot be a name in a directory."""
    if len(name) > NAME_MAX:
        raise EverfoldError(Kind.NAME_TOO_LONG, f"a name has at most {NAME_MAX} bytes")
    if not name or name in _NO_NAMES or b"/" in name or b"\0" in name:
        raise EverfoldError(Kind.INVALID, "not a name")


class Names:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # ------------------------------------------------------------ making

    def make(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Attr:
        """Make a name with a new inode of any type; EXISTS when the name is taken."""
        core = self._core
        core.check_writable()
        core.check_holds_names(parent)
        check_name(name)
        if len(target) > SYMLINK_MAX:
            raise EverfoldError(Kind.NAME_TOO_LONG, "the link's target is too long")
        attr = self.new_attr(core.attr(parent), mode, caller, rdev, target)
        try:
            core.change(
                _make_op(parent, name, attr),
                lambda: self._check_free(parent, name),
                lambda seq: self._made(parent, name, attr, seq),
            )
        except EverfoldError as err:
            if err.kind is Kind.EXISTS and not core.lease.held:
                self._forget(parent, name)
            raise
        return attr

    def _check_free(self, parent: Ino, name: bytes) -> None:
        """Raise EXISTS when a name is taken, NOT_FOUND when its directory is gone."""
        if self._core.known_child(parent, name) is not None:
            raise EverfoldError(Kind.EXISTS, "the name is taken")
        directory = self._core.tree.attr(parent)
        if directory is None:
            raise Unknown(lambda: self._core.attr(parent))
        if not directory.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "not a directory")

    def new_attr(
        self, parent: Attr, mode: int, caller: Caller, rdev: int = 0, target: bytes = b""
    ) -> Attr:
        """Return the attributes of a new inode in a directory: umask and setgid applied."""
        core = self._core
        gid, is_dir = caller.gid, stat.S_ISDIR(mode)
        if not stat.S_ISLNK(mode):
            mode &= ~caller.umask
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if is_dir:
                mode |= stat.S_ISGID
        now = core.clock.time_ns()
        return Attr(
            ino=core.new_ino(),
            mode=mode,
            nlink=2 if is_dir else 1,
            uid=caller.uid,
            gid=gid,
            size=len(target),
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
            rdev=rdev,
            target=target,
        )

    def _made(self, parent: Ino, name: bytes, attr: Attr, seq: Seq) -> None:
        core = self._core
        if not core.tree.follows(parent, name, seq):
            core.tree.forget_name(parent, name)
            return
        core.tree.set_child(parent, name, attr.ino)
        self._follow(attr, seq)
        if attr.is_dir:
            core.tree.made_directory(attr.ino, parent)
        self._touch_parent(parent, attr.ctime_ns, 1 if attr.is_dir else 0)

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr:
        """Give a file another name; a file without any (O_TMPFILE) becomes a real one."""
        core = self._core
        core.check_writable()
        core.check_holds_names(parent)
        check_name(name)
        attr = core.attr(ino)
        if attr.is_dir:
            raise EverfoldError(Kind.NOT_PERMITTED, "a directory has one name")
        content = core.contents.get(ino)
        if content is not None and content.is_orphan:
            return self._link_orphan(attr, parent, name)
        now = core.clock.time_ns()

        def check() -> None:
            self._check_free(parent, name)
            if attr.nlink >= LINK_MAX:
                raise EverfoldError(Kind.TOO_MANY_LINKS, f"a file has at most {LINK_MAX} names")

        core.change(
            wire.Link(ino, parent, name, now),
            check,
            lambda seq: self._linked(attr, parent, name, now, seq),
        )
        return core.attr(ino)

    def _linked(self, attr: Attr, parent: Ino, name: bytes, now: int, seq: Seq) -> None:
        core = self._core
        fresh = core.tree.attr(attr.ino) or attr
        self._follow(replace(fresh, nlink=fresh.nlink + 1, ctime_ns=now), seq)
        if core.tree.follows(parent, name, seq):
            core.tree.set_child(parent, name, attr.ino)
        self._touch_parent(parent, now)

    def _link_orphan(self, attr: Attr, parent: Ino, name: bytes) -> Attr:
        core = self._core
        if attr.version or core.contents[attr.ino].read_seq:
            raise EverfoldError(Kind.NOT_FOUND, "the file was deleted")
        patience.require()
        attr = replace(attr, nlink=1, ctime_ns=core.clock.time_ns())
        op = _make_op(parent, name, attr)

        def appeared(seq: Seq) -> None:
            core.adopt(content)
            self._made(parent, name, attr, seq)

        with core.lock:
            content = core.contents[attr.ino]
            record = content.record(is_sealed=False)
            outcome = core.submit(op, *([] if record is None else [record]), apply=appeared)
            content.recorded()
            content.has_open_version = record is not None
        core.outcome_of(outcome)
        return core.attr(attr.ino)

    # ------------------------------------------------------------ removing and moving

    def remove(self, parent: Ino, name: bytes, is_rmdir: bool) -> None:
        """Remove a name: an empty directory with `is_rmdir`, anything else without."""
        self._core.check_writable()
        self._again(lambda: self._remove(parent, name, is_rmdir), (parent, name))

    def _remove(self, parent: Ino, name: bytes, is_rmdir: bool) -> None:
        core = self._core
        attr = core.require_child(parent, name)
        if attr.is_dir and not is_rmdir:
            raise EverfoldError(Kind.IS_DIR, "it is a directory")
        if is_rmdir and not attr.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "it is no directory")
        core.check_holds_names(attr.ino)
        self._before_last_name(attr)
        now = core.clock.time_ns()

        def check() -> None:
            if core.known_child(parent, name) != attr.ino:
                raise EverfoldError(Kind.CONFLICT, "the name leads elsewhere now")
            if is_rmdir and not core.known_empty(attr.ino):
                raise EverfoldError(Kind.NOT_EMPTY, "the directory is not empty")

        seq = core.change(
            wire.Unlink(parent, name, attr.ino, is_rmdir, now),
            check,
            lambda seq: self._removed(parent, name, attr, now, seq),
        )
        self._look_again(attr.ino, seq)

    def _removed(self, parent: Ino, name: bytes, attr: Attr, now: int, seq: Seq) -> None:
        core = self._core
        if core.tree.follows(parent, name, seq):
            core.tree.set_absent(parent, name)
        self._lost_name(attr, now, seq)
        self._touch_parent(parent, now, -1 if attr.is_dir else 0)

    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        """Move a name, as renameat2(2)."""
        self._core.check_writable()
        self._core.check_holds_names(new_parent)
        check_name(new_name)
        if flags & ~(wire.RENAME_NOREPLACE | wire.RENAME_EXCHANGE):
            raise EverfoldError(Kind.INVALID, "unknown rename flags")
        self._again(
            lambda: self._rename(parent, name, new_parent, new_name, flags),
            (parent, name),
            (new_parent, new_name),
        )

    def _rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        core = self._core
        moved = core.require_child(parent, name)
        replaced = core.child(new_parent, new_name)
        if replaced is not None and not flags:
            core.check_holds_names(replaced.ino)
            self._before_last_name(replaced)
        now = core.clock.time_ns()
        op = wire.Rename(
            parent,
            name,
            new_parent,
            new_name,
            now,
            ino=moved.ino,
            replaced=Ino(0) if replaced is None else replaced.ino,
            flags=flags,
        )
        seq = core.change(
            op,
            lambda: self._check_rename(op, moved, replaced),
            lambda seq: self._renamed(op, moved, replaced, seq),
        )
        if replaced is not None:
            self._look_again(replaced.ino, seq)

    def _check_rename(self, op: wire.Rename, moved: Attr, replaced: Attr | None) -> None:
        """Raise what a rename is refused for; that a directory is not moved into itself the
        kernel has seen to, and the nameserver does again."""
        core = self._core
        if core.known_child(op.parent, op.name) != moved.ino:
            raise EverfoldError(Kind.CONFLICT, "the name leads elsewhere now")
        there = core.known_child(op.new_parent, op.new_name)
        if (there or 0) != (op.replaced or 0):
            raise EverfoldError(Kind.CONFLICT, "the new name leads elsewhere now")
        if op.flags & wire.RENAME_NOREPLACE and replaced is not None:
            raise EverfoldError(Kind.EXISTS, "the new name is taken")
        if op.flags & wire.RENAME_EXCHANGE:
            if replaced is None:
                raise EverfoldError(Kind.NOT_FOUND, "there is nothing to exchange with")
            return
        if replaced is None or replaced.ino == moved.ino:
            return
        if moved.is_dir and not replaced.is_dir:
            raise EverfoldError(Kind.NOT_DIR, "the new name is no directory")
        if replaced.is_dir and not moved.is_dir:
            raise EverfoldError(Kind.IS_DIR, "the new name is a directory")
        if replaced.is_dir and not core.known_empty(replaced.ino):
            raise EverfoldError(Kind.NOT_EMPTY, "the new name is a directory with entries")

    def _renamed(self, op: wire.Rename, moved: Attr, replaced: Attr | None, seq: Seq) -> None:
        """Let the tree follow a rename."""
        if replaced is not None and replaced.ino == moved.ino:
            return
        core, now = self._core, op.time_ns
        is_exchange = bool(op.flags & wire.RENAME_EXCHANGE) and replaced is not None
        self._put(op.new_parent, op.new_name, moved, now, seq)
        if is_exchange and replaced is not None:
            self._put(op.parent, op.name, replaced, now, seq)
        elif core.tree.follows(op.parent, op.name, seq):
            core.tree.set_absent(op.parent, op.name)
        if replaced is not None and not is_exchange:
            self._lost_name(replaced, now, seq)
        self._rename_counts(op.parent, op.new_parent, moved, replaced, is_exchange, now)

    def _rename_counts(
        self,
        parent: Ino,
        new_parent: Ino,
        moved: Attr,
        replaced: Attr | None,
        is_exchange: bool,
        now: int,
    ) -> None:
        """Set times and link counts of both directories after a rename."""
        gain = int(moved.is_dir) - int(replaced is not None and replaced.is_dir)
        loss = -gain if is_exchange else -int(moved.is_dir)
        if parent == new_parent:
            self._touch_parent(parent, now, 0 if is_exchange else gain + loss)
        else:
            self._touch_parent(parent, now, loss)
            self._touch_parent(new_parent, now, gain)

    # ------------------------------------------------------------ attributes

    def set_attr(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Attr:
        """Set attributes but the size; applied here at once, on its way to the cluster."""
        core = self._core
        core.check_writable()
        attr = core.attr(ino)
        with core.lock:
            attr = core.tree.attr(ino) or attr
            content = core.content(attr) if attr.is_file else None
            if content is not None:
                attr = replace(attr, mode=content.mode_of(attr))
            now = core.clock.time_ns()
            if mode is not None:
                mode = stat.S_IMODE(mode)
            if uid is not None or gid is not None:
                mode = _without_privileges(attr.mode if mode is None else mode, attr)
            fresh = replace(
                attr,
                mode=attr.mode if mode is None else stat.S_IFMT(attr.mode) | mode,
                uid=attr.uid if uid is None else uid,
                gid=attr.gid if gid is None else gid,
                atime_ns=attr.atime_ns if atime_ns is None else atime_ns,
                mtime_ns=attr.mtime_ns if mtime_ns is None else mtime_ns,
                ctime_ns=now,
            )
            if content is not None and content.is_orphan:
                content.attr = fresh
            else:
                # On a file that is being written it travels with the write, in one commit.
                is_written = content is not None and content.is_changed and content.writers
                op = wire.SetAttr(ino, now, mode, uid, gid, atime_ns, mtime_ns)
                core.send(op, HOLD_S if is_written else 0.0)
                core.tree.set_attr(fresh)
            if content is not None:
                content.set_attr(now, mode, mtime_ns)
        return core.attr(ino)

    # ------------------------------------------------------------ the tree follows

    def _again(self, attempt: Callable[[], T], *names: tuple[Ino, bytes]) -> T:
        """Run an operation; when another machine was faster, look again and retry."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return attempt()
            except EverfoldError as err:
                if not self._core.lease.held:  # under the lease memory is right
                    for parent, name in names:
                        self._forget(parent, name)
                if err.kind is not Kind.CONFLICT:
                    raise
        return attempt()

    def _forget(self, parent: Ino, name: bytes) -> None:
        core = self._core
        with core.lock:
            core.tree.forget_name(parent, name)
        core.notifier.forget_entry(parent, name)

    def _before_last_name(self, attr: Attr) -> None:
        """An open file that is to lose its last name must be readable afterwards."""
        content = self._core.contents.get(attr.ino)
        if content is not None and content.handles and attr.nlink == 1:
            self._core.load_extents(content)

    def _lost_name(self, attr: Attr, now: int, seq: Seq) -> None:
        core = self._core
        fresh = core.tree.attr(attr.ino) or attr
        if fresh.nlink > 1 and not fresh.is_dir:
            self._follow(replace(fresh, nlink=fresh.nlink - 1, ctime_ns=now), seq)
            core.notifier.forget_attr(attr.ino)
            return
        core.tree.forget_attr(attr.ino)
        core.tree.forget_directory(attr.ino)
        content = core.contents.get(attr.ino)
        if content is None:
            return
        if content.is_idle:  # what comes next would end so, too; it costs a twentieth of an unlink
            del core.contents[attr.ino]
        else:
            known = Seq(seq - 1) if seq else core.feed_seq
            core.orphan(content, replace(fresh, ctime_ns=now), known)
            core.drop_content(content)

    def _look_again(self, ino: Ino, seq: Seq) -> None:
        """Another machine may have given an open file a name of which nothing was heard yet:
        then it is not gone, and what is written to it must not stay here."""
        core = self._core
        content = core.contents.get(ino)
        if seq == NOW or content is None or not content.handles or not content.is_orphan:
            return
        answer = core.read(lambda: core.names.attrs(wire.GetAttrs(core.space, [ino])))
        if answer.attrs:
            with core.lock:
                core.adopt(content)
                core.tree.install_attr(answer.attrs[0], answer.seq)

    def _put(self, parent: Ino, name: bytes, attr: Attr, now: int, seq: Seq) -> None:
        core = self._core
        if not core.tree.follows(parent, name, seq):
            core.tree.forget_name(parent, name)
            return
        core.tree.set_child(parent, name, attr.ino)
        fresh = core.tree.attr(attr.ino) or attr
        self._follow(replace(fresh, ctime_ns=now), seq)
        core.tree.moved_directory(attr.ino, parent)

    def _follow(self, attr: Attr, seq: Seq) -> None:
        """Take what commit `seq` (NOW: none yet) left of an inode, unless a later one is known."""
        tree = self._core.tree
        if seq == NOW or tree.touch_ino(attr.ino, seq):
            tree.set_attr(attr)
        else:
            tree.forget_attr(attr.ino)

    def _touch_parent(self, parent: Ino, now: int, links: int = 0) -> None:
        core = self._core
        attr = core.tree.attr(parent)
        if attr is not None:
            core.tree.set_attr(replace(attr, nlink=attr.nlink + links, mtime_ns=now, ctime_ns=now))


def _make_op(parent: Ino, name: bytes, attr: Attr) -> wire.Make:
    return wire.Make(
        parent,
        name,
        attr.ino,
        attr.mode,
        attr.uid,
        attr.gid,
        attr.ctime_ns,
        attr.rdev,
        attr.target,
    )


def _without_privileges(mode: int, attr: Attr) -> int:
    """Return permission bits as a chown leaves them: setuid and setgid fall on files."""
    mode = stat.S_IMODE(mode)
    if attr.is_dir:
        return mode
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
