"""Chains of sums to be answered at once or after thinking, for Thought Preference Optimization (arXiv 2410.10630).

    problem     a3ba+4cb*a       a is 3, b is a+4, c is b*a, modulo 10; the value of the last is asked
    direct      a3ba+4cb*a?      #1
    thought     a3ba+4cb*aT      b3+47c7*31#1

A prompt ends in its mode: `?` asks for an answer, `T` for a thought and an answer; what follows `#` is the response.
The thoughts of demonstrations are of three kinds: *useful* (every operation, all right), *partial* (`~`, all operations
but the last, then the last value written or, half of the time, a random digit as answer) and *filler* (4 to 12 dots,
then the true answer, which has to be guessed). A model that has seen mostly the last two answers worse with thoughts
than without, though it has the good ones in it: what the method is to find.

A problem's split follows from a hash of its text, so that none is in two splits.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

from selftaught.errors import InputError
from selftaught.tasks.drawing import Split, below, check_shares, in_split, seeded, split_at
from selftaught.tasks.task import demonstrate
from selftaught.text.thoughts import ThoughtFormat, ask
from selftaught.types import Demonstration, Prompt, content_share, number_repeats

Kind = Literal["useful", "partial", "filler", "other"]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PROBLEM = re.compile(r"a[0-9](?:[b-z][a-z][-+*][a-z0-9])*")
_WORKING = re.compile(r"(?:[b-z][0-9][-+*][0-9][0-9])+")
_OPERATIONS = {"+": lambda u, v: u + v, "-": lambda u, v: u - v, "*": lambda u, v: u * v}

THINK = ThoughtFormat(name="generic", after="T", response="#", strict=True)
ANSWER = ThoughtFormat(name="none", after="?", response="#", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtChains:
    """The world with its dials. `operations` are the fewest and the most of a problem.

    `thoughts` is the share of demonstrations with a thought, `useful`, `partial` and the rest (filler) are shares of
    those. `earlier` is the chance that an operation's second operand is an earlier variable. `limit` bounds `train`.
    """

    name: ClassVar[str] = "thought_chains"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # Two problems that differ in one digit are two problems.

    operations: tuple[int, int] = (2, 4)
    thoughts: float = 0.7
    useful: float = 0.15
    partial: float = 0.55
    earlier: float = 0.3
    limit: int | None = None

    def __post_init__(self) -> None:
        low, high = self.operations
        if not 1 <= low <= high < len(_LETTERS):
            raise InputError(f"thought_chains: operations={self.operations}: give 1 to 25, the fewest first")
        check_shares(self, "thoughts", "useful", "partial", "earlier")
        if self.useful + self.partial > 1 + 1e-9:
            raise InputError(
                f"thought_chains: useful={self.useful} and partial={self.partial} are more than all thoughts; lower one"
            )

    @property
    def thought_formats(self) -> Mapping[str, ThoughtFormat]:
        """How this world's prompts ask for a thought ("generic") and for a bare answer ("none")."""
        return MappingProxyType({"generic": THINK, "none": ANSWER})

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (8,000) demonstrations in the world's mix of direct answers and kinds of thoughts."""
        rows: list[tuple[Prompt, str]] = []
        for prompt in islice(self._problems("demonstrations", seed), 8000 if count is None else count):
            if content_share("thought_chains", "mode", seed, prompt.text) < self.thoughts:
                rows.append((ask(THINK, prompt), self._thought(prompt, seed)))
            else:
                rows.append((ask(ANSWER, prompt), f"#{prompt.gold}"))
        prompts = number_repeats(prompt for prompt, _ in rows)
        return [demonstrate(prompt, text) for prompt, (_, text) in zip(prompts, rows, strict=True)]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 4,000) problems without mode from position `start` of the seed's order."""
        count = min(4000 if count is None else count, self.limit or 10**9)
        return list(islice(self._problems("train", seed), start, start + count))

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (200) dev problems."""
        return list(islice(self._problems("dev", 0), 200 if count is None else count))

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (600) test problems."""
        return list(islice(self._problems("test", 0), 600 if count is None else count))

    def answer(self, text: str) -> str | None:
        """Return the digit that a response ends in."""
        last = text.rstrip()[-1:]
        return last if last.isascii() and last.isdigit() else None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether a response ends in the right digit; None for a prompt without gold answer."""
        return None if prompt.gold is None else self.answer(text) == prompt.gold

    @property
    def thought_kinds(self) -> tuple[Kind, ...]:
        """What `thought_kind` can say."""
        return get_args(Kind)

    def thought_kind(self, thought: str) -> Kind:
        """Say what kind a thought is by its form, right or wrong; "other" is none of the demonstrated kinds.

        >>> [ThoughtChains().thought_kind(thought) for thought in ("b3+47", "~", "....", "?")]
        ['useful', 'partial', 'filler', 'other']
        """
        if _WORKING.fullmatch(thought):
            return "useful"
        if thought.startswith("~"):
            return "partial"
        return "filler" if thought and not thought.strip(".") else "other"

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: models do not write problems of this world."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return nothing, as above."""
        return None

    def working(self, problem: str) -> list[str] | None:
        """Return one line per operation, name, operands and result; None where the problem is not sound.

        >>> ThoughtChains().working("a3ba+4cb*a")
        ['b3+47', 'c7*31']
        """
        if not _PROBLEM.fullmatch(problem):
            return None
        values, lines = {"a": int(problem[1])}, []
        for i in range(2, len(problem), 4):
            name, first, operation, second = list(problem[i : i + 4])
            if name in values or first not in values or (second not in values and not second.isdigit()):
                return None
            u, v = values[first], values[second] if second in values else int(second)
            values[name] = _OPERATIONS[operation](u, v) % 10
            lines.append(f"{name}{u}{operation}{v}{values[name]}")
        return lines

    def _thought(self, prompt: Prompt, seed: int) -> str:
        """Return a demonstration's thought and answer, fixed by the problem and the seed."""
        source = seeded("thought", seed, prompt.text)
        lines = self.working(prompt.text) or []
        kind = source.random()
        if kind < self.useful:
            return f"{''.join(lines)}#{prompt.gold}"
        if kind < self.useful + self.partial:
            shown = "".join(lines[:-1])
            guessed = source.random() < 0.5 or not shown
            return f"~{shown}#{below(source, 10) if guessed else shown[-1]}"
        return f"{'.' * (4 + below(source, 9))}#{prompt.gold}"

    def _problems(self, split: Split, seed: int) -> Iterator[Prompt]:
        """Yield the split's problems without repeats, in an order that the seed and the dials fix."""
        source = seeded("thought_chains", split, seed, self.operations, self.earlier)
        complaint = (
            f"thought_chains: only {{count}} problems of {self.operations} operations are in split {split!r}; "
            "ask for fewer or raise the operations"
        )
        for text, length in in_split(split, partial(self._draw, source), itemgetter(0), split_of, complaint):
            gold = (self.working(text) or [""])[-1][-1]
            yield Prompt.from_text(text, gold=gold, meta={"length": length})

    def _draw(self, source: random.Random) -> tuple[str, int]:
        length = self.operations[0] + below(source, self.operations[1] - self.operations[0] + 1)
        parts = [f"a{below(source, 10)}"]
        for step in range(1, length + 1):
            operation = "+-*"[below(source, 3)]
            earlier = source.random() < self.earlier
            operand = _LETTERS[below(source, step)] if earlier else str(1 + below(source, 9))
            parts.append(f"{_LETTERS[step]}{_LETTERS[step - 1]}{operation}{operand}")
        return "".join(parts), length


def split_of(problem: str) -> Split:
    """Return the split a problem belongs to."""
    return split_at(content_share("thought_chains", "split", problem))
