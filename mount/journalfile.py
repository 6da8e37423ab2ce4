"""How a journal lies on disk, and how it is read back after a crash.

A journal is a row of files ``journal-<index>``. Each starts with a header (magic, number of
its first record, boot id of the machine that wrote it, flags) and goes on with frames: head
(length, number, kind, checksum of the body, checksum of the head), then the body. Five kinds
of frame: a record; a mark (everything up to `number` is on the disk for sure); a trim
(everything up to `number` is in the cluster); a skip (the next record is `number` + 1); an
amendment (the record `number`, which is before it, reads as this body).

Invariant of reading back: what is given is a run of records without a hole, from the trim
point on. A frame that was cut off by a crash was never acknowledged and goes; anything else
that does not fit is damage: the run ends there, and the rest is set aside under another name.
After a power cut (another boot id) only what a mark vouches for is taken.
"""

from __future__ import annotations

import enum
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from mount.disk import sync_directory

PREFIX: Final = "journal-"
_MAGIC: Final = b"EVFJRN1\n"
_HEADER: Final = struct.Struct("<8sQ36sII")  # magic, first record, boot id, flags, crc32
_HEAD: Final = struct.Struct("<IQBI")  # length, number, kind, crc32 of the body
_CRC: Final = struct.Struct("<I")
_FRAME_MIN: Final = _HEAD.size + _CRC.size
_crc32 = zlib.crc32
_SUPERSEDES: Final = 1  # flag: this file holds all that was good in the files before it
_log = logging.getLogger(__name__)


class FrameKind(enum.IntEnum):
    """What a frame says."""

    RECORD = 1
    MARK = 2
    TRIM = 3
    SKIP = 4
    AMEND = 5


class Frame(NamedTuple):
    """One frame; `end` is where the next one starts."""

    kind: int
    number: int
    body: bytes
    end: int


class Tail(enum.Enum):
    """What stands where no whole frame does."""

    NOTHING = "nothing"
    TORN = "torn"  # the start of a frame, cut by the end of the file
    DAMAGED = "damaged"


def pack_header(first: int, boot: str, supersedes: bool = False) -> bytes:
    """Return the first bytes of a journal file."""
    fields = (_MAGIC, first, boot.encode().ljust(36, b"\0"), _SUPERSEDES if supersedes else 0)
    bare = _HEADER.pack(*fields, 0)
    return _HEADER.pack(*fields, zlib.crc32(bare))


def pack_frame(kind: FrameKind, number: int, body: bytes = b"") -> bytes:
    """Return one frame."""
    head = _HEAD.pack(len(body), number, kind, _crc32(body))
    return head + _CRC.pack(_crc32(head)) + body


def frames(raw: bytes, at: int = _HEADER.size) -> Iterator[Frame]:
    """Yield whole frames from `at` on, up to the first that is not whole."""
    while (frame := _frame_at(raw, at)) is not None:
        yield frame
        at = frame.end


def tail_of(raw: bytes, at: int) -> Tail:
    """Tell what stands at `at`, where `frames` ended."""
    left = len(raw) - at
    if left == 0:
        return Tail.NOTHING
    if left < _FRAME_MIN:
        return Tail.TORN
    head = _head_at(raw, at)
    return Tail.TORN if head is not None and _FRAME_MIN + head[0] > left else Tail.DAMAGED


def _head_at(raw: bytes, at: int) -> tuple[int, int, int, int] | None:
    if at + _FRAME_MIN > len(raw):
        return None
    (crc,) = _CRC.unpack_from(raw, at + _HEAD.size)
    if zlib.crc32(raw[at : at + _HEAD.size]) != crc:
        return None
    length, number, kind, body_crc = _HEAD.unpack_from(raw, at)
    return length, number, kind, body_crc


def _frame_at(raw: bytes, at: int) -> Frame | None:
    head = _head_at(raw, at)
    if head is None:
        return None
    length, number, kind, body_crc = head
    start = at + _FRAME_MIN
    body = raw[start : start + length]
    if len(body) < length or zlib.crc32(body) != body_crc:
        return None
    return Frame(kind, number, body, start + length)


class _Header(NamedTuple):
    first: int
    boot: str
    supersedes: bool


def _read_header(raw: bytes) -> _Header | None:
    if len(raw) < _HEADER.size:
        return None
    magic, first, boot, flags, crc = _HEADER.unpack_from(raw)
    if magic != _MAGIC or crc != zlib.crc32(_HEADER.pack(magic, first, boot, flags, 0)):
        return None
    return _Header(first, boot.rstrip(b"\0").decode("ascii", "replace"), bool(flags & _SUPERSEDES))


@dataclass
class Kept:
    """A file whose frames up to `end` belong to the run; `last` is its last record."""

    path: Path
    end: int
    last: int


@dataclass
class Run:
    """What a directory held: the files in order, and where the numbers stand."""

    kept: list[Kept] = field(default_factory=list)
    index: int = 0  # the highest index of any file
    next_number: int = 1
    trimmed: int = 0
    marked: int = 0  # by marks of another boot: what a power cut left
    after_power_cut: bool = False
    is_damaged: bool = False
    aside: list[Path] = field(default_factory=list)  # out of the run, wholly or from `end` on
    amended: dict[int, bytes] = field(default_factory=dict)  # number -> what it reads as

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number, body) of the run, from after the trim point, in order."""
        limit = self.marked if self.after_power_cut else self.next_number
        for kept in self.kept:
            try:
                raw = kept.path.read_bytes()
            except FileNotFoundError:  # trimmed meanwhile
                continue
            for frame in frames(raw[: kept.end]):
                if frame.kind == FrameKind.RECORD and self.trimmed < frame.number <= limit:
                    yield frame.number, self.amended.get(frame.number, frame.body)


def journal_paths(directory: Path) -> list[Path]:
    """Return the journal's files in order."""
    named = [p for p in directory.glob(PREFIX + "*") if p.name[len(PREFIX) :].isdigit()]
    return sorted(named, key=lambda path: int(path.name[len(PREFIX) :]))


def path_of(directory: Path, index: int) -> Path:
    """Return the path of the file with this index."""
    return directory / f"{PREFIX}{index:010d}"


def survey(directory: Path, boot: str) -> Run:
    """Find the run of good records. Reads only. Raises OSError."""
    run = Run()
    paths = journal_paths(directory)
    for path in paths:
        run.index = max(run.index, int(path.name[len(PREFIX) :]))
        raw = path.read_bytes()
        header = _read_header(raw)
        if header is not None and header.supersedes:
            superseded = [kept.path for kept in run.kept]
            run = Run(index=run.index, aside=superseded + run.aside, next_number=header.first)
        if run.is_damaged:
            _pass_over(run, path, raw, header)
        elif header is None:
            if path is paths[-1] and len(raw) < _HEADER.size:  # died while making it
                run.aside.append(path)
            else:
                _end_at(run, path, raw, 0, "the header is damaged")
        else:
            _walk(run, path, raw, header, boot)
    return run


def _walk(run: Run, path: Path, raw: bytes, header: _Header, boot: str) -> None:
    if not run.kept and header.first >= run.next_number:  # older files were trimmed away
        run.next_number = header.first
        run.trimmed = max(run.trimmed, header.first - 1)
    if header.first != run.next_number:
        _end_at(run, path, raw, 0, f"starts at {header.first}, not {run.next_number}")
        return
    is_foreign = header.boot != boot
    run.after_power_cut = run.after_power_cut or is_foreign
    end = _HEADER.size
    for frame in frames(raw):
        if frame.kind == FrameKind.RECORD:
            if frame.number != run.next_number:
                break
            run.next_number += 1
        elif frame.kind == FrameKind.SKIP:
            run.next_number = max(run.next_number, frame.number + 1)
        elif frame.kind == FrameKind.TRIM:
            run.trimmed = max(run.trimmed, frame.number)
        elif frame.kind == FrameKind.MARK:
            run.marked = max(run.marked, frame.number)
        elif frame.kind == FrameKind.AMEND:
            run.amended[frame.number] = frame.body
        end = frame.end
    run.kept.append(Kept(path, end, run.next_number - 1))
    if tail_of(raw, end) is Tail.DAMAGED:  # or a whole frame that does not follow
        _end_at(run, path, raw, end, "a frame is damaged")


def _end_at(run: Run, path: Path, raw: bytes, at: int, why: str) -> None:
    """End the run; numbers go on after all that the lost bytes can have held."""
    if not run.after_power_cut:  # after one, a ragged end is what is expected
        _log.error("journal %s, byte %d of %d: %s", path, at, len(raw), why)
    run.is_damaged = True
    _pass_over(run, path, raw[at:], _read_header(raw))


def _pass_over(run: Run, path: Path, rest: bytes, header: _Header | None) -> None:
    start = max(run.next_number, header.first if header is not None else 0)
    run.next_number = start + len(rest) // _FRAME_MIN
    run.aside.append(path)


def settle(directory: Path, run: Run, boot: str) -> Run:
    """Make the directory hold exactly the run, and return the run as it is then.

    After damage or a power cut the good records are written to one new file, which is on
    the disk before the files that it replaces are renamed (`.damaged`, `.unsynced`) or go.
    Raises OSError.
    """
    if not run.after_power_cut and not run.is_damaged:
        for kept in run.kept:
            _cut(kept)
        for path in run.aside:
            path.unlink()
        return run
    lost = max(0, run.next_number - 1 - max(run.marked, run.trimmed)) if run.after_power_cut else 0
    suffix = ".unsynced" if run.after_power_cut else ".damaged"
    old = {kept.path for kept in run.kept} | set(run.aside)
    for path in sorted(old if lost else run.aside):
        _set_aside(path, path.with_name(path.name + suffix))
    new = _rewrite(directory, run, boot)
    for path in old:
        path.unlink()
    if lost:
        _log.warning("journal %s: a power cut took up to %d records", directory, lost)
    return new


def _set_aside(path: Path, aside: Path) -> None:
    if not aside.exists():
        os.link(path, aside)
    _log.warning("journal %s: set aside as %s", path, aside.name)


def _cut(kept: Kept) -> None:
    if kept.path.stat().st_size == kept.end:
        return
    os.truncate(kept.path, kept.end)


def _rewrite(directory: Path, run: Run, boot: str) -> Run:
    path = path_of(directory, run.index + 1)
    pieces: list[bytes] = []
    first = after = run.next_number
    for number, body in run.records():
        if not pieces:
            first = number
        elif number != after:
            pieces.append(pack_frame(FrameKind.SKIP, number - 1))
        pieces.append(pack_frame(FrameKind.RECORD, number, body))
        after = number + 1
    if after != run.next_number:
        pieces.append(pack_frame(FrameKind.SKIP, run.next_number - 1))
    if run.trimmed:
        pieces.append(pack_frame(FrameKind.TRIM, run.trimmed))
    if run.after_power_cut or run.marked:
        pieces.append(pack_frame(FrameKind.MARK, min(run.marked, after - 1)))
    raw = b"".join([pack_header(first, boot, supersedes=True), *pieces])
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(directory)
    return Run(
        kept=[Kept(path, len(raw), run.next_number - 1)],
        index=run.index + 1,
        next_number=run.next_number,
        trimmed=run.trimmed,
        after_power_cut=False,
    )
