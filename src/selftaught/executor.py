"""Where a stage runs: in this process, or in several under torchrun.

A function crosses as `module:name` with arguments that pickle (specs, paths, rows); what it makes, it leaves on disk.
"""

import codecs
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from selftaught import errors
from selftaught.errors import InputError, SelftaughtError
from selftaught.store.files import write_json

_CALL = "call.pickle"
_STOPPED = 128 + signal.SIGINT
_GRACE_SECONDS = 30


class Executor(Protocol):
    """Runs a function to its end; its errors are raised here."""

    def run(self, function: str, arguments: Mapping[str, Any], workdir: Path) -> None:
        """Call `function` ("module:name") with keyword `arguments`; `workdir` is for logs and messages."""
        ...


def resolve(function: str) -> Callable[..., Any]:
    """Return the function that "module:name" names; InputError if there is none."""
    module, _, name = function.partition(":")
    if not module or not name:
        raise InputError(f"{function!r} names no function; write it as 'module:function'")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # A module that the user's own module imports may be what is missing.
        raise InputError(f"{function!r} cannot be imported: {error}; check the name and the directory") from error
    except AttributeError as error:
        raise InputError(f"module {module!r} has no {name!r}; check the name") from error
    if not callable(found):
        raise InputError(f"{function!r} is a {type(found).__name__}, not a function; name a function")
    return found


@dataclass(frozen=True, slots=True)
class Inline:
    """Runs the function in this process."""

    def run(self, function: str, arguments: Mapping[str, Any], workdir: Path) -> None:
        """Call the function."""
        resolve(function)(**arguments)


@dataclass(frozen=True, slots=True)
class Torchrun:
    """Runs the function in `processes` processes of this machine under torchrun, each with its rank in its environment.

    Rank 0's output is shown; all output is kept in `workdir`/torchrun. The first error of a rank is raised here with
    its own type, in one line. Ctrl-C is passed on; if this process ends, however it ends, the ranks end too.
    """

    processes: int

    def run(self, function: str, arguments: Mapping[str, Any], workdir: Path) -> None:
        """Call the function in every rank and wait for all."""
        logs = workdir / "torchrun"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        (logs / _CALL).write_bytes(_pickled(function, arguments))
        with _launched(self._command(logs), logs) as launcher, _shown(logs):
            code = launcher.wait()
        if code:
            raise _failure(function, logs, code)

    def _command(self, logs: Path) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        launcher += [f"--log-dir={logs}", "--redirects=3"]
        return [sys.executable, *launcher, "-m", "selftaught.executor", str(logs)]


def _pickled(function: str, arguments: Mapping[str, Any]) -> bytes:
    for name, value in arguments.items():
        try:
            pickle.dumps(value)
        except Exception as error:  # pickle raises whatever the object's own methods raise
            raise InputError(
                f"{function}: argument {name!r} cannot go to another process ({error}); give a spec"
            ) from error
    return pickle.dumps((function, dict(arguments)))


@contextmanager
def _launched(command: list[str], logs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run torchrun with a pipe as standard input, which every rank inherits: its end tells them that we are gone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    with open(logs / "torchrun.log", "wb") as log:
        # In a session of its own a Ctrl-C at the terminal reaches it once, through us.
        launcher = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    assert launcher.stdin is not None
    try:
        yield launcher
    except KeyboardInterrupt:
        launcher.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(_GRACE_SECONDS)
        raise
    finally:
        launcher.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(_GRACE_SECONDS)
        launcher.kill()
        launcher.wait()


@contextmanager
def _shown(logs: Path) -> Iterator[None]:
    """Copy what rank 0 writes to this process's standard error while the body runs."""
    ended = threading.Event()
    copier = threading.Thread(target=_copy, args=(logs, ended), daemon=True)
    copier.start()
    try:
        yield
    finally:
        ended.set()
        copier.join()


def _copy(logs: Path, ended: threading.Event) -> None:
    decoder_of = codecs.getincrementaldecoder("utf-8")
    opened: dict[Path, tuple[BinaryIO, codecs.IncrementalDecoder]] = {}
    with ExitStack() as stack:
        last = False
        while not last:
            last = ended.wait(0.1)
            for file in logs.glob("*/attempt_*/0/std*.log"):
                if file not in opened:
                    opened[file] = (stack.enter_context(open(file, "rb")), decoder_of(errors="replace"))
            for stream, decoder in opened.values():
                sys.stderr.write(decoder.decode(stream.read()))
            sys.stderr.flush()


def _failure(function: str, logs: Path, code: int) -> SelftaughtError:
    """Return the error that ended the run: a signal that killed a rank, else the earliest error a rank wrote down."""
    report = (logs / "torchrun.log").read_text(errors="replace")
    cause = re.search(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", report, re.DOTALL)
    if cause and int(cause[2]) < 0:
        rank, number = cause[1], -int(cause[2])
        log = _log_of(logs, rank)
        return SelftaughtError(f"{function}: rank {rank} was killed by signal {number} (9: out of memory?); see {log}")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in logs.glob("error-*.json")]
    if not found:
        return SelftaughtError(f"{function}: torchrun ended with exit code {code}; see {logs / 'torchrun.log'}")
    first = min(found, key=lambda note: note["time"])
    kind = getattr(errors, first["type"], None)
    if isinstance(kind, type) and issubclass(kind, SelftaughtError):
        return kind(first["message"])
    message = first["message"].partition("\n")[0]
    log = _log_of(logs, first["rank"])
    return SelftaughtError(f"{function}: rank {first['rank']}: {first['type']}: {message}; see {log}")


def _log_of(logs: Path, rank: str) -> Path:
    return next(logs.glob(f"*/attempt_*/{rank}/stderr.log"), logs / "torchrun.log")


def _worker(logs: Path) -> int:
    """What each rank runs: the call, or a note of its error."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank = os.environ.get("RANK", "0")
    try:
        function, arguments = pickle.loads((logs / _CALL).read_bytes())
        resolve(function)(**arguments)
    except KeyboardInterrupt:
        return _STOPPED
    except BaseException as error:
        note = {"rank": rank, "time": time.time(), "type": type(error).__name__, "message": str(error)}
        write_json(logs / f"error-{rank}.json", note)
        traceback.print_exc()
        return 1
    return 0


def _end_with_parent() -> None:
    # Standard input is a pipe that nobody writes to: reading ends when its other end is closed or its owner dies.
    while os.read(0, 1):
        pass
    os._exit(_STOPPED)


if __name__ == "__main__":
    sys.exit(_worker(Path(sys.argv[1])))
