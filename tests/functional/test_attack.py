"""Tests of selftaught.functional.attack."""

from math import log

import pytest
import torch

from selftaught.functional.attack import greedily_reached, target_objective

LOGITS = torch.tensor([[0.0, 0.0, log(2)], [log(2), 0.0, 0.0], [0.0, log(2), 0.0]], dtype=torch.float64)


def test_worked_by_hand():
    """Each row of logits is 1/4, 1/4, 1/2 in some order.

    The target 2, 1 has probabilities 1/2 and 1/4: log 1/8. Token 0 has 1/4, 1/2 and 1/4 at the three positions, so it
    is absent with 3/4, 1/2 and 3/4: log 9/32.
    """
    target = torch.tensor([2, 1])
    assert target_objective(LOGITS, target).item() == pytest.approx(log(1 / 8))
    both = target_objective(LOGITS, target, suppressed=0, weight=3.0).item()
    assert both == pytest.approx(log(1 / 8) + 3 * log(9 / 32))
    assert target_objective(LOGITS[:1], torch.tensor([], dtype=torch.int64)).item() == 0


def plainly(logits, target, suppressed, weight):
    """The sums as the formula has them, with probabilities."""
    rows = []
    for row in logits:
        p = row.softmax(-1)
        said = sum(p[t, token].log() for t, token in enumerate(target.tolist()))
        rows.append(said + weight * sum((1 - p[t, suppressed]).log() for t in range(len(p))))
    return torch.stack(rows)


def test_agrees_with_the_formula():
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4, 9, dtype=torch.float64) * 3, torch.tensor([1, 8, 3])
    found = target_objective(logits, target, suppressed=2, weight=0.7)
    torch.testing.assert_close(found, plainly(logits, target, 2, 0.7))
    # A row by itself, in any company.
    torch.testing.assert_close(found.flip(0)[0], target_objective(logits[4], target, suppressed=2, weight=0.7))


def test_gradient():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 4])
    assert torch.autograd.gradcheck(lambda x: target_objective(x, target, suppressed=1, weight=2.0), logits)
    assert torch.autograd.gradcheck(lambda x: target_objective(x, target), logits)


def test_a_certain_reset_is_measured():
    """At a logit of 60 above, 1 - p is 1 - 1 in float32; its log is -60 + log 2 for two other tokens."""
    logits = torch.tensor([[60.0, 0.0, 0.0]] * 2, requires_grad=True)
    value = target_objective(logits, torch.tensor([1]), suppressed=0, weight=1.0)
    assert value.item() == pytest.approx(-60 + 2 * (-60 + log(2)))
    value.backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 0] < -0.9).all()


def test_low_precision_is_summed_in_float32():
    assert target_objective(LOGITS.bfloat16(), torch.tensor([2, 1])).dtype == torch.float32


def test_greedy_decoding():
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    assert greedily_reached(rows, torch.tensor([2, 0])).tolist() == [True, False]
    # Behind the target, the first row decodes to 1.
    assert greedily_reached(rows, torch.tensor([2, 0]), suppressed=1).tolist() == [False, False]
    assert greedily_reached(rows, torch.tensor([2, 0]), suppressed=2).tolist() == [True, False]


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (torch.zeros(3, 5), [1], {}, "needs logits"),
        (torch.zeros(5), [], {}, "needs logits"),
        (torch.zeros(3, 5), [1, 2], {"weight": 1.0}, "suppressed=None"),
        (torch.zeros(3, 5), [1, 2], {"weight": 1.0, "suppressed": 2}, "stands in the target"),
    ],
)
def test_what_does_not_fit(logits, target, options, message):
    with pytest.raises(ValueError, match=message):
        target_objective(logits, torch.tensor(target, dtype=torch.int64), **options)
