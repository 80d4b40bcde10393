"""Worked example, beta 0.5, z = 1: a good completion with log-ratio 3 has sigmoid(0.5 * 2) = 0.731059, loss 0.268941.

A bad one with the same ratio has v = sigmoid(-1) = 0.268941 and loss 0.731059; with lambda_U = 2 both double, 1.462117.
At r = z every loss is lambda / 2. Mismatched log-ratios that sum to -6 over 3 have z = 0, to 6 over 3 have z = 2.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftaught.functional.kto import kto, reference_point, step_means


def values(ratios, labels, z=1.0, **options):
    return kto(torch.tensor(ratios), torch.tensor(labels), z, **{"beta": 0.5, **options})


def test_worked_values():
    torch.testing.assert_close(values([3.0, 3.0], [1.0, 0.0]), torch.tensor([0.268941, 0.731059]))
    weighted = values([3.0, 3.0], [1.0, 0.0], undesirable_weight=2.0)
    torch.testing.assert_close(weighted, torch.tensor([0.268941, 1.462117]))
    torch.testing.assert_close(values([1.0, 1.0], [True, False], desirable_weight=3.0), torch.tensor([1.5, 0.5]))
    assert values([3.0], [1.0], weight=torch.tensor([0.0])).item() == 0


def test_reference_points():
    for total, count, expected in ((-6.0, 3, 0.0), (6.0, 3, 2.0), (0.0, 0, 0.0)):
        assert reference_point(torch.tensor(total), torch.tensor(count)).item() == expected
    assert not reference_point(torch.tensor(6.0, requires_grad=True), torch.tensor(3)).requires_grad


@given(st.lists(st.tuples(st.floats(-200, 200), st.booleans()), min_size=1, max_size=6), st.floats(-5, 50))
def test_agrees_with_an_independent_implementation(rows, mean):
    """KTO's published formulas (as in TRL's trainer, loss type `kto`), classes apart: weight * (1 - sigmoid(...))."""
    ratios, labels = ([row[i] for row in rows] for i in (0, 1))
    kl = max(mean, 0.0)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0

    good = [1.3 * (1 - sigmoid(0.2 * (r - kl))) for r, label in rows if label]
    bad = [0.7 * (1 - sigmoid(0.2 * (kl - r))) for r, label in rows if not label]
    z = reference_point(torch.tensor(mean, dtype=torch.float64), torch.tensor(1))
    found = kto(
        torch.tensor(ratios, dtype=torch.float64),
        torch.tensor(labels),
        z,
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.7,
    )
    assert found.sum().item() == pytest.approx(sum(good) + sum(bad), rel=1e-9, abs=1e-9)


def test_gradient_in_float64():
    ratios = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([1, 0, 1, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda r: kto(r, labels, 0.3, beta=0.7, undesirable_weight=1.5), (ratios,))


def test_the_reference_point_has_no_gradient_and_labels_turn_the_push():
    z = torch.tensor(0.5, requires_grad=True)
    ratios = torch.tensor([1.0, 1.0], requires_grad=True)
    kto(ratios, torch.tensor([1, 0]), z, beta=0.5).sum().backward()
    assert z.grad is None
    assert ratios.grad[0] < 0 and ratios.grad[0] == -ratios.grad[1]


def test_extreme_ratios_stay_finite_and_the_push_fades():
    ratios = torch.tensor([1e6, -1e6, 0.0], requires_grad=True)
    losses = kto(ratios, torch.tensor([1, 1, 1]), 0.0, beta=1.0)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert ratios.grad.abs().argmax() == 2 and ratios.grad[:2].abs().max() == 0


def test_float32_inside():
    assert kto(torch.tensor([1.0]).bfloat16(), torch.tensor([1]), 0.0, beta=1.0).dtype == torch.float32


def test_step_means():
    """Steps 1, 2 | 4 of examples 0 and 2 average to 1.5, 0 and 4; example 1 has none."""
    found = step_means(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    assert found.tolist() == [1.5, 0.0, 4.0]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone(label):
    losses = values([3.0, -3.0], [label, label], desirable_weight=2.0, undesirable_weight=2.0)
    assert losses.sum().item() == pytest.approx(2 * (0.268941 + 0.880797) if label else 2 * (0.731059 + 0.119203))
    assert (
        kto(torch.zeros(0), torch.zeros(0), 0.0, beta=1.0).shape
        == step_means(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0).shape
        == (0,)
    )
