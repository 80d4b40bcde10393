"""Strengths of a few contestants from their battles: Bradley-Terry, which Elo ratings estimate.

A judge's verdicts on all ordered pairs of responses to one prompt become one score per response (arXiv 2410.10630,
section 2.2; Bradley and Terry 1952).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from selftaught.errors import InputError
from selftaught.types import Verdict

_STEPS = 100
_TOLERANCE = 1e-9


def battle_matrix(contestants: Sequence[str], verdicts: Iterable[Verdict]) -> np.ndarray:
    """Return B [n, n], float: B[m, n] counts the verdicts by which `contestants[m]` (completion ids) beat n.

    Both orders count alike. A tie or an unreadable verdict is no win for anybody. Verdicts on others are left out.
    """
    place = {name: i for i, name in enumerate(contestants)}
    battles = np.zeros((len(contestants), len(contestants)))
    for verdict in verdicts:
        first, second = place.get(verdict.first), place.get(verdict.second)
        if first is None or second is None or first == second:
            continue
        if verdict.winner == "first":
            battles[first, second] += 1
        elif verdict.winner == "second":
            battles[second, first] += 1
    return battles


def bradley_terry(battles: np.ndarray, prior: float = 0.5) -> np.ndarray:
    """Return the scores e [n] that maximise sum over m, n of W[m, n] * log sigmoid(e[m] - e[n]), with mean 0.

    W is `battles` [n, n] plus `prior` wins each way between every two contestants, without which one that never lost
    would have no finite score. Scores are in nats: e[m] - e[n] is the log odds that m beats n. Times 400 / ln 10 they
    are Elo points. The problem is convex; it is solved by Newton's method with halved steps.

    Worked: two contestants, three wins to one, prior 0.5: odds 3.5 to 1.5, a difference of log(7/3) = 0.8473.

    >>> [round(float(e), 4) for e in bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]))]
    [0.4236, -0.4236]

    Raises:
        InputError: `prior` is not positive and finite, or a count is negative or not finite.
    """
    n = len(battles)
    if not 0 < prior < np.inf or not np.isfinite(battles).all() or (battles < 0).any():
        raise InputError(f"prior={prior} and the battle counts must be positive and finite; a prior of 0.5 is usual")
    wins = np.asarray(battles, float) + prior * (1 - np.eye(n))
    np.fill_diagonal(wins, 0.0)
    total = wins + wins.T
    scores = np.zeros(n)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-(scores[:, None] - scores[None, :])))
        gradient = (wins - total * chance).sum(axis=1)
        if np.abs(gradient).max(initial=0.0) < _TOLERANCE * max(1.0, total.sum()):
            break
        weight = total * chance * (1 - chance)
        # The scores have one free constant; adding 1/n to every entry fixes it without moving the solution.
        hessian = np.diag(weight.sum(axis=1)) - weight + 1 / n
        scores = _uphill(wins, scores, np.linalg.solve(hessian, gradient))
    return scores - scores.mean() if n else scores


def _uphill(wins: np.ndarray, scores: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return `scores` plus the longest of `step`, `step` / 2, ... that does not lower the likelihood."""
    before = _log_likelihood(wins, scores)
    for halvings in range(30):
        moved = scores + step / 2**halvings
        if _log_likelihood(wins, moved) >= before:
            return moved
    return scores


def _log_likelihood(wins: np.ndarray, scores: np.ndarray) -> float:
    return float(-(wins * np.logaddexp(0.0, scores[None, :] - scores[:, None])).sum())
