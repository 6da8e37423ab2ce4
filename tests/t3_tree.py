"""What a mount remembers of the tree: late answers are not believed, the rest is."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from everfold.model import NOW, ROOT, Attr, Entry, Ino, Seq
from mount.tree import ABSENT, Tree

DIRECTORIES = [ROOT, Ino(10)]
NAMES = [b"a", b"b"]
TOUCHED_MAX = 50_000


def attr(ino: int, size: int = 0) -> Attr:
    return Attr(Ino(ino), 0o100644, 1, 0, 0, size, 0, 0, 0, 0)


def entry(name: bytes, ino: int, size: int = 0) -> Entry:
    return Entry(name, attr(ino, size))


# ---------------------------------------------------------------- one rule at a time


def test_what_was_never_asked_is_unknown_and_what_is_surely_not_there_is_absent() -> None:
    tree = Tree()
    assert tree.child(ROOT, b"a") is None
    tree.install_entry(ROOT, b"a", None, Seq(1))
    assert tree.child(ROOT, b"a") == ABSENT
    assert tree.child(ROOT, b"b") is None

    tree.install_listing(ROOT, ROOT, [entry(b"b", 2)], Seq(1))
    assert (tree.child(ROOT, b"a"), tree.child(ROOT, b"b")) == (ABSENT, 2)


def test_an_answer_older_than_a_change_is_not_believed() -> None:
    tree = Tree()
    tree.touch_name(ROOT, b"a", Seq(5))
    tree.install_entry(ROOT, b"a", entry(b"a", 2), Seq(4))
    tree.install_listing(ROOT, ROOT, [entry(b"a", 2)], Seq(4))
    assert tree.child(ROOT, b"a") is None
    assert tree.listing(ROOT) is None
    tree.touch_ino(Ino(2), Seq(7))
    assert not tree.install_attr(attr(2), Seq(6))

    tree.install_entry(ROOT, b"a", entry(b"a", 2), Seq(5))
    assert tree.child(ROOT, b"a") == 2
    assert tree.attr(Ino(2)) is None
    assert tree.install_attr(attr(2), Seq(7))


def test_a_listing_older_than_a_change_of_this_mount_is_completed_with_it() -> None:
    tree = Tree()
    tree.touch_name(ROOT, b"made", Seq(5))
    tree.set_child(ROOT, b"made", Ino(9))
    tree.touch_name(ROOT, b"removed", Seq(6))
    tree.set_absent(ROOT, b"removed")

    assert tree.install_listing(ROOT, ROOT, [entry(b"a", 2), entry(b"removed", 3)], Seq(4))
    assert tree.listing(ROOT) == (ROOT, [(b"made", Ino(9)), (b"a", Ino(2))])


def test_a_listing_older_than_a_change_elsewhere_is_not_believed() -> None:
    tree = Tree()
    tree.touch_name(ROOT, b"made", Seq(5))

    assert not tree.install_listing(ROOT, ROOT, [entry(b"a", 2)], Seq(4))
    assert tree.listing(ROOT) is None
    assert tree.install_listing(ROOT, ROOT, [entry(b"made", 9)], Seq(5))


def test_a_name_that_is_forgotten_is_unknown_also_in_a_directory_known_whole() -> None:
    tree = Tree()
    tree.install_listing(ROOT, ROOT, [entry(b"a", 2), entry(b"b", 3)], Seq(1))
    tree.forget_name(ROOT, b"a")

    assert tree.child(ROOT, b"a") is None
    assert tree.child(ROOT, b"b") == 3
    assert tree.child(ROOT, b"c") is None
    assert tree.listing(ROOT) is None


def test_what_is_on_its_way_from_here_stays_over_every_answer() -> None:
    tree = Tree()
    tree.hold([(ROOT, b"a"), (ROOT, b"b")], [Ino(2)])
    tree.set_child(ROOT, b"a", Ino(2))
    tree.set_attr(attr(2, 7))
    tree.set_absent(ROOT, b"b")
    tree.install_listing(ROOT, ROOT, [entry(b"b", 3), entry(b"c", 2)], Seq(9))
    tree.install_entry(ROOT, b"a", None, Seq(9))
    tree.forget_all()

    assert tree.child(ROOT, b"a") == 2
    known = tree.attr(Ino(2))
    assert known is not None and known.size == 7
    assert tree.child(ROOT, b"b") == ABSENT


def test_an_answer_older_than_a_move_does_not_bring_the_directory_back() -> None:
    tree = Tree()
    here, there, inside = Ino(2), Ino(3), Ino(4)
    tree.install_listing(inside, here, [], Seq(1))
    tree.moved_elsewhere(inside, there, Seq(5))
    tree.install_listing(inside, here, [], Seq(4))
    assert tree.listing(inside) == (there, [])

    tree.hold([], [inside])
    tree.moved_directory(inside, here)  # from here, on its way
    tree.moved_elsewhere(inside, there, Seq(6))
    tree.install_listing(inside, there, [], Seq(6))
    assert tree.listing(inside) == (here, [])
    tree.let_go([], [inside], Seq(7))
    tree.moved_elsewhere(inside, there, Seq(6))
    assert tree.listing(inside) == (here, [])
    tree.install_listing(inside, there, [], Seq(8))
    assert tree.listing(inside) == (there, [])


def test_a_change_is_held_until_the_last_of_several_is_through() -> None:
    tree = Tree()
    for _ in range(2):
        tree.hold([(ROOT, b"a")], [Ino(2)])
    tree.set_child(ROOT, b"a", Ino(2))
    tree.let_go([(ROOT, b"a")], [Ino(2)], Seq(3))
    tree.install_entry(ROOT, b"a", None, Seq(9))
    assert tree.child(ROOT, b"a") == 2
    tree.let_go([(ROOT, b"a")], [Ino(2)], Seq(4))
    tree.install_entry(ROOT, b"a", None, Seq(3))
    assert tree.child(ROOT, b"a") == 2

    tree.install_entry(ROOT, b"a", None, Seq(9))
    assert tree.child(ROOT, b"a") == ABSENT


def test_past_the_bound_the_longest_unused_is_forgotten_but_never_what_is_on_its_way() -> None:
    tree = Tree(limit=8)
    tree.hold([], [Ino(100)])
    tree.set_attr(attr(100))
    for ino in range(2, 12):
        tree.install_attr(attr(ino), Seq(1))
        tree.attr(Ino(2))

    assert len(tree) <= 9
    assert tree.attr(Ino(2)) is not None
    assert tree.attr(Ino(3)) is None
    assert tree.attr(Ino(100)) is not None


def test_when_too_many_changes_were_seen_to_remember_old_answers_are_not_believed_at_all() -> None:
    tree = Tree()
    for seq in range(1, TOUCHED_MAX + 10):
        tree.touch_ino(Ino(seq + 100), Seq(seq))

    assert not tree.install_attr(attr(101), Seq(1 - 1))
    assert not tree.install_attr(attr(2), Seq(5))
    assert tree.install_attr(attr(101), Seq(TOUCHED_MAX + 10))


# ---------------------------------------------------------------- against a nameserver


class Truth:
    """What the nameserver has, as of commit `seq`."""

    def __init__(self) -> None:
        self.seq = Seq(1)
        self.names: dict[tuple[Ino, bytes], Ino] = {}
        self.sizes: dict[Ino, int] = {}

    def put(self, parent: Ino, name: bytes, ino: Ino | None) -> None:
        self.seq = Seq(self.seq + 1)
        if ino is None:
            self.names.pop((parent, name), None)
        else:
            self.names[parent, name] = ino
            self.sizes.setdefault(ino, 0)

    def grow(self, ino: Ino) -> None:
        self.seq = Seq(self.seq + 1)
        self.sizes[ino] += 1


class TreeMachine(RuleBasedStateMachine):
    """Answers come at any time after they were made; feed events and own commits in order."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = Truth()
        self.tree = Tree(limit=12)
        self.answers: list[Callable[[], object]] = []
        self.events: list[Callable[[], object]] = []
        self.own: list[tuple[Ino, bytes, Ino | None]] = []  # answered, not committed
        self.is_leased = False
        self.last_ino = 100

    def _fresh(self) -> Ino:
        self.last_ino += 1
        return Ino(self.last_ino)

    # ------------------------------------------------------------ asking

    @rule(parent=st.sampled_from(DIRECTORIES), name=st.sampled_from(NAMES))
    def ask_name(self, parent: Ino, name: bytes) -> None:
        ino, seq = self.truth.names.get((parent, name)), self.truth.seq
        found = None if ino is None else entry(name, ino, self.truth.sizes[ino])
        self.answers.append(lambda: self.tree.install_entry(parent, name, found, seq))

    @rule(parent=st.sampled_from(DIRECTORIES))
    def ask_listing(self, parent: Ino) -> None:
        found = [
            entry(name, ino, self.truth.sizes[ino])
            for (above, name), ino in self.truth.names.items()
            if above == parent
        ]
        seq = self.truth.seq
        self.answers.append(lambda: self.tree.install_listing(parent, ROOT, found, seq))

    @precondition(lambda self: self.truth.sizes)
    @rule(data=st.data())
    def ask_attr(self, data: st.DataObject) -> None:
        ino = data.draw(st.sampled_from(sorted(self.truth.sizes)))
        found, seq = attr(ino, self.truth.sizes[ino]), self.truth.seq
        self.answers.append(lambda: self.tree.install_attr(found, seq))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def an_answer_comes(self, data: st.DataObject) -> None:
        self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))()

    # ------------------------------------------------------------ what others do

    @precondition(lambda self: not self.is_leased)
    @rule(parent=st.sampled_from(DIRECTORIES), name=st.sampled_from(NAMES), is_gone=st.booleans())
    def another_changes_a_name(self, parent: Ino, name: bytes, is_gone: bool) -> None:
        self.truth.put(parent, name, None if is_gone else self._fresh())
        self._tell_name(parent, name, self.truth.seq)

    def _tell_name(self, parent: Ino, name: bytes, seq: Seq) -> None:
        def event() -> None:
            if self.tree.touch_name(parent, name, seq):
                self.tree.forget_name(parent, name)

        self.events.append(event)

    @precondition(lambda self: not self.is_leased and self.truth.sizes)
    @rule(data=st.data())
    def another_changes_an_inode(self, data: st.DataObject) -> None:
        ino = data.draw(st.sampled_from(sorted(self.truth.sizes)))
        self.truth.grow(ino)
        seq = self.truth.seq

        def event() -> None:
            if self.tree.touch_ino(ino, seq):
                self.tree.forget_attr(ino)

        self.events.append(event)

    @precondition(lambda self: self.events)
    @rule()
    def the_feed_tells(self) -> None:
        self.events.pop(0)()

    # ------------------------------------------------------------ what happens here

    @rule()
    def the_lease_comes_or_goes(self) -> None:
        if self.is_leased:
            while self.own:
                self.own_is_committed()
        while self.events:
            self.the_feed_tells()
        self.is_leased = not self.is_leased

    @precondition(lambda self: self.is_leased)
    @rule(parent=st.sampled_from(DIRECTORIES), name=st.sampled_from(NAMES), is_gone=st.booleans())
    def change_under_the_lease(self, parent: Ino, name: bytes, is_gone: bool) -> None:
        ino = None if is_gone else self._fresh()
        self.tree.hold([(parent, name)], [parent] if ino is None else [parent, ino])
        assert self.tree.follows(parent, name, NOW)
        self._apply(parent, name, ino)
        self.own.append((parent, name, ino))

    @precondition(lambda self: self.own)
    @rule()
    def own_is_committed(self) -> None:
        parent, name, ino = self.own.pop(0)
        self.truth.put(parent, name, ino)
        inos = [parent] if ino is None else [parent, ino]
        self.tree.let_go([(parent, name)], inos, self.truth.seq)

    @precondition(lambda self: not self.is_leased)
    @rule(
        parent=st.sampled_from(DIRECTORIES), name=st.sampled_from(NAMES), told_first=st.booleans()
    )
    def change_without_the_lease(self, parent: Ino, name: bytes, told_first: bool) -> None:
        """The tree follows when the commit is known; what others did next may be known first."""
        ino = self._fresh()
        self.tree.hold([(parent, name)], [parent, ino])
        self.truth.put(parent, name, ino)
        seq = self.truth.seq
        if told_first:
            self.truth.put(parent, name, self._fresh())
            self._tell_name(parent, name, self.truth.seq)
            while self.events:
                self.the_feed_tells()
        self.tree.let_go([(parent, name)], [parent, ino], seq)
        if self.tree.follows(parent, name, seq):
            self._apply(parent, name, ino)
        else:
            self.tree.forget_name(parent, name)

    def _apply(self, parent: Ino, name: bytes, ino: Ino | None) -> None:
        if ino is None:
            self.tree.set_absent(parent, name)
        else:
            self.tree.set_child(parent, name, ino)
            self.tree.set_attr(msgspec.structs.replace(attr(ino)))

    # ------------------------------------------------------------ what always holds

    @invariant()
    def once_all_is_told_nothing_known_is_wrong(self) -> None:
        if self.events:
            return
        expected = dict(self.truth.names)
        for parent, name, ino in self.own:
            expected.pop((parent, name), None)
            if ino is not None:
                expected[parent, name] = ino
        for parent in DIRECTORIES:
            for name in NAMES:
                known = self.tree.child(parent, name)
                assert known in (None, expected.get((parent, name), ABSENT))
            listing = self.tree.listing(parent)
            if listing is not None:
                assert dict(listing[1]) == {n: i for (p, n), i in expected.items() if p == parent}
        for ino, size in self.truth.sizes.items():
            shown = self.tree.attr(ino)
            assert shown is None or shown.size == size


TreeMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTreeAgainstANameserver = TreeMachine.TestCase
