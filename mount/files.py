"""Operations on open files: read, write, truncate, holes, fsync, close, copies by reference.

A write goes to a staging segment and into the file's maps, and is answered. It becomes a
journal record when the file is closed, synced, large or old enough. Reads see local changes
first, then committed extents: from the block cache at once, else from a datanode on a thread
that may wait. A missing block is an error, never zeros.
"""

from __future__ import annotations

import itertools
import os
import stat

import msgspec

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BLOCK_MAX, Attr, Ino, Seq
from mount import patience
from mount.content import Content
from mount.core import Core
from mount.filesystem import Opened
from mount.handles import Handle
from mount.pushes import settled
from mount.reading import Reading
from mount.shipper import HOLD_S
from mount.staging import RUN_MIN, Place, Staging

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16


class Files:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._reading = Reading(core)
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)

    def handle(self, fh: int) -> Handle:
        """Return an open file; INVALID for a number that is none."""
        try:
            return self._handles[fh]
        except KeyError:
            raise EverfoldError(Kind.INVALID, f"no open file {fh}") from None

    # ------------------------------------------------------------ opening and closing

    def open(self, ino: Ino, flags: int) -> Opened:
        """Open a regular file; O_TRUNC empties it."""
        core = self._core
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            core.check_writable()
        attr = core.attr(ino)
        if not stat.S_ISREG(attr.mode):
            raise EverfoldError(Kind.IS_DIR if attr.is_dir else Kind.INVALID, "not a regular file")
        opened = self._open(attr, flags)
        if flags & os.O_TRUNC and attr.size:
            self.truncate(self.handle(opened.fh).content, 0)
        return opened

    def opened_new(self, attr: Attr, flags: int, is_orphan: bool = False) -> Opened:
        """Open a file that this mount just made."""
        with self._core.lock:
            opened = self._open(attr, flags)
            content = self._handles[opened.fh].content
            known = self._core.tree.attr(attr.ino)
            if is_orphan or (known is not None and not known.version):
                content.load_nothing()  # nobody else was faster to write to it
            content.is_new = True
            if is_orphan:
                content.is_orphan = True
                content.attr = attr
        return opened

    def open_past(self, attr: Attr, seq: Seq) -> Opened:
        """Open a file as it was at a commit, for reading."""
        content = Content(attr, self._core.staging.release)
        content.is_orphan, content.read_seq, content.attr = True, seq, attr
        backing = self._reading.local_file(content)
        handle = Handle(content, os.O_RDONLY)
        content.handles += 1
        fh = next(self._numbers)
        self._handles[fh] = handle
        return Opened(fh, keep_cache=True, no_flush=True, backing=backing)

    def _open(self, attr: Attr, flags: int) -> Opened:
        core = self._core
        with core.lock:
            content = core.content(attr)
            handle = Handle(content, flags)
            if handle.is_writer or flags & os.O_TRUNC:
                settled(core, content)
                self._seal_if_closed(content)
            content.handles += 1
            content.writers += handle.is_writer
            content.unflushed += handle.is_writer
            fh = next(self._numbers)
            self._handles[fh] = handle
        return Opened(fh, keep_cache=True, no_flush=not handle.is_writer)

    def flush(self, fh: int) -> None:
        """A descriptor was closed: put what is dirty into the journal; raise earlier errors.

        Without the write lease, wait for the commit as well (a moment: the journal has it), so
        that what is closed first is committed first, whichever machine it was.
        """
        core = self._core
        handle = self.handle(fh)
        content = handle.content
        if handle.is_unflushed:
            with core.lock:
                content.unflushed -= handle.is_unflushed
                handle.is_unflushed = False
        if not content.is_changed and not content.pending and content.error is None:
            return  # nothing was written through any descriptor
        is_alone = bool(core.lease.held)
        with core.lock:
            core.flush(content, hold_s=HOLD_S if is_alone else 0.0)
            if not is_alone and content.is_active and not content.is_orphan:
                patience.require()  # harmless here: a second flush finds nothing dirty
                core.feed_moved.wait_for(lambda: not content.is_active, core.policy.close_wait_s)
            if content.error is not None:
                err, content.error = content.error, None
                raise err

    def release(self, fh: int) -> Handle:
        """The last descriptor is closed: complete the version if nobody else writes."""
        core = self._core
        with core.lock:
            handle = self.handle(fh)
            del self._handles[fh]
            content = handle.content
            content.handles -= 1
            content.writers -= handle.is_writer
            content.unflushed -= handle.is_unflushed
            if handle.is_writer and not content.writers and not content.is_orphan:
                self._seal(content)
            core.drop_content(content)
        return handle

    def _seal_if_closed(self, content: Content) -> None:
        """Complete the version of writers that closed the file. Hold the lock.

        The kernel tells of the last close in the background: the next save of the same program
        may be here before that, and must not go into the version of the one before.
        """
        if content.writers and not content.unflushed and not content.is_orphan:
            self._seal(content)

    def _seal(self, content: Content) -> None:
        core = self._core
        if content.is_changed:
            core.flush(content, is_sealed=True)
            core.shipper.release(content.last_number)
        elif content.has_open_version:
            core.seal(content)
        elif content.is_new and not content.base and not content.last_write_number:
            core.send(wire.Seal(content.ino, core.clock.time_ns()))
        content.has_open_version = content.is_new = False

    # ------------------------------------------------------------ reading

    def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        """Return bytes at `offset`, short only at the end of the file."""
        return self._reading.read(self.handle(fh), offset, size)

    # ------------------------------------------------------------ writing

    def write(self, fh: int, offset: int, data: bytes | memoryview, kill_priv: bool) -> int:
        """Write all of `data`; returns its length."""
        handle, core = self.handle(fh), self._core
        if not handle.is_writer:
            raise EverfoldError(Kind.INVALID, "not open for writing")
        core.wait_room()
        content, size = handle.content, len(data)
        if not content.is_changed or content.is_orphan:
            core.refresh(content)
        is_append = bool(handle.flags & os.O_APPEND)
        end = (max(offset, content.size) if is_append else offset) + size
        if end > content.size:
            core.require_room(content, end)
        if size < RUN_MIN or is_append:
            places = [(0, size, core.staging.append(data))]
        else:
            places = _stage(core.staging, content.ino, offset, data)
        with core.lock:
            if is_append and offset != content.size:
                # The kernel knows an older size, and has put the bytes there in its cache.
                core.notifier.forget_data(content.ino, offset, size)
                offset = content.size
            self._mark_dirty(content)
            if not handle.is_unflushed:  # one descriptor of several was closed, or it is mapped
                handle.is_unflushed = True
                content.unflushed += 1
            if kill_priv:
                self._kill_privileges(content)
            now = core.clock.time_ns()
            for at, length, place in places:
                content.write(offset + at, length, place.segment, place.offset, now)
            if content.dirty_bytes - content.dirty_weighed >= core.policy.dirty_max:
                self._send_on(content)
        return size

    def _send_on(self, content: Content) -> None:
        """Send what is dirty of a file that was written a good deal, unless it pays to wait.

        Where random writes fill a tenth of what they span, or more, waiting makes few long
        pieces of many short ones: of 51,000 in 256 MiB 11,000, each to be stored once.
        """
        core, policy = self._core, self._core.policy
        content.dirty_weighed = content.dirty_bytes
        if self._gathers(content, core.clock.monotonic()):
            runs = content.dirty_runs()
            is_sparse = runs > 0.9 * len(content.dirty)
            if runs <= (policy.gather_runs // 2 if is_sparse else policy.gather_runs):
                return
        core.flush(content)

    def _gathers(self, content: Content, now: float) -> bool:
        """Tell whether a file is written here and there, and not for too long or too much yet."""
        policy = self._core.policy
        age_max = policy.gather_s
        if content.write_sent is None:
            age_max = min(age_max, policy.gather_alone_s)
        return (
            len(content.dirty) >= policy.scattered_min
            and content.dirty_bytes < policy.gather_bytes
            and now - content.dirty_since < age_max
        )

    def _mark_dirty(self, content: Content) -> None:
        now = self._core.clock.monotonic()
        if not content.is_changed:
            content.dirty_since = now
        content.last_write = now

    def _kill_privileges(self, content: Content) -> None:
        """A write takes setuid, and setgid of an executable group, away. Hold the lock."""
        core = self._core
        attr = core.attr(content.ino)
        mode = attr.mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        if mode != attr.mode:
            content.kill_mode = stat.S_IMODE(mode)
            if content.attr is not None:
                content.attr = msgspec.structs.replace(content.attr, mode=mode)
        if attr.has_xattrs and not content.is_orphan:
            core.send(wire.RemoveXattr(content.ino, b"security.capability", core.clock.time_ns()))

    def truncate(self, content: Content, size: int, kill_priv: bool = False) -> None:
        """Set the size of a file; what a larger size uncovers is a hole."""
        core = self._core
        core.check_writable()
        core.require_room(content, size)
        with core.lock:
            self._mark_dirty(content)
            if kill_priv:
                self._kill_privileges(content)
            content.resize(size, core.clock.time_ns())
            if not content.writers:
                core.flush(content, is_sealed=True)

    def truncate_open(self, fh: int, size: int, kill_priv: bool) -> None:
        """Set the size of an open file."""
        content = self.handle(fh).content
        self._core.refresh(content)
        self.truncate(content, size, kill_priv)

    def truncate_inode(self, ino: Ino, size: int, kill_priv: bool) -> None:
        """Set the size of a file that need not be open."""
        core = self._core
        attr = core.attr(ino)
        if not attr.is_file:
            raise EverfoldError(Kind.IS_DIR if attr.is_dir else Kind.INVALID, "not a regular file")
        with core.lock:
            content = core.content(attr)
            settled(core, content)
            self._seal_if_closed(content)
            self.truncate(content, size, kill_priv)

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """Grow a file, punch a hole or zero a range; other modes are UNSUPPORTED."""
        core, handle = self._core, self.handle(fh)
        if offset < 0 or length <= 0:
            raise EverfoldError(Kind.INVALID, "not a range")
        if offset + length > core.size_max:
            raise EverfoldError(Kind.TOO_LARGE, "beyond the largest file")
        if mode not in (
            0,
            FALLOC_KEEP_SIZE,
            FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
            FALLOC_ZERO_RANGE,
            FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
        ):
            raise EverfoldError(Kind.UNSUPPORTED, "this fallocate mode is not offered")
        core.check_writable()
        content = handle.content
        core.refresh(content)
        if not mode & FALLOC_KEEP_SIZE:
            core.require_room(content, offset + length)
        with core.lock:
            now = core.clock.time_ns()
            self._mark_dirty(content)
            if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
                content.punch(offset, min(length, max(0, content.size - offset)) or 1, now)
            if not mode & FALLOC_KEEP_SIZE and offset + length > content.size:
                content.resize(offset + length, now)

    # ------------------------------------------------------------ durability

    def fsync(self, fh: int) -> None:
        """Return when the file's bytes are on enough nodes and its commits are durable."""
        content = self.handle(fh).content
        self.sync(content)

    def sync(self, content: Content) -> None:
        """See `fsync`."""
        core = self._core
        with core.lock:
            if content.is_changed and not content.is_orphan:
                patience.require()
                core.flush(content)
            if not content.pending and core.tree.is_held(content.ino):
                core.wait_all()  # its name: what has no bytes to wait for may not be there yet
            core.wait_number(content)

    def syncfs(self) -> None:
        """Return when everything changed so far is in the cluster; UNAVAILABLE if it is away."""
        core = self._core
        patience.require()
        self.flush_all()
        if not core.shipper.drain(core.policy.change_deadline_s):
            core.check_let_in()
            raise EverfoldError(Kind.UNAVAILABLE, "the cluster does not take the changes")

    def flush_all(self) -> None:
        """Put what is dirty of every file into the journal and on its way."""
        with self._core.lock:
            for content in list(self._core.contents.values()):
                self._core.flush(content)

    def tend(self) -> None:
        """Send on what has been dirty for long, and complete versions that went quiet."""
        core, policy = self._core, self._core.policy
        now = core.clock.monotonic()
        with core.lock:
            for content in [c for c in core.contents.values() if c.handles or c.is_changed]:
                if content.is_orphan:
                    continue
                if content.is_changed and now - content.dirty_since > policy.dirty_age_s:
                    if not self._gathers(content, now):
                        core.flush(content, is_sealed=not content.writers)
                elif (
                    content.has_open_version
                    and not content.is_active
                    and now - content.last_write > policy.quiet_s
                ):
                    core.seal(content)
                    content.has_open_version = False

    # ------------------------------------------------------------ holes and copies

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """Find the next data or hole at or after `offset`; NO_DATA when there is none."""
        content = self.handle(fh).content
        self._core.refresh(content)
        self._core.load_extents(content)
        with self._core.lock:
            size = content.size
            if offset < 0 or offset >= size:
                raise EverfoldError(Kind.NO_DATA, "beyond the end of the file")
            at = offset
            for start, end in self._data(content, offset, size):
                if whence == os.SEEK_DATA:
                    return max(start, offset)
                if start > at:
                    return at
                at = end
        if whence == os.SEEK_DATA:
            raise EverfoldError(Kind.NO_DATA, "no data after this")
        return min(at, size)

    def _data(self, content: Content, offset: int, size: int) -> list[tuple[int, int]]:
        """Return the ranges with data from `offset` on, sorted, neighbours joined."""
        found: list[tuple[int, int]] = []
        local = content.overlay.slices(offset, size - offset)
        found.extend(
            (p.offset, p.end) for p in local if not isinstance(p.source, int) or p.source >= 0
        )
        if content.extents is not None:
            for at, length in content.overlay.gaps(offset, size - offset):
                found.extend((p.offset, p.end) for p in content.extents.slices(at, length))
        joined: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if joined and joined[-1][1] >= start:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return joined

    def copy_range(self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, n: int) -> int:
        """Copy by reference: the target shares the source's blocks."""
        core = self._core
        core.check_writable()
        source, target = self.handle(fh_in).content, self.handle(fh_out).content
        core.refresh(source)
        core.refresh(target)
        n = min(n, source.size - offset_in)
        if n <= 0:
            return 0
        if source is target and offset_in < offset_out + n and offset_out < offset_in + n:
            raise EverfoldError(Kind.INVALID, "the ranges overlap")
        if source.is_orphan:
            raise EverfoldError(Kind.CROSS_SPACE, "a file without a name is copied by its bytes")
        patience.require()
        core.require_room(target, offset_out + n)
        self.sync(source)
        core.load_extents(source)
        with core.lock:
            if source.extents is None or source.is_active:
                raise EverfoldError(Kind.CROSS_SPACE, "the source is being written")
            shift, now = offset_out - offset_in, core.clock.time_ns()
            self._mark_dirty(target)
            for piece in source.extents.slices(offset_in, n):
                target.reference(piece.offset + shift, piece.length, piece.source, piece.at, now)
            for at, length in source.extents.gaps(offset_in, n):
                target.punch(at + shift, length, now)
            if target.size < offset_out + n:
                target.resize(offset_out + n, now)
        return n


def _stage(
    staging: Staging, ino: Ino, offset: int, data: bytes | memoryview
) -> list[tuple[int, int, Place]]:
    """Keep a large write, cut at multiples of BLOCK_MAX; return (offset in it, length, place)."""
    view = memoryview(data)
    places: list[tuple[int, int, Place]] = []
    at = 0
    try:
        while at < len(view):
            length = min(len(view) - at, BLOCK_MAX - (offset + at) % BLOCK_MAX)
            places.append((at, length, staging.append(view[at : at + length], ino, offset + at)))
            at += length
    except EverfoldError:
        for _, length, place in places:
            staging.release(place.segment, length)
        raise
    return places
