"""What commands share: how one is added, the options for a model and a task, and the lab of a directory."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.specs import ModelSpec
from selftaught.tasks.task import TaskSpec

if TYPE_CHECKING:
    from selftaught.lab import Lab


def add_command(commands, name: str, function, help_line: str, *, takes_fields: bool = False, example: str = ""):
    """Add a command that calls `function(arguments)`, and return its parser."""
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


def add_model(parser) -> None:
    """Add the options of a command that runs a model."""
    parser.add_argument("--model", required=True, help="a Hub id or a directory")
    parser.add_argument("--template", help="plain (default, but for a head: its own), chat, or a Jinja file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="processes of torchrun on this machine")


def add_task(parser) -> None:
    """Add the options that name a task."""
    parser.add_argument("--task", help="name of a task (default: user)")
    parser.add_argument("--data", help="a file, a directory or a Hub id")
    parser.add_argument("--answer", metavar="MODULE:FUNCTION", help="completion text -> answer or None")
    parser.add_argument("--verifier", metavar="MODULE:FUNCTION", help="(prompt, text) -> True, False or None")


@contextmanager
def open_lab(path: Path, arguments) -> Iterator["Lab"]:
    """Open `path` as a run directory with the executor that was asked for."""
    from selftaught.executor import Inline, Torchrun
    from selftaught.lab import Lab
    from selftaught.store.run import RunDirectory

    processes = getattr(arguments, "processes", 1)
    with RunDirectory(path) as run:
        executor = Torchrun(processes) if processes > 1 else Inline()
        yield Lab(run=run, seed=getattr(arguments, "seed", 0), executor=executor)


def model_spec(arguments) -> ModelSpec:
    """Return the model that was asked for, decoding as its directory says."""
    from selftaught.models.decoding import open_spec

    return open_spec(arguments.model, arguments.template)


def task_spec(arguments) -> TaskSpec:
    """Return the task that was asked for; without a name, the user's own rows."""
    return TaskSpec(
        name=arguments.task or "user", data=arguments.data, answer=arguments.answer, verifier=arguments.verifier
    )
