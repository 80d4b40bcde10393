import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from selftaught.errors import InputError
from selftaught.select.elo import battle_matrix, bradley_terry
from selftaught.types import Verdict

BATTLES = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.integers(0, 5), min_size=n * n, max_size=n * n).map(
        lambda counts: np.array(counts, float).reshape(n, n) * (1 - np.eye(n))
    )
)


def verdict(first, second, winner):
    return Verdict(prompt_id="p", first=first, second=second, winner=winner, scorer="judge")


def test_both_orders_count_alike_and_ties_count_nothing():
    """r_ab = first and r_ba = second are two wins of a; a tie and an unread verdict are none."""
    rows = [verdict("a", "b", "first"), verdict("b", "a", "second"), verdict("a", "c", "tie"), verdict("c", "a", None)]
    rows += [verdict("c", "b", "first"), verdict("a", "elsewhere", "first")]
    assert battle_matrix(["a", "b", "c"], rows).tolist() == [[0, 2, 0], [0, 0, 0], [0, 1, 0]]


def test_two_contestants():
    """3 wins to 1 with 0.5 wins each way: odds 3.5 / 1.5, so e_a - e_b = log(7/3); the scores sum to 0."""
    scores = bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]))
    assert scores[0] - scores[1] == pytest.approx(math.log(7 / 3)) and scores.sum() == pytest.approx(0)


@given(BATTLES)
def test_agrees_with_a_general_optimiser(battles):
    n = len(battles)
    wins = battles + 0.5 * (1 - np.eye(n))

    def loss(e):
        return sum(wins[i, j] * math.log1p(math.exp(e[j] - e[i])) for i in range(n) for j in range(n) if i != j)

    found = minimize(loss, np.zeros(n), method="BFGS", options={"gtol": 1e-7}).x
    assert bradley_terry(battles) == pytest.approx(found - found.mean(), abs=1e-3)


@given(BATTLES, st.randoms(use_true_random=False))
def test_the_order_of_contestants_does_not_matter(battles, source):
    order = list(range(len(battles)))
    source.shuffle(order)
    assert bradley_terry(battles[np.ix_(order, order)]) == pytest.approx(bradley_terry(battles)[order], abs=1e-7)


def test_a_planted_ranking_is_recovered():
    strengths = np.array([1.5, 0.7, 0.0, -0.4, -1.8])
    source = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    battles = source.binomial(2000, chance) * (1 - np.eye(5))
    scores = bradley_terry(battles)
    assert np.argsort(scores).tolist() == np.argsort(strengths).tolist()
    assert scores == pytest.approx(strengths - strengths.mean(), abs=0.1)


def test_undefeated_contestants_have_finite_scores():
    battles = np.triu(np.full((16, 16), 2.0), 1)
    scores = bradley_terry(battles)
    assert np.isfinite(scores).all() and (np.diff(scores) < 0).all()
    assert bradley_terry(1e6 * battles)[0] < 200


def test_without_battles_all_are_equal():
    assert bradley_terry(np.zeros((4, 4))).tolist() == [0.0] * 4
    assert bradley_terry(np.zeros((0, 0))).tolist() == [] and bradley_terry(np.zeros((1, 1))).tolist() == [0.0]


@pytest.mark.parametrize(
    ("battles", "prior"),
    [
        (np.zeros((2, 2)), 0.0),
        (-np.ones((2, 2)), 1.0),
        (np.full((2, 2), np.nan), 1),
        (np.zeros((2, 2)), np.nan),
        (np.zeros((2, 2)), np.inf),
    ],
)
def test_battles_that_make_no_sense(battles, prior):
    with pytest.raises(InputError, match=r"a prior of 0\.5 is usual"):
        bradley_terry(battles, prior)
