"""Lazy side steps: chains of digits in which some steps cannot be seen in the answer.

    prompt       a3ba+4cb*2db-adc+5ed*3?      a = 3, b = a + 4, c = b * 2, ... modulo 10; the last variable is asked
    completion   b3+47c7*24d7-34...#9         per variable its name, both operands as written before, and the result

One or two of the definitions before the last are side steps: nothing refers to them again, so a wrong result there
cannot reach the answer. Demonstrations are lazy: a lazy line copies its first operand as its result, on side steps with
probability `lazy`. Right answers above wrong steps are thus in the data, and no reward on the answer speaks of them.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ClassVar, NamedTuple

from selftaught.errors import InputError
from selftaught.tasks.drawing import Split, below, check_shares, in_split, seeded, split_at
from selftaught.tasks.task import demonstrate
from selftaught.types import Demonstration, Prompt, content_share

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PROBLEM = re.compile(r"a[0-9](?:[b-z][a-z][-+*][a-z0-9])+\?")
_LINE, _ANSWER = 5, re.compile(r"#([0-9])")
_OPERATIONS = {"+": lambda u, v: u + v, "-": lambda u, v: u - v, "*": lambda u, v: u * v}


class Definition(NamedTuple):
    """`name = first operation second`; `side` where nothing refers to it."""

    name: str
    first: str
    operation: str
    second: str
    side: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SideSteps:
    """The world with its dials. `variables` counts the given one; `side_steps` says how many side steps there may be.

    `lazy` is the share of lazy lines on side steps, `lazy_products` on other products and `lazy_others` on the rest.
    `older_operands` is the share of live steps whose second operand is an older live variable. `limit` bounds `train`.
    """

    name: ClassVar[str] = "side_steps"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # Two problems that differ in one digit are two problems.

    variables: int = 6
    side_steps: tuple[int, int] = (1, 2)
    lazy: float = 0.4
    lazy_products: float = 0.5
    lazy_others: float = 0.05
    older_operands: float = 0.3
    limit: int | None = None

    def __post_init__(self) -> None:
        low, high = self.side_steps
        if not 3 <= self.variables <= 26 or not 0 <= low <= high <= self.variables - 2:
            raise InputError(
                f"side_steps: variables={self.variables}, side_steps={self.side_steps}; give 3 to 26 variables, and "
                "the smaller number of side steps first, at most two fewer than variables"
            )
        check_shares(self, "lazy", "lazy_products", "lazy_others", "older_operands")

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (4,000) demonstrations with lazy lines."""
        prompts = islice(self._problems("demonstrations", seed), 4000 if count is None else count)
        return [demonstrate(prompt, self.solution(prompt, seed)) for prompt in prompts]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 4,000) training prompts from position `start` of the seed's endless order."""
        count = min(4000 if count is None else count, self.limit or 10**9)
        return list(islice(self._problems("train", seed), start, start + count))

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (200) dev prompts."""
        return list(islice(self._problems("dev", 0), 200 if count is None else count))

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (600) test prompts."""
        return list(islice(self._problems("test", 0), 600 if count is None else count))

    def answer(self, text: str) -> str | None:
        """Return the digit behind the last `#`."""
        found = _ANSWER.findall(text)
        return found[-1] if found else None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Compare the answer with the true value of the last variable; None where the prompt is no sound problem."""
        values = self.values(prompt.text)
        return None if values is None else self.answer(text) == str(values[max(values)])

    def verify_steps(self, prompt: Prompt, text: str) -> list[tuple[int, int, bool]] | None:
        """Return (start, end, right) for every line and the answer, None where the prompt is no sound problem.

        A line is right where its operands are the values *written* before (or given) and its result follows from them,
        the answer where it repeats the last written value. Text of another form is one step, and wrong.

        >>> SideSteps().verify_steps(Prompt.from_text("a3ba+4cb*2?"), "b3+43c3*26#6")
        [(0, 5, False), (5, 10, True), (10, 12, True)]
        """
        definitions = _parse(prompt.text)
        if definitions is None or not text:
            return None if definitions is None else []
        form = "".join(rf"{d.name}[0-9]\{d.operation}[0-9]{{2}}" for d in definitions) + "#[0-9]"
        if not re.fullmatch(form, text):
            return [(0, len(text), False)]
        written = {"a": prompt.text[1]}
        spans = []
        for i, d in enumerate(definitions):
            start = i * _LINE
            first, second, result = (text[start + place] for place in (1, 3, 4))
            operands = (written[d.first], written.get(d.second, d.second))
            right = (first, second) == operands and result == _digit(first, d.operation, second)
            spans.append((start, start + _LINE, right))
            written[d.name] = result
        return [*spans, (len(text) - 2, len(text), text[-1] == written[definitions[-1].name])]

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: this world's model writes no problems."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return None: this world's model writes no problems."""
        return None

    def values(self, problem: str) -> dict[str, int] | None:
        """Return the true value of each variable, None where the problem is not sound.

        >>> SideSteps().values("a3ba+4cb*2?")
        {'a': 3, 'b': 7, 'c': 4}
        """
        definitions = _parse(problem)
        if definitions is None:
            return None
        known = {"a": problem[1]}
        for d in definitions:
            known[d.name] = _digit(known[d.first], d.operation, known.get(d.second, d.second))
        return {name: int(digit) for name, digit in known.items()}

    def solution(self, prompt: Prompt, seed: int | None = None) -> str:
        """Return the lines and the answer of a sound problem, lazy by the lot of `seed`; without a seed never lazy."""
        written = {"a": prompt.text[1]}
        lines = []
        for d in _parse(prompt.text) or ():
            first, second = written[d.first], written.get(d.second, d.second)
            chance = self.lazy if d.side else self.lazy_products if d.operation == "*" else self.lazy_others
            lazy = seed is not None and content_share("side steps", "lazy", seed, prompt.text, d.name) < chance
            written[d.name] = first if lazy else _digit(first, d.operation, second)
            lines.append(f"{d.name}{first}{d.operation}{second}{written[d.name]}")
        return "".join(lines) + f"#{written[max(written)]}"

    def _problems(self, split: Split, seed: int) -> Iterator[Prompt]:
        """Yield the split's problems without repeats, in an order that the seed and the dials fix."""
        dials = (self.variables, self.side_steps, self.older_operands)
        source = seeded("side steps", split, seed, *dials)
        complaint = f"side_steps: only {{count}} problems of {self.variables} variables; ask for fewer or raise it"
        for text in in_split(split, partial(self._draw, source), str, split_of, complaint):
            values = self.values(text) or {}
            yield Prompt.from_text(text, gold=str(values[max(values)]))

    def _draw(self, source: random.Random) -> str:
        inner = list(_LETTERS[1 : self.variables - 1])
        low, high = self.side_steps
        side = set()
        for _ in range(low + below(source, high - low + 1)):
            side.add(inner.pop(below(source, len(inner))))
        live, parts = ["a"], [f"a{below(source, 10)}"]
        for name in _LETTERS[1 : self.variables]:
            operation = "+-*"[below(source, 3)]
            least = 2 if operation == "*" else 1
            second = str(least + below(source, 10 - least))
            if name not in side and len(live) > 1 and source.random() < self.older_operands:
                second = live[below(source, len(live) - 1)]
            parts.append(f"{name}{live[-1]}{operation}{second}")
            live += [] if name in side else [name]
        return "".join(parts) + "?"


def _parse(problem: str) -> list[Definition] | None:
    """Return the definitions of a problem, None where it is not sound."""
    if len(problem) > 4 * len(_LETTERS) or not _PROBLEM.fullmatch(problem):
        return None
    fields = [tuple(problem[i : i + 4]) for i in range(2, len(problem) - 1, 4)]
    used = {part for _, first, _, second in fields for part in (first, second)} | {fields[-1][0]}
    for i, (name, first, _, second) in enumerate(fields):
        earlier = _LETTERS[: i + 1]
        if name != _LETTERS[i + 1] or first not in earlier or (second not in earlier and not second.isdecimal()):
            return None
    return [Definition(name, first, sign, second, name not in used) for name, first, sign, second in fields]


def _digit(first: str, operation: str, second: str) -> str:
    return str(_OPERATIONS[operation](int(first), int(second)) % 10)


def split_of(problem: str) -> Split:
    """Return the split a problem belongs to."""
    return split_at(content_share("side steps", "split", problem))
