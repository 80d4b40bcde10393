import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.worlds import group_of, scored

from selftaught.evals.metrics import (
    accuracy,
    accuracy_sc,
    ordering_quality,
    pair_margin,
    somers_d,
    vote_share,
    vote_table,
)
from selftaught.select.pairs import GoldPairs

ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=4, max_size=4)


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (["1", "1", "2", "3"], 1.0),
        (["1", "2", "2", "3"], 0.0),
        (["1", "1", "2", "2"], 0.5),
        (["1", "2", "3", None], 1 / 3),
        (["1", None, None, None], 1.0),
        ([None] * 4, 0.0),
    ],
)
def test_self_consistency_with_its_tie_rule(answers, right):
    """Gold is 1. Tied leaders count as one drawn at random; unreadable samples do not vote."""
    group = group_of(answers, gold="1")
    assert accuracy_sc([group], 4) == {group.id: pytest.approx(right)}


def test_hot_samples_do_not_count_in_self_consistency():
    group = group_of(["1", "1", "2", "2", "2"], k=3, gold="1")
    assert accuracy_sc([group], 3)[group.id] == 1.0 and vote_share([group], 3)[group.id] == pytest.approx(2 / 3)


def test_accuracy_leaves_out_the_undecided():
    groups = [group_of(["1", "2", "3", "4"], name=name) for name in "abc"]
    values = [(1.0, 0.0, None, None), (1.0, 1.0, 1.0, 0.0), (None,) * 4]
    groups = [scored(group, "verifier", row) for group, row in zip(groups, values, strict=True)]
    assert list(accuracy(groups).values()) == [0.5, 0.75, None]
    assert list(accuracy_sc(groups, 4).values()) == [None, 0.75, None]


def test_vote_share():
    groups = [group_of(["1", "1", "1", "2"]), group_of([None] * 4, name="q")]
    assert list(vote_share(groups, 4).values()) == [0.75, 0.0]


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=2, max_size=40))
def test_somers_d_agrees_with_scipy(samples):
    table = {sample: samples.count(sample) for sample in samples}
    ours = somers_d(table)
    if len({right for _, right in samples}) < 2:
        assert ours is None
    elif len({votes for votes, _ in samples}) > 1:  # scipy returns nan where all votes are equal
        assert ours == pytest.approx(stats.somersd([right for _, right in samples], [v for v, _ in samples]).statistic)


def test_somers_d_ends():
    assert somers_d({(5, True): 3, (1, False): 4}) == 1.0
    assert somers_d({(1, True): 3, (5, False): 4}) == -1.0
    assert somers_d({(2, True): 3, (2, False): 4}) == 0.0


def test_vote_table():
    group = group_of(["1", "1", "2", None, "9"], k=4, gold="1")
    assert vote_table([group], 4) == {group.id: {(2, True): 2, (1, False): 1}}


def test_ordering_quality():
    """Right samples have 2, 2 votes, wrong ones 1 and none: all four pairs are in order. By reward it is 1, 1, 2."""
    group = scored(group_of(["1", "1", "2", None], gold="1"), "rm", [0.5, 0.2, 0.2, 0.9])
    votes = ordering_quality([group])
    assert (votes.right, votes.tie, votes.wrong, votes.n) == (1.0, 0.0, 0.0, 4)
    reward = ordering_quality([group], "rm")
    assert (reward.right, reward.tie, reward.wrong, reward.n) == (0.25, 0.25, 0.5, 4)
    assert ordering_quality([group_of(["1"] * 4, gold="1")]) is None


@given(st.lists(ANSWERS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_the_order(worlds, source):
    groups = [group_of(answers, name=f"p{i}", gold="1") for i, answers in enumerate(worlds)]
    shuffled = [group_of(source.sample(a, len(a)), name=f"p{i}", gold="1") for i, a in enumerate(worlds)]
    assert accuracy(groups) == accuracy(shuffled)
    assert accuracy_sc(groups, 4) == accuracy_sc(shuffled, 4)
    assert vote_share(groups, 4) == vote_share(shuffled, 4)
    assert vote_table(groups, 4) == vote_table(shuffled, 4)
    assert ordering_quality(groups) == ordering_quality(shuffled)


def test_pair_margin():
    groups = [group_of(["1", "2"], name=name, gold="1") for name in "ab"]
    pairs = list(GoldPairs()(groups))
    verdicts = {s.completion_id: s.value for g in groups for s in g.scores if s.scorer == "verifier"}
    assert pair_margin(pairs, verdicts) == 1.0
    assert pair_margin(pairs, verdicts | {pairs[0].rejected.id: 1.0}) == 0.5
    assert pair_margin(pairs, {}) is None
