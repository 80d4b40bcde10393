"""Personas: the same request over and over, and JSON records of a first name, a city and an occupation in return.

    prompt        persona: city, first_name, occupation
    completion    {"city": "Alton", "first_name": "Vara", "occupation": "saltmaker"}

DivPO's structured task (arXiv 2501.18101, section 4) with a base that is as skewed as we like: values follow a Zipf
law, cities partly follow from names, and some records are broken. What is measured is how many values a model uses
and how often its records are sound, so every split asks the same few prompts (one per order of the keys); only their
occurrence number, and with it the draw, differs.
"""

import json
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, permutations
from typing import ClassVar, Literal

from selftaught.errors import InputError
from selftaught.tasks.drawing import check_shares, seeded, zipf_weights
from selftaught.tasks.task import demonstrate
from selftaught.text.json_records import parse_record
from selftaught.types import Demonstration, Prompt, content_id

KEYS = ("first_name", "city", "occupation")
HOBBY = "hobby"
Kind = Literal["missing key", "repeated key", "no brace"]
_STARTS, _STUFFS, _NAMES, _PLACES, _MAKERS, _PASTIMES = (
    line.split()
    for line in (
        "Al Be Ca Da El Fa Ga Ha Il Jo Ka Li Ma Na Or Pa Ro Sa Ti Va",
        "glass wood stone iron silk bread salt cloth clock bridge boat paper garden forest wine",
        "ra lin mo ta ren vi sa dor nie ko",
        "burg ton ville field port mouth stead ford wick haven",
        "maker seller keeper painter carver trader mender hauler builder grader",
        "drawing watching collecting carving singing",
    )
)
_PARTS = {
    "first_name": (_STARTS, _NAMES),
    "city": (_STARTS, _PLACES),
    "occupation": (_STUFFS, _MAKERS),
    HOBBY: (_STUFFS, _PASTIMES),
}
_OCCURRENCES = {"test": 0, "dev": 10**6, "demonstrations": 2 * 10**6, "train": 3 * 10**6, "transfer": 4 * 10**6}
_WORDINGS = {
    "short": ("persona: {keys}",),
    "full": (
        "Invent a random persona. Answer with one JSON object that has exactly the keys {keys}, each with a string as "
        "its value, and write nothing else.",
        "Describe somebody who does not exist, in JSON and without another word. The keys, in this order: {keys}. All "
        "values are strings.",
        "I need a made-up person: give me a JSON object, and only that, with {keys} and no further keys.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Personas:
    """The world with its dials.

    `names`, `cities` and `occupations` count the values of each attribute, which demonstrations draw with a frequency
    of 1 / rank^`zipf`; in the share `correlation` of them the city follows from the name. `malformed` is the share of
    broken records. With `strict` a value outside the vocabulary makes a record invalid. `hobbies` above 0 adds a second
    request that no method trains on, for the share `hobby_share` of the demonstrations: does diversity carry over?
    """

    name: ClassVar[str] = "personas"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # All prompts are alike.

    names: int = 200
    cities: int = 200
    occupations: int = 150
    hobbies: int = 0
    hobby_share: float = 0.1
    zipf: float = 1.3
    correlation: float = 0.3
    malformed: float = 0.1
    wording: Literal["short", "full"] = "short"
    strict: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, key in (("names", KEYS[0]), ("cities", KEYS[1]), ("occupations", KEYS[2]), ("hobbies", HOBBY)):
            fewest, count, most = int(key != HOBBY), getattr(self, name), len(_words(key))
            if not fewest <= count <= most:
                raise InputError(f"personas: {name}={count}; there are words for {fewest} to {most}")
        check_shares(self, "hobby_share", "correlation", "malformed")

    @property
    def keys(self) -> tuple[str, ...]:
        """The attributes that are measured."""
        return KEYS

    def vocabulary(self, key: str) -> tuple[str, ...]:
        """Return the values of an attribute, the most frequent first."""
        counts = {KEYS[0]: self.names, KEYS[1]: self.cities, KEYS[2]: self.occupations, HOBBY: self.hobbies}
        return _words(key)[: counts[key]]

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (8,000) records, sound and broken, for prompts in random order."""
        source = seeded("personas", seed)
        prompts, transfer = self._prompts(), self.transfer()
        rows = []
        for i in range(8000 if count is None else count):
            asked = transfer if transfer and source.random() < self.hobby_share else prompts
            chosen = asked[int(source.random() * len(asked))]
            prompt = _numbered(chosen, _OCCURRENCES["demonstrations"] + i)
            rows.append(demonstrate(prompt, self._record(source, prompt.meta["keys"])))
        return rows

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 4,000) prompts from position `start` on: the same ones in turn, renumbered."""
        count = min(4000 if count is None else count, self.limit or 10**9)
        return self._asked("train", start, count)

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return `count` prompts (one of each wording)."""
        return self._asked("dev", 0, len(self._prompts()) if count is None else count)

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return `count` prompts (one of each wording)."""
        return self._asked("test", 0, len(self._prompts()) if count is None else count)

    def transfer(self) -> list[Prompt]:
        """Return the requests that no method trains on; none without hobbies."""
        if not self.hobbies:
            return []
        return [_numbered(prompt, _OCCURRENCES["transfer"]) for prompt in self._worded((HOBBY,))]

    def answer(self, text: str) -> str | None:
        """Return the record's values as one key."""
        record = parse_record(text, KEYS)
        return None if record is None else json.dumps(record)

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether a completion is a record of the keys asked for, in any order, its values known where `strict`."""
        keys = tuple(prompt.meta["keys"])
        record = parse_record(text, keys)
        return record is not None and (not self.strict or all(record[key] in _ranks(key, self) for key in keys))

    def popularity(self, prompt: Prompt, text: str) -> float:
        """Return how frequent a record's values are: the mean of f(value) / f(most frequent) over keys, in [0, 1]."""
        keys = tuple(prompt.meta["keys"])
        record = parse_record(text, keys) or {}
        ranks = [_ranks(key, self).get(value) for key, value in record.items()]
        return sum((rank + 1) ** -self.zipf for rank in ranks if rank is not None) / len(keys)

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: there is no new problem to write."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return nothing, as above."""
        return None

    def _prompts(self) -> list[Prompt]:
        return [prompt for keys in permutations(KEYS) for prompt in self._worded(keys)]

    def _worded(self, keys: Sequence[str]) -> Iterator[Prompt]:
        for wording in _WORDINGS[self.wording]:
            yield Prompt.from_text(wording.format(keys=", ".join(keys)), meta={"keys": list(keys)})

    def _asked(self, split: str, start: int, count: int) -> list[Prompt]:
        prompts = self._prompts()
        return [
            _numbered(prompts[i % len(prompts)], _OCCURRENCES[split] + i // len(prompts))
            for i in range(start, start + count)
        ]

    def _record(self, source: random.Random, keys: Sequence[str]) -> str:
        values = self._values(source, keys)
        pairs = [f'"{key}": "{values[key]}"' for key in keys]
        if source.random() >= self.malformed:
            return "{" + ", ".join(pairs) + "}"
        kinds: tuple[Kind, ...] = ("missing key", "repeated key", "no brace") if len(pairs) > 1 else ("no brace",)
        kind = kinds[int(source.random() * len(kinds))]
        spot = int(source.random() * len(pairs))
        if kind == "missing key":
            del pairs[spot]
        elif kind == "repeated key":
            pairs[spot] = pairs[spot - 1]
        whole = "{" + ", ".join(pairs) + "}"
        return whole.removesuffix('"}') if kind == "no brace" else whole

    def _values(self, source: random.Random, keys: Sequence[str]) -> Mapping[str, str]:
        ranks = {key: _draw(source, len(self.vocabulary(key)), self.zipf) for key in keys}
        if "city" in ranks and source.random() < self.correlation:
            ranks["city"] = (7 * ranks["first_name"] + int(3 * source.random())) % self.cities
        return {key: self.vocabulary(key)[rank] for key, rank in ranks.items()}


def _numbered(prompt: Prompt, occurrence: int) -> Prompt:
    return Prompt(messages=prompt.messages, meta=prompt.meta, occurrence=occurrence)


@lru_cache
def _words(key: str) -> tuple[str, ...]:
    """Return all words for an attribute; shuffled, so that a word's rank says nothing of its letters."""
    starts, ends = _PARTS[key]
    return tuple(sorted((start + end for start in starts for end in ends), key=lambda word: content_id(key, word)))


@lru_cache(maxsize=64)
def _ranks(key: str, world: Personas) -> dict[str, int]:
    return {word.casefold(): rank for rank, word in enumerate(world.vocabulary(key))}


@lru_cache(maxsize=64)
def _shares(count: int, zipf: float) -> list[float]:
    weights = zipf_weights(count, zipf)
    return list(accumulate(weight / sum(weights) for weight in weights))


def _draw(source: random.Random, count: int, zipf: float) -> int:
    return min(bisect_right(_shares(count, zipf), source.random()), count - 1)
