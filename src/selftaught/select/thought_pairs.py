"""Preference pairs from judged responses with length control (arXiv 2410.10630, sections 2.2 and 2.3).

What is compared are responses; what is paired are whole completions, thought and response.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from selftaught.errors import InputError
from selftaught.select.elo import battle_matrix, bradley_terry
from selftaught.text.thoughts import NONE, Parts, ThoughtFormat, response_start, split
from selftaught.types import Completion, Group, Pair, content_share

_EVEN = 1e-9
_FIRST_RHO, _MOST_RHO, _BISECTIONS = 0.5, 64.0, 12
NO_SCORE = "fewer than two responses with a score"
EQUAL = "all scores are equal"
CANCELLED = "length control leaves no difference"
SAME_TEXT = "best and worst response are the same text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtPairs:
    """The best response over the worst: argmax and argmin of z(score) - rho z(length) - thought_rho z(thought length).

    z subtracts the mean and divides by the standard deviation over a prompt's scored responses (0 where that is 0);
    lengths are in characters. Scores are those of `scorer` or, with `pairwise`, Bradley-Terry strengths from its
    verdicts with `prior` wins each way. `rho` None is found by bisection (`find_rho`), 0 switches length control off.
    A prompt whose scores are all equal is dropped, and so is one whose best and worst response are the same text. Ties
    are broken at random, fixed by (seed, prompt, text).

    A completion that `form` cannot split is never scored. It is the rejected one of at most the share `unparsed_cap`
    of pairs, against the best response of its prompt: first where there is no other pair, if that response scores at
    least the median of those chosen elsewhere, then in place of the rejected one.
    """

    form: ThoughtFormat = NONE
    scorer: str = "judge"
    pairwise: bool = False
    rho: float | None = None
    thought_rho: float = 0.0
    unparsed_cap: float = 0.1
    prior: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.unparsed_cap < 1:
            raise InputError(f"unparsed_cap={self.unparsed_cap} is not a share of the pairs; give 0 to below 1")
        if not (0 <= (self.rho or 0.0) < inf and 0 <= self.thought_rho < inf):
            raise InputError(f"rho={self.rho}, thought_rho={self.thought_rho}: give 0 or more")

    def __call__(self, groups: Iterable[Group], dropped: Counter[str] | None = None) -> Iterator[Pair]:
        """Yield at most one pair per group, in order. `groups` is read twice."""
        if iter(groups) is groups:
            raise TypeError("groups is a one-shot iterator; this selector reads it twice: pass a list or a Groups view")
        dropped = Counter() if dropped is None else dropped
        table = Candidates.of(self._rows(group) for group in groups)
        rho = find_rho(table) if self.rho is None else self.rho
        choice = choose(table, rho)
        unparsed = self._unparsed(table, choice)
        for i, group in enumerate(groups):
            best, worst = int(choice.best[i]), unparsed.get(i, int(choice.worst[i]))
            if worst >= 0:
                yield _pair(group, table, int(table.starts[i]), best, worst, rho)
            else:
                dropped[REASONS[choice.reason[i]]] += 1

    def _rows(self, group: Group) -> list[tuple[float, ...]]:
        """Return a row of `Candidates` for every completion of a group."""
        parts = {c.id: split(self.form, c) for c in group.completions}
        read = [c for c in group.completions if not parts[c.id].error]
        raw = self._strengths(group, read) if self.pairwise else self._values(group, read)
        lengths, thoughts = ([float(len(getattr(parts[i], part))) for i in raw] for part in ("response", "thought"))
        quality = normalise(list(raw.values())) - self.thought_rho * normalise(thoughts)
        scored = {i: row for i, *row in zip(raw, raw.values(), quality, normalise(lengths), strict=True)}
        return [self._row(group, c, parts[c.id], scored.get(c.id)) for c in group.completions]

    def _row(self, group: Group, completion: Completion, parts: Parts, scored: list[Any] | None) -> tuple[float, ...]:
        nothing = [np.nan, np.nan, 0.0]
        drawn = content_share("thought pair", self.seed, group.id, completion.text)
        # Equal numbers stand for equal texts within this process, which is all they are used for.
        text = float(hash(parts.response) % 2**52)
        return (*(scored or nothing), float(len(parts.response)), drawn, text, float(bool(parts.error)))

    def _values(self, group: Group, read: Sequence[Completion]) -> dict[str, float]:
        scores = group.scores_by(self.scorer)
        missing = next((c for c in read if c.id not in scores), None)
        if missing is not None:
            raise InputError(
                f"completion {missing.id} of prompt {group.id} has no score by {self.scorer!r}: score it first"
            )
        known = {c.id: scores[c.id].value for c in read}
        values = {i: float(value) for i, value in known.items() if value is not None}
        broken = next((i for i, value in values.items() if not isfinite(value)), None)
        if broken is not None:
            raise InputError(f"completion {broken} has the score {values[broken]} by {self.scorer!r}: mend the scorer")
        return values

    def _strengths(self, group: Group, read: Sequence[Completion]) -> dict[str, float]:
        verdicts = [v for v in group.verdicts if v.scorer == self.scorer]
        if not verdicts and len(read) > 1:
            raise InputError(
                f"prompt {group.id} has no verdict by {self.scorer!r}: judge its completions in pairs first"
            )
        known = {i for v in verdicts if v.winner is not None for i in (v.first, v.second)}
        contestants = [c.id for c in read if c.id in known]
        strengths = bradley_terry(battle_matrix(contestants, verdicts), self.prior)
        return dict(zip(contestants, map(float, strengths), strict=True))

    def _unparsed(self, table: "Candidates", choice: "Choice") -> dict[int, int]:
        """Return the unparsed completions that are rejected, as rows of the table by the number of their group."""
        ordinary = choice.worst >= 0
        if not ordinary.any() or not self.unparsed_cap:
            return {}
        fair = np.median(table.raw[choice.best[ordinary]])
        wanting = []
        for i in np.flatnonzero(choice.best >= 0):
            rows = np.arange(table.starts[i], table.starts[i + 1])
            failed = rows[table.unparsed[rows] > 0]
            if len(failed) and (ordinary[i] or table.raw[choice.best[i]] >= fair):
                rejected = int(failed[np.argmax(table.drawn[failed])])
                wanting.append((bool(ordinary[i]), float(table.drawn[rejected]), int(i), rejected))
        taken: dict[int, int] = {}
        total = int(ordinary.sum())
        for has_pair, _, group, rejected in sorted(wanting):
            if len(taken) + 1 <= self.unparsed_cap * (total + (not has_pair)):
                taken[group] = rejected
                total += not has_pair
        return taken


def without_thoughts(
    pairs: Iterable[Pair], dropped: Counter[str] | None = None, *, form: ThoughtFormat
) -> Iterator[Pair]:
    """Yield `pairs` with all that precedes the response, its marker included, as context and no part of the loss.

    A completion that `form` cannot split stays in the loss as a whole.
    """
    for pair in pairs:
        begins = tuple(response_start(form, completion) for completion in (pair.chosen, pair.rejected))
        yield replace(pair, loss_from=begins, id="")


class Candidates(NamedTuple):
    """All completions of all groups, one row each [N]; group i has the rows `starts[i]` to `starts[i + 1]`.

    `raw` is the score and `quality` what it is worth before length control, both NaN without a score; `length_z` is
    the normalised length, `length` is in characters; `drawn` in [0, 1) breaks ties; equal `text` is an equal response.
    """

    raw: np.ndarray
    quality: np.ndarray
    length_z: np.ndarray
    length: np.ndarray
    drawn: np.ndarray
    text: np.ndarray
    unparsed: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, groups: Iterable[Sequence[tuple[float, ...]]]) -> "Candidates":
        """Return the table of groups of rows, each in the order of the fields."""
        values, starts = array("d"), array("q", [0])
        for rows in groups:
            for row in rows:
                values.extend(row)
            starts.append(starts[-1] + len(rows))
        columns = np.array(values, float).reshape(-1, len(cls._fields) - 1).T.copy()
        return cls._make([*columns, np.array(starts, np.int64)])


class Choice(NamedTuple):
    """Per group the rows of its best and its worst candidate, -1 where there is none, and why there is no pair."""

    best: np.ndarray
    worst: np.ndarray
    reason: np.ndarray


REASONS = ("", NO_SCORE, EQUAL, CANCELLED, SAME_TEXT)


def normalise(values: Sequence[float]) -> np.ndarray:
    """Return (values - mean) / standard deviation (over n), zeros where it is 0.

    >>> normalise([1.0, 3.0]).tolist(), normalise([2.0, 2.0]).tolist()
    ([-1.0, 1.0], [0.0, 0.0])
    """
    centred = np.asarray(values, float) - (np.mean(values) if len(values) else 0.0)
    deviation = float(np.sqrt(np.mean(centred**2))) if len(values) else 0.0
    return centred / deviation if deviation > _EVEN else np.zeros(len(values))


def choose(table: Candidates, rho: float) -> Choice:
    """Return argmax and argmin of quality - rho * length_z in every group."""
    groups = len(table.starts) - 1
    best, worst = np.full(groups, -1), np.full(groups, -1)
    reason = np.full(groups, REASONS.index(NO_SCORE))
    rows = np.flatnonzero(~np.isnan(table.raw))
    owner = np.searchsorted(table.starts, rows, side="right") - 1
    if not len(rows):
        return Choice(best, worst, reason)
    present, first, counts = np.unique(owner, return_index=True, return_counts=True)
    value = np.round(table.quality[rows] - rho * table.length_z[rows], 9)
    top, bottom = (extreme.reduceat(value, first) for extreme in (np.maximum, np.minimum))
    raw = table.raw[rows]
    spread = np.maximum.reduceat(raw, first) - np.minimum.reduceat(raw, first)
    high, low = (_drawn(rows, table.drawn[rows], value == np.repeat(x, counts), first, counts) for x in (top, bottom))
    why = np.where(table.text[high] == table.text[low], REASONS.index(SAME_TEXT), 0)
    why = np.where(top <= bottom, REASONS.index(CANCELLED), why)
    why = np.where(spread <= _EVEN, REASONS.index(EQUAL), why)
    why = np.where(counts < 2, REASONS.index(NO_SCORE), why)
    best[present], worst[present], reason[present] = high, np.where(why == 0, low, -1), why
    return Choice(best, worst, reason)


def _drawn(rows: np.ndarray, drawn: np.ndarray, tied: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return, per group, the tied row that was drawn highest, the first of several equal ones."""
    value = np.where(tied, drawn, -1.0)
    places = np.flatnonzero(value == np.repeat(np.maximum.reduceat(value, first), counts))
    return rows[places[np.searchsorted(places, first)]]


def find_rho(table: Candidates) -> float:
    """Return a rho at which chosen responses are on average no longer than rejected ones, 0 where none is needed.

    The paper's practical rule, found by bisection in [0, 0.5], which is doubled while its end is not enough: with a
    very large rho the shortest response is chosen and the longest rejected.
    """
    if _excess(table, 0.0) <= 0:
        return 0.0
    low, high = 0.0, _FIRST_RHO
    while _excess(table, high) > 0 and high < _MOST_RHO:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _excess(table, middle) <= 0 else (middle, high)
    return high


def _excess(table: Candidates, rho: float) -> float:
    """Return the mean length of the chosen minus that of the rejected, in characters, over all pairs made at `rho`."""
    choice = choose(table, rho)
    paired = choice.worst >= 0
    lengths = table.length[choice.best[paired]] - table.length[choice.worst[paired]]
    return float(lengths.mean()) if len(lengths) else 0.0


def _pair(group: Group, table: Candidates, start: int, best: int, worst: int, rho: float) -> Pair:
    meta: dict[str, Any] = {"rho": round(rho, 6), "unparsed": bool(table.unparsed[worst])}
    for side, row in (("chosen", best), ("rejected", worst)):
        meta[f"score_{side}"] = None if np.isnan(table.raw[row]) else float(table.raw[row])
        meta[f"length_{side}"] = int(table.length[row])
    chosen, rejected = (group.completions[row - start] for row in (best, worst))
    return Pair(prompt=group.prompt, chosen=chosen, rejected=rejected, meta=meta)
