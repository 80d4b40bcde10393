from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.worlds import group_of

from selftaught.errors import InputError
from selftaught.select.votes import count_votes, leaders, pick, reaches, read_ballot
from selftaught.types import Completion, Group, Prompt

KEYS = st.lists(st.sampled_from(["1", "2", "3", None]), max_size=16)


@given(KEYS, st.randoms(use_true_random=False))
def test_votes_do_not_depend_on_the_order(keys, source):
    shuffled = list(keys)
    source.shuffle(shuffled)
    assert count_votes(keys) == count_votes(shuffled)
    assert leaders(count_votes(keys)) == leaders(count_votes(shuffled))


@given(KEYS)
def test_votes_add_up(keys):
    counts = count_votes(keys)
    assert sum(counts.values()) == len(keys) - keys.count(None)
    assert all(counts[key] == max(counts.values()) for key in leaders(counts))


def test_no_votes():
    assert leaders(Counter()) == ()


@pytest.mark.parametrize(("share", "k", "votes"), [(0.55, 20, 11), (0.7, 10, 7), (0.6, 5, 3), (0.7, 8, 6)])
def test_thresholds_forgive_rounding(share, k, votes):
    """0.55 * 20 is 11.000000000000002 in floating point; 11 votes reach it."""
    assert reaches(votes, share * k)
    assert not reaches(votes - 1, share * k)


def test_hot_samples_do_not_vote():
    ballot = read_ballot(group_of(["1", "1", "2", None, "2", "2", "9"], k=4), k=4)
    assert ballot.counts == {"1": 2, "2": 1}
    assert [ballot.votes.get(c.id) for c in group_of(["1", "1", "2", None, "2", "2", "9"], k=4).completions] == [
        *(2, 2, 1, None),
        *(1, 1, 0),
    ]
    assert [c.k for c in ballot.unread] == [3]


@pytest.mark.parametrize("k", [1, 3])
def test_wrong_number_of_samples(k):
    with pytest.raises(InputError, match=r"sample\(s\) numbered below"):
        read_ballot(group_of(["1"] if k == 1 else ["1", "2"]), k=k)


def test_unscored_group():
    prompt = Prompt.from_text("p")
    completions = tuple(Completion(prompt_id=prompt.id, k=k, text="#### 1") for k in range(2))
    with pytest.raises(InputError, match="has no score by 'votes'"):
        read_ballot(Group(prompt=prompt, completions=completions), k=2)


def test_pick_is_uniform_and_ignores_the_order():
    candidates = [Completion(prompt_id="p", k=k, text=f"text {k % 3}") for k in range(4)]
    picked = Counter(pick(candidates, seed, "p").id for seed in range(4000))
    assert len(picked) == 4 and all(900 < n < 1100 for n in picked.values())
    assert all(pick(candidates, seed) == pick(candidates[::-1], seed) for seed in range(50))
