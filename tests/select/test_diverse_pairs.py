import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.select.diverse_pairs import BestDemonstrations, DiversePairs, cut_values
from selftaught.types import Completion, Group, Prompt, Score


class Planted:
    """Diversity as written in the text: "name:value"."""

    def __call__(self, group, among):
        return [float(c.text.split(":")[1]) for c in among]


def group_of(*rows: tuple[str, float | None], name: str = "p") -> Group:
    prompt = Prompt.from_text(name)
    completions = tuple(Completion(prompt_id=prompt.id, k=i, text=t, model=f"m{i}") for i, (t, _) in enumerate(rows))
    scores = tuple(
        Score(completion_id=c.id, scorer="reward", value=r) for c, (_, r) in zip(completions, rows, strict=True)
    )
    return Group(prompt=prompt, completions=completions, scores=scores)


def pair_of(group: Group, **options) -> tuple[str, str] | str:
    dropped: Counter[str] = Counter()
    pairs = list(DiversePairs(diversity=Planted(), **options)([group], dropped))
    if not pairs:
        (reason,) = dropped
        return reason
    return pairs[0].chosen.text, pairs[0].rejected.text


NOTE = group_of(("a:1", 9.0), ("b:3", 8.8), ("c:2", 8.5), ("d:5", 4.0), ("e:4", 2.0))


def test_the_worked_example():
    """Rewards 9, 8.8, 8.5, 4, 2. At rho 0.2 the cuts are 7.6 and 3.4: the rarest of three over 2; at 0.5 both 5.5."""
    assert pair_of(NOTE, rho=0.2) == ("b:3", "e:4")
    assert pair_of(NOTE, rho=0.5) == ("b:3", "e:4")
    assert pair_of(replace(NOTE, completions=NOTE.completions), rho=0.0) == ("a:1", "e:4")
    common = group_of(("a:1", 9.0), ("b:3", 8.8), ("c:2", 8.5), ("d:0", 4.0), ("e:4", 2.0))
    assert pair_of(common, rho=0.5) == ("b:3", "d:0")


def test_quantile_and_absolute():
    assert pair_of(NOTE, pool="quantile", rho=0.4) == ("b:3", "e:4")
    assert cut_values([1, 2, 3, 4, 5], 0.2, "quantile") == (5, 1)
    assert pair_of(NOTE, pool="absolute", threshold=4.0) == ("d:5", "e:4")
    assert pair_of(NOTE, pool="absolute", threshold=99.0) == "no completion is good enough to be chosen"


@pytest.mark.parametrize("pool", ["range", "quantile"])
@given(rewards=st.lists(st.integers(-50, 50), min_size=2, max_size=9, unique=True))
def test_without_slack_and_ties_it_is_best_over_worst(pool, rewards):
    group = group_of(*((f"{r}:{r % 7}", float(r)) for r in rewards))
    chosen, rejected = pair_of(group, rho=0.0, pool=pool)
    assert (chosen, rejected) == (f"{max(rewards)}:{max(rewards) % 7}", f"{min(rewards)}:{min(rewards) % 7}")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=8), st.randoms())
def test_the_order_of_the_samples_does_not_matter(rows, source: random.Random):
    group = group_of(*((f"{i}:{d}", float(r)) for i, (r, d) in enumerate(rows)))
    order = list(group.completions)
    source.shuffle(order)
    assert pair_of(group) == pair_of(replace(group, completions=tuple(order)))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2) | st.none()), max_size=8),
    st.sampled_from(["range", "quantile", "absolute"]),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.booleans(),
)
def test_a_pair_is_two_different_texts_of_scored_samples(rows, pool, rho, same):
    group = group_of(*((f"{t}:1", r if r is None else float(r)) for t, r in rows))
    found = list(DiversePairs(diversity=Planted(), pool=pool, rho=rho, allow_same_pool=same)([group], Counter()))
    for pair in found:
        assert pair.chosen.text != pair.rejected.text
        assert pair.meta["score_chosen"] >= pair.meta["score_rejected"]
        assert pair.meta["score_best"] >= pair.meta["score_chosen"]


def test_the_middle_is_good_only():
    middle = group_of(("a:0", 0.0), ("m:9", 0.5), ("z:1", 1.0))
    (pair,) = DiversePairs(diversity=Planted(), rho=0.5)([middle])
    assert (pair.chosen.text, pair.rejected.text) == ("m:9", "a:0")
    assert (pair.meta["good"], pair.meta["bad"]) == (2, 1)


def test_all_valid_takes_the_least_diverse_of_the_good_ones_if_allowed():
    valid = group_of(("a:1", 1.0), ("b:2", 1.0), ("c:3", 1.0))
    assert pair_of(valid) == ("c:3", "a:1")
    assert pair_of(valid, allow_same_pool=False) == "no completion is bad enough to be rejected"
    (pair,) = DiversePairs(diversity=Planted())([valid])
    assert pair.meta["bad"] == 0
    alike = group_of(("a:1", 1.0), ("b:1", 1.0))
    assert pair_of(alike) == "all good, and the chosen not more diverse than the rejected"


def test_all_invalid_gives_nothing():
    invalid = group_of(("a:1", 0.0), ("b:2", 0.0))
    assert pair_of(invalid, minimum=0.5) == "no completion is good enough to be chosen"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "fewer than two completions with a reward"),
        ([("a:1", 1.0)], "fewer than two completions with a reward"),
        ([("a:1", 1.0), ("b:1", None)], "fewer than two completions with a reward"),
        ([("a:1", 1.0), ("a:1 ", 0.0)], "all texts are identical"),
    ],
)
def test_groups_that_give_no_pair(rows, reason):
    assert pair_of(group_of(*rows)) == reason


def test_unscored_samples_are_in_no_pool():
    assert pair_of(group_of(("a:1", 1.0), ("b:9", None), ("c:0", 0.0))) == ("a:1", "c:0")


def test_a_sample_without_a_score_row_is_an_error():
    group = group_of(("a:1", 1.0), ("b:1", 0.0))
    with pytest.raises(InputError, match="has no score by 'reward': score it first"):
        pair_of(replace(group, scores=group.scores[:1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value):
    with pytest.raises(InputError, match="reward"):
        pair_of(group_of(("a:1", value), ("b:1", 0.0)))
    with pytest.raises(InputError, match="has diversity"):
        pair_of(group_of((f"a:{value}", 1.0), ("b:1", 0.0)))


class Silent:
    """A criterion that has nothing to say of texts with a "?"."""

    def __call__(self, group, among):
        return [None if "?" in c.text else 1.0 for c in among]


def test_what_the_criterion_cannot_tell_is_not_considered():
    group = group_of(("a", 1.0), ("b?", 1.0), ("c?", 0.0), ("d", 0.0))
    (pair,) = DiversePairs(diversity=Silent())([group])
    assert (pair.chosen.text, pair.rejected.text) == ("a", "d")
    assert list(DiversePairs(diversity=Silent())([group_of(("a", 1.0), ("c?", 0.0))])) == []


def test_diversity_may_decide_on_one_side_only():
    rows = [(f"g{i}:{i}", 1.0) for i in range(6)] + [(f"b{i}:{i}", 0.0) for i in range(6)]
    drawn = {
        side: {pair_of(group_of(*rows, name=f"p{n}"), sides=side) for n in range(30)} for side in ("chosen", "rejected")
    }
    assert {chosen for chosen, _ in drawn["chosen"]} == {"g5:5"}
    assert len({rejected for _, rejected in drawn["chosen"]}) > 3
    assert {rejected for _, rejected in drawn["rejected"]} == {"b0:0"}
    assert len({chosen for chosen, _ in drawn["rejected"]}) > 3


def test_ties_are_drawn_by_seed_and_prompt():
    rows = [("a:1", 1.0), ("b:1", 1.0), ("c:0", 0.0)]
    chosen = Counter(pair_of(group_of(*rows, name=f"p{n}"))[0] for n in range(100))
    assert 30 < chosen["a:1"] < 70
    assert len({pair_of(group_of(*rows), seed=seed) for seed in range(20)}) == 2


def test_rho_above_a_half_is_refused():
    with pytest.raises(InputError, match=r"rho=0\.6 is not within 0 to 0\.5"):
        DiversePairs(diversity=Planted(), rho=0.6)


def test_best_demonstrations():
    groups = [group_of(("a:1", 0.5), ("b:1", 1.0), name="p"), group_of(("a:1", 0.0), ("b:1", None), name="q")]
    dropped: Counter[str] = Counter()
    (row,) = BestDemonstrations(minimum=0.5)(groups, dropped)
    assert (row.completion.text, dict(dropped)) == ("b:1", {"no completion is good enough to be imitated": 1})


def test_demonstrations_where_there_is_no_best():
    tied = [group_of(("a:1", 1.0), ("b:1", 1.0), ("c:1", 0.0), name=f"p{n}") for n in range(40)]
    assert {row.completion.text for row in BestDemonstrations()(tied)} == {"a:1", "b:1"}
    dropped: Counter[str] = Counter()
    assert list(BestDemonstrations()([group_of(("a:1", None)), group_of(name="empty")], dropped)) == []
    assert dropped == {"no completion is good enough to be imitated": 2}
    with pytest.raises(InputError, match="has no score by 'reward': score it first"):
        list(BestDemonstrations()([replace(tied[0], scores=())]))
