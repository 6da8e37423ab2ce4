"""How a mount behaves: every number of judgement, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """How this mount behaves; times in seconds, sizes in bytes."""

    entry_ttl_s: float = 3600.0  # the feed invalidates, so the kernel may remember for long
    attr_ttl_s: float = 3600.0
    negative_ttl_s: float = 3600.0
    is_read_only: bool = False
    uid: int | None = None  # show everything as owned by this user
    gid: int | None = None
    leases: bool = True  # ask for the write lease; without it every change waits
    backlog_ops: int = 20_000  # changes on their way past which those who make more wait
    change_deadline_s: float = 60.0  # how long a change may wait for its commit
    close_wait_s: float = 2.0  # how long a close without the write lease waits for its commit
    dirty_max: int = 16 * 1024 * 1024  # past this a file's dirty bytes are sent on
    dirty_age_s: float = 0.5
    scattered_min: int = 512  # dirty pieces from which on a file is one written here and there:
    gather_s: float = 5.0  # what is overwritten so soon, or grows together, is sent once
    gather_alone_s: float = 1.5  # while nothing of it is on its way: the disks would stand idle
    gather_bytes: int = 320 * 1024 * 1024  # written, overwritten ones too
    gather_runs: int = 16_500  # of pieces that touch; 50 us each in the commit, which is one
    quiet_s: float = 5.0  # an open file without writes for so long has made a version
    backlog_max: int = 512 * 1024 * 1024  # staged bytes past which writers wait
    freshness_s: float = 2.0  # silence of the feed after which nothing is cached by the kernel
    poll_s: float = 1.0  # a quiet feed answers this often, which shows that it lives
