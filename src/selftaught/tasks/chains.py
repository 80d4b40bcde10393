"""Arithmetic chains: variables defined one from another, modulo a small number, and the value of the last is asked.

    prompt        a=7;b=a*5;c=b-8;c?
    whole chain   b=7*5=5\nc=5-8=7\n#### 7
    answer only   #### 7

The dial that matters for self-training is `answer_only`: a seed model that has seen many bare answers and few
derivations prefers an unreliable shortcut to a reliable derivation, so that its samples disagree and the majority is
right more often than the greedy answer. `<new>` asks for a problem, and demonstrations teach that too.

A problem's split follows from a hash of its text: no seed and no dial can put one problem in two splits, and a problem
that a model writes itself is recognised as a held-out one and refused.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import ClassVar

from selftaught.errors import InputError
from selftaught.tasks.drawing import Split, below, check_shares, in_split, seeded, split_at
from selftaught.tasks.task import demonstrate
from selftaught.text.answers import marked_number
from selftaught.types import Demonstration, Prompt, content_share, number_repeats

NEW_PROBLEM = "<new>"
"""The prompt that asks for a new problem."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LONGEST = 400

_PROBLEM = re.compile(r"[a-z]=[0-9]{1,9}(?:;[a-z]=[a-z0-9]{1,9}[-+*][a-z0-9]{1,9})*;[a-z]\?")
_EXPRESSION = re.compile(r"([a-z0-9]+)(?:([-+*])([a-z0-9]+))?")
_LOOKS_LIKE = re.compile(r"[a-z]=[^?\s]+;[a-z]\?")
_OPERATIONS = {"+": lambda u, v: u + v, "-": lambda u, v: u - v, "*": lambda u, v: u * v}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """The world with its dials. Lengths count steps (operations), both ends included.

    `answer_only` is the share of demonstrations with a bare answer, `new_problems` the share that write a problem for
    `<new>`, `variable_operands` the share of steps whose second operand is an earlier variable. Written operands go
    from 1 to `largest_operand` (`modulus` - 1); `multipliers`, where given, are those of products. `limit` bounds
    `train`.
    """

    name: ClassVar[str] = "chains"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # Two chains that differ in one digit are two problems.

    modulus: int = 10
    lengths: tuple[int, int] = (3, 6)
    demonstration_lengths: tuple[int, int] | None = None
    operations: str = "+-*"
    largest_operand: int | None = None
    multipliers: tuple[int, ...] = ()
    variable_operands: float = 0.25
    answer_only: float = 0.6
    new_problems: float = 0.1
    limit: int | None = None

    def __post_init__(self) -> None:
        for low, high in (self.lengths, self.demonstration_lengths or self.lengths):
            if not 1 <= low <= high < len(_LETTERS):
                raise InputError(f"chains: lengths {low} to {high} are not within 1 to 25; give the shorter first")
        if self.modulus < 2 or not self.operations or not set(self.operations) <= set(_OPERATIONS):
            raise InputError(f"chains: modulus={self.modulus} operations={self.operations!r}; use >= 2 and some of +-*")
        check_shares(self, "answer_only", "new_problems", "variable_operands")

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (8,000) demonstrations in the world's mix of bare answers, whole chains and new problems."""
        lengths = self.demonstration_lengths or self.lengths
        rows: list[tuple[Prompt, str]] = []
        for prompt in islice(self._problems("demonstrations", lengths, seed), 8000 if count is None else count):
            if content_share("chains", "new", seed, prompt.text) < self.new_problems:
                rows.append((Prompt.from_text(NEW_PROBLEM), prompt.text))
            elif content_share("chains", "style", seed, prompt.text) < self.answer_only:
                rows.append((prompt, f"#### {prompt.gold}"))
            else:
                rows.append((prompt, self.solution(prompt)))
        prompts = number_repeats(prompt for prompt, _ in rows)
        return [demonstrate(prompt, text) for prompt, (_, text) in zip(prompts, rows, strict=True)]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 4,000) training prompts from position `start` of the seed's endless order."""
        count = min(4000 if count is None else count, self.limit or 10**9)
        return list(islice(self._problems("train", self.lengths, seed), start, start + count))

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (200) dev prompts."""
        return list(islice(self._problems("dev", self.lengths, 0), 200 if count is None else count))

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (500) test prompts."""
        return list(islice(self._problems("test", self.lengths, 0), 500 if count is None else count))

    def answer(self, text: str) -> str | None:
        """Return the key of the number behind the last `####`."""
        return marked_number(text)

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Compare the answer with the interpreter's; None where the prompt is no sound problem."""
        values = self.values(prompt.text)
        return None if values is None else self.answer(text) == str(values[prompt.text[-2]])

    def verify_steps(self, prompt: Prompt, text: str) -> list[tuple[int, int, bool]] | None:
        """Return (start, end, right) for every line of a completion, None where the prompt is no sound problem.

        A step is right where it restates the problem's definition with the true values and result; the last line
        where it gives the true answer. A line that is neither is wrong.

        >>> Chains().verify_steps(Prompt.from_text("a=7;b=a*5;b?"), "b=7*5=5\\n#### 6")
        [(0, 7, True), (8, 14, False)]
        """
        values = self.values(prompt.text)
        if values is None:
            return None
        true_steps = set(self.solution(prompt).split("\n"))
        spans, start = [], 0
        for line in text.split("\n"):
            if line.strip():
                spans.append((start, start + len(line), line.strip() in true_steps))
            start += len(line) + 1
        return spans

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return `count` times the prompt `<new>`; the model has learnt from demonstrations what a problem is."""
        return list(number_repeats(Prompt.from_text(NEW_PROBLEM) for _ in range(count)))

    def parse_problem(self, text: str) -> Prompt | None:
        """Return a generated problem, sound or not (votes sort that out), unless it is a dev or test problem."""
        problem = text.strip()
        if len(problem) > _LONGEST or not _LOOKS_LIKE.fullmatch(problem) or split_of(problem) in ("test", "dev"):
            return None
        return Prompt.from_text(problem, meta={"generated": True})

    def values(self, problem: str) -> dict[str, int] | None:
        """Interpret a problem: the value of each variable modulo `modulus`, None where it is not sound.

        >>> Chains(modulus=10).values("a=7;b=a*5;c=b-8;c?")
        {'a': 7, 'b': 5, 'c': 7}
        """
        if len(problem) > _LONGEST or not _PROBLEM.fullmatch(problem):
            return None
        values: dict[str, int] = {}
        for assignment in problem.split(";")[:-1]:
            variable, expression = assignment.split("=")
            result = _evaluate(expression, values)
            if variable in values or result is None:
                return None
            values[variable] = result % self.modulus
        return values if problem[-2] in values else None

    def solution(self, prompt: Prompt) -> str:
        """Return the whole chain of a sound problem, one step a line, and the answer."""
        values = self.values(prompt.text) or {}
        lines = []
        for assignment in prompt.text.split(";")[1:-1]:
            variable, expression = assignment.split("=")
            shown = re.sub(r"[a-z]", lambda name: str(values[name.group()]), expression)
            lines.append(f"{variable}={shown}={values[variable]}")
        return "\n".join([*lines, f"#### {values[prompt.text[-2]]}"])

    def _problems(self, split: Split, lengths: tuple[int, int], seed: int) -> Iterator[Prompt]:
        """Yield the split's problems without repeats, in an order that the seed and the dials fix."""
        dials = (
            self.modulus,
            lengths,
            self.operations,
            self.variable_operands,
            self.largest_operand,
            self.multipliers,
        )
        source = seeded("chains", split, seed, *dials)
        complaint = (
            f"chains: only {{count}} problems of lengths {lengths} modulo {self.modulus} are in split {split!r}; "
            "ask for fewer or raise the lengths or the modulus"
        )
        draw = partial(self._draw, source, lengths)
        for text, length in in_split(split, draw, itemgetter(0), split_of, complaint):
            gold = str((self.values(text) or {})[text[-2]])
            yield Prompt.from_text(text, gold=gold, meta={"length": length})

    def _draw(self, source: random.Random, lengths: tuple[int, int]) -> tuple[str, int]:
        length = lengths[0] + below(source, lengths[1] - lengths[0] + 1)
        parts = [f"a={below(source, self.modulus)}"]
        for step in range(1, length + 1):
            operation = self.operations[below(source, len(self.operations))]
            if source.random() < self.variable_operands:
                operand = _LETTERS[below(source, step)]
            else:
                operand = str(self._operand(source, operation))
            parts.append(f"{_LETTERS[step]}={_LETTERS[step - 1]}{operation}{operand}")
        return ";".join([*parts, f"{_LETTERS[length]}?"]), length

    def _operand(self, source: random.Random, operation: str) -> int:
        if operation == "*" and self.multipliers:
            return self.multipliers[below(source, len(self.multipliers))]
        return 1 + below(source, self.largest_operand or self.modulus - 1)


def _evaluate(expression: str, values: dict[str, int]) -> int | None:
    """Return an unreduced `u`, `u+v`, `u-v` or `u*v`, None where an operand is no number and has no value."""
    parts = _EXPRESSION.fullmatch(expression)
    if parts is None:
        return None
    first, operation, second = parts.groups()
    u = int(first) if first.isdecimal() else values.get(first)
    v = 0 if second is None else int(second) if second.isdecimal() else values.get(second)
    return None if u is None or v is None else _OPERATIONS[operation or "+"](u, v)


def split_of(problem: str) -> Split:
    """Return the split a problem belongs to."""
    return split_at(content_share("chains", "split", problem))
