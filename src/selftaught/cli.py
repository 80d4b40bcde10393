"""The command line. Every command is a few lines over a public function; heavy modules are imported when needed."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selftaught import __version__, methods, recipes
from selftaught.config import build, describe, from_dict, override, read_yaml
from selftaught.errors import InputError, SelftaughtError
from selftaught.methods.method import Method
from selftaught.specs import SFT, Evaluation, ModelSpec, Preference, Sampling, Training
from selftaught.tasks.task import TaskSpec

if TYPE_CHECKING:
    from selftaught.lab import Lab
    from selftaught.store.stage import Stage

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 bad input, 3 nothing to train on, 130 interrupted (resumable)."""
    arguments, overrides = _parser().parse_known_args(argv)
    arguments.overrides = overrides
    try:
        _check(arguments)
        return arguments.function(arguments) or 0
    except SelftaughtError as error:
        print(f"selftaught: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        where = getattr(arguments, "out", None) or getattr(arguments, "directory", None)
        resumable = arguments.command in ("run", "resume")
        remedy = f"continue with selftaught resume {where}" if resumable else "the same command continues"
        print(f"\nselftaught: interrupted: {remedy}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0


def _check(arguments) -> None:
    if arguments.overrides and not arguments.takes_fields:
        raise InputError(f"unknown option {arguments.overrides[0]!r}: see selftaught {arguments.command} --help")
    directory = getattr(arguments, "directory", None)
    if directory is not None and not directory.is_dir():
        raise InputError(f"{directory} does not exist: give the --out of a run, or of selftaught generate")
    for name in ("limit", "seeds", "processes"):
        number = getattr(arguments, name, None)
        if number is not None and number < 1:
            raise InputError(f"--{name} {number}: give 1 or more")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="selftaught", description="Language models that improve themselves.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_list, _add_run, _add_resume, _add_show, _add_reproduce, _add_verbs, _add_env):
        add(commands)
    return parser


def _command(commands, name: str, function, help_line: str, *, takes_fields: bool = False, example: str = ""):
    parser = commands.add_parser(
        name,
        help=help_line,
        description=help_line,
        epilog=f"example: {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(function=function, takes_fields=takes_fields)
    return parser


# --- list, env, show -------------------------------------------------------------------------------------------------


def _add_list(commands) -> None:
    _command(commands, "list", _list, "the methods: paper, claim, command", example="selftaught list")


def _list(arguments) -> None:
    for name in methods.NAMES:
        method = methods.get(name)
        print(f"{name:<12} {method.title} ({method.paper})\n{'':<12} {method.claim}\n{'':<12} selftaught run {name}\n")


def _add_env(commands) -> None:
    parser = _command(commands, "env", _env, "versions for a bug report", example="selftaught env")
    parser.add_argument("--cache", action="store_true", help="print only where trained seed models are cached")


def _env(arguments) -> None:
    from selftaught.store.stage import default_cache
    from selftaught.store.versions import versions

    if arguments.cache:
        print(default_cache())
        return
    for name, version in {**versions(), "cache": str(default_cache())}.items():
        print(f"{name:<14} {version}")


def _add_show(commands) -> None:
    parser = _command(commands, "show", _show, "what a run directory holds", example="selftaught show runs/scpo --open")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--open", action="store_true", help="open report.html in the browser")


def _show(arguments) -> None:
    from selftaught.report.html import build_report
    from selftaught.report.text import show_run

    shown, report = show_run(arguments.directory), build_report(arguments.directory)
    print(f"{shown}\n\nreport: {report}")
    if arguments.open:
        import webbrowser

        webbrowser.open(report.resolve().as_uri())


# --- run, resume, reproduce ------------------------------------------------------------------------------------------


def _add_run(commands) -> None:
    parser = _command(
        commands,
        "run",
        _run,
        "run a method",
        takes_fields=True,
        example="selftaught run scpo --model ./my-model --data problems.jsonl --training.lr 1e-5",
    )
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("--recipe", help="small (default), smoke, own (default with --model or --data) or paper")
    parser.add_argument("--config", type=Path, help="a YAML file, for example the config.yaml of another run")
    parser.add_argument("--model", help="a Hub id or a directory; without it a small model is trained first")
    parser.add_argument("--task", help="name of a task, see docs/your-data.md")
    parser.add_argument("--data", help="a file, a directory or a Hub id")
    parser.add_argument("--answer", metavar="MODULE:FUNCTION", help="completion text -> answer or None")
    parser.add_argument("--verifier", metavar="MODULE:FUNCTION", help="(prompt, text) -> True, False or None")
    parser.add_argument("--limit", type=int, help="use only the first N problems of each split")
    parser.add_argument("--template", help="plain (default), chat, or a Jinja file")
    parser.add_argument("--out", type=Path, help="run directory (default: runs/METHOD-RECIPE-seedN)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="processes of torchrun on this machine")
    parser.add_argument("--dry-run", action="store_true", help="print rows, tokens, memory and hours, and stop")
    parser.add_argument("--fields", action="store_true", help="list every --field value of the configuration, and stop")


def _run(arguments) -> None:
    method, recipe, config = _configure(arguments)
    if arguments.fields:
        for name, value in describe(config):
            print(f"--{name:<34} {value}")
        return
    if arguments.dry_run:
        print(_plan(method, config, arguments.processes))
        return
    from selftaught.runs import run_method

    arguments.out = arguments.out or Path("runs") / f"{method.name}-{recipe}-seed{arguments.seed}"
    summary = run_method(
        method, config, arguments.out, seed=arguments.seed, recipe=recipe, processes=arguments.processes
    )
    _print_result(summary, arguments.out)


def _plan(method: Method, config: Any, processes: int) -> str:
    from selftaught.plan import CPU, H100, LLAMA_8B, format_plan, scratch_parameters

    if config.model is None:
        size, device = scratch_parameters(config.seed_model.scratch), CPU
    else:
        from selftaught.models.load import count_parameters

        try:
            size, device = count_parameters(config.model), H100
        except InputError as error:
            print(f"{error}; assuming {LLAMA_8B:.2e} parameters", file=sys.stderr)
            size, device = LLAMA_8B, H100
    return format_plan(method.plan(config), size, config.training, processes, device)


def _configure(arguments) -> tuple[Method, str, Any]:
    """Return the method, the recipe's name and its configuration with every option applied."""
    method = methods.get(arguments.method)
    config: Any
    if arguments.config:
        if arguments.recipe:
            raise InputError("--recipe and --config exclude each other: a configuration file is already complete")
        settings = read_yaml(arguments.config)
        recipe, config = "config", from_dict(method.config, settings.get("config", settings))
    else:
        recipe = arguments.recipe or ("own" if arguments.model or arguments.data else "small")
        config = recipes.get(method.name, recipe)
    return method, recipe, override(_with_shortcuts(config, arguments), arguments.overrides)


def _with_shortcuts(config: Any, arguments) -> Any:
    """Apply --model, --template, --task, --data, --answer, --verifier and --limit, which every method has."""
    if arguments.model:
        config = replace(config, model=replace(config.model or ModelSpec(source=""), source=arguments.model))
    if arguments.template:
        if config.model is None:
            raise InputError("--template needs --model: the model trained from scratch uses plain text")
        config = replace(config, model=replace(config.model, template=arguments.template))
    task = config.task
    if arguments.task:
        task = TaskSpec(name=arguments.task, data=arguments.data)
    elif arguments.data:
        # A recipe or file that was asked for names its task; otherwise rows of the user's own are meant.
        asked = arguments.recipe or arguments.config
        task = replace(task, data=arguments.data) if asked else TaskSpec(name="user", data=arguments.data)
    given = {name: getattr(arguments, name) for name in ("answer", "verifier", "limit")}
    return replace(config, task=replace(task, **{k: v for k, v in given.items() if v is not None}))


def _print_result(summary: dict, out: Path) -> None:
    from selftaught.report.html import build_report
    from selftaught.report.text import format_table

    print(format_table(summary))
    print(f"\nmodel:  {out / 'model' if (out / 'model').exists() else out / 'models'}\nreport: {build_report(out)}")


def _add_resume(commands) -> None:
    parser = _command(
        commands, "resume", _resume, "continue an interrupted run", example="selftaught resume runs/scpo-small-seed0"
    )
    parser.add_argument("directory", type=Path)


def _resume(arguments) -> None:
    from selftaught.runs import resume

    _print_result(resume(arguments.directory), arguments.directory)


def _add_reproduce(commands) -> None:
    parser = _command(
        commands,
        "reproduce",
        _reproduce,
        "a paper's table in miniature, over seeds",
        example="selftaught reproduce scpo --seeds 5",
    )
    parser.add_argument("method", metavar="METHOD|all")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1 (default 5)")
    parser.add_argument("--out", type=Path, default=Path("reproductions/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where the runs lie")


def _reproduce(arguments) -> None:
    from selftaught.report.text import format_table
    from selftaught.reproductions import reproduce

    for name in methods.NAMES if arguments.method == "all" else (arguments.method,):
        seeds = range(arguments.seeds)
        print(
            format_table(reproduce(name, recipe=arguments.recipe, seeds=seeds, out=arguments.out, runs=arguments.runs))
        )
        print(f"\nresults: {arguments.out / f'{name}.json'}")


# --- the verbs alone -------------------------------------------------------------------------------------------------

RULES = {
    "consistency": ("selftaught.select.pairs:ConsistencyPairs", "Pair"),
    "majority": ("selftaught.select.pairs:MajorityDemonstrations", "Demonstration"),
    "gold": ("selftaught.select.pairs:GoldPairs", "Pair"),
    "reward": ("selftaught.select.pairs:RewardPairs", "Pair"),
}


@dataclass(frozen=True, kw_only=True)
class SFTSettings:
    """What `train --objective sft` takes as --field value."""

    objective: SFT = field(default_factory=SFT)
    training: Training = field(default_factory=lambda: Training(lr=1e-5))


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """What `train --objective dpo` (or ipo) takes as --field value."""

    objective: Preference = field(default_factory=Preference)
    training: Training = field(default_factory=lambda: Training(lr=5e-7))


def _add_verbs(commands) -> None:
    parser = _command(
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
    _add_model(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)

    parser = _command(
        commands,
        "score",
        _score,
        "score the completions in a directory",
        example="selftaught score samples --scorer votes",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scorer", required=True, choices=("votes", "verifier"))
    _add_task(parser)

    parser = _command(
        commands,
        "select",
        _select,
        "make training examples of scored completions",
        takes_fields=True,
        example="selftaught select samples --rule consistency --k 8 --threshold 4",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rule", required=True, choices=tuple(RULES))

    parser = _command(
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
    _add_model(parser)
    parser.add_argument("--objective", required=True, choices=("sft", "dpo", "ipo"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)

    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "measure a model on a task",
        takes_fields=True,
        example="selftaught evaluate --model ./my-model --task gsm8k --data DIR --problems 200",
    )
    _add_model(parser)
    _add_task(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))


def _add_model(parser) -> None:
    parser.add_argument("--model", required=True, help="a Hub id or a directory")
    parser.add_argument("--template", default="plain", help="plain (default), chat, or a Jinja file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="processes of torchrun on this machine")


def _add_task(parser) -> None:
    parser.add_argument("--task", help="name of a task (default: user)")
    parser.add_argument("--data", help="a file, a directory or a Hub id")
    parser.add_argument("--answer", metavar="MODULE:FUNCTION", help="completion text -> answer or None")
    parser.add_argument("--verifier", metavar="MODULE:FUNCTION", help="(prompt, text) -> True, False or None")


@contextmanager
def _open_lab(path: Path, arguments) -> Iterator["Lab"]:
    from selftaught.executor import Inline, Torchrun
    from selftaught.lab import Lab
    from selftaught.store.run import RunDirectory

    processes = getattr(arguments, "processes", 1)
    with RunDirectory(path) as run:
        executor = Torchrun(processes) if processes > 1 else Inline()
        yield Lab(run=run, seed=getattr(arguments, "seed", 0), executor=executor)


def _model(arguments) -> ModelSpec:
    return ModelSpec(source=arguments.model, template=arguments.template)


def _generate(arguments) -> None:
    from selftaught.store.datafiles import read_prompts

    sampling = override(Sampling(), arguments.overrides)
    prompts = list(read_prompts(arguments.prompts, arguments.limit))
    with _open_lab(arguments.out, arguments) as lab:
        groups = lab.generate(_model(arguments), prompts, sampling)
        lab.run.write_groups(groups)
    print(f"{len(prompts)} prompts x {sampling.k} completions: {_newest(groups.completions).path}")


def _score(arguments) -> None:
    from selftaught.scorers.verifier import Verifier
    from selftaught.scorers.votes import Votes
    from selftaught.tasks import load_task

    with _open_lab(arguments.directory, arguments) as lab:
        groups = lab.run.read_groups()
        spec = _task_spec(arguments)
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
    with _open_lab(arguments.directory, arguments) as lab:
        stage = lab.select(lab.run.read_groups(), selector, getattr(types, row_type))
        lab.run.write_state(selection=stage.path.name)
    for reason, count in stage.manifest["facts"]["counts"].items():
        print(f"{count:>8} dropped: {reason}")
    print(f"{len(stage):>8} kept: {stage.path}")


def _train(arguments) -> None:
    kinds: dict[str, Any] = {
        "sft": SFTSettings(),
        "dpo": PreferenceSettings(),
        "ipo": PreferenceSettings(objective=Preference(loss="ipo")),
    }
    settings = override(kinds[arguments.objective], arguments.overrides)
    with _open_lab(arguments.out, arguments) as lab:
        examples = _examples(lab, arguments)
        trained = lab.train(_model(arguments), examples, settings.objective, settings.training)
        lab.keep_models({"model": trained})
    print(f"trained on {len(examples)} examples: {arguments.out / 'model'}")


def _examples(lab: "Lab", arguments) -> "Stage":
    """Return the examples to train on: those that `select` kept in a directory, a stage, or the rows of a file."""
    from selftaught.store.datafiles import read_demonstrations, read_pairs
    from selftaught.store.run import RunDirectory
    from selftaught.types import Demonstration, Pair

    data = RunDirectory(arguments.data).read_selection() if (arguments.data / "stages").is_dir() else arguments.data
    row_type, read = (Demonstration, read_demonstrations) if arguments.objective == "sft" else (Pair, read_pairs)
    return lab.stage("examples", row_type, list(read(data, arguments.limit)))


def _evaluate(arguments) -> None:
    from selftaught.report.text import columns
    from selftaught.tasks import load_task

    task = load_task(_task_spec(arguments))
    evaluation = override(Evaluation(problems=None), arguments.overrides)
    with _open_lab(arguments.out, arguments) as lab:
        reports, _ = lab.evaluate(_model(arguments), task, evaluation)
    rows = [("metric", "mean", "stderr", "n", "unscored")]
    rows += [(r.name, f"{r.mean:.4f}", f"{r.stderr:.4f}", str(r.n), str(r.unscored)) for r in reports.values()]
    print("\n".join(columns(rows, right=frozenset(range(1, 5)))))


def _task_spec(arguments) -> TaskSpec:
    return TaskSpec(
        name=arguments.task or "user", data=arguments.data, answer=arguments.answer, verifier=arguments.verifier
    )


if __name__ == "__main__":
    sys.exit(main())
