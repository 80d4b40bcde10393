"""What completions say of their prompt: which are chosen and rejected, and measures of both (RIP, arXiv 2501.18578).

Nothing depends on the order of prompts or samples.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, isfinite
from typing import Any, Literal, NamedTuple

from selftaught.errors import InputError
from selftaught.select.votes import pick
from selftaught.text.dedup import words
from selftaught.types import Completion, Group

Side = Literal["above", "below"]
LengthUnit = Literal["chars", "tokens"]
Rejected = Literal["worst", "random", "bottom"]
Tally = Counter[str]

SIDES: Mapping[str, Side] = {
    "rejected_reward": "above",
    "rejected_length": "above",
    "gap": "below",
    "chosen_reward": "above",
    "chosen_length": "above",
    "mean_reward": "above",
    "mean_length": "above",
    "jaccard": "above",
    "perplexity": "below",
    "ifd": "above",
}
"""Every measure with the side of its threshold on which prompts are kept."""

MEDIANS: Mapping[str, float] = {"rejected_reward": 0.5, "rejected_length": 0.5, "gap": 0.5}
"""The paper's best setting: the median of each measure."""

SAME_TEXT = "chosen and rejected are the same text"


class Choice(NamedTuple):
    """A prompt with its chosen and rejected completions; `rewards` by completion id, of those that have one."""

    group: Group
    chosen: Completion
    rejected: Completion
    rewards: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How a prompt's completions become chosen and rejected: the best by `scorer`, and one with a lower reward.

    `rejected` is the "worst", a "random" one, or a random one of the "bottom" `share`. Equals are drawn from by a hash
    of (seed, prompt id). `length_unit` "tokens" counts sampled ids, the end-of-turn token included.
    """

    scorer: str = "reward"
    rejected: Rejected = "worst"
    share: float = 0.25
    length_unit: LengthUnit = "chars"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(
                f"share={self.share} of the completions leaves none to reject; give more than 0, at most 1"
            )

    def choose(self, group: Group) -> Choice | str:
        """Return the choice, or the reason why there is none.

        Raises:
            InputError: the group has fewer than 2 completions, or one without a score by `scorer`.
        """
        rewards = self._rewards(group)
        scored = [c for c in group.completions if c.id in rewards]
        if len(scored) < 2:
            return "fewer than two completions have a reward"
        best = max(rewards.values())
        worse = [c for c in scored if rewards[c.id] < best]
        if not worse:
            return "all rewards are equal"
        chosen = pick([c for c in scored if rewards[c.id] == best], self.seed, group.id, "chosen")
        rejected = pick(self._candidates(worse, rewards, len(scored)), self.seed, group.id, "rejected")
        # A reward model's rounding is enough to tell equal texts apart.
        return SAME_TEXT if chosen.text == rejected.text else Choice(group, chosen, rejected, rewards)

    def _candidates(self, worse: list[Completion], rewards: Mapping[str, float], samples: int) -> list[Completion]:
        if self.rejected == "random":
            return worse
        if self.rejected == "worst":
            least = min(rewards.values())
            return [c for c in worse if rewards[c.id] == least]
        ordered = sorted(worse, key=lambda c: (rewards[c.id], c.text, c.id))
        return ordered[: max(1, int(self.share * samples))]

    def _rewards(self, group: Group) -> dict[str, float]:
        if len(group.completions) < 2:
            raise InputError(
                f"prompt {group.id} has {len(group.completions)} completion(s); RIP compares the best with the "
                "worst of N: generate with k >= 2, better 8 or more"
            )
        scores = group.scores_by(self.scorer)
        rewards = {}
        for completion in group.completions:
            if completion.id not in scores:
                raise InputError(
                    f"completion {completion.id} of prompt {group.id} has no score by {self.scorer!r}: score it first"
                )
            value = scores[completion.id].value
            if value is not None:
                rewards[completion.id] = finite_reward(value, f"completion {completion.id} of prompt {group.id}")
        return rewards


def finite_reward(value: float, where: str) -> float:
    """Return the reward; InputError where it is no finite number."""
    if not isfinite(value):
        raise InputError(f"{where} has the reward {value}: a reward is a finite number; leave out what has none")
    return float(value)


# --- measures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A prompt's measures by name, None where one could not be taken; `samples` is N, `meta` the prompt's own."""

    id: str
    samples: int
    values: Mapping[str, float | None]
    meta: Mapping[str, Any] = field(default_factory=dict)


def measure(choice: Choice, names: Iterable[str] = MEDIANS, length_unit: LengthUnit = "chars") -> Measured:
    """Return the measures called `names` of one prompt.

    Rewards are in the scorer's unit, lengths in `length_unit`. `jaccard` is the overlap of both sides' sets of words,
    in [0, 1]. `perplexity` and `ifd` of the chosen completion come from its scores "nll" and "nll_alone".

    Raises:
        InputError: no measure has that name, a likelihood is not finite, or a length in tokens is asked of a completion
            without token ids.
    """
    values = {name: _measure_function(name)(choice, length_unit) for name in names}
    return Measured(id=choice.group.id, samples=len(choice.rewards), values=values, meta=choice.group.prompt.meta)


def measure_groups(
    groups: Iterable[Group], ranking: Ranking, names: Iterable[str] = MEDIANS, dropped: Tally | None = None
) -> list[Measured]:
    """Return the measures of every prompt that has a chosen and a rejected completion; `dropped` counts the others."""
    measured, names = [], tuple(names)
    for group in groups:
        choice = ranking.choose(group)
        if isinstance(choice, Choice):
            measured.append(measure(choice, names, ranking.length_unit))
        elif dropped is not None:
            dropped[choice] += 1
    return measured


def jaccard(first: str, second: str) -> float:
    """Return |A & B| / |A | B| of the two texts' sets of words, 1 where neither has any.

    >>> jaccard("the cat sat", "The cat ran")
    0.5
    """
    a, b = set(words(first)), set(words(second))
    return len(a & b) / len(a | b) if a or b else 1.0


def check_measures(names: Iterable[str]) -> None:
    """Raise InputError for a name that no measure has."""
    for name in names:
        _measure_function(name)


def _measure_function(name: str) -> Callable[[Choice, LengthUnit], float | None]:
    if name not in _MEASURES:
        raise InputError(f"no measure is called {name!r}: known are {', '.join(_MEASURES)}")
    return _MEASURES[name]


def _length(completion: Completion, unit: LengthUnit) -> float:
    if unit == "chars":
        return float(len(completion.text))
    if completion.token_ids is None:
        raise InputError(f"completion {completion.id} has no token ids: measure its length with length_unit=chars")
    return float(len(completion.token_ids))


def _gap(choice: Choice, _: LengthUnit) -> float | None:
    best, worst = choice.rewards.get(choice.chosen.id), choice.rewards.get(choice.rejected.id)
    return None if best is None or worst is None else best - worst


def _mean_reward(choice: Choice, _: LengthUnit) -> float | None:
    return sum(choice.rewards.values()) / len(choice.rewards) if choice.rewards else None


def _mean_length(choice: Choice, unit: LengthUnit) -> float:
    lengths = [_length(c, unit) for c in choice.group.completions]
    return sum(lengths) / len(lengths)


def _nll(choice: Choice, scorer: str) -> float | None:
    score = choice.group.scores_by(scorer).get(choice.chosen.id)
    if score is None or score.value is None:
        return None
    if not isfinite(score.value):
        raise InputError(f"completion {choice.chosen.id} has the score {score.value} by {scorer!r}: mend the scorer")
    return score.value


def _perplexity(choice: Choice, _: LengthUnit) -> float | None:
    nll = _nll(choice, "nll")
    # Past 700 nats a token the exponential overflows; the order is all that matters there.
    return None if nll is None else exp(min(nll, 700.0))


def _ifd(choice: Choice, _: LengthUnit) -> float | None:
    given, alone = _nll(choice, "nll"), _nll(choice, "nll_alone")
    return given / alone if given is not None and alone else None


_MEASURES: Mapping[str, Callable[[Choice, LengthUnit], float | None]] = {
    "rejected_reward": lambda choice, _: choice.rewards.get(choice.rejected.id),
    "rejected_length": lambda choice, unit: _length(choice.rejected, unit),
    "gap": _gap,
    "chosen_reward": lambda choice, _: choice.rewards.get(choice.chosen.id),
    "chosen_length": lambda choice, unit: _length(choice.chosen, unit),
    "mean_reward": _mean_reward,
    "mean_length": _mean_length,
    "jaccard": lambda choice, _: jaccard(choice.chosen.text, choice.rejected.text),
    "perplexity": _perplexity,
    "ifd": _ifd,
}
