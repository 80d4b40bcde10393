"""Worked example: completions with token log-probs (-1, -2) and (-3), weights 1 and 0.5.

Over tokens: (1 * 3 + 0.5 * 3) / 3 tokens = 1.5. Per sequence: (1 * 1.5 + 0.5 * 3) / 2 completions = 1.5.
With weights 1 and 1: 6 / 3 = 2 and (1.5 + 3) / 2 = 2.25.
"""

import pytest
from tests.objectives.batches import batch

from selftaught.objectives import build_objective
from selftaught.specs import SFT


def loss(per_sequence: bool, weights: list[float]) -> float:
    objective = build_objective(SFT(per_sequence=per_sequence))
    made, logps = batch([[-1.0, -2.0], [-3.0]], weights)
    (name,) = objective.terms
    term = objective(lambda _: logps, made, objective.prepare(lambda _: logps, [made]))[name]
    return term.weight * term.sum.item() / objective.counts(made)[name]


@pytest.mark.parametrize(
    ("per_sequence", "weights", "expected"),
    [(False, [1.0, 0.5], 1.5), (True, [1.0, 0.5], 1.5), (False, [1.0, 1.0], 2.0), (True, [1.0, 1.0], 2.25)],
)
def test_worked_value(per_sequence, weights, expected):
    assert loss(per_sequence, weights) == pytest.approx(expected)


def test_weight_zero_gives_no_gradient():
    made, logps = batch([[-1.0, -2.0], [-3.0]], [0.0, 1.0])
    build_objective(SFT())(lambda _: logps, made, None)["nll_loss"].sum.backward()
    assert logps.grad.tolist() == [0.0, 0.0, -1.0]


def test_it_needs_no_reference():
    assert not build_objective(SFT()).needs_reference
