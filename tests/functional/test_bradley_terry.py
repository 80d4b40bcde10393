"""Tests of selftaught.functional.bradley_terry."""

import math

import pytest
import torch

from selftaught.functional.bradley_terry import bradley_terry


def test_a_value_worked_by_hand():
    """Leads 1 and -1: log(1 + e^-1) = 0.313262 and log(1 + e) = 1.313262. A margin of 1 on a lead of 1: log 2."""
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx([0.313262, 1.313262], abs=1e-6)
    assert bradley_terry(chosen[:1], rejected[:1], margin=torch.tensor([1.0])).item() == pytest.approx(math.log(2))


def test_it_is_the_likelihood_of_a_preference():
    """P(first wins) = e^a / (e^a + e^b)."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 50, dtype=torch.float64)
    expected = -(a.exp() / (a.exp() + b.exp())).log()
    torch.testing.assert_close(bradley_terry(a, b), expected)
    both = (-bradley_terry(a, b)).exp() + (-bradley_terry(b, a)).exp()
    torch.testing.assert_close(both, torch.ones(50, dtype=torch.float64))


def test_gradient_in_float64():
    torch.manual_seed(1)
    a, b = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    weight, margin = torch.rand(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: bradley_terry(x, y, margin=margin, weight=weight), (a, b))


def test_gradients_are_the_probability_of_the_other_order():
    """d loss / d chosen = -sigmoid(rejected - chosen), and the opposite for rejected."""
    chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (0.3, 1.1))
    bradley_terry(chosen, rejected).sum().backward()
    assert chosen.grad.item() == pytest.approx(-1 / (1 + math.exp(0.3 - 1.1)))
    assert rejected.grad.item() == pytest.approx(-chosen.grad.item())


def test_a_weight_of_zero_is_no_gradient_and_extremes_stay_finite():
    chosen = torch.tensor([0.0, -1e4, 1e4], requires_grad=True)
    loss = bradley_terry(chosen, torch.zeros(3), weight=torch.tensor([0.0, 1.0, 1.0]))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e4, 0.0]
    assert chosen.grad.tolist() == [0.0, -1.0, 0.0]


def test_a_tie_costs_log_2_and_no_pair_nothing():
    assert bradley_terry(torch.tensor([0.7]), torch.tensor([0.7])).item() == pytest.approx(math.log(2))
    assert bradley_terry(torch.zeros(0), torch.zeros(0)).shape == (0,)
