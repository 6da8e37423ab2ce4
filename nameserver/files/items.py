"""One name in a space with what it leads to, as people's programs see it."""

from __future__ import annotations

import functools
import stat
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from everfold.model import Ino, Seq, SpaceId
from nameserver.files.paths import FileId, raw_of, shown, text_of, type_of

Json = dict[str, Any]

COLUMNS: Final = (
    "e.parent, e.name, e.ino, e.vbase, i.mode, i.uid, i.gid, i.size, i.mtime_ns, i.btime_ns,"
    " i.version, i.content"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TYPES: Final = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}


class Item(NamedTuple):
    """A name that leads to an inode. `where` are the names of its directory, from the top."""

    space: SpaceId
    where: tuple[bytes, ...]
    parent: Ino
    name: bytes
    ino: Ino
    vbase: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    btime_ns: int
    version: int  # k of the content; `number` is what people see
    content: Seq
    died_ns: int = 0  # when the name was deleted, 0 while it lives
    above: tuple[bytes, ...] = ()  # where its space stands in the folder of whoever is told
    at: FileId | None = None  # of a team folder itself: the directory where it stands there
    may: str = ""  # what that person may do, in a team folder

    @property
    def id(self) -> FileId:
        """Return what names it."""
        return FileId(self.space, self.ino)

    @property
    def names(self) -> tuple[bytes, ...]:
        """Return its path; empty for the top."""
        return (*self.where, self.name) if self.name else ()

    @property
    def is_dir(self) -> bool:
        """Tell whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Tell whether this is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def number(self) -> int:
        """Return the number of the present version at this name, 0 when it has none."""
        return self.vbase + self.version if self.version else 0

    @property
    def type(self) -> str:
        """Return what it is."""
        return _TYPES.get(stat.S_IFMT(self.mode), "other")

    @property
    def media_type(self) -> str | None:
        """Return the media type of a file."""
        return type_of(self.name) if self.is_file else None

    @property
    def etag(self) -> str:
        """Return what changes with every change of the bytes, without quotes."""
        return f"{self.space}-{self.ino}-{self.content}"

    def to_json(self) -> Json:
        """Return what the JSON routes tell."""
        name = text_of(self.name)
        told: Json = {
            "id": str(self.id),
            "file_id": str(self.id),
            "name": name,
            "filename": name,
            "path": shown((*self.above, *self.names)),
            "parent_id": str(self.at or FileId(self.space, self.parent)),
            "type": self.type,
            "size": self.size if self.is_file else 0,
            "mime_type": self.media_type,
            "version": self.number,
            "etag": self.etag if self.is_file else None,
            "created_at": iso(self.btime_ns),
            "modified_at": iso(self.mtime_ns),
            "deleted_at": iso(self.died_ns) if self.died_ns else None,
        }
        if self.may:
            told |= {"team_id": self.space, "permission": self.may}
        raw = raw_of(self.name)
        if raw is not None:
            told["raw_name"] = raw
        return told


def iso(at_ns: int) -> str | None:
    """Return a moment as ``2026-11-21T18:54:07.123456Z``; None beyond the calendar."""
    second, left_ns = divmod(at_ns, 1_000_000_000)
    told = _second(second)
    return None if told is None else f"{told}.{left_ns // 1000:06d}Z"


@functools.lru_cache(maxsize=4096)  # files that came together have the same: 5 us each saved
def _second(second: int) -> str | None:
    try:
        at = _EPOCH + timedelta(seconds=second)
    except OverflowError:
        return None
    return at.replace(tzinfo=None).isoformat(timespec="seconds")
