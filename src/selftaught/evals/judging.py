"""How good a judge is: agreement with gold labels, consistency under a change of order, and what could not be read.

Groups hold two or more completions with scores by "gold" and the judge's verdicts or scores. Per-problem values are
means over a group's pairs (or verdicts), None where there is nothing to average.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations

from selftaught.evals.evaluate import summarise
from selftaught.evals.metrics import PerProblem
from selftaught.types import Group, Report, Winner

_SWAPPED: dict[Winner, Winner] = {"first": "second", "second": "first", "tie": "tie"}
_CREDIT = {True: 1.0, None: 0.5, False: 0.0}
Orders = dict[tuple[str, str], Winner | None]


def read_orders(group: Group, scorer: str) -> Orders:
    """Return the judge's winner for every ordered pair of completion ids, None where no verdict could be read.

    Of several verdicts on one order the most frequent counts; two that are equally frequent make a tie.
    """
    found: dict[tuple[str, str], Counter[Winner]] = defaultdict(Counter)
    for verdict in group.verdicts:
        if verdict.scorer == scorer:
            found[verdict.first, verdict.second].update([verdict.winner] if verdict.winner else [])
    orders: Orders = {}
    for pair, counts in found.items():
        leading = [winner for winner, n in counts.items() if n == max(counts.values())]
        orders[pair] = None if not leading else leading[0] if len(leading) == 1 else "tie"
    return orders


def both_orders(orders: Orders) -> list[tuple[str, str, Winner | None, Winner | None]]:
    """Return (a, b, winner when a is shown first, winner when b is), the latter told as if a had been first."""
    rows = []
    for (a, b), winner in orders.items():
        if (b, a) in orders and a < b:
            other = orders[b, a]
            rows.append((a, b, winner, None if other is None else _SWAPPED[other]))
    return rows


def agreement(group: Group, scorer: str) -> list[float]:
    """Return 1 for every read verdict that says what gold says, a tie where gold has one, else 0."""
    gold = _gold(group)
    read = [(v.winner, gold(v.first, v.second)) for v in group.verdicts if v.scorer == scorer and v.winner]
    return [float(winner == label) for winner, label in read if label is not None]


def flips(group: Group, scorer: str) -> list[float]:
    """Return 1 for every pair whose two orders, both read, name different winners, else 0."""
    return [float(ab != ba) for _, _, ab, ba in both_orders(read_orders(group, scorer)) if ab and ba]


def accuracy(group: Group, scorer: str) -> list[float]:
    """Return the credit of every pair that gold decides: right 1, tie 0.5, wrong 0, the mean over its two orders.

    Orders that contradict each other are worth 0.5. An order that could not be read is left out, and so is a pair of
    which neither could.
    """
    gold = _gold(group)
    values = []
    for a, b, *orders in both_orders(read_orders(group, scorer)):
        label = gold(a, b)
        credits = [_CREDIT[None if w == "tie" else w == label] for w in orders if w]
        if credits and label not in (None, "tie"):
            values.append(sum(credits) / len(credits))
    return values


def consistent_accuracy(group: Group, scorer: str) -> list[float]:
    """Return 1 for every pair that gold decides and the judge gets right in both orders, else 0."""
    gold = _gold(group)
    rows = [(gold(a, b), ab, ba) for a, b, ab, ba in both_orders(read_orders(group, scorer))]
    return [float(ab == ba == label) for label, ab, ba in rows if label not in (None, "tie")]


def first_share(group: Group, scorer: str) -> list[float]:
    """Return 1 for every read verdict for the response shown first, 0 for the second: 0.5 without position bias."""
    winners = [v.winner for v in group.verdicts if v.scorer == scorer]
    return [float(winner == "first") for winner in winners if winner in ("first", "second")]


def unparsed(group: Group, scorer: str) -> list[float]:
    """Return 1 for every verdict or score that could not be read, else 0."""
    verdicts = [float(v.winner is None) for v in group.verdicts if v.scorer == scorer]
    return verdicts + [float(s.value is None) for s in group.scores_by(scorer).values()]


def score_accuracy(group: Group, scorer: str) -> list[float]:
    """Return the credit of every pair that gold decides and whose scores are known: 1, 0.5 where they are equal, 0."""
    gold = _gold(group)
    values = []
    scores = group.scores_by(scorer)
    for a, b in combinations([c.id for c in group.completions], 2):
        label, ours, theirs = gold(a, b), *(scores[i].value if i in scores else None for i in (a, b))
        if label not in (None, "tie") and ours is not None and theirs is not None:
            values.append(_CREDIT[None if ours == theirs else (ours > theirs) == (label == "first")])
    return values


Measure = Callable[[Group, str], list[float]]
PAIRWISE: dict[str, Measure] = {
    "accuracy": accuracy,
    "consistent_accuracy": consistent_accuracy,
    "agreement": agreement,
    "flip_rate": flips,
    "first_share": first_share,
    "unparsed": unparsed,
}
POINTWISE: dict[str, Measure] = {"accuracy": score_accuracy, "unparsed": unparsed}


def judge_reports(groups: Iterable[Group], scorer: str) -> tuple[list[Report], dict[str, PerProblem]]:
    """Report a judge on groups with gold scores: over all, then over each `meta["subset"]` as `NAME/SUBSET`.

    The measures are `PAIRWISE` where there are verdicts by `scorer`, else `POINTWISE`.
    """
    values: dict[str, PerProblem] = defaultdict(dict)
    for group in groups:
        measures = PAIRWISE if any(v.scorer == scorer for v in group.verdicts) else POINTWISE
        subset = group.prompt.meta.get("subset")
        for name, measure in measures.items():
            found = measure(group, scorer)
            for key in (name, f"{name}/{subset}") if subset else (name,):
                values[key][group.id] = sum(found) / len(found) if found else None
    names = sorted(values, key=lambda name: name.partition("/")[2])
    return [summarise(name, values[name]) for name in names], dict(values)


def win_rate(groups: Iterable[Group], scorer: str, k: int = 1) -> PerProblem:
    """Return the share of wins of completion `k` over the others, ties and contradicting orders counted as half."""
    result: PerProblem = {}
    for group in groups:
        ours = {c.id for c in group.completions if c.k == k}
        values = []
        for (a, b), winner in read_orders(group, scorer).items():
            if winner is not None and (a in ours) != (b in ours):
                values.append(_CREDIT[None if winner == "tie" else (winner == "first") == (a in ours)])
        result[group.id] = sum(values) / len(values) if values else None
    return result


def _gold(group: Group) -> Callable[[str, str], Winner | None]:
    scores = {i: s.value for i, s in group.scores_by("gold").items()}

    def winner(a: str, b: str) -> Winner | None:
        first, second = scores.get(a), scores.get(b)
        if first is None or second is None:
            return None
        return "first" if first > second else "second" if second > first else "tie"

    return winner
