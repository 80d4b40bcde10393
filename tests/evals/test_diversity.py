import math

import numpy as np
import pytest
from scipy import stats

from selftaught.errors import InputError
from selftaught.evals.diversity import (
    compression_ratio,
    entropy,
    in_turn,
    max_share,
    measure_attributes,
    measure_marginals,
    measure_quality,
    measure_words,
    selection_facts,
    unigram_entropy,
    unique_share,
    unique_unigrams,
    win_rate,
)
from selftaught.types import Completion, Group, Pair, Prompt, Score


def group_of(texts, rewards=(), name: str = "p") -> Group:
    prompt = Prompt.from_text(name)
    completions = tuple(Completion(prompt_id=prompt.id, k=i, text=t, model=f"m{i}") for i, t in enumerate(texts))
    scores = tuple(
        Score(completion_id=c.id, scorer=scorer, value=r)
        for c, r in zip(completions, rewards, strict=False)
        for scorer in ("reward", "verifier")
    )
    return Group(prompt=prompt, completions=completions, scores=scores)


def test_entropy_by_hand_and_by_scipy():
    """Counts 2, 1, 1: shares 1/2, 1/4, 1/4, so 1.5 bits = 1.5 ln 2 nats."""
    assert entropy([2, 1, 1, 0]) == pytest.approx(1.5 * math.log(2))
    assert entropy([5]) == 0.0
    assert math.isnan(entropy([])) and math.isnan(entropy([0.0]))
    weights = np.random.default_rng(0).random(50)
    assert entropy(weights) == pytest.approx(stats.entropy(weights))


def test_unique_share_is_over_a_fixed_number():
    values = ["a", "b", "a", None, "c"]
    assert unique_share(values, 5) == 0.6
    assert unique_share(values, 4) == 0.5
    with pytest.raises(InputError, match="5 generations where 6 are to be compared"):
        unique_share(values, 6)


def test_max_share():
    assert max_share(["a", "a", "b", None]) == pytest.approx(2 / 3)
    assert math.isnan(max_share([None]))


def test_words():
    texts = ["A storm, a lamp", "the STORM"]
    assert unique_unigrams(texts) == 4
    assert unigram_entropy(texts) == pytest.approx(entropy([2, 2, 1, 1]))


def test_compression_tells_repetition():
    source = np.random.default_rng(0)
    varied = ["".join(map(chr, source.integers(97, 123, 40))) for _ in range(50)]
    assert compression_ratio(["the same again"] * 50) > 5 * compression_ratio(varied)
    assert compression_ratio(varied) == compression_ratio(list(varied))
    assert math.isnan(compression_ratio([]))


def test_win_rate_counts_a_tie_half():
    assert win_rate([1, 2, 3, None], [0, 2, 4, 1]) == [1.0, 0.5, 0.0, None]
    with pytest.raises(ValueError, match="longer"):
        win_rate([1], [1, 2])


def test_quality_against_a_baseline():
    reports, values = measure_quality([group_of("ab", (1.0, 1.0))], [group_of("cd", (1.0, 0.0))], "reward")
    assert {r.name: r.mean for r in reports} == {"validity": 1.0, "reward": 1.0, "win_rate": 0.75}
    assert list(values["validity"].values()) == [1.0]


def test_quality_of_what_has_no_reward():
    unscored, scored = group_of("ab", (None, None)), group_of("cd", (1.0, 0.0))
    reports, values = measure_quality([unscored], [scored], "reward")
    assert all(math.isnan(r.mean) and (r.n, r.unscored) == (0, 1) for r in reports)
    assert values["win_rate"] == {unscored.id: None}
    with pytest.raises(InputError, match="has no score by 'reward': score it first"):
        measure_quality([scored], [group_of("cd")], "reward")


def test_a_part_of_the_generations_is_of_all_prompts():
    groups = [group_of("ab", name="p"), group_of("cd", name="q")]
    assert [c.text for c in in_turn(groups)] == ["a", "c", "b", "d"]
    found = {r.name: r.mean for r in measure_words(groups, 2)}
    assert found["unique_unigrams"] == 2


def test_attributes():
    texts = ['{"n": "Ada", "c": "Oslo"}', '{"n": "ada", "c": "Rome"}', "broken", '{"n": "Bo", "c": "Oslo"}']
    found = {r.name: r.mean for r in measure_attributes([group_of(texts)], ("n", "c"), 4)}
    assert found["unique_share"] == found["unique_share_n"] == 0.5
    assert found["entropy_sampled_n"] == pytest.approx(entropy([2, 1]))
    assert found["max_share"] == pytest.approx(2 / 3)


def test_nothing_valid_is_no_entropy_rather_than_zero():
    found = {r.name: r for r in measure_attributes([group_of(["x", "y"])], ("n",), 2)}
    assert math.isnan(found["entropy_sampled"].mean) and found["unique_share"].mean == 0
    assert math.isnan(measure_marginals({"n": {}}, 2)[0].mean)


def test_marginals():
    found = {r.name: r.mean for r in measure_marginals({"n": {"a": 0.5, "b": 0.5}, "c": {"x": 1.0}}, 9)}
    assert found["entropy"] == pytest.approx(math.log(2) / 2)
    assert (found["entropy_c"], found["max_share_exact"]) == (0.0, 0.75)


def test_facts_of_a_selection():
    group = group_of("ab")
    meta = {"score_chosen": 8.0, "score_best": 9.0, "good": 2, "bad": 1, "diversity_chosen": 3, "diversity_rejected": 1}
    pair = Pair(prompt=group.prompt, chosen=group.completions[0], rejected=group.completions[1], meta=meta)
    facts = selection_facts([pair], prompts=4)
    assert (facts["kept"], facts["without"], facts["price"], facts["good"]) == (1, 0.75, -1.0, 2)
    assert selection_facts([], 2)["price"] is None
