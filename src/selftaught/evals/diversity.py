"""Diversity and quality of what a model writes (DivPO, arXiv 2501.18101, section 4), as pure functions.

Most of them depend on how much text they see: two models are compared on the same number of generations.
"""

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from math import log, nan

from selftaught.errors import InputError
from selftaught.evals.evaluate import summarise
from selftaught.evals.metrics import PerProblem, accuracy, mean_known
from selftaught.text.json_records import parse_record
from selftaught.types import Completion, Group, Pair, Report

_WORD = re.compile(r"\w+")


def entropy(weights: Iterable[float]) -> float:
    """Return the Shannon entropy -sum p log p in nats of counts or probabilities, which are normalised first.

    0 for one value, log V for V values that are equally frequent; nan where all weights are 0.

    >>> round(entropy([2, 1, 1]) / log(2), 6)
    1.5
    """
    weights = [weight for weight in weights if weight > 0]
    total = sum(weights)
    return -sum(w / total * log(w / total) for w in weights) + 0.0 if total else nan


def unique_share(values: Iterable[str | None], generations: int) -> float:
    """Return the number of different values in the first `generations` over their number; None is no value.

    It falls with the number of generations, which is why that is fixed. InputError where there are fewer.

    >>> unique_share(["ada", "bo", "ada", None], 4)
    0.5
    """
    first = _first(values, generations)
    return len(set(first) - {None}) / generations


def max_share(values: Iterable[str | None]) -> float:
    """Return the share of the most frequent value among those there are; nan where there is none.

    >>> max_share(["ada", "bo", "ada", None])
    0.6666666666666666
    """
    counts = Counter(value for value in values if value is not None)
    return max(counts.values()) / counts.total() if counts else nan


def words_of(text: str) -> list[str]:
    """Return the 1-grams of a text: its words, case-folded."""
    return _WORD.findall(text.casefold())


def unique_unigrams(texts: Sequence[str]) -> int:
    """Return the number of different words in all texts.

    >>> unique_unigrams(["A storm", "a lamp"])
    3
    """
    return len(set(chain.from_iterable(map(words_of, texts))))


def unigram_entropy(texts: Sequence[str]) -> float:
    """Return the entropy in nats of the distribution of words over all texts."""
    return entropy(Counter(chain.from_iterable(map(words_of, texts))).values())


def compression_ratio(texts: Sequence[str]) -> float:
    """Return the bytes of the texts, joined by line breaks, over their bytes gzipped: lower is more diverse.

    nan without text.
    """
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(raw) / len(gzip.compress(raw, mtime=0)) if raw else nan


def win_rate(ours: Sequence[float | None], baseline: Sequence[float | None]) -> list[float | None]:
    """Return for each pair of rewards 1 where ours is higher, 0.5 in a tie, 0 else; None where one is unscored.

    >>> win_rate([1.0, 0.5, 0.0, None], [0.5, 0.5, 0.5, 0.5])
    [1.0, 0.5, 0.0, None]
    """
    return [
        None if a is None or b is None else float(a > b) + 0.5 * (a == b) for a, b in zip(ours, baseline, strict=True)
    ]


def measure_quality(
    groups: Iterable[Group], baseline: Iterable[Group], reward: str
) -> tuple[list[Report], dict[str, PerProblem]]:
    """Report `validity` (verified as right), mean `reward`, and `win_rate` by that reward over `baseline`'s samples.

    Sample k of a prompt meets sample k of the baseline for the same prompt. InputError where one has no reward row.
    """
    groups = list(groups)
    rewards, others = ([_values(group, reward) for group in part] for part in (groups, baseline))
    values: dict[str, PerProblem] = {
        "validity": accuracy(groups),
        "reward": {g.id: mean_known(row) for g, row in zip(groups, rewards, strict=True)},
        "win_rate": {
            g.id: mean_known(win_rate(ours, theirs)) for g, ours, theirs in zip(groups, rewards, others, strict=True)
        },
    }
    return [summarise(name, per_problem) for name, per_problem in values.items()], values


def in_turn(groups: Iterable[Group]) -> list[Completion]:
    """Return all completions: the first of every prompt, then the second, so that any part is of all prompts."""
    return sorted((c for group in groups for c in group.completions), key=lambda c: c.k)


def measure_words(groups: Iterable[Group], generations: int) -> list[Report]:
    """Report `unique_unigrams`, `unigram_entropy` and `compression_ratio` of the first `generations` completions."""
    texts = _first((c.text for c in in_turn(groups)), generations)
    found = {
        "unique_unigrams": float(unique_unigrams(texts)),
        "unigram_entropy": unigram_entropy(texts),
        "compression_ratio": compression_ratio(texts),
    }
    return [_report(name, value, generations) for name, value in found.items()]


def measure_attributes(groups: Iterable[Group], keys: Sequence[str], generations: int) -> list[Report]:
    """Report what JSON records say: `unique_share`, `entropy_sampled` and `max_share`, means over the attributes.

    For each attribute also under `NAME_ATTRIBUTE`. The entropy is that of the observed counts, in nats.
    """
    records = [parse_record(c.text, keys) or {} for c in in_turn(groups)]
    reports = []
    columns = {key: [record.get(key) for record in records] for key in keys}
    measures = {
        "unique_share": {key: unique_share(column, generations) for key, column in columns.items()},
        "entropy_sampled": {
            key: entropy(Counter(v for v in c if v is not None).values()) for key, c in columns.items()
        },
        "max_share": {key: max_share(column) for key, column in columns.items()},
    }
    for name, by_key in measures.items():
        reports += per_attribute(name, by_key, len(records))
    return reports


def per_attribute(name: str, values: Mapping[str, float], n: int) -> list[Report]:
    """Return a report `name` of the mean over attributes and one `name_ATTRIBUTE` for each."""
    each = [_report(f"{name}_{key}", value, n) for key, value in values.items()]
    return [_report(name, sum(values.values()) / len(values), n), *each]


def measure_marginals(marginals: Mapping[str, Mapping[str, float]], n: int) -> list[Report]:
    """Report `entropy` (nats) and `max_share_exact` of exact marginals {attribute: {value: probability}}."""
    entropies = {key: entropy(shares.values()) for key, shares in marginals.items()}
    tops = {key: max(shares.values(), default=nan) for key, shares in marginals.items()}
    return [*per_attribute("entropy", entropies, n), *per_attribute("max_share_exact", tops, n)]


def selection_facts(pairs: Iterable[Pair], prompts: int) -> dict[str, float | None]:
    """Return what a round's selection was like, for its log: means over the pairs, and the share `without` a pair.

    Sizes of the two pools, D of both sides, and the `price`: reward of the chosen minus the best there was, 0 or less.
    """
    rows = [pair.meta for pair in pairs]
    names = ("good", "bad", "diversity_chosen", "diversity_rejected")
    facts = {name: mean_known(row.get(name) for row in rows) for name in names}
    price = mean_known(row["score_chosen"] - row["score_best"] for row in rows if "score_best" in row)
    return {"kept": len(rows), "without": 1 - len(rows) / prompts, "price": price, **facts}


def _report(name: str, mean: float, n: int) -> Report:
    return Report(name=name, mean=mean, stderr=nan, n=n)


def _values(group: Group, scorer: str) -> list[float | None]:
    scores = group.scores_by(scorer)
    missing = next((c for c in group.completions if c.id not in scores), None)
    if missing is not None:
        raise InputError(f"completion {missing.id} of prompt {group.id} has no score by {scorer!r}: score it first")
    return [scores[c.id].value for c in sorted(group.completions, key=lambda c: c.k)]


def _first(values: Iterable, count: int) -> list:
    first = list(islice(values, count))
    if len(first) < count or count < 1:
        raise InputError(f"{len(first)} generations where {count} are to be compared: sample more, or compare fewer")
    return first
