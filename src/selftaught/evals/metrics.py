"""ScPO's metrics (arXiv 2411.04109, section 4 and figures 2 and 3) on groups scored by "verifier" and "votes".

Per-problem metrics return `{prompt id: value}` with None where the problem could not be scored, so that two models can
be paired problem by problem; `evaluate.summarise` turns them into a mean with its standard error.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from selftaught.select.votes import leaders, read_ballot
from selftaught.types import Group, Pair

PerProblem = dict[str, float | None]


def mean_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there, None where there is none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def accuracy(groups: Iterable[Group], scorer: str = "verifier") -> PerProblem:
    """Return the share of right completions of each problem: greedy accuracy where there is one greedy completion.

    Undecided completions are left out; a problem where all are is None.
    """
    result: PerProblem = {}
    for group in groups:
        scores = group.scores_by(scorer)
        values = [s.value for s in (scores.get(c.id) for c in group.completions) if s and s.value is not None]
        result[group.id] = sum(values) / len(values) if values else None
    return result


def accuracy_sc(groups: Iterable[Group], k: int, scorer: str = "verifier") -> PerProblem:
    """Return whether the most-voted answer of `k` samples is right (self-consistency).

    Tie rule: the expectation of drawing one of the tied answers, so that two tied answers of which one is right give
    0.5; no order of the samples and no seed enters. No readable answer at all is wrong. None where a leading answer
    is undecided.
    """
    result: PerProblem = {}
    for group in groups:
        ballot = read_ballot(group, k)
        scores = group.scores_by(scorer)
        values = []
        for answer in leaders(ballot.counts):
            voters = [c.id for c in ballot.base if ballot.keys.get(c.id) == answer]
            values.append(next((s.value for s in map(scores.get, voters) if s and s.value is not None), None))
        known = [value for value in values if value is not None]
        result[group.id] = None if len(known) < len(values) else sum(known) / len(known) if known else 0.0
    return result


def vote_share(groups: Iterable[Group], k: int) -> PerProblem:
    """Return max V / k, in [0, 1] (figure 2): 0 where no answer could be read."""
    return {group.id: max(read_ballot(group, k).counts.values(), default=0) / k for group in groups}


Table = Counter[tuple[int, bool]]
"""How often each (votes, right) occurs among samples."""


def vote_table(groups: Iterable[Group], k: int, scorer: str = "verifier") -> dict[str, Table]:
    """Count the base samples of each problem by votes and correctness; unread and undecided ones are left out."""
    tables: dict[str, Table] = {}
    for group in groups:
        ballot = read_ballot(group, k)
        scores = group.scores_by(scorer)
        rows = [(ballot.votes[c.id], scores.get(c.id)) for c in ballot.base if c.id in ballot.votes]
        tables[group.id] = Counter((votes, s.value > 0.5) for votes, s in rows if s and s.value is not None)
    return tables


def somers_d(table: Mapping[tuple[int, bool], int]) -> float | None:
    """Return Somers' D of the votes given correctness, pooled over samples; in [-1, 1], None with one class only.

    D = (concordant - discordant) / (right samples * wrong samples), over all pairs of a right and a wrong sample. Pairs
    with equal votes count in the denominator: D falls where few samples leave most votes equal (table 7).

    Worked: right samples with 3, 3, 1 votes and one wrong with 1: 2 concordant, 0 discordant, 1 tied of 3, D = 2/3.

    >>> somers_d({(3, True): 2, (1, True): 1, (1, False): 1})
    0.6666666666666666
    """
    right = sum(n for (_, good), n in table.items() if good)
    wrong = sum(n for (_, good), n in table.items() if not good)
    if not right or not wrong:
        return None
    difference = wrong_below = 0
    for votes in sorted({votes for votes, _ in table}):
        here = table.get((votes, False), 0)
        difference += table.get((votes, True), 0) * (2 * wrong_below + here - wrong)
        wrong_below += here
    return difference / (right * wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """Shares of (right, wrong) pairs of samples of a problem that a score puts in the right order, ties, reverses."""

    right: float
    tie: float
    wrong: float
    n: int


def ordering_quality(groups: Iterable[Group], scorer: str = "votes", gold: str = "verifier") -> Ordering | None:
    """Compare a score's order with gold over all pairs of a right and a wrong completion of one problem (figure 3).

    A completion that `scorer` could not score counts as the lowest. None where no problem has both kinds.
    """
    right = tie = wrong = 0
    for group in groups:
        scores, truth = group.scores_by(scorer), group.scores_by(gold)
        values: dict[float | None, list[float]] = defaultdict(list)
        for c in group.completions:
            if c.id in scores and c.id in truth:
                value = scores[c.id].value
                values[truth[c.id].value].append(float("-inf") if value is None else value)
        for good in values[1.0]:
            for bad in values[0.0]:
                right += good > bad
                tie += good == bad
                wrong += good < bad
    n = right + tie + wrong
    return Ordering(right=right / n, tie=tie / n, wrong=wrong / n, n=n) if n else None


def pair_margin(pairs: Iterable[Pair], verdicts: Mapping[str, float | None]) -> float | None:
    """Return accuracy of the chosen minus accuracy of the rejected, in [-1, 1]; `verdicts` by completion id.

    Pairs with an undecided side are left out; None where none is left.
    """
    differences = []
    for pair in pairs:
        chosen, rejected = verdicts.get(pair.chosen.id), verdicts.get(pair.rejected.id)
        if chosen is not None and rejected is not None:
            differences.append(chosen - rejected)
    return sum(differences) / len(differences) if differences else None
