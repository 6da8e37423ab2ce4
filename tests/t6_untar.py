"""The mount, the nameserver and a datanode killed at a random moment of a long run of changes.

What a killed mount answered is there when its folder is mounted again, and what the cluster has
before that is the tree as it was after some of the answered calls, at least what was synced. A
killed server is not noticed by programs. `EVERFOLD_SEED` repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import machine
from tests.harness.cluster import RealCluster
from tests.harness.folders import Folder, folder
from tests.harness.story import Seen, Story, look

pytestmark = pytest.mark.fuse

STEPS = 150  # some 450 calls: they end before or after the kill
STEPS_MAX = 100_000  # more than any mount lives to see
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def cluster(live_cluster: RealCluster) -> RealCluster:
    return live_cluster


@pytest.fixture
def other(cluster: RealCluster, tmp_path: Path) -> Iterator[Folder]:
    """Another mount of the same space."""
    with folder(cluster, tmp_path / "other") as made:
        yield made


def seeds(count: int) -> list[int]:
    """Return seeds, or the one that the environment wants."""
    wanted = os.environ.get("EVERFOLD_SEED")
    if wanted:
        return [int(wanted)]
    return [random.SystemRandom().randrange(1 << 32) for _ in range(count)]


class Killer:
    """Kills a process from a thread of its own, at a moment that a seed decides.

    The moment is a number of answered calls or a time: the one is at a call's end, the other
    may be in the midst of one. At the latest it is the end of the block.
    """

    def __init__(self, pid: int, story: Story, seed: int) -> None:
        chance = random.Random(seed)
        self._pid = pid
        self._goal = chance.choice((chance.randrange(1, 60), chance.randrange(1, 600)))
        self._time_s = chance.choice((PATIENCE_S, chance.uniform(0.02, 1.0)))
        self._is_reached = threading.Event()
        story.on_answer = self._answered
        self._thread = threading.Thread(target=self._run)

    def _answered(self, count: int) -> None:
        if count == self._goal:
            self._is_reached.set()

    def _run(self) -> None:
        self._is_reached.wait(self._time_s)
        os.kill(self._pid, signal.SIGKILL)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_reached.set()
        self._thread.join()
        machine.wait_until(lambda: not machine.is_alive(self._pid), PATIENCE_S, "it is dead")


def begin(mount: Folder, seed: int) -> Story:
    """Return a story below a new folder."""
    top = mount.path / f"{secrets.token_hex(4)}-{seed}"
    top.mkdir()
    return Story(top, seed)


def tell_until_killed(mount: Folder, seed: int) -> Story:
    """Make changes below a new folder of a mount that is killed meanwhile."""
    print(f"EVERFOLD_SEED={seed}")
    story = begin(mount, seed)
    with Killer(mount.pid, story, seed), pytest.raises(OSError):
        story.run(STEPS_MAX)
    print(f"  {len(story.answered)} calls answered, {story.synced} of them synced")
    return story


def check_prefix(story: Story, other: Folder) -> None:
    """Compare what is in the cluster, before the journal was sent, with each past state.

    A commit may still be under way when its mount is dead.
    """
    top = other.path / story.top.name
    machine.wait_until(top.exists, PATIENCE_S, "the folder is in the cluster")
    with contextlib.suppress(AssertionError):
        machine.wait_until(lambda: not differences(story, top), PATIENCE_S, "what is under way")
    wrong = differences(story, top)
    assert not wrong, f"no prefix: {story.top}: {wrong}"


def differences(story: Story, top: Path) -> list[str]:
    """Tell in words how a tree differs from the past state that is most like it."""
    try:
        seen = look(top)
    except FileNotFoundError as err:  # it goes away as we look
        return [str(err)]
    return min((state.differences(seen) for state in story.prefixes()), key=len)


def check_all(stories: list[Story], cluster: RealCluster, mount: Folder, path: Path) -> None:
    """Look at everything through a mount that has nothing cached; and at what `mount` logged."""
    with folder(cluster, path) as fresh:
        wrong = {s.top.name: s.unlike(look(fresh.path / s.top.name)) for s in stories}
    assert not any(wrong.values()), wrong
    assert [line for line in mount.said().splitlines() if " ERROR " in line] == []
    assert cluster.tool("fsck").returncode == 0


def kill_mounts(
    cluster: RealCluster, mount: Folder, other: Folder, tmp_path: Path, count: int
) -> None:
    """Kill a mount in `count` stories; look from the other mount before, and here after, that
    the journal was sent."""
    stories: list[Story] = []
    for seed in seeds(count):
        story = tell_until_killed(mount, seed)
        check_prefix(story, other)
        mount.mount()
        assert story.unlike(look(story.top)) == [], f"EVERFOLD_SEED={seed}"
        stories.append(story)
    check_all(stories, cluster, mount, tmp_path / "fresh")


# ---------------------------------------------------------------- the mount


def test_a_mount_killed_at_any_moment_loses_nothing_that_it_answered(
    cluster: RealCluster, mount: Folder, other: Folder, tmp_path: Path
) -> None:
    kill_mounts(cluster, mount, other, tmp_path, count=2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_mount_killed_a_hundred_times_loses_nothing_that_it_answered(
    cluster: RealCluster, mount: Folder, other: Folder, tmp_path: Path
) -> None:
    kill_mounts(cluster, mount, other, tmp_path, count=100)


@contextlib.contextmanager
def at_work(top: Path) -> Iterator[Seen]:
    """Save small files below `top` all the time; yields what was saved so far."""
    ending = threading.Event()
    saved: Seen = {}
    top.mkdir()

    def work() -> None:
        while not ending.wait(0.02):
            name, data = f"f{len(saved)}", b"%d" % len(saved)
            (top / name).write_bytes(data)
            saved[name] = ((top / name).lstat().st_mode, 1, data)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield saved
    finally:
        ending.set()
        thread.join()


def kill_mounts_beside_another(
    cluster: RealCluster, mount: Folder, other: Folder, tmp_path: Path, count: int
) -> None:
    """Kill a mount in `count` stories while the other one writes: each change is waited for."""
    stories: list[Story] = []
    with at_work(other.path / "elsewhere") as saved:
        for seed in seeds(count):
            before = len(saved)
            story = tell_until_killed(mount, seed)
            check_prefix(story, other)
            mount.mount()
            assert story.unlike(look(story.top)) == [], f"EVERFOLD_SEED={seed}"
            assert len(saved) > before, "the other mount went on"
            stories.append(story)
    machine.wait_until(
        lambda: look(mount.path / "elsewhere") == saved, PATIENCE_S, "it is seen here"
    )
    check_all(stories, cluster, mount, tmp_path / "fresh")


def test_a_mount_killed_while_another_writes_loses_nothing_either(
    cluster: RealCluster, mount: Folder, other: Folder, tmp_path: Path
) -> None:
    kill_mounts_beside_another(cluster, mount, other, tmp_path, count=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_mount_killed_thirty_times_while_another_writes_loses_nothing_either(
    cluster: RealCluster, mount: Folder, other: Folder, tmp_path: Path
) -> None:
    kill_mounts_beside_another(cluster, mount, other, tmp_path, count=30)


# ---------------------------------------------------------------- the servers


def kill_servers(
    cluster: RealCluster, mount: Folder, tmp_path: Path, name: str, count: int
) -> None:
    """Kill a server in `count` stories: no call may fail."""
    stories: list[Story] = []
    for seed in seeds(count):
        print(f"{name}: EVERFOLD_SEED={seed}")
        story, victim = begin(mount, seed), cluster.pid(name)
        with Killer(victim, story, seed):
            story.run(STEPS)
        machine.wait_until(lambda: cluster.pid(name) != victim, PATIENCE_S, "it is back")  # noqa: B023
        assert story.unlike(look(story.top)) == [], f"EVERFOLD_SEED={seed}"
        stories.append(story)
    mount.unmount()
    check_all(stories, cluster, mount, tmp_path / "fresh")


@pytest.mark.parametrize("name", ["nameserver", "dn1"])
def test_a_server_killed_at_any_moment_is_not_noticed_and_nothing_is_lost(
    cluster: RealCluster, mount: Folder, tmp_path: Path, name: str
) -> None:
    kill_servers(cluster, mount, tmp_path, name, count=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["nameserver", "dn2"])
def test_a_server_killed_thirty_times_is_not_noticed_and_nothing_is_lost(
    cluster: RealCluster, mount: Folder, tmp_path: Path, name: str
) -> None:
    kill_servers(cluster, mount, tmp_path, name, count=30)
