"""The model of the crash tests is right about a filesystem that does not crash, and not blind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.harness.story import Story, look


@pytest.mark.parametrize("seed", range(8))
def test_on_a_local_disk_the_state_is_what_is_there(tmp_path: Path, seed: int) -> None:
    story = Story(tmp_path, seed)
    story.run(150)

    assert len(story.answered) > 150
    assert story.unlike(look(tmp_path)) == []


@pytest.mark.parametrize("seed", range(4))
def test_each_thing_that_is_lost_or_other_is_found(tmp_path: Path, seed: int) -> None:
    story = Story(tmp_path, seed)
    story.run(80)
    seen = look(tmp_path)

    for path, (mode, links, data) in seen.items():
        for changed in (
            {name: what for name, what in seen.items() if name != path},
            {**seen, path: (mode ^ 0o100, links, data)},
            {**seen, path: (mode, links, data + b"more")},
            {**seen, path + " too": (mode, links, data)},
        ):
            assert story.unlike(changed), path


def test_a_call_without_an_answer_may_have_happened_or_not(tmp_path: Path) -> None:
    story = Story(tmp_path, 1)
    story.run(20)

    def fail() -> None:
        raise OSError(errno.ENOTCONN, "dead")

    before = look(tmp_path)
    with pytest.raises(OSError, match="dead"):
        story._call("mkdir late", fail, lambda state: state.make("late", 10_000, 0o40755))
    after = {**before, "late": (0o40755, 2, b"")}

    assert story.unlike(before) == story.unlike(after) == []
    assert story.unlike({**after, "later": (0o40755, 2, b"")})


def test_only_what_was_not_synced_may_be_missing_at_the_end(tmp_path: Path) -> None:
    story = Story(tmp_path, 5)
    story.run(60)
    assert 0 < story.synced < len(story.answered)
    states = list(story.prefixes())

    assert len(states) == len(story.answered) - story.synced + 1
    assert states[0].names == story.state.names
