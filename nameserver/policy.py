"""What the nameserver decides by: every number of judgement, in one frozen value.

Nothing here is read from anywhere; the command line builds one from `everfold.config`, tests
build theirs with shorter times.
"""

from __future__ import annotations

from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Policy:
    """All of `_s` are seconds, sizes are bytes."""

    replicas: int = 2
    min_replicas: int = 2

    beat_s: float = 0.5  # how often a node reports
    busy_beat_s: float = 0.1  # while more commands wait for it
    suspect_s: float = 1.5  # silent for longer: not written to, read last
    down_s: float = 3.0  # silent for longer: its copies are missing
    repair_grace_s: float = 2.0  # down for longer: they are replaced
    safe_mode_s: float = 5.0  # after a start: wait for the known nodes at most so long

    commands_per_beat: int = 256
    lists_per_beat: int = 32
    task_ttl_s: float = 15.0  # a command that was sent and not answered is forgotten
    drop_ttl_s: float = 60.0  # the same of a drop: until then its node is not written to
    spares_s: float = 5.0  # places told beforehand are good for so long
    drop_rest_s: float = 60.0  # no node hears of a drop sooner: `spares_s` and the longest commit
    repair_blocks: int = 1024  # copies on their way to one node
    repair_bytes: int = 96 * 1024 * 1024  # and their bytes: the rate limit, with `beat_s`
    settle_s: float = 3.0  # a block younger than this may still be on its way to its nodes
    surplus_s: float = 20.0  # a copy too many is dropped when all was calm for so long
    gc_grace_s: float = DAY_S
    gc_interval_s: float = 60.0
    upload_ttl_s: float = DAY_S  # an upload that nobody goes on with is forgotten
    lease_s: float = 3.0  # of the one process that plans, on PostgreSQL

    write_lease_s: float = 5.0  # a holder silent for longer has lost the write lease
    write_calm_s: float = 1.0  # nobody else wrote for so long: a mount may have the lease
    write_wait_s: float = 8.0  # how long a commit waits for another's lease
    session_ttl_s: float = 30.0  # a mount silent for longer loses its locks
    token_ttl_s: float = 90 * DAY_S  # of a login
    block_token_ttl_s: float = 3600.0
    verified_s: float = 0.5  # how long a token's check against the database stays good
    bcrypt_rounds: int = 12
    login_window_s: float = 300.0
    login_failures: int = 10  # per name and address, within the window
    login_failures_name: int = 100  # per name from anywhere
    login_failures_address: int = 60  # per address, whatever the names
    invitation_ttl_s: float = 7 * DAY_S
    registration: str = "admin"  # "open" | "invite" | "admin"
    default_quota: int = 0
    max_file_size: int = 0  # 0: no limit
    allowed_extensions: frozenset[str] = frozenset()  # of files, lower case; empty: all
