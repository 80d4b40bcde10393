import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.select.thought_pairs import (
    CANCELLED,
    EQUAL,
    NO_SCORE,
    SAME_TEXT,
    Candidates,
    ThoughtPairs,
    choose,
    find_rho,
    normalise,
    without_thoughts,
)
from selftaught.text.thoughts import ThoughtFormat, split
from selftaught.types import Completion, Group, Prompt, Score, Verdict

TAG = ThoughtFormat(name="tag", response="#", strict=True)
PLAIN = ThoughtPairs(form=TAG, rho=0.0)


def group(texts, values, name="p", finish=None):
    prompt = Prompt.from_text(name)
    ends = finish or ["stop"] * len(texts)
    rows = [
        Completion(prompt_id=prompt.id, k=k, text=t, finish=f, model=f"m{k}")
        for k, (t, f) in enumerate(zip(texts, ends, strict=True))
    ]
    scores = [Score(completion_id=c.id, scorer="judge", value=v) for c, v in zip(rows, values, strict=True)]
    return Group(prompt=prompt, completions=tuple(rows), scores=tuple(scores))


def texts(pairs):
    return [(p.chosen.text, p.rejected.text) for p in pairs]


def reasons(selector, *groups):
    dropped = Counter()
    assert list(selector(list(groups), dropped)) == []
    return dict(dropped)


def test_argmax_over_argmin_with_thoughts_and_prompt_kept():
    one = group(["a#x", "b#y", "c#z"], [1.0, 3.0, 2.0])
    (pair,) = PLAIN([one])
    assert (pair.chosen.text, pair.rejected.text) == ("b#y", "a#x") and pair.prompt == one.prompt
    assert pair.meta == {
        "rho": 0.0, "unparsed": False, "score_chosen": 3.0, "score_rejected": 1.0,
        "length_chosen": 1, "length_rejected": 1,
    }  # fmt: skip


def test_length_control():
    """Scores 0, 0, 3 and lengths 1, 1, 4: z of both is (-0.707, -0.707, 1.414), so s = (1 - rho) z. At rho = 0.5 the
    long one is still best; at 2 it is the worst."""
    one = group(["#x", "#y", "#long"], [0.0, 0.0, 3.0])
    assert next(ThoughtPairs(form=TAG, rho=0.5)([one])).chosen.text == "#long"
    assert next(ThoughtPairs(form=TAG, rho=2.0)([one])).rejected.text == "#long"
    assert reasons(ThoughtPairs(form=TAG, rho=1.0), one) == {CANCELLED: 1}


def test_the_length_of_a_thought_does_not_count_unless_asked_for():
    one = group(["thinking long and hard#x", "t#y"], [1.0, 0.0])
    assert texts(ThoughtPairs(form=TAG, rho=9.0)([one])) == [("thinking long and hard#x", "t#y")]
    assert texts(ThoughtPairs(form=TAG, rho=0.0, thought_rho=2.0)([one])) == [("t#y", "thinking long and hard#x")]


def test_rho_is_raised_until_chosen_responses_are_no_longer():
    source = np.random.default_rng(0)
    groups = []
    for i in range(60):
        lengths = source.integers(1, 30, 8)
        quality = source.normal(size=8) + 0.1 * lengths
        groups.append(group([f"#{chr(97 + k) * n}" for k, n in enumerate(lengths)], quality.tolist(), f"p{i}"))

    def excess(pairs):
        return np.mean([p.meta["length_chosen"] - p.meta["length_rejected"] for p in pairs])

    free, controlled = list(PLAIN(groups)), list(ThoughtPairs(form=TAG)(groups))
    assert excess(free) > 5 and excess(controlled) <= 0
    rho = controlled[0].meta["rho"]
    assert rho > 0 and {p.meta["rho"] for p in controlled} == {rho}
    assert excess(ThoughtPairs(form=TAG, rho=0.9 * rho)(groups)) > 0
    assert texts(ThoughtPairs(form=TAG, rho=rho)(groups)) == texts(controlled)


def test_no_rho_where_none_is_needed():
    one = group(["#x", "#long"], [1.0, 0.0])
    assert next(ThoughtPairs(form=TAG)([one])).meta["rho"] == 0.0
    assert find_rho(Candidates.of([])) == 0.0


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (group(["#a", "#b"], [1.0, 1.0]), EQUAL),
        (group(["#a", "#b"], [1.0, None]), NO_SCORE),
        (group(["#a"], [1.0]), NO_SCORE),
        (group([], []), NO_SCORE),
        (group(["a", "b"], [1.0, 0.0]), NO_SCORE),
        (group(["#a", "#b"], [1.0, 0.0], finish=["length", "stop"]), NO_SCORE),
        (group(["x#a", "y#a"], [1.0, 0.0]), SAME_TEXT),
    ],
)
def test_prompts_without_a_pair(one, reason):
    assert reasons(PLAIN, one) == {reason: 1}


def test_ties_are_broken_at_random_whatever_the_order():
    same = ["#a", "#b", "#c", "#d", "#e", "#f"]
    chosen = Counter()
    for seed in range(40):
        forward = group(same, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
        backward = group(same[::-1], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        pairs = [texts(replace(PLAIN, seed=seed)([g])) for g in (forward, backward)]
        assert pairs[0] == pairs[1]
        chosen[pairs[0][0][0]] += 1
    assert set(chosen) == {"#a", "#b", "#c"} and min(chosen.values()) >= 5


# --- unparsed completions --------------------------------------------------------------------------------------------


def with_failures(n, failing, values=(1.0, 0.0)):
    return [
        group(["#a", "#b", "bad" if i < failing else "#c"], [*values, None if i < failing else 0.5], f"p{i}")
        for i in range(n)
    ]


@pytest.mark.parametrize(("failing", "expected"), [(0, 0), (1, 1), (3, 3), (30, 3)])
def test_unparsed_completions_are_rejected_in_at_most_a_tenth_of_the_pairs(failing, expected):
    pairs = list(PLAIN(with_failures(30, failing)))
    bad = [p for p in pairs if p.meta["unparsed"]]
    assert len(pairs) == 30 and len(bad) == expected
    assert all((p.chosen.text, p.rejected.text) == ("#a", "bad") for p in bad)
    assert all(p.meta["score_rejected"] is None for p in bad)


def test_prompts_without_another_pair_come_first_if_their_best_is_good():
    ordinary = with_failures(27, 27)
    good = [group(["#a", "bad"], [1.0, None], f"good{i}") for i in range(3)]
    poor = [group(["#b", "#c", "bad"], [0.0, 0.0, None], f"poor{i}") for i in range(3)]
    pairs = list(PLAIN([*poor, *good, *ordinary]))
    assert {p.prompt.text for p in pairs if p.meta["unparsed"]} == {"good0", "good1", "good2"}
    assert not any(p.prompt.text.startswith("poor") for p in pairs)


def test_unparsed_completions_alone_teach_nothing():
    assert not list(PLAIN([group(["#a", "bad"], [1.0, None])]))
    assert not any(p.meta["unparsed"] for p in replace(PLAIN, unparsed_cap=0.0)(with_failures(30, 30)))


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["#a", "#b", "x#ccc", "y#ccc", "bad", "#"]),
                                st.sampled_from([0.0, 1.0, 2.0, None])), max_size=5), max_size=25),
    st.sampled_from([None, 0.0, 0.5]),
)  # fmt: skip
def test_what_holds_of_all_pairs(rows, rho):
    groups = [group([t for t, _ in row], [v for _, v in row], f"p{i}") for i, row in enumerate(rows)]
    dropped = Counter()
    pairs = list(ThoughtPairs(form=TAG, rho=rho)(groups, dropped))
    assert len(pairs) + sum(dropped.values()) == len(groups)
    unparsed = 0
    for pair in pairs:
        chosen, rejected = split(TAG, pair.chosen), split(TAG, pair.rejected)
        assert not chosen.error and bool(rejected.error) == pair.meta["unparsed"]
        assert chosen.response != rejected.response and pair.meta["score_chosen"] is not None
        unparsed += pair.meta["unparsed"]
        if rho == 0.0 and not pair.meta["unparsed"]:
            assert pair.meta["score_chosen"] > pair.meta["score_rejected"]
    assert unparsed <= 0.1 * len(pairs)
    if rho is None and not unparsed:
        assert sum(p.meta["length_chosen"] - p.meta["length_rejected"] for p in pairs) <= 0


# --- pairwise verdicts -----------------------------------------------------------------------------------------------


def battles(texts, beats, name="p"):
    """Return a group with verdicts on all ordered pairs; `beats(a, b)` says who wins."""
    one = group(texts, [None] * len(texts), name)
    verdicts = tuple(
        Verdict(prompt_id=one.id, first=a.id, second=b.id, winner=beats(a.text, b.text), scorer="judge")
        for a in one.completions
        for b in one.completions
        if a is not b and "#" in a.text and "#" in b.text
    )
    return replace(one, scores=(), verdicts=verdicts)


def test_pairwise_verdicts_become_strengths():
    def alphabetical(a, b):
        return "first" if a < b else "second"

    one = battles(["#c", "#a", "#d", "#b", "bad"], alphabetical)
    (pair,) = ThoughtPairs(form=TAG, rho=0.0, pairwise=True)([one])
    assert (pair.chosen.text, pair.rejected.text) == ("#a", "#d")
    assert pair.meta["score_chosen"] == pytest.approx(-pair.meta["score_rejected"], abs=1e-6)


def test_a_judge_that_always_prefers_the_first_says_nothing():
    pairwise = ThoughtPairs(form=TAG, rho=0.0, pairwise=True)
    assert reasons(pairwise, battles(["#a", "#b", "#c"], lambda a, b: "first")) == {EQUAL: 1}
    assert reasons(pairwise, battles(["#a", "#b", "#c"], lambda a, b: "tie")) == {EQUAL: 1}
    assert reasons(pairwise, battles(["#a", "#b", "#c"], lambda a, b: None)) == {NO_SCORE: 1}


def test_a_response_without_a_read_verdict_is_no_candidate():
    one = battles(["#a", "#b", "#c"], lambda a, b: None if "#c" in (a, b) else "first" if a < b else "second")
    assert texts(ThoughtPairs(form=TAG, rho=0.0, pairwise=True)([one])) == [("#a", "#b")]


# --- input that makes no sense ---------------------------------------------------------------------------------------


def test_missing_and_broken_scores():
    bare = replace(group(["#a", "#b"], [1.0, 0.0]), scores=())
    with pytest.raises(InputError, match="has no score by 'judge': score it first"):
        list(PLAIN([bare]))
    with pytest.raises(InputError, match="has no verdict by 'judge': judge its completions in pairs first"):
        list(replace(PLAIN, pairwise=True)([bare]))
    with pytest.raises(InputError, match="has the score nan by 'judge': mend the scorer"):
        list(PLAIN([group(["#a", "#b"], [float("nan"), 0.0])]))


@pytest.mark.parametrize(
    "fields",
    [
        {"unparsed_cap": 1.0},
        {"unparsed_cap": -0.1},
        {"rho": -1.0},
        {"thought_rho": -1.0},
        {"rho": float("nan")},
        {"rho": float("inf")},
        {"thought_rho": float("nan")},
    ],
)
def test_settings_that_make_no_sense(fields):
    with pytest.raises(InputError, match="give 0"):
        ThoughtPairs(**fields)


def test_groups_are_read_twice():
    with pytest.raises(TypeError, match="one-shot iterator"):
        list(PLAIN(iter([])))


def test_a_selector_crosses_processes():
    assert pickle.loads(pickle.dumps(PLAIN)) == PLAIN


# --- the vectorised choice against a plain one -----------------------------------------------------------------------


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=5), min_size=1, max_size=8)
)
def test_choose_agrees_with_a_loop(rows):
    groups = [group([f"#{chr(97 + i) * n}" for i, (_, n) in enumerate(row)], [float(s) for s, _ in row], f"p{j}")
              for j, row in enumerate(rows)]  # fmt: skip
    table = Candidates.of(PLAIN._rows(g) for g in groups)
    for rho in (0.0, 0.3):
        choice = choose(table, rho)
        for j, row in enumerate(rows):
            scores, lengths = [float(s) for s, _ in row], [float(n) for _, n in row]
            value = normalise(scores) - rho * normalise(lengths)
            if len(row) > 1 and len(set(scores)) > 1 and value.max() - value.min() > 1e-6:
                best, worst = choice.best[j] - table.starts[j], choice.worst[j] - table.starts[j]
                assert value[best] == pytest.approx(value.max()) and value[worst] == pytest.approx(value.min())
            elif len(set(scores)) == 1:
                assert choice.worst[j] == -1


def test_thoughts_are_context_and_what_cannot_be_split_is_not():
    whole = list(PLAIN([group(["think#x", "#y", "t#z"], [2.0, 1.0, 1.5]), group(["a#long", "b#c"], [1.0, 0.0], "q")]))
    masked = list(without_thoughts(whole, form=TAG))
    assert [p.loss_from for p in masked] == [(6, 1), (2, 2)]
    assert [p.chosen.text[p.loss_from[0] :] for p in masked] == ["x", "long"]
    assert not {p.id for p in masked} & {p.id for p in whole}
    assert [replace(p, loss_from=(), id="") for p in masked] == whole
    one, other = masked[0], replace(masked[0].rejected, text="no marker", id="other")
    (broken,) = without_thoughts([replace(one, rejected=other)], form=TAG)
    assert broken.loss_from == (6, 0)
    (cut,) = without_thoughts([replace(one, rejected=replace(one.rejected, finish="length"))], form=TAG)
    assert cut.loss_from == (6, 0)
    assert list(without_thoughts(whole, form=ThoughtFormat(name="none"))) == whole
