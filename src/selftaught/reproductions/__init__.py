"""Each paper's table in miniature: the same arms over several seeds, paired by seed, and the claims computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from selftaught import methods
from selftaught.errors import InputError
from selftaught.evals.intervals import Interval, paired_t, ratio_of_means
from selftaught.methods.method import Claim, Method
from selftaught.runs import claim_row, run_method, run_settings
from selftaught.store.files import make_directory, write_json
from selftaught.store.run import RunDirectory

FEWEST_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is compared. `recipes` maps a recipe's name to the configuration with all arms; `tried` counts the settings
    that were looked at on development seeds before the reported seeds were run (LOG.md lists them).
    """

    method: str
    metrics: tuple[str, ...]
    recipes: Mapping[str, Any]
    tried: int


def get(name: str) -> Reproduction:
    """Return the reproduction of a method."""
    methods.get(name)
    return import_module(f"selftaught.reproductions.{name}").REPRODUCTION


def reproduce(
    name: str, *, recipe: str, seeds: Sequence[int], out: Path, runs: Path, data: str | None = None
) -> dict[str, Any]:
    """Run all arms on every seed, each in its own directory below `runs`, and write `out/NAME.json`.

    Seeds that are finished are read, not run again. With `data`, a file, a directory or a Hub id, the task reads that.

    Raises:
        InputError: the recipe has no reproduction, there are too few seeds, or a seed model gives nothing to show.
    """
    reproduction, method = get(name), methods.get(name)
    if recipe not in reproduction.recipes:
        raise InputError(f"{name} has no reproduction {recipe!r}: choose one of {', '.join(reproduction.recipes)}")
    if len(seeds) < FEWEST_SEEDS:
        raise InputError(f"{len(seeds)} seed(s) give no interval over seeds: pass --seeds {FEWEST_SEEDS} or more")
    config, root = reproduction.recipes[recipe], runs / f"{name}-{recipe}"
    if data:
        config = replace(config, task=replace(config.task, data=data))
    summaries = [
        RunDirectory(root / f"seed-{seed}").finished(run_settings(method, config, seed=seed, recipe=recipe))
        or run_method(method, config, root / f"seed-{seed}", seed=seed, recipe=recipe, strict=True)
        for seed in seeds
    ]
    result = combine(method, reproduction, summaries)
    if data:
        result["data"] = Path(data).name if Path(data).exists() else data
    write_json(make_directory(out) / f"{name}.json", result)
    return result


def combine(method: Method, reproduction: Reproduction, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one summary over seeds: means with standard errors over seeds, and the claims with paired intervals."""
    per_seed = {seed: values for summary in summaries for seed, values in summary["per_seed"].items()}
    arms = list(summaries[0]["arms"])
    return {
        "method": method.name,
        "recipe": summaries[0]["recipe"],
        "seeds": [seed for summary in summaries for seed in summary["seeds"]],
        "wall_seconds": round(sum(summary["wall_seconds"] for summary in summaries), 1),
        "wall_seconds_per_seed": [summary["wall_seconds"] for summary in summaries],
        "arms": {arm: {m: _over_seeds(arm, m, summaries) for m in reproduction.metrics} for arm in arms},
        "claims": [_claim(claim, summaries) for claim in method.claims],
        "per_seed": {
            seed: {arm: {m: values[arm][m] for m in reproduction.metrics} for arm in arms}
            for seed, values in per_seed.items()
        },
        "rounds": {arm: _mean_rounds([s["rounds"][arm] for s in summaries]) for arm in arms},
        "tried": reproduction.tried,
        "versions": summaries[0]["versions"],
    }


def _over_seeds(arm: str, metric: str, summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    cells = [summary["arms"][arm][metric] for summary in summaries]
    means = [cell["mean"] for cell in cells]
    return {"mean": fmean(means), "stderr": stdev(means) / sqrt(len(means)), "n": sum(cell["n"] for cell in cells)}


def _mean_rounds(rounds: Sequence[Sequence[Mapping[str, float | None]]]) -> list[dict[str, float]]:
    """Return the means over seeds of every round; a metric without a value in some seed is left out."""
    merged = []
    for same_round in zip(*rounds, strict=True):
        names = [n for n in same_round[0] if all(values.get(n) is not None for values in same_round)]
        merged.append({n: fmean(values[n] for values in same_round) for n in names})
    return merged


def _claim(claim: Claim, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def values(arm: str) -> list[float]:
        return [_measured(summary["rounds"][arm], claim) for summary in summaries]

    ours = values(claim.arm)
    baseline = values(claim.baseline) if claim.baseline else [0.0] * len(ours)
    if claim.gold is None:
        interval = paired_t(ours, baseline)
        return claim_row(claim, interval, claim.holds(interval.low, interval.high))
    gains, gold_gains = ([a - b for a, b in zip(arm, baseline, strict=True)] for arm in (ours, values(claim.gold)))
    if fmean(gold_gains) <= 0:
        # Where gold answers bring nothing, no share of it can be reached.
        return claim_row(claim, Interval(estimate=nan, low=nan, high=nan, over="seeds", n=len(gains)), False)
    ratio = ratio_of_means(gains, gold_gains)
    return claim_row(claim, ratio, ratio.estimate >= claim.share)


def _measured(rounds: Sequence[Mapping[str, float]], claim: Claim) -> float:
    # The seed model is measured once, whichever round an arm is in.
    return rounds[claim.round if len(rounds) > 1 else -1][claim.metric]
