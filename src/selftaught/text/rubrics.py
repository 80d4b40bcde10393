r"""Rubrics: what a judge is asked, and the one way its verdict is read.

A pointwise rubric shows `{question}` and `{response}` and reads a number; a pairwise one shows `{question}`, `{first}`
and `{second}` and reads a label. Judges write untrusted text: the last verdict in it counts, a number outside the scale
is none, and nothing that could not be read becomes a default.

A user's rubric is a YAML file with the fields of `Rubric`, or a text file whose first line is `verdict: PATTERN` and
whose rest is the instruction.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selftaught.config import from_dict, read_yaml
from selftaught.errors import InputError
from selftaught.types import Prompt, Winner

RubricKind = Literal["pointwise", "pairwise"]

LONGEST_VERDICT = 20_000
"""Characters at the end of a judgment in which its verdict is looked for."""

_PLACES = {"pointwise": ("question", "response"), "pairwise": ("question", "first", "second")}
_SUFFIXES = (".yaml", ".yml", ".txt", ".md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """A judge prompt and its parser.

    `verdict` is a regular expression with one group: a number within `scale` (both ends included) or one of `labels`,
    the texts that name the first response, the second and, where there is a third, a tie.
    """

    name: str
    kind: RubricKind
    instruction: str
    verdict: str
    scale: tuple[float, float] = (0.0, 10.0)
    labels: tuple[str, ...] = ("A", "B")

    def __post_init__(self) -> None:
        if not self.verdict:
            raise InputError(
                rf"rubric {self.name!r} has no parser: give verdict, a pattern with one group such as \[\[([AB])\]\]"
            )
        try:
            groups = re.compile(self.verdict).groups
        except re.error as error:
            raise InputError(
                f"rubric {self.name!r}: verdict {self.verdict!r} is no regular expression: {error}; mend it"
            ) from None
        if groups != 1:
            raise InputError(f"rubric {self.name!r}: verdict {self.verdict!r} has {groups} groups; give it exactly one")
        lacking = [place for place in _PLACES[self.kind] if f"{{{place}}}" not in self.instruction]
        if lacking:
            raise InputError(
                f"rubric {self.name!r} does not show {{{lacking[0]}}}: a {self.kind} instruction needs "
                + ", ".join(f"{{{place}}}" for place in _PLACES[self.kind])
            )
        if not self.scale[0] < self.scale[1]:
            raise InputError(
                f"rubric {self.name!r}: scale={self.scale} is empty; give the lowest value, then the highest"
            )
        if len(set(self.labels)) != len(self.labels) or len(self.labels) not in (2, 3):
            raise InputError(f"rubric {self.name!r}: labels={self.labels}; name the first, the second and maybe a tie")


def question_of(prompt: Prompt) -> str:
    """Return what a judge is shown as the question: the bare problem where `meta` has it, else the conversation."""
    if "problem" in prompt.meta:
        return str(prompt.meta["problem"])
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt.messages)


def fill(rubric: Rubric, **texts: str) -> str:
    """Return the instruction with its places filled in one pass: braces inside a text stay what they are.

    >>> rubric = Rubric(name="r", kind="pointwise", instruction="{question} / {response}", verdict=r"(\\d+)")
    >>> fill(rubric, question="{response}?", response="yes")
    '{response}? / yes'
    """
    places = "|".join(_PLACES[rubric.kind])
    return re.sub(rf"\{{({places})\}}", lambda place: texts[place.group(1)], rubric.instruction)


def read_score(rubric: Rubric, text: str) -> tuple[float | None, str]:
    """Return the last number that the pattern finds, or None and why there is none.

    >>> read_score(HELPFULNESS, "Good, though long. [[7]]")
    (7.0, '')
    >>> read_score(HELPFULNESS, "[[70]]")
    (None, 'outside the scale')
    """
    found = _last(rubric, text)
    if found is None:
        return None, "no verdict found"
    try:
        value = float(found)
    except ValueError:
        return None, "no number"
    low, high = rubric.scale
    return (value, "") if low <= value <= high else (None, "outside the scale")


def read_winner(rubric: Rubric, text: str) -> tuple[Winner | None, str]:
    """Return what the last label that the pattern finds says, or None and why there is none.

    >>> read_winner(BETTER, "At first [[A]]; on reflection [[C]]")
    ('tie', '')
    >>> read_winner(BETTER, "Both are fine.")
    (None, 'no verdict found')
    """
    found = _last(rubric, text)
    if found is None:
        return None, "no verdict found"
    if found not in rubric.labels:
        return None, "unknown label"
    names: tuple[Winner, ...] = ("first", "second", "tie")
    return names[rubric.labels.index(found)], ""


def _last(rubric: Rubric, text: str) -> str | None:
    found = [match.group(1) for match in re.finditer(rubric.verdict, text[-LONGEST_VERDICT:])]
    return found[-1].strip() if found and found[-1] is not None else None


def load_rubric(name: str) -> Rubric:
    """Return the built-in rubric called `name`, or the one in that file.

    Raises:
        InputError: there is neither; the file cannot be read; it gives no parser.
    """
    if name in RUBRICS:
        return RUBRICS[name]
    path = Path(name)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"no rubric is called {name!r}: known are {', '.join(RUBRICS)}; or give a .yaml or .txt file")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_fields(path, read_yaml(path))
    try:
        head, _, instruction = path.read_text(encoding="utf-8").partition("\n")
    except OSError as error:
        raise InputError(f"rubric {path}: {error.strerror}; give an existing file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"rubric {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    label, colon, pattern = head.partition(":")
    if label.strip().lower() != "verdict" or not colon:
        raise InputError(f"rubric {path} has no parser: let its first line be 'verdict: PATTERN', with one group")
    return _from_fields(path, {"instruction": instruction.strip(), "verdict": pattern.strip()})


def _from_fields(path: Path, fields: Mapping[str, object]) -> Rubric:
    if not fields.get("verdict"):
        raise InputError(rf"rubric {path} has no parser: give verdict, a pattern with one group such as \[\[(\d+)\]\]")
    shown = str(fields.get("instruction", ""))
    kind = "pairwise" if "{first}" in shown or "{second}" in shown else "pointwise"
    return from_dict(Rubric, {"name": path.stem, "kind": kind, **fields})


HELPFULNESS = Rubric(
    name="helpfulness",
    kind="pointwise",
    verdict=r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]",
    instruction="""\
Rate how well a response serves the person who asked. Judge what it says, not how long or how polished it is: is it \
right, does it cover what was asked, is it clear, and does it leave out what was not wanted? First say in a few \
sentences what is good and what is lacking. Then give one number from 0 (useless or harmful) to 10 (could not be \
better) in double square brackets on a line of its own, like [[4]].

# What was asked
{question}

# Response
{response}

# Your rating""",
)

BETTER = Rubric(
    name="better",
    kind="pairwise",
    verdict=r"\[\[\s*([ABC])\s*\]\]",
    labels=("A", "B", "C"),
    instruction="""\
Compare two responses to the same request and decide which serves the person better. Look first for mistakes in each, \
plain ones and subtle ones; then weigh what matters for this request, such as being right, complete, relevant and \
clear. The order in which the two are shown, their length and their tone must not sway you. Explain briefly, then end \
with [[A]] if response A is better, [[B]] if response B is better, or [[C]] if neither is.

# Request
{question}

# Response A
{first}

# Response B
{second}

# Your comparison""",
)

INSTRUCTION_FOLLOWING = Rubric(
    name="instruction_following",
    kind="pairwise",
    verdict=r"\[\[\s*([AB])\s*\]\]",
    instruction="""\
Decide which of two outputs follows an instruction more exactly. What counts is whether the output does what the \
instruction says, all of it and nothing else. An output that answers another question, however well it is written, \
does not follow the instruction. Only between outputs that follow it equally do correctness and clarity decide. The \
order of the outputs says nothing about them. Explain in one or two sentences, then end with [[A]] or [[B]]; there is \
no tie.

# Instruction
{question}

# Output A
{first}

# Output B
{second}

# Your decision""",
)

RUBRICS = {rubric.name: rubric for rubric in (HELPFULNESS, BETTER, INSTRUCTION_FOLLOWING)}
