"""Uploads in several requests: whoever is cut off goes on where it was, at any nameserver process.

An upload is a row, and a row for each block that is on the nodes; `offset` is what is safe, and
rises only when it is. One request at a time adds to an upload: it has its name in the row
(`writer`), which another may replace once no byte has come for `_SILENT_S`, so that whoever lost
its connection need not wait for the server to notice. The file is kept by the commit that also
ends the upload, so it is kept once. An upload that is left alone is forgotten after
`Policy.upload_ttl_s`; until then its blocks are no garbage (`nameserver.gc`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from everfold import wire
from everfold.errors import EverfoldError, Kind
from everfold.model import BlockId, Extent, Ino, SpaceId, UserId
from everfold.services import Clock
from nameserver import quota
from nameserver.blocks import Ledger
from nameserver.db import Cx, Database, Row
from nameserver.files import paths
from nameserver.files.browse import View
from nameserver.files.intake import Content, Intake
from nameserver.files.items import Item, Json, iso
from nameserver.files.paths import FileId
from nameserver.policy import Policy
from nameserver.spaces import WRITE

if TYPE_CHECKING:
    from nameserver.files.service import FileService, Visitor
    from nameserver.service import Service

Read = Callable[[int], bytes]
"""Return up to so many bytes of a request's body, b"" at its end; INVALID when it breaks off."""

UPLOADS_MAX: Final = 1000  # of one user at a time
_PIECE: Final = 512 * 1024
_SILENT_S: Final = 5.0
_KEEPING_S: Final = 30.0  # what a commit may take: another's lease, a node that blinks
_NOTE_S: Final = 0.5  # so often is told what is safe by now; a commit each
_COLUMNS: Final = "id, user_id, space_id, path, size, off, ino, created_ns, touched_ns"


class Upload(NamedTuple):
    """A row of `upload`. `path`: within the space; `ino`: of the file once it is kept, 0 before."""

    id: str
    user: UserId
    space: SpaceId
    path: str
    size: int
    offset: int
    ino: Ino
    created_ns: int
    touched_ns: int

    @property
    def is_kept(self) -> bool:
        """Tell whether the file is kept: nothing more is to come."""
        return self.ino != 0

    @property
    def names(self) -> list[bytes]:
        """Return the path, name by name."""
        return paths.parse_new(self.path)


class Uploads:
    """All uploads under way. Thread-safe; keeps nothing in memory."""

    def __init__(self, service: Service, files: FileService) -> None:
        self._db, self._clock, self._policy = service.db, service.clock, service.policy
        self._ledger = service.ledger
        self._spaces = service.spaces
        self._files = files

    # ------------------------------------------------------------ beginning and looking

    def begin(self, me: Visitor, path: str, size: int) -> Upload:
        """Announce a file of `size` bytes; an empty one is kept at once.

        What an ordinary upload refuses in the end is refused here already, as far as it is known:
        TOO_LARGE, QUOTA, INVALID, IS_DIR, NOT_DIR. RATE_LIMITED: too many are under way.
        """
        there, rest = self._files.aim(me, path, WRITE)
        self._files.intake(there, size)  # raises TOO_LARGE, QUOTA
        names = paths.parse(rest) or paths.parse_new(path)  # the rest is empty: a team folder
        if not rest or path.endswith("/") or names != self._target(there, rest, names):
            raise EverfoldError(Kind.IS_DIR, "there is a folder of that name", path[:200])
        now = self._clock.time_ns()
        upload = Upload(
            secrets.token_hex(16), me.who.user, there.space, paths.shown(names), size, 0, Ino(0),
            now, now,
        )  # fmt: skip
        with self._db.write() as cx:
            self._check_room(cx, there, names, size)
            row = cx.one("SELECT count(*) FROM upload WHERE user_id = ? AND ino = 0", me.who.user)
            if row and row[0] >= UPLOADS_MAX:
                raise EverfoldError(Kind.RATE_LIMITED, "too many uploads are under way")
            cx.run(
                f"INSERT INTO upload ({_COLUMNS}, writer, writer_until_ns)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', 0)",
                *upload,
            )
        if not size:
            self._keep(there, upload, self._claim(me, upload.id, 0), [])
            upload = self.get(me, upload.id)
        return upload

    def _target(self, there: Visitor, path: str, names: list[bytes]) -> list[bytes]:
        return self._files.target(there, path, names[-1].decode())

    def _check_room(self, cx: Cx, there: Visitor, names: list[bytes], size: int) -> None:
        try:
            found = View(cx, there.space).find(names)
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            found = None
        left = quota.left_in(cx, there.space)
        if left is not None and size - (found.size if found is not None else 0) > left:
            raise EverfoldError(Kind.QUOTA, "the quota leaves no room for this file")

    def get(self, me: Visitor, key: str) -> Upload:
        """Return one's upload; NOT_FOUND."""
        with self._db.read() as cx:
            return self._find(cx, me, key)

    def all(self, me: Visitor) -> list[Upload]:
        """Return one's uploads that are under way, the newest first.

        Without those into team folders that one has left.
        """
        with self._db.read() as cx:
            rows = cx.all(
                f"SELECT {_COLUMNS} FROM upload WHERE user_id = ? AND ino = 0 AND touched_ns > ?"
                " ORDER BY created_ns DESC, id",
                me.who.user,
                self._expired_ns(),
            )
        mine = {me.home, *(junction.space for junction in me.junctions)}
        return [upload for upload in (Upload(*row) for row in rows) if upload.space in mine]

    def told(self, me: Visitor, upload: Upload) -> Json:
        """Return what the JSON routes tell, with the path as the user says it."""
        there = self._files.visitors.into(me, upload.space)
        return {
            "id": upload.id,
            "path": paths.shown((*there.above, *upload.names)),
            "size": upload.size,
            "offset": upload.offset,
            "complete": upload.is_kept,
            "created_at": iso(upload.created_ns),
            "expires_at": iso(upload.touched_ns + int(self._policy.upload_ttl_s * 1e9)),
        }

    def kept(self, me: Visitor, upload: Upload) -> tuple[FileId, Item | None]:
        """Return what became of an upload that is kept; None when it was deleted since."""
        file = FileId(upload.space, upload.ino)
        try:
            return file, self._files.info(me, str(file))
        except EverfoldError as err:
            if err.kind is not Kind.NOT_FOUND:
                raise
            return file, None

    def drop(self, me: Visitor, key: str) -> Upload:
        """Give an upload up; its blocks are garbage then. A file that was kept stays."""
        with self._db.write() as cx:
            upload = self._find(cx, me, key)
            _forget(cx, [upload.id])
        return upload

    def _find(self, cx: Cx, me: Visitor, key: str) -> Upload:
        row = cx.one(
            f"SELECT {_COLUMNS} FROM upload WHERE id = ? AND user_id = ? AND touched_ns > ?",
            key[:80],
            me.who.user,
            self._expired_ns(),
        )
        if row is None:
            raise EverfoldError(Kind.NOT_FOUND, "there is no such upload", key[:80])
        upload = Upload(*row)
        self._spaces.check(upload.space, me.who.user)
        return upload

    def _expired_ns(self) -> int:
        return self._clock.time_ns() - int(self._policy.upload_ttl_s * 1e9)

    # ------------------------------------------------------------ bytes

    def add(self, me: Visitor, key: str, offset: int, length: int | None, read: Read) -> Upload:
        """Take the bytes from `offset` on; with the last one the file is kept.

        CONFLICT, with the right offset as subject, when that is another; BUSY while another
        request adds to the upload. Whatever goes wrong, what was safe by then stays: of a body
        that breaks off, all that came. What failed only in keeping the file (QUOTA, …) may be
        tried again without a byte more.
        """
        upload = self.get(me, key)
        if offset + (length or 0) > upload.size:
            raise _beyond(upload)
        if upload.is_kept and offset == upload.size:
            return upload
        there = self._there(me, upload)
        writer = self._claim(me, key, offset)
        last: list[wire.Stored] = []
        try:
            if offset < upload.size:
                self._target(there, upload.path, upload.names)  # it may still be written to
                taking = _Taking(self._db, self._clock, self._ledger, self._policy, upload, writer)
                intake = self._files.intake(there, None)
                offset, last = taking.all_of(intake, offset, length, read)
            elif read(1):
                raise _beyond(upload)
            if offset == upload.size:
                self._keep(there, upload, writer, last)
        finally:
            self._let_go(key, writer)
        return self.get(me, key)

    def _there(self, me: Visitor, upload: Upload) -> Visitor:
        """Return the visitor in the upload's space; CROSS_SPACE when its path leads out by now."""
        there = self._files.visitors.into(me, upload.space, WRITE)
        aimed, _ = self._files.visitors.aim(there, upload.names, WRITE)
        if aimed.space != upload.space:
            raise EverfoldError(
                Kind.CROSS_SPACE, "the folder was shared meanwhile; begin the upload anew"
            )
        return there

    def _claim(self, me: Visitor, key: str, offset: int) -> str:
        """Become the one who adds to an upload at its end; return the writer's name."""
        writer = secrets.token_hex(8)
        now = self._clock.time_ns()
        with self._db.write() as cx:
            touched = cx.run(
                "UPDATE upload SET writer = ?, writer_until_ns = ?, touched_ns = ? WHERE id = ?"
                " AND off = ? AND ino = 0 AND (writer = '' OR writer_until_ns < ?)",
                writer, now + int(_SILENT_S * 1e9), now, key, offset, now,
            )  # fmt: skip
            if touched:
                return writer
            upload = self._find(cx, me, key)
        if upload.offset != offset:
            raise EverfoldError(Kind.CONFLICT, "the upload goes on elsewhere", str(upload.offset))
        raise EverfoldError(Kind.BUSY, "another request adds to this upload", str(upload.offset))

    def _let_go(self, key: str, writer: str) -> None:
        with self._db.write() as cx:
            cx.run("UPDATE upload SET writer = '' WHERE id = ? AND writer = ?", key, writer)

    def _keep(self, there: Visitor, upload: Upload, writer: str, last: list[wire.Stored]) -> None:
        """Let the path have what came. `last`: what was stored a moment ago."""
        now = self._clock.time_ns()
        with self._db.write() as cx:
            until = now + int(_KEEPING_S * 1e9)
            cx.run(
                "UPDATE upload SET writer_until_ns = ? WHERE id = ? AND writer = ?",
                until, upload.id, writer,
            )  # fmt: skip
            rows = cx.all(
                "SELECT off, size, block FROM upload_block WHERE upload_id = ? ORDER BY off",
                upload.id,
            )
        extents = [Extent(off, size, BlockId(bytes(block))) for off, size, block in rows]
        names = upload.names

        def end(cx: Cx) -> None:
            ino = View(cx, upload.space).at(names).ino
            touched = cx.run(
                "UPDATE upload SET ino = ?, writer = '', touched_ns = ?"
                " WHERE id = ? AND writer = ? AND off = size",
                ino, self._clock.time_ns(), upload.id, writer,
            )  # fmt: skip
            if not touched:
                raise _taken_over(upload.id)
            cx.run("DELETE FROM upload_block WHERE upload_id = ?", upload.id)

        self._files.keep(there, names, Content(upload.size, extents, last), end)


class _Taking:
    """One request that adds to an upload."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        ledger: Ledger,
        policy: Policy,
        upload: Upload,
        writer: str,
    ) -> None:
        self._db, self._clock, self._ledger, self._policy = db, clock, ledger, policy
        self._upload, self._writer = upload, writer
        self._noted = 0  # blocks of the intake that the database knows
        self._next_at = 0.0

    def all_of(
        self, intake: Intake, start: int, length: int | None, read: Read
    ) -> tuple[int, list[wire.Stored]]:
        """Take what comes; return the offset after it, and what was stored last.

        INVALID when it breaks off, or is not of the length that was told.

        What is safe is noted as it becomes so, and in the end, however that comes.
        """
        try:
            came, cut = self._write(intake, start, read)
            last = self._note(intake.end(), start)
        except EverfoldError:
            self._note(intake.safe(), start)
            raise
        finally:
            intake.cancel()
        if cut is None and length is not None and came != length:
            cut = EverfoldError(Kind.INVALID, f"the body was cut short at {came} of {length}")
        if cut is not None:
            raise cut
        return start + came, last

    def _write(self, intake: Intake, start: int, read: Read) -> tuple[int, EverfoldError | None]:
        """Write what comes; return how much it was, and why no more came."""
        came = 0
        while True:
            try:
                piece = read(_PIECE)
            except EverfoldError as err:
                return came, err
            if not piece:
                return came, None
            came += len(piece)
            if start + came > self._upload.size:
                raise _beyond(self._upload)
            intake.write(piece)
            if time.monotonic() > self._next_at:
                self._note(intake.safe(), start)

    def _note(self, content: Content, start: int) -> list[wire.Stored]:
        """Tell the database what is safe by now; return what it did not know."""
        fresh = content.stored[self._noted :]
        extents = content.extents[self._noted :]
        self._next_at = time.monotonic() + _NOTE_S
        now = self._clock.time_ns()
        upload = self._upload
        with self._db.write() as cx:
            touched = cx.run(
                "UPDATE upload SET off = ?, touched_ns = ?, writer_until_ns = ?"
                " WHERE id = ? AND writer = ?",
                start + content.size, now, now + int(_SILENT_S * 1e9), upload.id, self._writer,
            )  # fmt: skip
            if not touched:
                raise _taken_over(upload.id)
            if fresh:
                least = self._policy.min_replicas
                self._ledger.record(cx, upload.space, fresh, now, least)
            cx.many(
                "INSERT INTO upload_block (upload_id, off, space_id, block, size)"
                " VALUES (?, ?, ?, ?, ?)",
                [(upload.id, start + e.offset, upload.space, e.block, e.length) for e in extents],
            )
        self._noted += len(fresh)
        return fresh


def expire(db: Database, clock: Clock, policy: Policy) -> int:
    """Forget uploads that nobody went on with; return how many."""
    before = clock.time_ns() - int(policy.upload_ttl_s * 1e9)
    sql = "SELECT id FROM upload WHERE touched_ns <= ?"
    with db.read() as cx:
        if cx.one(sql + " LIMIT 1", before) is None:
            return 0
    with db.write() as cx:
        rows: Sequence[Row] = cx.all(sql, before)
        _forget(cx, [row[0] for row in rows])
    return len(rows)


def _forget(cx: Cx, keys: Sequence[str]) -> None:
    cx.many("DELETE FROM upload_block WHERE upload_id = ?", [(key,) for key in keys])
    cx.many("DELETE FROM upload WHERE id = ?", [(key,) for key in keys])


def _beyond(upload: Upload) -> EverfoldError:
    return EverfoldError(Kind.TOO_LARGE, f"the upload was announced with {upload.size} bytes")


def _taken_over(key: str) -> EverfoldError:
    return EverfoldError(Kind.CONFLICT, "another request has taken this upload over", key)
