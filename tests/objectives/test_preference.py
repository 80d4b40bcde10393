"""Worked example: chosen with token log-probs (-1, -1), rejected with (-4), references -3 and -3, weight 0.5, beta 0.5.

Rewards are 0.5 * (-2 + 3) = 0.5 and 0.5 * (-4 + 3) = -0.5, the margin is 1 and the DPO loss ln(1 + e^-1) = 0.313262;
the chosen completion's NLL per token is 2 / 2 = 1. With alpha 2 the pair's loss is 0.5 * (0.313262 + 2 * 1) = 1.156631.
Per token the log-ratios are 1/2 and -1: the length-normalised margin is 0.5 * 1.5 = 0.75, the loss
ln(1 + e^-0.75) = 0.386871; and IPO's is (1.5 - 1 / (2 * 0.5))^2 = 0.25.
"""

import math

import pytest
import torch
from tests.objectives.batches import batch

from selftaught.objectives import build_objective
from selftaught.specs import Preference

WORKED = ([[-1.0, -1.0], [-4.0]], [0.5], [-3.0, -3.0])


def evaluate(spec: Preference, *arguments) -> tuple[float, dict[str, float], torch.Tensor]:
    """Return the loss, every term's mean, and the log-probs with the loss's gradient."""
    objective = build_objective(spec)
    made, logps = batch(*arguments)
    terms, counts = objective(lambda _: logps, made, None), objective.counts(made)
    assert terms.keys() == counts.keys() == set(objective.terms)
    loss = sum(term.sum * term.weight / counts[name] for name, term in terms.items() if counts[name])
    loss.backward()
    return loss.item(), {name: t.sum.item() / counts[name] for name, t in terms.items() if counts[name]}, logps


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Preference(beta=0.5), 0.5 * 0.313262),
        (Preference(beta=0.5, nll_alpha=2.0), 1.156631),
        (Preference(beta=0.5, length_normalize=True), 0.5 * 0.386871),
        (Preference(beta=0.5, loss="ipo"), 0.5 * 0.25),
        (Preference(beta=0.5, nll_alpha=2.0, weight_normalize=True), 2.313262),
    ],
)
def test_worked_value(spec, expected):
    assert evaluate(spec, *WORKED)[0] == pytest.approx(expected, abs=1e-6)


def test_metrics_have_the_ecosystems_names_and_values():
    _, means, _ = evaluate(Preference(beta=0.5), *WORKED)
    assert means == pytest.approx(
        {
            "preference_loss": 0.5 * 0.313262,
            "nll_loss": 0.5,
            "rewards/chosen": 0.5,
            "rewards/rejected": -0.5,
            "rewards/margins": 1.0,
            "rewards/accuracies": 1.0,
            "logps/chosen": -2.0,
            "logps/rejected": -4.0,
        },
        abs=1e-6,
    )


PAIRS = ([[-1.0, -1.0], [-4.0], [-2.0], [-1.0, -3.0]], [1.0, 1.0], [-3.0, -3.0, -2.5, -2.0])


def test_weight_one_is_the_unweighted_loss():
    """w = 1 is IRPO: the same as computing the published sum without any weight."""
    loss, means, _ = evaluate(Preference(beta=0.5, nll_alpha=1.0), *PAIRS)
    margins = 0.5 * torch.tensor([(-2 + 3) - (-4 + 3), (-2 + 2.5) - (-4 + 2)])
    expected = -torch.nn.functional.logsigmoid(margins) + torch.tensor([2 / 2, 2 / 1])
    assert loss == pytest.approx(expected.mean().item())
    assert means["rewards/margins"] == pytest.approx(margins.mean().item())


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_weight_zero_gives_no_gradient(loss):
    _, _, logps = evaluate(Preference(loss=loss, nll_alpha=1.0), PAIRS[0], [0.0, 1.0], PAIRS[2])
    assert logps.grad[:3].tolist() == [0.0, 0.0, 0.0]
    assert logps.grad[3:].abs().min() > 0


def test_the_mean_divides_by_pairs_and_not_by_weights():
    halved = evaluate(Preference(nll_alpha=1.0), PAIRS[0], [0.5, 0.5], PAIRS[2])[0]
    full = evaluate(Preference(nll_alpha=1.0), *PAIRS)[0]
    assert halved == pytest.approx(full / 2)
    normalised = evaluate(Preference(nll_alpha=1.0, weight_normalize=True), PAIRS[0], [0.5, 0.5], PAIRS[2])[0]
    assert normalised == pytest.approx(full)


@pytest.mark.parametrize(("loss", "expected"), [("sigmoid", math.log(2)), ("ipo", 25.0)])
def test_two_equal_completions_are_a_tie_that_pulls_on_nothing(loss, expected):
    """The margin is 0: log 2 for DPO, (0 - 1 / (2 * 0.1))^2 for IPO; the pushes on both sides cancel."""
    same = ([[-1.0, -2.0], [-1.0, -2.0]], [1.0], [-2.0, -2.0])
    value, found, logps = evaluate(Preference(loss=loss, beta=0.1), *same)
    assert value == pytest.approx(expected)
    assert (found["rewards/margins"], found["rewards/accuracies"]) == (0.0, 0.0)
    assert torch.equal(logps.grad[:2], -logps.grad[2:]) and logps.grad.isfinite().all()


def test_order_of_pairs_does_not_matter():
    swapped = (PAIRS[0][2:] + PAIRS[0][:2], [0.25, 0.75], PAIRS[2][2:] + PAIRS[2][:2])
    spec = Preference(nll_alpha=1.0, label_smoothing=0.1)
    assert evaluate(spec, PAIRS[0], [0.75, 0.25], PAIRS[2])[0] == pytest.approx(evaluate(spec, *swapped)[0])


def test_all_weights_zero_is_a_loss_of_zero():
    _, means, logps = evaluate(Preference(nll_alpha=1.0, weight_normalize=False), PAIRS[0], [0.0, 0.0], PAIRS[2])
    assert means["preference_loss"] == means["nll_loss"] == 0
    assert logps.grad.abs().sum() == 0


def test_a_batch_without_reference_is_refused():
    with pytest.raises(ValueError, match="reference"):
        evaluate(Preference(), *PAIRS[:2])
