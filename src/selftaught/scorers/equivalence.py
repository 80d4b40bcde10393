"""Are two answers equal? Exact and numeric comparison first, then math-verify in a child process with a deadline.

Answers come from models: a tower of powers or a deep LaTeX expression can keep a computer algebra system busy for ever
or take all memory. So it runs in a process of its own, which is killed and started again when it overruns.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from selftaught.errors import InputError
from selftaught.text.answers import canonical, compare_keys

MAX_ANSWER = 1000
"""Characters beyond which an answer is not handed to math-verify."""
_START_SECONDS = 60.0
_CHILD = Path(__file__).with_name("equivalence_child.py")


class Equivalence:
    """Decides whether an answer equals a gold answer: True, False, or None for undecided.

    A context manager that owns the child process; the process starts when it is first needed. `deadline` is in
    seconds per answer. Pairs already decided are remembered.
    """

    def __init__(self, deadline: float = 5.0) -> None:
        self.deadline = deadline
        self._child: subprocess.Popen[bytes] | None = None
        self._known: dict[tuple[str, str], bool | None] = {}

    def __enter__(self) -> "Equivalence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, gold: str, answer: str) -> bool | None:
        """Compare two answers as written; never raises on their content and never takes longer than the deadline."""
        pair = (canonical(gold) or "", canonical(answer) or "")
        if not all(pair):
            return None
        decided = compare_keys(*pair)
        if decided is not None or max(map(len, pair)) > MAX_ANSWER:
            return decided
        if pair not in self._known:
            self._known[pair] = self._ask(pair)
        return self._known[pair]

    def close(self) -> None:
        """End the child process. A later call starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _ask(self, pair: tuple[str, str]) -> bool | None:
        child = self._child or self._start()
        try:
            os.write(child.stdin.fileno(), json.dumps([*pair, self.deadline]).encode() + b"\n")  # type: ignore[union-attr]
            reply = self._read(child, self.deadline)
        except BrokenPipeError:
            reply = None
        if reply is None:
            self.close()
        return {"right": True, "wrong": False}.get(reply or "")

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(_CHILD)]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        if self._read(self._child, _START_SECONDS) != "ready":
            self.close()
            raise InputError("math-verify does not start in a child process: pip install 'math-verify[antlr4_13_2]'")
        return self._child

    def _read(self, child: subprocess.Popen[bytes], seconds: float) -> str | None:
        """Return the child's next line, None where it does not come in time or the child has died."""
        end, received = time.monotonic() + seconds, b""
        stream = child.stdout.fileno()  # type: ignore[union-attr]
        poller = select.poll()
        poller.register(stream, select.POLLIN | select.POLLHUP)
        while not received.endswith(b"\n"):
            if not poller.poll(max(0.0, end - time.monotonic()) * 1000):
                return None
            part = os.read(stream, 4096)
            if not part:
                return None
            received += part
        return received.decode().strip()
