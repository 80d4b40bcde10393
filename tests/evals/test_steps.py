import math
from dataclasses import replace

import pytest
from tests.select.test_feedback import group

from selftaught.evals.steps import evaluate_steps, pooled_share
from selftaught.types import Score


def test_worked_example():
    """Right: "ab" with a wrong step, "cd" without; "ef" is right and undecided, "gh" wrong. The other is clean.

    Share: 1 of 3 (2 of the first problem, 1 of the second), 1 unscored. Steps right per solution: 1/2, 1, 1, 0 and 1,
    so 0.625 and 1 per problem.
    """
    groups = [
        group(("ab", 1.0, (1, 0)), ("cd", 1.0, (1, 1)), ("ef", 1.0, (1, None)), ("gh", 0.0, (0, 0)), name="p"),
        group(("abc", 1.0, (1, 1, 1)), name="q"),
    ]
    reports, values = evaluate_steps(groups)
    found = {r.name: r for r in reports}
    assert (found["step_error_share"].mean, found["step_error_share"].n) == (pytest.approx(1 / 3), 3)
    assert found["step_error_share"].unscored == 1
    assert list(values["step_error_share"].values()) == [0.5, 0.0]
    assert list(values["step_accuracy"].values()) == [0.625, 1.0]
    assert found["steps"].mean == 2.5 and found["length"].mean == 2.5
    assert found.keys() == values.keys() == {"step_error_share", "step_accuracy", "steps", "length"}
    assert {r.name for r in evaluate_steps(groups, "greedy_")[0]} >= {"greedy_step_error_share"}


def test_nothing_right_and_nothing_scored():
    reports, values = evaluate_steps([group(("ab", 0.0, (0, None)), ("", None))])
    share = reports[0]
    assert math.isnan(share.mean) and share.n == 0
    assert list(values["step_error_share"].values()) == [None] and list(values["step_accuracy"].values()) == [0.0]


def test_the_error_of_a_pooled_share():
    """One solution per problem: the binomial's, sqrt(0.25 * 0.75 * 4 / 3 / 4) = 0.25."""
    report = pooled_share("x", {"a": (1, 1), "b": (0, 1), "c": (0, 1), "d": (0, 1), "e": (0, 0)})
    assert (report.mean, report.n, report.stderr) == (0.25, 4, pytest.approx(0.25))
    together = pooled_share("x", {"a": (4, 4), "b": (0, 4), "c": (0, 4), "d": (0, 4)})
    assert together.stderr == pytest.approx(0.25)


def test_a_right_solution_of_whose_steps_nothing_is_known_is_not_without_errors():
    """A judge that could not be read leaves one score without span; another solution was never labelled."""
    one = group(("ab", 1.0, (1, 1)), ("cd", 1.0), ("ef", 1.0))
    note = Score(completion_id=one.completions[1].id, scorer="steps", value=None, note="the judge gave no answer")
    reports, values = evaluate_steps([replace(one, scores=(*one.scores, note))])
    assert (reports[0].mean, reports[0].n, reports[0].unscored) == (0.0, 1, 2)
    assert values["step_accuracy"] == {one.id: 1.0}
