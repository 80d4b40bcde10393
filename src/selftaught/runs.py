"""One run of a method in one directory: start it, resume it, sum it up."""

import time
from math import isfinite
from pathlib import Path
from typing import Any

from selftaught import methods
from selftaught.config import from_dict, to_dict
from selftaught.errors import InputError
from selftaught.evals.intervals import Interval, paired_bootstrap
from selftaught.executor import Inline, Torchrun
from selftaught.lab import Lab
from selftaught.methods.method import Claim, Method, Outcome
from selftaught.store.run import RunDirectory
from selftaught.store.versions import versions


def run_method(
    method: Method, config: Any, out: Path, *, seed: int, recipe: str, processes: int = 1, strict: bool = False
) -> dict[str, Any]:
    """Run `method` in directory `out` and return its summary, also written to `out/summary.json`.

    Stages that are complete in `out` are reused, so running again after an interruption continues.

    Raises:
        InputError: `out` holds a run with other settings.
        RunLocked: another process is running in `out`.
    """
    started = time.perf_counter()
    settings = run_settings(method, config, seed=seed, recipe=recipe, processes=processes)
    # As it is read back: a 3 that means 3.0 must not make another stage key when the run is resumed.
    config = from_dict(method.config, settings["config"])
    with RunDirectory(out) as run:
        run.write_config(settings)
        # Stages that are there are passed through again, and noted again.
        run.clear_metrics()
        executor = Torchrun(processes) if processes > 1 else Inline()
        lab = Lab(run=run, seed=seed, executor=executor, strict=strict)
        try:
            outcome = method.run(config, lab)
            lab.keep_models(outcome.models)
        finally:
            seconds = run.add_seconds(time.perf_counter() - started)
        summary = summarise(method, recipe, seed, outcome, seconds)
        run.write_summary(summary)
    return summary


def run_settings(method: Method, config: Any, *, seed: int, recipe: str, processes: int = 1) -> dict[str, Any]:
    """Return what `config.yaml` says of a run."""
    return {"method": method.name, "recipe": recipe, "seed": seed, "processes": processes, "config": to_dict(config)}


def resume(out: Path) -> dict[str, Any]:
    """Continue the run in `out` with the settings it was started with.

    Raises:
        InputError: `out` holds no run.
    """
    settings = RunDirectory(out).read_config()
    lacking = [name for name in ("method", "recipe", "seed", "processes", "config") if name not in settings]
    if lacking:
        raise InputError(f"{out}/config.yaml lacks {lacking[0]!r}: mend it, or start a new run with --config")
    method = methods.get(settings["method"])
    config: Any = from_dict(method.config, settings["config"])
    return run_method(
        method, config, out, seed=settings["seed"], recipe=settings["recipe"], processes=settings["processes"]
    )


def summarise(method: Method, recipe: str, seed: int, outcome: Outcome, wall_seconds: float) -> dict[str, Any]:
    """Return the summary of one run; its claims are over problems, so none of them is said to hold."""
    last = {arm: rounds[-1] for arm, rounds in outcome.rounds.items()}
    return {
        "method": method.name,
        "recipe": recipe,
        "seeds": [seed],
        "wall_seconds": round(wall_seconds, 1),
        "arms": {
            arm: {name: {"mean": finite(r.mean), "stderr": finite(r.stderr), "n": r.n} for name, r in reports.items()}
            for arm, reports in last.items()
        },
        "claims": [claim_row(c, interval, None) for c in method.claims if (interval := _over_problems(c, outcome))],
        "per_seed": {
            str(seed): {arm: {n: finite(r.mean) for n, r in reports.items()} for arm, reports in last.items()}
        },
        "rounds": {
            arm: [{n: finite(r.mean) for n, r in rep.items()} for rep in rounds]
            for arm, rounds in outcome.rounds.items()
        },
        "tried": 0,
        "versions": versions(),
    }


def claim_row(claim: Claim, interval: Interval, holds: bool | None) -> dict[str, Any]:
    """Return a claim with its evidence, as summaries hold it.

    The estimate stands under `difference`, of a share of a gain under `ratio`, of a metric by itself under `value`.
    """
    kind = "ratio" if claim.gold else "difference" if claim.baseline else "value"
    row: dict[str, Any] = {"text": claim.text, "arm": claim.arm, "baseline": claim.baseline, "metric": claim.metric}
    row |= {"gold": claim.gold, "share": claim.share} if claim.gold else {}
    row |= {n: getattr(claim, n) for n, usual in _USUAL.items() if getattr(claim, n) != usual}
    return row | {
        kind: finite(interval.estimate),
        "ci95": [finite(interval.low), finite(interval.high)],
        "over": interval.over,
        "holds": holds,
    }


_USUAL = {"margin": 0.0, "lower_is_better": False, "round": -1}


def finite(value: float) -> float | None:
    """Return `value`, or None where JSON has no number for it."""
    return value if isfinite(value) else None


def _over_problems(claim: Claim, outcome: Outcome) -> Interval | None:
    """Return the claim's interval over problems of the last round.

    None where there are no values per problem, and for a ratio or another round, which need several seeds.
    """
    if claim.gold or not claim.baseline or claim.round != -1:
        return None
    ours, baseline = (outcome.values.get(arm, {}).get(claim.metric, {}) for arm in (claim.arm, claim.baseline))
    pairs = [(value, baseline.get(problem), outcome.weights.get(problem, 1.0)) for problem, value in ours.items()]
    both = [(a, b, weight) for a, b, weight in pairs if a is not None and b is not None]
    if not both:
        return None
    return paired_bootstrap([a for a, _, _ in both], [b for _, b, _ in both], [weight for _, _, weight in both])
