"""Constrained text: short sentences that should begin with a word in "a", in words that should not repeat.

    prompt       write about rain:
    completion    abodu toli beka niro. bodeli karo beka lumi. ...

The small analogue of the stories in which every sentence must begin with "Ab" (arXiv 2411.09661). In demonstrations the
share `marked` of the sentences begins with such a word, and every topic has words of its own, frequent and rare. The
reward is the mean of two shares: of the sentences that begin as they should, and of distinct words. Greedy decoding
does the first and repeats itself; sampling varies its words and begins a quarter of the sentences wrongly. What is best
is to sample everywhere but where a sentence begins.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count as counting
from itertools import islice
from typing import ClassVar

from selftaught.errors import InputError
from selftaught.tasks.drawing import Split, below, check_shares, seeded, zipf_weights
from selftaught.tasks.task import demonstrate
from selftaught.types import Demonstration, Prompt, content_id

TOPICS = ("dust", "fire", "frost", "hills", "night", "rain", "roads", "sand", "snow", "wind")
MARK, END = "a", "."
TOKENS = r" ?[a-z]+|[.:]"
"""The tokens of this world, for `Scratch.pattern`."""
_OFFSETS = {"test": 0, "dev": 10**6, "demonstrations": 2 * 10**6, "train": 3 * 10**6}
_CONSONANTS, _VOWELS = "bdfgjklmnprstvz", "eiou"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstrainedText:
    """The world with its dials.

    A text has `sentences` sentences of `words` words. The first word of a sentence is one of `openings` words in "a"
    with probability `marked`, else one of as many others; the rest are drawn from the topic's `vocabulary` words with a
    frequency of 1 / rank^`zipf`. There are ten topics, the same in all splits.
    """

    name: ClassVar[str] = "constrained_text"
    stop: ClassVar[tuple[str, ...]] = ()  # Demonstrations teach the end-of-turn token.
    near_duplicate: ClassVar[float | None] = None  # All prompts are alike.

    sentences: int = 6
    words: int = 4
    marked: float = 0.75
    openings: int = 8
    vocabulary: int = 40
    zipf: float = 0.8
    limit: int | None = None

    def __post_init__(self) -> None:
        check_shares(self, "marked")
        if min(self.sentences, self.openings, self.vocabulary) < 1 or self.words < 2:
            raise InputError(
                f"constrained_text: sentences={self.sentences}, words={self.words}, openings={self.openings}, "
                f"vocabulary={self.vocabulary}; give 1 or more of each, and 2 words or more"
            )
        if 2 * self.openings > len(_invented(MARK)) or self.vocabulary * len(TOPICS) > len(_invented("")) // 2:
            raise InputError(
                f"constrained_text: openings={self.openings}, vocabulary={self.vocabulary}; there are only "
                f"{len(_invented(MARK)) // 2} words in {MARK!r} and {len(_invented('')) // 2 // len(TOPICS)} a topic"
            )

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return `count` (8,000) texts."""
        source = seeded("constrained text", "demonstrations", seed)
        prompts = islice(self._prompts("demonstrations", source), 8000 if count is None else count)
        return [demonstrate(prompt, self._text(source, prompt)) for prompt in prompts]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return `count` (`limit`, or 400) prompts from position `start` of the seed's order."""
        count = min(400 if count is None else count, self.limit or 10**9)
        prompts = self._prompts("train", seeded("constrained text", "train", seed))
        return list(islice(prompts, start, start + count))

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (200) dev prompts."""
        return self._held_out("dev", 200 if count is None else count)

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return `count` (400) test prompts."""
        return self._held_out("test", 400 if count is None else count)

    def answer(self, text: str) -> str | None:
        """Return the text without blanks at its ends."""
        return text.strip() or None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether all sentences there must be are there and begin as they should."""
        return self.openings_share(text) == 1

    def reward(self, prompt: Prompt, text: str) -> float:
        """Return the mean of the shares of rightly begun sentences and of distinct words.

        Both are shares of what there must be, and what is written beyond that does not count: a text gains nothing by
        being short, or long.

        >>> ConstrainedText(sentences=2, words=2).reward(Prompt.from_text("write about rain:"), " abe bo. di bo.")
        0.625
        """
        words = [word for sentence in self._written(text) for word in sentence]
        return (self.openings_share(text) + len(set(words)) / (self.sentences * self.words)) / 2

    def openings_share(self, text: str) -> float:
        """Return how many of the sentences there must be begin with a marked word, as a share."""
        return sum(words[0].startswith(MARK) for words in self._written(text)) / self.sentences

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: this world's model writes no problems."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return None: this world's model writes no problems."""
        return None

    def _written(self, text: str) -> list[list[str]]:
        """Return the sentences that count, each cut to the words that count; an unfinished one is a sentence too."""
        sentences = [words for part in text.split(END) if (words := part.split())]
        return [words[: self.words] for words in sentences[: self.sentences]]

    def _held_out(self, split: Split, count: int) -> list[Prompt]:
        return list(islice(self._prompts(split, seeded("constrained text", split)), count))

    def _prompts(self, split: Split, source: random.Random) -> Iterator[Prompt]:
        for i in counting(_OFFSETS[split]):
            yield Prompt.from_text(f"write about {TOPICS[below(source, len(TOPICS))]}:", occurrence=i)

    def _text(self, source: random.Random, prompt: Prompt) -> str:
        topic = prompt.text.removeprefix("write about ").removesuffix(":")
        return "".join(self._sentence(source, topic) for _ in range(self.sentences))

    def _sentence(self, source: random.Random, topic: str) -> str:
        place = below(source, self.openings) + (0 if source.random() < self.marked else self.openings)
        first = (_invented(MARK)[: self.openings] + _invented("")[: self.openings])[place]
        start = self.openings + TOPICS.index(topic) * self.vocabulary
        own = _invented("")[start : start + self.vocabulary]
        rest = source.choices(own, weights=zipf_weights(self.vocabulary, self.zipf), k=self.words - 1)
        return f" {' '.join((first, *rest))}{END}"


@lru_cache(maxsize=2)
def _invented(mark: str) -> list[str]:
    """Return invented words that begin with `mark`, shuffled; without a mark none begins with a vowel."""
    syllables = [a + b for a in _CONSONANTS for b in _VOWELS]
    words = (mark + a + b for a in syllables for b in syllables)
    return sorted(words, key=partial(content_id, "invented"))
