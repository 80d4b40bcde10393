"""Worked example: rewards 2 and 1 with weight 0.5, 0 and 1 with weight 2.

Leads are 1 and -1, so the losses are 0.5 * ln(1 + e^-1) = 0.156631 and 2 * ln(1 + e) = 2.626523. Their mean is
1.391577, and their sum divided by that of the weights, 2.5, is 1.113262.
"""

import math

import pytest
import torch
from tests.objectives.batches import batch

from selftaught.objectives import build_objective
from selftaught.specs import BradleyTerry

REWARDS, WEIGHTS = [2.0, 1.0, 0.0, 1.0], [0.5, 2.0]


def evaluate(spec: BradleyTerry, rewards: list[float], weights: list[float]):
    """Return the loss, every term's mean, and the loss's gradient with regard to the rewards."""
    objective = build_objective(spec)
    made, leaf = batch([[value] for value in rewards], weights)
    terms, counts = objective(lambda _: leaf, made, None), objective.counts(made)
    assert terms.keys() == counts.keys() == set(objective.terms)
    loss = sum(term.sum * term.weight / counts[name] for name, term in terms.items() if counts[name])
    loss.backward()
    return loss.item(), {name: t.sum.item() / counts[name] for name, t in terms.items() if counts[name]}, leaf.grad


def test_worked_value():
    assert evaluate(BradleyTerry(), REWARDS, WEIGHTS)[0] == pytest.approx(1.391577, abs=1e-6)
    assert evaluate(BradleyTerry(weight_normalize=True), REWARDS, WEIGHTS)[0] == pytest.approx(1.113262, abs=1e-6)


def test_metrics_have_the_ecosystems_names_and_values():
    _, means, _ = evaluate(BradleyTerry(), REWARDS, WEIGHTS)
    assert means == pytest.approx(
        {
            "bradley_terry_loss": 1.391577,
            "rewards/chosen": 1.0,
            "rewards/rejected": 1.0,
            "rewards/margins": 0.0,
            "rewards/accuracies": 0.5,
        },
        abs=1e-6,
    )


def test_only_the_lead_counts_and_its_gradient_is_the_probability_of_the_other_order():
    loss, _, gradient = evaluate(BradleyTerry(), REWARDS, WEIGHTS)
    assert evaluate(BradleyTerry(), [r + 7 for r in REWARDS], WEIGHTS)[0] == pytest.approx(loss)
    expected = torch.tensor(WEIGHTS) * torch.sigmoid(torch.tensor([-1.0, 1.0])) / 2
    torch.testing.assert_close(gradient.view(2, 2), torch.stack([-expected, expected], 1))


def test_equal_rewards_cost_log_2_and_are_not_counted_as_right():
    loss, found, gradient = evaluate(BradleyTerry(), [0.5, 0.5], [1.0])
    assert loss == pytest.approx(math.log(2)) and gradient.tolist() == [-0.5, 0.5]
    assert (found["rewards/margins"], found["rewards/accuracies"]) == (0.0, 0.0)


def test_weight_zero_gives_no_gradient():
    loss, _, gradient = evaluate(BradleyTerry(), REWARDS, [0.0, 0.0])
    assert loss == 0 and not gradient.any()


def test_it_reads_rewards_and_needs_nothing_beforehand():
    objective = build_objective(BradleyTerry())
    assert objective.reads == "rewards" and not objective.needs_reference and not objective.needs_mismatched
    assert objective.prepare(None, []) is None
