"""Rows of versions, as writes make them."""

from __future__ import annotations

from nameserver.tree.batch import Batch
from nameserver.tree.rows import Inode, VersionRow


def new(batch: Batch, inode: Inode, k: int, base: int, is_sealed: bool) -> VersionRow:
    """Return a version with the bytes that `inode` has as of this commit."""
    user, device = batch.author
    return VersionRow(
        (k, batch.seq, batch.at_ns, inode.size, inode.mtime_ns, inode.mode, user, device,
         batch.mount, inode.ino, int(is_sealed), 0, 0, base),
        is_stored=False,
    )  # fmt: skip


def renew(batch: Batch, inode: Inode, version: VersionRow, is_sealed: bool) -> None:
    """Let an open version be the bytes that `inode` has as of this commit."""
    version.author, version.device = batch.author
    version.seq, version.at_ns = batch.seq, batch.at_ns
    version.size, version.mode = inode.size, inode.mode
    version.is_sealed = int(is_sealed)


def add_current(batch: Batch, inode: Inode, base: int, is_sealed: bool) -> None:
    """Give a file the next version, for the bytes that it has as of this commit."""
    version = new(batch, inode, inode.top + 1, base, is_sealed)
    batch.add_version(inode, version)
    inode.current = version
    inode.version = version.k


def add_first(batch: Batch, inode: Inode) -> None:
    """Give a file that was closed without ever being written its empty first version."""
    batch.edit(inode)
    inode.content = batch.seq
    add_current(batch, inode, base=0, is_sealed=True)
    batch.changed("attr", inode.ino)
