"""The whole of ScPO in seconds: a world of bare answers modulo 3 and a Llama of one layer, for tests of whole runs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selftaught.config import to_dict
from selftaught.methods.scpo import Config
from selftaught.recipes import scpo
from selftaught.specs import ModelSpec, Phase, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec

if TYPE_CHECKING:
    from selftaught.lab import Lab

TASK = TaskSpec(name="chains", options={"modulus": 3, "lengths": [1, 4], "answer_only": 1.0, "new_problems": 0.3})
SEED_MODEL = SeedModel(
    scratch=Scratch(
        layers=1, width=32, heads=2, context=64, init_std=0.06, tokenizer="pattern", pattern=scpo.STEP_PATTERN
    ),
    phases=(Phase(demonstrations=384, training=Training(lr=1e-2, epochs=3.0, batch_size=32, checkpoint_every=8)),),
)


def config(**changes) -> Config:
    """Return the smoke recipe of ScPO made smaller still, with `changes`: one arm, two rounds of 24 problems."""
    smoke = scpo.smoke()
    smaller = replace(
        smoke,
        task=TASK,
        seed_model=SEED_MODEL,
        arms=("scpo",),
        rounds=2,
        problems=24,
        new_problems=6,
        sampling=replace(smoke.sampling, k=4, max_tokens=8),
        problem_sampling=replace(smoke.problem_sampling, max_tokens=24),
        tau=(0.5,),
        training=replace(smoke.training, lr=3e-3, epochs=2, batch_size=4, max_steps=None, checkpoint_every=1),
        evaluation=replace(smoke.evaluation, problems=12, k=4, max_tokens=8),
    )
    return replace(smaller, **changes)


def write_config(path: Path, config: Config) -> Path:
    """Write a configuration as the YAML that --config takes."""
    path.write_text(yaml.safe_dump(to_dict(config)), encoding="utf-8")
    return path


def with_model(config: Config, directory: Path) -> Config:
    """Return the configuration with a model in place of the one to be trained from scratch."""
    return replace(config, model=ModelSpec(source=str(directory)))


@contextmanager
def open_lab(path: Path, **fields: Any) -> Iterator["Lab"]:
    """Open a lab in a run directory of its own."""
    from selftaught.lab import Lab
    from selftaught.store.run import RunDirectory

    with RunDirectory(path) as run:
        yield Lab(run=run, **fields)


def verbs_of(run: Path, arm: str, round: int) -> list[str]:
    """Return the names of the stages of a round of an arm, in their order."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [e["verb"] for e in events if (e["event"], e["arm"], e["round"]) == ("stage", arm, round)]


def stages_of(run: Path, verb: str, arm: str, round: int) -> list[Path]:
    """Return the directories of the stages that `verb` made in a round of an arm, in their order."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [e for e in events if (e["event"], e.get("verb"), e["arm"], e["round"]) == ("stage", verb, arm, round)]
    return [run / "stages" / e["stage"] for e in found]
