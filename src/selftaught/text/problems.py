"""Prompts that ask for a new problem after a few unanswered ones, and the one parser of what comes back.

From ScPO (arXiv 2411.04109, section 2, step 1), in our own words. `plain` is a list that a base model continues;
`instruct` adds what a chat model needs to be told.
"""

import re
from collections.abc import Sequence
from typing import Literal

Style = Literal["plain", "instruct"]

_INSTRUCTION = (
    "Write exactly one more problem like these, about something else and of similar difficulty. "
    "It must contain everything needed to solve it and have one definite answer. "
    "Write the problem only, without its solution."
)
_LABEL = re.compile(r"\A\s*(?:Q|Question|Problem)\s*:", re.IGNORECASE)
_END = re.compile(r"\n\s*\n|\n\s*(?:Q|Question|Problem|A|Answer|Solution)\s*:", re.IGNORECASE)
_FEWEST_WORDS = 4
_LONGEST = 2000


def ask_for_problem(examples: Sequence[str], style: Style) -> str:
    """Return the prompt; without examples, `plain` is the bare label that a model trained on it completes.

    >>> ask_for_problem(["How old is Tom?"], "plain")
    'Question: How old is Tom?\\n\\nQuestion:'
    """
    if style == "plain":
        return "".join(f"Question: {example}\n\n" for example in examples) + "Question:"
    listed = "".join(f"Q: {example}\n\n" for example in examples)
    return f"{listed}{_INSTRUCTION}\n\nQ:"


def parse_problem(text: str) -> str | None:
    """Return the first problem of a completion, as one paragraph, None where it is empty, too short or too long.

    A label, an answer or further problems behind it are cut off. Whether it can be solved is left to the votes.

    >>> parse_problem(" Q: Ann has 3 cats.  How many legs?\\nAnswer: 12")
    'Ann has 3 cats. How many legs?'
    """
    body = text[: 2 * _LONGEST].lstrip()
    label = _LABEL.match(body)
    body = body[label.end() :].lstrip() if label else body
    problem = " ".join(_END.split(body, maxsplit=1)[0].split())
    return problem if len(problem.split()) >= _FEWEST_WORDS and len(problem) <= _LONGEST else None
