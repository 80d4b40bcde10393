"""The context a method is given: six verbs over one run directory.

Each verb is a cached stage: its key is a hash of what it does, on what, with which parameters and seed. A verb whose
stage is complete returns it at once, so a method that is run again continues where it stopped.
"""

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.evals.evaluate import evaluate_greedy, evaluate_samples
from selftaught.evals.metrics import PerProblem
from selftaught.executor import Executor, Inline
from selftaught.models.decoding import decoding_key, write_decoding
from selftaught.models.load import model_key, place_key
from selftaught.objectives import build_objective
from selftaught.scorers.base import Scorer
from selftaught.scorers.verifier import Verifier
from selftaught.scorers.votes import Votes
from selftaught.specs import (
    KTO,
    SFT,
    Adaptive,
    BradleyTerry,
    Evaluation,
    Head,
    LatentPreference,
    ModelSpec,
    ObjectiveSpec,
    Phase,
    Preference,
    Sampling,
    Scratch,
    SeedModel,
    StepKTO,
    Training,
)
from selftaught.store.artifact import Artifact
from selftaught.store.groups import Groups
from selftaught.store.keys import hash_rows
from selftaught.store.run import RunDirectory
from selftaught.store.stage import Stage, Store, default_cache, stage_key
from selftaught.tasks import load_task
from selftaught.tasks.task import Task, TaskSpec
from selftaught.train.loop import TrainJob
from selftaught.types import Completion, Demonstration, Feedback, Pair, Prompt, Report, Score

COMPLETIONS_PER_SHARD = 4096
_EXAMPLES: dict[type, type] = {
    **dict.fromkeys((Preference, BradleyTerry, LatentPreference), Pair),
    **dict.fromkeys((KTO, StepKTO), Feedback),
}
"""The rows that objectives train on, where only one kind will do."""
REFERENCE_SETTINGS = ("max_length", "precision", "strategy", "micro_batch_tokens", "tree_rows", "lora")
GENERATE = "selftaught.engines.shards:generate_shards"
REFERENCE = "selftaught.train.reference:reference_shards"
TRAIN = "selftaught.train.loop:train"
SCRATCH = "selftaught.models.scratch:build_scratch"
HEAD = "selftaught.models.adaptive_decoder:build_head"
TOKEN = "selftaught.models.special_tokens:add_token"


@dataclass(kw_only=True)
class Lab:
    """Six verbs (generate, score, select, train, evaluate, stage) on one run directory.

    `strict` turns a seed model with which a method has nothing to do from a warning into an error. `arm` and `round`
    label what is written to the metrics; they are no part of a stage's key, so arms share equal stages. `shared` keeps
    stages in the cache of all runs instead of the run directory.
    """

    run: RunDirectory
    seed: int = 0
    executor: Executor = field(default_factory=Inline)
    strict: bool = False
    cache: Store = field(default_factory=lambda: Store(default_cache() / "stages"))
    shared: bool = False
    arm: str = ""
    round: int = 0

    @property
    def store(self) -> Store:
        """Where stages are kept."""
        return self.cache if self.shared else self.run.stages

    @contextmanager
    def scope(self, *, arm: str, round: int = 0) -> Iterator[None]:
        """Label what happens inside."""
        before = self.arm, self.round
        self.arm, self.round = arm, round
        try:
            yield
        finally:
            self.arm, self.round = before

    def generate(
        self, model: ModelSpec, prompts: Sequence[Prompt] | Stage | Groups, sampling: Sampling, *, first_k: int = 0
    ) -> Groups:
        """Draw `sampling.k` completions of every prompt, numbered from `first_k`. Given groups, add to theirs.

        Raises:
            InputError: there is no prompt, or one is longer than the model's context.
        """
        known = prompts if isinstance(prompts, Groups) else Groups(prompts=prompts)
        if not len(known):
            raise InputError("there is no prompt to complete: give more data, or a higher --limit")
        table = self.table(known.prompts)
        params = {"model": model_key(model), "template": model.template, "sampling": sampling, "first_k": first_k}
        params |= {"decoding": decoding_key(model.decoding)} if model.decoding else {}
        arguments = {"model": model, "prompts": table.path, "sampling": sampling, "first_k": first_k}
        shards = max(1, math.ceil(len(known) * sampling.k / COMPLETIONS_PER_SHARD))
        stage = self._sharded("generate", Completion, GENERATE, params, arguments, [table], shards)
        completions = (*known.completions, stage)
        return Groups(prompts=table, completions=completions, scores=known.scores, verdicts=known.verdicts)

    def score(self, groups: Groups, scorer: Scorer) -> Groups:
        """Add the scores that `scorer` gives to every completion."""
        stage = self.stage("score", Score, score_rows, groups, scorer=scorer)
        return Groups(
            prompts=groups.prompts,
            completions=groups.completions,
            scores=(*groups.scores, stage),
            verdicts=groups.verdicts,
        )

    def select(self, groups: Groups, selector: Callable[..., Iterator[Any]], row_type: type) -> Stage:
        """Keep the examples that `selector` makes of `groups`; what it drops, and why, is counted in the manifest.

        Raises:
            NothingToTrainOn: no example is left.
        """
        stage = self.stage("select", row_type, selector, groups)
        if not len(stage):
            left_out = stage.manifest["facts"]["counts"].items()
            reasons = "; ".join(f"{n} x {why}" for why, n in left_out) or "there was no group"
            raise NothingToTrainOn(
                f"selection kept none of {len(groups)} groups ({reasons}); all stages are kept in {self.run.path}"
            )
        return stage

    def train(
        self,
        model: ModelSpec,
        examples: Stage,
        objective: ObjectiveSpec,
        settings: Training,
        *,
        dev: Callable[[ModelSpec], float] | None = None,
        reference: ModelSpec | None = None,
    ) -> ModelSpec:
        """Train `model` and return the last weights or, given `dev`, those of the epoch where it is highest.

        The reference of a preference loss is `model` itself unless another is given.
        """
        _check_rows(examples, objective)
        if isinstance(objective, KTO | StepKTO) and reference not in (None, model):
            raise InputError("KTO's reference point is that of the model before training: leave reference out")
        settings = replace(settings, snapshots="epoch") if dev else settings
        needed = build_objective(objective).needs_reference
        before = self.logps(reference or model, examples, settings) if needed else None
        parents = [examples.key] if before is None else [examples.key, before.key]
        params = {"model": model_key(model), "template": model.template, "objective": objective, "settings": settings}
        if isinstance(objective, LatentPreference):
            params["head"] = place_key(_head_of(model))

        def arguments(out: Path) -> dict[str, Any]:
            job = TrainJob(
                model=model,
                examples=examples.path,
                objective=objective,
                settings=settings,
                out=out,
                seed=self.seed,
                reference=None if before is None else before.path,
            )
            return {"job": job}

        trained = self.artifact("train", TRAIN, params, parents, arguments)
        self._copy_training_metrics(trained.path / "metrics.jsonl")
        if dev is None:
            return _trained(model, objective, settings, trained.path / "model")
        epochs = sorted((trained.path / "snapshots").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
        return max((_trained(model, objective, settings, path) for path in epochs), key=dev)

    def logps(self, model: ModelSpec, rows: Stage, settings: Training) -> Stage:
        """Return the `Score` of each completion or document of `rows`: its summed log-prob (nats) under `model`.

        Arms that train on the same rows share it. Of `settings` it takes what is named in `REFERENCE_SETTINGS`.
        """
        relevant = {name: getattr(settings, name) for name in REFERENCE_SETTINGS}
        params = {"model": model_key(model), "template": model.template, **relevant}
        arguments = {"model": model, "examples": rows.path, "settings": Training(**relevant)}
        shards = max(1, math.ceil(len(rows) / COMPLETIONS_PER_SHARD))
        return self._sharded("logps", Score, REFERENCE, params, arguments, [rows], shards)

    def evaluate(
        self,
        model: ModelSpec,
        task: Task,
        evaluation: Evaluation,
        prompts: Sequence[Prompt] | None = None,
        prefix: str = "",
    ) -> tuple[dict[str, Report], dict[str, PerProblem]]:
        """Measure greedy accuracy and, with k > 1, what k samples per problem tell, on the test problems or `prompts`.

        Returns the reports by name (`accuracy`, `accuracy_sc8`, `vote_share`, ...) and their values by problem. In the
        metrics the names follow `prefix`.

        Raises:
            InputError: there is no problem.
        """
        chosen = task.test(evaluation.problems) if prompts is None else prompts
        if not chosen:
            raise InputError(
                f"task {task.name} has no problem to measure on: give at least 10 rows, or a file for each split"
            )
        k, problems = evaluation.k, self.table(chosen)
        sampling = Sampling(
            k=k,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            max_tokens=evaluation.max_tokens,
            stop=task.stop,
        )
        greedy = self.generate(model, problems, replace(sampling, k=1, temperature=0.0))
        reports, values = evaluate_greedy(self.score(greedy, Verifier(task=task)))
        if k > 1:
            sampled = self.score(self.generate(model, problems, sampling), Votes(task=task, k=k))
            more_reports, more_values = evaluate_samples(self.score(sampled, Verifier(task=task)), k)
            reports, values = [*reports, *more_reports], values | more_values
        for report in reports:
            self.note_report(replace(report, name=prefix + report.name))
        return {report.name: report for report in reports}, values

    def stage(
        self, name: str, row_type: type[Any], rows: Callable | Sequence, *inputs: Stage | Groups, **params: Any
    ) -> Stage:
        """Store what `rows(*inputs, counts, **params)` yields, or the given rows themselves.

        `rows` is a module-level function or a frozen dataclass that can be called; `counts` is a Counter for what it
        leaves out. Its version is its attribute `version`, 1 without one.
        """
        content: dict[str, Any]
        if isinstance(rows, Sequence):
            function, content = "rows", {"rows": hash_rows(rows)}
        else:
            spec = None if hasattr(rows, "__qualname__") else rows
            function, content = _function_name(rows), {"spec": spec, **params}
        version, parents = getattr(rows, "version", 1), [input.key for input in inputs]
        key = stage_key(function, version, content, parents, self.seed)
        stage = self.store.get(key)
        cached = stage is not None
        if stage is None:
            counts: Counter[str] = Counter()
            origin: dict[str, Any] = {"function": function, "version": version, "params": content, "parents": parents}
            with self.store.writer(name, key, row_type, seed=self.seed, **origin) as writer:
                if writer.missing():
                    writer.write(0, rows if isinstance(rows, Sequence) else rows(*inputs, counts, **params))
                stage = writer.commit(counts=dict(counts))
        self._note(name, stage, cached, inputs)
        return stage

    def seed_model(self, task: TaskSpec, spec: SeedModel) -> ModelSpec:
        """Train a small model from random weights on the task's demonstrations, in the cache that all runs share.

        Raises:
            InputError: the task has no demonstrations.
        """
        shared = replace(self, shared=True)
        tables = [shared._demonstrations(task, phase) for phase in spec.phases]
        model = shared.scratch(spec.scratch, tables)
        for phase, examples in zip(spec.phases, tables, strict=True):
            model = shared.train(model, examples, SFT(), phase.training)
        return model

    def _demonstrations(self, task: TaskSpec, phase: Phase) -> Stage:
        world = load_task(replace(task, options={**task.options, **phase.options}))
        rows = world.demonstrations(phase.demonstrations, seed=self.seed)
        if not rows:
            raise InputError(f"task {task.name} has no demonstrations to train a seed model on: pass --model")
        return self.stage("demonstrations", Demonstration, rows)

    def scratch(self, scratch: Scratch, tables: Sequence[Stage]) -> ModelSpec:
        """Return a model with random weights, whose tokenizer is trained on `tables`: demonstrations or documents."""

        def arguments(out: Path) -> dict[str, Any]:
            return {"scratch": scratch, "examples": [t.path for t in tables], "out": out, "seed": self.seed}

        made = self.artifact("scratch", SCRATCH, {"scratch": scratch}, [t.key for t in tables], arguments)
        return ModelSpec(source=str(made.path))

    def adaptive(self, model: ModelSpec, head: Head) -> ModelSpec:
        """Return `model` decoding by a new head, whose choices are equally likely until it is trained."""
        return replace(model, decoding=Adaptive(head=self._made_of("head", HEAD, model, head=head)))

    def with_token(self, model: ModelSpec, token: str) -> ModelSpec:
        """Return `model` with the special token `token` added to its vocabulary, if it lacks it."""
        source = self._made_of("token", TOKEN, model, token=token)
        return replace(model, source=source, revision=None, adapter=None)

    def _made_of(self, name: str, function: str, model: ModelSpec, **params: Any) -> str:
        """Return the directory that `function` fills from `model`."""

        def arguments(out: Path) -> dict[str, Any]:
            return {"model": model, **params, "out": out, "seed": self.seed}

        key = {"model": model_key(model), "template": model.template, **params}
        return str(self.artifact(name, function, key, [], arguments).path)

    def dev_accuracy(self, task: Task, problems: int, evaluation: Evaluation) -> Callable[[ModelSpec], float]:
        """Return the measure by which `train` chooses an epoch: greedy accuracy on the first dev problems."""
        prompts, greedy = task.dev(problems), replace(evaluation, k=1)

        def measure(model: ModelSpec) -> float:
            accuracy = self.evaluate(model, task, greedy, prompts, "dev/")[0]["accuracy"]
            if not accuracy.n:
                raise InputError(f"no dev problem of task {task.name} has an answer to choose by: set --dev_problems 0")
            return accuracy.mean

        return measure

    def note_report(self, report: Report) -> None:
        """Append a report to the run's metrics."""
        self.note("report", **{k: v for k, v in asdict(report).items() if k not in ("id", "parents")})

    def warn(self, message: str) -> None:
        """Print a warning; raise it as InputError where the lab is strict."""
        if self.strict:
            raise InputError(message)
        self.tell(f"warning: {message}")

    def tell(self, message: str) -> None:
        """Print a line for the user."""
        print(message, file=sys.stderr)

    def note(self, event: str, **facts: Any) -> None:
        """Append one line to the run's metrics."""
        self.run.append_metrics({"event": event, "arm": self.arm, "round": self.round, **facts})

    def keep_models(self, models: Mapping[str, ModelSpec]) -> None:
        """Copy trained models out of their stages: to `model/` or, where there are several arms, to `models/ARM/`.

        An adaptive head is copied without the model that it belongs to; `decoding.json` says how others decode. Arms
        that only measure the seed model have nothing of their own.
        """
        seed_model = models.get("seed_model")
        trained = {arm: model for arm, model in models.items() if arm != "seed_model" and model != seed_model}
        for arm, model in trained.items():
            source = Path(
                model.decoding.head if isinstance(model.decoding, Adaptive) else model.adapter or model.source
            )
            target = self.run.path / ("model" if len(trained) == 1 else f"models/{arm}")
            shutil.rmtree(target, ignore_errors=True)
            try:
                shutil.copytree(source, target)
            except OSError as error:
                # What copytree collects has no `strerror` of its own.
                reason = error.strerror or error.args[0][0][-1]
                raise InputError(f"cannot copy the model to {target}: {reason}; free some space and resume") from error
            if model.decoding and not isinstance(model.decoding, Adaptive):
                write_decoding(target, model.decoding)

    def table(self, prompts: Sequence[Prompt] | Stage) -> Stage:
        """Return `prompts` as a stage."""
        return prompts if isinstance(prompts, Stage) else self.stage("prompts", Prompt, prompts)

    def _sharded(
        self,
        name: str,
        row_type: type[Any],
        function: str,
        params: dict,
        arguments: dict,
        parents: Sequence[Stage],
        shards: int,
    ) -> Stage:
        """Run a function that writes the shards it is told are missing, on the executor."""
        keys = [parent.key for parent in parents]
        key = stage_key(function, 1, params, keys, self.seed)
        stage = self.store.get(key)
        cached = stage is not None
        if stage is None:
            with self.store.writer(
                name, key, row_type, shards, function=function, version=1, params=params, parents=keys, seed=self.seed
            ) as writer:
                if missing := writer.missing():
                    place = {"directory": writer.directory, "shards": shards, "missing": missing}
                    seeds = {"stage_key": key, "seed": self.seed}
                    self.executor.run(function, {**arguments, **place, **seeds}, self._logs(name, key))
                stage = writer.commit()
        self._note(name, stage, cached, parents)
        return stage

    def artifact(
        self,
        name: str,
        function: str,
        params: dict,
        parents: Sequence[str],
        arguments: Callable[[Path], dict[str, Any]],
    ) -> Artifact:
        """Return the directory that `function` ("module:name") fills, on the executor, when it is first asked for.

        `params` and `parents` (keys) are what it depends on; `arguments` makes its arguments of the directory.
        """
        key = stage_key(function, 1, params, parents, self.seed)
        found = self.store.get_artifact(key)
        cached = found is not None
        if found is None:
            with self.store.artifact(
                name, key, function=function, version=1, params=params, parents=parents, seed=self.seed
            ) as writer:
                if not writer.finished:
                    self.executor.run(function, arguments(writer.directory), self._logs(name, key))
                    shutil.rmtree(writer.directory / "checkpoints", ignore_errors=True)
                found = writer.commit()
        self._note(name, found, cached, ())
        return found

    def _logs(self, name: str, key: str) -> Path:
        return self.run.path / "logs" / f"{name}-{key}"

    def _note(self, verb: str, made: Stage | Artifact, cached: bool, inputs: Sequence[Stage | Groups]) -> None:
        manifest = made.manifest
        facts = {
            "verb": verb,
            "stage": f"{manifest['name']}-{made.key}",
            "rows": manifest.get("rows", len(manifest.get("files", ()))),
            "seconds": round(manifest["finished"] - manifest["started"], 2),
            "cached": cached,
            "counts": manifest.get("facts", {}).get("counts", {}),
            "inputs": list(manifest["parents"]),
        }
        groups = [i for i in inputs if isinstance(i, Groups)]
        if groups:
            tables = {"completions": groups[0].completions, "scores": groups[0].scores}
            names: dict[str, Any] = {role: [_stage_name(t) for t in parts] for role, parts in tables.items()}
            facts["groups"] = names | {"prompts": _stage_name(groups[0].prompts)}
        self.note("stage", **facts)
        if verb not in ("prompts", "score"):
            label = f"{self.arm} {self.round}" if self.round else self.arm
            state = "cached" if cached else f"{facts['seconds']:.1f} s"
            unit = "files" if isinstance(made, Artifact) else "rows"
            print(f"{label:<18} {verb:<14} {facts['rows']:>8,} {unit:<6} {state}", file=sys.stderr)

    def _copy_training_metrics(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            self.note("train", **json.loads(line))


def score_rows(
    groups: Groups, counts: Counter[str], *, scorer: Callable[[Groups], Iterator[list[Score]]]
) -> Iterator[Score]:
    """Yield the scores of all groups, counting those without a value by their note."""
    for score in chain.from_iterable(scorer(groups)):
        if score.value is None:
            counts[f"unscored: {score.note}"] += 1
        yield score


def _check_rows(examples: Stage, objective: ObjectiveSpec) -> None:
    wanted = _EXAMPLES.get(type(objective))
    if wanted is not None and examples.row_type is not wanted:
        raise InputError(
            f"{examples.path} holds {examples.row_type.__name__} rows: {type(objective).__name__} needs "
            f"{wanted.__name__} rows"
        )


def _trained(model: ModelSpec, objective: ObjectiveSpec, settings: Training, path: Path) -> ModelSpec:
    """Return the spec of what a training stage left in `path`: a head or an adapter on `model`, or whole weights."""
    if isinstance(objective, LatentPreference):
        return replace(model, decoding=replace(cast(Adaptive, model.decoding), head=str(path)))
    if settings.lora:
        return replace(model, adapter=str(path))
    return replace(model, source=str(path), revision=None, adapter=None)


def _head_of(model: ModelSpec) -> str:
    if not isinstance(model.decoding, Adaptive):
        raise InputError(f"{model.source} has no adaptive head to train: give it one with lab.adaptive(model, Head())")
    return model.decoding.head


def _stage_name(table: Stage | Sequence[Any]) -> str | None:
    return table.path.name if isinstance(table, Stage) else None


def _function_name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
