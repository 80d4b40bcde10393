"""Keyword stories: five words for a title, and a short story with five given words.

    title: the lamu and the torike      lamu, sitora, kepola, torike, mado
    story: lamu, sitora, ...            One night a lamu stood by the sitora. ...

DivPO's unstructured task (arXiv 2501.18101, section 4) with a planted reward in place of a reward model. Every word
belongs to a topic, and a title names two words of its topic; topics lie in a ring. A keyword is worth 1 where it is of
the title's topic, 0.5 of a neighbouring one, else 0. The reward is the mean over the five less `repetition` times the
share that repeats a word of the title, and 0 unless there are exactly five words.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from selftaught.errors import InputError
from selftaught.tasks.drawing import check_shares, seeded, zipf_weights
from selftaught.tasks.task import demonstrate
from selftaught.text.json_records import parse_keywords
from selftaught.types import Demonstration, Group, Prompt, content_id, content_share, number_repeats

KEYWORDS = 5
TITLE, STORY = "title: ", "story: "
_CONSONANTS, _VOWELS = "bdfgjklmnprstvz", "aeiou"
_SHARES = (("test", 0.1), ("dev", 0.15), ("demonstrations", 0.6), ("train", 1.0))
_WORD = re.compile(r"[a-z]+")
_SENTENCES = (
    "One {time} a {0} stood by the {1}.",
    "Nobody had seen the {2} since the {3}.",
    "At last the {4} was {state}.",
)
_FILLERS = {"time": ("night", "day", "winter", "morning"), "state": ("lost", "found", "home", "gone")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stories:
    """The world with its dials.

    `titles` titles are spread over `topics` topics of `words` words each. Demonstrations draw keywords from the title's
    topic with a frequency of 1 / rank^`zipf`, in the share `off_topic` from any other; `malformed` of them have a word
    too many, too few, or twice; `stories` of them write a story instead.
    """

    name: ClassVar[str] = "stories"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # All titles are alike.

    titles: int = 500
    topics: int = 20
    words: int = 100
    zipf: float = 1.2
    off_topic: float = 0.15
    malformed: float = 0.1
    stories: float = 0.3
    repetition: float = 0.5
    limit: int | None = None

    def __post_init__(self) -> None:
        check_shares(self, "off_topic", "malformed", "stories", "repetition")
        most = len(_vocabulary())
        if self.topics < 3 or self.words < KEYWORDS or self.topics * self.words > most:
            raise InputError(
                f"stories: {self.topics} topics of {self.words} words; give 3 or more of {KEYWORDS} or more, and at "
                f"most {most} words in all"
            )

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (8,000) answers to titles of this split, and stories."""
        source = seeded("stories", seed)
        titles = self._split("demonstrations")
        rows = []
        for i in range(8000 if count is None else count):
            title = titles[int(source.random() * len(titles))]
            words = self._keywords(source, title)
            if source.random() < self.stories:
                prompt = Prompt.from_text(STORY + ", ".join(words), occurrence=i)
                rows.append(demonstrate(prompt, _story(source, words)))
            else:
                rows.append(demonstrate(_ask(title, i), ", ".join(self._spoilt(source, words))))
        return rows

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 4,000) titles from position `start` of the seed's order, in turn, renumbered."""
        count = min(4000 if count is None else count, self.limit or 10**9)
        titles = sorted(self._split("train"), key=lambda title: content_id("order", seed, title))
        return [_ask(titles[i % len(titles)], i // len(titles)) for i in range(start, start + count)]

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return the dev titles."""
        return [_ask(title, 0) for title in self._split("dev")[:count]]

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return the test titles."""
        return [_ask(title, 0) for title in self._split("test")[:count]]

    def answer(self, text: str) -> str | None:
        """Return the keywords as one key."""
        words = parse_keywords(text, KEYWORDS)
        return None if words is None else ", ".join(sorted(words))

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether a title got exactly five different words; a story is not verified."""
        return parse_keywords(text, KEYWORDS) is not None if prompt.text.startswith(TITLE) else None

    def reward(self, prompt: Prompt, text: str) -> float | None:
        """Return the planted reward of an answer to a title, in [-`repetition`, 1]; None for a story."""
        words = parse_keywords(text, KEYWORDS)
        title = [word for word in _WORD.findall(prompt.text) if word in _topics(self)]
        if not prompt.text.startswith(TITLE) or not title:
            return None
        if words is None:
            return 0.0
        relevance = [_relevance(_topics(self).get(word), _topics(self)[title[0]], self.topics) for word in words]
        return (sum(relevance) - self.repetition * len(set(words) & set(title))) / KEYWORDS

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: there is no new problem to write."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return nothing, as above."""
        return None

    def _split(self, split: str) -> list[str]:
        words, seen = self._words(), []
        for i in range(self.titles):
            topic = i % self.topics
            source = seeded("title", i)
            first, second = (words[topic * self.words + _draw(source, self.words, 0.0)] for _ in range(2))
            seen.append(f"the {first} and the {second}")
        return [title for title in dict.fromkeys(seen) if split_of(title) == split]

    def _words(self) -> list[str]:
        return _vocabulary()[: self.topics * self.words]

    def _keywords(self, source: random.Random, title: str) -> list[str]:
        own = _topics(self)[_WORD.findall(title)[1]]
        words: list[str] = []
        while len(words) < KEYWORDS:
            topic = int(source.random() * self.topics) if source.random() < self.off_topic else own
            word = self._words()[topic * self.words + _draw(source, self.words, self.zipf)]
            words += [word] if word not in words else []
        return words

    def _spoilt(self, source: random.Random, words: list[str]) -> list[str]:
        if source.random() >= self.malformed:
            return words
        kind = int(3 * source.random())
        return [words[:-1], [*words, words[0]], [*words[:-1], words[0]]][kind]


def story_prompts(groups: Iterable[Group], counts: Counter[str], *, most: int) -> Iterator[Prompt]:
    """Yield the request for a story for up to `most` completions with five keywords (section 4, full stories).

    They are taken in turn: the first of every title, then the second.
    """
    asked = []
    for group in groups:
        for completion in group.completions:
            words = parse_keywords(completion.text, KEYWORDS)
            if words is None:
                counts["not five keywords"] += 1
            else:
                text = STORY + ", ".join(words)
                asked.append((completion.k, Prompt.from_text(text, parents=(completion.id,))))
    asked.sort(key=lambda pair: pair[0])
    return number_repeats(prompt for _, prompt in asked[:most])


def split_of(title: str) -> str:
    """Return the split a title belongs to: 10% test, 5% dev, 45% demonstrations, 40% train."""
    share = content_share("story split", title)
    return next(split for split, end in _SHARES if share < end)


def _ask(title: str, occurrence: int) -> Prompt:
    return Prompt.from_text(TITLE + title, occurrence=occurrence)


def _story(source: random.Random, words: Sequence[str]) -> str:
    fillers = {name: choices[int(source.random() * len(choices))] for name, choices in _FILLERS.items()}
    return " ".join(_SENTENCES).format(*words, **fillers)


def _relevance(topic: int | None, own: int, topics: int) -> float:
    if topic is None:
        return 0.0
    distance = min((topic - own) % topics, (own - topic) % topics)
    return max(0.0, 1 - distance / 2)


@lru_cache
def _vocabulary() -> list[str]:
    """Return all words, shuffled, so that words of a topic have nothing in common but the topic."""
    syllables = [a + b for a in _CONSONANTS for b in _VOWELS]
    words = [a + b + "ra" for a in syllables for b in syllables]
    return sorted(words, key=lambda word: content_id("word", word))


@lru_cache(maxsize=8)
def _topics(world: Stories) -> dict[str, int]:
    return {word: i // world.words for i, word in enumerate(world._words())}


def _draw(source: random.Random, count: int, zipf: float) -> int:
    """Return a rank 0 .. count - 1 with a frequency of 1 / (rank + 1)^zipf."""
    return source.choices(range(count), weights=zipf_weights(count, zipf))[0]
