"""Intervals of 95% for differences and ratios of paired results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from selftaught.errors import InputError

_DRAWS = 10_000
_BLOCK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95% interval over `n` seeds or problems."""

    estimate: float
    low: float
    high: float
    over: Literal["seeds", "problems"]
    n: int


def paired_t(ours: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Return the mean difference of paired seeds with its Student t interval.

    Worked: differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027, so 2 +- 2.484.

    >>> interval = paired_t([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    >>> [round(x, 3) for x in (interval.estimate, interval.low, interval.high)]
    [2.0, -0.484, 4.484]
    """
    differences = _differences(ours, baseline)
    if len(differences) < 2:
        raise InputError(f"an interval over seeds needs 2 seeds, not {len(differences)}: give --seeds 3 or more")
    half = float(stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5)
    mean = float(differences.mean())
    return Interval(estimate=mean, low=mean - half, high=mean + half, over="seeds", n=len(differences))


def paired_bootstrap(
    ours: Sequence[float], baseline: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> Interval:
    """Return the mean difference of paired problems with its percentile bootstrap interval (10,000 draws).

    With `weights`, such as the bytes of documents, it is sum(weight * difference) / sum(weight) in each draw.

    Raises InputError where there is no pair, or no weight above 0.
    """
    differences = _differences(ours, baseline)
    sizes = np.ones(len(differences)) if weights is None else np.asarray(weights, float)
    if len(sizes) != len(differences) or not ((sizes > 0) & np.isfinite(sizes)).all():
        raise InputError(f"{len(differences)} pairs and {len(sizes)} weights: give each a finite one above 0")
    if not len(differences):
        raise InputError("no problem was scored for both arms: nothing to compare")
    source, sums = np.random.default_rng(seed), differences * sizes
    means = []
    for _ in range(_DRAWS // _BLOCK):
        rows = source.integers(0, len(differences), (_BLOCK, len(differences)))
        means.append(sums[rows].sum(axis=1) / sizes[rows].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    estimate = float(sums.sum() / sizes.sum())
    return Interval(estimate=estimate, low=float(low), high=float(high), over="problems", n=len(differences))


def ratio_of_means(gains: Sequence[float], gold_gains: Sequence[float], seed: int = 0) -> Interval:
    """Return mean(gains) / mean(gold gains) with a percentile bootstrap interval over paired seeds.

    Draws whose denominator is not positive say that the ratio is not defined there: they count as infinite, with the
    sign of the numerator, so that the interval opens rather than hides them.
    """
    numerator, denominator = np.asarray(gains, float), np.asarray(gold_gains, float)
    if len(numerator) != len(denominator) or not len(numerator):
        raise InputError(f"{len(numerator)} gains and {len(denominator)} gold gains do not pair: run the same seeds")
    if denominator.mean() <= 0:
        raise InputError(f"the gold arm's mean gain is {denominator.mean():.4g}: the ratio needs a gold arm that gains")
    rows = np.random.default_rng(seed).integers(0, len(numerator), (_DRAWS, len(numerator)))
    above, below = numerator[rows].mean(axis=1), denominator[rows].mean(axis=1)
    ratios = np.where(below > 0, above / np.where(below > 0, below, 1.0), np.copysign(np.inf, above))
    low, high = np.quantile(ratios, (0.025, 0.975), method="nearest")
    estimate = float(numerator.mean() / denominator.mean())
    return Interval(estimate=estimate, low=float(low), high=float(high), over="seeds", n=len(numerator))


def _differences(ours: Sequence[float], baseline: Sequence[float]) -> np.ndarray:
    if len(ours) != len(baseline):
        raise InputError(f"{len(ours)} and {len(baseline)} results cannot be paired: run both arms on the same seeds")
    return np.asarray(ours, float) - np.asarray(baseline, float)
