"""The verbs alone: generate, score, select, train, evaluate."""

import sys
from collections.abc import Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selftaught.cli.command import add_command, add_model, add_task, model_spec, open_lab, task_spec
from selftaught.config import build, override
from selftaught.errors import InputError, NothingToTrainOn
from selftaught.specs import (
    KTO,
    SFT,
    BradleyTerry,
    Evaluation,
    ObjectiveSpec,
    Preference,
    Sampling,
    StepKTO,
    Training,
)

if TYPE_CHECKING:
    from selftaught.lab import Lab
    from selftaught.store.stage import Stage

RULES = {
    "consistency": ("selftaught.select.pairs:ConsistencyPairs", "Pair"),
    "majority": ("selftaught.select.pairs:MajorityDemonstrations", "Demonstration"),
    "gold": ("selftaught.select.pairs:GoldPairs", "Pair"),
    "reward": ("selftaught.select.pairs:RewardPairs", "Pair"),
    "thought": ("selftaught.select.thought_pairs:ThoughtPairs", "Pair"),
    "rip": ("selftaught.select.rip:RipPairs", "Pair"),
}

OBJECTIVES: dict[str, tuple[ObjectiveSpec, float]] = {
    "sft": (SFT(), 1e-5),
    "dpo": (Preference(), 5e-7),
    "ipo": (Preference(loss="ipo"), 5e-7),
    "kto": (KTO(), 1e-6),
    "step_kto": (StepKTO(), 1e-6),
    "reward": (BradleyTerry(), 1e-5),
}
"""What `train --objective` can be: the objective and the learning rate before any --field value."""


def add_commands(commands) -> None:
    """Add the commands of this module to a parser's subparsers."""
    for add in (_add_generate, _add_score, _add_select, _add_train, _add_evaluate):
        add(commands)


def _add_generate(commands) -> None:
    parser = add_command(
        commands,
        "generate",
        _generate,
        "sample completions of prompts",
        takes_fields=True,
        example="selftaught generate problems.jsonl --model ./my-model --k 8 --out samples --temperature 0.7",
    )
    parser.add_argument(
        "prompts", type=Path, help="JSON lines, CSV or Parquet with prompt or messages, and answer if there is one"
    )
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)


def _add_score(commands) -> None:
    parser = add_command(
        commands,
        "score",
        _score,
        "score the completions in a directory",
        example="selftaught score samples --scorer votes",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scorer", required=True, choices=("votes", "verifier"))
    add_task(parser)


def _add_select(commands) -> None:
    parser = add_command(
        commands,
        "select",
        _select,
        "make training examples of scored completions",
        takes_fields=True,
        example="selftaught select samples --rule consistency --k 8 --threshold 4",
    )
    parser.add_argument("data", type=Path, help="a directory that score wrote to or, for --rule rip, a preference file")
    parser.add_argument("--rule", required=True, choices=tuple(RULES))
    parser.add_argument("--out", type=Path, default=Path("runs/select"), help="where pairs kept of a file go")


def _add_train(commands) -> None:
    parser = add_command(
        commands,
        "train",
        _train,
        "train a model on examples",
        takes_fields=True,
        example="selftaught train samples --model ./my-model --objective dpo --out tuned --training.lr 1e-6",
    )
    parser.add_argument(
        "data", type=Path, help="a directory that select wrote to, a stage, or a file in the ecosystem's columns"
    )
    add_model(parser)
    parser.add_argument(
        "--objective",
        required=True,
        choices=tuple(OBJECTIVES),
        help="reward trains a reward model on pairs, the others a language model",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)


def _add_evaluate(commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "measure a model on a task",
        takes_fields=True,
        example="selftaught evaluate --model ./my-model --task gsm8k --data DIR --problems 200",
    )
    add_model(parser)
    add_task(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))


def _generate(arguments) -> None:
    from selftaught.store.datafiles import read_prompts

    sampling = override(Sampling(), arguments.overrides)
    prompts = list(read_prompts(arguments.prompts, arguments.limit))
    with open_lab(arguments.out, arguments) as lab:
        groups = lab.generate(model_spec(arguments), prompts, sampling)
        lab.run.write_groups(groups)
    print(f"{len(prompts)} prompts x {sampling.k} completions: {_newest(groups.completions).path}")


def _score(arguments) -> None:
    from selftaught.scorers.verifier import Verifier
    from selftaught.scorers.votes import Votes
    from selftaught.tasks import load_task

    with open_lab(arguments.directory, arguments) as lab:
        groups = lab.run.read_groups()
        spec = task_spec(arguments)
        if spec.name == "user" and spec.data is None:
            # Its answer reader and verifier do for prompts that are here already.
            spec = replace(spec, data=str(cast("Stage", groups.prompts).path))
        task = load_task(spec)
        k = 1 + max(max(numbers) for (numbers,) in _newest(groups.completions).columns("k"))
        groups = lab.score(groups, Votes(task=task, k=k) if arguments.scorer == "votes" else Verifier(task=task))
        lab.run.write_groups(groups)
    scores = _newest(groups.scores)
    unscored = sum(scores.manifest["facts"]["counts"].values())
    print(f"{len(scores)} scores, {unscored} of them unscored: {scores.path}")


def _newest(tables: tuple["Stage | Sequence", ...]) -> "Stage":
    """Return the last of the tables, all of which the lab has stored."""
    return cast("Stage", tables[-1])


def _select(arguments) -> None:
    from selftaught import types
    from selftaught.executor import resolve

    function, row_type = RULES[arguments.rule]
    rule: Any = resolve(function)
    selector = build(rule, arguments.overrides)
    if arguments.data.is_file():
        _filter_file(arguments, selector)
        return
    if not arguments.data.is_dir():
        raise InputError(f"{arguments.data} does not exist: give the --out of selftaught generate, or a file of pairs")
    with open_lab(arguments.data, arguments) as lab:
        stage = lab.select(lab.run.read_groups(), selector, getattr(types, row_type))
        lab.run.write_state(selection=stage.path.name)
    for reason, count in stage.manifest["facts"]["counts"].items():
        print(f"{count:>8} dropped: {reason}")
    print(f"{len(stage):>8} kept: {stage.path}")


def _filter_file(arguments, rule: Any) -> None:
    from selftaught.select.rip import filter_preferences
    from selftaught.store.datafiles import read_pairs
    from selftaught.types import Pair

    if arguments.rule != "rip":
        raise InputError(f"{arguments.data} is a file: --rule rip alone filters pairs that exist already")
    found = filter_preferences(read_pairs(arguments.data), rule)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for reason, count in found.removed.items():
        print(f"{count:>8} dropped: {reason}")
    if not found.kept:
        raise NothingToTrainOn(f"no row of {arguments.data} is kept: lower the quantiles or bounds")
    with open_lab(arguments.out, arguments) as lab:
        stage, used = lab.stage("select", Pair, found.kept), found.thresholds
        lab.note("thresholds", bounds=used.bounds, samples=used.samples, prompts=used.prompts)
        lab.run.write_state(selection=stage.path.name)
    print(f"{len(stage):>8} kept: {stage.path}")


def _train(arguments) -> None:
    settings = override(_train_settings(arguments.objective), arguments.overrides)
    with open_lab(arguments.out, arguments) as lab:
        examples = _examples(lab, arguments)
        trained = lab.train(model_spec(arguments), examples, settings.objective, settings.training)
        lab.keep_models({"model": trained})
    print(f"trained on {len(examples)} examples: {arguments.out / 'model'}")


def _train_settings(name: str) -> Any:
    """Return what `train` takes as --field value: an `objective`, of the fields of its own type, and a `training`."""
    objective, lr = OBJECTIVES[name]
    fields = [("objective", type(objective), objective), ("training", Training, Training(lr=lr))]
    return make_dataclass("TrainSettings", fields, frozen=True, kw_only=True)()


def _examples(lab: "Lab", arguments) -> "Stage":
    """Return the examples to train on: those that `select` kept in a directory, a stage, or the rows of a file."""
    from selftaught.store.datafiles import (
        holds_documents,
        read_demonstrations,
        read_documents,
        read_feedback,
        read_pairs,
    )
    from selftaught.store.run import RunDirectory
    from selftaught.types import Demonstration, Document, Feedback, Pair

    data = RunDirectory(arguments.data).read_selection() if (arguments.data / "stages").is_dir() else arguments.data
    kinds: dict[str, tuple[type, Any]] = {
        "sft": (Demonstration, read_demonstrations),
        "kto": (Feedback, read_feedback),
        "step_kto": (Feedback, read_feedback),
    }
    row_type, read = kinds.get(arguments.objective, (Pair, read_pairs))
    if arguments.objective == "sft" and holds_documents(data):
        row_type, read = Document, read_documents
    return lab.stage("examples", row_type, list(read(data, arguments.limit)))


def _evaluate(arguments) -> None:
    from selftaught.report.text import columns
    from selftaught.tasks import load_task

    task = load_task(task_spec(arguments))
    evaluation = override(Evaluation(problems=None), arguments.overrides)
    with open_lab(arguments.out, arguments) as lab:
        reports, _ = lab.evaluate(model_spec(arguments), task, evaluation)
    rows = [("metric", "mean", "stderr", "n", "unscored")]
    rows += [(r.name, f"{r.mean:.4f}", f"{r.stderr:.4f}", str(r.n), str(r.unscored)) for r in reports.values()]
    print("\n".join(columns(rows, right=frozenset(range(1, 5)))))
