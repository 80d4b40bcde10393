"""Worked example: chosen -1, rejected -2, both references -1.5, so the margin of log-ratios is 0.5 - (-0.5) = 1.

- DPO, beta 0.5: h = 0.5 and the loss is ln(1 + e^-0.5) = 0.474077; the flipped pair's is ln(1 + e^0.5) = 0.974077, so
  with label smoothing 0.1 it is 0.9 * 0.474077 + 0.1 * 0.974077 = 0.524077, and half of that with weight 0.5.
- IPO, beta 0.25: (1 - 1 / 0.5)^2 = 1; with label smoothing 0.1 the target is 0.8 / 0.5 = 1.6 and the loss 0.36.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftaught.functional.preference import dpo, ipo

PAIR = tuple(torch.tensor([value]) for value in (-1.0, -2.0, -1.5, -1.5))


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        (dpo, {"beta": 0.5}, 0.474077),
        (dpo, {"beta": 0.5, "label_smoothing": 0.1}, 0.524077),
        (dpo, {"beta": 0.5, "label_smoothing": 0.1, "weight": torch.tensor([0.5])}, 0.262038),
        (ipo, {"beta": 0.25}, 1.0),
        (ipo, {"beta": 0.25, "label_smoothing": 0.1}, 0.36),
        (ipo, {"beta": 0.25, "weight": torch.tensor([0.25])}, 0.25),
    ],
)
def test_worked_value(loss, options, expected):
    torch.testing.assert_close(loss(*PAIR, **options), torch.tensor([expected]), atol=2e-6, rtol=0)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


logps = st.floats(-300, 0)


@given(st.tuples(logps, logps, logps, logps), st.floats(0.01, 2), st.sampled_from([0.0, 0.2]), st.floats(0, 1))
def test_agrees_with_an_independent_implementation(values, beta, smoothing, weight):
    """TRL's formulas for loss types `sigmoid` (with `label_smoothing` as in conservative DPO) and `ipo`."""
    chosen, rejected, ref_chosen, ref_rejected = values
    logratio = (chosen - rejected) - (ref_chosen - ref_rejected)
    sigmoid = -(1 - smoothing) * log_sigmoid(beta * logratio) - smoothing * log_sigmoid(-beta * logratio)
    squared = (logratio - (1 - 2 * smoothing) / (2 * beta)) ** 2
    tensors = [torch.tensor([v], dtype=torch.float64) for v in values]
    options = {"beta": beta, "label_smoothing": smoothing, "weight": torch.tensor([weight], dtype=torch.float64)}
    assert dpo(*tensors, **options).item() == pytest.approx(weight * sigmoid, rel=1e-9, abs=1e-9)
    assert ipo(*tensors, **options).item() == pytest.approx(weight * squared, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_gradient_in_float64(loss):
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4))
    weight = torch.rand(5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: loss(*x, beta=0.3, label_smoothing=0.1, weight=weight), inputs)


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_weight_zero_gives_exactly_no_loss_and_no_gradient(loss):
    policy = [torch.tensor([v, v], requires_grad=True) for v in (-3.0, -900.0)]
    losses = loss(*policy, *PAIR[2:], beta=0.5, weight=torch.tensor([0.0, 1.0]))
    losses.sum().backward()
    assert losses[0] == 0
    assert all(x.grad[0] == 0 for x in policy)


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_float32_inside(loss):
    narrow = [x.bfloat16() for x in PAIR]
    assert loss(*narrow, beta=0.5).dtype == torch.float32


def test_an_extreme_margin_stays_finite():
    far = torch.tensor([1e4], requires_grad=True)
    value = dpo(-far, far, torch.zeros(1), torch.zeros(1), beta=1.0)
    value.backward()
    assert value.item() == pytest.approx(2e4)
    assert math.isfinite(far.grad.item())


def test_a_tie_costs_log_2_and_no_pair_nothing():
    same = torch.tensor([-3.0])
    assert dpo(same, same, same, same, beta=0.5, label_smoothing=0.1).item() == pytest.approx(math.log(2))
    none = torch.zeros(0)
    assert dpo(none, none, none, none, beta=0.5).shape == ipo(none, none, none, none, beta=0.5).shape == (0,)
