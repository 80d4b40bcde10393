from itertools import product
from math import isnan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.evals.filtering import auc_report, audit_prompts, audit_removal, measure_reports, removal_auc
from selftaught.select.prompt_measures import Measured
from selftaught.select.rip import Ruling
from selftaught.types import Prompt


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=20))
def test_auc_is_the_share_of_ordered_pairs(rows):
    margins = {str(i): float(margin) for i, (margin, _) in enumerate(rows)}
    corrupted = {str(i): bad for i, (_, bad) in enumerate(rows)}
    bad, clean = ([m for m, is_bad in rows if is_bad is which] for which in (True, False))
    pairs = list(product(bad, clean))
    expected = sum((b < c) + 0.5 * (b == c) for b, c in pairs) / len(pairs) if pairs else None
    found = removal_auc(margins, corrupted)
    assert found == (None if expected is None else pytest.approx(expected))


def test_prompts_without_a_margin_are_unscored():
    report = auc_report("auc", {"a": 0.0, "b": 1.0, "c": None}, {"a": True, "b": False, "c": True})
    assert (report.mean, report.n, report.unscored) == (1.0, 2, 1)
    assert isnan(auc_report("auc", {"a": 0.0}, {"a": True}).mean)


def test_the_standard_error_of_an_auc():
    """A = 0.75, one and one: Q terms vanish, so sqrt(0.75 x 0.25 / 1) were A possible there; with ties A = 0.5: 0.5."""
    report = auc_report("auc", {"a": 0.0, "b": 0.0}, {"a": True, "b": False})
    assert (report.mean, report.stderr) == (0.5, 0.5)
    margins = {str(i): float(i % 7) for i in range(100)}
    corrupted = {str(i): i % 3 == 0 for i in range(100)}
    report = auc_report("auc", margins, corrupted)
    a, bad, clean = report.mean, 34, 66
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    expected = sqrt((a * (1 - a) + (bad - 1) * (q1 - a * a) + (clean - 1) * (q2 - a * a)) / (bad * clean))
    assert report.stderr == pytest.approx(expected)


def test_removal():
    """Removed a, b, c of which a and b are corrupted; d is corrupted and kept: precision 2/3, recall 2/3."""
    rulings = {
        "a": Ruling(-0.5, ("gap",)),
        "b": Ruling(-0.1, ("gap",)),
        "c": Ruling(-0.2, ("gap",)),
        "d": Ruling(0.2),
        "e": Ruling(0.4),
    }
    labels = {"a": "mix", "b": "new", "c": "", "d": "mix", "e": ""}
    reports = audit_removal(rulings, labels, unseen="new")
    assert reports["precision_removed"].mean == pytest.approx(2 / 3)
    assert reports["recall_removed"].mean == pytest.approx(2 / 3)
    assert reports["auc_removed"].mean == pytest.approx(4 / 6)
    assert (reports["auc_unseen"].mean, reports["auc_unseen"].n) == (0.5, 3)
    kept_all = {name: Ruling(0.0) for name in labels}
    reports = audit_removal(kept_all, labels)
    assert reports["auc_removed"].mean == 0.5 and isnan(reports["precision_removed"].mean)
    assert reports["recall_removed"].mean == 0.0 and "auc_unseen" not in reports


def test_measures_are_turned_to_their_good_side():
    pool = [Measured(id=str(i), samples=8, values={"rejected_reward": i / 9, "gap": 1 - i / 9}) for i in range(10)]
    corrupted = {row.id: int(row.id) < 4 for row in pool}
    reports = {report.name: report.mean for report in measure_reports(pool, corrupted)}
    assert reports == {"auc_rejected_reward": 1.0, "auc_gap": 1.0}


def test_prompts_before_and_after():
    prompts = [Prompt.from_text(text) for text in ("good", "bad", "good too", "worse")]
    reports = audit_prompts(prompts, prompts[:2], lambda text: text.startswith("good"))
    assert (reports["kept"].mean, reports["well_formed"].mean, reports["well_formed_kept"].mean) == (0.5, 0.5, 0.5)
    assert set(audit_prompts(prompts, prompts)) == {"kept"}
