"""Draws and splits of generated worlds."""

import collections
from types import SimpleNamespace

import pytest

from selftaught.errors import InputError
from selftaught.tasks.drawing import below, check_shares, in_split, seeded, split_at
from selftaught.types import content_share


def test_share_is_fixed_by_its_parts_and_spread_over_zero_to_one():
    drawn = [content_share("world", i) for i in range(4000)]
    assert drawn == [content_share("world", i) for i in range(4000)]
    assert 0 <= min(drawn) < 0.01 and 0.99 < max(drawn) < 1
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.02)
    assert content_share("ab", "c") != content_share("a", "bc")


def test_below_draws_every_number_and_repeats_with_its_seed():
    source = seeded("dice", 3)
    drawn = [below(source, 6) for _ in range(600)]
    assert set(drawn) == set(range(6))
    again = seeded("dice", 3)
    assert drawn == [below(again, 6) for _ in range(600)]


@pytest.mark.parametrize(
    ("at", "split"),
    [
        (0.0, "test"),
        (0.0999, "test"),
        (0.1, "dev"),
        (0.1499, "dev"),
        (0.15, "demonstrations"),
        (0.55, "train"),
        (0.999, "train"),
    ],
)
def test_split_ends(at, split):
    assert split_at(at) == split


def test_splits_are_disjoint_whole_and_run_out_with_the_count():
    def split_of(text):
        return split_at(content_share("ten", text))

    found = collections.Counter()
    for split in ("test", "dev", "demonstrations", "train"):
        source = seeded(split)
        with pytest.raises(InputError) as caught:
            for number in in_split(split, lambda s=source: below(s, 100), str, split_of, "no more: {count}"):
                found[number] += 1
        assert str(caught.value) == f"no more: {sum(split_of(str(n)) == split for n in range(100))}"
    assert found == dict.fromkeys(range(100), 1)


def test_check_shares_names_world_dial_and_value():
    world = SimpleNamespace(name="w", good=1.0, bad=1.5)
    check_shares(world, "good")
    with pytest.raises(InputError, match=r"w: bad=1\.5 is not a share; give 0 to 1"):
        check_shares(world, "good", "bad")
