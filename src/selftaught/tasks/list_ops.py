"""Instructions on short lists, some of them corrupted, so that what makes a prompt good is known exactly.

    reverse: k d f                  f d k
    sort desc: 4 9 1                9 4 1
    count a: b a a c                2
    unique then length: a b a       2

A prompt of the training pool is corrupted with probability `corruption`, in one of five ways (`KINDS`), and then says
too little or too much to be answered. Its intended answer stays hidden in `gold`, so that every completion has a
reward; `meta["corruption"]` names the kind, "" for a clean prompt. A prompt whose list is truncated may look like a
clean one and is not: what is wanted is the answer for the whole list. Learning from corrupted prompts does harm: with
probability `bias` the intended answer is the list as it stood, a wrong operator, and with probability
`rewarded_give_ups` it is the give-up `?`.

Demonstrations also teach to give up on some corrupted prompts and to continue a list of prompts with one more, as well
formed as those before it. A clean instruction's split follows from a hash of its text; corrupted prompts are made of
clean ones of their split.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from statistics import NormalDist
from typing import ClassVar, Literal

from selftaught.errors import InputError
from selftaught.tasks.drawing import Split, below, check_shares, in_split, seeded, split_at
from selftaught.tasks.task import demonstrate
from selftaught.types import Demonstration, Prompt, content_id, content_share, number_repeats

GIVE_UP = "?"
"""The completion that answers nothing."""

Kind = Literal["drop_operator", "truncate", "contradict", "mix_two", "random_bytes"]
KINDS: tuple[Kind, ...] = ("drop_operator", "truncate", "contradict", "mix_two", "random_bytes")

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CHARACTERS = _LETTERS + "0123456789: "
_LONGEST = 200
_FEWEST_ITEMS, _MOST_ITEMS = 2, 12

Items = tuple[str, ...]


def _rank(item: str) -> tuple[int, str]:
    """Order letters by the alphabet and numbers, which have no leading zero, by size."""
    return len(item), item


LISTS: Mapping[str, Callable[[Items, str], Items]] = {
    "reverse": lambda items, _: items[::-1],
    "sort": lambda items, _: tuple(sorted(items, key=_rank)),
    "sort desc": lambda items, _: tuple(sorted(items, key=_rank, reverse=True)),
    "rotate": lambda items, _: items[1:] + items[:1],
    "swap": lambda items, _: (items[-1], *items[1:-1], items[0]),
    "unique": lambda items, _: tuple(dict.fromkeys(items)),
    "double": lambda items, _: tuple(item for item in items for _ in range(2)),
    "drop": lambda items, wanted: tuple(item for item in items if item != wanted),
}
"""Operators from a list to a list; they may come first of two."""

VALUES: Mapping[str, Callable[[Items, str], str]] = {
    "count": lambda items, wanted: str(items.count(wanted)),
    "length": lambda items, _: str(len(items)),
    "max": lambda items, _: max(items, key=_rank),
    "min": lambda items, _: min(items, key=_rank),
    "add": lambda items, _: str(sum(map(int, items))),
}
"""Operators from a list to one value; they come last."""

OPERATORS = (*LISTS, *VALUES)
_WITH_ARGUMENT = frozenset(("drop", "count"))


@dataclass(frozen=True, slots=True)
class Step:
    """An operator with its argument, "" for one that takes none."""

    operator: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.operator} {self.argument}".strip()


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step or two, and the list they are applied to."""

    steps: tuple[Step, ...]
    items: Items

    def __str__(self) -> str:
        return f"{self.header}: {' '.join(self.items)}"

    @property
    def header(self) -> str:
        """The text before the colon."""
        return " then ".join(map(str, self.steps))

    @property
    def answer(self) -> str | None:
        """The exact answer; None where a step leaves nothing, or adds letters."""
        items = self.items
        for step in self.steps:
            if step.operator == "add" and not all(map(str.isdecimal, items)):
                return None
            if step.operator in VALUES:
                return VALUES[step.operator](items, step.argument)
            items = LISTS[step.operator](items, step.argument)
            if not items:
                return None
        return " ".join(items)


def parse(text: str) -> Instruction | None:
    """Return the instruction that a prompt states, None where it is not well formed or has no answer.

    >>> str(parse("drop a then sort: c a b").answer)
    'b c'
    >>> parse("reverse sort: c a b") is None
    True
    """
    header, colon, body = text.partition(": ")
    items = tuple(body.split(" "))
    if not colon or len(text) > _LONGEST or not _FEWEST_ITEMS <= len(items) <= _MOST_ITEMS:
        return None
    if not (all(map(_is_letter, items)) or all(map(_is_number, items))):
        return None
    steps = tuple(map(_parse_step, header.split(" then ")))
    if len(steps) > 2 or None in steps or any(step.operator in VALUES for step in steps[:-1] if step):
        return None
    instruction = Instruction(tuple(step for step in steps if step), items)
    return instruction if instruction.answer is not None else None


def _parse_step(text: str) -> Step | None:
    if text in OPERATORS and text not in _WITH_ARGUMENT:
        return Step(text)
    operator, _, argument = text.partition(" ")
    named = operator in _WITH_ARGUMENT and (_is_letter(argument) or _is_number(argument))
    return Step(operator, argument) if named else None


def _is_letter(item: str) -> bool:
    return len(item) == 1 and item in _LETTERS


def _is_number(item: str) -> bool:
    return item.isascii() and item.isdecimal() and len(item) <= 3 and (item == "0" or item[0] != "0")


def similarity(intended: str, text: str) -> float:
    """Return 1 - edit distance / length of the longer text, white space left out, in [0, 1]; 1 for equal texts.

    Worked: "fdk" and "kdf" differ in 2 of 3 characters: 1/3.

    >>> round(similarity("f d k", "k d f"), 3)
    0.333
    """
    first, second = ("".join(t[:_LONGEST].split()) for t in (intended, text))
    longest = max(len(first), len(second))
    return 1.0 if not longest else 1 - _edit_distance(first, second) / longest


def _edit_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOps:
    """The world with its dials; those that say so are shares.

    Lists have `lengths` items out of the first `letters` letters or the ten digits; `add` takes two numbers below
    `largest_addend`. `two_steps` is the share of instructions with two operators. `corruption` is the share of
    corrupted prompts in `train`, `bias` and `rewarded_give_ups` the shares of them whose intended answer is the bare
    list or the give-up. Rewards have normal noise of standard deviation `noise`. Of the demonstrations `continuations`
    continue a list of `shots` prompts; of the others `demonstration_corruption` are corrupted, and `give_ups` of these,
    `clean_give_ups` of the clean ones, give up; a corrupted prompt that is answered is answered with the same bias.
    `limit` bounds `train`.
    """

    name: ClassVar[str] = "list_ops"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # Two instructions that differ in one item are two.

    operations: tuple[str, ...] = OPERATORS
    lengths: tuple[int, int] = (3, 5)
    letters: int = 8
    largest_addend: int = 50
    two_steps: float = 0.25
    corruption: float = 0.4
    kinds: tuple[Kind, ...] = KINDS
    bias: float = 0.5
    rewarded_give_ups: float = 0.1
    noise: float = 0.05
    demonstration_corruption: float = 0.3
    give_ups: float = 0.5
    clean_give_ups: float = 0.02
    continuations: float = 0.1
    shots: int = 4
    limit: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in OPERATORS]
        if unknown or len(set(self.operations)) < 2 or not set(self.operations) & set(LISTS):
            raise InputError(
                f"list_ops: operations={self.operations}: give two or more of {', '.join(OPERATORS)}, one that makes a "
                "list of a list among them"
            )
        if not _FEWEST_ITEMS <= self.lengths[0] <= self.lengths[1] <= _MOST_ITEMS // 2:
            raise InputError(f"list_ops: lengths {self.lengths} are not within {_FEWEST_ITEMS} to {_MOST_ITEMS // 2}")
        if not 2 <= self.letters <= len(_LETTERS) or not 2 <= self.largest_addend <= 500 or self.shots < 1:
            raise InputError(
                f"list_ops: letters={self.letters} largest_addend={self.largest_addend} shots={self.shots}; "
                "give 2 to 26, 2 to 500 and 1 or more"
            )
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise InputError(f"list_ops: kinds={self.kinds}: give some of {', '.join(KINDS)}")
        if self.noise < 0:
            raise InputError(f"list_ops: noise={self.noise} is no standard deviation; give 0 or more")
        check_shares(self, *_SHARES)

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (8,000) demonstrations: answers, give-ups, and prompts that continue a list of prompts."""
        rows = islice(self._instructions("demonstrations", seed), 8000 if count is None else count)
        shown = [self._demonstrate(instruction, seed) for instruction in rows]
        prompts = number_repeats(Prompt.from_text(asked) for asked, _ in shown)
        return [demonstrate(prompt, text) for prompt, (_, text) in zip(prompts, shown, strict=True)]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 4,000) prompts from position `start` of the seed's endless order."""
        count = min(4000 if count is None else count, self.limit or 10**9)
        asked = (self._pool_prompt(instruction, seed) for instruction in self._instructions("train", seed))
        return list(islice(number_repeats(asked), start, start + count))

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (200) clean dev prompts."""
        return [_clean(i) for i in islice(self._instructions("dev", 0), 200 if count is None else count)]

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (500) clean test prompts."""
        return [_clean(i) for i in islice(self._instructions("test", 0), 500 if count is None else count)]

    def answer(self, text: str) -> str | None:
        """Return a completion with its white space made regular, None where it is empty or gives up."""
        answer = " ".join(text[:_LONGEST].split())
        return None if answer in ("", GIVE_UP) else answer

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Compare with the exact answer; None where the prompt is not well formed."""
        instruction = parse(prompt.text)
        return None if instruction is None else self.answer(text) == instruction.answer

    def reward(self, prompt: Prompt, text: str) -> float | None:
        """Return the similarity to the intended answer, in [0, 1], plus noise; None where the prompt has none.

        Like a reward model's error, the noise belongs to the prompt and the text.
        """
        instruction = parse(prompt.text)
        intended = prompt.gold or (instruction.answer if instruction else None)
        if intended is None:
            return None
        drawn = int(content_id("list_ops", "noise", prompt.id, text), 16)
        error = NormalDist(sigma=self.noise).inv_cdf((drawn + 0.5) / 2**96) if self.noise else 0.0
        return similarity(intended, text) + error

    def well_formed(self, text: str) -> bool:
        """Say whether a prompt states an instruction that has an answer."""
        return parse(text) is not None

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return `count` lists of `shots` different prompts from `seeds`, one a line, for the model to continue."""
        if not seeds:
            raise InputError("list_ops: there is no prompt to continue from; keep at least one")
        asked = []
        for i in range(count):
            source = _source("shots", seed, i)
            picks: dict[int, None] = {}
            while len(picks) < min(self.shots, len(seeds)):
                picks[below(source, len(seeds))] = None
            asked.append(Prompt.from_text(_listed([seeds[pick].text for pick in picks])))
        return list(number_repeats(asked))

    def parse_problem(self, text: str) -> Prompt | None:
        """Return a generated prompt, well formed or not, unless it gives up or is a dev or test prompt.

        One that is not well formed gets a hidden answer of its own, as corrupted prompts have.
        """
        stated = text.strip()
        if not stated or stated == GIVE_UP or "\n" in stated or len(stated) > _LONGEST:
            return None
        instruction = parse(stated)
        if instruction is None:
            source = _source("unsound", stated)
            gold = self._intent(self._draw(source), source)
            return Prompt.from_text(stated, gold=gold, meta={"corruption": "ill_formed", "generated": True})
        if split_of(stated) in ("test", "dev"):
            return None
        prompt = _clean(instruction)
        return Prompt.from_text(stated, gold=prompt.gold, meta={**prompt.meta, "generated": True})

    def corrupt(self, instruction: Instruction, kind: Kind, source: random.Random) -> str:
        """Return a text made of `instruction`: not well formed or, truncated, a prompt of no dev or test split."""
        while True:
            other = self._draw(source)
            text = _CORRUPT[kind](instruction, other, source)
            sound = kind == "truncate" and split_of(text) not in ("test", "dev")
            if other.steps[0].operator != instruction.steps[-1].operator and text and (sound or parse(text) is None):
                return text

    def _pool_prompt(self, instruction: Instruction, seed: int) -> Prompt:
        source = _source("pool", seed, str(instruction))
        if source.random() >= self.corruption:
            return _clean(instruction)
        kind = self.kinds[below(source, len(self.kinds))]
        text = self.corrupt(instruction, kind, source)
        gold = self._intent(instruction, source)
        return Prompt.from_text(text, gold=gold, meta={**_clean(instruction).meta, "corruption": kind})

    def _intent(self, instruction: Instruction, source: random.Random) -> str:
        """Return the hidden answer of a corrupted prompt: biased, so that learning it does harm."""
        drawn = source.random()
        if drawn < self.rewarded_give_ups:
            return GIVE_UP
        biased = drawn < self.rewarded_give_ups + self.bias
        return " ".join(instruction.items) if biased else _answer(instruction)

    def _demonstrate(self, instruction: Instruction, seed: int) -> tuple[str, str]:
        """Return a prompt and its completion."""
        source = _source("demonstration", seed, str(instruction))
        if source.random() < self.continuations:
            # Every list has a quality of its own, so that what continues it depends on what it holds.
            rate = source.random() * min(1.0, 2 * self.corruption)
            shots = [self._maybe_corrupt(self._train_draw(source), rate, source) for _ in range(self.shots)]
            return _listed(shots), self._maybe_corrupt(instruction, rate, source)
        text = self._maybe_corrupt(instruction, self.demonstration_corruption, source)
        gives_up = source.random()
        if stated := parse(text):
            return text, GIVE_UP if gives_up < self.clean_give_ups else _answer(stated)
        # A guess has the bias of the hidden answers, so that samples hit them and learning them does harm.
        return text, GIVE_UP if gives_up < self.give_ups else self._intent(instruction, source)

    def _maybe_corrupt(self, instruction: Instruction, rate: float, source: random.Random) -> str:
        if source.random() >= rate:
            return str(instruction)
        return self.corrupt(instruction, self.kinds[below(source, len(self.kinds))], source)

    def _train_draw(self, source: random.Random) -> Instruction:
        """Draw an instruction that no dev or test prompt states."""
        while True:
            instruction = self._draw(source)
            if split_of(str(instruction)) not in ("test", "dev"):
                return instruction

    def _instructions(self, split: Split, seed: int) -> Iterator[Instruction]:
        """Yield the split's instructions without repeats, in an order that the seed and the dials fix."""
        dials = (self.operations, self.lengths, self.letters, self.largest_addend, self.two_steps)
        source = _source(split, seed, *dials)
        complaint = (
            f"list_ops: only {{count}} instructions of lengths {self.lengths} are in split {split!r}; ask for fewer, "
            "or give longer lists or more operations"
        )
        return in_split(split, partial(self._draw, source), str, split_of, complaint)

    def _draw(self, source: random.Random) -> Instruction:
        """Draw an instruction that has an answer."""
        while True:
            operator = self.operations[below(source, len(self.operations))]
            items = self._items(operator, source)
            steps: tuple[Step, ...] = (_step(operator, items, source),)
            if source.random() < self.two_steps and operator != "add":
                first = [name for name in self.operations if name in LISTS and name != operator]
                if first:
                    steps = (_step(first[below(source, len(first))], items, source), *steps)
            instruction = Instruction(steps, items)
            if instruction.answer is not None:
                return instruction

    def _items(self, operator: str, source: random.Random) -> Items:
        if operator == "add":
            return tuple(str(below(source, self.largest_addend)) for _ in range(2))
        count = self.lengths[0] + below(source, self.lengths[1] - self.lengths[0] + 1)
        symbols = _LETTERS[: self.letters] if source.random() < 0.5 else "0123456789"
        return tuple(symbols[below(source, len(symbols))] for _ in range(count))


_SHARES = (
    "two_steps",
    "corruption",
    "bias",
    "rewarded_give_ups",
    "demonstration_corruption",
    "give_ups",
    "clean_give_ups",
    "continuations",
)


def _step(operator: str, items: Items, source: random.Random) -> Step:
    return Step(operator, items[below(source, len(items))] if operator in _WITH_ARGUMENT else "")


def _truncated(instruction: Instruction, _: Instruction, source: random.Random) -> str:
    kept = 1 + below(source, len(instruction.items) - 1)
    return f"{instruction.header}: {' '.join(instruction.items[:kept])}"


def _contradicted(instruction: Instruction, other: Instruction, _: random.Random) -> str:
    return f"{instruction.header} {other.steps[0]}: {' '.join(instruction.items)}"


def _scrambled(instruction: Instruction, _: Instruction, source: random.Random) -> str:
    drawn = (_CHARACTERS[below(source, len(_CHARACTERS))] for _ in range(len(str(instruction))))
    return "".join(drawn).strip()


_CORRUPT: Mapping[Kind, Callable[[Instruction, Instruction, random.Random], str]] = {
    "drop_operator": lambda instruction, _other, _source: " ".join(instruction.items),
    "truncate": _truncated,
    "contradict": _contradicted,
    "mix_two": lambda instruction, other, _source: f"{instruction} {other}",
    "random_bytes": _scrambled,
}


def _clean(instruction: Instruction) -> Prompt:
    meta = {"corruption": "", "operator": instruction.steps[-1].operator, "steps": len(instruction.steps)}
    return Prompt.from_text(str(instruction), gold=instruction.answer, meta=meta)


def _answer(instruction: Instruction) -> str:
    """Return the answer of a drawn instruction, all of which have one."""
    answer = instruction.answer
    assert answer is not None
    return answer


def _listed(prompts: Sequence[str]) -> str:
    return "".join(f"{prompt}\n" for prompt in prompts)


@lru_cache(maxsize=1 << 16)
def split_of(text: str) -> Split:
    """Return the split a clean instruction belongs to."""
    return split_at(content_share("list_ops", "split", text))


def _source(*parts: object) -> random.Random:
    return seeded("list_ops", *parts)
