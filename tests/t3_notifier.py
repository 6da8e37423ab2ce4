"""What a kernel is told: in order, off every request's path, and again where it had to be."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from everfold.model import Ino
from mount.notifier import Notifier

WAIT_S = 10.0
_DEFECT = Ino(666)


class Kernel:
    """A `KernelCache` that heeds nothing for a while, as often as it is told again."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.unheeded = 0
        self.brake = threading.Event()  # what is told waits for it
        self.brake.set()

    def forget_entry(self, parent: Ino, name: bytes) -> None:
        assert self.brake.wait(WAIT_S)
        self.told.append(("entry", parent, name))

    def forget_attr(self, ino: Ino) -> None:
        if ino == _DEFECT:
            raise ValueError("a defect")
        self.told.append(("attr", ino))

    def forget_data(self, ino: Ino, offset: int, length: int) -> None:
        raise OSError("the kernel is gone")

    def entry_deleted(self, parent: Ino, ino: Ino, name: bytes) -> None:
        self.told.append(("deleted", parent, ino, name))

    def store(self, ino: Ino, offset: int, data: bytes | memoryview) -> None:
        self.told.append(("store", ino, offset, bytes(data)))

    def tell_again(self) -> bool:
        if not self.unheeded:
            return False
        self.unheeded -= 1
        self.told.append(("again",))
        return self.unheeded > 0


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def notifier(kernel: Kernel) -> Iterator[Notifier]:
    made = Notifier()
    made.attach(kernel)
    yield made
    made.close()


def test_the_kernel_is_told_in_order_and_nobody_waits_for_it(
    notifier: Notifier, kernel: Kernel
) -> None:
    kernel.brake.clear()
    notifier.forget_entry(1, b"a")
    notifier.forget_attr(2)
    notifier.entry_deleted(1, 3, b"b")
    assert not notifier.wait_told(0.01)
    assert kernel.told == []
    kernel.brake.set()

    assert notifier.wait_told(WAIT_S)
    assert kernel.told == [("entry", 1, b"a"), ("attr", 2), ("deleted", 1, 3, b"b")]


def test_what_was_not_heeded_is_told_again_until_it_is_and_then_only_it_counts_as_told(
    notifier: Notifier, kernel: Kernel
) -> None:
    kernel.unheeded = 5
    notifier.forget_attr(2)

    assert notifier.wait_told(WAIT_S)
    assert kernel.told == [("attr", 2)] + 5 * [("again",)]


@pytest.mark.expects_warnings
def test_a_kernel_that_takes_nothing_more_keeps_nobody(notifier: Notifier, kernel: Kernel) -> None:
    notifier.forget_data(2)
    notifier.forget_attr(3)

    assert notifier.wait_told(WAIT_S)
    assert kernel.told == [("attr", 3)]


@pytest.mark.expects_warnings
def test_a_defect_in_one_notice_keeps_back_no_other(notifier: Notifier, kernel: Kernel) -> None:
    notifier.forget_attr(_DEFECT)
    notifier.forget_attr(7)

    assert notifier.wait_told(WAIT_S)
    assert kernel.told == [("attr", 7)]


def test_without_a_kernel_there_is_nothing_to_tell() -> None:
    notifier = Notifier()
    notifier.forget_attr(2)

    assert notifier.wait_told(0.0)
    notifier.close()
