"""One run of a method in one directory: start it, resume it, sum it up."""

import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from selftaught import methods
from selftaught.config import from_dict, to_dict
from selftaught.errors import InputError
from selftaught.methods.method import Method, Outcome
from selftaught.store.run import RunDirectory

PACKAGES = ("selftaught", "torch", "transformers", "tokenizers", "peft", "pyarrow", "numpy")


def run_method(method: Method, config: Any, out: Path, *, seed: int, recipe: str, processes: int = 1) -> dict:
    """Run `method` in directory `out` and return its summary, also written to `out/summary.json`.

    Stages that are complete in `out` are reused, so running again after an interruption continues.

    Raises:
        InputError: `out` holds a run of another method, configuration or seed.
    """
    from selftaught.executor import Inline, Torchrun
    from selftaught.lab import Lab

    started = time.perf_counter()
    settings = {"method": method.name, "recipe": recipe, "seed": seed, "processes": processes, "config": to_dict(config)}
    with RunDirectory(out) as run:
        _write_or_match(run.path / "config.yaml", settings)
        lab = Lab(run, seed=seed, executor=Torchrun(processes) if processes > 1 else Inline())
        outcome = method.run(config, lab)
        lab.keep_models(outcome.models)
        summary = summarise(method.name, recipe, {seed: outcome}, time.perf_counter() - started)
        run.write_summary(summary)
    return summary


def resume(out: Path) -> dict:
    """Continue the run in `out` with the settings it was started with."""
    settings = read_settings(out)
    method = methods.get(settings["method"])
    config = from_dict(method.config, settings["config"])
    return run_method(
        method, config, out, seed=settings["seed"], recipe=settings["recipe"], processes=settings["processes"]
    )


def read_settings(out: Path) -> dict[str, Any]:
    """Return the resolved settings in a run directory.

    Raises:
        InputError: `out` is not a run directory.
    """
    path = out / "config.yaml"
    if not path.is_file():
        raise InputError(f"{out} holds no config.yaml, so it is not a run directory: start one with selftaught run METHOD --out {out}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def summarise(method: str, recipe: str, outcomes: Mapping[int, Outcome], wall_seconds: float) -> dict:
    """Return the summary of runs over seeds, without claims: last-round reports per arm, values per seed and round.

    With several seeds an arm's `stderr` is over seeds and `n` counts problems of all seeds.
    """
    first = next(iter(outcomes.values()))
    return {
        "method": method,
        "recipe": recipe,
        "seeds": list(outcomes),
        "wall_seconds": round(wall_seconds, 1),
        "arms": {
            arm: {name: {"mean": r.mean, "stderr": r.stderr, "n": r.n} for name, r in rounds[-1].items()}
            for arm, rounds in first.rounds.items()
        },
        "claims": [],
        "per_seed": {str(seed): _values(outcome) for seed, outcome in outcomes.items()},
        "rounds": {arm: [{k: r.mean for k, r in reports.items()} for reports in rounds] for arm, rounds in first.rounds.items()},
        "tried": 0,
        "versions": versions(),
    }


def _values(outcome: Outcome) -> dict[str, dict[str, float]]:
    return {arm: {name: r.mean for name, r in rounds[-1].items()} for arm, rounds in outcome.rounds.items()}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, without importing the packages."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _write_or_match(path: Path, settings: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = sorted(_differences(before, settings))
        if changed:
            raise InputError(
                f"{path.parent} holds a run with other settings ({', '.join(changed[:4])}): choose another --out, or "
                f"continue it with selftaught resume {path.parent}"
            )
        return
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _differences(before: Any, after: Any, prefix: str = ""):
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from _differences(before.get(key), after.get(key), f"{prefix}{key}.")
    elif before != after:
        yield prefix.rstrip(".")
