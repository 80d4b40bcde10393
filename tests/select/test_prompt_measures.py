import random
from collections import Counter
from dataclasses import replace
from math import e

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.select.samples import rewarded

from selftaught.errors import InputError
from selftaught.select.prompt_measures import SIDES, Choice, Ranking, jaccard, measure, measure_groups
from selftaught.types import Score

RANKING = Ranking()


def test_the_three_measures():
    """Rewards 0.2, 0.9, 0.5, texts of 1, 4 and 2 characters: the worst has reward 0.2 and length 1, the gap is 0.7."""
    group = rewarded("p", [0.2, 0.9, 0.5], ["a", "abcd", "ab"])
    choice = RANKING.choose(group)
    assert (choice.chosen.text, choice.rejected.text) == ("abcd", "a")
    row = measure(choice)
    assert row.values == {"rejected_reward": 0.2, "rejected_length": 1.0, "gap": pytest.approx(0.7)}
    assert (row.id, row.samples, row.meta) == (group.id, 3, {})


def test_every_measure():
    group = rewarded("p", [0.2, 0.9, 0.4], ["the cat ran", "the cat sat", "a b"])
    best = group.completions[1].id
    nlls = (
        Score(completion_id=best, scorer="nll", value=1.0),
        Score(completion_id=best, scorer="nll_alone", value=4.0),
    )
    row = measure(RANKING.choose(replace(group, scores=(*group.scores, *nlls))), SIDES)
    assert row.values == {
        "rejected_reward": 0.2,
        "rejected_length": 11.0,
        "gap": pytest.approx(0.7),
        "chosen_reward": 0.9,
        "chosen_length": 11.0,
        "mean_reward": pytest.approx(0.5),
        "mean_length": pytest.approx(25 / 3),
        "jaccard": 0.5,
        "perplexity": pytest.approx(e),
        "ifd": 0.25,
    }


def test_lengths_in_tokens():
    group = rewarded("p", [0.2, 0.9], ["the cat ran", "yes"])
    assert measure(RANKING.choose(group), length_unit="tokens").values["rejected_length"] == 4.0
    untold = replace(group, completions=tuple(replace(c, token_ids=None) for c in group.completions))
    with pytest.raises(InputError, match="has no token ids: measure its length with length_unit=chars"):
        measure(RANKING.choose(untold), length_unit="tokens")


def test_without_likelihoods_there_is_no_perplexity():
    group = rewarded("p", [0.2, 0.9])
    assert measure(RANKING.choose(group), ("perplexity", "ifd")).values == {"perplexity": None, "ifd": None}
    huge = Score(completion_id=group.completions[1].id, scorer="nll", value=1e9)
    none = Score(completion_id=group.completions[1].id, scorer="nll_alone", value=0.0)
    row = measure(RANKING.choose(replace(group, scores=(*group.scores, huge, none))), ("perplexity", "ifd"))
    assert row.values["perplexity"] < float("inf") and row.values["ifd"] is None


def test_jaccard():
    assert jaccard("", "?!") == 1.0 and jaccard("a", "") == 0.0 and jaccard("a b", "B, a") == 1.0


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([0.5, 0.5, 0.5], "all rewards are equal"),
        ([0.5, None, None], "fewer than two completions have a reward"),
        ([None, None], "fewer than two completions have a reward"),
    ],
)
def test_prompts_without_a_pair(rewards, reason):
    dropped = Counter()
    assert RANKING.choose(rewarded("p", rewards)) == reason
    assert measure_groups([rewarded("p", rewards)], RANKING, dropped=dropped) == [] and dropped == {reason: 1}


def test_unscored_completions_are_neither_chosen_nor_counted():
    choice = RANKING.choose(rewarded("p", [None, 0.1, 0.9, None], ["a", "b", "c", "d"]))
    assert (choice.chosen.text, choice.rejected.text, measure(choice).samples) == ("c", "b", 2)


def test_one_text_with_two_rewards_is_no_choice():
    """A reward model in batches rounds: the same answer all over would be preferred to itself."""
    dropped = Counter()
    same = rewarded("p", [0.5, 0.5000001, 0.5], ["yes"] * 3)
    assert RANKING.choose(same) == "chosen and rejected are the same text"
    assert measure_groups([same], RANKING, dropped=dropped) == [] and dropped.total() == 1
    assert RANKING.choose(rewarded("p", [0.5, 0.4, 0.6], ["yes", "no", "yes"])).rejected.text == "no"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_likelihood_that_is_no_number(value):
    group = rewarded("p", [0.2, 0.9])
    nll = Score(completion_id=group.completions[1].id, scorer="nll", value=value)
    with pytest.raises(InputError, match=f"has the score {value} by 'nll': mend the scorer"):
        measure(RANKING.choose(replace(group, scores=(*group.scores, nll))), ("perplexity",))


def test_one_completion_is_an_error():
    with pytest.raises(InputError, match=r"1 completion\(s\); RIP compares the best with the worst of N"):
        RANKING.choose(rewarded("p", [0.5]))


def test_missing_and_senseless_scores_are_named():
    with pytest.raises(InputError, match="has no score by 'judge': score it first"):
        Ranking(scorer="judge").choose(rewarded("p", [0.1, 0.2]))
    with pytest.raises(InputError, match="has the reward nan: a reward is a finite number"):
        RANKING.choose(rewarded("p", [0.1, float("nan")]))
    with pytest.raises(InputError, match="no measure is called 'gaps': known are rejected_reward"):
        measure(RANKING.choose(rewarded("p", [0.1, 0.2])), ("gaps",))
    with pytest.raises(InputError, match="share=0 of the completions leaves none to reject"):
        Ranking(share=0)


def test_the_worst_a_random_one_or_one_of_the_bottom():
    groups = [rewarded(f"p{i}", [k / 8 for k in range(8)]) for i in range(300)]
    lengths = {
        kind: Counter(len(Ranking(rejected=kind).choose(g).rejected.text) for g in groups)
        for kind in ("worst", "bottom", "random")
    }
    assert set(lengths["worst"]) == {1}
    assert set(lengths["bottom"]) == {1, 2}  # a quarter of 8
    assert set(lengths["random"]) == set(range(1, 8))
    assert all(count > 15 for count in lengths["random"].values())


def test_the_bottom_never_holds_the_best():
    group = rewarded("p", [1.0, 1.0, 1.0, 0.5])
    assert Ranking(rejected="bottom", share=1.0).choose(group).rejected.text == "xxxx"
    assert Ranking(rejected="random").choose(group).rejected.text == "xxxx"


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(rewards, shuffler: random.Random):
    group = rewarded("p", [float(r) for r in rewards], ["same" if r == 0 else f"t{r}" for r in rewards])
    order = list(group.completions)
    shuffler.shuffle(order)
    for kind in ("worst", "random", "bottom"):
        first, second = (Ranking(rejected=kind).choose(g) for g in (group, replace(group, completions=tuple(order))))
        if isinstance(first, Choice):
            assert (first.chosen, first.rejected) == (second.chosen, second.rejected)
        else:
            assert first == second
