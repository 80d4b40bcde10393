"""Commands on whole runs: list, env, show, run, resume, reproduce."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from selftaught import methods, recipes
from selftaught.cli.command import add_command
from selftaught.config import describe, from_dict, override, read_yaml
from selftaught.errors import InputError
from selftaught.methods.method import Method
from selftaught.specs import ModelSpec
from selftaught.tasks.task import TaskSpec


def add_commands(commands) -> None:
    """Add the commands of this module to a parser's subparsers."""
    for add in (_add_list, _add_run, _add_resume, _add_show, _add_reproduce, _add_env):
        add(commands)


def _add_list(commands) -> None:
    add_command(commands, "list", _list, "the methods: paper, claim, command", example="selftaught list")


def _list(arguments) -> None:
    for name in methods.NAMES:
        method = methods.get(name)
        print(f"{name:<12} {method.title} ({method.paper})\n{'':<12} {method.claim}\n{'':<12} selftaught run {name}\n")


def _add_env(commands) -> None:
    parser = add_command(commands, "env", _env, "versions for a bug report", example="selftaught env")
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
    parser = add_command(
        commands, "show", _show, "what a run directory holds", example="selftaught show runs/scpo --open"
    )
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


def _add_run(commands) -> None:
    parser = add_command(
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
    from selftaught.plan import CPU, H100, LLAMA_8B, format_plan, scratch_parameters, seed_model_plan

    works = method.plan(config)
    if config.model is None:
        size, device = scratch_parameters(config.seed_model.scratch), CPU
        if config.seed_model.phases:
            works = seed_model_plan(config.seed_model, config.evaluation.max_tokens) + works
    else:
        from selftaught.models.load import count_parameters

        try:
            size, device = count_parameters(config.model), H100
        except InputError as error:
            print(f"{error}; assuming {LLAMA_8B:.2e} parameters", file=sys.stderr)
            size, device = LLAMA_8B, H100
    return format_plan(works, size, config.training, processes, device)


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
    parser = add_command(
        commands, "resume", _resume, "continue an interrupted run", example="selftaught resume runs/scpo-small-seed0"
    )
    parser.add_argument("directory", type=Path)


def _resume(arguments) -> None:
    from selftaught.runs import resume

    _print_result(resume(arguments.directory), arguments.directory)


def _add_reproduce(commands) -> None:
    parser = add_command(
        commands,
        "reproduce",
        _reproduce,
        "a paper's table in miniature, over seeds",
        example="selftaught reproduce scpo --seeds 5",
    )
    parser.add_argument("method", metavar="METHOD|all")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many seeds (default 5)")
    parser.add_argument("--first_seed", type=int, default=0, metavar="N", help="the first of them (default 0)")
    parser.add_argument("--data", help="read this file, directory or Hub id instead of the recipe's data")
    parser.add_argument("--out", type=Path, default=Path("reproductions/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where the runs lie")


def _reproduce(arguments) -> None:
    from selftaught.report.text import format_table
    from selftaught.reproductions import reproduce

    for name in methods.NAMES if arguments.method == "all" else (arguments.method,):
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        places = {"data": arguments.data, "out": arguments.out, "runs": arguments.runs}
        print(format_table(reproduce(name, recipe=arguments.recipe, seeds=seeds, **places)))
        print(f"\nresults: {arguments.out / f'{name}.json'}")
