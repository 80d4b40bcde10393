import pickle
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.worlds import group_of, scored

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.select.pairs import (
    ConsistencyPairs,
    GoldPairs,
    MajorityDemonstrations,
    RewardPairs,
    SemiSupervisedPairs,
    VoteWeighted,
)

ANSWERS = st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=8, max_size=12)
WORLDS = st.lists(ANSWERS, min_size=1, max_size=12)


def select(selector, groups):
    dropped = Counter()
    try:
        return list(selector(groups, dropped)), dropped
    except NothingToTrainOn:
        return [], dropped


def build(worlds):
    return [group_of(answers, k=8, name=f"p{i}", gold="1") for i, answers in enumerate(worlds)]


def test_worked_example():
    """k = 8 with votes 5, 2, 1: chosen has 5, rejected 1, w = (5 - 1) / 8 = 0.5."""
    group = group_of(["7"] * 5 + ["3"] * 2 + ["9"])
    (pair,) = ConsistencyPairs(k=8, threshold=4)([group])
    assert (pair.chosen.text, pair.rejected.text, pair.weight) == ("#### 7", "#### 9", 0.5)
    assert (pair.meta["votes_chosen"], pair.meta["votes_rejected"]) == (5, 1)
    (plain,) = ConsistencyPairs(k=8, threshold=4, weight="none")([group])
    assert plain.weight == 1.0 and plain.id == pair.id


@pytest.mark.parametrize(
    ("answers", "threshold", "reason"),
    [
        (["7"] * 4 + ["3"] * 4, 4, "tie for the most votes"),
        (["7"] * 3 + ["3", "4", "5", "6", "8"], 4, "fewer votes than the threshold"),
        (["7"] * 8, 4, "all answers agree"),
        (["7"] * 7 + [None], 4, "only unread rejects, over their cap"),
    ],
)
def test_dropped_and_why(answers, threshold, reason):
    pairs, dropped = select(ConsistencyPairs(k=8, threshold=threshold), [group_of(answers)])
    assert not pairs and dropped == {reason: 1}


def test_unread_rejects_fill_at_most_their_cap():
    """8 prompts with a readable reject, 8 with unread ones only: 2 of 10 pairs are 20%, a third would be 3 of 11."""
    groups = [group_of(["7"] * 6 + ["3", "4"], name=f"r{i}") for i in range(8)]
    groups += [group_of(["7"] * 6 + [None] * 2, name=f"u{i}") for i in range(8)]
    pairs, dropped = select(ConsistencyPairs(k=8, threshold=4), groups)
    assert sum(pair.meta["answer_rejected"] is None for pair in pairs) == 2
    assert dropped == {"only unread rejects, over their cap": 6}
    unread = [pair for pair in pairs if pair.rejected.text == "?"]
    assert all(pair.weight == 6 / 8 for pair in unread)
    assert select(ConsistencyPairs(k=8, threshold=4, unread_rejects=False), groups)[1] == {"all answers agree": 8}
    assert len(select(ConsistencyPairs(k=8, threshold=4, unread_cap=1.0), groups)[0]) == 16


def test_past_the_cap_the_least_voted_answer_is_rejected():
    groups = [group_of(["7"] * 5 + ["3"] * 2 + [None], name=f"p{i}") for i in range(10)]
    pairs, _ = select(ConsistencyPairs(k=8, threshold=4), groups)
    assert Counter(pair.rejected.text for pair in pairs) == {"#### 3": 8, "?": 2}


def test_hot_samples_widen_the_rejects_only():
    """The hot answers 7 and 9: 9 has no base vote, so it is rejected with V = 0; no hot 7 is ever chosen."""
    group = group_of(["7"] * 6 + ["3"] * 2 + ["7"] * 6 + ["9"], k=8)
    for seed in range(20):
        (pair,) = ConsistencyPairs(k=8, threshold=4, seed=seed)([group])
        assert pair.chosen.k < 6 and pair.rejected.text == "#### 9" and pair.weight == 6 / 8


@given(WORLDS, st.integers(0, 8), st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_any_order(worlds, threshold, source):
    groups = build(worlds)
    shuffled = [replace(g, completions=tuple(source.sample(g.completions, len(g.completions)))) for g in groups]
    source.shuffle(shuffled)
    for selector in (
        ConsistencyPairs(k=8, threshold=threshold, seed=3),
        MajorityDemonstrations(k=8, threshold=threshold, seed=3),
        GoldPairs(seed=3),
        SemiSupervisedPairs(gold=GoldPairs(), consistency=ConsistencyPairs(k=8, threshold=threshold), labelled=0.5),
    ):
        ours, dropped = select(selector, groups)
        theirs, theirs_dropped = select(selector, shuffled)
        assert {e.id: e for e in ours} == {e.id: e for e in theirs} and dropped == theirs_dropped


def test_renumbered_samples_give_the_same_texts():
    answers = ["7"] * 5 + ["3"] * 2 + ["9"]
    texts = {tuple(pair.columns().values()) for a in (answers, answers[::-1]) for pair in
             ConsistencyPairs(k=8, threshold=4)([group_of(a)])}  # fmt: skip
    assert len(texts) == 1


@given(WORLDS, st.integers(0, 8), st.floats(0, 1))
def test_weights_caps_and_tallies(worlds, threshold, cap):
    groups = build(worlds)
    pairs, dropped = select(ConsistencyPairs(k=8, threshold=threshold, unread_cap=cap), groups)
    assert len(pairs) + sum(dropped.values()) == len(groups)
    assert len({pair.prompt.id for pair in pairs}) == len(pairs)
    unread = 0
    for pair in pairs:
        chosen, rejected = pair.meta["votes_chosen"], pair.meta["votes_rejected"]
        assert chosen >= threshold and pair.weight == (chosen - rejected) / 8 and 0 < pair.weight <= 1
        assert pair.chosen.k < 8 and pair.chosen.prompt_id == pair.rejected.prompt_id == pair.prompt.id
        unread += pair.meta["answer_rejected"] is None
    assert unread <= cap * len(pairs) + 1e-9


def test_no_answer_anywhere():
    groups = [group_of([None] * 8, name=f"p{i}") for i in range(3)]
    for selector in (ConsistencyPairs(k=8, threshold=4), MajorityDemonstrations(k=8, threshold=4)):
        with pytest.raises(NothingToTrainOn, match="3 of 3 prompts: no answer could be read"):
            list(selector(groups))
        assert list(selector([])) == []


def test_majority_demonstrations_match_the_chosen_side():
    groups = build([["1"] * 5 + ["2"] * 3, ["2"] * 8, ["1", "2"] * 4])
    demonstrations, dropped = select(MajorityDemonstrations(k=8, threshold=4, seed=5), groups)
    pairs, _ = select(ConsistencyPairs(k=8, threshold=4, seed=5), groups)
    assert [d.prompt.text for d in demonstrations] == ["p0", "p1"] and dropped == {"tie for the most votes": 1}
    assert demonstrations[0].completion == pairs[0].chosen and demonstrations[0].weight == 1.0


def test_gold_pairs():
    groups = build([["1", "1", "2", None] * 2, ["1"] * 8, ["2"] * 8])
    pairs, dropped = select(GoldPairs(), groups)
    assert len(pairs) == 1 and pairs[0].weight == 1.0
    assert pairs[0].chosen.text == "#### 1" and pairs[0].rejected.text in ("#### 2", "?")
    assert dropped == {"no wrong sample": 1, "no right sample": 1}


def test_undecided_is_neither_right_nor_wrong():
    groups = [scored(group_of(["1", "2", "3"], name=f"p{i}"), "verifier", values) for i, values in
              enumerate([(1.0, None, None), (None, None, None), (1.0, None, 0.0)])]  # fmt: skip
    pairs, dropped = select(GoldPairs(), groups)
    assert [(p.chosen.text, p.rejected.text) for p in pairs] == [("#### 1", "#### 3")]
    assert dropped == {"no wrong sample": 1, "no sample was verified": 1}
    with pytest.raises(NothingToTrainOn, match="no sample was verified"):
        list(GoldPairs()(groups[1:2]))


def test_reward_pairs():
    groups = [scored(group_of(["1", "2", "3"], name=f"p{i}"), "rm", values) for i, values in
              enumerate([(0.5, 2.0, -1.0), (1.0, 1.0, 1.0), (None, 3.0, 4.0), (None, None, None)])]  # fmt: skip
    pairs, dropped = select(RewardPairs(scorer="rm"), groups)
    assert [(p.chosen.text, p.rejected.text) for p in pairs] == [("#### 2", "#### 3"), ("#### 3", "#### 2")]
    assert dropped == {"all rewards are equal": 1, "no sample has a reward": 1}


def test_equal_texts_are_no_pair_and_a_reward_is_a_finite_number():
    pairs, dropped = select(RewardPairs(scorer="rm"), [scored(group_of(["1", "1"]), "rm", (0.5, 0.5000001))])
    assert not pairs and dropped == {"chosen and rejected are the same text": 1}
    for selector in (RewardPairs(scorer="rm"), GoldPairs(scorer="rm")):
        with pytest.raises(InputError, match="has the score nan: mend the scorer"):
            list(selector([scored(group_of(["1", "2"]), "rm", (1.0, float("nan")))]))


def test_pairs_of_another_selector_get_the_vote_margin():
    """Right 1s with 3 of 8 votes over a wrong 2 with 1 vote: 2 / 8; where the wrong answer leads, no pair."""
    groups = [
        group_of(["1", "1", "1", "2", "3", "3", "4", "4"], name="a", gold="1"),
        group_of(["1", "2", "2", "2", "2", "2", "2", "2"], name="b", gold="1"),
        group_of(["1"] * 8, name="c", gold="1"),
        group_of(["1"] * 6 + ["5", "5"], name="d", gold="1"),
    ]
    pairs, dropped = select(VoteWeighted(k=8, then=GoldPairs()), groups)
    plain, _ = select(GoldPairs(), groups)
    votes = {"2": 1, "3": 2, "4": 2}
    first = next(pair for pair in pairs if pair.prompt.text == "a")
    assert first.weight == (3 - votes[first.rejected.text.removeprefix("#### ")]) / 8
    assert [pair.weight for pair in pairs[1:]] == [(6 - 2) / 8]
    assert [pair.id for pair in pairs] == [pair.id for pair in plain if pair.prompt.text != "b"]
    assert dropped == {"no wrong sample": 1, "the chosen has no more votes than the rejected": 1}


def test_weighing_needs_pairs_in_the_order_of_the_groups():
    groups = build([["1", "1", "2", "2", "2", "1", "1", "1"]] * 2)
    backwards = lambda groups, dropped: reversed(list(GoldPairs()(groups, dropped)))  # noqa: E731
    with pytest.raises(InputError, match="not in the order of the groups"):
        list(VoteWeighted(k=8, then=backwards)(groups))


def test_all_labelled_is_irpo_and_none_labelled_is_scpo():
    groups = build([["1", "1", "2", "2", "2", "2", "3", None], ["1"] * 6 + ["2"] * 2, ["2"] * 7 + ["3"]])
    gold, votes = GoldPairs(seed=1), ConsistencyPairs(k=8, threshold=4, seed=1)
    assert select(SemiSupervisedPairs(gold=gold, consistency=votes), groups) == select(gold, groups)
    assert select(SemiSupervisedPairs(gold=gold, consistency=votes, labelled=0), groups) == select(votes, groups)


def test_semi_supervised_splits_by_gold():
    labelled = group_of(["1", "2", "2", "2"], name="labelled", gold="1")
    unlabelled = group_of(["1", "2", "2", "2"], name="unlabelled")
    pairs, _ = select(
        SemiSupervisedPairs(gold=GoldPairs(), consistency=ConsistencyPairs(k=4, threshold=2)), [unlabelled, labelled]
    )
    assert [(p.prompt.text, p.chosen.text, p.weight) for p in pairs] == [
        ("labelled", "#### 1", 1.0),
        ("unlabelled", "#### 2", 0.5),
    ]


def test_unreadable_unlabelled_prompts_do_not_lose_the_gold_pairs():
    selector = SemiSupervisedPairs(gold=GoldPairs(), consistency=ConsistencyPairs(k=4, threshold=2))
    assert len(list(selector([group_of(["1", "2", "2", "2"], gold="1"), group_of([None] * 4, name="q")]))) == 1


def test_bad_input():
    with pytest.raises(InputError, match="k >= 2"):
        ConsistencyPairs(k=1, threshold=1)
    with pytest.raises(InputError, match=r"outside 0\.\.k=8"):
        MajorityDemonstrations(k=8, threshold=9)
    with pytest.raises(InputError, match="a pair needs 2"):
        list(GoldPairs()([group_of(["1"], gold="1")]))
    with pytest.raises(InputError, match="has no score by 'rm'"):
        list(RewardPairs(scorer="rm")([group_of(["1", "2"])]))
    with pytest.raises(TypeError, match="one-shot"):
        list(ConsistencyPairs(k=2, threshold=1)(iter([group_of(["1", "2"])])))


def test_selectors_cross_processes():
    selector = SemiSupervisedPairs(gold=GoldPairs(), consistency=ConsistencyPairs(k=8, threshold=4), labelled=0.5)
    for each in (selector, RewardPairs(scorer="rm"), MajorityDemonstrations(k=8, threshold=4)):
        assert pickle.loads(pickle.dumps(each)) == each
