"""Reports from scored groups: a mean with its standard error, how many problems it is over, how many were unscored."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import nan, sqrt

import numpy as np

from selftaught.evals.metrics import PerProblem, Table, accuracy, accuracy_sc, somers_d, vote_share, vote_table
from selftaught.types import Group, Report

_RESAMPLES = 200


def summarise(name: str, values: Mapping[str, float | None], parents: tuple[str, ...] = ()) -> Report:
    """Return the mean over scored problems and its standard error, sd / sqrt(n) with sd over n - 1.

    Worked: 1, 0, 1, 1 and one unscored: mean 0.75, sd 0.5, standard error 0.25, n 4.

    >>> report = summarise("accuracy", {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0, "e": None})
    >>> (report.mean, report.stderr, report.n, report.unscored)
    (0.75, 0.25, 4, 1)
    """
    scored = [value for value in values.values() if value is not None]
    n, unscored = len(scored), len(values) - len(scored)
    mean = sum(scored) / n if n else nan
    spread = sum((value - mean) ** 2 for value in scored)
    stderr = sqrt(spread / (n - 1) / n) if n > 1 else nan
    return Report(name=name, mean=mean, stderr=stderr, n=n, unscored=unscored, parents=parents)


def evaluate_greedy(
    groups: Iterable[Group], parents: tuple[str, ...] = ()
) -> tuple[list[Report], dict[str, PerProblem]]:
    """Report `accuracy` of groups scored by "verifier"; also return the value of each problem, for paired tests."""
    values = accuracy(groups)
    return [summarise("accuracy", values, parents)], {"accuracy": values}


def evaluate_samples(
    groups: Iterable[Group], k: int, parents: tuple[str, ...] = ()
) -> tuple[list[Report], dict[str, PerProblem]]:
    """Report what `k` samples per problem tell, from groups scored by "verifier" and "votes".

    `accuracy_sc{k}` (self-consistency), `accuracy_samples{k}` (mean over samples), `vote_share` and `somers_d`.
    `groups` is read once per metric.
    """
    values = {
        f"accuracy_sc{k}": accuracy_sc(groups, k),
        f"accuracy_samples{k}": accuracy(groups),
        "vote_share": vote_share(groups, k),
    }
    reports = [summarise(name, per_problem, parents) for name, per_problem in values.items()]
    return [*reports, _somers_report(vote_table(groups, k), parents)], values


def _somers_report(tables: Mapping[str, Table], parents: tuple[str, ...]) -> Report:
    """Pool the tables; the standard error is the spread over bootstrap draws of problems."""
    scored = [table for table in tables.values() if table]
    estimate = somers_d(_pool(scored))
    source = np.random.default_rng(0)
    draws = (
        somers_d(_pool(scored[i] for i in source.integers(0, len(scored), len(scored)))) for _ in range(_RESAMPLES)
    )
    known = [draw for draw in draws if draw is not None]
    return Report(
        name="somers_d",
        mean=nan if estimate is None else estimate,
        stderr=float(np.std(known, ddof=1)) if len(known) > 1 else nan,
        n=len(scored),
        unscored=len(tables) - len(scored),
        parents=parents,
    )


def _pool(tables: Iterable[Table]) -> Table:
    total: Table = Counter()
    for table in tables:
        total.update(table)
    return total
