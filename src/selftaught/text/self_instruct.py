"""Prompts that ask for a new task after a numbered list of tasks, and the one parser of what comes back.

The form is Self-Instruct's (arXiv 2212.10560) as RIP uses it (arXiv 2501.18578, appendix), in our own words.
"""

import re
from collections.abc import Iterable, Sequence

from selftaught.text.dedup import words

UNSERVABLE = (
    *("image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "diagram", "diagrams"),
    *("chart", "charts", "plot", "plots", "video", "videos", "audio", "map", "maps", "draw", "drawing"),
)
"""Words of tasks that a model of text alone cannot do."""

_BEGIN, _END = "<task>", "</task>"
_TAG = re.compile(r"</?task>", re.IGNORECASE)
_SPAN = re.compile(r"<task>(.*?)</task>", re.IGNORECASE | re.DOTALL)
_LONGEST = 8000
_INSTRUCTION = (
    "Here are tasks that people have given to an assistant, each between task tags. Go on with the list: "
    "write more tasks of other kinds, in the same form."
)


def ask_for_task(examples: Sequence[str]) -> str:
    """Return the prompt: the examples as a numbered list, and the number of the task to come.

    >>> print(ask_for_task(["Name a river."]).partition("form.")[2].strip())
    1. <task>
    Name a river.
    </task>
    2.
    """
    listed = (f"{i}. {_BEGIN}\n{_TAG.sub('', example).strip()}\n{_END}\n" for i, example in enumerate(examples, 1))
    return f"{_INSTRUCTION}\n\n{''.join(listed)}{len(examples) + 1}."


def parse_task(text: str) -> str | None:
    """Return the first task between tags, None where none is closed or it is empty.

    >>> parse_task("<task> Name a lake. </task> 3. <task>Na")
    'Name a lake.'
    """
    span = _SPAN.search(text[: 2 * _LONGEST])
    task = span.group(1).strip() if span else ""
    return task if task and len(task) <= _LONGEST and not _TAG.search(task) else None


def asks_for_other_media(text: str, keywords: Iterable[str] = UNSERVABLE) -> bool:
    """Say whether a task has one of the keywords as a word.

    >>> asks_for_other_media("Describe the picture."), asks_for_other_media("Picturesque villages of France?")
    (True, False)
    """
    return not set(words(text)).isdisjoint(keywords)
