import json
import pickle
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.select.samples import rewarded
from tests.worlds import shared_data

from selftaught.config import build
from selftaught.errors import InputError, NothingToTrainOn
from selftaught.select.pairs import RewardPairs
from selftaught.select.prompt_measures import MEDIANS, Measured, Ranking
from selftaught.select.rip import (
    Filtered,
    KeepAll,
    KeptPrompts,
    Labelled,
    RandomSubset,
    RankedPairs,
    RipPairs,
    Thresholds,
    filter_preferences,
    fit_thresholds,
    objections,
    search_quantiles,
)
from selftaught.store.datafiles import read_pairs
from selftaught.store.keys import canonical
from selftaught.types import Completion, Pair, Prompt

RANKING = Ranking()


def row(name: str, reward: float | None, length: float = 5.0, gap: float = 0.5, samples: int = 8, **meta) -> Measured:
    values = {"rejected_reward": reward, "rejected_length": length, "gap": gap}
    return Measured(id=name, samples=samples, values=values, meta=meta)


def kept(filter, pool) -> set[str]:
    return {name for name, ruling in filter(pool).items() if not ruling.failed}


def thresholds(**bounds: float) -> Thresholds:
    return Thresholds(bounds={"": bounds})


POOL = [row(str(i), i / 10, 10.0 - i, i / 20) for i in range(10)]


# --- thresholds ------------------------------------------------------------------------------------------------------


def test_the_direction_of_each_condition():
    assert kept(thresholds(rejected_reward=0.5), POOL) == {"5", "6", "7", "8", "9"}
    assert kept(thresholds(rejected_length=6.0), POOL) == {"0", "1", "2", "3", "4"}
    assert kept(thresholds(gap=0.1), POOL) == {"0", "1", "2"}
    turned = Thresholds(bounds={"": {"gap": 0.1}}, sides={"gap": "above"})
    assert kept(turned, POOL) == {"2", "3", "4", "5", "6", "7", "8", "9"}


def test_all_conditions_must_hold_and_failures_are_named():
    rulings = thresholds(rejected_reward=0.3, rejected_length=4.0)(POOL)
    assert {name for name, ruling in rulings.items() if not ruling.failed} == {"3", "4", "5", "6"}
    assert rulings["0"].failed == ("rejected_reward",) and rulings["9"].failed == ("rejected_length",)


MEASURED = st.lists(
    st.tuples(st.floats(-2, 2), st.integers(0, 6), st.floats(0, 2)), min_size=1, max_size=25, unique=True
).map(lambda rows: [row(str(i), r, float(length), g) for i, (r, length, g) in enumerate(rows)])
BOUNDS = st.fixed_dictionaries(
    {"rejected_reward": st.floats(-2, 2), "rejected_length": st.floats(0, 6), "gap": st.floats(0, 2)}
)


@given(MEASURED, BOUNDS, st.sampled_from(sorted(MEDIANS)), st.floats(0, 2))
def test_a_stricter_threshold_never_keeps_more(pool, bounds, name, step):
    stricter = bounds[name] + (-step if name == "gap" else step)
    assert kept(thresholds(**{**bounds, name: stricter}), pool) <= kept(thresholds(**bounds), pool)


@given(MEASURED, BOUNDS)
def test_the_margin_has_the_sign_of_the_ruling(pool, bounds):
    for ruling in thresholds(**bounds)(pool).values():
        assert (ruling.margin >= 0) == (not ruling.failed) and -1 <= ruling.margin <= 1


@given(MEASURED, st.randoms(use_true_random=False))
def test_the_order_of_prompts_does_not_matter(pool, shuffler: random.Random):
    shuffled = list(pool)
    shuffler.shuffle(shuffled)
    fitted = fit_thresholds(pool, MEDIANS)
    assert fit_thresholds(shuffled, MEDIANS) == fitted
    assert fitted(shuffled) == fitted(pool)
    for filter in (RandomSubset(count=3, seed=1), KeepAll()):
        assert filter(shuffled) == filter(pool)


def test_quantiles_become_a_frozen_record_with_their_n():
    fitted = fit_thresholds(POOL, {"rejected_reward": 0.5, "gap": 0.25})
    assert fitted.bounds == {"": {"rejected_reward": pytest.approx(0.45), "gap": pytest.approx(0.1125)}}
    assert (fitted.samples, fitted.prompts, fitted.measures) == (8, 10, ("rejected_reward", "gap"))
    assert pickle.loads(pickle.dumps(fitted)) == fitted
    canonical(fitted)
    other = [row(str(i), 0.2 + i / 100) for i in range(10)]
    assert kept(fitted, other) == set(), "the bounds are not taken anew"


def test_quantiles_within_groups_of_tasks():
    long = [row(f"l{i}", 0.5, 100.0 + i, task="essay") for i in range(4)]
    short = [row(f"s{i}", 0.5, 1.0 + i, task="sum") for i in range(4)]
    pool = [*long, *short, row("x", 0.5, 3.5)]
    together = fit_thresholds(pool, {"rejected_length": 0.5})
    apart = fit_thresholds(pool, {"rejected_length": 0.5}, group_by="task")
    assert kept(together, pool) == {"l0", "l1", "l2", "l3", "s3"}
    assert kept(apart, pool) == {"l2", "l3", "s2", "s3"}
    # Tasks that the pool did not have, and prompts without one, are compared with the whole pool.
    assert set(apart.bounds) == {"", "essay", "sum"}
    assert kept(apart, [row("new", 0.5, 4.0, task="poem"), row("none", 0.5, 3.0)]) == {"new"}
    untold = fit_thresholds([*pool, row("null", 0.5, 3.5, task=None)], {"rejected_length": 0.5}, group_by="task")
    assert set(untold.bounds) == {"", "essay", "sum"}


def test_a_prompt_without_a_measure_fails_it():
    pool = [*POOL, row("none", None)]
    ruling = thresholds(rejected_reward=0.5, gap=1.0)(pool)["none"]
    assert ruling.margin is None and ruling.failed == ("no rejected_reward",)
    assert fit_thresholds(pool, {"rejected_reward": 0.5}) == replace(
        fit_thresholds(POOL, {"rejected_reward": 0.5}), prompts=11
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_thresholds([], MEDIANS), NothingToTrainOn, "no prompt has two different rewards"),
        (lambda: fit_thresholds(POOL, {"gap": 50}), InputError, "quantile 50 of gap is no share"),
        (lambda: fit_thresholds(POOL, {}), InputError, "a bound on at least one measure"),
        (lambda: fit_thresholds(POOL, {"gaps": 0.5}), InputError, "no measure is called 'gaps'"),
        (lambda: fit_thresholds([row("a", None)], {"rejected_reward": 0.5}), InputError, "score_chosen and score_rej"),
        (
            lambda: fit_thresholds([replace(row("a", 1.0), values={"ifd": None})], {"ifd": 0.5}),
            InputError,
            "score the groups with CompletionNLL, with and without the prompt, first",
        ),
        (lambda: Thresholds(bounds={"": {"gap": 1.0}, "x": {}}), InputError, "the same measures in every group"),
        (lambda: Thresholds(bounds={"": {"gap": 1.0}}, sides={"gab": "above"}), InputError, "'gab'"),
        (lambda: thresholds(gap=float("nan")), InputError, "nan would keep every prompt"),
    ],
)
def test_thresholds_that_make_no_sense(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- other filters and warnings --------------------------------------------------------------------------------------


def test_a_random_subset_has_its_size_and_its_seed():
    sizes = {len(kept(RandomSubset(count=4, seed=seed), POOL)) for seed in range(10)}
    assert sizes == {4}
    assert len({frozenset(kept(RandomSubset(count=4, seed=seed), POOL)) for seed in range(10)}) > 5
    assert kept(RandomSubset(count=0), POOL) == set() and len(kept(RandomSubset(count=99), POOL)) == 10


def test_labels():
    pool = [row("a", 1.0, corruption=""), row("b", 1.0, corruption="mix"), row("c", 1.0, corruption="cut"), row("d", 1)]
    assert kept(Labelled(), pool) == {"a", "d"}
    assert kept(Labelled(labels=("mix",)), pool) == {"a", "c", "d"}
    assert kept(KeepAll(), pool) == {"a", "b", "c", "d"}


def test_lengths_that_decide_alone_are_warned_of():
    decided = thresholds(rejected_length=6.0, rejected_reward=-1.0)
    (warning,) = objections(decided(POOL), POOL, decided)
    assert warning.startswith("length removes 100% of the 5 prompts removed")
    shared = thresholds(rejected_length=2.0, rejected_reward=0.5)
    assert objections(shared(POOL), POOL, shared) == []
    nothing = thresholds(rejected_length=0.0)
    assert objections(nothing(POOL), POOL, nothing) == []


def test_thresholds_of_another_n_are_warned_of():
    fitted = fit_thresholds([replace(r, samples=64) for r in POOL], {"gap": 0.5})
    (warning,) = objections(fitted(POOL), POOL, fitted)
    assert "found with 64 completions per prompt are used with 8" in warning


# --- selectors -------------------------------------------------------------------------------------------------------


def groups():
    """Rejected rewards 0, 0.1, ... 0.9 with a chosen one of 1; group 10 has equal rewards."""
    return [
        *(rewarded(f"p{i}", [1.0, i / 10], ["good", "b" * (i + 1)], {"n": i}) for i in range(10)),
        rewarded("equal", [0.5, 0.5], meta={"n": 10}),
    ]


def test_rip_in_one_step():
    dropped = Counter()
    pairs = list(RipPairs()(groups(), dropped))
    assert [pair.prompt.meta["n"] for pair in pairs] == [5, 6, 7, 8, 9]
    assert pairs[0].meta == {"score_chosen": 1.0, "score_rejected": 0.5, "k": 2}
    assert (pairs[0].chosen.text, pairs[0].rejected.text, pairs[0].weight) == ("good", "bbbbbb", 1.0)
    assert dropped == {"all rewards are equal": 1, "removed by rejected_reward and rejected_length and gap": 5}


def test_rip_by_absolute_bounds_quantiles_or_both():
    def found(rule):
        return [pair.prompt.meta["n"] for pair in rule(groups())]

    assert found(RipPairs(bounds={"gap": 0.25})) == [8, 9]
    assert found(RipPairs(quantiles={"rejected_length": 0.8})) == [8, 9]
    assert found(RipPairs(quantiles={"rejected_length": 0.8, "gap": 0.5}, bounds={"gap": 0.15})) == [9]
    assert found(RipPairs(bounds={"gap": 0.25}, sides={"gap": "above"})) == [0, 1, 2, 3, 4, 5, 6, 7]
    rule = RipPairs(quantiles={"rejected_length": 0.5}, bounds={"gap": 1.0})
    assert rule.measures == ("rejected_length", "gap") and RipPairs(bounds={"gap": 1.0}).asked == {}


def test_the_command_line_can_give_the_conditions():
    rule = build(RipPairs, ["--quantiles", "{rejected_length: 0.5}", "--bounds", "{gap: 0.2}", "--rejected", "bottom"])
    assert rule == RipPairs(quantiles={"rejected_length": 0.5}, bounds={"gap": 0.2}, rejected="bottom")
    with pytest.raises(InputError, match="no measure is called 'gapp'"):
        build(RipPairs, ["--bounds", "{gapp: 0.2}"])


def test_any_selector_may_follow_a_filter():
    filter = thresholds(gap=0.25)
    alone = list(Filtered(ranking=RANKING, filter=filter, then=RankedPairs(ranking=RANKING))(groups()))
    other = list(Filtered(ranking=RANKING, filter=filter, then=RewardPairs(scorer="reward"))(groups()))
    assert [(p.prompt, p.chosen, p.rejected) for p in alone] == [(p.prompt, p.chosen, p.rejected) for p in other]
    assert len(alone) == 2
    nested = Filtered(ranking=RANKING, filter=Labelled(key="n", labels=(9,)), then=Filtered(
        ranking=RANKING, filter=filter, then=RankedPairs(ranking=RANKING)
    ))  # fmt: skip
    assert [p.prompt.meta["n"] for p in nested(groups())] == [8]
    canonical(nested)
    assert pickle.loads(pickle.dumps(nested)) == nested


def test_prompts_that_are_kept():
    dropped = Counter()
    prompts = list(KeptPrompts(ranking=RANKING, filter=thresholds(gap=0.25))(groups(), dropped))
    assert [p.meta["n"] for p in prompts] == [8, 9]
    assert dropped == {"all rewards are equal": 1, "removed by gap": 8}
    with pytest.raises(TypeError, match="one-shot iterator"):
        list(KeptPrompts(ranking=RANKING, filter=KeepAll())(iter(groups())))


# --- preference files ------------------------------------------------------------------------------------------------


def pair(i: int, chosen: str, rejected: str, **scores: float) -> Pair:
    prompt = Prompt.from_text(f"q{i}")
    sides = [
        Completion(prompt_id=prompt.id, k=k, text=text, id=f"{i}-{k}") for k, text in enumerate((chosen, rejected))
    ]
    return Pair(prompt=prompt, chosen=sides[0], rejected=sides[1], meta=scores)


def test_pairs_with_scores():
    rows = [pair(i, "good", "b" * (i + 1), score_chosen=1.0, score_rejected=i / 10) for i in range(10)]
    rows += [
        pair(10, "a", "b", score_chosen=1.0, score_rejected=1.0),
        pair(11, "a", "b", score_chosen=0.0, score_rejected=1.0),
        pair(12, "a", "b" * 9, score_chosen=1.0),
    ]
    found = filter_preferences(rows, RipPairs())
    assert found.kept == rows[5:10]
    assert found.removed == {
        "both scores are equal": 1,
        "the rejected side has the higher score": 1,
        "removed by no rejected_reward and no gap": 1,
        "removed by rejected_reward and rejected_length and gap": 5,
    }
    assert (found.thresholds.samples, found.thresholds.prompts) == (2, 11)


def test_pairs_without_scores_need_another_rule():
    rows = [pair(i, "good", "b" * (i + 1)) for i in range(4)]
    with pytest.raises(InputError, match=r"none of 4 prompts has the measure 'rejected_reward': give the rows scores"):
        filter_preferences(rows, RipPairs())
    found = filter_preferences(rows, RipPairs(quantiles={"rejected_length": 0.5}))
    assert found.kept == rows[2:] and len(found.warnings) == 1
    with pytest.raises(NothingToTrainOn):
        filter_preferences([], RipPairs())
    with pytest.raises(InputError, match="row 1 has the reward nan"):
        filter_preferences([pair(0, "a", "b", score_chosen=float("nan"), score_rejected=0.0)], RipPairs())


def test_sides_of_one_text_are_no_pair():
    rows = [pair(0, "same", "same", score_chosen=1.0, score_rejected=0.0), pair(1, "same", "same"), pair(2, "a", "b")]
    found = filter_preferences(rows, RipPairs(quantiles={"rejected_length": 0.5}))
    assert found.kept == rows[2:] and found.removed == {"chosen and rejected are the same text": 2}
    with pytest.raises(NothingToTrainOn, match="no prompt has two different rewards"):
        filter_preferences(rows[:2], RipPairs())


def test_equal_rows_are_rows_of_their_own():
    rows = [pair(0, "good", "bbb")] * 3
    assert len(filter_preferences(rows, RipPairs(quantiles={"rejected_length": 0.5})).kept) == 3


def test_real_pairs_without_scores():
    path = shared_data("hh_rlhf_harmless") / "pairs.jsonl.gz"
    rows = list(read_pairs(path))
    found = filter_preferences(rows, RipPairs(quantiles={"rejected_length": 0.5, "jaccard": 0.25}))
    assert len(found.kept) + sum(found.removed.values()) == len(rows) == 2307
    assert 0.3 < len(found.kept) / len(rows) < 0.5
    bound = found.thresholds.bounds[""]["rejected_length"]
    assert all(len(p.rejected.text) >= bound for p in found.kept)


def test_real_pairs_of_long_answers():
    path = shared_data("instruction_preference_samples") / "dpo_pairs_en.jsonl"
    rows = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        rows.append(pair(i, record["chosen"]["value"], record["rejected"]["value"]))
    found = filter_preferences(rows, RipPairs(quantiles={"rejected_length": 0.5}))
    assert len(rows) == 300 and len(found.kept) == 150


# --- search ----------------------------------------------------------------------------------------------------------


def test_the_search_is_coordinate_wise_and_then_joint():
    wanted = kept(thresholds(rejected_reward=0.45, rejected_length=4.0), POOL)
    calls = []

    def value(tried: Thresholds | None) -> float:
        calls.append(tried)
        found = {r.id for r in POOL} if tried is None else kept(tried, POOL)
        return -len(found ^ wanted)

    tried = search_quantiles(POOL, value)
    assert calls[0] is None and len(calls) == len(tried)
    assert [len(t.quantiles) for t in tried].count(1) == 9
    best = tried[0]
    assert kept(best.thresholds, POOL) == wanted and best.value == 0
    assert set(best.quantiles) == {"rejected_reward", "rejected_length"}


def test_settings_that_keep_nothing_are_the_worst_and_a_value_must_be_a_number():
    def value(tried):
        if tried is not None and tried.bounds[""].get("gap", 1.0) < 0.2:
            raise NothingToTrainOn("nothing")
        return 0.0 if tried is None else float(len(kept(tried, POOL)))

    tried = search_quantiles(POOL, value, measures=("gap",))
    assert tried[-1].value == float("-inf") and tried[0].quantiles == {"gap": 0.75}
    with pytest.raises(InputError, match="is not a number"):
        search_quantiles(POOL, lambda _: float("nan"))


def test_among_equals_fewer_conditions_win():
    assert search_quantiles(POOL, lambda _: 1.0)[0].quantiles == {}
