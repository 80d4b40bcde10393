from math import isnan, sqrt

import pytest
from tests.worlds import group_of, scored

from selftaught.evals.evaluate import evaluate_greedy, evaluate_samples, summarise


def test_standard_error():
    """1, 1, 0, 0: mean 0.5, sd sqrt(1/3), standard error sqrt(1/12)."""
    report = summarise("accuracy", {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0, "e": None}, parents=("g",))
    assert (report.mean, report.n, report.unscored, report.parents) == (0.5, 4, 1, ("g",))
    assert report.stderr == pytest.approx(sqrt(1 / 12))


def test_nothing_scored():
    report = summarise("accuracy", {"a": None})
    assert isnan(report.mean) and isnan(report.stderr) and (report.n, report.unscored) == (0, 1)
    assert isnan(summarise("accuracy", {"a": 1.0}).stderr)


def test_greedy():
    groups = [scored(group_of(["1"], name=f"p{i}"), "verifier", [float(i < 3)]) for i in range(4)]
    (report,), values = evaluate_greedy(groups)
    assert (report.name, report.mean, report.n) == ("accuracy", 0.75, 4)
    assert list(values["accuracy"].values()) == [1.0, 1.0, 1.0, 0.0]


def test_samples():
    groups = [group_of(a, name=f"p{i}", gold="1") for i, a in enumerate((["1", "1", "2"], ["2", "2", "1"], [None] * 3))]
    reports, values = evaluate_samples(groups, 3)
    means = {report.name: report.mean for report in reports}
    assert means == {
        "accuracy_sc3": pytest.approx(1 / 3),
        "accuracy_samples3": pytest.approx(1 / 3),
        "vote_share": pytest.approx(4 / 9),
        "somers_d": pytest.approx(0.0),
    }
    assert {name: len(v) for name, v in values.items()} == dict.fromkeys(list(means)[:3], 3)
    assert reports[-1].unscored == 1


def test_somers_d_without_any_vote():
    reports, _ = evaluate_samples([group_of([None] * 2, gold="1")], 2)
    assert isnan(reports[-1].mean) and isnan(reports[-1].stderr)
