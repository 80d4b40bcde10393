"""CUTE (Edman et al. 2024, arXiv 2409.15452): whether a model knows the letters of its tokens.

Rows are `task`, `inputs` and `label`. The 14 tasks: spelling (`spell`, `spell_inverse`), containing (`contains_`),
similarity (`orth`, in spelling, and `sem`, in meaning), and insertion, deletion, substitution and swapping (`ins_`,
`del_`, `sub_`, `swap_`) of `char` and `word`; those on letters also come with random strings (`_rand`). All rows are
`test`. A prompt's `meta` holds the `category`, which is the task, so that accuracies go by it, the `level`, "char" or
"word", whether the string is `random`, and the `inputs`.

Nine sentences of the published set are oddly spaced or encoded, so that their labels do more than was asked; they are
kept as they are.

The prompts are not part of the data, and the wording and the `shots` examples here are ours: figures compare models
with each other, not with published ones. An answer is right if it equals the label, with quotation marks around it,
emphasis and repeated spaces left aside; letters and their case count. For answers of one word or letter final
punctuation does not count, and a Yes or No may go on unless it takes itself back.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from selftaught.errors import InputError
from selftaught.store.tables import Record, read_table
from selftaught.tasks.sources import split_file
from selftaught.text.problems import Style
from selftaught.types import Demonstration, Prompt, number_repeats

LONGEST = 1000
"""Characters of an answer that are read; the longest label has under a hundred."""
_COLUMNS = {"task": str, "inputs": list, "label": str}
_RANDOM = "_rand"
_MARK = re.compile(r"[\s*#>_-]*answer[\s*_]*:[\s*_]*", re.IGNORECASE)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("`", "`"), ("**", "**"), ("*", "*"), ("«", "»"))


class _Kind(NamedTuple):
    """How a task is asked, and four rows of ours, none of which is in the data, to show how it is answered."""

    question: str
    level: Literal["char", "word"]
    examples: tuple[tuple[str, ...], ...]


_KINDS = {
    "spell": _Kind(
        'Spell the word "{}" with a space between its letters.',
        "char",
        (("lantern", "l a n t e r n"), ("orchid", "o r c h i d"), ("gravel", "g r a v e l"), ("tuba", "t u b a")),
    ),
    "spell_inverse": _Kind(
        'Which word is spelled "{}"? Write it without spaces.',
        "char",
        (("l a n t e r n", "lantern"), ("o r c h i d", "orchid"), ("g r a v e l", "gravel"), ("t u b a", "tuba")),
    ),
    "contains_char": _Kind(
        'Does "{1}" contain the letter "{0}"? Answer Yes or No.',
        "char",
        (("n", "lantern", "Yes"), ("e", "orchid", "No"), ("a", "gravel", "Yes"), ("s", "tuba", "No")),
    ),
    "contains_word": _Kind(
        'Does the sentence "{1}" contain the word "{0}"? Answer Yes or No.',
        "word",
        (
            ("gravel", "The gravel was wet.", "Yes"),
            ("lantern", "He plays the tuba badly.", "No"),
            ("orchid", "Her orchid needs light.", "Yes"),
            ("wet", "Nobody lit a lantern.", "No"),
        ),
    ),
    "orth": _Kind(
        'Which is closer in spelling to "{}": "{}" or "{}"?',
        "char",
        (
            ("lantern", "lamp", "lectern", "lectern"),
            ("gravel", "grovel", "pebbles", "grovel"),
            ("tuba", "tub", "trombone", "tub"),
            ("rowing", "paddling", "growing", "growing"),
        ),
    ),
    "sem": _Kind(
        'Which is closer in meaning to "{}": "{}" or "{}"?',
        "word",
        (
            ("lantern", "lamp", "lectern", "lamp"),
            ("gravel", "grovel", "pebbles", "pebbles"),
            ("tuba", "tub", "trombone", "trombone"),
            ("rowing", "paddling", "growing", "paddling"),
        ),
    ),
    "ins_char": _Kind(
        'Write "{2}" with the letter "{0}" added after every "{1}".',
        "char",
        (
            ("z", "n", "lantern", "lanzternz"),
            ("e", "r", "orchid", "orechid"),
            ("o", "g", "gravel", "goravel"),
            ("m", "a", "tuba", "tubam"),
        ),
    ),
    "ins_word": _Kind(
        'Write the sentence "{2}" with the word "{0}" added after every "{1}".',
        "word",
        (
            ("old", "The", "The gravel was wet.", "The old gravel was wet."),
            ("seven", "badly", "He plays the tuba badly.", "He plays the tuba badly seven."),
            ("often", "orchid", "Her orchid needs light.", "Her orchid often needs light."),
            ("green", "a", "Nobody lit a lantern.", "Nobody lit a green lantern."),
        ),
    ),
    "del_char": _Kind(
        'Write "{1}" with every "{0}" deleted.',
        "char",
        (("n", "lantern", "later"), ("o", "orchid", "rchid"), ("v", "gravel", "grael"), ("a", "tuba", "tub")),
    ),
    "del_word": _Kind(
        'Write the sentence "{1}" with every "{0}" deleted.',
        "word",
        (
            ("wet", "The gravel was wet.", "The gravel was."),
            ("the", "He plays the tuba badly.", "He plays tuba badly."),
            ("Her", "Her orchid needs light.", "orchid needs light."),
            ("lit", "Nobody lit a lantern.", "Nobody a lantern."),
        ),
    ),
    "sub_char": _Kind(
        'Write "{2}" with every "{0}" replaced by "{1}".',
        "char",
        (
            ("n", "b", "lantern", "labterb"),
            ("h", "y", "orchid", "orcyid"),
            ("l", "t", "gravel", "gravet"),
            ("t", "c", "tuba", "cuba"),
        ),
    ),
    "sub_word": _Kind(
        'Write the sentence "{2}" with every "{0}" replaced by "{1}".',
        "word",
        (
            ("wet", "purple", "The gravel was wet.", "The gravel was purple."),
            ("plays", "door", "He plays the tuba badly.", "He door the tuba badly."),
            ("Her", "every", "Her orchid needs light.", "every orchid needs light."),
            ("a", "our", "Nobody lit a lantern.", "Nobody lit our lantern."),
        ),
    ),
    "swap_char": _Kind(
        'Write "{2}" with "{0}" and "{1}" swapped everywhere.',
        "char",
        (
            ("n", "e", "lantern", "laetnre"),
            ("o", "d", "orchid", "drchio"),
            ("r", "v", "gravel", "gvarel"),
            ("b", "u", "tuba", "tbua"),
        ),
    ),
    "swap_word": _Kind(
        'Write the sentence "{2}" with "{0}" and "{1}" swapped everywhere.',
        "word",
        (
            ("gravel", "wet", "The gravel was wet.", "The wet was gravel."),
            ("He", "badly", "He plays the tuba badly.", "badly plays the tuba He."),
            ("orchid", "needs", "Her orchid needs light.", "Her needs orchid light."),
            ("lit", "a", "Nobody lit a lantern.", "Nobody a lit lantern."),
        ),
    ),
}
TASKS = tuple(_KINDS)
"""The tasks; those in `RANDOM` also exist with `_rand` behind their name."""
RANDOM = ("spell", "spell_inverse", "contains_char", "ins_char", "del_char", "sub_char", "swap_char")


@dataclass(frozen=True, slots=True, kw_only=True)
class CUTE:
    """The set in `data`: a directory with cute.jsonl, or the file itself.

    `tasks` limits it to some, by the names of the data; empty for all. `style` "plain" asks as
    "Question: ...\\nAnswer:" after `shots` answered examples (at most 4); "instruct" tells a chat model to answer so.
    """

    name: ClassVar[str] = "cute"
    near_duplicate: ClassVar[float | None] = None  # Nothing is generated.

    data: str
    tasks: tuple[str, ...] = ()
    style: Style = "plain"
    shots: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.shots <= 4:
            raise InputError(f"cute: shots={self.shots}: there are 4 examples of each task; give 0 to 4")
        for task in self.tasks:
            _kind(task, "cute")

    @property
    def stop(self) -> tuple[str, ...]:
        """What a base model writes when it goes on to a next question."""
        return ("\nQuestion:",) if self.style == "plain" else ()

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return nothing: these are for measuring."""
        return []

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return nothing: these are for measuring."""
        return []

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return nothing: the set has no second part."""
        return []

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return all prompts, the tasks in turn, so that the first `count` hold as many of each."""
        rows = [row for row in _read(self.data) if not self.tasks or row.task in self.tasks]
        seen: Counter[str] = Counter()
        place = []
        for row in rows:
            place.append(seen[row.task])
            seen[row.task] += 1
        order = sorted(range(len(rows)), key=lambda i: place[i])
        return list(number_repeats(self._prompt(rows[i]) for i in order[:count]))

    def answer(self, text: str) -> str | None:
        """Return the answer of a completion: its first line or, in style "instruct", what follows the last "Answer:".

        Quotation marks and emphasis around it fall away and spaces are single. None where there is no answer, or none
        under a thousand characters.
        """
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if self.style == "instruct":
            marked = [i for i, line in enumerate(lines) if _MARK.match(line)]
            lines = lines[marked[-1] :] if marked else lines
        if lines and (mark := _MARK.match(lines[0])):
            lines = [line for line in (lines[0][mark.end() :], *lines[1:2]) if line]
        found = _bare(lines[0][: LONGEST + 1]) if lines else ""
        return found if 0 < len(found) <= LONGEST else None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Compare the answer with the label; None where the prompt has none."""
        if prompt.gold is None:
            return None
        answer = self.answer(text)
        if answer is None:
            return False
        task = str(prompt.meta.get("category", ""))
        if task.startswith("contains"):
            return _yes_or_no(answer) == prompt.gold
        if task.endswith("_word"):
            return answer == _bare(prompt.gold)
        return _bare(answer.rstrip(".,;:!?")) == prompt.gold

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: no new questions are asked for."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return None: no new questions are asked for."""
        return None

    def _prompt(self, row: "Row") -> Prompt:
        kind = _kind(row.task, "cute")
        shown = [(kind.question.format(*given), label) for *given, label in kind.examples[: self.shots]]
        examples = "".join(f"Question: {question}\nAnswer: {label}\n\n" for question, label in shown)
        asked = f"Question: {kind.question.format(*row.inputs)}"
        if self.style == "plain":
            text = f"{examples}{asked}\nAnswer:"
        else:
            text = f"{examples}{asked}\n\nReply with one line: Answer: and then the answer, nothing else."
        meta = {"category": row.task, "level": kind.level, "random": row.task.endswith(_RANDOM)}
        return Prompt.from_text(text, gold=row.label, meta=meta | {"inputs": list(row.inputs)})


class Row(NamedTuple):
    """A row of the data."""

    task: str
    inputs: tuple[str, ...]
    label: str


@lru_cache(maxsize=2)
def _read(data: str) -> tuple[Row, ...]:
    file = Path(data) if Path(data).is_file() else split_file(Path(data), "cute")
    if file is None:
        raise InputError(f"{data} holds no cute.jsonl: give a directory with the set's file, or the file")
    return tuple(map(_row, read_table(file, _COLUMNS)))


def _row(record: Record) -> Row:
    task, inputs, label = (record.fields[name] for name in _COLUMNS)
    wanted = len(_kind(task, record.where).examples[0]) - 1
    if len(inputs) != wanted or not all(isinstance(given, str) and given for given in inputs):
        raise InputError(f"{record.where}: 'inputs' = {inputs!r:.60}; {task} takes {wanted} texts")
    if not label.strip():
        raise InputError(f"{record.where}: 'label' is empty; give the right answer")
    return Row(task, tuple(inputs), label)


def _kind(task: str, where: str) -> _Kind:
    base = task.removesuffix(_RANDOM)
    if base not in _KINDS or (base != task and base not in RANDOM):
        raise InputError(f"{where}: unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    return _KINDS[base]


def _bare(text: str) -> str:
    """Return the text with single spaces, without quotation marks or emphasis around it.

    >>> _bare(' **"t  h e"** ')
    't h e'
    """
    text = " ".join(text.split())
    while True:
        inner = next((text[len(a) : -len(b)] for a, b in _QUOTES if _is_wrapped(text, a, b)), None)
        if inner is None:
            return text
        text = inner.strip()


def _is_wrapped(text: str, before: str, after: str) -> bool:
    return len(text) > len(before) + len(after) and text.startswith(before) and text.endswith(after)


def _yes_or_no(answer: str) -> str | None:
    """Return Yes or No where the answer begins with one of them and nowhere says the other.

    >>> [_yes_or_no(text) for text in ("yes.", "No, it does not", "Yes or No", "Yesterday", "")]
    ['Yes', 'No', None, None, None]
    """
    words = re.findall(r"[a-z]+", answer.lower())
    said = {"yes", "no"} & set(words)
    return words[0].title() if len(said) == 1 and words[0] in said else None
