"""The schema, which is a document: every table, its columns' meaning, its invariants.

Time is in the schema. Rows of `inode`, `entry`, `extent` and `xattr` have a life
``[born, died)`` in commit numbers of their space; `died` NULL means "now", and a partial
index over those rows keeps the present as fast as a plain table. Nothing of a file's bytes
or names is overwritten: a change closes rows and opens rows; the state at `s` is
``born <= s AND (died IS NULL OR died > s)``. A row is updated in place only when it was
born in the commit that is being written, and for a directory's own times and link count,
which have no history.

Times are nanoseconds since the epoch, sizes are bytes, flags are 0/1, names and block names
are raw bytes. peewee binds a database to a model class for the whole process, so the classes
are made by a factory, once per database: several nameservers fit in one process.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import peewee as pw

SCHEMA_VERSION = 1


def tables(db: pw.Database) -> SimpleNamespace:
    """Return the model classes bound to `db`; `.all` lists them in order of creation."""

    is_sqlite = isinstance(db, pw.SqliteDatabase)

    class Base(pw.Model):
        class Meta:
            database = db
            legacy_table_names = False

    class Meta(Base):
        """Facts of the cluster: `schema`, `nodes_gen` (moves on with every change of a
        node's state), `node_states` (JSON, as `nodes_gen` last told them), `cluster_id`,
        `planner` (PostgreSQL; JSON: which process plans repairs, until when)."""

        key = pw.TextField(primary_key=True)
        value = pw.TextField()

    # ------------------------------------------------------------ people

    class User(Base):
        """A person. `token_gen` rises when all tokens of the user are revoked."""

        name = pw.TextField(unique=True)
        email = pw.TextField(null=True, unique=True)
        password_hash = pw.TextField()  # bcrypt over SHA-256 (no cut at 72 bytes)
        role = pw.TextField(default="user")  # "user" | "admin"
        quota = pw.BigIntegerField(default=0)  # bytes, 0: none
        created_ns = pw.BigIntegerField()
        is_disabled = pw.SmallIntegerField(default=0)
        token_gen = pw.IntegerField(default=0)

        class Meta:
            table_name = "account"  # "user" is a reserved word of SQL

    class Device(Base):
        """A machine or program that a user lets in; revoked devices' tokens are dead.

        A mount is a device of its own; its `parent` is the one whose login it was mounted with,
        and ends with it."""

        id = pw.TextField(primary_key=True)
        user = pw.ForeignKeyField(User, column_name="user_id", on_delete="CASCADE")
        name = pw.TextField()
        kind = pw.TextField(default="")
        created_ns = pw.BigIntegerField()
        seen_ns = pw.BigIntegerField(default=0)
        is_revoked = pw.SmallIntegerField(default=0)
        parent = pw.TextField(default="", index=True, constraints=[pw.SQL("DEFAULT ''")])

    class RevokedToken(Base):
        """A token that was ended by itself, until it would have expired."""

        id = pw.TextField(primary_key=True)
        until_ns = pw.BigIntegerField(index=True)

    class Invitation(Base):
        """Lets one person register. `id` is made of the secret, which is not stored."""

        id = pw.TextField(primary_key=True)
        author = pw.TextField()
        email = pw.TextField(default="")  # who may use it, "": whoever has it
        role = pw.TextField(default="user")
        quota = pw.BigIntegerField(default=0)
        created_ns = pw.BigIntegerField()
        expires_ns = pw.BigIntegerField()
        used_ns = pw.BigIntegerField(default=0)  # 0: it is good
        used_by = pw.TextField(default="")

    class Audit(Base):
        """Who did what, from where: logins, shares, devices, user and node administration."""

        at_ns = pw.BigIntegerField(index=True)
        author = pw.TextField()
        action = pw.TextField()
        subject = pw.TextField(default="")
        detail = pw.TextField(default="")
        address = pw.TextField(default="")  # of the client, "": it came from no request

    class Load(Base):
        """What a process answered in a step of `nameserver.load`: bytes of bodies, bytes that
        datanodes told it of, and the durations (packed `everfold.durations`)."""

        at_s = pw.BigIntegerField()  # the step's beginning, in seconds since the epoch
        process = pw.TextField()
        requests = pw.BigIntegerField()
        bytes_in = pw.BigIntegerField()
        bytes_out = pw.BigIntegerField()
        stored = pw.BigIntegerField()
        fetched = pw.BigIntegerField()
        durations = pw.BlobField()

        class Meta:
            primary_key = pw.CompositeKey("at_s", "process")
            without_rowid = is_sqlite

    # ------------------------------------------------------------ spaces and their tree

    class Share(Base):
        """A link that lets whoever has it at one file or folder. Its token is made of `key` and
        a signature, and not stored. An `ino` that is gone is followed by its name."""

        key = pw.TextField(primary_key=True)
        space = pw.IntegerField(column_name="space_id")
        ino = pw.BigIntegerField()
        user = pw.ForeignKeyField(User, column_name="user_id", on_delete="CASCADE")  # who made it
        permission = pw.TextField()  # "read" | "write" | "admin"
        password_hash = pw.TextField(default="")  # "": none
        created_ns = pw.BigIntegerField()
        expires_ns = pw.BigIntegerField(default=0)  # 0: never
        revoked_ns = pw.BigIntegerField(default=0)  # 0: it is good
        downloads = pw.BigIntegerField(default=0)

        class Meta:
            indexes = ((("space", "ino"), False),)

    class Upload(Base):
        """A file that comes in several requests (`nameserver.files.uploads`). Its first `off`
        bytes are on the nodes: the blocks of its `UploadBlock`s. `ino`: 0 until it is kept."""

        id = pw.TextField(primary_key=True)
        user = pw.ForeignKeyField(User, column_name="user_id", on_delete="CASCADE")
        space = pw.IntegerField(column_name="space_id")
        path = pw.TextField()
        size = pw.BigIntegerField()
        offset = pw.BigIntegerField(column_name="off", default=0)
        ino = pw.BigIntegerField(default=0)
        created_ns = pw.BigIntegerField()
        touched_ns = pw.BigIntegerField()  # of one that is left alone for long nothing stays
        writer = pw.TextField(default="")  # the request that adds to it, "": none
        writer_until_ns = pw.BigIntegerField(default=0)  # then another may take its place

    class UploadBlock(Base):
        """A block of an upload that is not kept yet: no garbage."""

        upload = pw.ForeignKeyField(Upload, column_name="upload_id", on_delete="CASCADE")
        offset = pw.BigIntegerField(column_name="off")
        space = pw.IntegerField(column_name="space_id")
        block = pw.BlobField()
        size = pw.IntegerField()

        class Meta:
            primary_key = pw.CompositeKey("upload", "offset")
            indexes = ((("space", "block"), False),)

    class SyncPosition(Base):
        """How far a device followed a space's events: all up to number `part` of commit `seq`."""

        device = pw.TextField(column_name="device_id")
        space = pw.IntegerField(column_name="space_id")
        seq = pw.BigIntegerField()
        part = pw.BigIntegerField(default=0)
        at_ns = pw.BigIntegerField()

        class Meta:
            primary_key = pw.CompositeKey("device", "space")

    class Space(Base):
        """One tree. `seq` is the last commit; `locks_gen` moves on whenever locks fall."""

        name = pw.TextField()
        owner = pw.ForeignKeyField(User, column_name="owner_id")
        seq = pw.BigIntegerField(default=0)
        next_ino = pw.BigIntegerField(default=2)  # 1 is the root
        live_bytes = pw.BigIntegerField(default=0)  # sum of the sizes of live files
        history_bytes = pw.BigIntegerField(default=0)  # bytes of extents that only history names
        inodes = pw.BigIntegerField(default=1)
        replicas = pw.SmallIntegerField(default=0)  # 0: the cluster's default
        locks_gen = pw.BigIntegerField(default=0)
        lease_mount = pw.TextField(default="")  # who holds the write lease, "": nobody
        lease_epoch = pw.BigIntegerField(default=0)  # rises with every grant
        lease_until_ns = pw.BigIntegerField(default=0)  # an older lease is nobody's
        lease_recalled = pw.BigIntegerField(default=0)  # the epoch that another wants ended
        lease_recalled_ns = pw.BigIntegerField(default=0)  # when it said so
        created_ns = pw.BigIntegerField()
        teams_gen = pw.BigIntegerField(default=0)  # moves on when a junction in it changes

        class Meta:
            indexes = ((("owner", "name"), True),)

    class Team(Base):
        """A team folder: a space that has members (docs/adr/0007). Of one that was deleted the
        owner still has the history, and may bring it back."""

        space = pw.IntegerField(column_name="space_id", primary_key=True)
        name = pw.TextField()  # as it was made; each member may call it otherwise
        created_ns = pw.BigIntegerField()
        deleted_ns = pw.BigIntegerField(default=0)  # 0: it lives
        origin = pw.IntegerField(column_name="origin_id", default=0)  # it was a folder there, and
        origin_seq = pw.BigIntegerField(default=0)  # what was in it left with the commits from
        origin_end = pw.BigIntegerField(default=0)  # `origin_seq` to `origin_end`

        class Meta:
            indexes = ((("origin", "origin_seq"), False),)

    class Member(Base):
        """Somebody who may use a team folder, its owner among them. `ino` is the junction: the
        directory in their home space that leads into it, always empty itself."""

        space = pw.IntegerField(column_name="space_id")
        user = pw.ForeignKeyField(User, column_name="user_id", on_delete="CASCADE")
        permission = pw.TextField()  # "owner" | "write" | "read"
        home = pw.IntegerField(column_name="home_id")
        ino = pw.BigIntegerField()
        added_ns = pw.BigIntegerField()

        class Meta:
            primary_key = pw.CompositeKey("space", "user")
            indexes = ((("home", "ino"), True),)

    class CommitLog(Base):
        """commit(seq) -> when and by whom; `at_ns` rises with `seq`.

        `changes` is the msgpack list of `wire.Change` that the feed tells.
        """

        space = pw.IntegerField(column_name="space_id")
        seq = pw.BigIntegerField()
        at_ns = pw.BigIntegerField()
        author = pw.TextField()
        device = pw.TextField()
        mount = pw.TextField()
        changes = pw.BlobField()

        class Meta:
            primary_key = pw.CompositeKey("space", "seq")
            without_rowid = is_sqlite

    class Inode(Base):
        """What stat tells of an inode, during a stretch of its life (see `model.Attr`).

        `version` is k of the content then (0: never written); `content` the commit that
        last changed its bytes. The last row of an inode that lost its last name is closed. The
        hidden inode of a conflict (see `Version`) lives in one commit only; its `rdev` is the
        inode that was written.
        """

        space = pw.IntegerField(column_name="space_id")
        ino = pw.BigIntegerField()
        born = pw.BigIntegerField()
        died = pw.BigIntegerField(null=True)
        mode = pw.IntegerField()
        nlink = pw.IntegerField()
        uid = pw.BigIntegerField()
        gid = pw.BigIntegerField()
        rdev = pw.BigIntegerField(default=0)
        size = pw.BigIntegerField(default=0)
        allocated = pw.BigIntegerField(default=0)
        atime_ns = pw.BigIntegerField()
        mtime_ns = pw.BigIntegerField()
        ctime_ns = pw.BigIntegerField()
        btime_ns = pw.BigIntegerField()
        version = pw.BigIntegerField(default=0)
        content = pw.BigIntegerField(default=0)
        target = pw.BlobField(default=b"")
        has_xattrs = pw.SmallIntegerField(default=0)

        class Meta:
            primary_key = pw.CompositeKey("space", "ino", "born")
            without_rowid = is_sqlite

    class Entry(Base):
        """A name in a directory, for a stretch of its life.

        `vbase` turns the inode's k into the version number of the name: number = vbase + k;
        a new entry at a name starts where the last one ended (`vlast`, set when the row is
        closed: vbase + the greatest k that the inode had then), so numbers are never reused.
        An inode that comes back to a name it bore goes on behind them too: what it showed
        there before keeps the number it had (see `tree.history`).
        """

        space = pw.IntegerField(column_name="space_id")
        parent = pw.BigIntegerField()
        name = pw.BlobField()
        born = pw.BigIntegerField()
        died = pw.BigIntegerField(null=True)
        ino = pw.BigIntegerField()
        vbase = pw.BigIntegerField(default=0)
        vlast = pw.BigIntegerField(default=0)

        class Meta:
            primary_key = pw.CompositeKey("space", "parent", "name", "born")
            without_rowid = is_sqlite

    class Extent(Base):
        """`length` bytes at `offset` of an inode are those of `block` at `block_offset`.

        At any moment the extents of an inode that live then do not overlap.
        """

        space = pw.IntegerField(column_name="space_id")
        ino = pw.BigIntegerField()
        offset = pw.BigIntegerField(column_name="off")
        born = pw.BigIntegerField()
        died = pw.BigIntegerField(null=True)
        length = pw.BigIntegerField()
        block = pw.BlobField()
        block_offset = pw.BigIntegerField(default=0)

        class Meta:
            primary_key = pw.CompositeKey("space", "ino", "offset", "born")
            without_rowid = is_sqlite

    class Xattr(Base):
        """An extended attribute, for a stretch of its life."""

        space = pw.IntegerField(column_name="space_id")
        ino = pw.BigIntegerField()
        name = pw.BlobField()
        born = pw.BigIntegerField()
        died = pw.BigIntegerField(null=True)
        value = pw.BlobField()

        class Meta:
            primary_key = pw.CompositeKey("space", "ino", "name", "born")
            without_rowid = is_sqlite

    class Version(Base):
        """A content of an inode: its bytes are the extents of `content_ino` alive at `seq`.

        `content_ino` is `ino` itself, except for a conflict that never was current: its
        bytes belong to a hidden inode that no entry names. `is_sealed` 0: mount `mount` still
        has it open, and its next write replaces the row instead of adding one.
        """

        space = pw.IntegerField(column_name="space_id")
        ino = pw.BigIntegerField()
        k = pw.BigIntegerField()
        seq = pw.BigIntegerField()
        at_ns = pw.BigIntegerField()
        size = pw.BigIntegerField()
        mtime_ns = pw.BigIntegerField()
        mode = pw.IntegerField()
        author = pw.TextField()
        device = pw.TextField()
        mount = pw.TextField()
        content_ino = pw.BigIntegerField()
        is_sealed = pw.SmallIntegerField(default=1)
        is_conflict = pw.SmallIntegerField(default=0)
        is_pinned = pw.SmallIntegerField(default=0)
        base = pw.BigIntegerField(default=0)

        class Meta:
            primary_key = pw.CompositeKey("space", "ino", "k")
            without_rowid = is_sqlite

    class Mount(Base):
        """A mount of a space. `last_op`: the last of its operations that was applied;
        `results`: msgpack (first_op, [Result], seq) of its last batch, for a retry."""

        space = pw.IntegerField(column_name="space_id")
        id = pw.TextField()
        author = pw.TextField()
        device = pw.TextField()
        device_id = pw.TextField(default="")
        label = pw.TextField(default="")
        last_op = pw.BigIntegerField(default=0)
        results = pw.BlobField(default=b"")
        seen_ns = pw.BigIntegerField()
        is_read_only = pw.SmallIntegerField(default=0)  # as it said itself; its commits fail
        # the commit up to which it followed the feed
        position = pw.BigIntegerField(default=0, constraints=[pw.SQL("DEFAULT 0")])

        class Meta:
            primary_key = pw.CompositeKey("space", "id")

    class FileLock(Base):
        """A granted lock on bytes [start, stop) of an inode."""

        space = pw.IntegerField(column_name="space_id")
        ino = pw.BigIntegerField()
        kind = pw.TextField()  # model.LockKind
        type = pw.TextField()  # "read" | "write"
        mount = pw.TextField()
        owner = pw.TextField()  # the kernel's 64-bit lock owner, in hex
        start = pw.BigIntegerField()
        stop = pw.BigIntegerField()
        pid = pw.BigIntegerField()

        class Meta:
            indexes = ((("space", "ino"), False), (("space", "mount"), False))

    class LockWait(Base):
        """Who waits for whom: (mount, owner) waits for (holder_mount, holder_owner)."""

        space = pw.IntegerField(column_name="space_id")
        mount = pw.TextField()
        owner = pw.TextField()
        holder_mount = pw.TextField()
        holder_owner = pw.TextField()
        at_ns = pw.BigIntegerField()

        class Meta:
            indexes = ((("space", "mount", "owner"), False),)

    class LockLease(Base):
        """The mount that grants a space's locks to its own programs; no row: nobody does."""

        space = pw.IntegerField(column_name="space_id", primary_key=True)
        mount = pw.TextField()
        recalled_ns = pw.BigIntegerField(default=0)  # when another mount asked, 0: it did not

    class LockAsk(Base):
        """When a mount last asked for a lock here (to a quarter of `Policy.write_calm_s`)."""

        space = pw.IntegerField(column_name="space_id")
        mount = pw.TextField()
        at_ns = pw.BigIntegerField()

        class Meta:
            primary_key = pw.CompositeKey("space", "mount")

    # ------------------------------------------------------------ blocks and nodes

    class Node(Base):
        """A datanode. `wanted` is the admin's word ("" | "failed" | "draining" | "removed");
        whether it is up, suspect or down follows from `seen_ns`."""

        id = pw.TextField(primary_key=True)
        url = pw.TextField()
        zone = pw.TextField(default="")
        wanted = pw.TextField(default="")
        boot = pw.TextField(default="")
        capacity = pw.BigIntegerField(default=0)
        used = pw.BigIntegerField(default=0)
        free = pw.BigIntegerField(default=0)
        blocks = pw.BigIntegerField(default=0)
        seen_ns = pw.BigIntegerField(default=0)
        created_ns = pw.BigIntegerField()

    class Block(Base):
        """A block that some node reported or some client stored. `kept_ns`: when it was last
        planned or seen; unreferenced for longer than the grace period it is garbage."""

        space = pw.IntegerField(column_name="space_id")
        block = pw.BlobField()
        size = pw.IntegerField()
        kept_ns = pw.BigIntegerField()

        class Meta:
            primary_key = pw.CompositeKey("space", "block")
            without_rowid = is_sqlite

    class Replica(Base):
        """A node has a block. `is_bad`: it did not match its name when last read (1: a reader
        said so, 2: the node found so itself and put it aside); it counts for nothing, and is
        dropped once good copies exist. Names being hashes, every index more is a page of its own
        to write for each copy: what a node holds under a prefix is a range of the key."""

        space = pw.IntegerField(column_name="space_id")
        block = pw.BlobField()
        node = pw.TextField()
        is_bad = pw.SmallIntegerField(default=0)

        class Meta:
            primary_key = pw.CompositeKey("space", "block", "node")
            without_rowid = is_sqlite

    class Task(Base):
        """A command that waits for a node's next beat (`sent_ns` 0) or whose outcome the node
        has not told yet. `kind`: "copy" | "drop" | "verify" | "list"; of "list", `block` is the
        prefix byte and `space` 0. A task says what was decided, not what is: losing one is
        harmless, the planner decides again."""

        node = pw.TextField()
        kind = pw.TextField()
        space = pw.IntegerField(column_name="space_id")
        block = pw.BlobField()
        size = pw.IntegerField(default=0)
        queued_ns = pw.BigIntegerField()
        sent_ns = pw.BigIntegerField(default=0)

        class Meta:
            primary_key = pw.CompositeKey("node", "kind", "space", "block")
            indexes = ((("space", "block"), False),)
            without_rowid = is_sqlite

    every = [
        Meta, User, Device, RevokedToken, Invitation, Audit, Load, Share, Upload, UploadBlock,
        SyncPosition, Space, Team, Member, CommitLog, Inode, Entry, Extent, Xattr, Version, Mount,
        FileLock, LockWait, LockLease, LockAsk, Node, Block, Replica, Task,
    ]  # fmt: skip
    return SimpleNamespace(**{model.__name__: model for model in every}, all=every)


PARTIAL_INDEXES = (
    "CREATE UNIQUE INDEX IF NOT EXISTS inode_now ON inode (space_id, ino) WHERE died IS NULL",
    "CREATE UNIQUE INDEX IF NOT EXISTS entry_now ON entry (space_id, parent, name)"
    " WHERE died IS NULL",
    "CREATE INDEX IF NOT EXISTS entry_ino ON entry (space_id, ino)",
    "CREATE UNIQUE INDEX IF NOT EXISTS extent_now ON extent (space_id, ino, off)"
    " WHERE died IS NULL",
    "CREATE INDEX IF NOT EXISTS extent_block ON extent (space_id, block)",
    "CREATE INDEX IF NOT EXISTS replica_bad ON replica (space_id, block) WHERE is_bad > 0",
    "CREATE INDEX IF NOT EXISTS task_drop ON task (space_id, block) WHERE kind = 'drop'",
    "CREATE UNIQUE INDEX IF NOT EXISTS xattr_now ON xattr (space_id, ino, name) WHERE died IS NULL",
    "CREATE INDEX IF NOT EXISTS version_open ON version (space_id, mount) WHERE is_sealed = 0",
)
"""What peewee's own index declarations cannot say the same way on both databases."""


LATER_COLUMNS = (
    ("audit", "address", "TEXT NOT NULL DEFAULT ''"),
    ("device", "parent", "TEXT NOT NULL DEFAULT ''"),
    ("mount", "position", "BIGINT NOT NULL DEFAULT 0"),
    ("space", "teams_gen", "BIGINT NOT NULL DEFAULT 0"),
    ("team", "origin_id", "INTEGER NOT NULL DEFAULT 0"),
    ("team", "origin_seq", "BIGINT NOT NULL DEFAULT 0"),
    ("team", "origin_end", "BIGINT NOT NULL DEFAULT 0"),
)
"""Columns that an earlier version's tables lack."""

FORMER_INDEXES = ("commit_log_space_id_at_ns", "replica_node_prefix")


def create(db: pw.Database, models: Any) -> None:
    """Create what is missing, take out what an earlier version had; idempotent.

    A new database is made in one transaction: statement by statement it was 62 syncs.
    """
    with contextlib.nullcontext() if db.get_tables() else db.atomic():
        _create(db, models)


def _create(db: pw.Database, models: Any) -> None:
    for table, column, kind in LATER_COLUMNS:
        known = {found.name for found in db.get_columns(table)} if db.table_exists(table) else ()
        if known and column not in known:
            add = f"ALTER TABLE {table} ADD COLUMN {column} {kind}"
            db.execute_sql(add)  # type: ignore[no-untyped-call]
    db.create_tables(models.all, safe=True)
    for index in FORMER_INDEXES:
        db.execute_sql(f"DROP INDEX IF EXISTS {index}")  # type: ignore[no-untyped-call]
    if any(column.name == "prefix" for column in db.get_columns("replica")):
        db.execute_sql("ALTER TABLE replica DROP COLUMN prefix")  # type: ignore[no-untyped-call]
    for statement in PARTIAL_INDEXES:
        db.execute_sql(statement)  # type: ignore[no-untyped-call]
