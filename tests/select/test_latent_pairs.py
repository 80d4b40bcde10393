from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.select.latent_pairs import EQUAL_CHOICES, EQUAL_SCORES, TOO_FEW, LatentPairs
from selftaught.types import Completion, Group, Prompt, Score

SEQUENCE = LatentPairs(level="sequence")
TOKEN = LatentPairs(level="token")
Sample = tuple[float | None, Sequence[float]]


def group(*samples: Sample, name: str = "p", tokens: int = 3) -> Group:
    """Return a group of one completion of `tokens` tokens per (reward, choices)."""
    prompt = Prompt.from_text(name)
    completions = tuple(
        Completion(
            prompt_id=prompt.id, k=k, text=f"t{k}", token_ids=tuple(range(tokens)), latents={"choice": tuple(choices)}
        )
        for k, (_, choices) in enumerate(samples)
    )
    scores = tuple(
        Score(completion_id=c.id, scorer="reward", value=value)
        for c, (value, _) in zip(completions, samples, strict=True)
    )
    return Group(prompt=prompt, completions=completions, scores=scores)


def numbers(pairs) -> list[tuple[int, int]]:
    return [(pair.chosen.k, pair.rejected.k) for pair in pairs]


def test_best_over_worst():
    dropped = Counter()
    (pair,) = SEQUENCE([group((0.2, [0]), (0.9, [3]), (0.5, [1]))], dropped)
    assert (pair.chosen.k, pair.rejected.k) == (1, 0)
    assert pair.meta == {"score_chosen": 0.9, "score_rejected": 0.2} and not dropped
    assert pair.chosen.latents == {"choice": (3.0,)}


def test_next_best_over_next_worst():
    rewards = group((1.0, [0]), (0.8, [1]), (0.6, [2]), (0.4, [3]), (0.2, [4]))
    assert numbers(replace(SEQUENCE, most=2)([rewards])) == [(0, 4), (1, 3)]
    assert numbers(replace(SEQUENCE, most=99)([rewards])) == [(0, 4), (1, 3)]


def test_all_pairs_and_some_of_them():
    rewards = group((0.5, [0]), (1.0, [1]), (0.0, [2]))
    every = [(1, 0), (1, 2), (0, 2)]
    assert sorted(numbers(replace(SEQUENCE, rule="all")([rewards]))) == sorted(every)
    drawn = {tuple(numbers(LatentPairs(level="sequence", rule="random", most=1, seed=s)([rewards]))) for s in range(40)}
    assert drawn == {(pair,) for pair in every}


def test_what_has_no_gradient_is_counted():
    """Of the pairs among (1, a), (1, b), (0, a): one of equal scores, one of the same choice, one kept."""
    dropped = Counter()
    rule = replace(SEQUENCE, rule="all")
    assert numbers(rule([group((1.0, [2]), (1.0, [4]), (0.0, [2]))], dropped)) == [(1, 2)]
    assert dropped == {EQUAL_SCORES: 1, EQUAL_CHOICES: 1}
    dropped.clear()
    assert not list(
        SEQUENCE([group((1.0, [0]), (1.0, [1])), group((1.0, [0])), group((None, [0]), (1.0, [1]))], dropped)
    )
    assert dropped == {EQUAL_SCORES: 1, TOO_FEW: 2}


def test_equal_choices_are_kept_at_the_token_level():
    """Elsewhere in the text the same choices are made in other states."""
    assert numbers(TOKEN([group((0.0, [1, 1, 1]), (1.0, [1, 1, 1]))])) == [(1, 0)]


def test_unscored_completions_are_in_no_pair():
    assert numbers(SEQUENCE([group((None, [0]), (0.0, [1]), (0.5, [2]))])) == [(2, 1)]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3)), min_size=2, max_size=8), st.randoms())
def test_the_order_of_samples_does_not_matter(samples, source):
    made = group(*((reward, [choice]) for reward, choice in samples))
    shuffled = list(made.completions)
    source.shuffle(shuffled)
    for rule in ("best_worst", "random", "all"):
        selector = replace(SEQUENCE, rule=rule, most=2)
        found = list(selector([made]))
        assert Counter(p.id for p in found) == Counter(
            p.id for p in selector([replace(made, completions=tuple(shuffled))])
        )
        for pair in found:
            assert pair.meta["score_chosen"] > pair.meta["score_rejected"]
            assert pair.chosen.latents != pair.rejected.latents


def test_ties_are_broken_by_the_seed():
    tied = group((1.0, [0]), (1.0, [1]), (0.0, [2]), (0.0, [3]))
    assert len({tuple(numbers(LatentPairs(level="sequence", seed=s)([tied]))) for s in range(40)}) == 4


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_score_must_be_a_number(value):
    with pytest.raises(InputError, match="mend the scorer"):
        list(SEQUENCE([group((value, [0]), (0.0, [1]))]))


def test_every_completion_must_be_scored():
    made = group((1.0, [0]), (0.0, [1]))
    with pytest.raises(InputError, match="no score by 'judge': score it first"):
        list(LatentPairs(level="sequence", scorer="judge")([made]))


@pytest.mark.parametrize(("rule", "choices"), [(SEQUENCE, [0, 1, 2]), (SEQUENCE, []), (TOKEN, [0]), (TOKEN, [0, 1])])
def test_choices_must_be_those_of_the_level(rule, choices):
    with pytest.raises(InputError, match=f"choices and not {1 if rule is SEQUENCE else 3}"):
        list(rule([group((1.0, choices), (0.0, choices))]))


def test_no_pair_is_no_rule():
    with pytest.raises(InputError, match="most=0"):
        LatentPairs(level="token", most=0)
