"""What is put into the kernel's page cache is never older than what the kernel was told."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from everfold.model import BLOCK_MAX, Ino
from mount.client import Client
from mount.pushes import WINDOW
from tests.harness.world import World, eventually, find, save

SIZE = 2 * WINDOW + 100_000
BEFORE = os.urandom(1 << 20) * (SIZE >> 20) + bytes(SIZE % (1 << 20))
AFTER = BEFORE[::-1]


class Kernel:
    """A page cache: what it was given and not told to drop, and a brake on what it is given."""

    def __init__(self) -> None:
        self.pages: dict[Ino, dict[int, bytes]] = {}
        self.is_open = threading.Event()
        self.is_open.set()
        self.stores = 0

    def forget_entry(self, parent: Ino, name: bytes) -> None:
        """Names are no matter here."""

    def forget_attr(self, ino: Ino) -> None:
        """Attributes neither."""

    def entry_deleted(self, parent: Ino, ino: Ino, name: bytes) -> None:
        """See `forget_entry`."""

    def tell_again(self) -> bool:
        return False

    def forget_data(self, ino: Ino, offset: int, length: int) -> None:
        self.pages.pop(ino, None)

    def store(self, ino: Ino, offset: int, data: bytes) -> None:
        assert self.is_open.wait(10)
        self.pages.setdefault(ino, {})[offset] = data
        self.stores += 1

    def has(self, ino: Ino, content: bytes) -> bool:
        """Tell whether all that is here of a file is right, and something is."""
        pages = self.pages.get(ino, {})
        return bool(pages) and all(content[at : at + len(p)] == p for at, p in pages.items())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


@pytest.fixture
def client(world: World) -> Client:
    client = world.mount("a")
    save(client, "f", BEFORE)
    client.vfs.syncfs()
    return client


@pytest.fixture
def kernel(client: Client) -> Kernel:
    kernel = Kernel()
    client.core.notifier.attach(kernel)
    return kernel


def opened(client: Client, flags: int = os.O_RDONLY) -> tuple[Ino, int]:
    ino = find(client, "f").ino
    return ino, client.vfs.open(ino, flags).fh


def hop(client: Client, fh: int, times: int = 40) -> bool:
    """Read here and there, as far as anybody is concerned at random."""
    for number in range(times):
        at = (number * 7919 * 4096) % (SIZE - 4096)
        assert len(client.vfs.read(fh, at, 4096)) == 4096
    return True


def test_who_reads_here_and_there_gets_whole_windows(client: Client, kernel: Kernel) -> None:
    ino, fh = opened(client)

    assert eventually(lambda: hop(client, fh) and len(kernel.pages.get(ino, {})) == 3)
    assert kernel.has(ino, BEFORE)
    assert sum(map(len, kernel.pages[ino].values())) == SIZE


def test_who_reads_in_order_gets_nothing_put(client: Client, kernel: Kernel) -> None:
    _, fh = opened(client)
    for at in range(0, SIZE, 1 << 17):
        client.vfs.read(fh, at, 1 << 17)
    client.core.notifier.wait_told(5)

    assert kernel.stores == 0


def test_nothing_is_put_while_somebody_may_write(client: Client, kernel: Kernel) -> None:
    _, fh = opened(client)
    opened(client, os.O_RDWR)
    hop(client, fh)
    client.core.notifier.wait_told(5)

    assert kernel.stores == 0


@pytest.mark.parametrize("how", ["write", "truncate"])
def test_who_wants_to_change_waits_for_what_is_on_its_way(
    client: Client, kernel: Kernel, how: str
) -> None:
    kernel.is_open.clear()
    ino, fh = opened(client)
    content = client.core.contents[ino]
    assert eventually(lambda: hop(client, fh) and content.pushing > 0)
    changed = threading.Event()

    def change() -> None:
        if how == "write":
            client.vfs.open(ino, os.O_WRONLY)
        else:
            client.vfs._files.truncate_inode(ino, 10, False)
        assert not content.pushing
        changed.set()

    changer = threading.Thread(target=change)
    changer.start()
    assert not changed.wait(0.1)
    kernel.is_open.set()

    assert changed.wait(10)
    changer.join()


def test_a_change_elsewhere_drops_what_was_put_before_it_and_after(
    world: World, client: Client, kernel: Kernel
) -> None:
    ino, fh = opened(client)
    other = world.mount("b")
    for content in (AFTER, BEFORE, AFTER):
        kernel.is_open.clear()
        hop(client, fh)
        save(other, "f", content)
        other.vfs.syncfs()
        kernel.is_open.set()
        assert eventually(lambda: client.vfs.read(fh, 0, 9) == content[:9])  # noqa: B023
        client.core.notifier.wait_told(5)
        assert ino not in kernel.pages or kernel.has(ino, content)
        assert eventually(
            lambda: hop(client, fh, 999) and kernel.has(ino, content)  # noqa: B023
        )


def test_what_the_kernel_dropped_is_not_put_again_soon(client: Client, kernel: Kernel) -> None:
    ino, fh = opened(client)
    assert eventually(lambda: hop(client, fh) and len(kernel.pages.get(ino, {})) == 3)
    before = kernel.stores
    hop(client, fh, 100)
    client.core.notifier.wait_told(5)

    assert kernel.stores - before <= 1


def test_the_past_of_a_file_is_not_put_into_its_present(client: Client, kernel: Kernel) -> None:
    save(client, "f", AFTER)
    client.vfs.syncfs()
    past = find(client, ".versions/f@v1")
    fh = client.vfs.open(past.ino, os.O_RDONLY).fh
    hop(client, fh, 200)
    client.core.notifier.wait_told(5)

    assert kernel.stores == 0
    assert client.vfs.read(fh, BLOCK_MAX, 4096) == BEFORE[BLOCK_MAX : BLOCK_MAX + 4096]
