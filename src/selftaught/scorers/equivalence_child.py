"""The child process of `equivalence`: reads [gold, answer, deadline] a line and replies right, wrong or undecided.

It runs as a file and imports math-verify only, so that it starts quickly.
"""

import contextlib
import json
import logging
import math
import os
import resource
import signal
import sys
from typing import IO

_MEMORY = 4 * 2**30
_GRACE = 5


def main() -> None:
    """Answer requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for a reply
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401

    _say(replies, "ready")
    for line in sys.stdin:
        gold, answer, deadline = json.loads(line)
        signal.alarm(math.ceil(deadline) + _GRACE)  # ends this process even where nobody is left to kill it
        _say(replies, _compare(gold, answer))
        signal.alarm(0)


def _compare(gold: str, answer: str) -> str:
    from math_verify import LatexExtractionConfig, parse, verify

    try:
        sides = [
            parse(
                f"\\boxed{{{text}}}",
                [LatexExtractionConfig(boxed_match_priority=0)],
                fallback_mode="no_fallback",
                parsing_timeout=None,
                raise_on_error=True,
            )
            for text in (gold, answer)
        ]
        if not all(sides):
            return "undecided"
        return "right" if verify(*sides, timeout_seconds=None, raise_on_error=True) else "wrong"
    except (Exception, RecursionError, MemoryError):
        return "undecided"


def _say(replies: IO[str], word: str) -> None:
    replies.write(word + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
