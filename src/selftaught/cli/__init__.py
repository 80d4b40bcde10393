"""The command line. Every command is a few lines over a public function; heavy modules are imported when needed."""

import argparse
import sys
from collections.abc import Sequence

from selftaught import __version__
from selftaught.cli import judge, patches, runs, serve, verbs
from selftaught.errors import InputError, SelftaughtError

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
    runs.add_commands(commands)
    verbs.add_commands(commands)
    judge.add_commands(commands)
    serve.add_commands(commands)
    patches.add_commands(commands)
    return parser
