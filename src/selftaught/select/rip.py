"""RIP: prompts are kept or dropped by the completions they provoke (arXiv 2501.18578, section 2).

Of N scored completions of a prompt the best is chosen, the worst rejected. A prompt is kept where all conditions hold:

    m1, reward of the rejected         >= tau1
    m2, length of the rejected         >= tau2
    m3, reward of chosen - rejected    <= tau3

Thresholds are given, or taken at quantiles of a pool of prompts, once: they are a frozen record with their N, for
lowest and highest rewards of different N do not compare. Prompts whose rewards are all equal make no pair and are
dropped before quantiles are taken.

A filter rules on a pool of measured prompts and says of each what it failed and by which margin. `Filtered` gives the
groups of the prompts that a filter keeps to any other selector. Nothing depends on the order of prompts or samples.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.select.prompt_measures import (
    MEDIANS,
    SAME_TEXT,
    SIDES,
    Choice,
    LengthUnit,
    Measured,
    Ranking,
    Rejected,
    Side,
    Tally,
    check_measures,
    finite_reward,
    measure,
    measure_groups,
)
from selftaught.types import Group, Pair, Prompt, content_id

LENGTH_SHARE = 0.8
_SUGGESTED = {
    "perplexity": "score the groups with CompletionNLL first",
    "ifd": "score the groups with CompletionNLL, with and without the prompt, first",
}


# --- filters ---------------------------------------------------------------------------------------------------------


class Ruling(NamedTuple):
    """What a filter says of a prompt: kept where `failed` is empty.

    The lower the margin, the surer the removal; None where it cannot be told.
    """

    margin: float | None
    failed: tuple[str, ...] = ()


class PromptFilter(Protocol):
    """A frozen description, called on a whole pool of measured prompts."""

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures it needs."""

    def __call__(self, pool: Sequence[Measured]) -> dict[str, Ruling]:
        """Return a ruling by prompt id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """RIP's conditions as absolute numbers: a prompt is kept where every measure is on its side of its bound or on it.

    `bounds` maps a task group to {measure: bound}; "" serves all prompts without bounds of their own, and `group_by`
    names the key of the prompts' meta that holds their group. `sides` says on which side of a bound prompts are kept.
    `samples` is the N, and `prompts` the size, of the pool the quantiles were taken of; 0 where the bounds were given.

    A ruling's margin is the least, over the measures, of the share of the pool between the prompt and the bound,
    negative on the side that is dropped: measures of any unit compare.
    """

    bounds: dict[str, dict[str, float]]
    sides: dict[str, Side] = field(default_factory=dict)
    group_by: str = ""
    samples: int = 0
    prompts: int = 0

    def __post_init__(self) -> None:
        names = set(self.bounds.get("", {}))
        if not names or any(set(bounds) != names for bounds in self.bounds.values()):
            raise InputError("thresholds need a bound on at least one measure, and the same measures in every group")
        check_measures((*names, *self.sides))
        if any(bound != bound for bounds in self.bounds.values() for bound in bounds.values()):
            raise InputError(f"thresholds {self.bounds}: nan would keep every prompt; give numbers")

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures it needs."""
        return tuple(self.bounds[""])

    def __call__(self, pool: Sequence[Measured]) -> dict[str, Ruling]:
        """Return a ruling by prompt id; a prompt without one of the measures fails it."""
        parts: dict[str, list[Measured]] = defaultdict(list)
        for row in pool:
            group = _task_group(row, self.group_by)
            parts[group if group in self.bounds else ""].append(row)
        return {name: ruling for part, rows in parts.items() for name, ruling in self._rule(rows, self.bounds[part])}

    def _rule(self, rows: Sequence[Measured], bounds: Mapping[str, float]) -> Iterator[tuple[str, Ruling]]:
        columns = {name: sorted(self._goodness(name, value) for value in _known(rows, name)) for name in bounds}
        ranks = {name: bisect_left(columns[name], self._goodness(name, bound)) for name, bound in bounds.items()}
        for row in rows:
            margins, failed = [], []
            for name, bound in bounds.items():
                value = row.values[name]
                if value is None:
                    failed.append(f"no {name}")
                    continue
                goodness = self._goodness(name, value)
                # A value of the pool that is not as good as the bound ranks strictly below it.
                margins.append((bisect_left(columns[name], goodness) - ranks[name]) / len(columns[name]))
                if goodness < self._goodness(name, bound):
                    failed.append(name)
            yield row.id, Ruling(min(margins) if len(margins) == len(bounds) else None, tuple(failed))

    def _goodness(self, name: str, value: float) -> float:
        return value if self.sides.get(name, SIDES[name]) == "above" else -value


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSubset:
    """Baseline: `count` prompts, those with the smallest hash of (seed, prompt id)."""

    count: int
    seed: int = 0

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures it needs."""
        return ()

    def __call__(self, pool: Sequence[Measured]) -> dict[str, Ruling]:
        """Return a ruling by prompt id."""
        order = sorted(pool, key=lambda row: content_id("random subset", self.seed, row.id))
        places = ((row.id, (self.count - 0.5 - place) / len(order)) for place, row in enumerate(order))
        return {name: Ruling(margin, () if margin > 0 else ("the draw",)) for name, margin in places}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Oracle: drops the prompts whose meta has a label under `key`, or one of `labels` where those are given."""

    key: str = "corruption"
    labels: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures it needs."""
        return ()

    def __call__(self, pool: Sequence[Measured]) -> dict[str, Ruling]:
        """Return a ruling by prompt id."""
        return {row.id: Ruling(-1.0, ("its label",)) if self._dropped(row) else Ruling(1.0) for row in pool}

    def _dropped(self, row: Measured) -> bool:
        label = row.meta.get(self.key)
        return label in self.labels if self.labels else bool(label)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAll:
    """Baseline: every prompt that makes a pair."""

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures it needs."""
        return ()

    def __call__(self, pool: Sequence[Measured]) -> dict[str, Ruling]:
        """Return a ruling by prompt id."""
        return {row.id: Ruling(0.0) for row in pool}


def fit_thresholds(
    pool: Sequence[Measured],
    quantiles: Mapping[str, float],
    *,
    sides: Mapping[str, Side] | None = None,
    group_by: str = "",
) -> Thresholds:
    """Return the `quantiles` (measure -> share in [0, 1]) of a pool, linearly interpolated, as frozen thresholds.

    With `group_by` every group of prompts gets bounds of its own, so that tasks with short answers are compared among
    themselves.

    Raises:
        InputError: a quantile is no share, there is none, or no prompt has the measure.
        NothingToTrainOn: the pool is empty.
    """
    check_measures(quantiles)
    for name, share in quantiles.items():
        if not 0 <= share <= 1:
            raise InputError(f"quantile {share} of {name} is no share of the prompts; give 0 to 1, such as 0.5")
    if not pool:
        raise NothingToTrainOn("no prompt has two different rewards, so no quantile can be taken: read the scores")
    parts: dict[str, list[Measured]] = {"": list(pool)}
    for row in pool if group_by else ():
        if group := _task_group(row, group_by):
            parts.setdefault(group, []).append(row)
    bounds = {part: {name: _quantile(rows, name, q) for name, q in quantiles.items()} for part, rows in parts.items()}
    samples = max(row.samples for row in pool)
    return Thresholds(bounds=bounds, sides=dict(sides or {}), group_by=group_by, samples=samples, prompts=len(pool))


def _quantile(rows: Sequence[Measured], name: str, share: float) -> float:
    values = _known(rows, name)
    if not values:
        remedy = _SUGGESTED.get(name, "give the rows scores (score_chosen and score_rejected)")
        raise InputError(f"none of {len(rows)} prompts has the measure {name!r}: {remedy}, or leave the measure out")
    return float(np.quantile(values, share))


def _known(rows: Iterable[Measured], name: str) -> list[float]:
    return [value for row in rows if (value := row.values[name]) is not None]


def _task_group(row: Measured, group_by: str) -> str:
    return "" if row.meta.get(group_by) is None else str(row.meta[group_by])


def objections(rulings: Mapping[str, Ruling], pool: Sequence[Measured], thresholds: Thresholds) -> list[str]:
    """Return what a user should be warned of: lengths that decide nearly alone, and thresholds of another N."""
    found = []
    removed = [ruling.failed for ruling in rulings.values() if ruling.failed]
    short = sum(any(name.endswith("_length") for name in failed) for failed in removed)
    if short > LENGTH_SHARE * len(removed):
        found.append(
            f"length removes {short / len(removed):.0%} of the {len(removed)} prompts removed, which may be good "
            "prompts with short answers: give quantiles per kind of task (group_by), or leave the length out"
        )
    samples = max((row.samples for row in pool), default=0)
    if thresholds.samples and samples and samples != thresholds.samples:
        found.append(
            f"thresholds found with {thresholds.samples} completions per prompt are used with {samples}: the lowest "
            "and highest reward of another number do not compare"
        )
    return found


# --- selectors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedPairs:
    """One pair per prompt, weight 1: the chosen and the rejected completion of a ranking."""

    ranking: Ranking

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Pair]:
        """Yield at most one pair per group, in order."""
        dropped = Counter() if dropped is None else dropped
        for group in groups:
            choice = self.ranking.choose(group)
            if not isinstance(choice, Choice):
                dropped[choice] += 1
                continue
            rewards = choice.rewards
            meta = {
                "score_chosen": rewards[choice.chosen.id],
                "score_rejected": rewards[choice.rejected.id],
                "k": len(rewards),
            }
            yield Pair(prompt=group.prompt, chosen=choice.chosen, rejected=choice.rejected, meta=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What the selector `then` makes of the groups whose prompts a filter keeps."""

    ranking: Ranking
    filter: PromptFilter
    then: Callable[..., Iterator[Any]]

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Any]:
        """Yield examples in the order of the groups."""
        kept = kept_prompts(groups, self.ranking, self.filter, dropped)
        yield from self.then(_Kept(groups, kept), dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPrompts:
    """The prompts that a filter keeps."""

    ranking: Ranking
    filter: PromptFilter

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Prompt]:
        """Yield prompts in the order of the groups."""
        kept = kept_prompts(groups, self.ranking, self.filter, dropped)
        yield from (group.prompt for group in groups if group.id in kept)


def kept_prompts(
    groups: Iterable[Group], ranking: Ranking, filter: PromptFilter, dropped: Tally | None = None
) -> frozenset[str]:
    """Return the ids of the prompts that a filter keeps; `dropped` counts the others by what they failed."""
    if iter(groups) is groups:
        raise TypeError("groups is a one-shot iterator; a filter reads it twice: pass a list or a Groups view")
    rulings = filter(measure_groups(groups, ranking, filter.measures, dropped))
    _count_removed(rulings, dropped)
    return frozenset(name for name, ruling in rulings.items() if not ruling.failed)


def _count_removed(rulings: Mapping[str, Ruling], dropped: Tally | None) -> None:
    for ruling in rulings.values():
        if ruling.failed and dropped is not None:
            dropped[f"removed by {' and '.join(ruling.failed)}"] += 1


@dataclass(frozen=True, slots=True)
class _Kept:
    """The groups of some prompts, as re-iterable as the whole."""

    groups: Iterable[Group]
    ids: frozenset[str]

    def __iter__(self) -> Iterator[Group]:
        return (group for group in self.groups if group.id in self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class RipPairs:
    """RIP in one step: thresholds from the groups given, and pairs of the prompts that are kept.

    `quantiles` (the medians of the paper's three measures where nothing is given) and `bounds` name the conditions, as
    quantiles of the pool or as absolute numbers. `sides` turns a measure round: {"gap": "above"} keeps large gaps.
    """

    quantiles: dict[str, float] | None = None
    bounds: dict[str, float] = field(default_factory=dict)
    sides: dict[str, Side] = field(default_factory=dict)
    group_by: str = ""
    scorer: str = "reward"
    rejected: Rejected = "worst"
    share: float = 0.25
    length_unit: LengthUnit = "chars"
    seed: int = 0

    def __post_init__(self) -> None:
        check_measures((*self.asked, *self.bounds, *self.sides))

    @property
    def asked(self) -> dict[str, float]:
        """The quantiles to take: those of measures without a bound of their own."""
        default = {} if self.bounds else MEDIANS
        asked = default if self.quantiles is None else self.quantiles
        return {name: share for name, share in asked.items() if name not in self.bounds}

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that have a condition."""
        return (*self.asked, *self.bounds)

    @property
    def ranking(self) -> Ranking:
        """How completions become chosen and rejected."""
        return Ranking(
            scorer=self.scorer,
            rejected=self.rejected,
            share=self.share,
            length_unit=self.length_unit,
            seed=self.seed,
        )

    def fit(self, pool: Sequence[Measured]) -> Thresholds:
        """Return the conditions as absolute numbers. Raises as `fit_thresholds` does."""
        if not self.asked:
            return Thresholds(bounds={"": self.bounds}, sides=self.sides, group_by=self.group_by)
        fitted = fit_thresholds(pool, self.asked, sides=self.sides, group_by=self.group_by)
        bounds = {part: {**found, **self.bounds} for part, found in fitted.bounds.items()}
        return replace(fitted, bounds=bounds)

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Pair]:
        """Yield at most one pair per group, in order."""
        thresholds = self.fit(measure_groups(groups, self.ranking, self.measures))
        ranked = RankedPairs(ranking=self.ranking)
        yield from Filtered(ranking=self.ranking, filter=thresholds, then=ranked)(groups, dropped)


# --- preference files ------------------------------------------------------------------------------------------------


class FilteredRows(NamedTuple):
    """What is left of a preference file, what was removed and why, the thresholds used, and what to warn of."""

    kept: list[Pair]
    removed: Tally
    thresholds: Thresholds
    warnings: list[str]


def filter_preferences(rows: Iterable[Pair], rule: RipPairs) -> FilteredRows:
    """Filter existing pairs; each row counts as a prompt of its own.

    Rewards are the rows' meta `score_chosen` and `score_rejected`, and N their `k` (2 where it is not there). Rows with
    equal texts, equal scores or a higher score of the rejected side are removed before quantiles are taken.

    Raises:
        InputError: no row has a measure that the rule needs.
        NothingToTrainOn: no row is left to take quantiles of.
    """
    removed: Tally = Counter()
    usable: dict[str, Pair] = {}
    pool = []
    for number, pair in enumerate(rows):
        rewards = _stored_rewards(pair, number)
        gap = rewards[pair.chosen.id] - rewards[pair.rejected.id] if rewards else None
        reasons = {
            SAME_TEXT: pair.chosen.text == pair.rejected.text,
            "both scores are equal": gap == 0,
            "the rejected side has the higher score": gap is not None and gap < 0,
        }
        if reason := next(filter(reasons.get, reasons), ""):
            removed[reason] += 1
            continue
        group = Group(prompt=pair.prompt, completions=(pair.chosen, pair.rejected))
        row = measure(Choice(group, pair.chosen, pair.rejected, rewards), rule.measures, rule.length_unit)
        samples = int(pair.meta.get("k", 2))
        pool.append(Measured(id=str(number), samples=samples, values=row.values, meta=pair.prompt.meta))
        usable[str(number)] = pair
    thresholds = rule.fit(pool)
    rulings = thresholds(pool)
    _count_removed(rulings, removed)
    kept = [pair for number, pair in usable.items() if not rulings[number].failed]
    return FilteredRows(kept, removed, thresholds, objections(rulings, pool, thresholds))


def _stored_rewards(pair: Pair, number: int) -> dict[str, float]:
    """Return the rewards of both sides by completion id; nothing where one of them is missing."""
    values = [pair.meta.get(name) for name in ("score_chosen", "score_rejected")]
    rewards = [finite_reward(v, f"row {number + 1}") for v in values if isinstance(v, int | float)]
    return dict(zip((pair.chosen.id, pair.rejected.id), rewards, strict=True)) if len(rewards) == 2 else {}


# --- search ----------------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """A setting that was looked at: its quantiles, their thresholds (None: no filter) and its value."""

    quantiles: dict[str, float]
    thresholds: Thresholds | None
    value: float


def search_quantiles(
    pool: Sequence[Measured],
    value: Callable[[Thresholds | None], float],
    *,
    measures: Sequence[str] = tuple(MEDIANS),
    grid: Sequence[float] = (0.25, 0.5, 0.75),
    best_of_each: int = 2,
    sides: Mapping[str, Side] | None = None,
    group_by: str = "",
) -> list[Tried]:
    """Return all settings tried, the best first; among equals the one with fewer conditions, then the earlier.

    First every measure alone at every quantile of `grid`; then every combination of the `best_of_each` best quantiles
    of the measures that alone did better than no filter. `value` is called with thresholds, and once with None for the
    unfiltered pool; the higher the better, say the validation reward of a model trained on what they keep. Thresholds
    that leave nothing to train on (NothingToTrainOn) have the value -inf.
    """

    def attempt(quantiles: dict[str, float]) -> Tried:
        thresholds = fit_thresholds(pool, quantiles, sides=sides, group_by=group_by) if quantiles else None
        try:
            reached = float(value(thresholds))
        except NothingToTrainOn:
            reached = float("-inf")
        if reached != reached:
            raise InputError(f"the value of the quantiles {quantiles} is not a number: nothing can be chosen by it")
        return Tried(quantiles, thresholds, reached)

    base = attempt({})
    alone = [[attempt({name: share}) for share in grid] for name in measures]
    joint: list[dict[str, float]] = [{}]
    for tried in alone:
        better = sorted((t for t in tried if t.value > base.value), key=lambda t: -t.value)[:best_of_each]
        joint += [{**quantiles, **t.quantiles} for quantiles in joint for t in better]
    combined = [attempt(quantiles) for quantiles in joint if len(quantiles) > 1]
    everything = [base, *(t for tried in alone for t in tried), *combined]
    return sorted(everything, key=lambda t: (-t.value, len(t.quantiles)))
