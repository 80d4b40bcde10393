"""Sums and lists: two kinds of prompts for which no one temperature is best.

    sums    37+58=          590                the digits of 37 + 58 = 095, the last one first
    lists   list birds:      toma lesu ...     five draws from the thirty words of the category

A sum is worth 1 if it is exact, so sampling only hurts: in demonstrations a digit is wrong with probability
`digit_noise`. A list is worth its distinct valid words over five. Demonstrations draw each word anew, frequent ones
more often and in odd categories often from another category, so greedy decoding writes one word five times, and a high
temperature writes words of other categories.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count as counting
from itertools import islice
from typing import ClassVar

from selftaught.errors import InputError
from selftaught.tasks.drawing import Split, below, check_shares, in_split, seeded, split_at, zipf_weights
from selftaught.tasks.task import demonstrate
from selftaught.types import Demonstration, Prompt, content_id, content_share

SUMS, LISTS = "sums", "lists"
CATEGORIES = ("birds", "boats", "fish", "games", "rivers", "songs", "stars", "tools", "towns", "trees")
LENGTH = 5
TOKENS = r" ?[a-z]+|[0-9]|[+=:]"
"""The tokens of this world, for `Scratch.pattern`."""
_DIGITS = 3
_OFFSETS = {"test": 0, "dev": 10**6, "demonstrations": 2 * 10**6, "train": 3 * 10**6}
_CONSONANTS, _VOWELS = "bdfgjklmnprstvz", "aeiou"


@dataclass(frozen=True, slots=True, kw_only=True)
class SumsAndLists:
    """The world with its dials.

    `sums` is the share of sums among demonstrations; in the other splits the kinds alternate. Categories have `words`
    words, drawn with a frequency of 1 / rank^z, z from `zipf[0]` to `zipf[1]` over the categories; a word is of any
    category with probability `foreign[0]` in the first, third, ... category, `foreign[1]` in the others. `reverse`
    writes the last digit of a sum first. Sums of the splits are disjoint; there are ten lists to ask for, the same in
    all splits.
    """

    name: ClassVar[str] = "sums_and_lists"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # Two sums that differ in one digit are two problems.

    sums: float = 0.6
    digit_noise: float = 0.05
    reverse: bool = True
    words: int = 30
    zipf: tuple[float, float] = (0.6, 2.0)
    foreign: tuple[float, float] = (0.05, 0.25)
    limit: int | None = None

    def __post_init__(self) -> None:
        check_shares(self, "sums", "digit_noise")
        if not LENGTH <= self.words <= 100 or not all(0 <= share <= 1 for share in self.foreign):
            raise InputError(
                f"sums_and_lists: words={self.words}, foreign={self.foreign}; give 5 to 100 words, and two shares"
            )

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (30,000) demonstrations with wrong digits and repeated or foreign words."""
        source = seeded("sums and lists", "demonstrations", seed)
        sums = self._sums("demonstrations", source, repeated=True)
        lists = self._lists("demonstrations", source)
        rows = []
        for _ in range(30_000 if count is None else count):
            prompt = next(sums if source.random() < self.sums else lists)
            rows.append(demonstrate(prompt, self._noisy(source, prompt)))
        return rows

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 800) prompts from position `start` of the seed's order, the kinds in turn."""
        count = min(800 if count is None else count, self.limit or 10**9)
        return list(islice(self._mixed("train", seed), start, start + count))

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (200) dev prompts."""
        return list(islice(self._mixed("dev", 0), 200 if count is None else count))

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (1,000) test prompts."""
        return list(islice(self._mixed("test", 0), 1000 if count is None else count))

    def answer(self, text: str) -> str | None:
        """Return the answer without blanks at its ends."""
        return text.strip() or None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether a sum is exact; a list is neither right nor wrong."""
        return text.strip() == prompt.gold if prompt.gold is not None else None

    def reward(self, prompt: Prompt, text: str) -> float | None:
        """Return 1 or 0 for a sum, the share of distinct words of the category among five for a list, None for others.

        >>> world = SumsAndLists()
        >>> world.reward(Prompt.from_text("37+58=", gold="590"), "590")
        1.0
        """
        if prompt.gold is not None:
            return float(text.strip() == prompt.gold)
        category = prompt.text.removeprefix("list ").removesuffix(":")
        if category not in CATEGORIES:
            return None
        return len(set(text.split()[:LENGTH]) & set(_items(self.words)[category])) / LENGTH

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: this world's model writes no problems."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return None: this world's model writes no problems."""
        return None

    def _mixed(self, split: Split, seed: int) -> Iterator[Prompt]:
        source = seeded("sums and lists", split, seed)
        for pair in zip(self._sums(split, source), self._lists(split, source), strict=True):
            yield from pair

    def _sums(self, split: Split, source: random.Random, repeated: bool = False) -> Iterator[Prompt]:
        """Yield sums of a split; demonstrations may repeat one, as only they outnumber the sums there are."""

        def draw() -> str:
            return f"{below(source, 100):02d}+{below(source, 100):02d}="

        complaint = "sums_and_lists: only {count} sums of this split; ask for fewer prompts"
        texts = in_split(split, draw, str, split_of, complaint)
        if repeated:
            texts = (text for text in iter(draw, None) if split_of(text) == split)
        for i, text in enumerate(texts):
            yield Prompt.from_text(
                text, gold=self._solution(text), meta={"category": SUMS}, occurrence=i if repeated else 0
            )

    def _lists(self, split: Split, source: random.Random) -> Iterator[Prompt]:
        for i in counting(_OFFSETS[split]):
            category = CATEGORIES[below(source, len(CATEGORIES))]
            yield Prompt.from_text(f"list {category}:", meta={"category": LISTS}, occurrence=i)

    def _solution(self, text: str) -> str:
        digits = f"{int(text[:2]) + int(text[3:5]):0{_DIGITS}d}"
        return digits[::-1] if self.reverse else digits

    def _noisy(self, source: random.Random, prompt: Prompt) -> str:
        if prompt.gold is None:
            category = prompt.text.removeprefix("list ").removesuffix(":")
            return "".join(" " + self._item(source, category) for _ in range(LENGTH))
        digits = prompt.gold
        return "".join(str(below(source, 10)) if source.random() < self.digit_noise else digit for digit in digits)

    def _item(self, source: random.Random, category: str) -> str:
        number = CATEGORIES.index(category)
        if source.random() < self.foreign[number % 2]:
            category = CATEGORIES[below(source, len(CATEGORIES))]
        low, high = self.zipf
        exponent = low + (high - low) * number / (len(CATEGORIES) - 1)
        return source.choices(_items(self.words)[category], weights=zipf_weights(self.words, exponent))[0]


def split_of(text: str) -> Split:
    """Return the split a sum belongs to."""
    return split_at(content_share("sums and lists", "split", text))


@lru_cache(maxsize=8)
def _items(words: int) -> dict[str, list[str]]:
    """Return the invented words of every category, which have nothing in common but their category."""
    syllables = [a + b for a in _CONSONANTS for b in _VOWELS]
    invented = sorted((a + b for a in syllables for b in syllables), key=partial(content_id, "item"))
    return {name: invented[i * words : (i + 1) * words] for i, name in enumerate(CATEGORIES)}
