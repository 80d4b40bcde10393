"""The command line. Every command is a few lines over a public function; nothing heavy is imported before it is needed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from selftaught import __version__, methods
from selftaught.errors import InputError, SelftaughtError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 bad input, 3 nothing to train on, 130 interrupted (resumable)."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_fields:
        parser.error(f"unknown option {rest[0]!r}: see selftaught {arguments.command} --help")
    arguments.fields = rest
    try:
        return arguments.function(arguments) or 0
    except SelftaughtError as error:
        print(f"selftaught: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        where = getattr(arguments, "out", None) or getattr(arguments, "directory", None)
        hint = f": continue with selftaught resume {where}" if arguments.command in ("run", "resume") else ""
        print(f"\nselftaught: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0


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
    from selftaught.runs import versions
    from selftaught.store.stage import default_cache

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

    print(show_run(arguments.directory))
    report = build_report(arguments.directory)
    print(f"\nreport: {report}")
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
    parser.add_argument("--recipe", help="small (default), smoke or paper")
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
    parser.add_argument("--fields", action="store_true", help="list every --field of the configuration, and stop")


def _run(arguments) -> None:
    from selftaught.recipes import configure
    from selftaught.report.html import build_report
    from selftaught.report.text import format_table

    method, config, recipe = configure(arguments)
    if arguments.fields_only:
        return _print_fields(config)
    if arguments.dry_run:
        from selftaught.plan import format_plan

        print(format_plan(method, config, arguments.processes))
        return None
    from selftaught.runs import run_method

    out = arguments.out or Path("runs") / f"{method.name}-{recipe}-seed{arguments.seed}"
    arguments.out = out
    summary = run_method(method, config, out, seed=arguments.seed, recipe=recipe, processes=arguments.processes)
    print(format_table(summary))
    print(f"model:  {out / 'model'}\nreport: {build_report(out)}")
    return None
