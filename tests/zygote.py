"""A process that has imported everything and forks for each command: a run in a process of its own, without the wait.

Started as a script it reads requests from standard input, one JSON object a line, and answers each with one.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KILL_AT = "KILL_AT"
"""Environment variable: at its number of renames the process kills itself, before it (odd) or after it (even)."""


class Zygote:
    """Runs `selftaught` commands in processes of their own that start at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        root = Path(__file__).parents[1]
        path = os.pathsep.join((str(root / "src"), str(root)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._count = 0

    def start(self, arguments: Sequence[Any], **environment: Any) -> "Child":
        """Start a command with these additions to the environment."""
        self._count += 1
        log = self._directory / f"command-{self._count}.log"
        variables = {name: str(value) for name, value in environment.items()}
        request = {"arguments": [str(a) for a in arguments], "environment": variables, "log": str(log)}
        return Child(self, self._ask(request), log)

    def run(self, arguments: Sequence[Any], **environment: Any) -> "Child":
        """Start a command and wait for its end."""
        child = self.start(arguments, **environment)
        child.wait()
        return child

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class Child:
    """A command that was started. `code` is its exit code once waited for, minus the signal that killed it."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self._zygote = zygote
        self.pid = pid
        self._log = log
        self.code: int | None = None

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        if self.code is None:
            self.code = self._zygote._ask({"wait": self.pid})
        return self.code

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(encoding="utf-8") if self._log.exists() else ""


def _kill_at(count: int) -> None:
    """Make the process kill itself at its rename number `count`: the instants between two states of the disk."""
    done = 0

    def counted(rename: Any) -> Any:
        def wrapper(*arguments: Any, **keywords: Any) -> None:
            nonlocal done
            done += 1
            if done == count and count % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments, **keywords)
            if done == count:
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapper

    os.replace, os.rename = counted(os.replace), counted(os.rename)


def _run(request: dict[str, Any]) -> None:
    from selftaught import cli

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    # A process started in the background may have been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if number := os.environ.get(KILL_AT):
        _kill_at(int(number))
    code = 1
    try:
        code = cli.main(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import selftaught.lab
    import selftaught.reproductions
    import selftaught.train.reference  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _run(request)
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
