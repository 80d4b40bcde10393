"""Worked example, beta 0.5: a good completion with token log-probs (-1, -1) and reference -4 (r = 2), a bad one with -3
and reference -3 (r = 0); mismatched log-ratios sum to 4 over 4, so z = 1.

Losses: sigmoid(-0.5 * (2 - 1)) = 0.377541 and sigmoid(0.5 * (0 - 1)) = 0.377541; their mean is 0.377541.
"""

import dataclasses

import pytest
import torch
from tests.objectives.batches import batch

from selftaught.objectives import build_objective
from selftaught.objectives.base import Batch
from selftaught.specs import KTO

ROWS = ([[-1.0, -1.0], [-3.0]], [1.0, 1.0], [-4.0, -3.0])
BASELINE = torch.tensor([4.0, 4.0], dtype=torch.float64)


def labelled(made: Batch, *labels: bool) -> Batch:
    return dataclasses.replace(made, labels=torch.tensor(labels, dtype=torch.float32), example_labels=labels)


def means(spec: KTO, labels=(True, False), rows=ROWS, baseline=BASELINE):
    """Return the means of all terms, and the log-probs with the loss's gradient."""
    objective = build_objective(spec)
    made, logps = batch(*rows)
    made = labelled(made, *labels)
    terms, counts = objective(lambda _: logps, made, baseline), objective.counts(made)
    assert terms.keys() == counts.keys() == set(objective.terms)
    (terms["kto_loss"].sum / counts["kto_loss"]).backward()
    return {name: t.sum.item() / counts[name] for name, t in terms.items() if counts[name]}, logps


def test_worked_values_under_the_ecosystems_names():
    found, _ = means(KTO(beta=0.5))
    assert found == pytest.approx(
        {
            "kto_loss": 0.377541,
            "kl": 1.0,
            "rewards/chosen": 1.0,
            "rewards/rejected": 0.0,
            "logps/chosen": -2.0,
            "logps/rejected": -3.0,
        },
        abs=1e-6,
    )


def test_per_token():
    found, _ = means(KTO(beta=0.5, length_normalize=True))
    assert found["rewards/chosen"] == pytest.approx(0.5 * 2 / 2)


def test_without_a_baseline_z_is_zero():
    found, _ = means(KTO(beta=0.5), baseline=None)
    assert found["kl"] == 0
    assert found["kto_loss"] == pytest.approx((0.268941 + 0.5) / 2, abs=1e-6)


def test_one_class_reports_nothing_of_the_other():
    found, logps = means(KTO(), labels=(True, True))
    assert "rewards/rejected" not in found and logps.grad.isfinite().all() and (logps.grad < 0).all()


def test_all_bad_is_pushed_down_and_reports_nothing_of_the_good():
    found, logps = means(KTO(), labels=(False, False))
    assert found.keys() & {"rewards/chosen", "logps/chosen"} == set()
    assert logps.grad.isfinite().all() and (logps.grad > 0).all()


def test_weight_zero_gives_no_gradient():
    _, logps = means(KTO(), rows=(ROWS[0], [0.0, 1.0], ROWS[2]))
    assert logps.grad[:2].tolist() == [0.0, 0.0] and logps.grad[2] > 0


def test_what_is_seen_beforehand_are_mismatched_log_ratios():
    own, _ = batch(*ROWS)
    foreign, logps = batch([[-2.0], [-5.0]], [1.0, 1.0], [-4.0, -4.0])
    made = dataclasses.replace(labelled(own, True, False), mismatched=foreign)
    objective = build_objective(KTO())
    sums = objective.prepare(lambda given: logps if given is foreign else None, [made, made])
    assert sums.tolist() == [2.0, 4.0] and not sums.requires_grad
    assert objective.prepare(lambda _: logps, []).tolist() == [0.0, 0.0]


def test_batches_without_labels_or_reference_are_refused():
    made, logps = batch(*ROWS)
    with pytest.raises(ValueError, match="needs labels"):
        build_objective(KTO())(lambda _: logps, made, None)
    made, logps = batch(*ROWS[:2])
    with pytest.raises(ValueError, match="reference"):
        build_objective(KTO())(lambda _: logps, labelled(made, True, False), None)
