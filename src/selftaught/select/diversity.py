"""How unlike the others a completion is: the criteria D of DivPO (arXiv 2501.18101, section 3), and your own.

A criterion is a frozen description, called with a group and the part of its completions that is being compared. It
returns one number for each of these, higher for more diverse, or None for one it can say nothing of.
"""

import re
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import log
from typing import Literal, Protocol

from selftaught.errors import InputError
from selftaught.tasks.sources import call_for_numbers, code_of
from selftaught.text.json_records import stated_values
from selftaught.types import Completion, Group, Prompt, Score, content_id, number_repeats

_WORD = re.compile(r"\w+")
WINDOW = "diversity/window"
Side = Literal["most", "least"]
SIDES: tuple[Side, Side] = ("most", "least")


class Diversity(Protocol):
    """A frozen, picklable description of a criterion."""

    def __call__(self, group: Group, among: Sequence[Completion]) -> Sequence[float | None]:
        """Return D of each of `among`, which are completions of `group`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probability:
    """D(y) = -log pi(y|x) in nats: what the policy that sampled y is unlikely to say.

    The log-probs are those of the sampled tokens before temperature and top-p. The sum favours long completions;
    `length_normalize` takes the mean over tokens.
    """

    length_normalize: bool = False

    def __call__(self, group: Group, among: Sequence[Completion]) -> list[float | None]:
        """Return D of each of `among`; InputError where one has no log-probs."""
        bare = next((c for c in among if c.logprobs is None), None)
        if bare is not None:
            raise InputError(
                f"completion {bare.id} of prompt {group.id} has no logprobs: sample it here, or take another criterion"
            )
        return [self._rarity(c.logprobs or ()) for c in among]

    def _rarity(self, logprobs: Sequence[float]) -> float:
        return -sum(logprobs) / (max(len(logprobs), 1) if self.length_normalize else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequency:
    """How rare the words of y are among the samples of its prompt.

    With f(w) the number of completions that hold w, D(y) is the mean over the distinct words of y of 1 / f(w), or with
    `transform` "log" of -log(f(w) / N). Completions without words have D = 0, the least. f counts over all samples of
    the prompt (`scope` "pool") or over those compared ("subset"). With `attributes` the words are the values of these
    keys, as stated in sound or broken JSON; `one_attribute` compares a single key, drawn by (seed, prompt id).

    Worked: with samples "a b", "a c", "a c" and inverse frequency, D = (1/3 + 1)/2 = 2/3, then (1/3 + 1/2)/2 = 5/12.
    """

    scope: Literal["pool", "subset"] = "pool"
    transform: Literal["inverse", "log"] = "inverse"
    attributes: tuple[str, ...] = ()
    one_attribute: bool = False
    seed: int = 0

    def __call__(self, group: Group, among: Sequence[Completion]) -> list[float | None]:
        """Return D of each of `among`."""
        keys = self.keys_for(group.id)
        counted = group.completions if self.scope == "pool" else among
        units = {text: units_of(text, keys) for text in {c.text for c in (*counted, *among)}}
        holders = Counter(unit for c in counted for unit in units[c.text])
        return [self.rarity(units[c.text], holders, len(counted)) for c in among]

    def keys_for(self, prompt_id: str) -> tuple[str, ...]:
        """Return the attributes that are compared for this prompt."""
        if not (self.one_attribute and self.attributes):
            return self.attributes
        return (self.attributes[int(content_id("attribute", self.seed, prompt_id), 16) % len(self.attributes)],)

    def rarity(self, units: frozenset[Hashable], holders: Mapping[Hashable, int], samples: int) -> float:
        """Return D of a completion with these words; `holders` says how many of the `samples` counted hold each."""
        if not units:
            return 0.0
        # Sorted: a sum in the order of a set would differ between processes.
        counts = sorted(holders[unit] for unit in units)
        parts = [1 / n for n in counts] if self.transform == "inverse" else [log(samples / n) for n in counts]
        return sum(parts) / len(parts)


@lru_cache(maxsize=256)
def units_of(text: str, keys: tuple[str, ...]) -> frozenset[Hashable]:
    """Return the distinct words of `text`, case-folded, or with `keys` the values it states for them.

    >>> sorted(units_of("A storm, a Lamp", ()))
    ['a', 'lamp', 'storm']
    """
    return frozenset(stated_values(text, keys) if keys else _WORD.findall(text.casefold()))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFrequency:
    """A scorer: D of `words` with f and N counted over a running window of prompts, for the criterion `Scored`.

    The window holds all samples of the completion's own prompt and of the `window` - 1 prompts before it; with a window
    of 1 this is `words` itself. Only the order of the prompts counts: a stage makes the same scores wherever it runs.

    Worked: the samples "a b", "a" of one prompt, then "b", "c" of the next, window 2: f is 2, 2, 1 of a, b, c by then,
    so the second prompt's D are 1/2 and 1.
    """

    words: Frequency
    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window={self.window} holds no prompt; give 1 for a prompt's own samples, or more")

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return WINDOW

    def __call__(self, groups: Iterable[Group], earlier: Sequence[Iterable[Group]] = ()) -> Iterator[list[Score]]:
        """Yield the scores of each group's completions; the groups of `earlier` come before the first, oldest first."""
        recent: deque[list[frozenset[Hashable]]] = deque()
        holders: Counter[Hashable] = Counter()
        for number, part in enumerate((*earlier, groups)):
            for group in part:
                recent.append([units_of(c.text, self.words.attributes) for c in group.completions])
                holders.update(unit for units in recent[-1] for unit in units)
                if len(recent) > self.window:
                    _forget(holders, recent.popleft())
                if number == len(earlier):
                    samples = sum(len(sampled) for sampled in recent)
                    yield self._scores(group, recent[-1], holders, samples)

    def _scores(
        self, group: Group, found: Sequence[frozenset[Hashable]], holders: Mapping[Hashable, int], samples: int
    ) -> list[Score]:
        keys = self.words.keys_for(group.id)
        scores = []
        for completion, units in zip(group.completions, found, strict=True):
            compared = units if keys == self.words.attributes else units_of(completion.text, keys)
            value = self.words.rarity(compared, holders, samples)
            scores.append(Score(completion_id=completion.id, scorer=WINDOW, value=value))
        return scores


def _forget(holders: Counter[Hashable], sampled: Iterable[frozenset[Hashable]]) -> None:
    # Words that nobody holds any more are deleted: the counts stay as small as the window.
    for unit in (unit for units in sampled for unit in units):
        holders[unit] -= 1
        if not holders[unit]:
            del holders[unit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """Your own criterion: "module:function", called with (group, completions), returns a number or None for each."""

    function: str
    code: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", code_of(self.function))

    def __call__(self, group: Group, among: Sequence[Completion]) -> list[float | None]:
        """Return what the function says; InputError where it fails or returns something else."""
        return call_for_numbers(self.function, group, among, where=f"prompt {group.id}", count=len(among))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """D is what a scorer has said of each completion, such as `WindowFrequency`."""

    scorer: str

    def __call__(self, group: Group, among: Sequence[Completion]) -> list[float | None]:
        """Return the scores' values; InputError where a completion has none."""
        scores = group.scores_by(self.scorer)
        bare = next((c for c in among if c.id not in scores), None)
        if bare is not None:
            raise InputError(
                f"completion {bare.id} of prompt {group.id} has no score by {self.scorer!r}: score it first"
            )
        return [scores[c.id].value for c in among]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a judge said, read from the scores that `judged_scores` made for this side."""

    side: Side

    def __call__(self, group: Group, among: Sequence[Completion]) -> list[float | None]:
        """Return the scores of `among`: None for one that was not shown, 0 for all where there was nothing to ask."""
        scores = group.scores_by(judge_scorer(self.side))
        if not any(c.id in scores for c in among):
            return [0.0] * len(among)
        return [scores[c.id].value if c.id in scores else None for c in among]


def judge_scorer(side: Side) -> str:
    """Return the name of the judge's scores for a side."""
    return f"diversity/{side}"


_QUESTION = """Below are {count} numbered texts, written for the same request.

{texts}

Which of them is the {side} diverse? It should {words}, say {things} and be phrased {phrases}.
Think of nothing else, such as quality. Answer with its number alone, in the form [[number]]."""
_WANTED = {
    "most": ("use words that the others do not use", "things that are rarely said", "unlike the others"),
    "least": ("use words that the others use too", "things that are often said", "like the others"),
}
_VERDICT = re.compile(r"\[\[\s*(\d{1,6})\s*\]\]")


def judge_prompt(group: Group, among: Sequence[Completion], side: Side, seed: int) -> Prompt:
    """Return the question which of `among` is the most (or least) diverse; our own wording of criterion c.

    Equal texts are shown once. Their order is shuffled by (seed, prompt id, side), for judges favour early items;
    `meta["order"]` keeps the ids in the order shown.
    """
    shown = {c.text: c for c in sorted(among, key=lambda c: c.id, reverse=True)}
    order = sorted(shown.values(), key=lambda c: content_id("judge order", seed, group.id, side, c.text))
    texts = "\n\n".join(f"[{number}]\n{c.text}" for number, c in enumerate(order, 1))
    words, things, phrases = _WANTED[side]
    text = _QUESTION.format(count=len(order), texts=texts, side=side, words=words, things=things, phrases=phrases)
    meta = {"group": group.id, "side": side, "order": [c.id for c in order]}
    return Prompt.from_text(text, meta=meta, parents=(group.id,))


def parse_choice(text: str, count: int) -> int | None:
    """Return the index 0 .. count - 1 that a judge's answer names, None where it names none or several.

    >>> parse_choice("The second: [[2]]", 3), parse_choice("[[1]] or [[2]]", 3), parse_choice("[[4]]", 3)
    (1, None, None)
    """
    named = {int(number) for number in _VERDICT.findall(text)}
    number = named.pop() if len(named) == 1 else 0
    return number - 1 if 1 <= number <= count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompts:
    """The questions for the pools that `rule` makes: of the good ones the most diverse, of the bad ones the least."""

    rule: "HasPools"
    seed: int = 0

    def __call__(self, groups: Iterable[Group], counts: Counter[str]) -> Iterator[Prompt]:
        """Yield up to two prompts per group that can give a pair: one per side where there is a choice."""
        return number_repeats(self._asked(groups, counts))

    def _asked(self, groups: Iterable[Group], counts: Counter[str]) -> Iterator[Prompt]:
        for group in groups:
            pools = self.rule.pools(group, counts)
            for side, among in zip(SIDES, pools or (), strict=False):
                if len({c.text for c in among}) > 1:
                    yield judge_prompt(group, among, side, self.seed)


class HasPools(Protocol):
    """A pair rule that says which completions of a group it compares on each side."""

    def pools(self, group: Group, dropped: Counter[str]) -> tuple[list[Completion], list[Completion]] | None:
        """Return the good and the bad ones, None where the group gives no pair."""


def judged_scores(
    groups: Iterable[Group], judged: Iterable[Group], counts: Counter[str], *, fallback: Diversity
) -> Iterator[Score]:
    """Yield, for every completion shown, 1 where the judge chose it as the most diverse, -1 as the least, else 0.

    Where an answer cannot be read, the completions shown have the values of `fallback`; `counts` says how often.
    """
    answers = {(g.prompt.meta["group"], g.prompt.meta["side"]): g for g in judged}
    for group in groups:
        rows = {c.id: c for c in group.completions}
        for side in SIDES:
            answer = answers.get((group.id, side))
            if answer is None:
                continue
            order = [rows[name] for name in answer.prompt.meta["order"]]
            texts = {c.text for c in answer.completions[:1]}
            choice = parse_choice(texts.pop(), len(order)) if texts else None
            if choice is None:
                counts["judge's answer could not be read: by word frequency"] += 1
                values: Sequence[float | None] = fallback(group, order)
            else:
                sign = 1.0 if side == "most" else -1.0
                values = [sign * (number == choice) for number in range(len(order))]
            note = "" if choice is not None else "word frequency"
            for completion, value in zip(order, values, strict=True):
                yield Score(completion_id=completion.id, scorer=judge_scorer(side), value=value, note=note)
