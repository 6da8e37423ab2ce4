"""The ledger: whatever is lost on the way, the nameserver learns how it stands."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from datanode.ledger import PREFIXES, Ledger
from everfold import wire
from everfold.model import BlockId, SpaceId

KEYS = [(SpaceId(space), BlockId(bytes([p, n]) * 16)) for space in (1, 2) for p in (0, 7)
        for n in range(3)]  # fmt: skip


def held(key: tuple[SpaceId, BlockId]) -> wire.Held:
    return wire.Held(*key, 100)


class Told:
    """What a nameserver would believe after these beats."""

    def __init__(self) -> None:
        self.held: set[tuple[SpaceId, BlockId]] = set()
        self.bad: set[tuple[SpaceId, BlockId]] = set()

    def hear(self, news: object) -> None:
        assert isinstance(news, tuple)
        added, removed, bad, digests, *_ = news
        self.held -= {(h.space, h.block) for h in removed}
        self.held |= {(h.space, h.block) for h in added}
        self.bad |= {(h.space, h.block) for h in bad}
        for digest in digests:
            mine = [key for key in self.held if key[1][0] == digest.prefix]
            xor = reduce(lambda x, key: x ^ wire.held_digest(*key), mine, 0)
            assert (digest.count, digest.xor) == (len(mine), xor)


@given(
    st.lists(
        st.tuples(st.sampled_from(["toggle", "toggle", "rot", "beat", "lost"]),
                  st.sampled_from(KEYS)), max_size=60)
)  # fmt: skip
def test_after_any_history_with_lost_answers_it_is_believed_what_is_held(
    steps: list[tuple[str, tuple[SpaceId, BlockId]]],
) -> None:
    ledger, store, told = Ledger(), dict[tuple[SpaceId, BlockId], int](), Told()
    rotted = set()

    def size_of(space: SpaceId, block: BlockId) -> int | None:
        return store.get((space, block))

    for what, key in steps:
        if what in ("beat", "lost"):
            news = ledger.news(size_of)
            told.hear(news)
            if what == "beat":
                ledger.confirm(news)
        elif key in store:
            del store[key]
            ledger.went(held(key), is_bad=what == "rot")
            rotted |= {key} if what == "rot" else set()
        elif what == "toggle":
            store[key] = 100
            ledger.came(held(key))
    told.hear(ledger.news(size_of))

    assert told.held == set(store)
    assert told.bad == rotted
    assert ledger.totals() == (len(store), 100 * len(store))


def test_a_start_is_told_with_all_digests_and_then_one_prefix_a_beat() -> None:
    ledger = Ledger()
    ledger.load([held(KEYS[0])])

    first = ledger.news(lambda space, block: 100)
    again = ledger.news(lambda space, block: 100)
    ledger.confirm(again)
    rest = []
    for _ in range(PREFIXES + 1):
        news = ledger.news(lambda space, block: 100)
        rest += [digest.prefix for digest in news.digests]
        ledger.confirm(news)

    assert [d.prefix for d in first.digests] == list(range(PREFIXES))
    assert first.digests == again.digests
    assert rest == [*range(PREFIXES), 0]


def test_what_changes_while_a_beat_is_under_way_is_in_the_next() -> None:
    ledger = Ledger()
    ledger.came(held(KEYS[0]))
    news = ledger.news(lambda space, block: 100)
    ledger.went(held(KEYS[0]))

    ledger.confirm(news)

    assert ledger.news(lambda space, block: None).removed == [held(KEYS[0])]


def test_much_news_is_told_in_parts_and_digests_only_with_the_last() -> None:
    ledger = Ledger()
    for n in range(25_000):
        ledger.came(wire.Held(SpaceId(1), BlockId(n.to_bytes(32, "big")), 1))

    parts = []
    for _ in range(3):
        parts.append(ledger.news(lambda space, block: 1))
        ledger.confirm(parts[-1])

    assert [len(part.added) for part in parts] == [10_000, 10_000, 5_000]
    assert [len(part.digests) for part in parts] == [0, 0, PREFIXES]


def test_after_a_long_silence_the_digests_tell_instead_of_the_list() -> None:
    ledger = Ledger()
    for n in range(200_001):
        ledger.came(wire.Held(SpaceId(1), BlockId(n.to_bytes(32, "big")), 1))

    news = ledger.news(lambda space, block: 1)

    assert news.added == []
    assert sum(digest.count for digest in news.digests) == 200_001


def test_a_recount_is_believed_only_when_nothing_changed_meanwhile() -> None:
    ledger = Ledger()
    ledger.load([held(KEYS[0]), held(KEYS[1])])
    version = ledger.version(0)

    assert ledger.recount(0, version, [held(KEYS[0])]) is True
    assert ledger.totals() == (1, 100)
    assert ledger.recount(0, version, []) is False

    version = ledger.version(0)
    ledger.came(held(KEYS[2]))
    assert ledger.recount(0, version, []) is False
    with ledger:
        assert ledger.version(0) is None
    assert ledger.totals() == (2, 200)


def test_an_asked_answer_is_told_though_nothing_changed() -> None:
    ledger = Ledger()
    ledger.answer(wire.Held(*KEYS[0], 0))

    assert ledger.news(lambda space, block: 55).added == [wire.Held(*KEYS[0], 55)]
    assert ledger.news(lambda space, block: None).removed == [wire.Held(*KEYS[0], 0)]


def test_blocks_that_came_together_are_counted_as_one_by_one() -> None:
    together, single = Ledger(), Ledger()
    together.came_all(KEYS[0][0], [(block, 100) for space, block in KEYS if space == 1])
    for key in KEYS:
        if key[0] == 1:
            single.came(held(key))

    assert together.news(lambda space, block: None) == single.news(lambda space, block: None)
    assert together.totals() == single.totals() == (6, 600)


def test_of_what_changed_once_the_store_is_not_asked_and_of_the_rest_it_is() -> None:
    ledger, asked = Ledger(), list[BlockId]()

    def size_of(space: SpaceId, block: BlockId) -> int | None:
        asked.append(block)
        return 100

    ledger.came(held(KEYS[0]))
    ledger.went(held(KEYS[1]))
    ledger.came_all(KEYS[2][0], [(KEYS[2][1], 100)])
    ledger.went(held(KEYS[2]))  # told in the wrong order: it was deleted, then put again
    news = ledger.news(size_of)

    assert asked == [KEYS[2][1]]
    assert news.added == [held(KEYS[0]), held(KEYS[2])]
    assert news.removed == [held(KEYS[1])]
