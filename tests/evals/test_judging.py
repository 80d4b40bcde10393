import math

import pytest

from selftaught.evals import judging
from selftaught.evals.judging import judge_reports, read_orders, win_rate
from selftaught.types import Completion, Group, Prompt, Score, Verdict


def group_of(verdicts, gold=(1.0, 0.0), name="p", scores=None, meta=None):
    """Return a group of two completions, the first of which is better; `verdicts` are (order, winner)."""
    prompt = Prompt.from_text(name, meta=meta or {})
    rows = tuple(Completion(prompt_id=prompt.id, k=k, text=str(k)) for k in range(2))
    orders = {"ab": rows, "ba": rows[::-1]}
    said = tuple(
        Verdict(
            prompt_id=prompt.id, first=orders[o][0].id, second=orders[o][1].id, winner=w, scorer="j",
            judge_completion_id=str(i),
        )
        for i, (o, w) in enumerate(verdicts)
    )  # fmt: skip
    labels = [Score(completion_id=c.id, scorer="gold", value=g) for c, g in zip(rows, gold, strict=True)]
    labels += [Score(completion_id=c.id, scorer="j", value=s) for c, s in zip(rows, scores or (), strict=False)]
    return Group(prompt=prompt, completions=rows, scores=tuple(labels), verdicts=said)


@pytest.mark.parametrize(
    ("ab", "ba", "accuracy", "consistent", "agreement", "flip"),
    [
        ("first", "second", [1.0], [1.0], [1.0, 1.0], [0.0]),
        ("second", "first", [0.0], [0.0], [0.0, 0.0], [0.0]),
        ("first", "first", [0.5], [0.0], [1.0, 0.0], [1.0]),
        ("tie", "tie", [0.5], [0.0], [0.0, 0.0], [0.0]),
        ("first", "tie", [0.75], [0.0], [1.0, 0.0], [1.0]),
        ("first", None, [1.0], [0.0], [1.0], []),
        (None, None, [], [0.0], [], []),
    ],
)
def test_both_orders(ab, ba, accuracy, consistent, agreement, flip):
    """The better response is shown first in "ab" and second in "ba": right is first, then second."""
    group = group_of([("ab", ab), ("ba", ba)])
    assert judging.accuracy(group, "j") == accuracy
    assert judging.consistent_accuracy(group, "j") == consistent
    assert judging.agreement(group, "j") == agreement
    assert judging.flips(group, "j") == flip
    assert judging.unparsed(group, "j") == [float(ab is None), float(ba is None)]


def test_the_position_that_is_preferred():
    assert judging.first_share(group_of([("ab", "first"), ("ba", "first"), ("ab", "tie"), ("ab", None)]), "j") == [1, 1]


def test_gold_may_be_a_tie_or_missing():
    even = group_of([("ab", "tie"), ("ba", "first")], gold=(0.5, 0.5))
    assert judging.agreement(even, "j") == [1.0, 0.0] and judging.accuracy(even, "j") == []
    unknown = group_of([("ab", "tie"), ("ba", "first")], gold=(None, 0.5))
    assert judging.agreement(unknown, "j") == judging.consistent_accuracy(unknown, "j") == []


def test_the_majority_of_several_judgments_counts_for_an_order():
    group = group_of(
        [("ab", "first"), ("ab", "second"), ("ab", "first"), ("ab", None), ("ba", "first"), ("ba", "second")]
    )
    assert list(read_orders(group, "j").values()) == ["first", "tie"]
    assert judging.accuracy(group, "j") == [0.75]
    assert read_orders(group, "another") == {}


def test_reports_with_standard_errors_and_subsets():
    """Accuracies 1, 0.5, 0: mean 0.5, sd 0.5, standard error 0.5 / sqrt(3)."""
    groups = [
        group_of([("ab", "first"), ("ba", "second")], name="a", meta={"subset": "easy"}),
        group_of([("ab", "first"), ("ba", "first")], name="b", meta={"subset": "easy"}),
        group_of([("ab", "second"), ("ba", "first")], name="c", meta={"subset": "hard"}),
        group_of([("ab", None), ("ba", None)], name="d", meta={"subset": "hard"}),
    ]
    rows, values = judge_reports(groups, "j")
    reports = {r.name: r for r in rows}
    assert (reports["accuracy"].mean, reports["accuracy"].n, reports["accuracy"].unscored) == (0.5, 3, 1)
    assert reports["accuracy"].stderr == pytest.approx(0.5 / math.sqrt(3))
    assert reports["flip_rate"].mean == pytest.approx(1 / 3) and reports["unparsed"].mean == 0.25
    assert reports["accuracy/easy"].mean == 0.75 and reports["accuracy/hard"].mean == 0.0
    assert values["accuracy"][groups[3].id] is None
    assert [r.name for r in rows[:6]] == list(judging.PAIRWISE)


def test_pointwise_judges():
    groups = [
        group_of([], name="a", scores=(2.0, 1.0)),
        group_of([], name="b", scores=(1.0, 1.0)),
        group_of([], name="c", scores=(None, 1.0)),
        group_of([], name="d", scores=(0.0, 1.0)),
    ]
    reports = {r.name: r for r in judge_reports(groups, "j")[0]}
    assert set(reports) == set(judging.POINTWISE)
    assert (reports["accuracy"].mean, reports["accuracy"].n) == (0.5, 3)
    assert reports["unparsed"].mean == 0.125


def test_win_rate():
    groups = [
        group_of([("ab", "second"), ("ba", "first")], name="a"),
        group_of([("ab", "first"), ("ba", "first")], name="b"),
        group_of([("ab", "tie"), ("ba", None)], name="c"),
        group_of([], name="d"),
    ]
    assert list(win_rate(groups, "j").values()) == [1.0, 0.5, 0.5, None]
    assert list(win_rate(groups, "j", k=0).values()) == [0.0, 0.5, 0.5, None]


def test_nothing_to_report():
    assert judge_reports([], "j") == ([], {})


def test_one_response_alone_is_no_comparison():
    both = group_of([], scores=(1.0, 0.0))
    alone = Group(prompt=both.prompt, completions=both.completions[:1], scores=both.scores)
    reports = {r.name: r for r in judge_reports([alone], "j")[0]}
    assert math.isnan(reports["accuracy"].mean) and (reports["accuracy"].n, reports["accuracy"].unscored) == (0, 1)
    assert list(win_rate([alone], "j", k=0).values()) == [None]
